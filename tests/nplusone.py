"""Fail every request of a test that loads rows one by one."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from zeal import zeal_context, zeal_ignore

SAFE = ("GET", "HEAD", "OPTIONS")


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def forbid(request: HttpRequest) -> HttpResponse:
        with zeal_context():
            if request.method in SAFE:
                return get_response(request)
            # A write loads each of its rows again once it holds the customer's lock, and so does allauth without one.
            with zeal_ignore([{"model": "*", "field": "get()"}, {"model": "account.EmailAddress"}]):
                return get_response(request)

    return forbid
