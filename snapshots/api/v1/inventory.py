"""Locations with their prices, quotes, and volumes."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext as _
from ninja import Query, Router

from billing.models import PACKAGE_KINDS
from billing.pricing.prices import PriceList
from cng_portal.common.names import fold_name
from cng_portal.common.pages import Order
from cng_portal.inventory.models import Location, Volume

from ...volumes.charges import quote_volumes
from ...volumes.services import machine_of
from . import schemas
from .calls import Call, amount, call_of, page_of, price, with_etag
from .problems import Problem

router = Router()
NEWEST = Order("", "created_at", descending=True)


@router.get("/locations", response=schemas.page_schema(schemas.Location), url_name="locations", tags=["Prices"])
def list_locations(request: HttpRequest) -> Any:
    """List the open locations, and what each service costs there."""
    call = call_of(request)
    prices = PriceList.load() if call.sees_prices else PriceList({})
    currency = call.project.customer.currency
    content = [
        {
            "id": location.pk,
            "city": location.city,
            "country": location.country,
            "region": location.region,
            "prices": [
                {"kind": kind, "rate": amount(rate), "currency": currency}
                for kind in PACKAGE_KINDS
                if (rate := prices.sold_rate(kind, location.pk, currency, call.at)) is not None
            ],
        }
        for location in Location.objects.active().order_by("pk")
    ]
    return {"items": content, "next": None}


@router.get("/quotes", response=schemas.Quote, url_name="quotes", tags=["Prices"])
def quote(request: HttpRequest, filters: Query[schemas.QuoteFilters]) -> Any:
    """Return the price of a size, as it would be charged from now on."""
    call = call_of(request)
    call.require_prices()
    location = get_object_or_404(Location.objects.active(), pk=filters.location)
    currency = call.project.customer.currency
    prices = PriceList.load([location.pk])
    if filters.kind not in PACKAGE_KINDS or prices.sold_rate(filters.kind, location.pk, currency, call.at) is None:
        raise Problem(409, _("This isn't sold in the location."), "not-sold")
    priced = prices.quote(filters.kind, location.pk, currency, call.at, size_gb=filters.size_gb)
    assert priced is not None  # because it is sold
    return {
        "location": location.pk,
        "kind": priced.kind,
        "size_gb": priced.size_gb,
        "rate": amount(priced.rate_micro),
        "price": price(priced),
    }


def volumes_of(call: Call) -> QuerySet[Volume]:
    present = Volume.objects.visible_to(call.user).present().filter(project=call.project)
    return present.select_related("project__customer", "vm").prefetch_related("tags")


def describe_volumes(rows: Iterable[Volume], call: Call) -> list[dict[str, Any]]:
    rows = list(rows)
    quotes = quote_volumes(rows, at=call.at) if call.sees_prices else {}
    return [
        {
            "id": str(row.pk),
            "name": row.name,
            "state": row.state,
            "size_gb": row.size_gb,
            "location": row.location_id,
            "instance_id": vm.pk if (vm := machine_of(row)) else None,
            "note": row.note or "",
            "tags": [tag.name for tag in row.tags.all()],
            "created_at": row.created_at,
            "price": price(quotes.get(row.pk)),
        }
        for row in rows
    ]


@router.get("/volumes", response=schemas.page_schema(schemas.Volume), url_name="volumes", tags=["Volumes"])
def list_volumes(request: HttpRequest, filters: Query[schemas.VolumeFilters]) -> Any:
    """List volumes, the newest first."""
    call = call_of(request)
    rows = volumes_of(call)
    if filters.location:
        rows = rows.filter(location=filters.location)
    if filters.name:
        rows = rows.filter(name_key=fold_name(filters.name))
    return page_of(rows, NEWEST, filters, lambda page: describe_volumes(page, call), schemas.Volume)


@router.get("/volumes/{uuid:volume_id}", response=schemas.Volume, url_name="volume", tags=["Volumes"])
def show_volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """Show a volume. To create, grow, rename or delete volumes, use OpenStack's clients or the portal."""
    call = call_of(request)
    return with_etag(describe_volumes([get_object_or_404(volumes_of(call), pk=volume_id)], call)[0])
