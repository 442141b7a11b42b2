"""Forms of schedules: the filters of their list, and the fields that say when they run and how many they keep."""

from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from cng_portal.common.ids import parse_uuid
from cng_portal.common.names import name_contains
from cng_portal.inventory.models import Interval, Weekday

from .. import lists
from ..forms import ChoiceFilter, FilterForm
from ..locks import MAX_LOCK
from ..models import BackupSchedule, Kind
from .schedules import MAX_RETENTION_COUNT, SCHEDULE_FIELDS, InvalidSchedule, clean_schedule_fields

# The fields that only one interval uses.
FIELD_INTERVALS = {"weekday": Interval.WEEKLY, "month_day": Interval.MONTHLY}


class ScheduleFilterForm(FilterForm):
    equal = ("vm", "volume")
    ACTIVE, PAUSED, AUTOMATIC, TROUBLED = "active", "paused", "automatic", "troubled"
    BACKUPS, SNAPSHOTS = "backups", "snapshots"

    project = ChoiceFilter(gettext_lazy("Project"), gettext_lazy("Every project"))
    location = ChoiceFilter(gettext_lazy("Location"), gettext_lazy("Every location"))
    vm = ChoiceFilter(gettext_lazy("Instance"), gettext_lazy("Every instance"))
    volume = ChoiceFilter(gettext_lazy("Volume"), gettext_lazy("Every volume"))
    show = ChoiceFilter(
        gettext_lazy("Show"),
        gettext_lazy("Every schedule"),
        [
            (ACTIVE, gettext_lazy("Active")),
            (PAUSED, gettext_lazy("Paused")),
            (AUTOMATIC, gettext_lazy("Automatic backups")),
            (BACKUPS, gettext_lazy("Of instances")),
            (SNAPSHOTS, gettext_lazy("Of volumes")),
            (TROUBLED, gettext_lazy("Last run failed or missed")),
        ],
    )

    def narrow(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Filter schedules that come from `lists.with_last_run`."""
        chosen, show = self.chosen, self.chosen.get("show")
        rows = super().narrow(rows)
        if location := chosen.get("location"):
            rows = rows.filter(Q(vm__location=location) | Q(volume__location=location))
        if project := parse_uuid(chosen.get("project", "")):
            rows = rows.filter(Q(project=project) | Q(project=None, vm__project=project))
        if show in (self.BACKUPS, self.SNAPSHOTS):
            return rows.filter(vm__isnull=show == self.SNAPSHOTS)
        if show == self.TROUBLED:
            return lists.troubled(rows)
        if show == self.AUTOMATIC:
            return rows.filter(origin=BackupSchedule.Origin.AUTOMATIC)
        return rows.filter(paused_at__isnull=show == self.ACTIVE) if show else rows

    def matches(self, text: str) -> Q:
        return name_contains(text, "vm__") | name_contains(text, "volume__")


class ScheduleForm(forms.Form):
    """When a schedule runs, in the customer's time zone, and how many backups or snapshots it keeps."""

    interval = forms.ChoiceField(
        label=gettext_lazy("Interval"),
        choices=Interval.choices,
        error_messages={
            "required": gettext_lazy("Choose how often: daily, weekly or monthly."),
            "invalid_choice": gettext_lazy("Choose how often: daily, weekly or monthly."),
        },
    )
    weekday = forms.TypedChoiceField(
        label=gettext_lazy("Day of the week"),
        choices=Weekday.choices,
        coerce=int,
        error_messages={
            "required": gettext_lazy("Choose the day of the week."),
            "invalid_choice": gettext_lazy("Choose the day of the week."),
        },
    )
    month_day = forms.TypedChoiceField(
        label=gettext_lazy("Day of the month"),
        choices=[(day, day) for day in range(1, 32)],
        coerce=int,
        help_text=gettext_lazy("In shorter months, the last day."),
        error_messages={
            "required": gettext_lazy("Choose a day of the month, from 1 to 31."),
            "invalid_choice": gettext_lazy("Choose a day of the month, from 1 to 31."),
        },
    )
    at = forms.TimeField(
        label=gettext_lazy("Time of day"),
        widget=forms.TimeInput(format="%H:%M", attrs={"type": "time"}),
        error_messages={
            "required": gettext_lazy("Enter the time of day at which it starts."),
            "invalid": gettext_lazy("Enter a time of day, such as 02:00 or 23:30."),
        },
    )
    retention_count = forms.IntegerField(
        label=gettext_lazy("Snapshots to keep"),
        widget=forms.NumberInput(attrs={"min": 1, "max": MAX_RETENTION_COUNT, "inputmode": "numeric"}),
        help_text=gettext_lazy("The oldest is deleted once a newer one is ready and verified."),
        error_messages={
            "required": gettext_lazy("Enter how many to keep."),
            "invalid": gettext_lazy("Enter a whole number."),
        },
    )

    def __init__(self, *args: Any, zone: ZoneInfo, kind: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zone = zone
        if kind == Kind.BACKUP:
            self.fields["retention_count"].label = _("Backups to keep")
        self.fields["at"].help_text = _("In %(zone)s.") % {"zone": zone_name(zone)}

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        for name, interval in FIELD_INTERVALS.items():
            if cleaned.get("interval") != interval:
                self.errors.pop(name, None)
                cleaned[name] = None
        if not self.errors:
            try:
                cleaned |= clean_schedule_fields(**{name: cleaned[name] for name in SCHEDULE_FIELDS})
            except InvalidSchedule as refusal:
                self.add_error(refusal.field, str(refusal))
        return cleaned

    @property
    def schedule_fields(self) -> dict[str, Any] | None:
        """The submitted SCHEDULE_FIELDS, the initial ones before anything is submitted, or None if they are invalid."""
        if not self.is_bound:
            return {name: self.initial[name] for name in SCHEDULE_FIELDS}
        return {name: self.cleaned_data[name] for name in SCHEDULE_FIELDS} if self.is_valid() else None


class EditScheduleForm(ScheduleForm):
    """`days` is how long the customer's recycle bin keeps something, `size_gb` the size of one backup or snapshot."""

    uses_recycle_bin = forms.BooleanField(required=False)

    def __init__(self, *args: Any, days: int, size_gb: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["uses_recycle_bin"]
        field.label = ngettext(
            "Keep the ones it deletes in the recycle bin for %(days)s day",
            "Keep the ones it deletes in the recycle bin for %(days)s days",
            days,
        ) % {"days": days}
        field.help_text = _(
            "Otherwise they are erased at once. In the recycle bin they cost nothing and can be put back, but each of them "
            "counts towards your quota with its %(size)s GB. When the quota is full, the next run fails."
        ) % {"size": size_gb}
        if not days:
            field.label = _("Keep the ones it deletes in the recycle bin")
            field.help_text = _("Your provider has turned your recycle bin off, so they are erased at once.")


class ScheduleLockForm(forms.Form):
    lock_days = forms.IntegerField(
        label=gettext_lazy("Lock each for"),
        required=False,
        min_value=1,
        max_value=MAX_LOCK.days,
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
        help_text=gettext_lazy("From when it is verified. Leave it empty to lock none."),
        error_messages={
            "invalid": gettext_lazy("Enter a whole number of days."),
            "min_value": gettext_lazy("Enter 1 or more days, or leave it empty."),
            "max_value": gettext_lazy("Enter at most %(limit_value)s days."),
        },
    )


def zone_name(zone: ZoneInfo) -> str:
    """Return `Asia/Yangon (UTC+06:30)`, with today's offset."""
    offset = timezone.localtime(timezone=zone).strftime("%z")
    return _("%(zone)s (UTC%(offset)s)") % {"zone": zone.key, "offset": f"{offset[:3]}:{offset[3:5]}"}
