"""Filters of lists, and the forms of actions on a snapshot. The wizard's are in wizard.py."""

from collections.abc import Sequence
from datetime import date
from functools import partial
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from cng_portal.accounts.models import Project, User
from cng_portal.common import filters
from cng_portal.common.filters import ChoiceFilter
from cng_portal.common.ids import parse_uuid
from cng_portal.common.names import NameFormField, is_same_name, name_contains
from cng_portal.common.pages import Order
from cng_portal.inventory.models import Tag, VirtualMachine, Volume

from . import expiry, lists, protection
from .deletion_preview import join_names
from .locks import MAX_COOLING_OFF, MIN_COOLING_OFF
from .models import MAX_REASON_LENGTH, DiskImage, Kind, LockMode, Snapshot, SnapshotLock, State


class FilterForm(filters.FilterForm):
    """The filters of a list of resources."""

    equal: ClassVar[tuple[str, ...]] = ("project", "location")  # fields that filter a column of the same name

    def __init__(self, *args: Any, user: User, without: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        self.fields.pop(without, None)
        for name, choices in lists.FILTER_CHOICES.items():
            field = self.fields.get(name)
            if isinstance(field, ChoiceFilter):
                field.set_choices(partial(choices, user, self.data.get(name, "")))
        self.is_valid()

    def narrow(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Apply the filters."""
        rows = rows.filter(**{name: value for name, value in self.chosen.items() if name in self.equal})
        if tag := self.chosen.get("tag"):
            rows = rows.filter(tags=tag)
        text = self.chosen.get("q", "")
        if not text:
            return rows
        pk = parse_uuid(text)
        return rows.filter(self.matches(text) | Q(pk=pk) if pk else self.matches(text))

    def matches(self, text: str) -> Q:
        """Match rows that the search finds."""
        return name_contains(text)

    @property
    def tag_name(self) -> str:
        """Return the name of the chosen tag, or an empty string."""
        return Tag.objects.get(pk=self.chosen["tag"]).name if "tag" in self.chosen else ""

    @property
    def without_tag(self) -> str:
        """Return the query string of the other filters."""
        return urlencode({name: value for name, value in self.chosen.items() if name != "tag"})


class SnapshotFilterForm(FilterForm):
    equal = ("project", "location", "state", "volume", "vm")

    state = ChoiceFilter(
        gettext_lazy("State"),
        gettext_lazy("Every state"),
        [(state.value, state.label) for state in State if state != State.DELETED],
    )
    project = ChoiceFilter(gettext_lazy("Project"), gettext_lazy("Every project"))
    location = ChoiceFilter(gettext_lazy("Location"), gettext_lazy("Every location"))
    volume = ChoiceFilter(gettext_lazy("Volume"), gettext_lazy("Every volume"))
    vm = ChoiceFilter(gettext_lazy("Instance"), gettext_lazy("Every instance"))
    tag = ChoiceFilter(gettext_lazy("Tag"), gettext_lazy("Every tag"))
    sort = forms.ChoiceField(
        label=gettext_lazy("Order"),
        required=False,
        initial="newest",
        choices=[(key, order.label) for key, order in lists.SNAPSHOT_ORDERS.items()],
    )

    def __init__(self, *args: Any, kind: Kind, **kwargs: Any) -> None:
        self.kind = kind
        super().__init__(*args, without="vm" if kind == Kind.VOLUME else "volume", **kwargs)

    def matches(self, text: str) -> Q:
        if self.kind == Kind.VOLUME:
            sources = Q(volume__in=Volume.objects.visible_to(self.user).filter(name_contains(text)))
        else:
            sources = Q(vm__in=VirtualMachine.objects.visible_to(self.user).filter(name_contains(text)))
        return sources | name_contains(text)

    @property
    def order(self) -> Order:
        return lists.SNAPSHOT_ORDERS[self.chosen.get("sort", "newest")]


class BinFilterForm(FilterForm):
    project = ChoiceFilter(gettext_lazy("Project"), gettext_lazy("Every project"))
    location = ChoiceFilter(gettext_lazy("Location"), gettext_lazy("Every location"))


class VolumeFilterForm(FilterForm):
    ATTACHED, FREE, UNPROTECTED = "attached", "free", "unprotected"

    project = ChoiceFilter(gettext_lazy("Project"), gettext_lazy("Every project"))
    location = ChoiceFilter(gettext_lazy("Location"), gettext_lazy("Every location"))
    show = ChoiceFilter(
        gettext_lazy("Show"),
        gettext_lazy("Every volume"),
        [
            (ATTACHED, gettext_lazy("Attached to an instance")),
            (FREE, gettext_lazy("Not attached")),
            (UNPROTECTED, gettext_lazy("Unprotected")),
        ],
    )

    tag = ChoiceFilter(gettext_lazy("Tag"), gettext_lazy("Every tag"))

    def narrow(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        rows, show = super().narrow(rows), self.chosen.get("show")
        if show == self.UNPROTECTED:
            return rows.filter(protection.UNPROTECTED)
        return rows.filter(vm__isnull=show == self.FREE) if show else rows

    def matches(self, text: str) -> Q:
        return name_contains(text) | name_contains(text, "vm__")


class MachineFilterForm(FilterForm):
    equal = ("project", "location", "state")

    project = ChoiceFilter(gettext_lazy("Project"), gettext_lazy("Every project"))
    location = ChoiceFilter(gettext_lazy("Location"), gettext_lazy("Every location"))
    state = ChoiceFilter(gettext_lazy("State"), gettext_lazy("Every state"), VirtualMachine.State.choices)


class RenameForm(forms.Form):
    """services.rename_snapshot checks whether the name is free; `suggestion` is a free one."""

    suggestion = ""
    name = NameFormField(
        label=gettext_lazy("Snapshot Name"),
        help_text=gettext_lazy("Up to 120 characters, unique among your snapshots."),
        error_messages={"required": gettext_lazy("Enter a name.")},
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )


class ShownPriceForm(forms.Form):
    """What was shown that putting something back costs."""

    shown_micro = forms.IntegerField(required=False, widget=forms.HiddenInput)


class PutBackForm(RenameForm, ShownPriceForm):
    """The name under which a snapshot is put back."""


class VolumeNameForm(forms.Form):
    name = NameFormField(
        label=gettext_lazy("Volume Name"),
        help_text=gettext_lazy("Up to 120 characters."),
        error_messages={"required": gettext_lazy("Enter a name.")},
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )


class GrowForm(forms.Form):
    """The new size of a volume, with the price that was shown for it."""

    size_gb = forms.IntegerField(
        label=gettext_lazy("New size"),
        error_messages={
            "required": gettext_lazy("Enter the new size."),
            "invalid": gettext_lazy("Enter the size as a whole number of GB."),
        },
    )
    shown_hourly_micro = forms.IntegerField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, volume: Volume, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.volume = volume
        field = self.fields["size_gb"]
        field.help_text = _("More than %(size)s GB, at most %(most)s GB. A volume can't be made smaller.") % {
            "size": f"{volume.size_gb:,}",
            "most": f"{settings.MAX_VOLUME_GB:,}",
        }
        field.widget.attrs |= {"min": volume.size_gb + 1, "max": settings.MAX_VOLUME_GB, "inputmode": "numeric"}

    def clean_size_gb(self) -> int:
        size_gb: int = self.cleaned_data["size_gb"]
        if size_gb <= self.volume.size_gb:
            raise ValidationError(
                _("The volume has %(size)s GB already, and can't shrink. Enter a larger size.")
                % {"size": f"{self.volume.size_gb:,}"}
            )
        if size_gb > settings.MAX_VOLUME_GB:
            raise ValidationError(
                _("A volume has at most %(size)s GB. Choose a smaller size.") % {"size": f"{settings.MAX_VOLUME_GB:,}"}
            )
        return size_gb


class AttachForm(forms.Form):
    vm = forms.ChoiceField(
        label=gettext_lazy("Instance"),
        help_text=gettext_lazy("Only stopped instances of the volume's project and location."),
        error_messages={
            "required": gettext_lazy("Choose an instance."),
            "invalid_choice": gettext_lazy(
                "The volume can't be attached to this instance now. Choose one from the list."
            ),
        },
    )

    def __init__(self, *args: Any, machines: QuerySet[VirtualMachine], search: str = "", **kwargs: Any) -> None:
        """Offer the first SOURCES_OFFERED of the machines whose names contain `search`, and the chosen one."""
        super().__init__(*args, **kwargs)
        searched = machines.filter(name_contains(search)) if search else machines
        matching = list(searched[: lists.SOURCES_OFFERED + 1])
        self.has_more = len(matching) > lists.SOURCES_OFFERED
        self.machines = {str(vm.pk): vm for vm in matching[: lists.SOURCES_OFFERED]}
        chosen = self.data.get("vm", "")
        if chosen not in self.machines and (pk := parse_uuid(chosen)):
            self.machines |= {str(vm.pk): vm for vm in machines.filter(pk=pk)}
        field: Any = self.fields["vm"]
        field.choices = [(pk, vm.name) for pk, vm in self.machines.items()]

    def clean_vm(self) -> VirtualMachine:
        return self.machines[self.cleaned_data["vm"]]


class ExpiryField(forms.DateField):
    """The last day of a snapshot in the customer's time zone, which `for_zone` sets."""

    zone: ZoneInfo

    def __init__(self) -> None:
        super().__init__(
            label=gettext_lazy("Delete after"),
            required=False,
            widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
            error_messages={"invalid": gettext_lazy("Enter a date such as 2026-12-31.")},
        )

    def for_zone(self, zone: ZoneInfo) -> None:
        self.zone = zone
        self.help_text = _(
            "When this day is over in %(zone)s, the portal deletes the snapshot; members of the project are "
            "notified a day before. Leave it empty to keep the snapshot until you delete it."
        ) % {"zone": zone.key}

    def clean(self, value: Any) -> date | None:
        day = super().clean(value)
        try:
            return expiry.clean_day(day, self.zone, now=timezone.now()) if day else None
        except expiry.InvalidExpiry as error:
            raise ValidationError(str(error)) from error


class ExpiryForm(forms.Form):
    delete_after = ExpiryField()

    def __init__(self, *args: Any, zone: ZoneInfo, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["delete_after"].for_zone(zone)  # type: ignore[attr-defined]


class LockForm(forms.Form):
    """Until when a snapshot is locked. A lock that is `held` keeps its mode, and only an owner can choose Compliance."""

    day = forms.DateField(
        label=gettext_lazy("Lock until the end of"),
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        error_messages={
            "required": gettext_lazy("Enter the last day on which it is locked."),
            "invalid": gettext_lazy("Enter a date such as 2026-12-31."),
        },
    )
    mode = forms.ChoiceField(
        label=gettext_lazy("Mode"),
        choices=LockMode.choices,
        widget=forms.RadioSelect,
        initial=LockMode.GOVERNANCE,
        error_messages={"required": gettext_lazy("Choose a mode.")},
    )
    cooling_off_hours = forms.IntegerField(
        label=gettext_lazy("Cooling-off"),
        required=False,
        initial=24,
        min_value=MIN_COOLING_OFF,
        max_value=MAX_COOLING_OFF,
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
        help_text=gettext_lazy("For Compliance: how long an owner can still lift the lock."),
        error_messages={
            "invalid": gettext_lazy("Enter a whole number of hours, from 1 to 72."),
            "min_value": gettext_lazy("Enter a cooling-off of 1 to 72 hours."),
            "max_value": gettext_lazy("Enter a cooling-off of 1 to 72 hours."),
        },
    )
    shown_micro = forms.IntegerField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, held: SnapshotLock | None, is_owner: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if held:
            del self.fields["mode"]
        if held or not is_owner:
            del self.fields["cooling_off_hours"]
        if not held and not is_owner:
            self.fields["mode"].choices = LockMode.choices[:1]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        is_compliance = cleaned.get("mode") == LockMode.COMPLIANCE
        if is_compliance and cleaned.get("cooling_off_hours") is None and not self.errors:
            self.add_error("cooling_off_hours", _("Enter a cooling-off of 1 to 72 hours."))
        return cleaned


class LiftLockForm(forms.Form):
    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        max_length=MAX_REASON_LENGTH,
        widget=forms.Textarea(attrs={"rows": 3}),
        error_messages={"required": gettext_lazy("Enter why you lift it. Everybody of the account is told.")},
    )


class ConfirmationForm(forms.Form):
    """The user types `expected` before something that can't be undone. Without it, the service checks what was typed."""

    confirmation = forms.CharField(
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "off", "spellcheck": "false"})
    )

    def __init__(
        self, *args: Any, label: str, required: str, expected: str = "", last_of: Sequence[Volume] = (), **kwargs: Any
    ) -> None:
        """`last_of`: the volumes that lose their last restore point, which is asked for separately."""
        super().__init__(*args, **kwargs)
        self.expected = expected
        if last_of:
            names = join_names([volume.name for volume in last_of])
            self.fields["is_last"] = forms.BooleanField(
                label=ngettext(
                    "Delete the last restore point of %(names)s",
                    "Delete the last restore points of %(names)s",
                    len(last_of),
                )
                % {"names": names},
                error_messages={"required": _("Check this box to delete the last restore point.")},
            )
        self.fields["confirmation"].label = label
        self.fields["confirmation"].error_messages["required"] = required

    @property
    def confirms_last(self) -> bool:
        """Return whether the user has confirmed deleting the last restore point of a volume."""
        return self.cleaned_data.get("is_last", False)

    def clean_confirmation(self) -> str:
        typed: str = self.cleaned_data["confirmation"]
        if self.expected and not is_same_name(typed, self.expected):
            raise ValidationError(_("That doesn't match. Type “%(text)s” to confirm.") % {"text": self.expected})
        return typed


