"""The steps from *Take Snapshot* to the review: what each asks, who may answer what, and what an answer makes stale.

The answers are kept in a `Draft`. A step's stored answer is checked again, against today's data, whenever a later
step is opened: `first_open_step` names the step where the person has to be.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Count, Max, Q, QuerySet
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing import services as billing
from billing.models import BillingCycle, ServiceKind
from cng_portal.accounts.models import Project, User
from cng_portal.inventory.models import Location, Volume

from . import services
from .models import Draft

# More volumes than this are found by searching.
VOLUMES_SHOWN = 60
LONGEST_ESTIMATE = timedelta(days=3653)


def locations_for(user: User) -> list[Location]:
    """The active locations with `volume_count`, of volumes this person may capture, and `rate_micro`, None if not
    sold.
    """
    mine = Q(volumes__project_id__in=user.changeable_project_ids, volumes__deleted_at=None)
    locations = list(Location.objects.active().annotate(volume_count=Count("volumes", filter=mine)))
    rates = billing.rates_at(kind=ServiceKind.BS_SNAPSHOT, at=timezone.now())
    for location in locations:
        location.rate_micro = rates.get(location.pk)
    return locations


def projects_for(user: User, location: Location) -> QuerySet[Project]:
    """The projects this person may change, with `volume_count` in the location."""
    here = Q(volumes__location=location, volumes__deleted_at=None)
    return Project.objects.changeable_by(user).annotate(volume_count=Count("volumes", filter=here)).order_by("name")


def volumes_for(user: User, draft: Draft) -> QuerySet[Volume]:
    """The volumes of the chosen project in the chosen location, with `last_snapshot_at`."""
    return (
        Volume.objects.changeable_by(user)
        .present()
        .filter(project=draft.project, location=draft.location)
        .select_related("vm", "project__customer", "location")
    )


def with_last_snapshot(volumes: QuerySet[Volume]) -> QuerySet[Volume]:
    return volumes.annotate(last_snapshot_at=Max("snapshots__ready_at", filter=Q(snapshots__deleted_at=None)))


class ChoiceField(forms.ModelChoiceField):
    """A choice among rows; what is not even an id is as unknown as the id of something else."""

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except ValidationError as error:
            raise ValidationError(self.error_messages["invalid_choice"], code="invalid_choice") from error


class StepForm(forms.Form):
    """A form over one answer of a draft. `self.draft` and `self.user` are whose it is and who asks."""

    def __init__(self, *args: Any, draft: Draft, user: User, **kwargs: Any) -> None:
        self.draft, self.user = draft, user
        super().__init__(*args, **kwargs)


class LocationForm(StepForm):
    location = ChoiceField(
        Location.objects.active(),
        error_messages={
            "required": _("Choose a location."),
            "invalid_choice": _("This location is not available any more. Choose one of the list."),
        },
    )

    def clean_location(self) -> Location:
        location: Location = self.cleaned_data["location"]
        here = next(candidate for candidate in locations_for(self.user) if candidate.pk == location.pk)
        if here.rate_micro is None:
            raise ValidationError(
                _("Volume snapshots are not sold in %(code)s. Choose another location, or ask support."),
                params={"code": location.code},
            )
        if not here.volume_count:
            raise ValidationError(
                _("You have no volume in %(code)s that you could take a snapshot of. Choose another location."),
                params={"code": location.code},
            )
        return location


class ProjectForm(StepForm):
    project = ChoiceField(
        Project.objects.none(),
        error_messages={
            "required": _("Choose a project."),
            "invalid_choice": _("You cannot use this project any more. Choose one of the list."),
        },
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["project"].queryset = projects_for(self.user, self.draft.location)

    def clean_project(self) -> Project:
        project: Project = self.cleaned_data["project"]
        if not project.volume_count:
            raise ValidationError(
                _("The project “%(project)s” has no volume in %(code)s. Choose another project."),
                params={"project": project.name, "code": self.draft.location_id},
            )
        return project


class VolumeForm(StepForm):
    volume = ChoiceField(
        Volume.objects.none(),
        error_messages={
            "required": _("Choose a volume."),
            "invalid_choice": _("This volume is not in the project and location any more. Choose one of the list."),
        },
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["volume"].queryset = volumes_for(self.user, self.draft)

    def clean_volume(self) -> Volume:
        volume: Volume = self.cleaned_data["volume"]
        try:
            services.check_deliverable(volume)
            services.check_room(volume)
        except services.Refusal as refusal:
            raise ValidationError(str(refusal)) from refusal
        return volume


class NameForm(StepForm):
    # the length is checked with the other rules, so that the sentence is ours; the field only keeps silly input short
    name = forms.CharField(
        label=_("Snapshot Name"),
        max_length=1000,
        error_messages={"required": _("Give the snapshot a name, so that you find it again.")},
        help_text=_("1 to 64 characters. It has to be unique among your snapshots; case does not matter."),
    )

    suggestion = ""

    def clean_name(self) -> str:
        assert self.draft.project is not None  # the steps before are checked
        try:
            return services.check_name(self.draft.project.customer_id, self.cleaned_data["name"])
        except services.NotFree as refusal:
            self.suggestion = refusal.suggestion
            raise ValidationError(str(refusal)) from refusal


class ReviewForm(forms.Form):
    """The confirmation: the only billing cycle there is, and the price that was shown, which must still be today's."""

    billing_cycle = forms.ChoiceField(
        choices=BillingCycle.choices,
        error_messages={
            "required": _("Choose a billing cycle."),
            "invalid_choice": _("Snapshots and backups support only Hourly billing cycles. Choose Hourly."),
        },
    )
    shown_hourly_micro = forms.IntegerField(
        min_value=0,
        error_messages={
            "required": _("The price that was shown is missing. Check the price summary and confirm again."),
            "invalid": _("The price that was shown is missing. Check the price summary and confirm again."),
        },
    )


