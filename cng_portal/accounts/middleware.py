"""Small middleware that every request passes."""

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
    """An expired session must not swap the sign-in page into a fragment: send the whole browser there, and back."""

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
        with use_origin(Origin(address=sessions.address_of(request), device=sessions.device_of(request))):
            return get_response(request)

    return middleware


def impersonation_is_read_only(get_response: GetResponse) -> GetResponse:
    """An administrator who looks as somebody else is that person from here on, but `request.impersonator` tells."""

    def middleware(request: Request) -> HttpResponse:
        impersonation.look(request)
        return get_response(request)

    return middleware


def personal_preferences(get_response: GetResponse) -> GetResponse:
    """Times are stored in UTC and shown in the person's zone, else the customer's; dates are written as the person wants."""

    def middleware(request: Request) -> HttpResponse:
        with preferences.as_read_by(request.user if request.user.is_authenticated else None):
            return get_response(request)

    return middleware


def session_is_seen(get_response: GetResponse) -> GetResponse:
    """Once in a while a session is written down as seen; one in which nobody signed in through the door never is. One
    that nobody has used for too long, or that began too long ago, is over before anything is shown.
    """

    def middleware(request: Request) -> HttpResponse:
        if sessions.is_over(request):
            sessions.end_over(request)
        response = get_response(request)
        sessions.see(request)
        return response

    return middleware


def factor_door(get_response: GetResponse) -> GetResponse:
    """Who needs a second factor and has none (MFA_REQUIRED) gets no further than to where one is added, and from there to
    the page they wanted.
    """

    def middleware(request: Request) -> HttpResponse:
        return get_response(request)

    def process_view(request: Request, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        match, user = request.resolver_match, request.user
        if match is None or not user.is_authenticated or request.impersonator:
            return None
        if not getattr(view, "is_factor_required", True) or match.view_name.startswith(("account_", "mfa_")):
            return None
        if not factors.is_missing(user):
            request.session.pop(factors.WANTED, None)
            return None
        if "admin" in match.app_names:  # which has a door of its own
            return None
        return to_where_factors_are_added(request)

    middleware.process_view = process_view  # type: ignore[attr-defined]  # where Django looks for it
    return middleware


def to_where_factors_are_added(request: Request) -> HttpResponse:
    if request.htmx:
        wanted = request.htmx.current_url_abs_path
    else:
        wanted = request.get_full_path() if request.method == "GET" else None
    if url_has_allowed_host_and_scheme(wanted, allowed_hosts=None):
        request.session[factors.WANTED] = wanted
    security = resolve_url("accounts:security")
    return HttpResponseClientRedirect(security) if request.htmx else redirect(security)


def admin_door(get_response: GetResponse) -> GetResponse:
    """Django admin is for who has a second factor, where ADMIN_MFA_REQUIRED says so; what is sent there changes something,
    and is for who has lately signed in or confirmed it. What was typed goes on by itself after the confirmation.
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
            sentence = _(
                "Django admin needs a second factor here. Add a passkey or an authenticator app, then come back."
            )
            messages.warning(request, sentence)
            return to_where_factors_are_added(request)
        # a password that is typed is not kept until the confirmation, which is asked for before the form is shown
        has_password = "password" in name or name == "accounts_user_add"
        if (request.method == "POST" or has_password) and not confirmation.is_fresh(request):
            return confirmation.ask(request, keep=not has_password)
        return None

    middleware.process_view = process_view  # type: ignore[attr-defined]  # where Django looks for it
    return middleware
