"""Calculations as text: how an amount follows from hours, size and rate."""

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.common import money


def line_formula(*, hours: int, size_gb: int | None, rate_micro: int | None, amount_micro: int, currency: str) -> str:
    """`3 hours × 50 GB × K 0.4000 = K 60.00`; 20 % of the VM's price where `size_gb` is None."""
    if rate_micro is None:
        return ngettext("%(hours)s hour, no price yet", "%(hours)s hours, no price yet", hours) % {
            "hours": money.format_count(hours)
        }
    if not hours:
        return _("Price corrected to %(rate)s = %(amount)s") % {
            "rate": money.format_rate(rate_micro, currency),
            "amount": money.format_amount(amount_micro, currency),
        }
    values = {
        "hours": money.format_count(hours),
        "size": size_gb if size_gb is None else money.format_count(size_gb),
        "rate": money.format_rate(rate_micro, currency),
        "amount": money.format_amount(amount_micro, currency),
    }
    if size_gb is None:
        return (
            ngettext(
                "%(hours)s hour × 20 %% of %(rate)s = %(amount)s",
                "%(hours)s hours × 20 %% of %(rate)s = %(amount)s",
                hours,
            )
            % values
        )
    return (
        ngettext(
            "%(hours)s hour × %(size)s GB × %(rate)s = %(amount)s",
            "%(hours)s hours × %(size)s GB × %(rate)s = %(amount)s",
            hours,
        )
        % values
    )
