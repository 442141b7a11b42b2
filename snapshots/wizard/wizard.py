"""The wizard's steps: their forms, choices, and which later answers an answer clears.

Answers are stored in a `Draft`. Whenever a step is opened, the answers before it are validated again: `first_open_step` is
the first whose answer is missing or no longer valid.
"""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.models import BillingCycle
from cng_portal.accounts.models import Project, User
from cng_portal.common.names import NameFormField
from cng_portal.inventory.models import Location

from .. import checks
from ..backups.forms import ScheduleForm
from ..backups.schedules import SCHEDULE_FIELDS
from ..errors import ActionRefused, NameTaken
from ..forms import ExpiryField
from ..models import BackupSchedule, Draft, Kind, Operation
from . import offers, volume_steps
from .steps import OfferedField, Step, StepForm, save

DRAFT_LIFETIME = timedelta(days=30)
MAX_ESTIMATE = timedelta(days=3653)


class LocationForm(StepForm):
    location = forms.Field(error_messages={"required": _("Choose a location.")})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.offers = offers.offered_locations(self.user, self.draft.kind)

    def clean_location(self) -> Location:
        for offer in self.offers:
            if offer.location.pk == self.cleaned_data["location"]:
                if offer.reason:
                    raise ValidationError(_("%(reason)s Choose another location."), params={"reason": offer.reason})
                return offer.location
        raise ValidationError(_("This location is no longer available. Choose one from the list."))


class ProjectForm(StepForm):
    project = forms.Field(error_messages={"required": _("Choose a project.")})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.offers = offers.offered_projects(self.user, self.draft)

    def clean_project(self) -> Project:
        for offer in self.offers:
            if str(offer.project.pk) == str(self.cleaned_data["project"]):
                if offer.reason:
                    raise ValidationError(_("%(reason)s Choose another project."), params={"reason": offer.reason})
                return offer.project
        raise ValidationError(_("You can no longer use this project. Choose one from the list."))


class SourceForm(StepForm):
    """The choice of the source. `field` is `volume` or `vm`."""

    field: ClassVar[str]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if source := cleaned.get(self.field):
            try:
                volumes = checks.check_capturable(source, project=self.draft.project)
                checks.check_affordable(source, volumes, kind=self.draft.kind)
                checks.check_space(source, volumes)
            except ActionRefused as error:
                self.add_error(self.field, str(error))
        return cleaned


class VolumeForm(SourceForm):
    field = "volume"
    volume = OfferedField(
        offers.offered_sources,
        error_messages={
            "required": _("Choose a volume."),
            "invalid_choice": _("You can no longer take a snapshot of this volume. Choose one from the list."),
        },
    )


class InstanceForm(SourceForm):
    field = "vm"
    vm = OfferedField(
        offers.offered_sources,
        error_messages={
            "required": _("Choose an instance."),
            "invalid_choice": _("You can no longer use this instance. Choose one from the list."),
        },
    )


class NameForm(StepForm):
    name = NameFormField(
        label=_("Snapshot Name"),
        error_messages={"required": _("Enter a name.")},
        help_text=_("Up to 120 characters, unique among your snapshots. Case doesn't matter."),
    )

    delete_after = ExpiryField()
    suggestion = ""

    def __init__(self, *args: Any, draft: Draft, **kwargs: Any) -> None:
        assert draft.project is not None  # Earlier steps are checked.
        super().__init__(*args, draft=draft, **kwargs)
        self.fields["delete_after"].for_zone(draft.project.customer.zone)  # type: ignore[attr-defined]

    def clean_name(self) -> str:
        assert self.draft.project is not None  # Earlier steps are checked.
        try:
            return checks.check_name(self.draft.project.customer_id, self.cleaned_data["name"])
        except NameTaken as error:
            self.suggestion = error.suggestion
            raise ValidationError(str(error)) from error


class ScheduleStepForm(StepForm, ScheduleForm):
    take_one_now = forms.BooleanField(
        label=_("Take one immediately"),
        required=False,
        help_text=_("The first one is taken as soon as you create the schedule."),
    )

    def __init__(self, *args: Any, draft: Draft, **kwargs: Any) -> None:
        assert draft.project is not None  # Earlier steps are checked.
        super().__init__(*args, draft=draft, zone=draft.project.customer.zone, kind=draft.kind, **kwargs)

    @property
    def takes_one_now(self) -> bool:
        return self.cleaned_data["take_one_now"] if self.is_bound else self.initial["take_one_now"]


class ReviewForm(forms.Form):
    """The confirmation: the billing cycle, and the price that was displayed, which must still be today's."""

    billing_cycle = forms.ChoiceField(
        choices=BillingCycle.choices,
        error_messages={
            "required": _("Choose a billing cycle."),
            "invalid_choice": _("Volumes, snapshots and backups support only Hourly billing cycles. Choose Hourly."),
        },
    )
    shown_hourly_micro = forms.IntegerField(
        min_value=0,
        error_messages={
            "required": _("The price is missing. Check the price summary and confirm again."),
            "invalid": _("The price is missing. Check the price summary and confirm again."),
        },
    )


