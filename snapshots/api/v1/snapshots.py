"""Snapshots and the recycle bin. Writes call the same services as the pages."""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from ninja import Query, Router

from billing.pricing.prices import PriceList
from cng_portal.accounts.models import Act
from cng_portal.common.names import fold_name
from cng_portal.common.pages import Order
from cng_portal.inventory.models import VirtualMachine, Volume

from ... import checks, services
from ...labels import change_labels, clean_note
from ...locks import get_locks, lock_snapshot
from ...models import Operation, Snapshot, SnapshotQuerySet
from ...recycle_bin import put_back
from ...restores import request_restore
from ...views.common import price_of
from . import schemas
from .calls import Call, call_of, check_match, matching, page_of, price, with_etag
from .operations import describe_operations, percent
from .problems import invalid

router = Router(tags=["Snapshots"])
SnapshotPage = schemas.page_schema(schemas.Snapshot)
NEWEST = Order("", "created_at", descending=True)
NEXT_ERASED = Order("", "bin_until")
RELATED = ("project__customer", "location", "volume", "vm", "run__schedule")


def snapshots_of(call: Call) -> SnapshotQuerySet:
    own = Snapshot.objects.visible_to(call.user).filter(customer=call.project.customer_id, project=call.project)
    return own.select_related(*RELATED).prefetch_related("tags")


def get_snapshot(call: Call, snapshot_id: UUID, *, in_bin: bool = False) -> Snapshot:
    """Return the snapshot, unless it is gone for good. `in_bin` also finds one in the recycle bin."""
    rows = snapshots_of(call)
    return get_object_or_404(rows.in_storage() if in_bin else rows.filter(deleted_at=None), pk=snapshot_id)


def describe_all(rows: Iterable[Snapshot], call: Call) -> list[dict[str, Any]]:
    rows = list(rows)
    prices = PriceList.load({row.location_id for row in rows}) if call.sees_prices and rows else None
    locks = get_locks([row.pk for row in rows]) if rows else {}
    captures = Operation.objects.active().filter(kind=Operation.Kind.CAPTURE, snapshot__in=rows) if rows else []
    progress = {operation.snapshot_id: percent(operation) for operation in captures}
    return [
        {
            "id": str(row.pk),
            "name": row.name,
            "kind": row.kind,
            "state": row.shown_state,
            "size_gb": row.size_gb,
            "location": row.location_id,
            "volume_id": row.volume_id,
            "instance_id": row.vm_id,
            "note": row.note or "",
            "tags": [tag.name for tag in row.tags.all()],
            "is_pinned": row.is_pinned,
            "created_at": row.created_at,
            "ready_at": row.ready_at,
            "expires_at": row.expires_at,
            "bin_until": row.bin_until,
            "lock": {"until": lock.until, "mode": lock.mode, "final_at": lock.final_at}
            if (lock := locks.get(row.pk))
            else None,
            "error": row.error,
            "progress": progress.get(row.pk),
            "price": price(price_of(row, prices)) if prices else None,
        }
        for row in rows
    ]


def describe(call: Call, snapshot_id: UUID) -> dict[str, Any]:
    """Describe the snapshot as it is now, even if it has been deleted."""
    return describe_all([get_object_or_404(snapshots_of(call), pk=snapshot_id)], call)[0]


@router.get("/snapshots", response=SnapshotPage, url_name="snapshots")
def list_snapshots(request: HttpRequest, filters: Query[schemas.SnapshotFilters]) -> Any:
    """List snapshots of one kind, the newest first. The recycle bin has a list of its own."""
    call = call_of(request)
    rows = snapshots_of(call).filter(deleted_at=None, kind=filters.kind)
    if filters.state:
        rows = rows.filter(state=filters.state)
    if filters.volume_id:
        rows = rows.filter(volume=filters.volume_id)
    if filters.location:
        rows = rows.filter(location=filters.location)
    if filters.name:
        rows = rows.filter(name_key=fold_name(filters.name))
    return page_of(rows, NEWEST, filters, lambda page: describe_all(page, call), schemas.Snapshot)


@router.get("/recycle-bin", response=SnapshotPage, url_name="recycle_bin")
def list_recycle_bin(request: HttpRequest, filters: Query[schemas.BinFilters]) -> Any:
    """List deleted snapshots that can be put back. The one that is erased next comes first."""
    call = call_of(request)
    rows = snapshots_of(call).in_bin()
    return page_of(rows, NEXT_ERASED, filters, lambda page: describe_all(page, call), schemas.Snapshot)


