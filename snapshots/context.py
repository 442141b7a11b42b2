"""Template context of the menu and the top bar."""

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from billing.access import billed_customer
from cng_portal.common import full_disk

from .views.bell import in_progress


def frame(request: HttpRequest) -> dict[str, object]:
    user = getattr(request, "user", None)  # A request refused before the sign-in middleware has none.
    if user is None or not user.is_authenticated:
        return {}
    return {
        "section": getattr(request, "section", request.path.split("/")[1]),
        "has_bills": billed_customer(user) is not None,
        "can_create": bool(user.changeable_project_ids),
        "disk_is_full": full_disk.is_full,
        "in_progress": SimpleLazyObject(lambda: in_progress(user)),
    }
