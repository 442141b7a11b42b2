"""The actions of billing in the activity log."""

from django.utils.translation import gettext_lazy as _

from cng_portal.activity.registry import register

register(
    {
        "wallet.move": _("Credits changed"),
        "price.set": _("Price set"),
        "price.delete": _("Planned price deleted"),
        "price.correct": _("Price corrected"),
        "invoice.close": _("Months closed by an administrator"),
    }
)
