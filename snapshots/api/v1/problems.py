"""Errors of /api/v1 as problem documents (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, JsonResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from ninja import Field, Schema
from ninja import errors as ninja

from cng_portal.accounts.roles import ActionRefused as RoleRefused
from cng_portal.common.log_context import get_request_id

from ... import errors

REFERENCE = "/profile/api/v1/"
# The reference has an anchor for each.
TYPES: dict[type[Exception], str] = {
    errors.NameTaken: "name-taken",
    errors.QuotaExceeded: "quota-exceeded",
    errors.OutOfSpace: "out-of-space",
    errors.NotSold: "not-sold",
    errors.InsufficientCredit: "insufficient-credit",
    errors.PriceChanged: "price-changed",
    errors.SourceUnavailable: "source-unavailable",
    errors.DamagedSnapshot: "damaged",
    errors.LastRestorePoint: "last-restore-point",
    errors.InvalidState: "invalid-state",
}
# What each status means, for the documentation.
STATUSES = {
    400: "The body isn't JSON, or the request isn't possible.",
    401: "No valid token or secret.",
    403: "The credential lacks the permission, or its role is too low.",
    404: "It doesn't exist in this project.",
    405: "The method isn't allowed here.",
    409: "The state of the account or object doesn't allow it; `type` says why. Nothing was done.",
    412: "The object has changed: its ETag isn't that of If-Match.",
    413: "The body has more than 64 KiB.",
    422: "An unknown or invalid field, or an Idempotency-Key that was used for another request.",
    429: "Too many such requests within an hour. Retry-After says when to try again.",
    500: "A fault of the portal. Quote the request's ID if you ask for help.",
}


class FieldError(Schema):
    field: str
    message: str


class ProblemDocument(Schema):
    type: str = Field(description="A link to the explanation of this kind of problem, or about:blank.")
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldError] = Field(default=[], description="What is wrong with which field.")
    suggestion: str = Field(default="", description="A free name, if the name is taken.")


class Problem(Exception):
    """An error for the client. `name` is the last part of its type, "" if the status says everything."""

    def __init__(
        self, status: int, detail: str, name: str = "", *, headers: dict[str, str] | None = None, **others: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.name = status, detail, name
        self.headers, self.others = headers or {}, others


def respond(problem: Problem) -> JsonResponse:
    content = {
        "type": f"{REFERENCE}#{problem.name}" if problem.name else "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": get_request_id(),
    } | problem.others
    return JsonResponse(
        content, status=problem.status, headers=problem.headers, content_type="application/problem+json"
    )


def respond_plain(status: int, message: str) -> JsonResponse:
    return respond(Problem(status, message))


def problem_of(error: Exception) -> Problem | None:
    """Return the problem for an error of a service or of the input, None if it is a fault of the portal."""
    match error:
        case Problem():
            return error
        case errors.RateLimited():
            seconds = str(error.retry_after(timezone.now()))
            return Problem(429, str(error), "rate-limited", headers={"Retry-After": seconds})
        case errors.NameTaken(suggestion=suggestion) if not suggestion:  # The name itself is invalid.
            return invalid("name", str(error))
        case errors.NameTaken():
            return Problem(409, str(error), "name-taken", suggestion=error.suggestion)
        case errors.ActionRefused():
            name = next((name for kind, name in TYPES.items() if isinstance(error, kind)), "")
            if error.field and not name:
                return invalid(error.field, str(error))
            return Problem(409, str(error), name or "refused")
        case RoleRefused():
            return Problem(409, str(error), "refused")
        case PermissionDenied():
            return Problem(403, str(error) or _("You can't do this."))
        case ValidationError():
            return Problem(422, " ".join(error.messages))
        case Http404():
            return Problem(404, _("There is no such object in this project."))
        case ninja.AuthenticationError():
            message = _("Sign in with a token or with the ID and secret of an application credential.")
            return Problem(401, message, headers={"WWW-Authenticate": 'Bearer, Basic realm="API"'})
        case ninja.ValidationError():
            return explain_invalid_input(error)
        case ninja.HttpError():
            return Problem(error.status_code, _("The body must be JSON."))
    return None


def invalid(field: str, message: str) -> Problem:
    return Problem(422, message, errors=[{"field": field, "message": message}])


def explain_invalid_input(invalid_input: ninja.ValidationError) -> Problem:
    """Name each invalid field by its path, without the names of the handler's arguments."""
    errors = []
    for error in invalid_input.errors:
        source, *path = error["loc"]
        path = [str(part) for part in path if part not in ("values", "filters")]
        errors.append({"field": ".".join(path) or str(source), "message": str(error["msg"])})
    detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
    return Problem(422, detail, errors=errors)
