"""What the billing pages show: every amount as the rows that it is made of."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models import Case, Count, OuterRef, Q, Subquery, Sum, When
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer

from . import bulk, money, rating
from .balance import open_windows, standing_of, with_ledger
from .charges import DueLine, due_lines, late_lines, unsettled_segments
from .models import (
    Invoice,
    InvoiceLine,
    ServiceKind,
    TransactionKind,
    UsageSegment,
    WalletAccount,
    WalletTransaction,
)
from .usage import hourly_of, running_totals


@dataclass(frozen=True, kw_only=True)
class Row:
    """Whole hours of one usage at one rate: of an invoice, or not invoiced yet."""

    month: date
    resource_id: UUID
    kind: str
    name: str
    project: str
    location: str
    from_at: datetime
    to_at: datetime
    hours: int
    size_gb: int
    rate_micro: int | None
    amount_micro: int
    currency: str
    invoice_id: UUID | None = None
    invoice_number: str = ""
    line_id: int | None = None
    corrects: InvoiceLine | None = None  # the line that this one takes back, with its invoice

    @property
    def corrects_number(self) -> str:
        return self.corrects.invoice.number if self.corrects else ""

    @property
    def kind_label(self) -> str:
        return str(ServiceKind(self.kind).label)

    @property
    def formula(self) -> str:
        return money.format_line(
            hours=self.hours,
            size_gb=None if self.kind == ServiceKind.VM_BACKUP_AUTOMATIC else self.size_gb,
            rate_micro=self.rate_micro,
            amount_micro=self.amount_micro,
            currency=self.currency,
        )

    @property
    def amount(self) -> str:
        return money.format_amount(self.amount_micro, self.currency)


def row_of_line(line: InvoiceLine, invoice: Invoice) -> Row:
    return Row(
        month=line.month,
        resource_id=line.resource_id,
        kind=line.kind,
        name=line.resource_name,
        project=line.project_name,
        location=line.location_code,
        from_at=line.from_at,
        to_at=line.to_at,
        hours=line.hours,
        size_gb=line.size_gb,
        rate_micro=line.rate_micro,
        amount_micro=line.amount_micro,
        currency=invoice.currency,
        invoice_id=invoice.pk,
        invoice_number=invoice.number,
        line_id=line.pk,
        corrects=line.corrects,
    )


def _row_of_due(due: DueLine, customer: Customer) -> Row:
    segment, line = due.segment, due.line
    return Row(
        month=due.month,
        resource_id=segment.resource_id,
        kind=segment.kind,
        name=segment.resource_name,
        project=segment.project.name,
        location=segment.location_id,
        from_at=line.from_at,
        to_at=line.to_at,
        hours=line.hours,
        size_gb=segment.size_gb,
        rate_micro=line.rate_micro,
        amount_micro=line.amount_micro or 0,
        currency=customer.currency,
        corrects=due.corrects,
    )


def clip(row: Row, since: datetime | None, until: datetime | None) -> Row | None:
    """The hours of the row that start in [since, until), or None where there are none.

    Amounts are differences of rounded running totals, so that the parts of any partition of a period add up to the whole.
    """
    hours = abs(row.hours)
    first = hours_before(row.from_at, since, hours) if since else 0
    last = hours_before(row.from_at, until, hours) if until else hours
    if first >= last:
        return None
    if (first, last) == (0, hours):
        return row
    sign = -1 if row.hours < 0 else 1
    return replace(
        row,
        from_at=row.from_at + first * rating.HOUR,
        to_at=row.to_at if last == hours else row.from_at + last * rating.HOUR,
        hours=sign * (last - first),
        amount_micro=_running_total(row, last) - _running_total(row, first),
    )


def hours_before(start: datetime, instant: datetime, hours: int) -> int:
    """How many of so many hours from `start` on begin before the instant."""
    return min(hours, max(0, -((start - instant) // rating.HOUR)))


def _running_total(row: Row, hours: int) -> int:
    """What the first hours of the row come to, in millionths."""
    if hours == abs(row.hours):
        return row.amount_micro
    size_gb = None if row.kind == ServiceKind.VM_BACKUP_AUTOMATIC else row.size_gb
    amount_micro = rating.line_amount(hours=hours, rate_micro=row.rate_micro or 0, size_gb=size_gb)
    return -amount_micro if row.hours < 0 else amount_micro


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The rows of a customer's usage that fit the filters, the newest first: what is due, then what was invoiced.

    Rows are clipped to the hours that start in [since, until). `earlier` are the clipped rows that begin before `since`.
    """

    due: Sequence[Row]
    lines: Any  # QuerySet[InvoiceLine], of those that begin in the period
    earlier: Sequence[Row] = ()
    until: datetime | None = None

    def __len__(self) -> int:
        return len(self.due) + self.lines.count() + len(self.earlier)

    def page(self, start: int, stop: int) -> tuple[list[Row], int]:
        """Return these rows, and the total of all rows in millionths."""
        rows = list(self.due[start:stop])
        count = self.lines.count()
        start, stop = max(0, start - len(self.due)), max(0, stop - len(self.due))
        if start < min(stop, count):
            rows += map(self._row, self.lines[start : min(stop, count)])
        rows += self.earlier[max(0, start - count) : max(0, stop - count)]
        return rows, self._total_micro()

    def _total_micro(self) -> int:
        invoiced = int(self.lines.order_by().aggregate(total=Sum("amount_micro", default=0))["total"])
        if self.until:
            for line in self.lines.filter(to_at__gt=self.until).iterator(chunk_size=2000):
                invoiced += self._row(line).amount_micro - line.amount_micro
        return invoiced + sum(row.amount_micro for row in (*self.due, *self.earlier))

    def _row(self, line: InvoiceLine) -> Row:
        row = row_of_line(line, line.invoice)
        return clip(row, None, self.until) or row

    def __iter__(self) -> Iterator[Row]:
        yield from self.due
        yield from map(self._row, self.lines.iterator(chunk_size=2000))
        yield from self.earlier


