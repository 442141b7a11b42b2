"""Invoices: written once a month is over, for many customers at a time, in one transaction for each batch of them.

A batch either has its invoices or not, so a run that was killed is simply run again. Two runs at once wait for each other
at the rows of the customers, and the second finds nothing left to do.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date, datetime
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

import structlog
from django.db import DatabaseError, IntegrityError, OperationalError, transaction
from django.db.models import Count, Max, Min, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer
from cng_portal.common import money
from cng_portal.mail import services as mail

from . import bulk, rating
from .balance import get_owed
from .charges import DueLine, backdated_lines, due_lines, unsettled_segments
from .errors import Refused
from .models import MAX_AMOUNT_MICRO, ClosingFailure, Invoice, InvoiceLine, ServiceKind, UsageSegment, invoice_number
from .seals import seal_invoices
from .sums import ExactSum

logger = structlog.stdlib.get_logger(__name__)
BATCH = 2000
NAMESPACE = UUID("6f0b3c5e-5a0e-4a5e-9d35-3c1f0c8a7d11")  # of the ids of invoices and their wallet transactions


@dataclass
class Report:
    invoices: int = 0
    lines: int = 0
    totals: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # {currency: millionths}
    failures: dict[UUID, str] = field(default_factory=dict)  # {customer: why the month could not be closed}

    def add(self, other: "Report") -> None:
        self.invoices += other.invoices
        self.lines += other.lines
        for currency, total_micro in other.totals.items():
            self.totals[currency] += total_micro
        self.failures |= other.failures


def require_month_is_over(month: date, at: datetime) -> None:
    """Raise Refused unless the month is over in the time zones of all customers."""
    for name in Customer.objects.order_by("time_zone").values_list("time_zone", flat=True).distinct():
        end = rating.month_start(rating.next_month(month), ZoneInfo(name))
        if at < end:
            raise Refused(
                _("%(month)s is not over in %(zone)s before %(end)s UTC. Close it then.")
                % {"month": f"{month:%Y-%m}", "zone": name, "end": f"{end:%Y-%m-%d %H:%M}"}
            )


def close_months(
    *,
    at: datetime,
    through: date | None = None,
    customer_ids: list[UUID] | None = None,
    dry_run: bool = False,
    progress: Callable[[int], object] = lambda customers: None,
) -> Report:
    """Write the invoices of all months that are over at `at` in the customer's time zone, the earliest first.

    `through` is the last month to close, `customer_ids` limits it to some customers. Works in batches, so that memory
    doesn't grow with their number. A customer whose month can't be closed, for whatever reason, stops nobody else: the
    reason is recorded as a ClosingFailure and sent to the administrators. Raises OperationalError if the database fails.
    """
    report = Report()
    for batch in batches(customer_ids):
        with transaction.atomic() if dry_run else nullcontext():
            report.add(_close(batch, at=at, through=through))
            if dry_run:
                transaction.set_rollback(True)
            else:
                _record_failures(batch, report, at=at)
        progress(len(batch))
    return report


def _close(customer_ids: list[UUID], *, at: datetime, through: date | None) -> Report:
    """Close all months of a batch. A batch that fails is halved until the failure is that of a single customer."""
    report, more = Report(), True
    try:
        while more:
            with transaction.atomic():
                done, more = _close_batch(customer_ids, at=at, through=through)
            report.add(done)
    except Exception as error:
        if _is_database_down(error):
            raise
        if len(customer_ids) > 1:
            middle = len(customer_ids) // 2
            for half in (customer_ids[:middle], customer_ids[middle:]):
                report.add(_close(half, at=at, through=through))
        else:
            customer = Customer.objects.get(pk=customer_ids[0])
            logger.exception("invoice.failed", customer=customer.crn)
            report.failures[customer.pk] = _explain(customer, error, at=at)
    return report


def _is_database_down(error: Exception) -> bool:
    return isinstance(error, OperationalError) and "integer overflow" not in str(error)


def _explain(customer: Customer, error: Exception, *, at: datetime) -> str:
    owed_micro = 0
    if isinstance(error, DatabaseError):  # An amount may be too large for an invoice.
        try:
            with transaction.atomic():
                owed_micro = get_owed(customer=customer, at=at)
        except Exception as second:
            if _is_database_down(second):
                raise
            logger.exception("invoice.failed", customer=customer.crn)
    if owed_micro > MAX_AMOUNT_MICRO:
        return _(
            "Customer %(crn)s gets no invoice: the amount owed is %(owed)s, but an invoice can total at most "
            "%(most)s. Correct the price in its package, then close the month again."
        ) % {
            "crn": customer.crn,
            "owed": money.format_amount(owed_micro, customer.currency),
            "most": money.format_amount(MAX_AMOUNT_MICRO, customer.currency),
        }
    return _(
        "Customer %(crn)s gets no invoice: %(reason)s. Look for invoice.failed in the log, fix the cause, then close the "
        "month again."
    ) % {"crn": customer.crn, "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(".")}


def _record_failures(customer_ids: list[UUID], report: Report, *, at: datetime) -> None:
    """Record each failure until no month that is over is open, and e-mail the new ones to the administrators."""
    failures = {pk: report.failures[pk] for pk in customer_ids if pk in report.failures}
    settled = Customer.objects.filter(closing_failure__isnull=False, pk__in=customer_ids).exclude(pk__in=failures)
    # The run may have ended with an earlier month than the one that failed.
    still_open = {window.customer_id for window in next_windows(settled.in_bulk(), at=at, through=None)}
    ClosingFailure.objects.filter(customer__in=settled.exclude(pk__in=still_open)).delete()
    recorded = dict(ClosingFailure.objects.filter(customer__in=failures).values_list("customer", "reason"))
    new = {pk: reason for pk, reason in failures.items() if recorded.get(pk) != reason}
    for pk, reason in new.items():
        logger.error("invoice.stopped", reason=reason)
        ClosingFailure.objects.update_or_create(customer_id=pk, defaults={"reason": reason, "failed_at": at})
    if new:
        mail.enqueue_for_admins(
            subject=_("Invoices that couldn't be written"), body="\n".join(new.values()), now=timezone.now()
        )


def batches(customer_ids: list[UUID] | None) -> Iterator[list[UUID]]:
    """Yield the ids of all customers, or of these, in batches."""
    customers = Customer.objects.order_by("pk")
    if customer_ids is not None:
        customers = customers.filter(pk__in=customer_ids)
    last = None
    while True:
        page = customers.filter(pk__gt=last) if last else customers
        batch = list(page.values_list("pk", flat=True)[:BATCH])
        if not batch:
            return
        yield batch
        last = batch[-1]


def _close_batch(customer_ids: list[UUID], *, at: datetime, through: date | None) -> tuple[Report, bool]:
    """Close the customers' next months that are over. Also returns whether any of the months after them is over, too.

    1. Lock the customers in the order of their ids, so that usage reported meanwhile waits.
    2. Write the lines. Their invoices don't exist yet: once they do, a trigger refuses further lines.
    3. Write the invoices with the sums of their lines, and take the sums from the wallets.
    """
    # SQLite has no row locks. Its transactions are exclusive from the start, see DATABASES in the settings.
    locked = Customer.objects.filter(pk__in=customer_ids).order_by("pk").select_for_update()
    customers = {customer.pk: customer for customer in locked}
    windows = next_windows(customers, at=at, through=through)
    report = Report()
    if not windows:
        return report, False
    backdated = _backdated_lines(windows, customers)
    unpriced = {
        pk: _explain_unpriced(customers[pk], due)
        for pk, lines in backdated.items()
        for due in lines
        if due.line.rate_micro is None
    }
    windows = [window for window in windows if window.customer_id not in unpriced]
    try:
        with transaction.atomic():
            _write_lines(windows, backdated)
    except IntegrityError:
        missing = _without_price(windows, customers)
        if not missing:
            raise
        unpriced |= missing
        windows = [window for window in windows if window.customer_id not in unpriced]
        _write_lines(windows, backdated)
    report.failures |= unpriced
    if windows:
        # Their corrections are among the lines. Setting the flag requires the customer's lock.
        UsageSegment.objects.filter(customer__in=[window.customer_id for window in windows], backdated=True).update(
            backdated=False
        )
        bulk.insert_invoices(windows, at=at)
        seal_invoices([window.invoice_id for window in windows])
        _add_sums(windows, report)
    following = [(rating.next_month(window.month), customers[window.customer_id].zone) for window in windows]
    return report, any(_is_over(month, zone, at=at, through=through) for month, zone in set(following))


def _is_over(month: date, zone: ZoneInfo, *, at: datetime, through: date | None) -> bool:
    return (through is None or month <= through) and rating.month_start(rating.next_month(month), zone) <= at


def next_windows(customers: dict[UUID, Customer], *, at: datetime, through: date | None) -> list[bulk.ClosingWindow]:
    """Return the earliest month without an invoice of each customer, if it is over. Two queries."""
    invoiced = {
        row["customer"]: row
        for row in Invoice.objects.filter(customer__in=customers)
        .order_by()
        .values("customer")
        .annotate(month=Max("month"), until=Max("ends_at"), sequence=Max("sequence"))
    }
    without_invoice = [pk for pk in customers if pk not in invoiced]
    first_use = dict(
        UsageSegment.objects.filter(customer__in=without_invoice)
        .order_by()
        .values_list("customer")
        .annotate(first=Min("started_at"))
    )
    windows = []
    for pk, customer in customers.items():
        if pk in invoiced:
            month, since = rating.next_month(invoiced[pk]["month"]), invoiced[pk]["until"]
            sequence = invoiced[pk]["sequence"] + 1
        elif pk in first_use:
            month = rating.month_of(first_use[pk], customer.zone)
            since, sequence = rating.month_start(month, customer.zone), 1
        else:
            continue  # The first invoice is for the month of the first use.
        if _is_over(month, customer.zone, at=at, through=through):
            until = rating.month_start(rating.next_month(month), customer.zone)
            invoice_id = uuid5(NAMESPACE, f"{pk}:{month}")
            windows.append(
                bulk.ClosingWindow(
                    customer_id=pk,
                    currency=customer.currency,
                    month=month,
                    since=since,
                    until=until,
                    at=until,
                    invoice_id=invoice_id,
                    sequence=sequence,
                    transaction_id=uuid5(NAMESPACE, f"{invoice_id}:wallet"),
                    key=f"invoice:{invoice_id}",
                    reason=_("Invoice %(number)s") % {"number": invoice_number(customer.number, sequence)},
                )
            )
    return windows


def _backdated_lines(windows: list[bulk.ClosingWindow], customers: dict[UUID, Customer]) -> dict[UUID, list[DueLine]]:
    """Return {customer: corrections of invoiced months} of the customers with backdated usage."""
    ids = [window.customer_id for window in windows]
    backdated = set(UsageSegment.objects.filter(customer__in=ids, backdated=True).values_list("customer_id", flat=True))
    return {
        window.customer_id: backdated_lines(customer=customers[window.customer_id], at=window.until)
        for window in windows
        if window.customer_id in backdated
    }


def _without_price(windows: list[bulk.ClosingWindow], customers: dict[UUID, Customer]) -> dict[UUID, str]:
    """Return {customer: explanation} of the customers with hours before the first price of their kind and location."""
    unpriced = {}
    for window in windows:
        customer = customers[window.customer_id]
        usage = unsettled_segments(customer=customer).filter(started_at__lt=window.until)
        for due in due_lines(customer=customer, at=window.until, segments=list(usage)):
            if due.line.rate_micro is None:
                unpriced[customer.pk] = _explain_unpriced(customer, due)
    return unpriced


def _explain_unpriced(customer: Customer, due: DueLine) -> str:
    return _(
        "Customer %(crn)s gets no invoice: “%(name)s” (%(kind)s in %(location)s) was used before its price began. Plan "
        "prices so that they begin before the first sale."
    ) % {
        "crn": customer.crn,
        "name": due.segment.resource_name,
        "kind": ServiceKind(due.segment.kind).label,
        "location": due.segment.location_id,
    }


def _write_lines(windows: list[bulk.ClosingWindow], backdated: dict[UUID, list[DueLine]]) -> None:
    if not windows:
        return
    bulk.insert_lines(windows)
    for window in windows:
        if window.customer_id in backdated:
            lines = backdated[window.customer_id]
            InvoiceLine.objects.bulk_create(_invoice_line(window.invoice_id, due) for due in lines)


def _invoice_line(invoice_id: UUID | None, due: DueLine) -> InvoiceLine:
    segment, line = due.segment, due.line
    return InvoiceLine(
        invoice_id=invoice_id,
        segment=segment,
        corrects=due.corrects,
        price_version_id=line.price_id,
        month=due.month,
        resource_id=segment.resource_id,
        kind=segment.kind,
        resource_name=segment.resource_name,
        project_name=segment.project.name,
        location_code=segment.location_id,
        from_at=line.from_at,
        to_at=line.to_at,
        hours=line.hours,
        size_gb=segment.size_gb,
        rate_micro=line.rate_micro,
        amount_micro=line.amount_micro,
    )


def _add_sums(windows: list[bulk.ClosingWindow], report: Report) -> None:
    written = Invoice.objects.filter(pk__in=[window.invoice_id for window in windows])
    for currency, invoices, lines, total_micro in (
        written.order_by().values_list("currency").annotate(Count("pk"), Sum("line_count"), ExactSum("total_micro"))
    ):
        report.invoices += invoices
        report.lines += lines
        report.totals[currency] += total_micro
