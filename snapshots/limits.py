"""How many costly acts one customer may ask for in an hour, counted from the operations themselves.

What schedules and the portal itself ask for does not count. A refusal says when the next one can be asked for.
"""

from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import ngettext

from .models import Operation

WINDOW = timedelta(hours=1)


def next_allowed(customer_id: UUID, kind: str, *, now: datetime, more: int = 1) -> datetime | None:
    """When `more` further ones fit, None for now. The caller holds the customer's lock. One query.

    Raises nothing for what can never fit: then it is the instant at which none is counted any more.
    """
    limit = settings.ACTS_PER_HOUR.get(kind, 0)
    if not limit:
        return None
    newest_first = asked(customer_id, kind, now).order_by("-created_at", "-id").values_list("created_at", flat=True)
    before = max(0, limit - more)  # so many may stay in the window
    blocking = newest_first[before : before + 1]
    return next((created_at + WINDOW for created_at in blocking), None)


def asked(customer_id: UUID, kind: str, now: datetime) -> QuerySet[Operation]:
    """Those that count against the limit."""
    return Operation.objects.filter(
        created_at__gt=now - WINDOW, kind=kind, requested_by__isnull=False, snapshot__customer_id=customer_id
    )


def announce(customer_id: UUID, kind: str, *, now: datetime) -> str:
    """What to say before somebody fills in a form in vain: that the limit is reached, or that a tenth of it is left at
    most; else "".
    """
    limit = settings.ACTS_PER_HOUR.get(kind, 0)
    if not limit:
        return ""
    left = limit - asked(customer_id, kind, now).count()
    if left > limit // 10:
        return ""
    if left <= 0 and (again_at := next_allowed(customer_id, kind, now=now)):
        return explain(kind, again_at)
    return ngettext(
        "Your account may ask for “%(act)s” %(left)s more time within this hour.",
        "Your account may ask for “%(act)s” %(left)s more times within this hour.",
        left,
    ) % {"act": Operation.Kind(kind).label, "left": left}


def explain(kind: str, again_at: datetime) -> str:
    # to the next minute: what is said to be allowed then has to be
    local = timezone.localtime(again_at + timedelta(seconds=59))
    return ngettext(
        "Your account has asked for “%(act)s” %(limit)s time within an hour, which is as often as the storage is kept "
        "free for. Nothing was done. Try again at %(time)s, or ask support for more.",
        "Your account has asked for “%(act)s” %(limit)s times within an hour, which is as often as the storage is kept "
        "free for. Nothing was done. Try again at %(time)s, or ask support for more.",
        settings.ACTS_PER_HOUR[kind],
    ) % {
        "act": Operation.Kind(kind).label,
        "limit": settings.ACTS_PER_HOUR[kind],
        "time": f"{local:%H:%M}",
    }