def usage_rows(
    *,
    customer: Customer,
    at: datetime,
    project_id: UUID | None = None,
    kind: str = "",
    resource_id: UUID | None = None,
    month: date | None = None,
    first: date | None = None,
    last: date | None = None,
    due_only: bool = False,
) -> Usage:
    """`month` is the first day of the month of use, to which hours belong by their start. `first` and `last` are days in
    the customer's time zone: the hours that start on one of them are in the rows. `due_only` leaves out what was invoiced.
    """
    since = datetime.combine(first, time(), customer.zone) if first else None
    until = datetime.combine(last + timedelta(days=1), time(), customer.zone) if last else None
    where = Q()
    if kind:
        where &= Q(kind=kind)
    if resource_id:
        where &= Q(resource_id=resource_id)
    lines = InvoiceLine.objects.filter(where, invoice__customer=customer)
    lines = lines.select_related("invoice", "corrects__invoice").order_by("-from_at", "-pk")
    if month:
        lines = lines.filter(month=month)
    if until:
        lines = lines.filter(from_at__lt=until)
    if due_only:
        lines = lines.none()
    segments = unsettled_segments(customer=customer).filter(where).select_related("project")
    if project_id:
        lines, segments = lines.filter(segment__project=project_id), segments.filter(project=project_id)
    due = [
        row
        for one in due_lines(customer=customer, at=at, segments=list(segments))
        if month is None or one.month == month
        if (row := clip(_row_of_due(one, customer), since, until))
    ]
    due.sort(key=lambda row: (row.from_at, row.name), reverse=True)
    earlier: list[Row] = []
    if since:
        overlapping = lines.filter(from_at__lt=since, to_at__gt=since)
        earlier = [row for line in overlapping if (row := clip(row_of_line(line, line.invoice), since, until))]
        lines = lines.filter(from_at__gte=since)
    return Usage(due=due, lines=lines, earlier=earlier, until=until)


# Summary -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Service:
    """What is there now of one kind."""

    kind: str
    count: int
    size_gb: int
    hourly_micro: int
    month_micro: int

    @property
    def label(self) -> str:
        return str(ServiceKind(self.kind).label)


