"""The active operations in the bell of every page."""

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from cng_portal.accounts.models import User
from cng_portal.common.decorators import factor_not_required, polled
from cng_portal.common.templatetags.portal import poll_seconds
from cng_portal.inventory.models import Volume
from snapshots.models import Operation

from .rows import estimate_time_left, listed_operations

LIMIT = 5


@dataclass(frozen=True)
class BellRow:
    """`name` and `url` are of the new volume if the user sees it, else of the operation's subject."""

    operation: Operation
    name: str
    url: str

    @property
    def time_left(self) -> str:
        return estimate_time_left(self.operation, timezone.now())


def in_progress(user: User) -> dict[str, Any]:
    """Return the newest active operations that the user sees, and whether there are more."""
    active = Operation.objects.visible_to(user).active().foreground()
    newest = list(listed_operations(active)[: LIMIT + 1])
    rows = []
    for operation in newest[:LIMIT]:
        volume = operation.volume if operation.kind == Operation.Kind.NEW_VOLUME else None
        subject = volume if volume and volume.project_id in user.roles else operation.subject
        page = "snapshots:volume" if isinstance(subject, Volume) else "snapshots:snapshot"
        rows.append(BellRow(operation, subject.name, reverse(page, args=[subject.pk])))
    return {
        "rows": rows,
        "poll_seconds": poll_seconds(newest[:LIMIT], 2),  # Half as often as a page about the operation.
        "more": len(newest) > LIMIT,
    }


@factor_not_required
@polled
@require_safe
def work(request: HttpRequest) -> HttpResponse:
    """Return the bell's fragment, with an announcement if a notification came since the last request."""
    user = request.user
    unread = user.notifications.unread()
    unread_count = unread.count()
    news = None
    before = request.GET.get("unread", "")
    if before.isdecimal() and int(before) < unread_count:
        news = unread.order_by("-created_at", "-id").first()
    context = {"work": in_progress(user), "unread": unread_count, "moved": True, "news": news}
    return render(request, "partials/frame/bell_work.html", context)
