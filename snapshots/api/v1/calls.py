"""What the handlers of /api/v1 share: authentication, permissions, ETags, and pages of lists.

Cookies give no access, so CSRF can't happen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from hashlib import sha256
from typing import Any, cast

import structlog
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from ninja import Field, Schema
from ninja.security import APIKeyHeader, HttpBasicAuth, HttpBearer

from billing.access import billed_customer
from billing.pricing.prices import Quote
from cng_portal.accounts.credentials import read_token, record_use, sign_in
from cng_portal.accounts.models import Act, ApplicationCredential, Customer, Role
from cng_portal.accounts.services import lock_customer
from cng_portal.accounts.signin.sessions import get_address
from cng_portal.common import preferences
from cng_portal.common.ids import parse_uuid
from cng_portal.common.money import to_decimal
from cng_portal.common.pages import Order

from ..calls import MAX_BODY, CredentialCall
from .idempotency import run_once
from .problems import Problem, invalid

logger = structlog.stdlib.get_logger(__name__)

MAX_ROWS = 100


class Call(CredentialCall):
    """A request with a valid credential, in `request.auth`."""

    def require_prices(self) -> None:
        """Raise PermissionDenied unless the credential may see prices, which a viewer's may, too."""
        if not self.sees_prices:
            self.require(Act.BILL)

    def get_billed_customer(self) -> Customer:
        """Return the project's customer. Raises a 403 unless as an owner, and a 404 where the pages show no bills."""
        self.require(Act.BILL)
        if self.credential.role != Role.OWNER:
            raise Problem(403, _("Usage and invoices need a credential with the role Owner."))
        customer = billed_customer(self.user)
        if customer is None or customer.pk != self.project.customer_id:
            raise Http404
        return customer


def call_of(request: HttpRequest) -> Call:
    return cast(Call, request.auth)  # type: ignore[attr-defined]


def begin(request: HttpRequest, credential: ApplicationCredential | None, at: datetime) -> Call | None:
    """Return the call, or None for a 401. Raises a 400 or 413 for a request that no handler could take."""
    if credential is None:
        logger.warning("credential.rejected")
        return None
    record_use(credential, address=get_address(request), at=at)
    if any("\0" in text for text in (request.path, *request.GET.values())):  # PostgreSQL refuses it in queries
        raise Problem(400, _("The URL contains a null character."))
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise Problem(413, _("The body has more than %(limit)s bytes.") % {"limit": MAX_BODY})
    return Call(request=request, credential=credential, at=at)


def use_token(request: HttpRequest, token: str | None) -> Call | None:
    at = timezone.now()
    return begin(request, read_token(token, address=get_address(request), at=at)[0], at) if token else None


class Bearer(HttpBearer):
    def authenticate(self, request: HttpRequest, token: str) -> Call | None:
        return use_token(request, token)


class Token(APIKeyHeader):
    param_name = "X-Auth-Token"

    def authenticate(self, request: HttpRequest, key: str | None) -> Call | None:
        return use_token(request, key)


class Secret(HttpBasicAuth):
    """The credential's ID and secret themselves, as `curl -u` sends them."""

    def authenticate(self, request: HttpRequest, username: str, password: str) -> Call | None:
        at, pk = timezone.now(), parse_uuid(username)
        return begin(request, sign_in(pk, password, address=get_address(request), at=at) if pk else None, at)


def handle_call(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse unknown parameters, format messages for the user, and make writes idempotent."""

    @wraps(handler)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        call = call_of(request)
        filters = kwargs.get("filters")
        unknown = request.GET.keys() - (type(filters).model_fields.keys() if filters else ())
        if unknown:
            name = min(unknown)
            raise invalid(name, _("“%(name)s” is not a parameter of this URL.") % {"name": name})

        def respond() -> HttpResponse:
            result = handler(request, *args, **kwargs)
            return result if isinstance(result, HttpResponse) else JsonResponse(result)

        with preferences.localized_for(call.user):
            if request.method == "GET":
                return respond()
            return run_once(request, call.credential, respond, at=call.at)

    return wrapper


def etag_of(content: dict[str, Any]) -> str:
    """Return the ETag of an object, which ignores its price and progress, because they change without a write."""
    stored = {name: value for name, value in content.items() if name not in ("price", "progress")}
    return f'"{sha256(repr(sorted(stored.items())).encode()).hexdigest()[:32]}"'


def with_etag(content: dict[str, Any], *, status: int = 200, **headers: str) -> JsonResponse:
    return JsonResponse(content, status=status, headers={"ETag": etag_of(content), **headers})


def check_match(request: HttpRequest, content: dict[str, Any]) -> None:
    """Raise a 412 if the request has an If-Match that doesn't contain the ETag of `content`."""
    wanted = request.headers.get("If-Match", "*")
    current = etag_of(content)
    if wanted.strip() != "*" and current not in [part.strip() for part in wanted.split(",")]:
        raise Problem(
            412, _("The object has changed since you read it. Read it again."), "changed", headers={"ETag": current}
        )


@contextmanager
def matching(call: Call, describe: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """With If-Match, check it and run the body in one transaction, holding the customer's lock."""
    if "If-Match" not in call.request.headers:
        yield
        return
    with transaction.atomic():
        lock_customer(call.project.customer_id)
        check_match(call.request, describe())
        yield


class Paging(Schema):
    limit: int = Field(20, ge=1, le=MAX_ROWS, description="Rows in a page, at most 100.")
    cursor: str = Field("", max_length=400, description="`next` of the previous page.")
    fields: str = Field(
        "",
        max_length=400,
        description="The fields to return, separated by commas; all by default. `id` is always returned.",
    )


def page_of(
    rows: QuerySet[Any],
    order: Order,
    paging: Paging,
    describe: Callable[[list[Any]], list[dict[str, Any]]],
    model: type[Schema],
) -> dict[str, Any]:
    """Return a page of the list as {"items": […], "next": cursor or None}."""
    wanted = parse_fields(paging.fields, model)
    if paging.cursor:
        cursor = order.read_cursor(cast(type[Model], rows.model), paging.cursor)
        if cursor is None:
            raise invalid("cursor", _("This is not a cursor of this list."))
        rows = rows.filter(order.after(*cursor))
    page = list(rows.order_by(*order.fields())[: paging.limit + 1])
    more, page = len(page) > paging.limit, page[: paging.limit]
    items = describe(page)
    if wanted:
        items = [{name: value for name, value in item.items() if name in wanted} for item in items]
    return {"items": items, "next": order.cursor_of(page[-1]) if more else None}


def parse_fields(text: str, model: type[Schema]) -> set[str]:
    """Return the names of the fields, none for all. Raises a 422 for one that the model doesn't have."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := names - model.model_fields.keys():
        raise invalid("fields", _("“%(name)s” is not a field.") % {"name": min(unknown)})
    return names | {"id"} if names else set()


def price(quote: Quote | None) -> dict[str, str] | None:
    if quote is None:
        return None
    return {
        "hourly": amount(quote.hourly_micro),
        "monthly": amount(quote.monthly_micro),
        "currency": quote.currency,
    }


def amount(micro: int) -> str:
    """Return the amount as a decimal number without trailing zeros."""
    return f"{to_decimal(micro).normalize():f}"
