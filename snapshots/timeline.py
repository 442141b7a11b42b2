"""When snapshots were taken, by day, week or month, and the longest gap. Pure functions."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo

from .models import State

# More marks are indistinguishable at 360 px.
MOST_MARKS = 62
LEAST_DAYS = 30
# Only the newest are read from the database.
MOST_TAKEN = 1000


@dataclass
class Mark:
    """One day, week or month. `is_there` is False before the volume or machine existed."""

    first: date
    last: date
    is_there: bool = True
    ready: int = 0
    failed: int = 0
    waiting: int = 0

    @property
    def count(self) -> int:
        return self.ready + self.failed + self.waiting


@dataclass(frozen=True)
class Gap:
    """A time without a usable snapshot. `end` is None if it continues."""

    start: datetime
    end: datetime | None
    length: timedelta


@dataclass(frozen=True)
class Timeline:
    unit: str  # "day", "week" or "month"
    marks: list[Mark]
    count: int
    gap: Gap | None


def timeline(taken: Iterable[tuple[datetime, str]], *, born: datetime, now: datetime, zone: tzinfo) -> Timeline:
    """Build the timeline of snapshots, given as (time, state). `born` is when their source was created.

    The unit is the finest of which MOST_MARKS reach back to the oldest snapshot. Older snapshots than that many months count
    in the first.
    """
    taken = sorted(taken)
    today = now.astimezone(zone).date()
    begun = born.astimezone(zone).date()
    oldest = min((instant.astimezone(zone).date() for instant, _state in taken), default=today)
    oldest = min(oldest, today - timedelta(days=LEAST_DAYS - 1))
    for unit in ("day", "week", "month"):
        starts = starts_of(unit, oldest, today)
        if len(starts) <= MOST_MARKS:
            break
    starts = starts[-MOST_MARKS:]
    ends = [start - timedelta(days=1) for start in starts[1:]] + [today]
    marks = [Mark(start, end, is_there=end >= begun) for start, end in zip(starts, ends, strict=True)]
    place = {start: number for number, start in enumerate(starts)}
    for instant, state in taken:
        mark = marks[place.get(start_of(unit, instant.astimezone(zone).date()), 0)]
        mark.is_there = True
        mark.ready += state == State.READY
        mark.failed += state == State.FAILED
        mark.waiting += state not in (State.READY, State.FAILED)
    ready = [instant for instant, state in taken if state == State.READY]
    return Timeline(unit, marks, len(taken), longest_gap(ready, now))


def start_of(unit: str, day: date) -> date:
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if unit == "month" else day


def starts_of(unit: str, first: date, last: date) -> list[date]:
    """Return the first day of each unit from the one with `first` to the one with `last`."""
    starts, start = [], start_of(unit, first)
    while start <= last:
        starts.append(start)
        start = start_of(unit, start + timedelta(days={"day": 1, "week": 7, "month": 31}[unit]))
    return starts


def longest_gap(ready: list[datetime], now: datetime) -> Gap | None:
    """Return the longest gap between two snapshots or since the last one. `ready` is sorted."""
    if not ready:
        return None
    gaps = [Gap(start, end, end - start) for start, end in zip(ready, ready[1:], strict=False)]
    return max([*gaps, Gap(ready[-1], None, now - ready[-1])], key=lambda gap: gap.length)
