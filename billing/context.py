"""What every page shows of the wallet."""

from functools import partial

from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from cng_portal.accounts import kept
from cng_portal.accounts.models import BillingType, Customer

from . import access, money, services


def wallet(request: HttpRequest) -> dict[str, object]:
    """`wallet_label` and `wallet_amount` for who may see the bills; the amount is computed when it is printed."""
    user = getattr(request, "user", None)
    customer = access.billed_customer(user) if user is not None and user.is_authenticated else None
    if customer is None:
        return {"wallet_label": "", "wallet_amount": ""}
    prepaid = customer.billing_type == BillingType.PREPAID
    return {
        "wallet_label": _("Infra credits") if prepaid else _("Usage this month"),
        "wallet_amount": SimpleLazyObject(partial(_amount, customer, prepaid)),
    }


# The sum moves with the hours, so it is worked out at most once a minute.
KEEP_SECONDS = 60


def _amount(customer: Customer, prepaid: bool) -> str:
    at = timezone.now()
    key = f"wallet-{prepaid}-{int(at.timestamp()) // KEEP_SECONDS}"
    known: services.Standing | None = getattr(customer, "standing", None)  # the page has just worked it out
    micro: int | None = None if known else kept.recall(key, customer)
    if micro is None:
        known = known or services.standing(customer=customer, at=at)
        micro = known.balance_micro if prepaid else known.owed_micro
        kept.keep(key, customer, micro)
    return money.format_amount(micro, customer.currency)
