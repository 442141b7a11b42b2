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


LOW_BALANCE_HOURS = 72  # warned when the credits last for less than three days at the present cost

PAGE = 500


def warn_low_balances(*, at: datetime) -> int:
    """Tell the owners of prepaid customers whose credits run low, once until they have recovered. Returns how many."""
    warned = 0
    using = UsageSegment.objects.filter(ended_at=None).values("customer")
    ids = list(
        Customer.objects.filter(billing_type=BillingType.PREPAID)
        .filter(Q(pk__in=using) | Q(warnings__recovered_at=None, warnings__isnull=False))
        .distinct()
        .values_list("pk", flat=True)
    )
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        try:
            warned += _warn_page(page, at=at)
        except Exception:
            logger.exception("low_balance.page_failed", customers=len(page))
            for pk in page:
                try:
                    warned += _warn_page([pk], at=at)
                except Exception:
                    logger.exception("low_balance.check_failed", customer_id=str(pk))
    return warned


def _warn_page(ids: Sequence[UUID], *, at: datetime) -> int:
    page = Customer.objects.filter(pk__in=ids)
    now, hourly = get_standings(customers=page, at=at), hourly_costs(customers=page, at=at)
    open_warnings = LowBalanceWarning.objects.filter(customer__in=page, recovered_at=None)
    already_warned = set(open_warnings.values_list("customer_id", flat=True))
    low = {pk for pk, one in now.items() if one.balance_micro < hourly.get(pk, 0) * LOW_BALANCE_HOURS}
    open_warnings.exclude(customer__in=low).update(recovered_at=at)
    return sum(
        _warn(customer, balance_micro=now[customer.pk].balance_micro, hourly_micro=hourly[customer.pk], at=at)
        for customer in page
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
        if not is_new:  # another scheduler was quicker
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
    """The warning that the customer has been given and not recovered from."""
    return LowBalanceWarning.objects.filter(customer=customer, recovered_at=None).first()
