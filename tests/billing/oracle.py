"""An independent implementation of the billing rules: hour by hour, with fractions, slow and simple.

It shares no code with the portal: it turns a history of events into a bill.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

HOUR = timedelta(hours=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Stay:
    """A charged resource. `price_of_vm` instead of a size means automatic backups. Each `kind` has its own prices."""

    resource: int
    start: datetime
    end: datetime | None
    gigabytes: int | None = None
    price_of_vm: Fraction | None = None
    kind: str = ""


def started_hours(stay: Stay, now: datetime) -> list[datetime]:
    """Return the starts of the hours to pay."""
    if stay.start > now:
        return []
    end = now if stay.end is None else min(stay.end, now)
    hours = [stay.start]
    while hours[-1] + HOUR < end:
        hours.append(hours[-1] + HOUR)
    return hours


def price_at(prices: list[tuple[datetime, Fraction]], instant: datetime) -> tuple[datetime, Fraction]:
    return max((since, price) for since, price in prices if since <= instant)


def bill(
    stays: list[Stay],
    *,
    prices: dict[str, list[tuple[datetime, Fraction]]],
    zone: ZoneInfo,
    now: datetime,
    digits: int = 2,
) -> dict[tuple[int, datetime, date, datetime | None], tuple[int, Fraction]]:
    """Return {(resource, start, month, start of the price): (hours, amount rounded to `digits`)}."""
    hours: dict = defaultdict(int)
    hourly = {}
    for stay in stays:
        for instant in started_hours(stay, now):
            month = instant.astimezone(zone).date().replace(day=1)
            if stay.gigabytes is None:
                since, price = None, stay.price_of_vm * Fraction(20, 100)
            else:
                since, rate = price_at(prices[stay.kind], instant)
                price = stay.gigabytes * rate
            hours[stay.resource, stay.start, month, since] += 1
            hourly[stay.resource, stay.start, month, since] = price
    unit = 10**digits
    return {key: (count, round(count * hourly[key] * unit) / Fraction(unit)) for key, count in hours.items()}


def switched(changes: list[tuple[datetime, Fraction | None]], resource: int) -> list[Stay]:
    """Return the stays of automatic backups. Each change sets the price of the VM, or switches them off with None."""
    return changed(changes, lambda price: Stay(resource=resource, start=EPOCH, end=None, price_of_vm=price))


def resized(changes: list[tuple[datetime, tuple | None]], resource: int, kind: str, sold_since: datetime) -> list[Stay]:
    """Return the stays of a volume, which is free until it is sold. Each change sets (size, project), or None: deleted."""
    before = [change for change in changes if change[0] <= sold_since]
    changes = [*((sold_since, value) for _at, value in before[-1:]), *changes[len(before) :]]
    return changed(changes, lambda value: Stay(resource=resource, start=EPOCH, end=None, gigabytes=value[0], kind=kind))


def changed(changes: list[tuple[datetime, Any]], stay_of: Callable[[Any], Stay]) -> list[Stay]:
    """Return the stays between changes. Each change sets what is charged, or ends the charge with None.

    An hour is never paid twice: what begins inside a paid hour begins where that hour ends. Setting the present value
    isn't a change.
    """
    changes = [change for before, change in pairwise([(None, object()), *changes]) if before[1] != change[1]]
    stays: list[Stay] = []
    paid_until = datetime.min.replace(tzinfo=UTC)
    for (instant, value), (following, _next) in zip(changes, [*changes[1:], (None, None)], strict=True):
        if value is None:
            continue
        start = max(instant, paid_until)
        if following is not None and following < start:
            continue  # changed again before it began
        stay = replace(stay_of(value), start=start, end=following)
        stays.append(stay)
        if following is not None:
            paid_until = started_hours(stay, following)[-1] + HOUR
    return stays
