"""When a schedule runs: pure arithmetic on a rule, a time zone and instants, with no ORM and no clock.

A slot is the instant of one run. The rule speaks of the customer's wall clock; what the clock does is followed:

- a time that is left out when the clock is put forward runs at the first instant after the gap,
- a time that comes twice when it is put back runs once, the first time,
- a day that the month does not have is its last one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`interval` is daily, weekly (on `weekday`, 0 = Monday) or monthly (on `month_day`, 1 to 31), at the time `at`."""

    interval: str
    at: time
    weekday: int | None = None
    month_day: int | None = None


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """One run of the preview: when, which copies exist once it is done (oldest first), and which it deleted."""

    at: datetime
    copies: tuple[datetime, ...]
    deleted: tuple[datetime, ...]


def next_slot(rule: Rule, zone: ZoneInfo, after: datetime) -> datetime:
    """The first slot later than `after`, in UTC."""
    return next(_slots(rule, zone, after))


def slots_between(rule: Rule, zone: ZoneInfo, after: datetime, until: datetime) -> list[datetime]:
    """The slots later than `after`, up to and including `until`, in UTC and in their order."""
    found = []
    for slot in _slots(rule, zone, after):
        if slot > until:
            break
        found.append(slot)
    return found


def preview(
    rule: Rule, zone: ZoneInfo, now: datetime, count: int = 5, keep: int = 2, existing: Sequence[datetime] = ()
) -> list[Foreseen]:
    """The next `count` runs after `now`, if each succeeds. `existing` are the instants of the copies that there are
    already and that count towards `keep`, oldest copy first; a copy taken at once is `now` among them.
    """
    copies = tuple(existing)
    found = []
    for slot, _number in zip(_slots(rule, zone, now), range(count), strict=False):
        copies = (*copies, slot)
        copies, deleted = copies[-keep:], copies[:-keep]
        found.append(Foreseen(at=slot, copies=copies, deleted=deleted))
    return found


def instant(day: date, at: time, zone: ZoneInfo) -> datetime:
    """The first instant, in UTC, at which the clock on the wall shows this day and time, or is past them."""
    wall = datetime.combine(day, at)
    before = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if before.astimezone(zone).replace(tzinfo=None) == wall:
        return before
    # It falls into a gap: the offset of before the change takes it behind the change, that of after it before.
    late, early = before, wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=(late - early) // timedelta(seconds=2))
        if middle.astimezone(zone).replace(tzinfo=None) >= wall:
            late = middle
        else:
            early = middle
    return late.replace(microsecond=0)


def _slots(rule: Rule, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    # a gap may move a slot into the next day, or, where a whole day was left out, beyond it
    for day in _days(rule, after.astimezone(zone).date() - 2 * DAY):
        slot = instant(day, rule.at, zone)
        if slot > after:
            after = slot  # two days may begin at the same instant, where a whole one was left out
            yield slot


def _days(rule: Rule, start: date) -> Iterator[date]:
    """The rule's days from `start` on, and perhaps one before."""
    if rule.interval == "monthly":
        first = start.replace(day=1)
        while True:
            following = (first + 31 * DAY).replace(day=1)
            assert rule.month_day is not None
            yield min(first + (rule.month_day - 1) * DAY, following - DAY)
            first = following
    if rule.interval == "weekly":
        assert rule.weekday is not None
        start += (rule.weekday - start.weekday()) % 7 * DAY
    step = 7 * DAY if rule.interval == "weekly" else DAY
    while True:
        yield start
        start += step
