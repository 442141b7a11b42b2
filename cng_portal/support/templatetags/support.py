from django import template

from cng_portal.common.log_context import get_request_id

from ..models import SupportContact
from ..services import load_contact

register = template.Library()


@register.simple_tag
def support_contact() -> SupportContact | None:
    """{% support_contact as contact %}: one query, None where nothing is entered."""
    return load_contact()


@register.inclusion_tag("partials/support.html")
def support(with_request: bool = True) -> dict[str, object]:
    """{% support %}: how to reach support, and the id of the request to quote. Nothing where no contact is entered."""
    contact = load_contact()
    return {"contact": contact, "request_id": get_request_id() if with_request else ""}