class OverrideForm(forms.Form):
    """The user may type the snapshot's name to use it unverified, if it is damaged or `verify_first`.

    `skip` is the field's label in the second case.
    """

    override = forms.CharField(
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "off", "spellcheck": "false"}),
    )

    def __init__(self, *args: Any, snapshot: Snapshot, verify_first: bool, skip: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["override"]
        name = {"name": snapshot.name}
        if snapshot.is_damaged:
            field.required = field.widget.is_required = True
            field.label = _("Type the snapshot's name, “%(name)s”, to use it anyway") % name
            field.error_messages["required"] = (
                _("Type the name “%(name)s” to confirm that you accept damaged data.") % name
            )
        elif verify_first:
            field.label = skip
            field.help_text = (
                _(
                    "It hasn't been verified within the last day, so all of its bytes are read and compared first. To skip "
                    "that, type the snapshot's name, “%(name)s”."
                )
                % name
            )
        else:
            del self.fields["override"]


class RestoreForm(OverrideForm, ConfirmationForm):
    field_order = ["confirmation", "override"]


class DeletionsForm(ConfirmationForm):
    """The IDs of the snapshots to delete, confirmed by typing how many."""

    id = forms.MultipleChoiceField(widget=forms.MultipleHiddenInput)

    def __init__(self, *args: Any, count: int, ids: list[str], is_final: bool, **kwargs: Any) -> None:
        phrase = ngettext("delete %(count)s snapshot", "delete %(count)s snapshots", count) % {"count": count}
        super().__init__(
            *args,
            label=_("Type “%(phrase)s” to confirm") % {"phrase": phrase},
            required=_("Type “%(phrase)s” to delete them.") % {"phrase": phrase},
            expected=phrase,
            initial={"id": ids},
            **kwargs,
        )
        question = (
            ngettext("Delete %(count)s snapshot for good?", "Delete %(count)s snapshots for good?", count)
            if is_final
            else ngettext("Delete %(count)s snapshot?", "Delete %(count)s snapshots?", count)
        )
        self.question = question % {"count": count}
        self.fields["id"].choices = [(snapshot_id, snapshot_id) for snapshot_id in ids]  # type: ignore[attr-defined]


class ProjectField(forms.ModelChoiceField):
    def to_python(self, value: Any) -> Project | None:
        try:
            return super().to_python(value)
        except ValidationError as error:  # also for text that isn't a UUID
            raise ValidationError(self.error_messages["invalid_choice"], code="invalid_choice") from error


class NamedInProjectForm(forms.Form):
    """The name and project of a new volume or machine."""

    name = NameFormField(
        label=gettext_lazy("Name"),
        error_messages={"required": gettext_lazy("Enter a name.")},
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    project = ProjectField(
        Project.objects.none(),
        label=gettext_lazy("Project"),
        empty_label=None,
        error_messages={
            "required": gettext_lazy("Choose a project."),
            "invalid_choice": gettext_lazy("You can't create anything in this project. Choose one from the list."),
        },
    )

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field: Any = self.fields["project"]
        field.queryset = projects
        field.choices = [(project.pk, str(project)) for project in projects]  # Read once, not at every rendering.


class MoveForm(forms.Form):
    """The project that a snapshot is moved to."""

    project = ProjectField(
        Project.objects.none(),
        label=gettext_lazy("Project"),
        empty_label=gettext_lazy("Choose a project"),
        error_messages={
            "required": gettext_lazy("Choose the project that the snapshot is moved to."),
            "invalid_choice": gettext_lazy("You can no longer use this project. Choose one from the list."),
        },
    )

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field: Any = self.fields["project"]
        field.queryset = projects


class NewMachineForm(OverrideForm, NamedInProjectForm):
    field_order = ["name", "project", "override"]


class NewVolumeForm(OverrideForm, NamedInProjectForm):
    """`disk` is the disk that the volume is created from. Only machines' snapshots have a choice."""

    disk = forms.ChoiceField(
        label=gettext_lazy("Disk"),
        error_messages={
            "required": gettext_lazy("Choose the disk that the new volume is created from."),
            "invalid_choice": gettext_lazy("The snapshot does not have this disk. Choose one from the list."),
        },
    )
    size_gb = forms.IntegerField(
        label=gettext_lazy("Size"),
        error_messages={
            "required": gettext_lazy("Enter a size for the new volume."),
            "invalid": gettext_lazy("Enter the size as a whole number of GB."),
        },
    )

    shown_rate_micro = forms.IntegerField(required=False, widget=forms.HiddenInput)  # of one GB and hour

    field_order = ["disk", "name", "size_gb", "project", "override"]

    def __init__(self, *args: Any, disks: list[DiskImage], disk: DiskImage, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.chosen_disk = disk
        choices = [
            (str(disk.pk), _("%(name)s, %(size)s GB") % {"name": disk.volume_name, "size": disk.size_gb})
            for disk in disks
        ]
        if len(choices) > 1:
            self.fields["disk"].choices = choices  # type: ignore[attr-defined]
        else:
            del self.fields["disk"]
        size = self.fields["size_gb"]
        size.help_text = _("At least %(size)s GB, the size of the captured disk.") % {"size": disk.size_gb}
        size.widget.attrs |= {"min": disk.size_gb, "max": settings.MAX_VOLUME_GB, "inputmode": "numeric"}

    def clean_size_gb(self) -> int:
        size_gb: int = self.cleaned_data["size_gb"]
        if size_gb < self.chosen_disk.size_gb:
            raise ValidationError(
                _("The volume needs at least %(size)s GB, the size of the captured disk.")
                % {"size": self.chosen_disk.size_gb}
            )
        if size_gb > settings.MAX_VOLUME_GB:
            raise ValidationError(
                _("A volume has at most %(size)s GB. Choose a smaller size.") % {"size": f"{settings.MAX_VOLUME_GB:,}"}
            )
        return size_gb