@router.get("/snapshots/{uuid:snapshot_id}", response=schemas.Snapshot, url_name="snapshot")
def show_snapshot(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Show a snapshot, even one in the recycle bin. Send its ETag as If-Match when you change it."""
    call = call_of(request)
    return with_etag(describe_all([get_snapshot(call, snapshot_id, in_bin=True)], call)[0])


@router.post("/snapshots", response={202: schemas.Snapshot}, url_name="snapshots")
def take_snapshot(request: HttpRequest, values: schemas.NewSnapshot) -> HttpResponse:
    """Request a snapshot. It is pending: poll until it is ready, or follow its operation."""
    call = call_of(request)
    call.require(Act.SNAPSHOT)
    source = get_source(call, values)
    snapshot = services.request_snapshot(
        source=source,
        name=values.name or checks.suggest_name(source, at=timezone.now()),
        user=call.user,
        project=call.project,
        note=clean_note(values.note) or None,
        expires_at=in_utc(values.expires_at),
        shown_hourly_micro=parse_amount(values.hourly_price, "hourly_price"),
    )
    location = reverse("v1:snapshot", args=[snapshot.pk])
    return with_etag(describe(call, snapshot.pk), status=202, Location=location)


def get_source(call: Call, values: schemas.NewSnapshot) -> Volume | VirtualMachine:
    if (values.volume_id is None) == (values.instance_id is None):
        raise invalid("volume_id", _("Give either volume_id or instance_id."))
    model = Volume if values.volume_id else VirtualMachine
    rows: QuerySet[Any] = model.objects.visible_to(call.user).filter(project=call.project, deleted_at=None)  # type: ignore[attr-defined]
    source: Volume | VirtualMachine = get_object_or_404(
        rows.select_related("project__customer", "location"), pk=values.volume_id or values.instance_id
    )
    return source


def in_utc(at: datetime | None) -> datetime | None:
    try:
        if at is None or at.tzinfo:
            return at and at.astimezone(UTC)
    except OverflowError:
        pass
    raise invalid("expires_at", _("Give a time with its time zone, such as 2026-12-31T18:00:00+06:30."))


def parse_amount(text: str | None, field: str) -> int | None:
    """Return the amount in millionths. Raises a 422."""
    if text is None:
        return None
    try:
        micro = Decimal(text).scaleb(6)
        if not 0 <= micro <= 2**62 or micro != micro.to_integral_value():
            raise InvalidOperation
    except ArithmeticError as error:
        raise invalid(field, _("Write the amount as a number such as 20 or 0.4.")) from error
    return int(micro)


@router.patch("/snapshots/{uuid:snapshot_id}", response=schemas.Snapshot, url_name="snapshot")
def change_snapshot(request: HttpRequest, snapshot_id: UUID, values: schemas.SnapshotChange) -> HttpResponse:
    """Rename a snapshot, or change its note."""
    call = call_of(request)
    call.require(Act.SNAPSHOT)
    snapshot = get_snapshot(call, snapshot_id)
    note = None if values.note is None else clean_note(values.note)
    with matching(call, lambda: describe(call, snapshot_id)):
        if values.name is not None and values.name != snapshot.name:
            services.rename_snapshot(snapshot=snapshot, user=call.user, name=values.name)
        if note is not None:
            change_labels(model=Snapshot, ids=[snapshot.pk], user=call.user, note=note)
    return with_etag(describe(call, snapshot_id))


@router.delete("/snapshots/{uuid:snapshot_id}", response=schemas.Snapshot, url_name="snapshot")
def delete_snapshot(request: HttpRequest, snapshot_id: UUID, filters: Query[schemas.DeletionFilters]) -> HttpResponse:
    """Move a snapshot to the recycle bin, or delete it if the account has none. Its charge ends at once."""
    call = call_of(request)
    call.require(Act.DELETE)
    snapshot = get_snapshot(call, snapshot_id)
    with matching(call, lambda: describe(call, snapshot_id)):
        services.request_deletion(snapshot=snapshot, user=call.user, even_if_last=filters.even_if_last)
    return with_etag(describe(call, snapshot_id))


@router.post("/snapshots/{uuid:snapshot_id}/put-back", response=schemas.Snapshot, url_name="put_back")
def put_snapshot_back(request: HttpRequest, snapshot_id: UUID, values: schemas.PutBack) -> HttpResponse:
    """Put a snapshot back from the recycle bin. It is charged as if it had never been deleted."""
    call = call_of(request)
    call.require(Act.SNAPSHOT)
    snapshot = get_snapshot(call, snapshot_id, in_bin=True)
    with matching(call, lambda: describe(call, snapshot_id)):
        put_back(snapshot=snapshot, user=call.user, name=values.name)
    return with_etag(describe(call, snapshot_id))


@router.post("/snapshots/{uuid:snapshot_id}/restore", response={202: schemas.Operation}, url_name="restore")
def restore_snapshot(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Overwrite the volume or instance with the snapshot. A safety snapshot is taken first, and charged."""
    call = call_of(request)
    call.require(Act.RESTORE)
    snapshot = get_snapshot(call, snapshot_id)
    check_match(request, describe(call, snapshot_id))
    operation = request_restore(snapshot=snapshot, user=call.user, confirmation=snapshot.source.name)
    location = reverse("v1:operation", args=[operation.pk])
    return with_etag(describe_operations([operation])[0], status=202, Location=location)


@router.put("/snapshots/{uuid:snapshot_id}/lock", response=schemas.Snapshot, url_name="lock")
def set_lock(request: HttpRequest, snapshot_id: UUID, values: schemas.NewLock) -> HttpResponse:
    """Lock a snapshot: nobody can delete it before the day is over. Prepaid credits have to cover it until then."""
    call = call_of(request)
    call.require(Act.SNAPSHOT)
    snapshot = get_snapshot(call, snapshot_id)
    with matching(call, lambda: describe(call, snapshot_id)):
        lock_snapshot(
            snapshot=snapshot,
            user=call.user,
            day=values.day,
            mode=values.mode,
            cooling_off_hours=values.cooling_off_hours,
        )
    return with_etag(describe(call, snapshot_id))
