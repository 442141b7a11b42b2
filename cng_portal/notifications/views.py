"""The list behind the bell."""

from functools import partial
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from cng_portal.accounts.requests import Request
from cng_portal.common.optional import optional

from . import services


@require_safe
def notification_list(request: HttpRequest) -> HttpResponse:
    notifications = list(services.recent(request.user))
    context = {
        "notifications": notifications,
        "has_unread": any(notification.read_at is None for notification in notifications),
        "days": services.KEEP_FOR.days,
    }
    return render(request, "notifications/list.html", context)


@require_safe
def open_notification(request: Request, notification_id: UUID) -> HttpResponse:
    """Mark it as read and go to the page where something can be done about it."""
    matching = request.user.notifications.filter(pk=notification_id)
    notification = get_object_or_404(matching)
    if request.impersonator is None:
        optional("notification read", partial(services.mark_read, matching, now=timezone.now()), None)
    return redirect(notification.url or "notifications:list")


@require_POST
def mark_all_read(request: HttpRequest) -> HttpResponse:
    services.mark_read(request.user.notifications, now=timezone.now())
    return redirect("notifications:list")


@require_POST
def resend(request: HttpRequest, notification_id: UUID) -> HttpResponse:
    notification = get_object_or_404(request.user.notifications, pk=notification_id)
    if services.resend(notification):
        messages.success(request, _("The e-mail is on its way to %(email)s again.") % {"email": request.user.email})
    else:
        messages.info(request, _("Nothing was sent: the e-mail hasn't failed."))
    return redirect("notifications:list")
