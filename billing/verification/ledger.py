"""Check the wallet: its transactions, expired credits, and the displayed balance."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from billing.balance import get_standing
from billing.models import (
    Invoice,
    InvoiceLine,
    TransactionKind,
    UsageSegment,
    UsedUpGrant,
    WalletAccount,
    WalletTransaction,
)
from cng_portal.accounts.models import Customer

from .usage import Charges, Prices, charged_by_event

SIDES = {
    TransactionKind.BOUGHT: {("purchases", "wallet")},
    TransactionKind.GRANTED: {("grants", "wallet")},
    TransactionKind.REFUNDED: {("consumption", "wallet")},
    TransactionKind.SPENT: {("wallet", "consumption")},
    TransactionKind.EXPIRED: {("wallet", "grants")},
    TransactionKind.CORRECTED: {("wallet", "corrections"), ("corrections", "wallet")},
}


def check_transactions(transactions: Sequence[WalletTransaction]) -> Iterator[str]:
    accounts: dict[str, int] = defaultdict(int)
    for move in transactions:
        if (move.source, move.target) not in SIDES[TransactionKind(move.kind)]:
            yield f"transaction {move.pk}: {move.kind} out of {move.source} into {move.target}"
        if sum(amount for _account, amount in move.entries) != 0:
            yield f"transaction {move.pk}: its two sides are not equal"
        for account, amount in move.entries:
            accounts[account] += amount
    if sum(accounts.values()) != 0:
        yield f"the accounts of the ledger add up to {sum(accounts.values())} millionths"
    if accounts[WalletAccount.WALLET] != sum(move.wallet_micro for move in transactions):
        yield "the wallet is not the sum of its transactions"


def check_expiries(
    customer: Customer,
    invoices: Sequence[Invoice],
    transactions: Sequence[WalletTransaction],
    segments: Iterable[UsageSegment],
    charges: Charges,
    prices: Prices,
    at: datetime,
) -> Iterator[str]:
    """Compare the expired amount of each grant, which is 0 if it was used up, with its unused remainder.

    If usage, credits or prices from before the expiry were recorded after it, only its time and its upper bound are
    checked.
    """
    unused = unused_grants(transactions, charges, at)
    zones = {customer.time_zone, *(invoice.time_zone for invoice in invoices)}
    records = list(_effective_and_recorded(transactions, segments, prices))
    grants = {move.pk: move for move in transactions if move.expires_at}
    for expiry in transactions:
        if expiry.grant_id is None:
            continue
        grant = grants.get(expiry.grant_id)
        if grant is None or grant.expires_at is None:
            yield f"transaction {expiry.pk}: nothing that expires was granted for it"
            continue
        if expiry.at != grant.expires_at or expiry.amount_micro > grant.amount_micro:
            yield f"transaction {expiry.pk}: more or at another time than was granted"
    settled = [(move.grant_id, move.amount_micro, move.created_at) for move in transactions if move.grant_id in grants]
    settled += [(row.grant_id, 0, row.created_at) for row in UsedUpGrant.objects.filter(grant__in=grants)]
    for grant_id, expired_micro, created_at in settled:
        expires_at = grants[grant_id].expires_at
        changed = expires_at is None or any(
            effective_at < expires_at and recorded_at >= created_at for effective_at, recorded_at in records
        )
        if not changed and len(zones) == 1 and expired_micro != unused.get(grant_id, 0):
            yield f"grant {grant_id}: {expired_micro} millionths expired, recomputed {unused.get(grant_id, 0)}"


def _effective_and_recorded(
    transactions: Sequence[WalletTransaction], segments: Iterable[UsageSegment], prices: Prices
) -> Iterator[tuple[datetime, datetime]]:
    """Yield (effective at, recorded at) of every input of an expiry: credits, usage and prices."""
    for move in transactions:
        if move.invoice_id is None and move.grant_id is None:
            yield move.at, move.created_at
    for segment in segments:
        yield segment.started_at, segment.start_recorded_at
        if segment.ended_at and segment.end_recorded_at:
            yield segment.ended_at, segment.end_recorded_at
    for versions in prices.values():
        for version in versions:
            yield version.starts_at, version.created_at


@dataclass
class Credit:
    expires_at: datetime
    left_micro: int


def unused_grants(transactions: Sequence[WalletTransaction], charges: Charges, at: datetime) -> dict[UUID, int]:
    """Return {grant: its unused remainder in millionths} of the grants that expired until `at`.

    Credits that expire first are used first. Usage that no credits covered is paid by the next ones.
    """
    never = datetime.max.replace(tzinfo=UTC)
    moves = [move for move in transactions if move.at <= at]
    steps: list[tuple[datetime, int, WalletTransaction]] = []
    for move in moves:
        if move.invoice_id is None and move.grant_id is None:
            steps.append((move.at, 1, move))
        if move.expires_at and move.expires_at <= at:
            steps.append((move.expires_at, 0, move))
    if not any(move.expires_at for move in moves):
        return {}
    steps.sort(key=lambda step: step[:2])
    events = [when for move in transactions for when in (move.at, move.expires_at) if when and when < at]
    charged = charged_by_event(charges, [*events, at])
    credits: dict[UUID, Credit] = {}
    unused: dict[UUID, int] = {}
    to_pay = paid = 0
    for when, is_move, move in steps:
        to_pay += charged[when.astimezone(UTC)] - paid
        paid = charged[when.astimezone(UTC)]
        for credit in sorted(credits.values(), key=lambda credit: credit.expires_at):
            part = min(credit.left_micro, to_pay)
            credit.left_micro -= part
            to_pay -= part
        if not is_move:
            unused[move.pk] = credits.pop(move.pk).left_micro
        elif move.target == WalletAccount.WALLET:
            credits[move.pk] = Credit(move.expires_at or never, move.amount_micro)
        else:
            to_pay += move.amount_micro
    return unused


def check_balance(
    customer: Customer,
    invoices: Sequence[Invoice],
    lines: Sequence[InvoiceLine],
    transactions: Sequence[WalletTransaction],
    charges: Charges,
    at: datetime,
) -> Iterator[str]:
    for charge in charges.values():
        if charge.rate_micro is None:
            resource = f"{charge.segment.resource_name} ({charge.segment.resource_id})"
            yield f"{resource} has {charge.hours} hours without a price"
    if invoices and at < invoices[-1].ends_at:
        yield f"the instant {at} lies before the end of the last invoice"
        return
    standing = get_standing(customer=customer, at=at)
    owed = sum(charge.amount_micro for charge in charges.values()) - sum(line.amount_micro for line in lines)
    if standing.owed_micro != owed:
        yield f"displayed as owed since the last invoice: {standing.owed_micro} millionths, recomputed {owed}"
    settled = {move.grant_id for move in transactions if move.at <= at}
    settled |= {row.grant_id for row in UsedUpGrant.objects.filter(grant__customer=customer)}
    pending = sum(left for grant, left in unused_grants(transactions, charges, at).items() if grant not in settled)
    ledger = sum(move.wallet_micro for move in transactions if move.at <= at) - pending
    if standing.balance_micro != ledger - owed:
        yield f"displayed as balance: {standing.balance_micro} millionths, recomputed {ledger - owed}"
