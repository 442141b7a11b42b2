"""The bill once more, from the lifecycle alone: it walks through time and counts, and shares no arithmetic with `rating`.

A usage of up to some hours is walked second by second, a longer one hour by hour. What it finds is compared with every
invoice, every transaction of the wallet, and the balances that the portal shows.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from uuid import UUID
from zoneinfo import ZoneInfo

from cng_portal.accounts.models import Customer

from .balance import get_standing
from .models import (
    ClosingFailure,
    Invoice,
    InvoiceLine,
    PriceVersion,
    ServiceKind,
    TransactionKind,
    UsageSegment,
    WalletAccount,
    WalletTransaction,
)
from .wallet import expired_credits

SECOND = timedelta(seconds=1)
SECONDS_OF_AN_HOUR = 3600
WALKED_BY_SECONDS = timedelta(hours=6)
A_FIFTH = Fraction(20, 100)


def differences(*, at: datetime, progress: Callable[[int], object] = lambda customers: None) -> list[str]:
    """A sentence for everything that does not fit; none is the proof. It reads one customer at a time."""
    versions = prices()
    found: list[str] = []
    for customer in Customer.objects.order_by("number").iterator(chunk_size=500):
        found += (f"{customer.crn}: {sentence}" for sentence in of_customer(customer, versions, at))
        progress(1)
    return found


def prices() -> dict[tuple[str, str], list[tuple[datetime, int, int]]]:
    found = defaultdict(list)
    for version in PriceVersion.objects.select_related("package").order_by("starts_at", "pk"):
        place = version.package.kind, version.package.location_id
        found[place].append((version.starts_at, version.rate_micro, version.pk))
    return found


def _walk(start: datetime, end: datetime) -> Iterator[datetime]:
    """The instants at which an hour begins that has to be paid: the first one at once, the next ones while it lasts."""
    yield start
    if end - start <= WALKED_BY_SECONDS:
        now, seconds = start, 0
        while True:
            now, seconds = now + SECOND, seconds + 1
            if now >= end:
                return
            if seconds % SECONDS_OF_AN_HOUR == 0:
                yield now
    now = start
    while True:
        now += SECONDS_OF_AN_HOUR * SECOND
        if now >= end:
            return
        yield now


def _in_force(versions: Iterable[tuple[datetime, int, int]], instant: datetime) -> tuple[int | None, int | None]:
    rate_micro = pk = None
    for starts_at, version_rate, version_pk in versions:
        if starts_at <= instant:
            rate_micro, pk = version_rate, version_pk
    return rate_micro, pk


def _month(invoices: list[Invoice], customer: Customer, instant: datetime) -> date:
    """The invoiced month that the instant lies in; else its calendar month, which is not one that was invoiced."""
    for invoice in invoices:
        if invoice.starts_at <= instant < invoice.ends_at:
            return invoice.month
    if invoices and instant < invoices[0].starts_at:
        # counted in the zone of the first invoice, so that a later change of zone moves no hour into another month
        month = instant.astimezone(ZoneInfo(invoices[0].time_zone)).date().replace(day=1)
        return min(month, (invoices[0].month - timedelta(days=1)).replace(day=1))
    month = instant.astimezone(customer.zone).date().replace(day=1)
    return max(month, (invoices[-1].month + timedelta(days=31)).replace(day=1)) if invoices else month


def _rounded(exact: Fraction) -> int:
    """To hundredths of the currency, a half to the even one: what `round` does with a fraction."""
    return round(exact / 10_000) * 10_000


def of_customer(
    customer: Customer, versions: dict[tuple[str, str], list[tuple[datetime, int, int]]], at: datetime
) -> Iterator[str]:
    invoices = list(Invoice.objects.filter(customer=customer).order_by("month"))
    segments = {one.pk: one for one in UsageSegment.objects.filter(customer=customer)}
    lines = list(InvoiceLine.objects.filter(invoice__customer=customer).order_by("pk"))
    moves = list(WalletTransaction.objects.filter(customer=customer).select_related("grant"))
    yield from _of_invoices(invoices, lines, moves)
    yield from _of_wallet(moves)

    hours: dict[tuple, int] = defaultdict(int)
    rates: dict[tuple, int | None] = {}
    for segment in segments.values():
        start = segment.started_at.astimezone(UTC)
        if segment.voided or start > at:
            continue
        end = at if segment.ended_at is None else min(at, segment.ended_at)
        for instant in _walk(start, end.astimezone(UTC)):
            if segment.kind == ServiceKind.VM_BACKUP_AUTOMATIC:
                rate_micro, price_id = segment.base_rate_micro, None
            else:
                rate_micro, price_id = _in_force(versions.get((segment.kind, segment.location_id), ()), instant)
            key = segment.pk, _month(invoices, customer, instant), price_id
            hours[key] += 1
            rates[key] = rate_micro
    amounts = {}
    for key, count in hours.items():
        segment, rate_micro = segments[key[0]], rates[key]
        if rate_micro is None:
            yield f"{segment.resource_name} ({segment.resource_id}) has {count} hours without a price"
            rate_micro = 0
        automatic = segment.kind == ServiceKind.VM_BACKUP_AUTOMATIC
        amounts[key] = _rounded(count * rate_micro * (A_FIFTH if automatic else Fraction(segment.size_gb)))

    charged_hours: dict[tuple, int] = defaultdict(int)
    charged: dict[tuple, int] = defaultdict(int)
    for line in lines:
        key = line.segment_id, line.month, line.price_version_id
        charged_hours[key] += line.hours
        charged[key] += line.amount_micro
    closed = {invoice.month for invoice in invoices}
    for key in sorted(charged.keys() | {key for key in amounts if key[1] in closed}, key=str):
        segment = segments[key[0]]
        if segment.backdated:
            continue  # the next invoice settles it; until then it is part of what is owed, which is compared below
        if (charged_hours[key], charged[key]) != (hours.get(key, 0), amounts.get(key, 0)):
            yield (
                f"{segment.resource_name} ({segment.resource_id}) in {key[1]:%Y-%m}: invoiced {charged_hours[key]} h for "
                f"{charged[key]} millionths, recomputed {hours.get(key, 0)} h for {amounts.get(key, 0)}"
            )

    if invoices and at < invoices[-1].ends_at:
        yield f"the instant {at} lies before the end of the last invoice"
        return
    for failure in ClosingFailure.objects.filter(customer=customer):
        yield f"a month could not be closed since {failure.failed_at:%Y-%m-%d %H:%M} UTC: {failure.reason}"
    shown = get_standing(customer=customer, at=at)
    owed = sum(amounts.values()) - sum(charged.values())
    if shown.owed_micro != owed:
        yield f"shown as owed since the last invoice: {shown.owed_micro} millionths, recomputed {owed}"
    pending = sum(amount for _grant, amount in expired_credits(customer=customer, at=at))
    ledger = sum(move.wallet_micro for move in moves if move.at <= at) - pending
    if shown.balance_micro != ledger - owed:
        yield f"shown as balance: {shown.balance_micro} millionths, recomputed {ledger - owed}"


def _of_invoices(invoices: list[Invoice], lines: list[InvoiceLine], moves: list[WalletTransaction]) -> Iterator[str]:
    own = defaultdict(list)
    for line in lines:
        own[line.invoice_id].append(line)
    moved: dict[UUID, int] = defaultdict(int)
    for move in moves:
        if move.invoice_id:
            moved[move.invoice_id] += move.wallet_micro
    until = None
    for number, invoice in enumerate(invoices, 1):
        total = sum(line.amount_micro for line in own[invoice.pk])
        if (invoice.total_micro, invoice.line_count) != (total, len(own[invoice.pk])):
            yield f"{invoice.number}: total {invoice.total_micro} millionths, its lines add up to {total}"
        if moved[invoice.pk] != -total:
            yield f"{invoice.number}: {total} millionths, but the wallet moved by {moved[invoice.pk]}"
        if invoice.sequence != number:
            yield f"{invoice.number}: there is a gap before it"
        if until is not None and invoice.starts_at != until:
            yield f"{invoice.number}: it starts at {invoice.starts_at}, the one before ended at {until}"
        until = invoice.ends_at
    originals = defaultdict(list)
    for line in lines:
        if line.corrects_id is None:
            originals[line.segment_id].append(line)
    for segment_lines in originals.values():
        segment_lines.sort(key=lambda line: line.from_at)
        for line, following in zip(segment_lines, segment_lines[1:], strict=False):
            if line.from_at + line.hours * timedelta(hours=1) > following.from_at:
                yield f"{line.resource_name}: the hours from {line.from_at} and from {following.from_at} overlap"


SIDES = {
    TransactionKind.BOUGHT: {("purchases", "wallet")},
    TransactionKind.GRANTED: {("grants", "wallet")},
    TransactionKind.REFUNDED: {("consumption", "wallet")},
    TransactionKind.SPENT: {("wallet", "consumption")},
    TransactionKind.EXPIRED: {("wallet", "grants")},
    TransactionKind.CORRECTED: {("wallet", "corrections"), ("corrections", "wallet")},
}


def _of_wallet(moves: list[WalletTransaction]) -> Iterator[str]:
    accounts: dict[str, int] = defaultdict(int)
    for move in moves:
        if (move.source, move.target) not in SIDES[TransactionKind(move.kind)]:
            yield f"transaction {move.pk}: {move.kind} out of {move.source} into {move.target}"
        if sum(amount for _account, amount in move.entries) != 0:
            yield f"transaction {move.pk}: its two sides are not equal"
        for account, amount in move.entries:
            accounts[account] += amount
        if move.grant and move.amount_micro > move.grant.amount_micro:
            yield f"transaction {move.pk}: more expired than was granted"
    if sum(accounts.values()) != 0:
        yield f"the accounts of the ledger add up to {sum(accounts.values())} millionths"
    if accounts[WalletAccount.WALLET] != sum(move.wallet_micro for move in moves):
        yield "the wallet is not the sum of its transactions"