class UntilForm(forms.Form):
    """The date up to which a person wants to know the cost."""

    until = forms.DateField(
        label=_("Cost until"),
        widget=forms.DateInput(attrs={"type": "date"}),
        error_messages={
            "required": _("Give a date to see the cost until then."),
            "invalid": _("That is not a date. Give a date such as 2026-12-31."),
        },
    )

    def clean_until(self) -> date:
        until: date = self.cleaned_data["until"]
        today = timezone.localdate()
        if not today <= until <= today + LONGEST_ESTIMATE:
            raise ValidationError(_("Give a date from today on, at most ten years ahead."))
        return until


class Step:
    """One question. `answers` are the draft's fields that it sets; the later steps depend on them unless `free`."""

    slug: ClassVar[str]
    label: ClassVar[Any]
    heading: ClassVar[Any]
    intro: ClassVar[Any] = ""
    field: ClassVar[str]
    form_class: ClassVar[type[StepForm]]

    @classmethod
    def form(cls, draft: Draft, user: User, data: Any = None) -> StepForm:
        initial = {cls.field: getattr(draft, f"{cls.field}_id", None) or getattr(draft, cls.field)}
        return cls.form_class(data, draft=draft, user=user, initial=initial)

    @classmethod
    def stored(cls, draft: Draft) -> Any:
        """The answer in the draft as the form would be given it; "" or None when there is none."""
        return getattr(draft, f"{cls.field}_id", None) if cls.field != "name" else draft.name

    @classmethod
    def check(cls, draft: Draft, user: User) -> StepForm:
        """The form bound to the stored answer: valid or not, today."""
        return cls.form(draft, user, {cls.field: cls.stored(draft)})

    @classmethod
    def store(cls, draft: Draft, form: StepForm) -> None:
        """Keep the answer and drop the later ones that depend on it."""
        answer = form.cleaned_data[cls.field]
        if getattr(draft, cls.field) != answer:
            setattr(draft, cls.field, answer)
            cls.changed(draft)
        draft.save()

    @classmethod
    def changed(cls, draft: Draft) -> None:
        pass


