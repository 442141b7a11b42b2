"""What usage costs: charges that no invoice has yet, corrections of invoiced ones, and costs per resource."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db.models import Q, QuerySet

from cng_portal.accounts.models import Customer
from cng_portal.common import money

from . import rating
from .formulas import line_formula
from .models import Invoice, InvoiceLine, ServiceKind, UsageSegment
from .prices import PriceList


@dataclass(frozen=True, kw_only=True)
class DueLine:
    """Hours of a segment that no invoice has yet, or the difference to what one has."""

    segment: UsageSegment
    month: date
    line: rating.Line
    corrects: InvoiceLine | None = None


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The months that a customer has invoices for, and those that follow."""

    customer: Customer
    invoices: list[Invoice]  # in the order of their months

    def open_windows(self, first: datetime, at: datetime) -> list[rating.Window]:
        """From where the last invoice ends, or from the month of the first use, to the month of `at`."""
        zone = self.customer.zone
        if self.invoices:
            last = self.invoices[-1]
            return rating.windows(month=rating.next_month(last.month), since=last.ends_at, at=at, zone=zone)
        month = rating.month_of(first, zone)
        return rating.windows(month=month, since=rating.month_start(month, zone), at=at, zone=zone)

    def invoiced_windows(self, first: datetime) -> list[rating.Window]:
        """The invoiced months, and those before them since `first`, without a gap."""
        found = [rating.Window(month=one.month, since=one.starts_at, until=one.ends_at) for one in self.invoices]
        if first >= found[0].since:
            return found
        # The zone of that invoice and not today's: a line that was invoiced must meet the same month again.
        zone, until = ZoneInfo(self.invoices[0].time_zone), found[0].since
        month = min(rating.month_of(first, zone), (found[0].month - timedelta(days=1)).replace(day=1))
        since, earlier = min(rating.month_start(month, zone), first), []
        while rating.next_month(month) < found[0].month:
            end = rating.month_start(rating.next_month(month), zone)
            earlier.append(rating.Window(month=month, since=since, until=end))
            month, since = rating.next_month(month), end
        return [*earlier, rating.Window(month=month, since=since, until=until), *found]


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
    """What of the customer's `segments` no invoice has yet, as known at `at`. Two queries, and more with backdated usage."""
    if not segments:
        return []
    ledger = Ledger(customer=customer, invoices=list(Invoice.objects.filter(customer=customer).order_by("month")))
    first = min(segment.started_at for segment in segments)
    prices = PriceList.load({segment.location_id for segment in segments})
    windows = [window for window in ledger.open_windows(first, at) if window.since <= at]
    found = [
        DueLine(segment=segment, month=window.month, line=line)
        for segment in segments
        for window in windows
        for line in _rate(segment, customer, window, at, prices)
    ]
    backdated = [segment for segment in segments if segment.backdated]
    if backdated and ledger.invoices:
        found += _backdated_lines(ledger, backdated, prices, at)
    return found


def unsettled_segments(*, customer: Customer) -> QuerySet[UsageSegment]:
    """What may have hours that no invoice has yet: for `due_lines`."""
    segments = UsageSegment.objects.filter(customer=customer)
    if last := Invoice.objects.filter(customer=customer).order_by("-month").first():
        segments = segments.filter(Q(ended_at=None) | Q(ended_at__gte=last.ends_at) | Q(backdated=True))
    return segments


def backdated_lines(*, customer: Customer, at: datetime) -> list[DueLine]:
    """Return the corrections of invoiced months that no invoice has settled yet. Four queries."""
    segments = list(UsageSegment.objects.filter(customer=customer, backdated=True))
    if not segments:
        return []
    ledger = Ledger(customer=customer, invoices=list(Invoice.objects.filter(customer=customer).order_by("month")))
    return _backdated_lines(ledger, segments, PriceList.load({segment.location_id for segment in segments}), at)


