"""The list of volumes, and the page of one: what protects it, and its operations."""

from dataclasses import dataclass
from uuid import UUID

from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from cng_portal.accounts.models import User
from cng_portal.common.responses import is_fragment
from cng_portal.common.templatetags.portal import poll_seconds
from cng_portal.inventory.models import Volume
from snapshots import lists, protection
from snapshots.backups.views import build_schedule_rows
from snapshots.forms import VolumeFilterForm
from snapshots.models import BackupSchedule, DiskImage, Operation, Snapshot, usable

from .common import render_list, render_live, version_of
from .rows import build_operation_rows, build_rows, find_hidden, listed_snapshots, newest_operations
from .timelines import timeline_of

SNAPSHOTS_SHOWN = 50
OPERATIONS_SHOWN = 20


@dataclass(frozen=True)
class VolumeRow:
    """A volume with its newest usable snapshot or backup, if any, and whether the user sees that."""

    volume: Volume
    point: Snapshot | None
    can_see_point: bool
    snapshot_count: int
    can_change: bool


@require_GET
def volumes(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = VolumeFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    visible = Volume.objects.visible_to(user).present().select_related("project__customer", "location", "vm")
    page = lists.page_of(form.narrow(visible), lists.BY_NAME, request.GET)
    context = {"form": form, "rows": build_volume_rows(page.rows, user)}
    return render_list(request, "snapshots/volumes.html", "volume-list", page, form.chosen, context)


def build_volume_rows(volumes: list[Volume], user: User) -> list[VolumeRow]:
    if not volumes:
        return []
    # Filters by the volume alone, so that no database prefers another index.
    snapshots = Snapshot.objects.filter(volume_id__in=[volume.pk for volume in volumes], deleted_at=None).order_by()
    counts = dict(snapshots.values_list("volume_id").annotate(Count("pk")))
    points = protection.get_newest_points(volumes)
    rows = []
    for volume in volumes:
        point = points.get(volume.pk)
        rows.append(
            VolumeRow(
                volume,
                point=point,
                can_see_point=point is not None and point.project_id in user.roles,
                snapshot_count=counts.get(volume.pk, 0),
                can_change=user.can_change(volume.project_id),
            )
        )
    return rows


def is_in_machine_snapshots(volume: Volume) -> bool:
    """Return whether a usable snapshot or backup of a machine includes the volume."""
    disks = DiskImage.objects.filter(volume=volume, snapshot__vm__isnull=False)
    return disks.filter(usable("snapshot__")).exists()


@require_GET
def volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """Show a volume, also a deleted one, whose snapshots still exist."""
    user = request.user
    visible = Volume.objects.visible_to(user).select_related("project__customer", "location", "vm")
    volume = get_object_or_404(visible, pk=volume_id)
    visible_snapshots = listed_snapshots().filter(volume=volume, deleted_at=None, project__in=list(user.roles))
    snapshots = list(visible_snapshots.order_by("-created_at", "-pk")[:SNAPSHOTS_SHOWN])
    operations = newest_operations(
        Operation.objects.visible_to(user).filter(volume=volume),
        Operation.objects.visible_to(user).filter(snapshot__volume=volume),
        limit=OPERATIONS_SHOWN,
    )
    rows = build_operation_rows(operations, user)
    created_by = next(
        (
            row
            for row in rows
            if row.operation.kind == Operation.Kind.NEW_VOLUME and row.operation.volume_id == volume.pk
        ),
        None,
    )
    can_change = user.can_change(volume.project_id)
    schedules = BackupSchedule.objects.visible_to(user).present().with_related().filter(volume=volume)
    context = {
        "volume": volume,
        "rows": build_rows(snapshots, user),
        "snapshot_count": visible_snapshots.count(),
        "snapshots_shown": SNAPSHOTS_SHOWN,
        "hidden": find_hidden(Snapshot.objects.filter(volume=volume), user),
        "schedules": build_schedule_rows(list(schedules), user),
        "in_machine_snapshots": not snapshots and is_in_machine_snapshots(volume),
        "line": timeline_of(visible_snapshots, born=volume.created_at),
        "operations": rows,
        "created_by": created_by.operation if created_by else None,
        "retry": created_by if created_by and created_by.can_retry else None,
        # The volume's state too, because the operation may have finished between the two queries.
        "is_live": volume.state == Volume.State.CREATING or any(operation.is_active for operation in operations),
        "poll_seconds": poll_seconds(operations),
        "can_change": can_change,
        "can_take": can_change and volume.deleted_at is None and volume.state == Volume.State.AVAILABLE,
    }
    version = version_of(
        volume.state,
        volume.deleted_at,
        [(operation.pk, operation.state) for operation in operations],
        [(snapshot.pk, snapshot.state) for snapshot in snapshots],
    )
    return render_live(request, "snapshots/volume.html", context, part="volume", poll="work", version=version)
