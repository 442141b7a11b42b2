"""/api/v1: the routers with their authentication and errors, and the OpenAPI schema that the reference is made from."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.translation import gettext as _
from ninja import NinjaAPI

from cng_portal.common.decorators import factor_not_required

from . import bills, inventory, operations, snapshots
from .calls import Bearer, Secret, Token, handle_call
from .problems import STATUSES, Problem, ProblemDocument, problem_of, respond

WRITES = ("post", "put", "patch", "delete")
HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "in": "header",
        "name": "Idempotency-Key",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": "A key of your choice, such as a UUID. Repeating it within 24 hours returns the first response.",
    },
    "If-Match": {
        "in": "header",
        "name": "If-Match",
        "required": False,
        "schema": {"type": "string"},
        "description": "The ETag that you read. If the object has changed since, the request is refused (412).",
    },
}


class Api(NinjaAPI):
    def on_exception(self, request: HttpRequest, exc: Any) -> HttpResponse:
        """Respond with a problem. Unexpected errors go on to Django, which logs them: see ../errors.py."""
        problem = problem_of(exc)
        if problem is None:
            raise exc
        return respond(problem)

    def get_openapi_operation_id(self, operation: Any) -> str:
        return str(operation.view_func.__name__)

    def get_openapi_schema(self, **kwargs: Any) -> Any:
        """Add what the handlers don't declare: the errors and headers of each operation."""
        schema = super().get_openapi_schema(**kwargs)
        problem = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= problem.pop("$defs") | {"Problem": problem}
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                operation["summary"] = operation["operationId"].replace("_", " ").capitalize()
                for status in error_statuses(path, method, operation["tags"]):
                    operation["responses"][status] = {"description": STATUSES[status], "content": content}
                if method in WRITES:
                    operation["parameters"].append(HEADERS["Idempotency-Key"])
                    if "{" in path:
                        operation["parameters"].append(HEADERS["If-Match"])
        return schema


def error_statuses(path: str, method: str, tags: list[str]) -> list[int]:
    """Return the statuses of an operation's errors, in ascending order."""
    is_write, has_id, is_quote = method in WRITES, "{" in path, "quotes" in path
    statuses = {400, 401, 403, 413, 422, 500}
    if is_write or has_id or is_quote or tags == ["Bills"]:
        statuses.add(404)
    if is_write or is_quote:
        statuses.add(409)
    if is_write:
        statuses.add(429)
    if is_write and has_id:
        statuses.add(412)
    return sorted(statuses)


api = Api(
    title="1CNG portal",
    version="1",
    description="What OpenStack's API doesn't cover: prices, quotes, progress, locks, the recycle bin, bills, activity.",
    openapi_url=None,
    docs_url=None,
    urls_namespace="v1",
    auth=[Bearer(), Token(), Secret()],
)
api.add_decorator(handle_call)
for module in (inventory, snapshots, operations, bills):
    api.add_router("", module.router)


@factor_not_required
@login_not_required
def openapi(request: HttpRequest) -> HttpResponse:
    if request.method not in ("GET", "HEAD"):
        return not_allowed(["GET"])
    return JsonResponse(api.get_openapi_schema())


def not_allowed(methods: Iterable[str]) -> HttpResponse:
    allowed = {*methods, "HEAD"} if "GET" in methods else methods
    headers = {"Allow": ", ".join(sorted(allowed))}
    return respond(Problem(405, _("The method isn't allowed here."), headers=headers))


def public(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let a view of ninja be called without a session, serve HEAD as GET, and respond to a wrong method with a problem."""

    @factor_not_required
    @login_not_required
    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        is_head = request.method == "HEAD"
        if is_head:
            request.method = "GET"
        try:
            response = view(request, *args, **kwargs)
        finally:
            if is_head:
                request.method = "HEAD"  # The server then leaves out the body.
        return not_allowed(response["Allow"].split(", ")) if response.status_code == 405 else response

    return wrapper
