"""Whether the person has lately shown who they are: by signing in, or by confirming it once more."""

import time

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.reauthentication import suspend_request
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, resolve_url
from django.utils.http import urlencode

CONFIRMED = "confirmed_at"
# After so long a costly act of an administrator asks for the password or a factor again.
SECONDS = 15 * 60


def confirm(request: HttpRequest) -> None:
    request.session[CONFIRMED] = time.time()


def is_fresh(request: HttpRequest) -> bool:
    # A confirmation in the future is of a clock that was ahead, so nobody knows how old it is.
    return 0 <= time.time() - request.session.get(CONFIRMED, 0) < SECONDS


def ask(request: HttpRequest, *, keep: bool = True) -> HttpResponse:
    """To where it is confirmed. What was sent goes on by itself afterwards, unless it is not to be kept until then."""
    ways = get_adapter().get_reauthentication_methods(request.user)
    where = ways[0]["url"] if ways else resolve_url("account_login")
    if keep:
        return suspend_request(request, where)
    return redirect(f"{where}?{urlencode({REDIRECT_FIELD_NAME: request.get_full_path()})}")
