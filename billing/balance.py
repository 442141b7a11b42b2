"""A customer's balance at an instant. Nothing accrues: it is computed from usage and prices on demand."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Case, Exists, F, Min, OuterRef, QuerySet, Subquery, When

from cng_portal.accounts.models import BillingType, Customer

from . import bulk, rating
from .charges import backdated_lines
from .errors import InsufficientCredit
from .models import Invoice, UsageSegment, WalletAccount, WalletTransaction
from .sums import ExactSum
from .usage import hourly_cost
from .wallet import expired_credits


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A customer's account at an instant, in millionths: the credits in the ledger, and the usage not invoiced yet."""

    credits_micro: int
    owed_micro: int

    @property
    def balance_micro(self) -> int:
        return self.credits_micro - self.owed_micro


def with_ledger(customers: QuerySet[Customer], *, at: datetime) -> QuerySet[Customer]:
    """Annotate the customers with the inputs of their standing at `at`.

    `last_month` and `last_until`, the month and end of the last invoice, or `first_use` without one; `credits`, the sum of
    the ledger; `backdated`, whether there is backdated usage; `expiring`, whether free credits have expired and
    `expire_credits` hasn't settled them yet.
    """
    invoices = Invoice.objects.filter(customer=OuterRef("pk")).order_by("-month")
    usage = UsageSegment.objects.filter(customer=OuterRef("pk"))
    first_use = usage.order_by().values("customer").annotate(first=Min("started_at")).values("first")
    wallet = WalletTransaction.objects.filter(customer=OuterRef("pk"), at__lte=at)
    signed = Case(When(target=WalletAccount.WALLET, then=F("amount_micro")), default=-F("amount_micro"))
    total = wallet.order_by().values("customer").annotate(total=ExactSum(signed)).values("total")
    return customers.annotate(
        last_month=Subquery(invoices.values("month")[:1]),
        last_until=Subquery(invoices.values("ends_at")[:1]),
        first_use=Case(When(last_month=None, then=Subquery(first_use)), default=None),
        credits=Subquery(total),
        backdated=Exists(usage.filter(backdated=True)),
        expiring=Exists(wallet.filter(expires_at__lte=at, expiry=None, used_up=None)),
    )


def open_windows(customers: Iterable[Any], at: datetime) -> list[bulk.CustomerWindow]:
    """Return the months without an invoice, up to the one of `at`, of customers of `with_ledger(at=at)`."""
    result = []
    for customer in customers:
        if customer.last_month:
            month, since = rating.next_month(customer.last_month), customer.last_until
        elif customer.first_use:
            month = rating.month_of(customer.first_use, customer.zone)
            since = rating.month_start(month, customer.zone)
        else:
            continue
        result += [
            bulk.CustomerWindow.build(customer, window, at)
            for window in rating.windows(month=month, since=since, at=at, zone=customer.zone)
            if window.since <= at
        ]
    return result


def get_standings(*, customers: QuerySet[Customer], at: datetime) -> dict[UUID, Standing]:
    """Return {customer: standing at `at`}; `at` must not be before the last invoice.

    Two queries, and more for customers with backdated usage or with free credits whose expiry isn't recorded.
    """
    accounts: list[Any] = list(with_ledger(customers, at=at))
    sums = bulk.owed_by_customer(open_windows(accounts, at))
    result = {}
    for customer in accounts:
        owed_micro = sums.get(customer.pk, 0)
        if customer.backdated:
            owed_micro += sum(due.line.amount_micro or 0 for due in backdated_lines(customer=customer, at=at))
        result[customer.pk] = standing_of(customer, owed_micro=owed_micro, at=at)
    return result


def standing_of(customer: Any, *, owed_micro: int, at: datetime) -> Standing:
    """Return the standing of a customer who owes `owed_micro`. The customer must come from `with_ledger(at=at)`."""
    credits_micro = int(customer.credits or 0)
    if customer.expiring:
        credits_micro -= sum(amount for _grant, amount in expired_credits(customer=customer, at=at))
    return Standing(credits_micro=credits_micro, owed_micro=owed_micro)


def get_standing(*, customer: Customer, at: datetime) -> Standing:
    return get_standings(customers=Customer.objects.filter(pk=customer.pk), at=at)[customer.pk]


def get_owed(*, customer: Customer, at: datetime) -> int:
    """Return the usage not invoiced yet, in millionths."""
    return get_standing(customer=customer, at=at).owed_micro


def get_balance(*, customer: Customer, at: datetime) -> int:
    """Return the credits in the ledger less what is owed since the last invoice, in millionths."""
    return get_standing(customer=customer, at=at).balance_micro


@dataclass(frozen=True, kw_only=True)
class CreditRunway:
    """How long the credits last at the current cost, and with a new resource; None if nothing uses them up."""

    balance_micro: int
    current: timedelta | None
    with_new: timedelta | None


def credit_runway(*, customer: Customer, at: datetime, extra_hourly_micro: int = 0) -> CreditRunway:
    """Return how long the credits last, now and with a new resource of `extra_hourly_micro`."""
    balance = get_balance(customer=customer, at=at)
    hourly = hourly_cost(customer=customer, at=at)

    def runway(hourly_micro: int) -> timedelta | None:
        if not hourly_micro:
            return None
        # Large credits at a tiny price last longer than a timedelta can hold.
        return min(max(0, balance) // hourly_micro, timedelta.max // rating.HOUR) * rating.HOUR

    return CreditRunway(balance_micro=balance, current=runway(hourly), with_new=runway(hourly + extra_hourly_micro))


def require_cover(*, customer: Customer, hourly_micro: int, at: datetime, reserved_micro: int = 0) -> None:
    """Raise InsufficientCredit unless a prepaid wallet covers the first hour of a new resource, and `reserved_micro`.

    The caller must hold the customer's lock, or two requests could both count on the same credits.
    """
    if customer.billing_type != BillingType.PREPAID:
        return
    balance = get_balance(customer=customer, at=at)
    missing = hourly_micro + reserved_micro - balance
    if missing > 0:
        raise InsufficientCredit(missing_micro=missing, balance_micro=balance, currency=customer.currency)
