"""The list of volumes, and the page of one: what protects it, and its operations."""

from dataclasses import dataclass
from uuid import UUID

from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET

from billing.charges import cost_so_far
from cng_portal.accounts.models import User
from cng_portal.common.money import format_amount, format_price
from cng_portal.common.pages import page_of
from cng_portal.common.responses import is_fragment
from cng_portal.common.templatetags.portal import poll_seconds
from cng_portal.inventory.models import Tag, Volume
from snapshots import lists, protection
from snapshots.backups.views import build_schedule_rows
from snapshots.drills.plans import drills_of
from snapshots.drills.proof import last_proven_at
from snapshots.forms import VolumeFilterForm
from snapshots.labels import tags_of
from snapshots.models import BackupSchedule, DiskImage, Operation, Snapshot, usable
from snapshots.storage.registry import get_driver
from snapshots.volumes.charges import quote_volumes
from snapshots.volumes.services import machine_of

from .common import render_list, render_live, version_of, with_query
from .rows import build_operation_rows, build_rows, find_hidden, listed_snapshots, newest_operations
from .timelines import timeline_of
from .volume_actions import get_volume, volume_actions_for

SNAPSHOTS_SHOWN = 50
OPERATIONS_SHOWN = 20
CREATING_KINDS = (Operation.Kind.CREATE_VOLUME, Operation.Kind.NEW_VOLUME)


@dataclass(frozen=True)
class VolumeRow:
    """A volume with its newest usable snapshot or backup, if any, and whether the user sees that.

    `hourly` is its price ("K 20"), empty if it costs nothing.
    """

    volume: Volume
    point: Snapshot | None
    can_see_point: bool
    snapshot_count: int
    hourly: str
    can_change: bool
    tags: list[Tag]


@require_GET
def volumes(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = VolumeFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    visible = Volume.objects.visible_to(user).present().select_related("project__customer", "location", "vm")
    page = page_of(form.narrow(visible), lists.BY_NAME, request.GET)
    context = {
        "form": form,
        "rows": build_volume_rows(page.rows, user),
        "selectable": bool(user.changeable_project_ids),
        "csv_url": with_query(reverse("snapshots:volumes_csv"), form.chosen),
        "is_first": not page.rows and not Volume.objects.visible_to(user).exists(),
    }
    return render_list(request, "snapshots/volumes.html", "volume-list", page, form.chosen, context)


def build_volume_rows(volumes: list[Volume], user: User) -> list[VolumeRow]:
    if not volumes:
        return []
    # Filters by the volume alone, so that no database prefers another index.
    snapshots = Snapshot.objects.filter(volume_id__in=[volume.pk for volume in volumes], deleted_at=None).order_by()
    counts = dict(snapshots.values_list("volume_id").annotate(Count("pk")))
    points = protection.newest_restore_points(volumes)
    quotes = quote_volumes(volumes, at=timezone.now())
    tags = tags_of(Volume, [volume.pk for volume in volumes])
    rows = []
    for volume in volumes:
        point, quote = points.get(volume.pk), quotes.get(volume.pk)
        rows.append(
            VolumeRow(
                volume,
                point=point,
                can_see_point=point is not None and point.project_id in user.roles,
                snapshot_count=counts.get(volume.pk, 0),
                hourly=format_price(quote.hourly_micro, quote.currency) if quote else "",
                can_change=user.can_change(volume.project_id),
                tags=tags.get(volume.pk, []),
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
    volume = get_volume(user, volume_id)
    visible_snapshots = listed_snapshots().filter(volume=volume, deleted_at=None, project__in=list(user.roles))
    snapshots = list(visible_snapshots.order_by("-created_at", "-pk")[:SNAPSHOTS_SHOWN])
    operations = newest_operations(
        Operation.objects.visible_to(user).filter(volume=volume),
        Operation.objects.visible_to(user).filter(snapshot__volume=volume),
        limit=OPERATIONS_SHOWN,
    )
    rows = build_operation_rows(operations, user)
    created_by = next(
        (row for row in rows if row.operation.kind in CREATING_KINDS and row.operation.volume_id == volume.pk),
        None,
    )
    retry = next((row for row in rows if row.can_retry and row.operation.volume_id == volume.pk), None)
    quote = quote_volumes([volume], at=timezone.now()).get(volume.pk)
    point = protection.newest_restore_points([volume]).get(volume.pk)
    machine = machine_of(volume)
    can_change = user.can_change(volume.project_id)
    is_of_volume = Q(volume=volume) | Q(vm=machine) if machine else Q(volume=volume)
    schedules = list(BackupSchedule.objects.visible_to(user).present().with_related().filter(is_of_volume))
    context = {
        "volume": volume,
        "tags": tags_of(Volume, [volume.pk]).get(volume.pk, []),
        "rows": build_rows(snapshots, user),
        "snapshot_count": visible_snapshots.count() if len(snapshots) == SNAPSHOTS_SHOWN else len(snapshots),
        "snapshots_shown": SNAPSHOTS_SHOWN,
        "hidden": find_hidden(Snapshot.objects.filter(volume=volume), user),
        "schedules": build_schedule_rows([schedule for schedule in schedules if schedule.volume_id], user),
        "in_machine_snapshots": not snapshots and is_in_machine_snapshots(volume),
        "line": timeline_of(visible_snapshots, born=volume.created_at),
        "operations": rows,
        "created_by": created_by.operation if created_by else None,
        "created_is_empty": created_by is not None and created_by.operation.kind == Operation.Kind.CREATE_VOLUME,
        "retry": retry,
        "growing_to_gb": next((row.operation.new_size_gb for row in rows if row.operation.is_active), None),
        "proven_at": last_proven_at(drills_of(volume).filter(snapshot__project__in=list(user.roles))),
        "price": quote,
        "hourly": format_price(quote.hourly_micro, quote.currency) if quote else "",
        "monthly": format_amount(quote.monthly_micro, quote.currency) if quote else "",
        "cost": cost_so_far(resource_id=volume.pk, at=timezone.now()),
        "point": point,
        "can_see_point": point is not None and point.project_id in user.roles,
        "machine_schedules": [schedule for schedule in schedules if schedule.vm_id],
        "attaches": get_driver(volume.location).attaches,
        "actions": volume_actions_for(volume, user),
        "is_new": can_change and volume.state == Volume.State.AVAILABLE and not volume.vm_id and created_by is not None,
        # The volume's state too, because the operation may have finished between the two queries.
        "is_live": volume.state in (Volume.State.CREATING, Volume.State.DELETING)
        and volume.deleted_at is None
        and retry is None
        or any(operation.is_active for operation in operations),
        "poll_seconds": poll_seconds(operations),
        "can_change": can_change,
        "can_take": can_change and volume.deleted_at is None and volume.state == Volume.State.AVAILABLE,
    }
    version = version_of(
        volume.state,
        volume.size_gb,
        volume.deleted_at,
        volume.bin_until,
        [(operation.pk, operation.state) for operation in operations],
        [(snapshot.pk, snapshot.state) for snapshot in snapshots],
    )
    return render_live(request, "snapshots/volume.html", context, part="volume", poll="work", version=version)
