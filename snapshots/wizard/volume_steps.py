"""The steps of Create Volume: their forms, and which later answers an answer clears. wizard.py has the other wizards' steps.

The source is a side step of the size: a volume is empty unless a snapshot's disk was chosen there.
"""

from itertools import count
from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.accounts.models import Project
from cng_portal.common.money import format_count
from cng_portal.common.names import MAX_NAME_LENGTH, NameFormField, fold_name
from cng_portal.inventory.models import Location, Volume

from ..errors import ActionRefused, NameTaken
from ..models import Draft
from ..volumes import new_volumes
from ..volumes import services as volume_services
from . import offers
from .steps import OfferedField, Step, StepForm

DEFAULT_SIZE_GB = 10


class NewVolumeLocationForm(StepForm):
    location = forms.CharField(error_messages={"required": gettext_lazy("Choose a location.")})

    def clean_location(self) -> Location:
        location = Location.objects.active().filter(pk=self.cleaned_data["location"]).first()
        if location is None:
            raise ValidationError(_("This location is no longer available. Choose one from the list."))
        if reason := offers.why_no_volumes(location):
            raise ValidationError(_("%(reason)s Choose another location."), params={"reason": reason})
        return location


class NewVolumeProjectForm(StepForm):
    project = OfferedField(
        lambda user, draft: Project.objects.changeable_by(user).select_related("customer"),
        error_messages={
            "required": gettext_lazy("Choose a project."),
            "invalid_choice": gettext_lazy("You can no longer use this project. Choose one from the list."),
        },
    )