@dataclass(frozen=True, kw_only=True)
class Summary:
    services: list[Service]
    months: list[date]
    costs: dict[tuple[date, str], int]  # {(month, kind): millionths}
    bought_micro: int
    free_micro: int
    consumed_micro: int
    balance_micro: int
    owed_micro: int
    this_month: date
    this_month_micro: int
    projected_micro: int


MONTHS_SHOWN = 12


Costs = dict[tuple[date, str], int]  # {(month of use, kind): millionths}


def invoiced_costs(customer: Customer) -> Costs:
    lines = InvoiceLine.objects.filter(invoice__customer=customer).order_by().values_list("month", "kind")
    return {(month, kind): int(total) for month, kind, total in lines.annotate(total=Sum("amount_micro"))}


def summary(*, customer: Customer, at: datetime) -> Summary:
    credited = WalletTransaction.objects.filter(customer=OuterRef("pk"), at__lte=at).order_by().values("customer")
    total = {
        kind: Subquery(credited.filter(kind=kind).annotate(total=Sum("amount_micro")).values("total"))
        for kind in (TransactionKind.BOUGHT, TransactionKind.GRANTED)
    }
    customers = Customer.objects.filter(pk=customer.pk).annotate(
        bought=total[TransactionKind.BOUGHT], granted=total[TransactionKind.GRANTED]
    )
    [found] = with_ledger(customers, at=at)
    windows = open_windows([found], at)
    # the last month once more, as it will be at its end if everything stays as it is, planned prices included
    rated = bulk.owed_by_kind([*windows, *(replace(window, at=window.until) for window in windows[-1:])])
    due: Costs = defaultdict(int)
    still_to_come = 0
    for (month, known_at, kind), amount_micro in rated.items():
        if known_at > at:
            still_to_come += amount_micro
        else:
            due[month, kind] += amount_micro
            still_to_come -= amount_micro if month == windows[-1].month else 0
    for line in late_lines(customer=customer, at=at) if found.late else []:
        due[line.month, line.segment.kind] += line.line.amount_micro or 0
    invoiced = invoiced_costs(customer)
    costs = defaultdict(int, {key: invoiced.get(key, 0) + due.get(key, 0) for key in invoiced | due})
    month = rating.month_of(at, customer.zone)
    months = [month]
    while len(months) < MONTHS_SHOWN:
        months.append((months[-1] - timedelta(days=1)).replace(day=1))
    this_month = sum(total for (one, _kind), total in costs.items() if one == month)
    standing = standing_of(found, owed_micro=sum(due.values()), at=at)
    return Summary(
        services=active_services(customer=customer, at=at, costs=costs),
        months=sorted(months),
        costs=costs,
        bought_micro=int(found.bought or 0),
        free_micro=int(found.granted or 0),
        consumed_micro=sum(costs.values()),
        balance_micro=standing.balance_micro,
        owed_micro=standing.owed_micro,
        this_month=month,
        this_month_micro=this_month,
        projected_micro=this_month + still_to_come,
    )


def active_services(*, customer: Customer, at: datetime, costs: dict[tuple[date, str], int]) -> list[Service]:
    """One for each kind that is there now or has cost something this month."""
    month = rating.month_of(at, customer.zone)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    usage = running_totals(at).filter(customer=customer).annotate(count=Count("*"))
    for kind, _code, count, gb, base_micro, rate_micro in usage.values_list(
        "kind", "location_id", "count", "gb", "base", "rate"
    ):
        hourly_micro = hourly_of(gb, base_micro, rate_micro)
        for place, value in enumerate((count, int(gb), hourly_micro)):
            counts[kind][place] += value
    found = []
    for kind in ServiceKind:
        month_micro = costs.get((month, kind.value), 0)
        if kind.value in counts or month_micro:
            count, size_gb, hourly_micro = counts[kind.value]
            found.append(
                Service(
                    kind=kind.value,
                    count=count,
                    size_gb=size_gb,
                    hourly_micro=hourly_micro,
                    month_micro=month_micro,
                )
            )
    return found


# Chart -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ChartSize:
    """In the units of the SVG. `left` is what the amounts take up; every so manieth month is written out."""

    width: int
    height: int
    left: int
    months_apart: int


