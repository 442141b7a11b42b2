"""Operations: the work that writes request, and its progress."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Query, Router

from cng_portal.common.pages import Order

from ...models import Operation, OperationQuerySet
from . import schemas
from .calls import Call, call_of, page_of, with_etag

router = Router(tags=["Operations"])
NEWEST = Order("", "created_at", descending=True)


def operations_of(call: Call) -> OperationQuerySet:
    in_project = Q(snapshot__project=call.project) | Q(snapshot=None, volume__project=call.project)
    return Operation.objects.visible_to(call.user).filter(in_project)


def percent(operation: Operation) -> int:
    if operation.state == Operation.State.SUCCEEDED:
        return 100
    return 100 * operation.bytes_done // operation.bytes_total if operation.bytes_total else 0


def describe_operations(rows: Iterable[Operation]) -> list[dict[str, Any]]:
    return [
        {
            "id": str(row.pk),
            "kind": row.kind,
            "state": row.state,
            "progress": percent(row),
            "snapshot_id": row.snapshot_id,
            "volume_id": row.volume_id,
            "error": row.error,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
        }
        for row in rows
    ]


@router.get("/operations", response=schemas.page_schema(schemas.Operation), url_name="operations")
def list_operations(request: HttpRequest, filters: Query[schemas.OperationFilters]) -> Any:
    """List the operations in progress, or all operations of a snapshot, the newest first."""
    rows = operations_of(call_of(request)).foreground()
    rows = rows.filter(snapshot=filters.snapshot_id) if filters.snapshot_id else rows.active()
    return page_of(rows, NEWEST, filters, describe_operations, schemas.Operation)


@router.get("/operations/{uuid:operation_id}", response=schemas.Operation, url_name="operation")
def show_operation(request: HttpRequest, operation_id: UUID) -> HttpResponse:
    """Show an operation. Poll until its state is succeeded, failed or cancelled."""
    return with_etag(describe_operations([get_object_or_404(operations_of(call_of(request)), pk=operation_id)])[0])
