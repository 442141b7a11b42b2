"""The wallet in the top bar."""

from typing import Any

from django.core.cache import caches
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from cng_portal.accounts.models import BillingType, Customer
from cng_portal.common import money

from . import access
from .balance import get_standing


def wallet(request: HttpRequest) -> dict[str, object]:
    """Return `wallet_label` and `wallet_amount`, empty if the user may not see the bills. The amount is lazy."""
    user = getattr(request, "user", None)
    customer = access.billed_customer(user) if user is not None and user.is_authenticated else None
    if customer is None:
        return {"wallet_label": "", "wallet_amount": ""}
    prepaid = customer.billing_type == BillingType.PREPAID
    return {
        "wallet_label": _("Infra credits") if prepaid else _("Usage this month"),
        "wallet_amount": SimpleLazyObject(lambda: top_bar_amount(customer)),
    }


def top_bar_amount(customer: Customer) -> str:
    """Return the balance, computed at most once a minute: rating a large account takes longer than its pages."""
    at = timezone.now()
    key = f"balance:{customer.pk}:{at:%Y-%m-%dT%H:%M}"
    standing: Any = caches["process"].get_or_set(key, lambda: get_standing(customer=customer, at=at), timeout=60)
    prepaid = customer.billing_type == BillingType.PREPAID
    return money.format_amount(standing.balance_micro if prepaid else standing.owed_micro, customer.currency)
