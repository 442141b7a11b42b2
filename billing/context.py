"""What every page shows of the wallet."""

from functools import partial

from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from cng_portal.accounts.models import BillingType, Customer

from . import money, services


def wallet(request: HttpRequest) -> dict[str, object]:
    """`wallet_label` and `wallet_amount` for people with a customer; the amount is computed when it is printed."""
    user = getattr(request, "user", None)
    customer = user.customer if user is not None and user.is_authenticated else None
    if customer is None:
        return {"wallet_label": "", "wallet_amount": ""}
    prepaid = customer.billing_type == BillingType.PREPAID
    return {
        "wallet_label": _("Infra credits") if prepaid else _("Usage this month"),
        "wallet_amount": SimpleLazyObject(partial(_amount, customer, prepaid)),
    }


def _amount(customer: Customer, prepaid: bool) -> str:
    at = timezone.now()
    micro = services.balance(customer=customer, at=at) if prepaid else services.owed(customer=customer, at=at)
    return money.format_amount(micro, customer.currency)
