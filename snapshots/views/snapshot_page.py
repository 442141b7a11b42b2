"""The page of a snapshot: its state, what it costs, and its operations."""

from uuid import UUID

from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from billing.charges import cost_so_far
from billing.pricing.prices import PriceList
from cng_portal.accounts.models import User
from cng_portal.common.money import format_amount, format_price
from cng_portal.common.templatetags.portal import poll_seconds
from snapshots import restores
from snapshots.assignment import why_bound_to_project
from snapshots.drills.proof import last_proven
from snapshots.files.unusual import describe
from snapshots.labels import tags_of
from snapshots.lists import LISTS
from snapshots.locks import can_lift, get_lock
from snapshots.models import DiskChange, Kind, Operation, Snapshot, State
from snapshots.storage.registry import get_driver

from .common import (
    automatic_price_sentence,
    damage_of,
    get_snapshot,
    price_of,
    render_live,
    set_section,
    version_of,
)
from .rows import actions_for, build_operation_rows, listed_operations


@require_GET
def snapshot(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    user = request.user
    snapshot = get_snapshot(user, snapshot_id)
    set_section(request, snapshot)
    disks = list(snapshot.disks.all())
    lock = get_lock(snapshot)
    operations = Operation.objects.filter(Q(snapshot=snapshot) | Q(safety_snapshot=snapshot))
    rows = build_operation_rows(listed_operations(operations), user)
    source = snapshot.source
    why_not_restorable = ""
    if snapshot.state == State.READY and not snapshot.missing_since:
        why_not_restorable = restores.irreversible_reasons([snapshot]).get(snapshot.pk, "")
        if not user.can_change(source.project_id):
            why_not_restorable = _(
                "Restoring it would overwrite “%(name)s”, which belongs to a project in which you can't change anything. "
                "Make a new volume from it instead."
            ) % {"name": source.name}
    changes = list(DiskChange.objects.filter(disk__in=disks).select_related("disk", "previous__snapshot"))
    unusual_changes = [change for change in changes if change.is_unusual]
    price = price_of(snapshot, PriceList.load([snapshot.location_id]))
    context = {
        "snapshot": snapshot,
        "disks": disks,
        "damage": damage_of(disks),
        "changes": [change for change in changes if change.previous.snapshot.project_id in user.roles],
        "unusual_changes": unusual_changes,
        "figures": describe(unusual_changes, disk_count=len(disks)),
        "held": [
            change.previous.snapshot
            for change in unusual_changes
            if change.previous.snapshot.held_at and user.can_change(change.previous.snapshot.project_id)
        ],
        "followed_by": find_unusual_after(snapshot, user) if snapshot.held_at else None,
        "can_read_files": snapshot.state == State.READY and user.can_read_files(snapshot.project_id),
        "tags": tags_of(Snapshot, [snapshot.pk]).get(snapshot.pk, []),
        "list_url": reverse(f"snapshots:{LISTS[Kind(snapshot.kind)]}"),
        "operations": rows,
        "poll_seconds": poll_seconds(row.operation for row in rows),
        "is_live": snapshot.is_transient or any(row.operation.is_active for row in rows),
        "lock": lock,
        "can_lift": lock and can_lift(lock, user, snapshot, at=timezone.now()),
        "actions": actions_for(snapshot, user, lock),
        "why_not_restorable": why_not_restorable,
        "why_bound_to_project": why_bound_to_project(snapshot),
        "can_see_schedule": snapshot.is_scheduled and snapshot.run.schedule.home.pk in user.roles,
        "can_see_source": source.project_id in user.roles,
        "can_change": user.can_change(snapshot.project_id),
        "retry": next((row for row in rows if row.can_retry and row.operation.kind != Operation.Kind.VERIFY), None),
        "price": price,
        "hourly": format_price(price.hourly_micro, price.currency) if price else "",
        "monthly": format_amount(price.monthly_micro, price.currency) if price else "",
        "automatic_price": automatic_price_sentence(source)
        if not snapshot.is_charged and source.project_id in user.roles
        else "",
        "cost": cost_so_far(resource_id=snapshot.pk, at=timezone.now()),
        "proof": last_proven(snapshot.pk),
        "reads_bytes": get_driver(snapshot.location).reads_bytes,
        "no_cost": format_amount(0, snapshot.project.customer.currency),
    }
    version = version_of(
        snapshot.state,
        snapshot.bin_until,
        lock and (lock.pk, lock.until),
        snapshot.damaged_at,
        snapshot.held_at,
        snapshot.project_id,
        [(row.operation.pk, row.operation.state) for row in rows],
        [(disk.checksum, disk.verified_at) for disk in disks],
        context["proof"] and context["proof"].pk,
    )
    return render_live(request, "snapshots/snapshot.html", context, part="snapshot", poll="work", version=version)


def find_unusual_after(snapshot: Snapshot, user: User) -> Snapshot | None:
    """Return the snapshot because of whose change this one is kept, if the user sees it."""
    changes = DiskChange.objects.holding().filter(
        previous__snapshot=snapshot, disk__snapshot__project__in=list(user.roles)
    )
    change = changes.select_related("disk__snapshot").first()
    return change.disk.snapshot if change else None
