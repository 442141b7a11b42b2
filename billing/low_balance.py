"""Warnings to prepaid customers whose credits run low."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext as _

from cng_portal.accounts.models import BillingType, Customer
from cng_portal.accounts.services import lock_customer
from cng_portal.common import money
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import customer_owners, notify

from .balance import get_standings
from .models import LowBalanceWarning, UsageSegment
from .usage import hourly_costs

logger = structlog.stdlib.get_logger(__name__)
LOW_BALANCE_HOURS = 72  # Customers are warned when their credits last less than three days at the present cost.
BATCH = 500


def warn_low_balances(*, at: datetime) -> int:
    """Warn the owners of prepaid customers whose credits run low, once until they recover. Returns how many were warned."""
    warned = 0
    using = UsageSegment.objects.filter(ended_at=None).values("customer")
    ids = list(
        Customer.objects.filter(billing_type=BillingType.PREPAID)
        .filter(Q(pk__in=using) | Q(warnings__recovered_at=None, warnings__isnull=False))
        .distinct()
        .values_list("pk", flat=True)
    )
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        try:
            warned += _warn_batch(batch, at=at)
        except Exception:
            logger.exception("low_balance.batch_failed", customers=len(batch))
            for pk in batch:
                try:
                    warned += _warn_batch([pk], at=at)
                except Exception:
                    logger.exception("low_balance.check_failed", customer_id=str(pk))
    return warned


def _warn_batch(ids: Sequence[UUID], *, at: datetime) -> int:
    customers = Customer.objects.filter(pk__in=ids)
    standings, hourly = get_standings(customers=customers, at=at), hourly_costs(customers, at=at)
    open_warnings = LowBalanceWarning.objects.filter(customer__in=customers, recovered_at=None)
    already_warned = set(open_warnings.values_list("customer_id", flat=True))
    low = {pk for pk, standing in standings.items() if standing.balance_micro < hourly.get(pk, 0) * LOW_BALANCE_HOURS}
    open_warnings.exclude(customer__in=low).update(recovered_at=at)
    return sum(
        _warn(customer, balance_micro=standings[customer.pk].balance_micro, hourly_micro=hourly[customer.pk], at=at)
        for customer in customers
        if customer.pk in low - already_warned
    )


def _warn(customer: Customer, *, balance_micro: int, hourly_micro: int, at: datetime) -> bool:
    with transaction.atomic():
        lock_customer(customer.pk)
        warning, is_new = LowBalanceWarning.objects.get_or_create(
            customer=customer,
            recovered_at=None,
            defaults={"balance_micro": balance_micro, "hourly_micro": hourly_micro, "warned_at": at},
        )
        if not is_new:  # Another scheduler was quicker.
            return False

        def message() -> tuple[str, str]:
            text = _(
                "%(customer)s has %(balance)s of infra credits left, and what it uses costs %(hourly)s an hour. "
                "When the credits are used up, nothing is deleted, but nothing new can be created. Add infra credits, or "
                "delete what you no longer need."
            ) % {
                "customer": customer,
                "balance": money.format_amount(balance_micro, customer.currency),
                "hourly": money.format_price(hourly_micro, customer.currency),
            }
            return _("Your infra credits run low"), text

        notify(
            users=customer_owners(customer),
            key=f"low-balance-{warning.pk}",
            level=Notification.Level.WARNING,
            message=message,
            url=reverse("billing:credits"),
        )
    return True


def low_balance_warning(*, customer: Customer) -> LowBalanceWarning | None:
    """Return the customer's open warning, if any."""
    return LowBalanceWarning.objects.filter(customer=customer, recovered_at=None).first()
