"""When something was captured, as a row of days, weeks or months: pure, so that gaps are found the same way everywhere."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo

from .models import State

# As many marks as can be told apart on a phone of 360 px.
MOST_MARKS = 62
LEAST_DAYS = 30
# More are not read from the database; the newest are.
MOST_TAKEN = 1000


@dataclass
class Mark:
    """One day, week or month. `is_there` is False before the thing itself existed."""

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
    """A time without a snapshot that could be restored; `end` is None when it goes on."""

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
    """`taken` is (instant, state) of each snapshot, `born` when the thing came to be; days are those of `zone`.

    The unit is the finest of which at most MOST_MARKS reach back to the oldest one. What is older than that many months
    is counted in the first.
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
    """The first day of each unit from the one with `first` to the one with `last`."""
    starts, start = [], start_of(unit, first)
    while start <= last:
        starts.append(start)
        start = start_of(unit, start + timedelta(days={"day": 1, "week": 7, "month": 31}[unit]))
    return starts


def longest_gap(ready: list[datetime], now: datetime) -> Gap | None:
    """Between one and the next, or since the last one; None when there is none to begin at. `ready` is in order."""
    if not ready:
        return None
    gaps = [Gap(one, other, other - one) for one, other in zip(ready, ready[1:], strict=False)]
    return max([*gaps, Gap(ready[-1], None, now - ready[-1])], key=lambda gap: gap.length)
