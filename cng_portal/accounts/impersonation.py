"""An administrator looks at the portal as a customer's person does: read-only, under a banner, with entries in the log."""

from typing import Any
from uuid import UUID

from django.contrib.auth import get_backends
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _

from cng_portal.activity import services as activity

from .models import User

KEY = "looks_as"
SAFE = ("GET", "HEAD", "OPTIONS")


class Refused(Exception):
    """Why it was not done."""


def begin(request: HttpRequest, person: User) -> None:
    administrator: Any = request.user
    if person.is_staff or person.is_superuser or not person.is_active:
        raise Refused(_("Only as an active person who is no administrator can you look at the portal."))
    with transaction.atomic():
        activity.record(action="impersonation.start", actor=administrator, target=person)
        request.session[KEY] = str(person.pk)


def end(request: HttpRequest) -> None:
    """Whose eyes they were is a matter of the session; the request is the administrator's own again afterwards."""
    administrator: Any = request.impersonator  # type: ignore[attr-defined]  # set by the middleware
    person: Any = request.user
    with transaction.atomic():
        activity.record(action="impersonation.end", actor=administrator, target=person)
        request.session.pop(KEY, None)


def look(request: HttpRequest) -> None:
    """Make the request that of the person, as long as the session says so and the administrator is one.

    Raises PermissionDenied for what would change something, and for the pages of sign-in and factors: what opens the
    person's account is not for anybody else's eyes.
    """
    request.impersonator = None  # type: ignore[attr-defined]
    key = request.session.get(KEY)
    if not key or request.path.startswith(reverse("admin:index")):
        return
    administrator = request.user
    if not administrator.is_authenticated or not administrator.is_staff:
        return
    person = get_backends()[0].get_user(UUID(key))
    if person is None or person.is_staff:
        return
    request.user, request.impersonator = person, administrator  # type: ignore[attr-defined]
    if request.path == reverse("accounts:stop_looking"):
        return
    if request.method not in SAFE or request.path.startswith("/accounts/"):
        raise PermissionDenied(
            _("You look at the portal as %(person)s, and may not change anything. Stop looking first.")
            % {"person": person}
        )
