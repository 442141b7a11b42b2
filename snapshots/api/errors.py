"""Django's handler404 and handler500: below an API's paths, errors outside of its views are JSON in that API's format.

Logs and signals are the same as for pages, because Django calls these handlers after them.
"""

import sys
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.views import defaults

from cng_portal.common import full_disk
from cng_portal.common.log_context import get_request_id

from .openstack.calls import respond_cinder, respond_keystone
from .v1.problems import respond_plain

# By the prefix of the path.
FORMATS: dict[str, Callable[[int, str], HttpResponse]] = {
    "/identity": respond_keystone,
    "/volume/": respond_cinder,
    "/api/": respond_plain,
}


def api_error(request: HttpRequest, status: int, message: str) -> HttpResponse | None:
    """Return the error in the format of the path's API, None for a page."""
    formats = (respond for prefix, respond in FORMATS.items() if request.path.startswith(prefix))
    return next((respond(status, message) for respond in formats), None)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return api_error(request, 404, _("There is nothing at this URL.")) or defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    if full_disk.is_cause_of(sys.exc_info()[1]):
        response = api_error(request, 507, _("The portal's disk is full. Nothing was changed."))
    else:
        message = _("Something went wrong, and we have been told. Quote the request %(id)s if you ask for help.")
        response = api_error(request, 500, message % {"id": get_request_id()})
    return response or full_disk.server_error(request)
