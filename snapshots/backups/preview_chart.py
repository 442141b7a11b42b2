"""The next runs of a schedule as a chart: a row for each run, a column for each backup.

Read downwards, a column shows when a backup is taken, how long it is kept, and which run deletes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from babel.dates import format_datetime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.common.formats import current_locale
from cng_portal.common.templatetags.portal import near_day

from .occurrences import Recurrence, preview

RUNS_SHOWN = 5
# Of the existing backups, only those that a shown run deletes have a column, and no more than fit on a phone.
EXISTING_SHOWN = 5


@dataclass(frozen=True)
class Row:
    """`cells` are "taken", "kept", "deleted" or "", one for each column. `at` is None for the row of existing backups."""

    at: datetime | None
    day: str
    time: str
    cells: list[str]
    note: str


@dataclass(frozen=True)
class PreviewChart:
    columns: list[str]  # "Taken Mon 23 Nov"
    rows: list[Row]
    note: str = ""  # about backups without a column


def build_preview_chart(
    schedule_fields: dict[str, Any],
    zone: ZoneInfo,
    *,
    now: datetime,
    existing: Sequence[datetime] = (),
    take_one_now: bool = False,
) -> PreviewChart:
    """Chart the next runs of a schedule with these SCHEDULE_FIELDS.

    `existing` are the instants of the backups that already count towards its retention, oldest first.
    """
    retention_count = schedule_fields["retention_count"]
    recurrence = Recurrence(**{name: value for name, value in schedule_fields.items() if name != "retention_count"})
    before = [*existing, now] if take_one_now else list(existing)
    runs = preview(recurrence, zone, now, count=RUNS_SHOWN, retention_count=retention_count, existing=before)
    deleted = {backup for run in runs for backup in run.deleted}
    older = [backup for backup in existing if backup in deleted][-EXISTING_SHOWN:]
    backups = [*older, *([now] if take_one_now else []), *(run.at for run in runs)]
    rows = []
    if before:
        cells = ["kept" if backup in older else "taken" if backup == now else "" for backup in backups]
        rows.append(Row(None, _("Now"), "", cells, format_count(len(before))))
    for run in runs:
        cells = [
            "taken"
            if backup == run.at
            else "deleted"
            if backup in run.deleted
            else "kept"
            if backup in run.backups
            else ""
            for backup in backups
        ]
        day, clock = format_day_and_time(run.at, zone)
        rows.append(Row(run.at, day, clock, cells, format_count(len(run.backups))))
    columns = [format_column(backup, zone, is_now=take_one_now and backup == now) for backup in backups]
    return PreviewChart(columns, rows, format_note(len(existing) - len(older), retention_count, deleted))


def format_column(backup: datetime, zone: ZoneInfo, *, is_now: bool) -> str:
    return _("Taken now") if is_now else _("Taken %(day)s") % {"day": format_day_and_time(backup, zone)[0]}


def format_day_and_time(instant: datetime, zone: ZoneInfo) -> tuple[str, str]:
    """Return (`Mon 23 Nov`, `02:00 UTC+06:30`): with the year unless it is the current one, and that day's UTC offset."""
    local = instant.astimezone(zone)
    time = format_datetime(local, "HH:mm 'UTC'xxx", locale=current_locale())
    return near_day(local.date(), "EEE"), time


def format_count(count: int) -> str:
    return _("%(count)s kept") % {"count": count}


def format_note(hidden: int, retention_count: int, deleted: set[datetime]) -> str:
    if hidden > 0:
        return ngettext("%(count)s more exists and isn't shown.", "%(count)s more exist and aren't shown.", hidden) % {
            "count": hidden
        }
    if not deleted:
        return ngettext(
            "Nothing is deleted yet: %(count)s is kept.",
            "Nothing is deleted yet: %(count)s are kept.",
            retention_count,
        ) % {"count": retention_count}
    return ""
