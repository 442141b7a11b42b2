"""How many costly acts one customer may ask for in an hour, counted from the operations themselves.

What schedules and the portal itself ask for does not count. A refusal says when the next one can be asked for.
"""

from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.languages import digits

from .models import Operation

WINDOW = timedelta(hours=1)


def next_allowed(customer_id: UUID, kind: str, *, now: datetime, more: int = 1) -> datetime | None:
    """When `more` further ones fit, None for now. The caller holds the customer's lock. One query.

    Raises nothing for what can never fit: then it is the instant at which none is counted any more.
    """
    limit = settings.ACTS_PER_HOUR.get(kind, 0)
    if not limit:
        return None
    asked = Operation.objects.filter(
        created_at__gt=now - WINDOW, kind=kind, requested_by__isnull=False, snapshot__customer_id=customer_id
    )
    newest_first = asked.order_by("-created_at", "-id").values_list("created_at", flat=True)
    before = max(0, limit - more)  # so many may stay in the window
    blocking = newest_first[before : before + 1]
    return next((created_at + WINDOW for created_at in blocking), None)


def explain(kind: str, again_at: datetime) -> str:
    # to the next minute: what is said to be allowed then has to be
    local = timezone.localtime(again_at + timedelta(seconds=59))
    return _(
        "Your account has asked for “%(act)s” %(limit)s times within an hour, which is as often as the storage is kept "
        "free for. Nothing was done. Try again at %(time)s, or ask support for more."
    ) % {
        "act": Operation.Kind(kind).label,
        "limit": digits(settings.ACTS_PER_HOUR[kind]),
        "time": digits(f"{local:%H:%M}"),
    }
