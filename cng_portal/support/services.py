"""Sentences that say how to reach support."""

from django.utils.translation import gettext as _

from cng_portal.common.log_context import get_request_id
from cng_portal.common.optional import optional

from .models import SupportContact


def load_contact() -> SupportContact | None:
    """The contact for a page, a message or an e-mail; each can do without it. One query."""
    return optional("support", SupportContact.load, None)


def contact_support() -> str:
    """A sentence to append to a message, with a blank before it: how to reach support and which request to quote.

    "" where no contact is entered.
    """
    contact = load_contact()
    if contact is None:
        return ""
    text = _("Contact support: %(contact)s.") % {"contact": contact.summary}
    if request_id := get_request_id():
        text += " " + _("Quote request %(id)s.") % {"id": request_id}
    return f" {text}"
