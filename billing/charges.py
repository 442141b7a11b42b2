"""Charges not invoiced yet, corrections of invoiced ones, and costs per resource."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Self
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db.models import Q, QuerySet

from cng_portal.accounts.models import Customer
from cng_portal.common import money

from . import rating
from .models import HasFormula, Invoice, InvoiceLine, UsageSegment
from .pricing.prices import PriceList


@dataclass(frozen=True, kw_only=True)
class DueLine:
    """Hours of a segment that are not invoiced yet, or a correction of an invoiced line."""

    segment: UsageSegment
    month: date
    line: rating.Line
    corrects: InvoiceLine | None = None


@dataclass(frozen=True, kw_only=True)
class BillingMonths:
    """A customer's months: the invoiced ones, and the open ones that follow."""

    customer: Customer
    invoices: list[Invoice]  # in the order of their months

    @classmethod
    def load(cls, customer: Customer) -> Self:
        return cls(customer=customer, invoices=list(Invoice.objects.filter(customer=customer).order_by("month")))

    def open_windows(self, first: datetime, at: datetime) -> list[rating.Window]:
        """Return the months from the last invoice, or from the first use, to the month of `at`."""
        zone = self.customer.zone
        if self.invoices:
            last = self.invoices[-1]
            return rating.windows(month=rating.next_month(last.month), since=last.ends_at, at=at, zone=zone)
        month = rating.month_of(first, zone)
        return rating.windows(month=month, since=rating.month_start(month, zone), at=at, zone=zone)

    def invoiced_windows(self, first: datetime) -> list[rating.Window]:
        """Return the invoiced months, and the months before them since `first`, without a gap."""
        invoiced = [
            rating.Window(month=invoice.month, since=invoice.starts_at, until=invoice.ends_at)
            for invoice in self.invoices
        ]
        if first >= invoiced[0].since:
            return invoiced
        # In the invoice's time zone and not today's, so that an invoiced line meets the same month again.
        zone, until = ZoneInfo(self.invoices[0].time_zone), invoiced[0].since
        month = min(rating.month_of(first, zone), (invoiced[0].month - timedelta(days=1)).replace(day=1))
        since, earlier = min(rating.month_start(month, zone), first), []
        while rating.next_month(month) < invoiced[0].month:
            end = rating.month_start(rating.next_month(month), zone)
            earlier.append(rating.Window(month=month, since=since, until=end))
            month, since = rating.next_month(month), end
        return [*earlier, rating.Window(month=month, since=since, until=until), *invoiced]


def _rate(
    segment: UsageSegment, customer: Customer, window: rating.Window, at: datetime, prices: PriceList
) -> list[rating.Line]:
    return rating.rate(
        segment.usage,
        since=window.since,
        until=window.until,
        at=at,
        prices=prices.history(segment.kind, segment.location_id, customer.currency),
        unit_micro=money.unit_micro(customer.currency),
    )


def due_lines(*, customer: Customer, at: datetime, segments: Sequence[UsageSegment]) -> list[DueLine]:
    """Return the segments' hours that are not invoiced yet, as known at `at`. Two queries, more with backdated usage."""
    if not segments:
        return []
    months = BillingMonths.load(customer)
    first = min(segment.started_at for segment in segments)
    prices = PriceList.load({segment.location_id for segment in segments})
    windows = [window for window in months.open_windows(first, at) if window.since <= at]
    lines = [
        DueLine(segment=segment, month=window.month, line=line)
        for segment in segments
        for window in windows
        for line in _rate(segment, customer, window, at, prices)
    ]
    backdated = [segment for segment in segments if segment.backdated]
    if backdated and months.invoices:
        lines += _backdated_lines(months, backdated, prices, at)
    return lines


def unsettled_segments(*, customer: Customer) -> QuerySet[UsageSegment]:
    """Return the segments that may have hours not invoiced yet, for `due_lines`."""
    segments = UsageSegment.objects.filter(customer=customer)
    if last := Invoice.objects.filter(customer=customer).order_by("-month").first():
        segments = segments.filter(Q(ended_at=None) | Q(ended_at__gte=last.ends_at) | Q(backdated=True))
    return segments


