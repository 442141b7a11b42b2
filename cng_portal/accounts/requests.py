"""The type of a request after the middleware."""

from django.http import HttpRequest
from django_htmx.middleware import HtmxDetails

from .models import User


class Request(HttpRequest):
    """A request with the attributes that Django's, django-htmx's and our own middleware set."""

    user: User
    htmx: HtmxDetails
    impersonator: User | None
    section: str  # The menu's section, where the URL doesn't tell.
