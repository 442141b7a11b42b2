"""Invoices and their lines against the recomputed usage."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from billing.models import ClosingFailure, Invoice, InvoiceLine, UsageSegment, WalletTransaction
from cng_portal.accounts.models import Customer
from cng_portal.common import money

from .usage import HOUR, Charge, Charges, Months, amount_micro, first_day_after

CLOSED_WITHIN = timedelta(days=2)  # the scheduler closes a month within the hour, unless it is stopped


def check_invoices(
    customer: Customer,
    invoices: Sequence[Invoice],
    lines: Sequence[InvoiceLine],
    transactions: Sequence[WalletTransaction],
) -> Iterator[str]:
    """Check the invoices' sums, payments, numbers, and that their periods have no gap."""
    own: dict[UUID, list[InvoiceLine]] = defaultdict(list)
    for line in lines:
        own[line.invoice_id].append(line)
    paid: dict[UUID, list[WalletTransaction]] = defaultdict(list)
    for move in transactions:
        if move.invoice_id:
            paid[move.invoice_id].append(move)
    ended_at = None
    for number, invoice in enumerate(invoices, 1):
        total = sum(line.amount_micro for line in own[invoice.pk])
        if (invoice.total_micro, invoice.line_count) != (total, len(own[invoice.pk])):
            yield f"{invoice.number}: total {invoice.total_micro} millionths, its lines add up to {total}"
        payments = paid.pop(invoice.pk, [])
        wallet_micro = sum(move.wallet_micro for move in payments)
        if wallet_micro != -total:
            yield f"{invoice.number}: {total} millionths, but the wallet moved by {wallet_micro}"
        for move in payments:
            if (move.at, move.key) != (invoice.ends_at, f"invoice:{invoice.pk}"):
                yield f"{invoice.number}: transaction {move.pk} is not the one that was written with it"
        if invoice.sequence != number:
            yield f"{invoice.number}: there is a gap before it"
        if invoice.customer_number != customer.number:
            yield f"{invoice.number}: it has the number of customer {invoice.customer_number}"
        if ended_at is not None and invoice.starts_at != ended_at:
            yield f"{invoice.number}: it starts at {invoice.starts_at}, the previous one ended at {ended_at}"
        ended_at = invoice.ends_at
    for invoice_id in paid:
        yield f"the wallet paid invoice {invoice_id}, which is not one of the customer's"


def check_months(
    customer: Customer, invoices: Sequence[Invoice], segments: Iterable[UsageSegment], at: datetime
) -> Iterator[str]:
    """Check that every month that is over has an invoice."""
    for failure in ClosingFailure.objects.filter(customer=customer):
        yield f"a month could not be closed since {failure.failed_at:%Y-%m-%d %H:%M} UTC: {failure.reason}"
        return
    if invoices:
        month = first_day_after(invoices[-1].month)
    else:
        starts = [segment.started_at for segment in segments]
        if not starts:
            return
        month = Months(customer, ()).month_of(min(starts))
    next_month = first_day_after(month)
    ended_at = datetime(next_month.year, next_month.month, 1, tzinfo=customer.zone).astimezone(UTC)
    if at >= ended_at + CLOSED_WITHIN:
        yield f"{month:%Y-%m} ended at {ended_at:%Y-%m-%d %H:%M} UTC and has no invoice"


