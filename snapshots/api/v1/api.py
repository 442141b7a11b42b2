"""/api/v1, put together: authentication, errors, the handlers, and the schema that the documentation is made from."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.translation import gettext as _
from ninja import NinjaAPI

from cng_portal.common.decorators import factor_not_required

from . import bills, inventory, operations, snapshots
from .calls import Bearer, Secret, Token, framed
from .problems import STATUSES, Problem, ProblemDocument, problem_of, respond

WRITES = ("post", "put", "patch", "delete")
HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "in": "header",
        "name": "Idempotency-Key",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": "Of your choice, such as a UUID. The same request again within a day is answered as the first.",
    },
    "If-Match": {
        "in": "header",
        "name": "If-Match",
        "required": False,
        "schema": {"type": "string"},
        "description": "The ETag that you read. If the object has changed since, nothing is done (412).",
    },
}


class Api(NinjaAPI):
    def on_exception(self, request: HttpRequest, exc: Any) -> HttpResponse:
        """Answer with a problem. A fault of the portal goes on to Django, which logs it: see ../errors.py."""
        problem = problem_of(exc)
        if problem is None:
            raise exc
        return respond(problem)

    def get_openapi_operation_id(self, operation: Any) -> str:
        return str(operation.view_func.__name__)

    def get_openapi_schema(self, **kwargs: Any) -> Any:
        """Add the errors and headers that all operations have in common."""
        schema = super().get_openapi_schema(**kwargs)
        schema["components"]["schemas"]["Problem"] = ProblemDocument.model_json_schema(
            ref_template="#/components/schemas/{model}"
        )
        schema["components"]["schemas"] |= schema["components"]["schemas"]["Problem"].pop("$defs")
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                operation["summary"] = operation["operationId"].replace("_", " ").capitalize()
                is_write, is_of_object = method in WRITES, "{" in path
                statuses = [400, 401, 403, 413, 422, 500]
                statuses += (
                    [404] if is_of_object or is_write or "quotes" in path or operation["tags"] == ["Bills"] else []
                )
                statuses += [409] if is_write or "quotes" in path else []
                statuses += [429] if is_write else []
                statuses += [412] if is_write and is_of_object else []
                for status in sorted(statuses):
                    operation["responses"][status] = {"description": STATUSES[status], "content": content}
                if is_write:
                    operation["parameters"].append(HEADERS["Idempotency-Key"])
                if is_write and is_of_object:
                    operation["parameters"].append(HEADERS["If-Match"])
        return schema


api = Api(
    title="1CNG portal",
    version="1",
    description="What OpenStack's API has no word for: prices, quotes, progress, locks, the recycle bin, bills, activity.",
    openapi_url=None,
    docs_url=None,
    urls_namespace="v1",
    auth=[Bearer(), Token(), Secret()],
)
api.add_decorator(framed)
for module in (inventory, snapshots, operations, bills):
    api.add_router("", module.router)


@factor_not_required
@login_not_required
def openapi(request: HttpRequest) -> HttpResponse:
    if request.method not in ("GET", "HEAD"):
        return not_allowed("GET")
    return JsonResponse(api.get_openapi_schema())


def not_allowed(allowed: str) -> HttpResponse:
    return respond(Problem(405, _("The method isn't allowed here."), headers={"Allow": allowed}))


def public(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let a view of ninja be reached without a session, and answer a wrong method with a problem."""

    @factor_not_required
    @login_not_required
    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = view(request, *args, **kwargs)
        return not_allowed(response["Allow"]) if response.status_code == 405 else response

    return wrapper