def backdated_lines(*, customer: Customer, at: datetime) -> list[DueLine]:
    """Return the corrections of invoiced months that no invoice has settled yet. Four queries."""
    segments = list(UsageSegment.objects.filter(customer=customer, backdated=True))
    if not segments:
        return []
    months = BillingMonths.load(customer)
    return _backdated_lines(months, segments, PriceList.load({segment.location_id for segment in segments}), at)


def _backdated_lines(
    months: BillingMonths,
    segments: Sequence[UsageSegment],
    prices: PriceList,
    at: datetime,
) -> list[DueLine]:
    """Return the differences between the invoiced lines, corrections included, and the cost as known at `at`."""
    charged: dict[UUID, dict[datetime, Charged]] = defaultdict(dict)
    by_line: dict[int | None, Charged] = {}
    lines = InvoiceLine.objects.filter(segment__in=segments).select_related("invoice").order_by("pk")
    for line in lines:  # a correction is written after its line
        if line.corrects_id is None:
            charged[line.segment_id][line.from_at] = by_line[line.pk] = Charged(line)
        else:
            by_line[line.corrects_id].add(line)
    corrections = []
    windows = months.invoiced_windows(min(segment.started_at for segment in segments))
    for segment in segments:
        before = charged[segment.pk]
        for window in windows:
            for now in _rate(segment, months.customer, window, at, prices):
                if now.from_at in before:
                    corrections += before.pop(now.from_at).corrections(segment, now, months.customer.currency)
                else:
                    corrections.append(DueLine(segment=segment, month=window.month, line=now))
        for rest in before.values():
            if rest.line.from_at < months.invoices[-1].ends_at:
                corrections += rest.corrections(segment, None, months.customer.currency)
    return corrections


class Charged:
    """An invoiced line less the corrections so far."""

    def __init__(self, line: InvoiceLine) -> None:
        self.line, self.hours, self.amount_micro = line, line.hours, line.amount_micro
        self.rate_micro, self.price_id = line.rate_micro, line.price_version_id

    def add(self, correction: InvoiceLine) -> None:
        self.hours += correction.hours
        self.amount_micro += correction.amount_micro
        self.rate_micro, self.price_id = correction.rate_micro, correction.price_version_id

    def corrections(self, segment: UsageSegment, now: rating.Line | None, currency: str) -> list[DueLine]:
        """Return the corrections of the line's price and hours to those of `now`, or to no hours if it is None."""
        rate_micro, price_id = (now.rate_micro or 0, now.price_id) if now else (self.rate_micro, self.price_id)
        at_right_price = self.amount_micro
        differences = []
        if rate_micro != self.rate_micro:
            at_right_price = rating.line_amount(
                hours=self.hours,
                rate_micro=rate_micro,
                size_gb=segment.measure,
                unit_micro=money.unit_micro(currency),
            )
            differences.append((0, self.line.from_at, at_right_price - self.amount_micro))
        hours, amount_micro = (now.hours, now.amount_micro or 0) if now else (0, 0)
        if hours != self.hours:
            from_at = now.to_at if now else self.line.from_at
            differences.append((hours - self.hours, from_at, amount_micro - at_right_price))
        return [
            DueLine(
                segment=segment,
                month=self.line.month,
                corrects=self.line,
                line=rating.Line(
                    from_at=from_at,
                    to_at=self.line.to_at,
                    hours=hours,
                    rate_micro=rate_micro,
                    price_id=price_id,
                    amount_micro=amount_micro,
                ),
            )
            for hours, from_at, amount_micro in differences
        ]


@dataclass(frozen=True, kw_only=True)
class CostLine(HasFormula):
    month: date
    from_at: datetime
    to_at: datetime
    hours: int
    size_gb: int
    rate_micro: int | None
    amount_micro: int
    kind: str
    currency: str
    invoice_id: UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a resource up to an instant. The lines add up to the amount."""

    hours: int
    amount_micro: int
    currency: str
    lines: Sequence[CostLine]

    @property
    def label(self) -> str:
        return money.format_amount(self.amount_micro, self.currency)


# Fields that an invoice line and a cost line share.
COST_FIELDS = ("month", "from_at", "to_at", "hours", "size_gb", "rate_micro", "amount_micro", "kind", "invoice_id")


def cost_so_far(*, resource_id: UUID, at: datetime) -> Cost | None:
    """Return the resource's cost until `at`, of all kinds; None if it was never charged."""
    return costs_so_far([resource_id], at).get(resource_id)