class SizeForm(StepForm):
    """The size, which must be possible, affordable and within the quotas today, together with the chosen source."""

    size_gb = forms.IntegerField(
        label=gettext_lazy("Size"),
        error_messages={
            "required": gettext_lazy("Enter a size."),
            "invalid": gettext_lazy("Enter the size as a whole number of GB."),
        },
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.most_gb = settings.MAX_VOLUME_GB
        if self.draft.disk:
            text = _("From %(least)s GB, the size of the captured disk, to %(most)s GB. A volume can grow later.")
        else:
            text = _("From %(least)s to %(most)s GB. A volume can grow later, but never shrink.")
        sizes = {"least": format_count(self.least_gb), "most": format_count(self.most_gb)}
        self.fields["size_gb"].help_text = text % sizes

    @property
    def least_gb(self) -> int:
        return self.draft.disk.size_gb if self.draft.disk else 1

    def clean_size_gb(self) -> int:
        size_gb: int = self.cleaned_data["size_gb"]
        try:
            check_size(self.draft, size_gb)
        except ActionRefused as error:
            raise ValidationError(str(error)) from error
        return size_gb

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        disk = self.draft.disk
        if disk and not offers.offered_disks(self.user, self.draft).filter(pk=disk.pk).exists():
            raise ValidationError(
                _("The snapshot “%(name)s” can no longer be used. Choose another source."),
                params={"name": disk.snapshot.name},
            )
        return cleaned


def check_size(draft: Draft, size_gb: int) -> None:
    """Raise an ActionRefused unless the draft's volume can have this size."""
    location, project, disk = draft.location, draft.project, draft.disk
    assert location is not None and project is not None  # Earlier steps are checked.
    volume_services.check_size(location, size_gb)
    if disk:
        new_volumes.check_disk_fits(disk, size_gb)
        new_volumes.check_space_for_new_volumes(disk.snapshot, [disk])
        backend_project = disk.volume.backend_project
    else:
        volume_services.check_space(location)
        backend_project = volume_services.cloud_project_of(project, location)
    volume_services.check_new_volume(project, location, backend_project, size_gb)


class SourceForm(StepForm):
    """The disk of a snapshot that the volume is copied from. None is for an empty volume."""

    disk = OfferedField(
        offers.offered_disks,
        required=False,
        error_messages={
            "invalid_choice": gettext_lazy("You can no longer use this snapshot. Choose one from the list."),
        },
    )


class NewVolumeNameForm(StepForm):
    name = NameFormField(
        label=gettext_lazy("Volume Name"),
        error_messages={"required": gettext_lazy("Enter a name.")},
        help_text=gettext_lazy("Up to 120 characters."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )

    def clean_name(self) -> str:
        try:
            return volume_services.check_name(self.cleaned_data["name"])
        except NameTaken as error:
            raise ValidationError(str(error)) from error


class NewVolumeLocationStep(Step):
    slug = field = "location"
    label = gettext_lazy("Location")
    heading = gettext_lazy("Choose a Location")
    intro = gettext_lazy("The data center where the volume is kept. It can be attached to instances in the same one.")
    form_class = NewVolumeLocationForm

    @classmethod
    def changed(cls, draft: Draft) -> None:
        clear_source(draft)


class NewVolumeProjectStep(Step):
    slug = field = "project"
    label = gettext_lazy("Project")
    heading = gettext_lazy("Assign to a Project")
    intro = gettext_lazy("Its members see the volume and can use it. It counts towards the project's quota and costs.")
    form_class = NewVolumeProjectForm

    @classmethod
    def changed(cls, draft: Draft) -> None:
        assert draft.project is not None
        if draft.customer_id != draft.project.customer_id:
            clear_source(draft)
        draft.customer_id = draft.project.customer_id


def clear_source(draft: Draft) -> None:
    """Clear the source and the answers that depend on it, so that nobody gets an empty volume by mistake."""
    if draft.disk:
        draft.disk = draft.size_gb = None
        draft.name = ""


class SizeStep(Step):
    slug = "size"
    field = "size_gb"
    template = "volume_size"
    label = gettext_lazy("Size")
    heading = gettext_lazy("Choose a Size")
    intro = gettext_lazy("An empty volume, or a copy of a disk as a snapshot captured it.")
    form_class = SizeForm

    @classmethod
    def form(cls, draft: Draft, user: Any, data: Any = None) -> StepForm:
        form = super().form(draft, user, data)
        if not draft.size_gb:
            form.initial["size_gb"] = draft.disk.size_gb if draft.disk else DEFAULT_SIZE_GB
        return form

    @classmethod
    def answer(cls, draft: Draft) -> str:
        return _("%(size)s GB") % {"size": format_count(draft.size_gb or 0)}


class SourceStep(Step):
    """Not one of STEPS: the step of the size leads here and back."""

    slug = "source"
    field = "disk"
    template = "volume_source"
    label = gettext_lazy("Source")
    heading = gettext_lazy("Choose a Source")
    intro = gettext_lazy("Start with an empty volume, or with the data of a snapshot or backup in the same location.")
    form_class = SourceForm
    parent = "size"

    @classmethod
    def changed(cls, draft: Draft) -> None:
        draft.size_gb, draft.name = None, ""  # They were chosen for another source.


class NewVolumeNameStep(Step):
    slug = field = "name"
    template = "volume_name"
    label = gettext_lazy("Name")
    heading = gettext_lazy("Choose Volume Name")
    intro = gettext_lazy("A name by which you and your colleagues recognize the volume.")
    form_class = NewVolumeNameForm

    @classmethod
    def form(cls, draft: Draft, user: Any, data: Any = None) -> StepForm:
        form = super().form(draft, user, data)
        if not draft.name:
            form.initial["name"] = suggest_name(draft)
        return form


def suggest_name(draft: Draft) -> str:
    """Return a name that no other volume of the customer has, such as `volume-2026-11-22` or `db-01-data-copy`."""
    if draft.disk:
        wanted = _("%(name)s-copy") % {"name": draft.disk.volume_name[: MAX_NAME_LENGTH - 20]}
    else:
        wanted = _("volume-%(day)s") % {"day": timezone.localdate().isoformat()}
    same = Volume.objects.present().filter(project__customer=draft.customer_id, name_key__startswith=fold_name(wanted))
    taken = set(same.values_list("name_key", flat=True))
    numbered = (f"{wanted}-{number}" if number > 1 else wanted for number in count(1))
    return next(name for name in numbered if fold_name(name) not in taken)


STEPS = (NewVolumeLocationStep, NewVolumeProjectStep, SizeStep, NewVolumeNameStep)
