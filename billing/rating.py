"""The cost of usage: pure arithmetic on instants and integers, with no ORM and no clock.

The rules are those of the product page, "Billing semantics":

- *Hourly*: the smallest unit is one hour, a started hour is charged whole, and hours are counted from the resource's own
  start, not on wall-clock hours: ``hours = max(1, ceil(seconds / 3600))``.
- *Fixed Prorata*: an hour belongs to the month, and to the price version, in which it starts. Nothing is prorated
  inside an hour.
- Automatic VM backups cost 20 % of the VM's hourly price.

Everything is an integer: microseconds, hours, gigabytes, and millionths of the currency (``_micro``). The one rounding
is that of a line to the smallest unit of the currency, in `money.round_half_even`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from cng_portal.common.money import round_half_even

HOUR = timedelta(hours=1)
HOURS_PER_DAY = 24
HOURS_PER_MONTH = 732  # 30.5 days of 24 hours: the estimate for a month
AUTOMATIC_DIVISOR = 5  # 20 % of the VM's price


@dataclass(frozen=True, kw_only=True)
class Price:
    """A GB costs `rate_micro` an hour from `since` until the next price of the same kind, location and currency.

    `is_sold` is false where the package is inactive: nothing new is sold at it, and existing usage still costs it.
    """

    since: datetime
    rate_micro: int
    id: int | None = None
    is_sold: bool = True


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A resource of `size_gb` GB, or for automatic backups a VM whose hour costs `base_rate_micro`.

    Voided usage has no hours: it waited for the end of a paid hour, and was ended or changed before that.
    """

    started_at: datetime
    ended_at: datetime | None
    size_gb: int = 0
    base_rate_micro: int | None = None
    voided: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """`hours` whole hours at one rate; `amount_micro` is in whole units of the currency, None where there is no price.

    `from_at` is the start of the first hour; `to_at` the end of the usage, or of the last hour where it went on.
    """

    from_at: datetime
    to_at: datetime
    hours: int
    rate_micro: int | None
    price_id: int | None
    amount_micro: int | None


def hours(start: datetime, end: datetime) -> int:
    """Return the started hours from `start` to `end`, at least one. Raises ValueError when the end is before the start."""
    # Two local times of the same zone would be subtracted without its clock changes.
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if end < start:
        raise ValueError(f"The end {end} is before the start {start}.")
    return max(1, -((start - end) // HOUR))


def hours_before(start: datetime, instant: datetime, total: int) -> int:
    """Return how many of the `total` hours from `start` on begin before the instant."""
    return min(max(-((start - instant) // HOUR), 0), total)


def _hourly(rate_micro: int, size_gb: int | None) -> tuple[int, int]:
    """Return the exact price of an hour as a fraction: size × rate, or without a size 20 % of a VM's price."""
    return (rate_micro, AUTOMATIC_DIVISOR) if size_gb is None else (size_gb * rate_micro, 1)


def line_amount(*, hours: int, rate_micro: int, size_gb: int | None, unit_micro: int) -> int:
    """Return the price of `hours` hours in millionths, rounded to whole units of `unit_micro`."""
    numerator, denominator = _hourly(rate_micro, size_gb)
    return round_half_even(hours * numerator, denominator * unit_micro) * unit_micro


def hourly_micro(*, rate_micro: int, size_gb: int | None) -> int:
    """Return the price of one hour; 20 % of a VM's price to the nearest millionth."""
    return round_half_even(*_hourly(rate_micro, size_gb))


def price_at(prices: Sequence[Price], at: datetime) -> Price | None:
    """Return the price in force at the instant, None before the first. `prices` are in the order of their start."""
    return next((price for price in reversed(prices) if price.since <= at), None)


def rate(
    usage: Usage, *, since: datetime, until: datetime, at: datetime, prices: Sequence[Price], unit_micro: int
) -> list[Line]:
    """Return the lines of the hours that start in [since, until), as known at the instant `at`.

    Usage that is open or ends later counts as ending at `at`, or where the window ends; usage that starts later has no
    lines. `prices` are in the order of their start. Hours before the first price come as a line without a rate.
    `unit_micro` is the currency's smallest unit. Raises ValueError when the window ends before it starts.
    """
    since, until, at = since.astimezone(UTC), until.astimezone(UTC), at.astimezone(UTC)
    if until < since:
        raise ValueError(f"The window ends at {until}, before its start at {since}.")
    at = min(at, until)
    start = usage.started_at.astimezone(UTC)
    if usage.voided or start > at:
        return []
    end = at if usage.ended_at is None else min(usage.ended_at.astimezone(UTC), at)
    total = hours(start, end)

    if usage.base_rate_micro is not None:
        intervals: Iterable[tuple[datetime, datetime, Price | None]] = [
            (since, until, Price(since=since, rate_micro=usage.base_rate_micro))
        ]
    else:
        intervals = _intervals(prices, since, until)
    lines = []
    for lower, upper, price in intervals:
        first, last = hours_before(start, lower, total), hours_before(start, upper, total)
        if last <= first:
            continue
        size_gb = None if usage.base_rate_micro is not None else usage.size_gb
        lines.append(
            Line(
                from_at=start + first * HOUR,
                to_at=end if last == total and end < until else start + last * HOUR,
                hours=last - first,
                rate_micro=price.rate_micro if price else None,
                price_id=price.id if price else None,
                amount_micro=line_amount(
                    hours=last - first, rate_micro=price.rate_micro, size_gb=size_gb, unit_micro=unit_micro
                )
                if price
                else None,
            )
        )
    return lines


def _intervals(
    prices: Sequence[Price], since: datetime, until: datetime
) -> Iterable[tuple[datetime, datetime, Price | None]]:
    """Split [since, until) where the price changes. The price is None before the first one."""
    starts = [max(price.since.astimezone(UTC), since) for price in prices] + [until]
    yield since, min(starts[0], until), None
    for price, lower, upper in zip(prices, starts, starts[1:], strict=False):
        yield lower, min(upper, until), price


def next_month(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)


def month_start(month: date, zone: ZoneInfo) -> datetime:
    """Return the instant, in UTC, at which a calendar month begins in a time zone; `month` is its first day."""
    return datetime(month.year, month.month, 1, tzinfo=zone).astimezone(UTC)


def month_of(instant: datetime, zone: ZoneInfo) -> date:
    """Return the first day of the calendar month that the instant lies in."""
    return instant.astimezone(zone).date().replace(day=1)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A billing month: its first day as the name, and the instants [since, until) that it covers."""

    month: date
    since: datetime
    until: datetime


def windows(*, month: date, since: datetime, at: datetime, zone: ZoneInfo) -> list[Window]:
    """Return the months from `month`, which begins at `since`, to the month of `at`, without a gap.

    Where a customer has changed the time zone, the first month is longer or shorter by the difference: no hour is in two.
    """
    result = []
    while True:
        until = max(since, month_start(next_month(month), zone))
        result.append(Window(month=month, since=since, until=until))
        if until > at:
            return result
        month, since = next_month(month), until
