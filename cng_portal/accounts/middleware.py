"""Middleware for sessions, second factors, impersonation and preferences."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, resolve_url
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.utils.translation import gettext as _
from django_htmx.http import HttpResponseClientRedirect

from cng_portal.common import preferences
from cng_portal.common.origin import Origin, use_origin

from . import impersonation
from .requests import Request
from .signin import confirmation, factors, sessions

GetResponse = Callable[[Request], HttpResponse]


def htmx_redirects_to_sign_in(get_response: GetResponse) -> GetResponse:
    """Turn the redirect of an htmx request to the sign-in page into one of the whole browser."""

    def middleware(request: Request) -> HttpResponse:
        response = get_response(request)
        sign_in = resolve_url("account_login")
        if request.htmx and response.status_code == 302 and urlsplit(response["Location"]).path == sign_in:
            here = request.htmx.current_url_abs_path or "/"
            return HttpResponseClientRedirect(f"{sign_in}?{urlencode({'next': here})}")
        return response

    return middleware


def request_origin(get_response: GetResponse) -> GetResponse:
    """Set the origin that the activity log records."""

    def middleware(request: Request) -> HttpResponse:
        with use_origin(Origin(address=sessions.get_address(request), device=sessions.get_device(request))):
            return get_response(request)

    return middleware


def impersonate(get_response: GetResponse) -> GetResponse:
    """Replace request.user while an administrator views the portal as a user; request.impersonator is the administrator."""

    def middleware(request: Request) -> HttpResponse:
        impersonation.apply(request)
        return get_response(request)

    return middleware


def apply_preferences(get_response: GetResponse) -> GetResponse:
    """Show dates and times in the user's time zone and format."""

    def middleware(request: Request) -> HttpResponse:
        with preferences.localized_for(request.user if request.user.is_authenticated else None):
            return get_response(request)

    return middleware


def enforce_session_limits(get_response: GetResponse) -> GetResponse:
    """End sessions that were idle or open for too long, and record when the others were last used."""

    def middleware(request: Request) -> HttpResponse:
        if sessions.is_expired(request):
            sessions.end_expired(request)
        response = get_response(request)
        sessions.touch(request)
        return response

    return middleware


def require_factor(get_response: GetResponse) -> GetResponse:
    """Redirect users without a second factor that MFA_REQUIRED asks for to the page that adds one, and then back."""

    def middleware(request: Request) -> HttpResponse:
        return get_response(request)

    def process_view(request: Request, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        match, user = request.resolver_match, request.user
        if match is None or not user.is_authenticated or request.impersonator:
            return None
        if not getattr(view, "is_factor_required", True) or match.view_name.startswith(("account_", "mfa_")):
            return None
        if not factors.is_factor_missing(user):
            request.session.pop(factors.NEXT_PAGE, None)
            return None
        if "admin" in match.app_names:  # has its own rule: protect_admin
            return None
        return redirect_to_security(request)

    middleware.process_view = process_view  # type: ignore[attr-defined]  # called by Django
    return middleware


def redirect_to_security(request: Request) -> HttpResponse:
    if request.htmx:
        url = request.htmx.current_url_abs_path
    else:
        url = request.get_full_path() if request.method == "GET" else None
    if url_has_allowed_host_and_scheme(url, allowed_hosts=None):
        request.session[factors.NEXT_PAGE] = url
    security = resolve_url("accounts:security")
    return HttpResponseClientRedirect(security) if request.htmx else redirect(security)


def protect_admin(get_response: GetResponse) -> GetResponse:
    """Django admin needs a second factor (ADMIN_MFA_REQUIRED), and a recent confirmation of identity for every change.

    After the confirmation, the suspended change is replayed.
    """

    def middleware(request: Request) -> HttpResponse:
        return get_response(request)

    def process_view(request: Request, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        match, user = request.resolver_match, request.user
        if match is None or "admin" not in match.app_names or not user.is_authenticated or not user.is_staff:
            return None
        name = match.url_name or ""
        if name in ("login", "logout", "jsi18n"):
            return None
        if settings.ADMIN_MFA_REQUIRED and not user.has_factor:  # type: ignore[attr-defined]  # set by the backend
            message = _("Django admin requires a second factor. Add a passkey or an authenticator app, then try again.")
            messages.warning(request, message)
            return redirect_to_security(request)
        # A suspended request is stored in the session. Passwords must not be, so they need the confirmation first.
        has_password = "password" in name or name == "accounts_user_add"
        if (request.method == "POST" or has_password) and not confirmation.is_recent(request):
            return confirmation.request_confirmation(request, keep=not has_password)
        return None

    middleware.process_view = process_view  # type: ignore[attr-defined]  # called by Django
    return middleware
