"""Errors of billing, with messages for customers and administrators."""

from django.utils.translation import gettext as _

from cng_portal.common import money


class BillingError(Exception):
    """`str(error)` is a message for the user."""


class NotSold(BillingError):
    """The location has no active package of the kind, or its price has not begun."""


class Refused(BillingError):
    """The request breaks a rule of billing."""


class InsufficientCredit(BillingError):
    """The wallet does not cover the first hour."""

    def __init__(self, *, missing_micro: int, balance_micro: int, currency: str) -> None:
        self.missing_micro = missing_micro
        self.balance_micro = balance_micro
        unit_micro = money.unit_micro(currency)
        # Rounded up, so that buying exactly this amount is enough.
        rounded_micro = -(-missing_micro // unit_micro) * unit_micro
        super().__init__(
            _(
                "Insufficient infra credit: your balance is %(balance)s and the first hour needs %(missing)s more. Add "
                "infra credits, or delete what you no longer need."
            )
            % {
                "balance": money.format_amount(balance_micro, currency),
                "missing": money.format_amount(rounded_micro, currency),
            }
        )
