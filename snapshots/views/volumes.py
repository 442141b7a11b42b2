"""The list of volumes, and the page of one: what protects it and what was done to it."""

from uuid import UUID

from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from cng_portal.accounts.models import User
from cng_portal.common.responses import is_fragment
from cng_portal.inventory.models import Volume
from snapshots import lists, protection
from snapshots.forms import VolumeFilterForm
from snapshots.models import DiskImage, Operation, Snapshot, usable

from .common import (
    build_operation_rows,
    newest_operations,
    render_list,
    render_live,
    version_of,
)
from .snapshots import build_rows, listed_snapshots
from .timelines import timeline_of

SNAPSHOTS_SHOWN = 50
OPERATIONS_SHOWN = 20


@require_GET
def volumes(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = VolumeFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    mine = Volume.objects.visible_to(user).present().select_related("project__customer", "location", "vm")
    page = lists.page_of(form.narrow(mine), lists.BY_NAME, request.GET)
    context = {
        "form": form,
        "rows": build_volume_rows(page.rows, user),
    }
    return render_list(request, "snapshots/volumes.html", "volume-list", page, form.chosen, context)


def build_volume_rows(found: list[Volume], user: User) -> list[Volume]:
    """Add what a row shows: `point`, the newest snapshot or backup that can be restored, or None; whether the user can see
    it; `snapshot_count` and `can_change`.
    """
    snapshots = (
        # Only the volumes are named, which the user can see, so that each database takes the index of volumes.
        Snapshot.objects.filter(volume_id__in=[volume.pk for volume in found], deleted_at=None)
        .order_by()
        .values_list("volume_id")
        .annotate(Count("pk"))
    )
    counts = dict(snapshots) if found else {}
    points = protection.get_newest_points(found) if found else {}
    for volume in found:
        volume.point = points.get(volume.pk)
        volume.can_see_point = volume.point is not None and volume.point.project_id in user.roles
        volume.snapshot_count = counts.get(volume.pk, 0)
        volume.can_change = user.can_change(volume.project_id)
    return found


def in_machine_copies(volume: Volume) -> bool:
    """Whether a snapshot or backup of a whole machine holds it."""
    whole = DiskImage.objects.filter(volume=volume, snapshot__vm__isnull=False)
    return whole.filter(usable("snapshot__")).exists()


@require_GET
def volume(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    """Also of a volume that is gone: its snapshots are still there."""
    user = request.user
    related = Volume.objects.visible_to(user).select_related("project__customer", "location", "vm")
    found = get_object_or_404(related, pk=volume_id)
    mine = listed_snapshots().filter(volume=found, deleted_at=None, project__in=list(user.roles))
    snapshots = list(mine.order_by("-created_at", "-pk")[:SNAPSHOTS_SHOWN])
    operations = build_operation_rows(
        newest_operations(
            Operation.objects.visible_to(user).filter(volume=found),
            Operation.objects.visible_to(user).filter(snapshot__volume=found),
            most=OPERATIONS_SHOWN,
        ),
        user,
    )
    made_by = next(
        (one for one in operations if one.kind == Operation.Kind.NEW_VOLUME and one.volume_id == found.pk), None
    )
    context = {
        "volume": found,
        "rows": build_rows(snapshots, user),
        "snapshot_count": mine.count(),
        "snapshots_shown": SNAPSHOTS_SHOWN,
        "in_machine_copies": not snapshots and in_machine_copies(found),
        "line": timeline_of(mine, born=found.created_at),
        "operations": operations,
        "made_by": made_by,
        "retry": made_by if made_by and made_by.can_retry else None,
        # its state too: the work may have ended between the two looks at the database
        "is_live": found.state == Volume.State.CREATING or any(operation.is_active for operation in operations),
        "can_change": user.can_change(found.project_id),
        "can_take": user.can_change(found.project_id)
        and found.deleted_at is None
        and found.state == Volume.State.AVAILABLE,
    }
    version = version_of(
        found.state,
        found.deleted_at,
        [(one.pk, one.state) for one in operations],
        [(one.pk, one.state) for one in snapshots],
    )
    return render_live(request, "snapshots/volume.html", context, part="volume", poll="work", version=version)