WIDE = ChartSize(width=720, height=240, left=96, months_apart=1)
NARROW = ChartSize(width=300, height=210, left=80, months_apart=2)
CHART_TOP, CHART_FOOT, CHART_RIGHT = 12, 28, 8


@dataclass(frozen=True, kw_only=True)
class Bar:
    x: str
    y: str
    width: str
    height: str
    kind: str
    title: str


def nice_ceiling(micro: int) -> int:
    """The first amount that is not below it and whose quarters are short to write, as 12, 16, 20, 24, 30 … 100."""
    step = money.MICRO
    while True:
        for factor in (10, 12, 16, 20, 24, 30, 40, 50, 60, 80):
            if factor * step // 10 >= micro:
                return factor * step // 10
        step *= 10


def chart(*, found: Summary, currency: str, label: Callable[[date], str], size: ChartSize) -> dict[str, Any]:
    """Stacked bars, one a month, as numbers for an SVG; `label` writes a month."""
    totals = {
        month: sum(max(0, found.costs.get((month, kind), 0)) for kind in ServiceKind.values) for month in found.months
    }
    top = nice_ceiling(max(totals.values(), default=0))
    plot_height, plot_width = size.height - CHART_TOP - CHART_FOOT, size.width - size.left - CHART_RIGHT
    pitch = plot_width / len(found.months)
    bottom = CHART_TOP + plot_height
    bars, ticks = [], []
    for number, month in enumerate(found.months):
        y = float(bottom)
        x = size.left + number * pitch + pitch * 0.18
        if (len(found.months) - 1 - number) % size.months_apart == 0:  # the last one always
            ticks.append({"x": f"{x + pitch * 0.32:.1f}", "label": label(month)})
        for kind in ServiceKind:
            micro = max(0, found.costs.get((month, kind.value), 0))
            if not micro:
                continue
            height = plot_height * micro / top
            y -= height
            bars.append(
                Bar(
                    x=f"{x:.1f}",
                    y=f"{y:.2f}",
                    width=f"{pitch * 0.64:.1f}",
                    height=f"{height:.2f}",
                    kind=kind.value,
                    title=f"{label(month)}, {kind.label}: {money.format_amount(micro, currency)}",
                )
            )
    lines = [
        {"y": f"{bottom - plot_height * part / 4:.1f}", "label": money.format_price(top * part // 4, currency)}
        for part in range(5)
    ]
    return {
        "bars": bars,
        "ticks": ticks,
        "lines": lines,
        "width": size.width,
        "height": size.height,
        "left": size.left,
        "right": size.width - CHART_RIGHT,
        "label_x": size.left - 8,
        "label_y": size.height - 8,
    }


# Subscriptions -----------------------------------------------------------------------------------------------------


class SubscriptionState(models.TextChoices):
    """`SCHEDULED`: the deletion is accepted, which ended the charging, and the hour that was paid whole still runs."""

    ACTIVE = "active", _("Active")
    INACTIVE = "inactive", _("Inactive")
    SCHEDULED = "scheduled", _("Scheduled for deletion")


def subscriptions(*, customer: Customer, state: str, kind: str, at: datetime) -> Any:
    """The customer's usage in a state, of one kind or all; the newest first. What never began was no service."""
    found = UsageSegment.objects.filter(customer=customer, never_began=False).select_related("project", "location")
    if kind:
        found = found.filter(kind=kind)
    if state == SubscriptionState.ACTIVE:
        found = found.filter(ended_at=None)
    else:
        found = found.filter(ended_at__isnull=False).alias(
            runs=Case(When(ended_at__gt=at - rating.HOUR, then=bulk.paid_hour_runs(at)), default=False)
        )
        found = found.filter(runs=state == SubscriptionState.SCHEDULED)
        if state == SubscriptionState.SCHEDULED:
            found = found.filter(ended_at__gt=at - rating.HOUR)  # so that an index leads to them
    return found.order_by("-started_at", "pk")


def credits_in(*, customer: Customer) -> Any:
    """What came into the wallet from outside, the newest first."""
    return WalletTransaction.objects.filter(
        customer=customer, kind__in=[TransactionKind.BOUGHT, TransactionKind.GRANTED], target=WalletAccount.WALLET
    )
