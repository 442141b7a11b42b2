"""Re-authentication: whether the user has recently signed in or confirmed their identity."""

import time

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.reauthentication import suspend_request
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, resolve_url
from django.utils.http import urlencode

CONFIRMED_AT = "confirmed_at"
# After this, sensitive actions ask for the password or a second factor again.
VALID_SECONDS = 15 * 60


def confirm(request: HttpRequest) -> None:
    request.session[CONFIRMED_AT] = time.time()


def is_recent(request: HttpRequest) -> bool:
    # A confirmation in the future comes from a clock that was ahead. Its age is unknown.
    return 0 <= time.time() - request.session.get(CONFIRMED_AT, 0) < VALID_SECONDS


def request_confirmation(request: HttpRequest, *, keep: bool = True) -> HttpResponse:
    """Redirect to re-authentication. The suspended request is replayed afterwards unless `keep=False`."""
    methods = get_adapter().get_reauthentication_methods(request.user)
    url = methods[0]["url"] if methods else resolve_url("account_login")
    if keep:
        return suspend_request(request, url)
    return redirect(f"{url}?{urlencode({REDIRECT_FIELD_NAME: request.get_full_path()})}")