def costs_so_far(resource_ids: Iterable[UUID], at: datetime) -> dict[UUID, Cost]:
    """Return {resource: cost until `at`, invoiced or not} of the resources that were ever charged."""
    segments = list(
        UsageSegment.objects.filter(resource_id__in=list(resource_ids), started_at__lte=at).select_related("customer")
    )
    by_customer: dict[Customer, list[UsageSegment]] = defaultdict(list)
    currencies: dict[UUID, str] = {}
    for segment in segments:
        by_customer[segment.customer].append(segment)
        currencies[segment.resource_id] = segment.customer.currency
    lines: dict[UUID, list[CostLine]] = defaultdict(list)
    for invoiced in InvoiceLine.objects.filter(segment__in=segments).values("resource_id", *COST_FIELDS):
        resource_id = invoiced.pop("resource_id")
        lines[resource_id].append(CostLine(**invoiced, currency=currencies[resource_id]))
    for customer, own_segments in by_customer.items():
        for due in due_lines(customer=customer, at=at, segments=own_segments):
            lines[due.segment.resource_id].append(
                CostLine(
                    month=due.month,
                    from_at=due.line.from_at,
                    to_at=due.line.to_at,
                    hours=due.line.hours,
                    size_gb=due.segment.size_gb,
                    rate_micro=due.line.rate_micro,
                    amount_micro=due.line.amount_micro or 0,
                    kind=due.segment.kind,
                    currency=customer.currency,
                )
            )
    return {
        resource_id: Cost(
            hours=sum(line.hours for line in lines[resource_id]),
            amount_micro=sum(line.amount_micro for line in lines[resource_id]),
            currency=currency,
            lines=sorted(lines[resource_id], key=lambda line: (line.from_at, line.to_at)),
        )
        for resource_id, currency in currencies.items()
    }


def total_charged(*, customer: Customer, at: datetime) -> int:
    """Return the cost of everything the customer has used until `at`, recomputed from usage, in millionths."""
    return ChargedTotals(customer).total_at(at)


class ChargedTotals:
    """What a customer's usage has cost until any instant, recomputed from usage that is read once. Three queries."""

    def __init__(self, customer: Customer) -> None:
        self.segments = list(UsageSegment.objects.filter(customer=customer).order_by("started_at"))
        self.prices = PriceList.load({segment.location_id for segment in self.segments})
        self.months = BillingMonths.load(customer)
        # {(segment, start of the month): a cost that can no longer change}
        self.final: dict[tuple[UUID, datetime], int] = {}
        # {month: its cost, of the months that are over}
        self.over: dict[date, int] = {}

    def total_at(self, at: datetime) -> int:
        """Return the cost until `at`, in millionths. Call it with instants in ascending order.

        Each month is added up once, when it is over, so a further instant costs the usage of one month.
        """
        if not self.segments or self.segments[0].started_at > at:
            return 0
        first = self.segments[0].started_at
        windows = self.months.open_windows(first, at)
        if self.months.invoices:
            windows = [*self.months.invoiced_windows(first), *windows]
        return sum(self._month_cost(window, at) for window in windows if window.since <= at)

    def _month_cost(self, window: rating.Window, at: datetime) -> int:
        if window.month in self.over:
            return self.over[window.month]
        cost = sum(
            self._cost(segment, window, at)
            for segment in self.segments
            if segment.started_at <= at
            and segment.started_at < window.until
            and (segment.ended_at is None or segment.ended_at >= window.since)
        )
        if at >= window.until:
            self.over[window.month] = cost
        return cost

    def _cost(self, segment: UsageSegment, window: rating.Window, at: datetime) -> int:
        if (segment.pk, window.since) in self.final:
            return self.final[segment.pk, window.since]
        lines = _rate(segment, self.months.customer, window, at, self.prices)
        cost = sum(line.amount_micro or 0 for line in lines)
        if at >= window.until or (segment.ended_at and at >= segment.ended_at):
            self.final[segment.pk, window.since] = cost
        return cost
