"""A user's sessions, with device and IP address, and how they end."""

import re
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial

from allauth.account.adapter import get_adapter
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.activity import services as activity
from cng_portal.common import full_disk
from cng_portal.common.optional import optional

from ..models import User
from ..requests import Request

# How often the last use of a session is recorded.
SEEN_EVERY_SECONDS = 300
BEGAN, SEEN = "began_at", "seen_at"
# The first match counts: browsers also claim to be those below them.
BROWSERS = [
    ("Edge", "Edg"),
    ("Opera", "OPR/"),
    ("Samsung Internet", "SamsungBrowser"),
    ("Firefox", "Firefox/|FxiOS"),
    ("Chrome", "Chrome/|CriOS|Chromium"),
    ("Safari", "Safari/"),
]
SYSTEMS = [
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("macOS", "Mac OS X|Macintosh"),
    ("ChromeOS", "CrOS"),
    ("Linux", "Linux|X11"),
]


def get_address(request: HttpRequest) -> str | None:
    try:
        return get_adapter().get_client_ip(request)
    except PermissionDenied:  # a Unix socket has none
        return None


def get_device(request: HttpRequest) -> str:
    return describe_device(request.META.get("HTTP_USER_AGENT", ""))


def describe_device(user_agent: str) -> str:
    """Return a name such as `Firefox on Linux`."""
    browser, system = (
        next((name for name, pattern in patterns if re.search(pattern, user_agent)), "")
        for patterns in (BROWSERS, SYSTEMS)
    )
    if browser and system:
        return _("%(browser)s on %(system)s") % {"browser": browser, "system": system}
    return browser or system or _("Unknown device")


def is_polling(request: Request) -> bool:
    """Return whether an open page polls for the progress of an operation."""
    view = request.resolver_match.func if request.resolver_match else None
    return bool(request.htmx) and ("seen" in request.GET or hasattr(view, "is_polled"))


def touch(request: Request) -> None:
    if is_polling(request):
        return
    user = request.user
    seen_at = request.session.get(SEEN)
    if seen_at is None or not user.is_authenticated or time.time() - seen_at < SEEN_EVERY_SECONDS:
        return
    if not full_disk.is_full():
        optional("session last seen", partial(record_last_seen, request), None)


def record_last_seen(request: HttpRequest) -> None:
    UserSession.objects.filter(session_key=request.session.session_key).update(
        last_seen_at=timezone.now(), ip=get_address(request) or "::"
    )
    request.session[SEEN] = time.time()


def is_expired(request: HttpRequest) -> bool:
    """Return whether the session was idle for too long, or started too long ago."""
    limits = ((SEEN, settings.SESSION_IDLE_HOURS), (BEGAN, settings.SESSION_LONGEST_HOURS))
    now = time.time()
    return any(hours and now - request.session.get(key, now) > hours * 3600 for key, hours in limits)


def end_expired(request: HttpRequest) -> None:
    """End the session. The request continues as anonymous."""
    user = request.user
    if user.is_authenticated:
        before = {"device": get_device(request), "address": get_address(request)}
        activity.record(action="user.end_session", actor=None, target=user, before=before)
    UserSession.objects.filter(session_key=request.session.session_key).delete()
    request.session.flush()
    request.user = AnonymousUser()


def active_sessions(user: User) -> QuerySet[UserSession]:
    """The user's sessions that haven't ended or expired, last used first. One query."""
    now = timezone.now()
    alive = Session.objects.filter(expire_date__gt=now).values("session_key")
    began = now - timedelta(hours=settings.SESSION_LONGEST_HOURS)
    active = UserSession.objects.filter(user=user, session_key__in=alive, created_at__gt=began)
    if settings.SESSION_IDLE_HOURS:
        active = active.filter(last_seen_at__gt=now - timedelta(hours=settings.SESSION_IDLE_HOURS))
    return active.order_by("-last_seen_at", "-pk")


def delete_ended(*, now: datetime) -> int:
    """Delete the device and address of ended sessions. Returns how many."""
    alive = Session.objects.filter(expire_date__gt=now).values("session_key")
    old = UserSession.objects.filter(created_at__lt=now - timedelta(hours=1))  # not one that is being created
    return old.exclude(session_key__in=alive).delete()[0]


def rotate_key(request: HttpRequest) -> None:
    """Give the session a new key, so that a stolen old one is worthless."""
    old = request.session.session_key
    request.session.cycle_key()
    UserSession.objects.filter(session_key=old).update(session_key=request.session.session_key)


def end_all(user: User, *, but: str | None = None) -> int:
    """End the user's sessions except the one with the key `but`. Returns how many."""
    return end_sessions(UserSession.objects.filter(user=user).exclude(session_key=but))


@transaction.atomic
def end_sessions(sessions: Iterable[UserSession]) -> int:
    """End the sessions. Returns how many."""
    keys = [session.session_key for session in sessions]
    Session.objects.filter(session_key__in=keys).delete()
    UserSession.objects.filter(session_key__in=keys).delete()
    return len(keys)