def _backdated_lines(
    ledger: Ledger,
    segments: Sequence[UsageSegment],
    prices: PriceList,
    at: datetime,
) -> list[DueLine]:
    """The differences between invoices and what turned out later, of months that have an invoice already."""
    originals: dict[UUID, dict[datetime, InvoiceLine]] = defaultdict(dict)
    corrected: set[int] = set()
    for one in InvoiceLine.objects.filter(segment__in=segments).select_related("invoice"):
        if one.corrects_id is None:
            originals[one.segment_id][one.from_at] = one
        else:
            corrected.add(one.corrects_id)
    found = []
    windows = ledger.invoiced_windows(min(segment.started_at for segment in segments))
    for segment in segments:
        charged = originals[segment.pk]
        for window in windows:
            for line in _rate(segment, ledger.customer, window, at, prices):
                before = charged.pop(line.from_at, None)
                if before is None:
                    found.append(DueLine(segment=segment, month=window.month, line=line))
                elif before.hours != line.hours and before.pk not in corrected:
                    found.append(_correction(segment, before, line))
        found += [
            _correction(segment, before, None)
            for before in charged.values()
            if before.from_at < ledger.invoices[-1].ends_at and before.pk not in corrected
        ]
    return found


def _correction(segment: UsageSegment, before: InvoiceLine, now: rating.Line | None) -> DueLine:
    """What `before` charged too much, as a line that points at it."""
    return DueLine(
        segment=segment,
        month=before.month,
        corrects=before,
        line=rating.Line(
            from_at=now.to_at if now else before.from_at,
            to_at=before.to_at,
            hours=(now.hours if now else 0) - before.hours,
            rate_micro=before.rate_micro,
            price_id=before.price_version_id,
            amount_micro=((now.amount_micro or 0) if now else 0) - before.amount_micro,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class CostLine:
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

    @property
    def formula(self) -> str:
        """`3 hours × 50 GB × K 0.4000 = K 60.00`."""
        return line_formula(
            hours=self.hours,
            size_gb=None if self.kind == ServiceKind.VM_BACKUP_AUTOMATIC else self.size_gb,
            rate_micro=self.rate_micro,
            amount_micro=self.amount_micro,
            currency=self.currency,
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a resource has cost up to an instant; the lines add up to the amount."""

    hours: int
    amount_micro: int
    currency: str
    lines: Sequence[CostLine]

    @property
    def label(self) -> str:
        return money.format_amount(self.amount_micro, self.currency)


# What of an invoice's line is in a cost.
INVOICED = ("month", "from_at", "to_at", "hours", "size_gb", "rate_micro", "amount_micro", "kind", "invoice_id")


def cost_so_far(*, resource_id: UUID, at: datetime) -> Cost | None:
    """What one resource has cost until `at`, of all kinds; None where it never cost anything."""
    return costs_so_far([resource_id], at).get(resource_id)


def costs_so_far(resource_ids: Iterable[UUID], at: datetime) -> dict[UUID, Cost]:
    """{resource: its cost until `at`} of those that were ever charged: what was invoiced, and what is due."""
    segments = list(
        UsageSegment.objects.filter(resource_id__in=list(resource_ids), started_at__lte=at).select_related("customer")
    )
    by_customer: dict[Customer, list[UsageSegment]] = defaultdict(list)
    currencies: dict[UUID, str] = {}
    for segment in segments:
        by_customer[segment.customer].append(segment)
        currencies[segment.resource_id] = segment.customer.currency
    lines: dict[UUID, list[CostLine]] = defaultdict(list)
    for invoiced in InvoiceLine.objects.filter(segment__in=segments).values("resource_id", *INVOICED):
        resource_id = invoiced.pop("resource_id")
        lines[resource_id].append(CostLine(**invoiced, currency=currencies[resource_id]))
    for customer, own in by_customer.items():
        for due in due_lines(customer=customer, at=at, segments=own):
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
            hours=sum(line.hours for line in own),
            amount_micro=sum(line.amount_micro for line in own),
            currency=currency,
            lines=sorted(own, key=lambda line: (line.from_at, line.to_at)),
        )
        for resource_id, currency in currencies.items()
        for own in [lines[resource_id]]
    }


def total_charged(*, customer: Customer, at: datetime) -> int:
    """What everything the customer ever used has cost until `at`, recomputed from the usage, in millionths."""
    segments = list(UsageSegment.objects.filter(customer=customer, started_at__lte=at))
    if not segments:
        return 0
    prices = PriceList.load({segment.location_id for segment in segments})
    first = min(segment.started_at for segment in segments)
    ledger = Ledger(customer=customer, invoices=list(Invoice.objects.filter(customer=customer).order_by("month")))
    months = ledger.open_windows(first, at)
    if ledger.invoices:
        months = [*ledger.invoiced_windows(first), *months]
    return sum(
        line.amount_micro or 0
        for segment in segments
        for month in months
        if month.since <= at
        for line in _rate(segment, customer, month, at, prices)
    )
