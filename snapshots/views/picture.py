"""The next runs of a backup schedule as a picture in time: a row for each run, a column for each copy.

Read downwards, a copy's column shows when it is taken, how long it is kept, and the run that makes it go.
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
from snapshots import slots

RUNS_SHOWN = 5
# Copies from before, of which only those that go within the picture are drawn, and no more than fit on a phone.
OLDER_SHOWN = 5


@dataclass(frozen=True)
class Row:
    """`cells` are "taken", "kept", "deleted" or "", one for each column; `at` is None for the copies from before."""

    at: datetime | None
    day: str
    time: str
    cells: list[str]
    note: str


@dataclass(frozen=True)
class Picture:
    columns: list[str]  # "Copy of Mon 23 Nov"
    rows: list[Row]
    note: str = ""  # on copies that are not drawn


def picture_of(
    rhythm: dict[str, Any],
    zone: ZoneInfo,
    *,
    now: datetime,
    existing: Sequence[datetime] = (),
    take_one_now: bool = False,
) -> Picture:
    """The next runs of the fields of a schedule; `existing` are the instants of the copies that it counts, oldest first."""
    keep = rhythm["keep"]
    rule = slots.Rule(**{name: value for name, value in rhythm.items() if name != "keep"})
    before = [*existing, now] if take_one_now else list(existing)
    runs = slots.preview(rule, zone, now, count=RUNS_SHOWN, keep=keep, existing=before)
    gone = {copy for run in runs for copy in run.deleted}
    older = [copy for copy in existing if copy in gone][-OLDER_SHOWN:]
    copies = [*older, *([now] if take_one_now else []), *(run.at for run in runs)]
    rows = []
    if before:
        cells = ["kept" if copy in older else "taken" if copy == now else "" for copy in copies]
        rows.append(Row(None, _("Now"), "", cells, count_of(len(before))))
    for run in runs:
        cells = [
            "taken" if copy == run.at else "deleted" if copy in run.deleted else "kept" if copy in run.copies else ""
            for copy in copies
        ]
        day, clock = in_words(run.at, zone)
        rows.append(Row(run.at, day, clock, cells, count_of(len(run.copies))))
    columns = [column_of(copy, zone, is_now=take_one_now and copy == now) for copy in copies]
    return Picture(columns, rows, note_on(len(existing) - len(older), keep, gone))


def column_of(copy: datetime, zone: ZoneInfo, *, is_now: bool) -> str:
    return _("Copy of now") if is_now else _("Copy of %(day)s") % {"day": in_words(copy, zone)[0]}


def in_words(instant: datetime, zone: ZoneInfo) -> tuple[str, str]:
    """(`Mon 23 Nov`, `02:00 UTC+06:30`): with the year unless it is this one, and with the offset of that day, which
    daylight saving changes.
    """
    local = instant.astimezone(zone)
    time = format_datetime(local, "HH:mm 'UTC'xxx", locale=current_locale())
    return near_day(local.date(), "EEE"), time


def count_of(count: int) -> str:
    return ngettext("%(count)s copy", "%(count)s copies", count) % {"count": count}


def note_on(hidden: int, keep: int, gone: set[datetime]) -> str:
    if hidden > 0:
        return ngettext(
            "%(count)s other copy is there and not drawn.", "%(count)s other copies are there and not drawn.", hidden
        ) % {"count": hidden}
    if not gone:
        return ngettext(
            "Nothing is deleted yet: %(count)s copy is kept.",
            "Nothing is deleted yet: %(count)s copies are kept.",
            keep,
        ) % {"count": keep}
    return ""
