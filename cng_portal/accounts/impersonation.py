"""Administrators can view the portal as a user: read-only, below a banner, recorded in the activity log."""

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

KEY = "impersonates"
SAFE = ("GET", "HEAD", "OPTIONS")


class ActionRefused(Exception):
    """The user can't be impersonated; the text says why."""


def begin(request: HttpRequest, user: User) -> None:
    administrator: Any = request.user
    if user.is_staff or user.is_superuser or not user.is_active:
        raise ActionRefused(_("You can view the portal only as an active user who isn't an administrator."))
    with transaction.atomic():
        activity.record(action="impersonation.start", actor=administrator, target=user)
        request.session[KEY] = str(user.pk)


def end(request: HttpRequest) -> None:
    """From the next request on, the administrator is themselves again."""
    administrator: Any = request.impersonator  # type: ignore[attr-defined]  # set by the middleware
    user: Any = request.user
    with transaction.atomic():
        activity.record(action="impersonation.end", actor=administrator, target=user)
        request.session.pop(KEY, None)


def apply(request: HttpRequest) -> None:
    """Replace request.user by the impersonated user of the session, and set request.impersonator.

    Raises PermissionDenied for unsafe methods, and for pages that show or change credentials.
    """
    request.impersonator = None  # type: ignore[attr-defined]
    key = request.session.get(KEY)
    if not key or request.path.startswith(reverse("admin:index")):
        return
    administrator = request.user
    if not administrator.is_authenticated or not administrator.is_staff:
        return
    user = get_backends()[0].get_user(UUID(key))
    if user is None or user.is_staff:
        return
    request.user, request.impersonator = user, administrator  # type: ignore[attr-defined]
    if request.path == reverse("accounts:stop_impersonating"):
        return
    if request.method not in SAFE or request.path.startswith("/accounts/"):
        raise PermissionDenied(
            _("You're viewing the portal as %(person)s and can't change anything. Stop viewing first.")
            % {"person": user}
        )
