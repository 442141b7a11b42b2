"""The frame of the API's views: who calls, from which token, with which body, and how errors are written.

A view here takes a `Call` and returns JSON. There is no session: a cookie gives no access, so CSRF can't happen.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from http import HTTPStatus
from typing import Any
from uuid import UUID

import structlog
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt

from cng_portal.accounts.credentials import read_token, record_use
from cng_portal.accounts.signin.sessions import get_address
from cng_portal.common import preferences
from cng_portal.common.decorators import factor_not_required
from cng_portal.common.log_context import get_request_id
from cng_portal.inventory.models import Location

from ... import errors
from ..calls import MAX_BODY, CredentialCall

logger = structlog.stdlib.get_logger(__name__)

JSON = "application/json"
MIN_VERSION, MAX_VERSION = (3, 0), (3, 40)
# Cinder's names of its errors.
FAULTS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    406: "computeFault",
    409: "conflictingRequest",
    413: "overLimit",
    500: "computeFault",
    503: "serviceUnavailable",
    507: "computeFault",
}
STATUS_OF_REFUSALS = [
    (errors.RateLimited, 413),
    (errors.QuotaExceeded, 413),
    (errors.OutOfSpace, 413),
    (errors.InsufficientCredit, 403),
    (errors.NotSold, 403),
    (errors.ActionRefused, 400),
]


class Fault(Exception):
    """An error for the client, which reads the message."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def bad_request(message: str) -> Fault:
    return Fault(400, message)


def not_found(label: str) -> Fault:
    """The same for what is missing and what belongs to others."""
    return Fault(404, _("%(label)s could not be found.") % {"label": label})


@dataclass(kw_only=True)
class Call(CredentialCall):
    """A request of a valid token. `location` and `version` are of a request to Block Storage."""

    expires_at: datetime  # the token's
    location: Location | None = None
    version: tuple[int, int] = MAX_VERSION
    query: dict[str, str] = field(default_factory=dict)

    def read(self, key: str, **fields: Any) -> dict[str, Any]:
        """Return the fields of the object `key` in the body that aren't null.

        `fields` maps each name to its types; one that maps to None is known to clients, and only null is accepted.
        Raises a 400 for anything else.
        """
        body = read_body(self.request)
        if body.keys() != {key} or not isinstance(body[key], dict):
            raise bad_request(_("The body must be an object with “%(key)s” alone.") % {"key": key})
        values = {}
        for name, value in body[key].items():
            if name not in fields:
                raise bad_request(_("“%(name)s” is not a field of “%(key)s”.") % {"name": name, "key": key})
            if value is None or (fields[name] is None and value in ("", False)):
                continue
            if fields[name] is None:
                raise bad_request(_("“%(name)s” isn't supported.") % {"name": name})
            types = fields[name] if isinstance(fields[name], tuple) else (fields[name],)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise bad_request(_("“%(name)s” has the wrong type.") % {"name": name})
            values[name] = value
        return values


Handler = Callable[..., Any]


def read_body(request: HttpRequest) -> dict[str, Any]:
    """Return the JSON object of the body. Raises a 413 for a large one, a 400 for anything but an object."""
    try:
        length = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = 0
    if length > MAX_BODY:
        raise Fault(413, _("The body has more than %(limit)s bytes.") % {"limit": MAX_BODY})
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise bad_request(_("The body must be a JSON object."))
    return body


def respond(fault: Fault) -> JsonResponse:
    return respond_cinder(fault.status, fault.message, **fault.headers)


def respond_cinder(status: int, message: str, **headers: str) -> JsonResponse:
    return JsonResponse({FAULTS[status]: {"code": status, "message": message}}, status=status, headers=headers)


def respond_keystone(status: int, message: str) -> JsonResponse:
    title = HTTPStatus(status).phrase
    return JsonResponse({"error": {"code": status, "title": title, "message": message}}, status=status)


def accepted(content: dict[str, Any] | None = None) -> HttpResponse:
    return HttpResponse(status=202, content_type=JSON) if content is None else JsonResponse(content, status=202)


