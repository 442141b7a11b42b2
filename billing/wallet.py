"""The wallet's ledger: bought, granted, refunded, corrected and expired credits."""

from datetime import UTC, datetime
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import QuerySet, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common import money

from .charges import total_charged
from .errors import Refused
from .models import MAX_AMOUNT_MICRO, TransactionKind, WalletAccount, WalletTransaction
from .seals import seal

logger = structlog.stdlib.get_logger(__name__)


SIDES = {
    TransactionKind.BOUGHT: (WalletAccount.PURCHASES, WalletAccount.WALLET),
    TransactionKind.GRANTED: (WalletAccount.GRANTS, WalletAccount.WALLET),
    TransactionKind.REFUNDED: (WalletAccount.CONSUMPTION, WalletAccount.WALLET),
    TransactionKind.SPENT: (WalletAccount.WALLET, WalletAccount.CONSUMPTION),
    TransactionKind.EXPIRED: (WalletAccount.WALLET, WalletAccount.GRANTS),
}


@transaction.atomic
def _record(
    *,
    customer: Customer,
    kind: str,
    amount_micro: int,
    reason: str,
    by: User | None,
    key: str,
    at: datetime | None,
    expires_at: datetime | None = None,
    sides: tuple[str, str] | None = None,
) -> WalletTransaction:
    """Write a transaction, or return the one that was written under the key. Raises Refused, ValidationError."""
    lock_customer(customer.pk)
    source, target = sides or SIDES[TransactionKind(kind)]
    given = {"customer_id": customer.pk, "kind": kind, "source": source, "target": target, "amount_micro": amount_micro}
    written = WalletTransaction.objects.filter(key=key).first()
    if written is not None:
        if any(getattr(written, name) != value for name, value in given.items()):
            raise Refused(_("Another transaction has been recorded under this key. Reload the page and try again."))
        return written
    unit_micro = money.unit_micro(customer.currency)
    if not 0 < amount_micro <= MAX_AMOUNT_MICRO or amount_micro % unit_micro:
        raise Refused(
            _("An amount is at least %(unit)s, and a multiple of it.")
            % {"unit": money.format_amount(unit_micro, customer.currency)}
        )
    if not reason.strip():
        raise Refused(_("Give a reason: it is kept with the transaction."))
    at = at or timezone.now()
    if expires_at is not None and expires_at <= at:
        raise Refused(_("Credits expire in the future."))
    if by is not None:
        amount = {kind: money.format_amount(amount_micro, customer.currency), "reason": reason.strip()}
        activity.record(action="wallet.move", actor=by, target=customer, after=amount)
    written = WalletTransaction.objects.create(
        **given, key=key, reason=reason.strip(), by=by, expires_at=expires_at, at=at
    )
    seal(written)
    return written


def grant_credits(
    *,
    customer: Customer,
    amount_micro: int,
    reason: str,
    by: User | None,
    key: str,
    expires_at: datetime | None = None,
    at: datetime | None = None,
) -> WalletTransaction:
    """Free credits. A second call with the key changes nothing. Raises Refused."""
    return _record(
        customer=customer,
        kind=TransactionKind.GRANTED,
        amount_micro=amount_micro,
        reason=reason,
        by=by,
        key=key,
        at=at,
        expires_at=expires_at,
    )


