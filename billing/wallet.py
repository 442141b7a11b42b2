"""The wallet's ledger: bought, granted, refunded, corrected and expired credits."""

from datetime import UTC, datetime
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import QuerySet
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common import money
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import customer_owners, notify

from .charges import ChargedTotals, total_charged
from .errors import Refused
from .models import MAX_AMOUNT_MICRO, TransactionKind, UsedUpGrant, WalletAccount, WalletTransaction
from .seals import seal
from .sums import ExactSum

logger = structlog.stdlib.get_logger(__name__)

# (source, target) account of each kind of transaction.
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
    """Write a transaction, or return the one already recorded under the key. Raises Refused."""
    lock_customer(customer.pk)
    source, target = sides or SIDES[TransactionKind(kind)]
    values = {
        "customer_id": customer.pk,
        "kind": kind,
        "source": source,
        "target": target,
        "amount_micro": amount_micro,
    }
    recorded = WalletTransaction.objects.filter(key=key).first()
    if recorded is not None:
        if any(getattr(recorded, name) != value for name, value in values.items()):
            raise Refused(_("Another transaction has been recorded under this key. Reload the page and try again."))
        return recorded
    unit_micro = money.unit_micro(customer.currency)
    if not 0 < amount_micro <= MAX_AMOUNT_MICRO or amount_micro % unit_micro:
        raise Refused(
            _("Enter at least %(unit)s, in multiples of %(unit)s.")
            % {"unit": money.format_amount(unit_micro, customer.currency)}
        )
    if not reason.strip():
        raise Refused(_("Enter a reason. It is recorded with the transaction."))
    at = at or timezone.now()
    if expires_at is not None and expires_at <= at:
        raise Refused(_("Credits expire in the future."))
    if by is not None:
        amount = {kind: money.format_amount(amount_micro, customer.currency), "reason": reason.strip()}
        activity.record(action="wallet.move", actor=by, target=customer, after=amount)
    written = WalletTransaction.objects.create(
        **values, key=key, reason=reason.strip(), by=by, expires_at=expires_at, at=at
    )
    seal(written)
    if by is not None:
        _notify(written)
    return written


def _notify(move: WalletTransaction) -> None:
    """Notify the customer's owners of what an administrator did to their credits."""
    customer = move.customer

    def message() -> tuple[str, str]:
        amount = money.format_amount(move.wallet_micro, customer.currency)
        text = _("%(kind)s: %(amount)s. Reason: %(reason)s") % {
            "kind": move.get_kind_display(),
            "amount": amount,
            "reason": move.reason,
        }
        return _("Your infra credits changed by %(amount)s") % {"amount": amount}, text

    notify(
        users=customer_owners(customer),
        key=f"wallet:{move.pk}",
        level=Notification.Level.INFO if move.wallet_micro > 0 else Notification.Level.WARNING,
        message=message,
        url=reverse("billing:transactions"),
    )


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
    """Grant free credits. A second call with the same key changes nothing. Raises Refused."""
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
    """Add credits that were paid for. A second call with the same key changes nothing. Raises Refused."""
    return _record(
        customer=customer, kind=TransactionKind.BOUGHT, amount_micro=amount_micro, reason=reason, by=by, key=key, at=at
    )


