"""Small middleware that every request passes."""

from collections.abc import Callable
from urllib.parse import urlsplit

from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
from django.utils import timezone
from django.utils.http import urlencode
from django_htmx.http import HttpResponseClientRedirect

GetResponse = Callable[[HttpRequest], HttpResponse]


def htmx_redirects_to_sign_in(get_response: GetResponse) -> GetResponse:
    """An expired session must not swap the sign-in page into a fragment: send the whole browser there, and back."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        sign_in = resolve_url("account_login")
        if request.htmx and response.status_code == 302 and urlsplit(response["Location"]).path == sign_in:
            here = request.htmx.current_url_abs_path or "/"
            return HttpResponseClientRedirect(f"{sign_in}?{urlencode({'next': here})}")
        return response

    return middleware


def customer_time_zone(get_response: GetResponse) -> GetResponse:
    """Times are stored in UTC and shown in the customer's zone."""

    def middleware(request: HttpRequest) -> HttpResponse:
        user = request.user
        customer = user.customer if user.is_authenticated else None
        with timezone.override(customer.zone if customer else None):
            return get_response(request)

    return middleware
