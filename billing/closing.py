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
from django.db import IntegrityError, OperationalError, transaction
from django.db.models import Count, Max, Min, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer
from cng_portal.mail import services as mail

from . import bulk, rating
from .charges import DueLine, backdated_lines, due_lines, unsettled_segments
from .errors import Refused
from .models import ClosingFailure, Invoice, InvoiceLine, ServiceKind, UsageSegment, invoice_number
from .seals import seal_invoices

logger = structlog.stdlib.get_logger(__name__)
BATCH = 2000
INVOICES = UUID("6f0b3c5e-5a0e-4a5e-9d35-3c1f0c8a7d11")  # names of invoices and of their transactions


@dataclass
class Report:
    invoices: int = 0
    lines: int = 0
    totals: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # {currency: millionths}
    stopped: dict[UUID, str] = field(default_factory=dict)  # {customer: why the month could not be closed}

    def add(self, other: "Report") -> None:
        self.invoices += other.invoices
        self.lines += other.lines
        for currency, total_micro in other.totals.items():
            self.totals[currency] += total_micro
        self.stopped |= other.stopped


def require_month_is_over(month: date, at: datetime) -> None:
    """In the time zones of all customers. Raises Refused."""
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

    `through` names the last month wanted, `customer_ids` limits it to some customers. Memory does not grow with their
    number. A customer whose month cannot be closed, whatever the reason, keeps nobody else from an invoice: the reason is
    recorded as a ClosingFailure and the administrators are notified. Raises OperationalError when the database fails.
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
    """Close all months of a batch. One that fails is split in two until the failure is that of a single customer."""
    report, more = Report(), True
    try:
        while more:
            with transaction.atomic():
                done, more = _close_batch(customer_ids, at=at, through=through)
            report.add(done)
    except OperationalError:
        raise
    except Exception as error:
        if len(customer_ids) > 1:
            middle = len(customer_ids) // 2
            for half in (customer_ids[:middle], customer_ids[middle:]):
                report.add(_close(half, at=at, through=through))
        else:
            customer = Customer.objects.get(pk=customer_ids[0])
            logger.exception("invoice.failed", customer=customer.crn)
            report.stopped[customer.pk] = _(
                "Customer %(crn)s gets no invoice: %(reason)s. Look for invoice.failed in the log, mend the cause, then "
                "close the month again."
            ) % {"crn": customer.crn, "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(".")}
    return report


def _record_failures(customer_ids: list[UUID], report: Report, *, at: datetime) -> None:
    """Administrators see each failure until the month is closed, and get an e-mail when it is new."""
    stopped = {pk: report.stopped[pk] for pk in customer_ids if pk in report.stopped}
    ClosingFailure.objects.filter(customer__in=customer_ids).exclude(customer__in=stopped).delete()
    known = dict(ClosingFailure.objects.filter(customer__in=stopped).values_list("customer", "reason"))
    new = {pk: reason for pk, reason in stopped.items() if known.get(pk) != reason}
    for pk, reason in new.items():
        logger.error("invoice.stopped", reason=reason)
        ClosingFailure.objects.update_or_create(customer_id=pk, defaults={"reason": reason, "failed_at": at})
    if new:
        mail.enqueue_for_admins(
            subject=_("Invoices that could not be made"), body="\n".join(new.values()), now=timezone.now()
        )


def batches(customer_ids: list[UUID] | None) -> Iterator[list[UUID]]:
    """The ids of all customers, or of some, a few at a time."""
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
    """The next month of each of the customers, if it is over; and whether the one after it is over, too.

    1. Lock the customers, in the order of their ids: usage that is being reported waits, or is seen.
    2. Write the lines. Their invoices do not exist yet: from the moment they do, a trigger refuses further lines.
    3. Write the invoices with the sums of their lines, and take the sums from the wallets.
    """
    # SQLite has no row locks; there a transaction that writes is alone from its beginning, see DATABASES in the settings
    customers = {one.pk: one for one in Customer.objects.filter(pk__in=customer_ids).order_by("pk").select_for_update()}
    windows = next_windows(customers, at=at, through=through)
    report = Report()
    if not windows:
        return report, False
    backdated = _backdated_lines(windows, customers)
    unpriced = {
        pk: _sentence(customers[pk], one) for pk, due in backdated.items() for one in due if one.line.rate_micro is None
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
    report.stopped |= unpriced
    if windows:
        bulk.insert_invoices(windows, at=at)
        seal_invoices([window.invoice_id for window in windows])
        _add_sums(windows, report)
    following = [(rating.next_month(window.month), customers[window.customer_id].zone) for window in windows]
    return report, any(_is_over(month, zone, at=at, through=through) for month, zone in set(following))


def _is_over(month: date, zone: ZoneInfo, *, at: datetime, through: date | None) -> bool:
    return (through is None or month <= through) and rating.month_start(rating.next_month(month), zone) <= at


def next_windows(customers: dict[UUID, Customer], *, at: datetime, through: date | None) -> list[bulk.ClosingWindow]:
    """The earliest month of each of the customers that has no invoice, where it is over. Two queries."""
    invoiced = {
        row["customer"]: row
        for row in Invoice.objects.filter(customer__in=customers)
        .order_by()
        .values("customer")
        .annotate(month=Max("month"), until=Max("ends_at"), sequence=Max("sequence"))
    }
    fresh = [pk for pk in customers if pk not in invoiced]
    first_use = dict(
        UsageSegment.objects.filter(customer__in=fresh)
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
            continue  # a customer's first invoice is that of the month of the first use
        if _is_over(month, customer.zone, at=at, through=through):
            until = rating.month_start(rating.next_month(month), customer.zone)
            invoice_id = uuid5(INVOICES, f"{pk}:{month}")
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
                    transaction_id=uuid5(INVOICES, f"{invoice_id}:wallet"),
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
    """{customer: a sentence} of those with hours before the first price of their kind and location."""
    found = {}
    for window in windows:
        customer = customers[window.customer_id]
        usage = unsettled_segments(customer=customer).filter(started_at__lt=window.until)
        for due in due_lines(customer=customer, at=window.until, segments=list(usage)):
            if due.line.rate_micro is None:
                found[customer.pk] = _sentence(customer, due)
    return found


def _sentence(customer: Customer, due: DueLine) -> str:
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
            due = backdated[window.customer_id]
            InvoiceLine.objects.bulk_create(_invoice_line(window.invoice_id, one) for one in due)


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
        written.order_by().values_list("currency").annotate(Count("pk"), Sum("line_count"), Sum("total_micro"))
    ):
        report.invoices += invoices
        report.lines += lines
        report.totals[currency] += int(total_micro)