class LocationStep(Step):
    slug = field = "location"
    label = _("Location")
    heading = _("Choose a Location")
    intro = _("The data center where your volume is. The snapshot is kept in the same one.")
    form_class = LocationForm

    @classmethod
    def changed(cls, draft: Draft) -> None:
        draft.volume = None


class ProjectStep(Step):
    slug = field = "project"
    label = _("Project")
    heading = _("Assign to a Project")
    intro = _("Projects organise your resources and decide which colleagues see them.")
    form_class = ProjectForm

    @classmethod
    def changed(cls, draft: Draft) -> None:
        assert draft.project is not None
        draft.customer_id = draft.project.customer_id
        draft.volume = None


class VolumeStep(Step):
    slug = field = "volume"
    label = _("Volume")
    heading = _("Choose Block Storage")
    intro = _("The volume whose state is captured, exactly as it is at that instant.")
    form_class = VolumeForm

    @classmethod
    def changed(cls, draft: Draft) -> None:
        draft.name = ""  # it was suggested for, or chosen with a view to, another volume


class NameStep(Step):
    slug = field = "name"
    label = _("Name")
    heading = _("Choose Snapshot Name")
    intro = _("A unique name, so that you recognise the snapshot in your dashboard.")
    form_class = NameForm

    @classmethod
    def form(cls, draft: Draft, user: User, data: Any = None) -> StepForm:
        form = super().form(draft, user, data)
        if not draft.name and draft.volume:
            form.initial["name"] = services.suggest_name(draft.volume)
        return form


STEPS: Sequence[type[Step]] = (LocationStep, ProjectStep, VolumeStep, NameStep)
REVIEW = "review"
REVIEW_HEADING = _("Create Snapshot")


def url(draft: Draft, slug: str) -> str:
    return reverse("snapshots:wizard", args=[draft.pk, slug])


def first_open_step(draft: Draft, user: User, before: str) -> type[Step] | None:
    """The first step ahead of `before` whose stored answer is missing or does not hold today; None if all hold."""
    for step in STEPS:
        if step.slug == before:
            return None
        if not step.stored(draft) or not step.check(draft, user).is_valid():
            return step
    return None


SLUGS = [step.slug for step in STEPS] + [REVIEW]


def next_slug(slug: str) -> str:
    return SLUGS[SLUGS.index(slug) + 1]


def previous_slug(slug: str) -> str:
    return SLUGS[SLUGS.index(slug) - 1]


def rate(draft: Draft) -> int | None:
    """Millionths per GB and hour in the chosen location."""
    assert draft.location_id is not None
    rates = billing.rates_at(kind=ServiceKind.BS_SNAPSHOT, at=timezone.now(), location_codes=[draft.location_id])
    return rates.get(draft.location_id)


def progress(draft: Draft, current: str) -> list[dict[str, Any]]:
    """The step list: label, answer, url (None where it cannot be opened), state: done, current or upcoming."""
    entries: list[dict[str, Any]] = []
    reachable = not draft._state.adding
    for step in STEPS:
        stored = step.stored(draft)
        state = "current" if step.slug == current else "done" if stored else "upcoming"
        link = url(draft, step.slug) if reachable and step.slug != current else None
        answer = getattr(draft, step.field) if stored else ""
        entries.append({"label": step.label, "answer": answer, "url": link, "state": state})
        reachable = reachable and bool(stored)
    state = "current" if current == REVIEW else "upcoming"
    return [*entries, {"label": _("Review"), "answer": "", "url": None, "state": state}]


def start(user: User, *, volume: Volume | None = None) -> Draft:
    """A draft of this person; with a volume, the first three answers are given. Whoever can change nothing has no
    draft.
    """
    if volume:
        return Draft.objects.create(
            customer_id=volume.project.customer_id,
            created_by=user,
            location_id=volume.location_id,
            project=volume.project,
            volume=volume,
        )
    changeable = {customer_id for project_id, customer_id, _role in user.seen if user.can_change(project_id)}
    customer_id = user.customer_id if user.customer_id in changeable else min(changeable)
    return Draft(customer_id=customer_id, created_by=user)
