"""What is in progress now, in the bell of every page."""

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from cng_portal.accounts.models import User
from cng_portal.accounts.prepared import prepared
from snapshots.models import Operation

from .common import newest_of, with_time_left

SHOWN = 5
READ = SHOWN + 1  # which tells that there are more


def in_progress(user: User) -> dict[str, Any]:
    """`operations` that this person sees and that have not ended, the newest of them, and `more` where there are others."""
    return shown(active(user))


def active(user: User) -> list[Operation]:
    """For `shown`. One query, and none where the one for the person has said that there are none."""
    return _active(user) if has_work(user) else []


def has_work(user: User) -> bool:
    """False where the query for the person has said that there is none."""
    return getattr(user, "has_work", True)


@prepared(skewed=True)
def _active(user: User) -> QuerySet[Operation]:
    return newest_of(user, READ, Operation.objects.active())


def work_of(user: User) -> list[QuerySet[Operation]]:
    """What a page reads with operations of its own, for `shown_of`."""
    return [Operation.objects.active()] if has_work(user) else []


def shown_of(user: User, read: Iterable[Operation]) -> dict[str, Any]:
    """`in_progress`, of a page that has read the newest active ones with its own."""
    return shown(one for one in read if one.is_active and one.snapshot.project_id in user.roles)


def shown(newest: Iterable[Operation]) -> dict[str, Any]:
    found = list(newest)
    operations = with_time_left(found[:SHOWN])
    for operation in operations:
        made = operation.kind == Operation.Kind.NEW_VOLUME and operation.volume
        operation.thing = operation.volume if made else operation.snapshot
        name = "snapshots:volume" if made else "snapshots:snapshot"
        operation.page = reverse(name, args=[operation.thing.pk])
    return {"operations": operations, "more": len(found) > SHOWN}


@require_safe
def work(request: HttpRequest) -> HttpResponse:
    """The part of the bell that moves, with its count; what was told since it was asked for last is announced."""
    user = request.user
    news = None
    seen = request.GET.get("seen", "")
    if seen.isdecimal() and int(seen) < user.unseen_notices:
        news = user.notices.unseen().order_by("-created_at", "-id").first()
    context = {"work": in_progress(user), "unseen": user.unseen_notices, "moved": True, "news": news}
    return render(request, "partials/frame/bell_work.html", context)
