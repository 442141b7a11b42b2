"""Recompute the cost of usage, hour by hour."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from uuid import UUID
from zoneinfo import ZoneInfo

from billing.models import Invoice, PriceVersion, ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer
from cng_portal.common import money

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
WALKED_BY_SECONDS = timedelta(hours=6)
A_FIFTH = Fraction(20, 100)
Prices = dict[tuple[str, str, str], list[PriceVersion]]


def load_prices() -> Prices:
    """Return {(kind, location, currency): versions in the order of their start}."""
    prices = defaultdict(list)
    for version in PriceVersion.objects.select_related("package").order_by("starts_at", "pk"):
        package = version.package
        prices[package.kind, package.location_id, package.currency].append(version)
    return prices


def walk(start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the starts of the charged hours: `start`, and every full hour later before `end`.

    Usage of up to `WALKED_BY_SECONDS` is walked second by second, longer usage hour by hour.
    """
    yield start
    now, seconds = start, 0
    by_seconds = end - start <= WALKED_BY_SECONDS
    while True:
        now, seconds = (now + SECOND, seconds + 1) if by_seconds else (now + HOUR, seconds + 3600)
        if now >= end:
            return
        if seconds % 3600 == 0:
            yield now


class Months:
    """A customer's billing months, as invoiced or else by the calendar, and the currency."""

    def __init__(self, customer: Customer, invoices: Sequence[Invoice]) -> None:
        self.zone = customer.zone
        self.currency = customer.currency
        self.invoices = invoices
        self.starts = [invoice.starts_at for invoice in invoices]

    def month_of(self, instant: datetime) -> date:
        if not self.invoices:
            return _first_day(instant, self.zone)
        first, last = self.invoices[0], self.invoices[-1]
        if instant < first.starts_at:
            # Counted in the zone of the first invoice, so that a later change of zone moves no hour into another month.
            return min(_first_day(instant, ZoneInfo(first.time_zone)), _first_day_before(first.month))
        if instant >= last.ends_at:
            return max(_first_day(instant, self.zone), first_day_after(last.month))
        return self.invoices[bisect_right(self.starts, instant) - 1].month


def _first_day(instant: datetime, zone: ZoneInfo) -> date:
    return instant.astimezone(zone).date().replace(day=1)


def _first_day_before(month: date) -> date:
    return (month - timedelta(days=1)).replace(day=1)


def first_day_after(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)


@dataclass
class Charge:
    """The hours of one segment in one month at one price."""

    segment: UsageSegment
    month: date
    rate_micro: int | None
    unit_micro: int
    first: datetime  # when the first of the hours begins
    last: datetime  # when the last one begins
    hours: int = 0
    hours_by_event: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def amount_of(self, hours: int) -> int:
        return amount_micro(hours, self.rate_micro or 0, self.segment, self.unit_micro)

    @property
    def amount_micro(self) -> int:
        return self.amount_of(self.hours)


def amount_micro(hours: int, rate_micro: int, segment: UsageSegment, unit_micro: int) -> int:
    """Return the cost in millionths, rounded half to even to the smallest unit of the currency, as `round` does."""
    automatic = segment.kind == ServiceKind.VM_BACKUP_AUTOMATIC
    exact = hours * rate_micro * (A_FIFTH if automatic else Fraction(segment.size_gb))
    return round(exact / unit_micro) * unit_micro


Charges = dict[tuple[UUID, date, int | None], Charge]


def recompute(segments: Iterable[UsageSegment], prices: Prices, months: Months, events: Sequence[datetime]) -> Charges:
    """Return {(segment, month, price): its hours until the last of the events}.

    `hours_by_event[n]` counts the hours that became known between the events n - 1 and n, in the order of time.
    """
    events = sorted({event.astimezone(UTC) for event in events})
    charges: Charges = {}
    unit_micro = money.unit_micro(months.currency)
    for segment in segments:
        start = segment.started_at.astimezone(UTC)
        if segment.voided or start > events[-1]:
            continue
        end = min(events[-1], (segment.ended_at or events[-1]).astimezone(UTC))
        versions = prices.get((segment.kind, segment.location_id, months.currency), [])
        for instant in walk(start, end):
            if segment.kind == ServiceKind.VM_BACKUP_AUTOMATIC:
                rate_micro, price_id = segment.base_rate_micro, None
            else:
                rate_micro, price_id = _in_force(versions, instant)
            key = segment.pk, months.month_of(instant), price_id
            charge = charges.get(key)
            if charge is None:
                charge = charges[key] = Charge(segment, key[1], rate_micro, unit_micro, first=instant, last=instant)
            charge.last = instant
            charge.hours += 1
            # The first hour is known at its start, any other once something of it was used.
            charge.hours_by_event[(bisect_left if instant == start else bisect_right)(events, instant)] += 1
    return charges


def charged_by_event(charges: Charges, events: Sequence[datetime]) -> dict[datetime, int]:
    """Return {event: cost of all usage until then, as known then}, for the same events as `recompute`."""
    ordered = sorted({event.astimezone(UTC) for event in events})
    hours: dict[int, int] = defaultdict(int)
    totals = {}
    for number, event in enumerate(ordered):
        for charge in charges.values():
            hours[id(charge)] += charge.hours_by_event.get(number, 0)
        totals[event] = sum(charge.amount_of(hours[id(charge)]) for charge in charges.values())
    return totals


def _in_force(versions: Sequence[PriceVersion], instant: datetime) -> tuple[int | None, int | None]:
    rate_micro = pk = None
    for version in versions:
        if version.starts_at <= instant:
            rate_micro, pk = version.rate_micro, version.pk
    return rate_micro, pk
