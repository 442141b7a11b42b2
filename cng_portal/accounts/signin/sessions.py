"""Where a person is signed in: the sessions, with device and address, and how to end them."""

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

# A session is written down as seen at most so often.
SEEN_EVERY_SECONDS = 300
BEGAN, SEEN = "began_at", "seen_at"
# the first that is found in a user agent; each browser also claims to be those below it
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


def address_of(request: HttpRequest) -> str | None:
    try:
        return get_adapter().get_client_ip(request)
    except PermissionDenied:  # a socket has none
        return None


def device_of(request: HttpRequest) -> str:
    return device(request.META.get("HTTP_USER_AGENT", ""))


def device(user_agent: str) -> str:
    """`Firefox on Linux`, as far as the browser says so."""
    browser, system = (
        next((name for name, sign in known if re.search(sign, user_agent)), "") for known in (BROWSERS, SYSTEMS)
    )
    if browser and system:
        return _("%(browser)s on %(system)s") % {"browser": browser, "system": system}
    return browser or system or _("Unknown device")


def asks_by_itself(request: Request) -> bool:
    """Whether an open page polls for the progress of an operation."""
    view = request.resolver_match.func if request.resolver_match else None
    return bool(request.htmx) and ("seen" in request.GET or hasattr(view, "is_polled"))


def see(request: Request) -> None:
    if asks_by_itself(request):
        return
    user = request.user
    seen_at = request.session.get(SEEN)
    if seen_at is None or not user.is_authenticated or time.time() - seen_at < SEEN_EVERY_SECONDS:
        return
    if not full_disk.is_full():
        optional("session last seen", partial(record_seen, request), None)


def record_seen(request: HttpRequest) -> None:
    UserSession.objects.filter(session_key=request.session.session_key).update(
        last_seen_at=timezone.now(), ip=address_of(request) or "::"
    )
    request.session[SEEN] = time.time()


def is_over(request: HttpRequest) -> bool:
    """That nobody has used it for too long, or that it began too long ago."""
    limits = ((SEEN, settings.SESSION_IDLE_HOURS), (BEGAN, settings.SESSION_LONGEST_HOURS))
    now = time.time()
    return any(hours and now - request.session.get(what, now) > hours * 3600 for what, hours in limits)


def end_over(request: HttpRequest) -> None:
    """What is asked is answered as to somebody who is not signed in."""
    user = request.user
    if user.is_authenticated:
        before = {"device": device_of(request), "address": address_of(request)}
        activity.record(action="user.end_session", actor=None, target=user, before=before)
    UserSession.objects.filter(session_key=request.session.session_key).delete()
    request.session.flush()
    request.user = AnonymousUser()


def of(user: User) -> QuerySet[UserSession]:
    """Those that can still be used, the last seen first. One query."""
    now = timezone.now()
    alive = Session.objects.filter(expire_date__gt=now).values("session_key")
    began = now - timedelta(hours=settings.SESSION_LONGEST_HOURS)
    found = UserSession.objects.filter(user=user, session_key__in=alive, created_at__gt=began)
    if settings.SESSION_IDLE_HOURS:
        found = found.filter(last_seen_at__gt=now - timedelta(hours=settings.SESSION_IDLE_HOURS))
    return found.order_by("-last_seen_at", "-pk")


def forget_ended(*, now: datetime) -> int:
    """Remove device and address of the sessions that are there no more. Returns how many."""
    alive = Session.objects.filter(expire_date__gt=now).values("session_key")
    begun = UserSession.objects.filter(created_at__lt=now - timedelta(hours=1))  # not one that is just being written
    return begun.exclude(session_key__in=alive).delete()[0]


def renew(request: HttpRequest) -> None:
    """The same session under a new key: the old one, which somebody may have got hold of, opens nothing any more."""
    old = request.session.session_key
    request.session.cycle_key()
    UserSession.objects.filter(session_key=old).update(session_key=request.session.session_key)


def end_all(user: User, *, but: str | None = None) -> int:
    """All of the person's, except the one with the key `but`. Returns how many there were."""
    return end(UserSession.objects.filter(user=user).exclude(session_key=but))


@transaction.atomic
def end(ended: Iterable[UserSession]) -> int:
    """Whoever uses them has to sign in again. Returns how many there were."""
    keys = [one.session_key for one in ended]
    Session.objects.filter(session_key__in=keys).delete()
    UserSession.objects.filter(session_key__in=keys).delete()
    return len(keys)