@transaction.atomic
def refund_credits(
    *, customer: Customer, amount_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Refund what was charged, at most all of it. A second call with the same key changes nothing. Raises Refused."""
    lock_customer(customer.pk)
    if not WalletTransaction.objects.filter(key=key).exists():
        # Refunds by an invoice are part of `total_charged` already.
        refunds = WalletTransaction.objects.filter(customer=customer, kind=TransactionKind.REFUNDED, invoice=None)
        refunded_micro = refunds.aggregate(total=ExactSum("amount_micro"))["total"]
        charged_micro = total_charged(customer=customer, at=at or timezone.now()) - refunded_micro
        if amount_micro > charged_micro:
            raise Refused(
                _(
                    "At most %(amount)s can be refunded: the charges that haven't been refunded yet. Refund "
                    "less, or grant credits."
                )
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
    *, customer: Customer, amount_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Add to the wallet or, with a negative amount, take from it. A second call with the same key changes nothing.

    Raises Refused.
    """
    sides = (WalletAccount.CORRECTIONS, WalletAccount.WALLET)
    return _record(
        customer=customer,
        kind=TransactionKind.CORRECTED,
        amount_micro=abs(amount_micro),
        reason=reason,
        by=by,
        key=key,
        at=at,
        sides=sides if amount_micro > 0 else sides[::-1],
    )


def expired_credits(*, customer: Customer, at: datetime) -> list[tuple[WalletTransaction, int]]:
    """Return (grant, unused remainder in millionths) of the grants that expired until `at` and aren't settled.

    The rest of a grant that was used up is 0. Credits that expire first are used first, those that never expire last. Usage
    that no credits covered is paid by the credits that come next.
    """
    moves = list(WalletTransaction.objects.filter(customer=customer, at__lte=at).order_by("at", "created_at", "id"))
    settled = {move.grant_id for move in moves if move.grant_id}
    settled |= {row.grant_id for row in UsedUpGrant.objects.filter(grant__customer=customer)}
    grants = {move.pk: (move.expires_at, move) for move in moves if move.expires_at}
    events = [(move.at, 1, move) for move in moves if move.invoice_id is None and move.grant_id is None]
    events += [(expires_at, 0, grant) for expires_at, grant in grants.values() if expires_at <= at]
    remaining: dict[UUID, int] = {}  # of each grant and purchase, in the order in which they are used
    expired, charged_before, uncovered = [], 0, 0
    charged = ChargedTotals(customer)
    for when, is_move, move in sorted(events, key=lambda event: event[:2]):
        charged_now = charged.total_at(when)
        uncovered += charged_now - charged_before
        charged_before = charged_now
        for pk in remaining:
            used = min(remaining[pk], uncovered)
            remaining[pk] -= used
            uncovered -= used
        if not is_move:
            remainder = remaining.pop(move.pk)
            if move.pk not in settled:
                expired.append((move, remainder))
        elif move.wallet_micro < 0:
            uncovered -= move.wallet_micro
        else:
            remaining[move.pk] = move.wallet_micro
            never = datetime.max.replace(tzinfo=UTC)
            remaining = dict(
                sorted(remaining.items(), key=lambda item: grants[item[0]][0] if item[0] in grants else never)
            )
    return expired


def expire_credits(*, at: datetime) -> int:
    """Settle expired free credits, and take back their remainder. Returns how many grants had an unused remainder.

    Running it again changes nothing.
    """
    pending = WalletTransaction.objects.filter(expires_at__lte=at, expiry=None, used_up=None)
    recorded = 0
    for customer in Customer.objects.filter(pk__in=pending.values("customer").distinct()):
        try:
            recorded += _expire_credits(customer, at)
        except Exception:
            logger.exception("credits.expiry_failed", customer=customer.crn)
    return recorded


@transaction.atomic
def _expire_credits(customer: Customer, at: datetime) -> int:
    lock_customer(customer.pk)
    expired = expired_credits(customer=customer, at=at)
    UsedUpGrant.objects.bulk_create(UsedUpGrant(grant=grant) for grant, rest in expired if not rest)
    rests = [(grant, rest) for grant, rest in expired if rest]
    for grant, amount_micro in rests:
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
    return len(rests)


def get_received_credits(*, customer: Customer) -> QuerySet[WalletTransaction]:
    """Return the bought and the granted credits, the newest first."""
    return WalletTransaction.objects.filter(
        customer=customer, kind__in=[TransactionKind.BOUGHT, TransactionKind.GRANTED], target=WalletAccount.WALLET
    )
