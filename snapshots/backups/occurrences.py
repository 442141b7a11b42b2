"""When a schedule runs: pure arithmetic on a recurrence, a time zone and instants, with no ORM and no clock.

An occurrence is the instant of one run. A recurrence names times on the customer's wall clock:

- a time that is skipped when the clock goes forward runs at the first instant after the gap,
- a time that comes twice when the clock goes back runs once, the first time,
- a day that the month doesn't have is its last day.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """`interval` is daily, weekly (on `weekday`, 0 = Monday) or monthly (on `month_day`, 1 to 31), at the time `at`."""

    interval: str
    at: time
    weekday: int | None = None
    month_day: int | None = None


@dataclass(frozen=True, kw_only=True)
class PreviewedRun:
    """A future run: when, which backups exist after it (oldest first), and which ones retention deletes."""

    at: datetime
    backups: tuple[datetime, ...]
    deleted: tuple[datetime, ...]


def next_occurrence(recurrence: Recurrence, zone: ZoneInfo, after: datetime) -> datetime:
    """Return the first occurrence later than `after`, in UTC."""
    return next(_occurrences(recurrence, zone, after))


def occurrences_between(recurrence: Recurrence, zone: ZoneInfo, after: datetime, until: datetime) -> list[datetime]:
    """Return the occurrences later than `after`, up to and including `until`, in UTC and in order."""
    occurrences = []
    for occurrence in _occurrences(recurrence, zone, after):
        if occurrence > until:
            break
        occurrences.append(occurrence)
    return occurrences


def preview(
    recurrence: Recurrence,
    zone: ZoneInfo,
    now: datetime,
    *,
    count: int = 5,
    retention_count: int = 2,
    existing: Sequence[datetime] = (),
) -> list[PreviewedRun]:
    """Return the next `count` runs after `now`, assuming that each one succeeds.

    `existing` are the instants of the backups that already count towards `retention_count`, oldest backup first. A backup
    that is taken immediately is included as `now`.
    """
    backups = tuple(existing)
    runs = []
    for occurrence, _number in zip(_occurrences(recurrence, zone, now), range(count), strict=False):
        backups = (*backups, occurrence)
        backups, deleted = backups[-retention_count:], backups[:-retention_count]
        runs.append(PreviewedRun(at=occurrence, backups=backups, deleted=deleted))
    return runs


def instant(day: date, at: time, zone: ZoneInfo) -> datetime:
    """Return the first instant, in UTC, at which the wall clock shows this day and time or is past them."""
    wall = datetime.combine(day, at)
    before = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if before.astimezone(zone).replace(tzinfo=None) == wall:
        return before
    # The time falls into a gap: with the offset from before the change it lies after the gap, and the other way round.
    late, early = before, wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=(late - early) // timedelta(seconds=2))
        if middle.astimezone(zone).replace(tzinfo=None) >= wall:
            late = middle
        else:
            early = middle
    return late.replace(microsecond=0)


def _occurrences(recurrence: Recurrence, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    # A gap can move an occurrence into the next day or, where a whole day was skipped, past it.
    for day in _days(recurrence, after.astimezone(zone).date() - 2 * DAY):
        occurrence = instant(day, recurrence.at, zone)
        if occurrence > after:
            after = occurrence  # Where a whole day was skipped, two days begin at the same instant.
            yield occurrence


def _days(recurrence: Recurrence, start: date) -> Iterator[date]:
    """Yield the days of the recurrence from `start` on, and possibly one before."""
    if recurrence.interval == "monthly":
        first = start.replace(day=1)
        while True:
            next_first = (first + 31 * DAY).replace(day=1)
            assert recurrence.month_day is not None
            yield min(first + (recurrence.month_day - 1) * DAY, next_first - DAY)
            first = next_first
    if recurrence.interval == "weekly":
        assert recurrence.weekday is not None
        start += (recurrence.weekday - start.weekday()) % 7 * DAY
    step = 7 * DAY if recurrence.interval == "weekly" else DAY
    while True:
        yield start
        start += step
