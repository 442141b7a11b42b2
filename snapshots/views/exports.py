"""The lists of snapshots, backups and volumes as CSV: every row that the search and filters match, in the list's order.

Times are in the user's time zone; prices are decimals of the currency, per hour, and empty if it costs nothing.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from billing.pricing.prices import PriceList, Quote
from cng_portal.accounts.models import User
from cng_portal.common import money
from cng_portal.common.batches import BATCH_SIZE, batched
from cng_portal.common.responses import csv_response, redirect_with_query
from cng_portal.inventory.models import Tag, Volume
from snapshots import lists, protection
from snapshots.forms import SnapshotFilterForm, VolumeFilterForm
from snapshots.labels import tags_of
from snapshots.models import Kind, Snapshot, SnapshotQuerySet
from snapshots.volumes.charges import quote_volumes

from .common import price_of

SNAPSHOT_COLUMNS = [
    *("resource_uuid", "name", "state", "source", "project", "location", "gb", "created", "ready", "delete_after"),
    *("price_per_hour", "currency", "tags", "note"),
]
VOLUME_COLUMNS = [
    *("resource_uuid", "name", "state", "project", "location", "gb", "attached_to", "created", "protected"),
    *("price_per_hour", "currency", "tags", "note"),
]


@require_safe
def snapshots_csv(request: HttpRequest, kind: Kind) -> HttpResponse | StreamingHttpResponse:
    user = request.user
    form = SnapshotFilterForm(request.GET, kind=kind, user=user)
    if form.errors:
        return redirect_with_query(request, f"snapshots:{lists.LISTS[kind]}")
    related = ("project__customer", "location", "volume", "vm", "run__schedule")
    snapshots = Snapshot.objects.visible_to(user).filter(deleted_at=None, kind=kind).select_related(*related)
    return csv_response(lists.LISTS[kind].replace("_", "-"), SNAPSHOT_COLUMNS, snapshot_cells(form, snapshots, user))


@require_safe
def volumes_csv(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    form = VolumeFilterForm(request.GET, user=request.user)
    if form.errors:
        return redirect_with_query(request, "snapshots:volumes")
    volumes = Volume.objects.visible_to(request.user).present().select_related("project__customer", "location", "vm")
    return csv_response("volumes", VOLUME_COLUMNS, volume_cells(form, volumes))


def snapshot_cells(form: SnapshotFilterForm, snapshots: SnapshotQuerySet, user: User) -> Iterator[list[object]]:
    # Read here, because the rows are written after the request.
    zone, prices = timezone.get_current_timezone(), PriceList.load()
    narrowed = form.narrow(snapshots)

    def cells() -> Iterator[list[object]]:
        for batch in batched(narrowed.order_by(*form.order.fields()).iterator(BATCH_SIZE)):
            tags = tags_of(Snapshot, [snapshot.pk for snapshot in batch])
            for snapshot in batch:
                yield [
                    snapshot.pk,
                    snapshot.name,
                    snapshot.state,
                    snapshot.source.name if snapshot.source.project_id in user.roles else "",
                    snapshot.project.name,
                    snapshot.location_id,
                    snapshot.size_gb,
                    iso(snapshot.created_at, zone),
                    iso(snapshot.ready_at, zone),
                    snapshot.delete_after or "",
                    *price_cells(price_of(snapshot, prices), snapshot.project.customer.currency),
                    join(tags.get(snapshot.pk, [])),
                    snapshot.note or "",
                ]

    return cells()


def volume_cells(form: VolumeFilterForm, volumes: QuerySet[Volume]) -> Iterator[list[object]]:
    zone, now = timezone.get_current_timezone(), timezone.now()
    narrowed = form.narrow(volumes)

    def cells() -> Iterator[list[object]]:
        for batch in batched(narrowed.order_by(*lists.BY_NAME.fields()).iterator(BATCH_SIZE)):
            tags = tags_of(Volume, [volume.pk for volume in batch])
            points, quotes = protection.newest_restore_points(batch), quote_volumes(batch, at=now)
            for volume in batch:
                point = points.get(volume.pk)
                yield [
                    volume.pk,
                    volume.name,
                    volume.state,
                    volume.project.name,
                    volume.location_id,
                    volume.size_gb,
                    volume.vm.name if volume.vm else "",
                    iso(volume.created_at, zone),
                    iso(point.ready_at, zone) if point else "",
                    *price_cells(quotes.get(volume.pk), volume.project.customer.currency),
                    join(tags.get(volume.pk, [])),
                    volume.note or "",
                ]

    return cells()


def price_cells(quote: Quote | None, currency: str) -> list[Any]:
    """Return price and currency. The price is a number, because text that begins with a minus sign would be escaped."""
    return [money.to_decimal(quote.hourly_micro) if quote else "", currency]


def iso(instant: datetime | None, zone: Any) -> str:
    return instant.astimezone(zone).isoformat() if instant else ""


def join(tags: list[Tag]) -> str:
    return ", ".join(tag.name for tag in tags)