def check_lines(
    customer: Customer,
    invoices: Sequence[Invoice],
    lines: Sequence[InvoiceLine],
    segments: Mapping[UUID, UsageSegment],
    charges: Charges,
) -> Iterator[str]:
    """Compare the lines with usage and prices.

    A line counts with its corrections. The next invoice settles backdated usage. Until then the difference is part of the
    amount owed, which `check_balance` compares, so here only the amount of each such line is checked.
    """
    unit_micro = money.unit_micro(customer.currency)
    ends = {invoice.month: invoice.ends_at for invoice in invoices}
    corrected: dict[int, CorrectedLine] = {}
    for line in lines:  # a correction is written after its line
        segment = segments.get(line.segment_id)
        if segment is None:
            yield f"line {line.pk}: the usage that it charges doesn't exist"
            continue
        copied = (line.resource_id, line.kind, line.size_gb, line.location_code)
        if copied != (segment.resource_id, segment.kind, segment.size_gb, segment.location_id):
            yield f"line {line.pk}: its resource, kind, size or location differs from the usage"
        if line.corrects_id is None and line.amount_micro != amount_micro(
            line.hours, line.rate_micro, segment, unit_micro
        ):
            yield f"line {line.pk}: {line.amount_micro} millionths is not its hours × size × rate"
        if line.corrects_id is None:
            corrected[line.pk] = CorrectedLine(line)
        elif line.corrects_id in corrected:
            corrected[line.corrects_id].add(line)
        else:
            yield f"line {line.pk}: the line that it corrects doesn't exist"
    billed: dict[tuple, list[CorrectedLine]] = defaultdict(list)
    for own_line in corrected.values():
        if not segments[own_line.line.segment_id].backdated and (own_line.hours or own_line.amount_micro):
            billed[own_line.line.segment_id, own_line.line.month, own_line.price_id].append(own_line)
    last = max(ends, default=date.min)  # Usage from before the first invoice is settled by a later one.
    expected = {key: charge for key, charge in charges.items() if key[1] <= last and not charge.segment.backdated}
    for key in sorted(billed.keys() | expected.keys(), key=str):
        segment = segments[key[0]]
        own, charge = billed[key], expected.get(key)
        hours, amount = sum(line.hours for line in own), sum(line.amount_micro for line in own)
        recomputed = (charge.hours, charge.amount_micro) if charge else (0, 0)
        if (hours, amount) != recomputed:
            yield (
                f"{segment.resource_name} ({segment.resource_id}) in {key[1]:%Y-%m}: invoiced {hours} h for {amount} "
                f"millionths, recomputed {recomputed[0]} h for {recomputed[1]}"
            )
        elif charge:
            periods = [(charge.first, end) for end in _ends(charge, ends[key[1]])] if key[1] in ends else []
            for own_line in own:
                differs = periods and own_line.period not in (None, *periods)
                if differs or own_line.rate_micro != charge.rate_micro:
                    yield f"line {own_line.line.pk} ({segment.resource_name}): its period or rate differs from the usage"
    yield from _check_overlaps(lines)


class CorrectedLine:
    """A line with its corrections. `period` is its first and last instant, None once its hours were corrected."""

    def __init__(self, line: InvoiceLine) -> None:
        self.line, self.hours, self.amount_micro = line, line.hours, line.amount_micro
        self.rate_micro, self.price_id = line.rate_micro, line.price_version_id
        self.period: tuple[datetime, datetime] | None = (line.from_at, line.to_at)

    def add(self, correction: InvoiceLine) -> None:
        self.hours += correction.hours
        self.amount_micro += correction.amount_micro
        self.rate_micro, self.price_id = correction.rate_micro, correction.price_version_id
        if correction.hours:
            self.period = None


def _ends(charge: Charge, month_ends_at: datetime) -> list[datetime]:
    """Return the valid ends of the charge's line: that of its last hour, and that of the usage if it is within the hour.

    If the end of the usage was reported after the invoice was issued, the line ends with the hour.
    """
    last_hour_ends_at, ended_at = charge.last + HOUR, charge.segment.ended_at
    if ended_at is not None and ended_at < month_ends_at and ended_at <= last_hour_ends_at:
        return [last_hour_ends_at, ended_at]
    return [last_hour_ends_at]


def _check_overlaps(lines: Sequence[InvoiceLine]) -> Iterator[str]:
    originals = defaultdict(list)
    for line in lines:
        if line.corrects_id is None:
            originals[line.segment_id].append(line)
    for segment_lines in originals.values():
        segment_lines.sort(key=lambda line: line.from_at)
        for line, following in zip(segment_lines, segment_lines[1:], strict=False):
            if line.from_at + line.hours * HOUR > following.from_at:
                yield f"{line.resource_name}: the hours from {line.from_at} and from {following.from_at} overlap"
