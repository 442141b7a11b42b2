"""The account statement: usage as rows, invoiced or not, clipped to a period."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q

from cng_portal.accounts.models import Customer
from cng_portal.common import money

from . import rating
from .charges import DueLine, due_lines, unsettled_segments
from .models import HasFormula, Invoice, InvoiceLine, ServiceKind
from .sums import ExactSum


@dataclass(frozen=True, kw_only=True)
class Row(HasFormula):
    """Whole hours of one usage segment at one rate, invoiced or not."""

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
    url: str = ""  # of the resource's page
    corrects: InvoiceLine | None = None  # with its invoice

    @property
    def corrects_number(self) -> str:
        return self.corrects.invoice.number if self.corrects else ""

    @property
    def kind_label(self) -> str:
        return str(ServiceKind(self.kind).label)

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
    """Return the row with the hours that start in [since, until); None if there are none.

    Amounts are differences of rounded running totals, so that the parts of any partition of a period add up to the whole.
    """
    hours = abs(row.hours)
    if not hours:  # A price correction counts where its line starts.
        starts_inside = (since is None or row.from_at >= since) and (until is None or row.from_at < until)
        return row if starts_inside else None
    first = rating.hours_before(row.from_at, since, hours) if since else 0
    last = rating.hours_before(row.from_at, until, hours) if until else hours
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


def _running_total(row: Row, hours: int) -> int:
    """Return the cost of the first hours of the row, in millionths."""
    if hours == abs(row.hours):
        return row.amount_micro
    size_gb = None if row.kind == ServiceKind.VM_BACKUP_AUTOMATIC else row.size_gb
    unit_micro = money.unit_micro(row.currency)
    amount_micro = rating.line_amount(
        hours=hours, rate_micro=row.rate_micro or 0, size_gb=size_gb, unit_micro=unit_micro
    )
    return -amount_micro if row.hours < 0 else amount_micro


@dataclass(frozen=True, kw_only=True)
class UsageRows:
    """A customer's usage as rows, the newest first: usage not invoiced yet, then invoiced lines.

    Rows are clipped to the hours that start in [since, until). `earlier`: clipped rows of lines from before `since`.
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
        invoiced = self.lines.order_by().aggregate(total=ExactSum("amount_micro"))["total"]
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
) -> UsageRows:
    """Return the customer's usage that passes the filters.

    `month` is the first day of the month of use. `first` and `last` are days in the customer's time zone; hours count on
    the day on which they start. `due_only` leaves invoiced lines out.
    """
    since = datetime.combine(first, time(), customer.zone) if first else None
    until = datetime.combine(last + timedelta(days=1), time(), customer.zone) if last else None
    matching = Q()
    if kind:
        matching &= Q(kind=kind)
    if resource_id:
        matching &= Q(resource_id=resource_id)
    lines = InvoiceLine.objects.filter(matching, invoice__customer=customer)
    lines = lines.select_related("invoice", "corrects__invoice").order_by("-from_at", "-pk")
    if month:
        lines = lines.filter(month=month)
    if until:
        lines = lines.filter(from_at__lt=until)
    if due_only:
        lines = lines.none()
    segments = unsettled_segments(customer=customer).filter(matching).select_related("project")
    if project_id:
        lines, segments = lines.filter(segment__project=project_id), segments.filter(project=project_id)
    due = [
        row
        for line in due_lines(customer=customer, at=at, segments=list(segments))
        if month is None or line.month == month
        if (row := clip(_row_of_due(line, customer), since, until))
    ]
    due.sort(key=lambda row: (row.from_at, row.name), reverse=True)
    earlier: list[Row] = []
    if since:
        overlapping = lines.filter(from_at__lt=since, to_at__gt=since)
        earlier = [row for line in overlapping if (row := clip(row_of_line(line, line.invoice), since, until))]
        lines = lines.filter(from_at__gte=since)
    return UsageRows(due=due, lines=lines, earlier=earlier, until=until)