class UntilForm(forms.Form):
    """The date of the cost estimate."""

    until = forms.DateField(
        label=_("Cost until"),
        widget=forms.DateInput(attrs={"type": "date"}),
        error_messages={
            "required": _("Enter a date to see the cost until then."),
            "invalid": _("Enter a date such as 2026-12-31."),
        },
    )

    def clean_until(self) -> date:
        until: date = self.cleaned_data["until"]
        today = timezone.localdate()
        if not today <= until <= today + MAX_ESTIMATE:
            raise ValidationError(_("Enter a date from today on, at most ten years ahead."))
        return until


class LocationStep(Step):
    slug = field = "location"
    label = _("Location")
    heading = _("Choose a Location")
    intro = _("The data center where your volume is. The snapshot is kept in the same one.")
    form_class = LocationForm

    @classmethod
    def changed(cls, draft: Draft) -> None:
        draft.volume = draft.vm = None


class MachineLocationStep(LocationStep):
    intro = _("The data center where your instance is. Its snapshots and backups are kept in the same one.")


class ProjectStep(Step):
    slug = field = "project"
    label = _("Project")
    heading = _("Assign to a Project")
    intro = _("The project's members see the snapshot and can use it. It counts towards the project's quota and costs.")
    form_class = ProjectForm

    @classmethod
    def changed(cls, draft: Draft) -> None:
        assert draft.project is not None
        source = draft.source
        if source and source.project.customer_id != draft.project.customer_id:
            draft.volume = draft.vm = None
        draft.customer_id = draft.project.customer_id


class ScheduleProjectStep(ProjectStep):
    intro = _(
        "Its members see what the schedule takes and can use it. It counts towards the project's quota and costs."
    )


class SourceStep(Step):
    """The choice of a volume or instance."""

    template = "source"
    plural: ClassVar[Any]
    search_label: ClassVar[Any]
    icon: ClassVar[str]

    @classmethod
    def changed(cls, draft: Draft) -> None:
        draft.name = ""  # It was chosen for another source.


class VolumeStep(SourceStep):
    slug = field = "volume"
    plural = _("Volumes")
    search_label = _("Search volumes and instances")
    icon = "circle-stack"
    label = _("Volume")
    heading = _("Choose Block Storage")
    intro = _("The volume whose state is captured, exactly as it is at that instant.")
    form_class = VolumeForm


class InstanceStep(SourceStep):
    slug = "instance"
    field = "vm"
    plural = _("Instances")
    search_label = _("Search instances")
    icon = "server"
    label = _("Instance")
    heading = _("Choose an Instance")
    intro = _("The instance whose disks are captured together, with its configuration.")
    form_class = InstanceForm


class NameStep(Step):
    slug = field = "name"
    label = _("Name")
    heading = _("Choose Snapshot Name")
    intro = _("A unique name, so that you recognize the snapshot in your dashboard.")
    form_class = NameForm

    @classmethod
    def form(cls, draft: Draft, user: User, data: Any = None) -> StepForm:
        form = super().form(draft, user, data)
        form.initial["delete_after"] = draft.delete_after
        if not draft.name and draft.source:
            form.initial["name"] = checks.suggest_name(draft.source)
        return form

    @classmethod
    def check(cls, draft: Draft, user: User) -> StepForm:
        return cls.form(draft, user, {"name": draft.name, "delete_after": draft.delete_after})

    @classmethod
    def store(cls, draft: Draft, form: StepForm) -> Draft:
        draft.delete_after = form.cleaned_data["delete_after"]
        return super().store(draft, form)


class ScheduleStep(Step):
    """The only step with several answers, which are fields of the draft with the same names."""

    slug = "schedule"
    field = "interval"
    label = _("Schedule")
    heading = _("Backup Schedule")
    intro: ClassVar[Any] = _("How often and at what time the instance is backed up, and how many backups are kept.")
    form_class = ScheduleStepForm
    answers = (*SCHEDULE_FIELDS, "take_one_now")

    @classmethod
    def form(cls, draft: Draft, user: User, data: Any = None) -> StepForm:
        stored = {name: getattr(draft, name) for name in cls.answers} if draft.interval else {}
        return cls.form_class(data, draft=draft, user=user, initial=DEFAULT_SCHEDULE | stored)

    @classmethod
    def check(cls, draft: Draft, user: User) -> StepForm:
        return cls.form(draft, user, {name: getattr(draft, name) for name in cls.answers})

    @classmethod
    def store(cls, draft: Draft, form: StepForm) -> Draft:
        for name in cls.answers:
            setattr(draft, name, form.cleaned_data[name])
        draft.save()
        return draft

    @classmethod
    def stored(cls, draft: Draft) -> str:
        return draft.interval

    @classmethod
    def answer(cls, draft: Draft) -> object:
        return schedule_of(draft).when


class SnapshotScheduleStep(ScheduleStep):
    template = "schedule"
    heading = _("Snapshot Schedule")
    intro = _("How often and at what time a snapshot of the volume is taken, and how many of them are kept.")