def buy_credits(
    *, customer: Customer, amount_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Credits that were paid for. A second call with the key changes nothing. Raises Refused."""
    return _record(
        customer=customer, kind=TransactionKind.BOUGHT, amount_micro=amount_micro, reason=reason, by=by, key=key, at=at
    )


@transaction.atomic
def refund_credits(
    *, customer: Customer, amount_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Give back what was charged, at most all of it. A second call with the key changes nothing. Raises Refused."""
    lock_customer(customer.pk)
    if not WalletTransaction.objects.filter(key=key).exists():
        # what corrects an invoice is a refund too, and is part of what was consumed already
        refunds = WalletTransaction.objects.filter(customer=customer, kind=TransactionKind.REFUNDED, invoice=None)
        refunded_micro = refunds.aggregate(total=Sum("amount_micro", default=0))["total"]
        charged_micro = total_charged(customer=customer, at=at or timezone.now()) - int(refunded_micro)
        if amount_micro > charged_micro:
            raise Refused(
                _("Only %(amount)s has been charged and not refunded yet. Refund no more than that, or grant credits.")
                % {"amount": money.format_amount(charged_micro, customer.currency)}
            )
    return _record(
        customer=customer,
        kind=TransactionKind.REFUNDED,
        amount_micro=amount_micro,
        reason=reason,
        by=by,
        key=key,
        at=at,
    )


def correct_credits(
    *, customer: Customer, change_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Add to the wallet or, with a negative change, take from it: a mistake is made good by another transaction.

    A second call with the key changes nothing. Raises Refused.
    """
    sides = (WalletAccount.CORRECTIONS, WalletAccount.WALLET)
    return _record(
        customer=customer,
        kind=TransactionKind.CORRECTED,
        amount_micro=abs(change_micro),
        reason=reason,
        by=by,
        key=key,
        at=at,
        sides=sides if change_micro > 0 else sides[::-1],
    )


def expired_credits(*, customer: Customer, at: datetime) -> list[tuple[WalletTransaction, int]]:
    """What was left of each grant when it expired, of those that expired until `at` and are not recorded so yet.

    Credits that expire sooner are used up first, those that never expire last; what could not be covered when it was
    used is covered by the credits that come next.
    """
    moves = list(WalletTransaction.objects.filter(customer=customer, at__lte=at).order_by("at", "created_at", "id"))
    recorded = {move.grant_id for move in moves if move.grant_id}
    grants = {move.pk: (move.expires_at, move) for move in moves if move.expires_at}
    events = [(move.at, 1, move) for move in moves if move.invoice_id is None and move.grant_id is None]
    events += [(expires_at, 0, grant) for expires_at, grant in grants.values() if expires_at <= at]
    left: dict[UUID, int] = {}  # in the order in which they are used up
    found, before, uncovered = [], 0, 0
    for when, is_move, move in sorted(events, key=lambda event: event[:2]):
        until_now = total_charged(customer=customer, at=when)
        uncovered += until_now - before
        before = until_now
        for pk in left:
            used = min(left[pk], uncovered)
            left[pk] -= used
            uncovered -= used
        if not is_move:
            rest = left.pop(move.pk)
            if rest and move.pk not in recorded:
                found.append((move, rest))
        elif move.wallet_micro < 0:
            uncovered -= move.wallet_micro
        else:
            left[move.pk] = move.wallet_micro
            never = datetime.max.replace(tzinfo=UTC)
            left = dict(sorted(left.items(), key=lambda item: grants[item[0]][0] if item[0] in grants else never))
    return found


def expire_credits(*, at: datetime) -> int:
    """Record what was left of the free credits that have expired. Returns how many. Repeating it changes nothing."""
    pending = WalletTransaction.objects.filter(expires_at__lte=at, expiry=None).values("customer").distinct()
    recorded = 0
    for customer in Customer.objects.filter(pk__in=pending):
        try:
            recorded += _expire_credits(customer, at)
        except Exception:
            logger.exception("credits.expiry_failed", customer=customer.crn)
    return recorded


@transaction.atomic
def _expire_credits(customer: Customer, at: datetime) -> int:
    lock_customer(customer.pk)
    expired = expired_credits(customer=customer, at=at)
    for grant, amount_micro in expired:
        expiry = WalletTransaction.objects.create(
            customer=customer,
            kind=TransactionKind.EXPIRED,
            source=WalletAccount.WALLET,
            target=WalletAccount.GRANTS,
            amount_micro=amount_micro,
            key=f"expired:{grant.pk}",
            reason=_("Free credits expired"),
            grant=grant,
            at=grant.expires_at,
        )
        seal(expiry)
    return len(expired)


def get_received_credits(*, customer: Customer) -> QuerySet[WalletTransaction]:
    """What came into the wallet from outside, the newest first."""
    return WalletTransaction.objects.filter(
        customer=customer, kind__in=[TransactionKind.BOUGHT, TransactionKind.GRANTED], target=WalletAccount.WALLET
    )
