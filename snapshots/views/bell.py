"""What is in progress now, in the bell of every page."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from cng_portal.accounts.models import User
from cng_portal.common.decorators import factor_not_required, polled
from snapshots.models import Operation

from .common import shown_operations, with_time_left

SHOWN = 5


def in_progress(user: User) -> dict[str, Any]:
    """`operations` that this person sees and that have not ended, the newest of them, and `more` where there are others."""
    active = Operation.objects.visible_to(user).active().foreground()
    # Mostly there is none, which is a far smaller question than what to show of each.
    newest = list(shown_operations(active)[: SHOWN + 1]) if active.exists() else []
    operations = with_time_left(newest[:SHOWN])
    for operation in operations:
        made = operation.kind == Operation.Kind.NEW_VOLUME and operation.volume
        operation.thing = operation.volume if made else operation.snapshot
        name = "snapshots:volume" if made else "snapshots:snapshot"
        operation.page = reverse(name, args=[operation.thing.pk])
    return {"operations": operations, "more": len(newest) > SHOWN}


@factor_not_required
@polled
@require_safe
def work(request: HttpRequest) -> HttpResponse:
    """The part of the bell that moves, with its count. A notification that came since the last request is announced."""
    user = request.user
    unread = user.notifications.unread()
    unread_count = unread.count()
    news = None
    before = request.GET.get("unread", "")
    if before.isdecimal() and int(before) < unread_count:
        news = unread.order_by("-created_at", "-id").first()
    context = {"work": in_progress(user), "unread": unread_count, "moved": True, "news": news}
    return render(request, "partials/frame/bell_work.html", context)