# The platform keeps the two newest backups by default.
DEFAULT_SCHEDULE = {
    "interval": "daily",
    "weekday": 0,
    "month_day": 1,
    "at": time(2),
    "retention_count": 2,
    "take_one_now": False,
}


def schedule_of(draft: Draft) -> BackupSchedule:
    """Return the schedule that the draft asks for, not saved."""
    return BackupSchedule(vm=draft.vm, volume=draft.volume, **{name: getattr(draft, name) for name in SCHEDULE_FIELDS})


SOURCE_STEPS: dict[str, type[SourceStep]] = {
    Kind.VOLUME: VolumeStep,
    Kind.VM: InstanceStep,
    Kind.BACKUP: InstanceStep,
}
STEPS: dict[str, Sequence[type[Step]]] = {
    Kind.VOLUME: (LocationStep, ProjectStep, VolumeStep, NameStep),
    Kind.VM: (MachineLocationStep, ProjectStep, InstanceStep, NameStep),
    Kind.BACKUP: (MachineLocationStep, ScheduleProjectStep, InstanceStep, ScheduleStep),
    Draft.CREATE_VOLUME: volume_steps.STEPS,
}
VOLUME_SCHEDULE_STEPS = (LocationStep, ScheduleProjectStep, VolumeStep, SnapshotScheduleStep)
REVIEW = "review"


def operation_kind(draft: Draft) -> Operation.Kind:
    """Return which operation the draft leads to, for its rate limit."""
    if draft.creates_volume:
        return Operation.Kind.NEW_VOLUME if draft.disk_id else Operation.Kind.CREATE_VOLUME
    return Operation.Kind.CAPTURE


def url(draft: Draft, slug: str) -> str:
    return reverse("snapshots:volume_wizard" if draft.creates_volume else "snapshots:wizard", args=[draft.pk, slug])


def steps_of(draft: Draft) -> Sequence[type[Step]]:
    return VOLUME_SCHEDULE_STEPS if draft.is_scheduled else STEPS[draft.kind]


def first_open_step(draft: Draft, user: User, before: str) -> type[Step] | None:
    """Return the first step before `before` whose stored answer is missing or no longer valid, or None."""
    for step in steps_of(draft):
        if step.slug == before:
            return None
        if not step.stored(draft) or not step.check(draft, user).is_valid():
            return step
    return None


def slugs(draft: Draft) -> list[str]:
    return [*(step.slug for step in steps_of(draft)), REVIEW]


def next_slug(draft: Draft, slug: str) -> str:
    return slugs(draft)[slugs(draft).index(slug) + 1]


def previous_slug(draft: Draft, slug: str) -> str:
    return slugs(draft)[slugs(draft).index(slug) - 1]


def progress(draft: Draft, current: str) -> list[dict[str, Any]]:
    """Return the steps with label, answer, URL (None if it can't be opened) and state: done, current or upcoming."""
    entries: list[dict[str, Any]] = []
    reachable = not draft._state.adding
    for step in steps_of(draft):
        stored = step.stored(draft)
        state = "current" if step.slug == current else "done" if stored else "upcoming"
        link = url(draft, step.slug) if reachable and step.slug != current else None
        answer = step.answer(draft) if stored else ""
        entries.append({"label": step.label, "answer": answer, "url": link, "state": state})
        reachable = reachable and bool(stored)
    state = "current" if current == REVIEW else "upcoming"
    return [*entries, {"label": _("Review"), "answer": "", "url": None, "state": state}]


def start(
    user: User, *, kind: str = Kind.VOLUME, is_scheduled: bool = False, source: checks.Source | None = None
) -> Draft:
    """Return a new, unsaved draft of the user, who must be able to change some project.

    `is_scheduled` is for a schedule of volume snapshots. With a source, the draft has the first three answers and is saved;
    `kind` then only distinguishes a backup from a snapshot. Raises RateLimited.
    """
    if source:
        kind = kind if kind == Kind.BACKUP else checks.kind_of(source)
        draft = Draft(
            kind=kind,
            is_scheduled=is_scheduled,
            customer_id=source.project.customer_id,
            created_by=user,
            location_id=source.location_id,
            project=source.project,
            **{"volume" if kind == Kind.VOLUME else "vm": source},
        )
        save(draft)
        return draft
    changeable = {project.customer_id for project in user.project_roles if user.can_change(project.id)}
    customer_id = user.customer_id if user.customer_id in changeable else min(changeable)
    return Draft(kind=kind, is_scheduled=is_scheduled, customer_id=customer_id, created_by=user)


def delete_old_drafts(*, now: datetime | None = None) -> int:
    """Delete the drafts that weren't finished within DRAFT_LIFETIME. Returns how many."""
    unfinished = Draft.objects.filter(snapshot=None, schedule=None, created_volume=None)
    return unfinished.filter(created_at__lt=(now or timezone.now()) - DRAFT_LIFETIME).delete()[0]