def fault_of(error: Exception) -> Fault:
    """Return the fault for an error of a service or form. Raises the error if it isn't the client's."""
    match error:
        case Fault():
            return error
        case errors.NameTaken(suggestion=suggestion) if suggestion:
            return Fault(409, str(error))
        case errors.RateLimited():
            return Fault(413, str(error), **{"Retry-After": str(error.retry_after(timezone.now()))})
        case errors.ActionRefused():
            return Fault(next(code for kind, code in STATUS_OF_REFUSALS if isinstance(error, kind)), str(error))
        case PermissionDenied():
            return Fault(403, str(error) or _("You can't do this."))
        case ValidationError():
            return bad_request(" ".join(error.messages))
    raise error


def public(**handlers: Handler) -> Handler:
    """Make a view of handlers by HTTP method, for everybody. Each takes the request and returns JSON or a response."""

    @factor_not_required
    @login_not_required
    @csrf_exempt
    def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        handler = handlers.get("GET" if request.method == "HEAD" else str(request.method))
        try:
            if handler is None:
                raise Fault(405, _("The method isn't allowed here."), Allow=", ".join(handlers))
            result = handler(request, **kwargs)
        except Exception as error:
            result = respond(fault_of(error))
        response = to_response(result)
        response["X-OpenStack-Request-Id"] = f"req-{get_request_id()}"  # OpenStack's clients show it with an error.
        return response

    return view


def to_response(result: HttpResponse | dict[str, Any]) -> HttpResponse:
    return result if isinstance(result, HttpResponse) else JsonResponse(result)


def authenticated(handler: Handler) -> Handler:
    """Turn a handler of a `Call` into one of a request. Without a valid token, the answer is Keystone's 401."""

    @wraps(handler)
    def wrapper(request: HttpRequest, **kwargs: Any) -> Any:
        if any("\0" in text for text in (request.path, *request.GET.values())):  # PostgreSQL refuses it in queries
            raise bad_request(_("The URL contains a null character."))
        call = authenticate(request)
        if call is None:
            return unauthorized()
        with preferences.localized_for(call.user):
            return handler(call, **kwargs)

    return wrapper


def authenticate(request: HttpRequest) -> Call | None:
    address, at = get_address(request), timezone.now()
    credential, expires_at = read_token(request.headers.get("X-Auth-Token", ""), address=address, at=at)
    if credential is None or expires_at is None:
        return None
    record_use(credential, address=address, at=at)
    return Call(request=request, credential=credential, expires_at=expires_at, at=at, query=request.GET.dict())


def unauthorized() -> JsonResponse:
    response = respond_keystone(401, _("The request you have made requires authentication."))
    response["WWW-Authenticate"] = "Keystone uri=/identity/v3"
    return response


def of_project(**handlers: Handler) -> Handler:
    """Make a view of Block Storage in the token's project. The handlers take a `Call`."""

    def in_project(handler: Handler) -> Handler:
        def wrapper(call: Call, location: str, project: str, **kwargs: Any) -> Any:
            try:
                call.version = read_version(call.request)
                check_version(call.version)
                call.location = Location.objects.filter(pk=location).first()
                if call.location is None or parse_id(project) != call.project.pk:
                    raise not_found(_("The project or region"))
                response = to_response(handler(call, **kwargs))
            except Exception as error:
                response = respond(fault_of(error))
            response["OpenStack-API-Version"] = f"volume {to_text(call.version)}"
            patch_vary_headers(response, ["OpenStack-API-Version"])
            return response

        return wrapper

    return public(**{method: authenticated(in_project(handler)) for method, handler in handlers.items()})


def to_text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def read_version(request: HttpRequest) -> tuple[int, int]:
    """Return the microversion that the client asked for, 3.0 by default."""
    for part in request.headers.get("OpenStack-API-Version", "").split(","):
        service, _space, text = part.strip().partition(" ")
        if service != "volume":
            continue
        if text == "latest":
            return MAX_VERSION
        major, _dot, minor = text.partition(".")
        if not (major.isdecimal() and minor.isdecimal() and len(text) < 10):
            raise bad_request(_("“%(version)s” is not a version.") % {"version": text})
        return int(major), int(minor)
    return MIN_VERSION


def check_version(version: tuple[int, int]) -> None:
    """Raise a 406 for a microversion that isn't served."""
    if not MIN_VERSION <= version <= MAX_VERSION:
        raise Fault(
            406,
            _("Version %(version)s is not supported by the API. Minimum is %(minimum)s and maximum is %(maximum)s.")
            % {"version": to_text(version), "minimum": to_text(MIN_VERSION), "maximum": to_text(MAX_VERSION)},
        )


def parse_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
