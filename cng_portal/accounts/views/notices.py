"""The bell: what a person has been told."""

from functools import partial
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from cng_portal.accounts import notices
from cng_portal.optional import optional


@require_safe
def notice_list(request: HttpRequest) -> HttpResponse:
    shown = list(notices.shown_to(request.user))
    context = {"notices": shown, "unseen": any(notice.seen_at is None for notice in shown), "days": notices.KEPT.days}
    return render(request, "accounts/notices.html", context)


@require_safe
def open_notice(request: HttpRequest, notice_id: UUID) -> HttpResponse:
    """To the page where something can be done about it; whoever goes there has seen the notice."""
    mine = request.user.notices.filter(pk=notice_id)
    notice = get_object_or_404(mine)
    if request.impersonator is None:
        optional("notice seen", partial(notices.mark_seen, mine, now=timezone.now()), None)
    return redirect(notice.url or "accounts:notices")


@require_POST
def see_all_notices(request: HttpRequest) -> HttpResponse:
    notices.mark_seen(request.user.notices, now=timezone.now())
    return redirect("accounts:notices")
