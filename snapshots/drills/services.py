"""Requesting drills, and removing the temporary volumes that dead workers left."""

from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity

from .. import checks, limits
from ..errors import InvalidState
from ..models import Drill, DrilledDisk, Operation, Snapshot
from ..models.drills import create_drill
from ..operations.lifecycle import create_operation
from ..volumes.new_volumes import check_space_for_new_volumes
from .running import remove_volume

logger = structlog.stdlib.get_logger(__name__)

REMOVED_AT_ONCE = 100


def request_drill(*, snapshot: Snapshot, user: User) -> Drill:
    """Request a drill of the snapshot, or return the one that is active.

    Raises InvalidState, RateLimited, OutOfSpace, QuotaExceeded.
    """
    check_space_for_new_volumes(snapshot, list(snapshot.disks.all()))
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        checks.require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if active := Drill.objects.filter(snapshot=snapshot, finished_at=None).first():
            return active
        check_drillable(snapshot)
        limits.check_rate_limit(snapshot.customer_id, Operation.Kind.DRILL)
        check_room(snapshot)
        drill = start_drill(snapshot, user=user, at=timezone.now())
        activity.record(action="snapshot.drill", actor=user, target=snapshot, after={"drill": str(drill.pk)})
    return drill


def check_drillable(snapshot: Snapshot) -> None:
    """Raise InvalidState unless it is Ready, complete and not damaged."""
    checks.require_ready(snapshot)
    if snapshot.is_damaged:
        raise InvalidState(_("“%(name)s” is damaged, so a drill would prove nothing.") % {"name": snapshot.name})
    if not snapshot.disks.exists():
        raise InvalidState(_("“%(name)s” has no disks, so nothing can be restored from it.") % {"name": snapshot.name})


def check_room(snapshot: Snapshot) -> None:
    """Raise QuotaExceeded unless the cloud's quota has room for the largest of the temporary volumes."""
    largest = max(snapshot.disks.select_related("volume"), key=lambda disk: disk.size_gb)
    limits.check_cloud_quota(snapshot.location_id, largest.volume.backend_project, volumes=1, gb=largest.size_gb)


def start_drill(snapshot: Snapshot, *, user: User | None, at: datetime) -> Drill:
    """Create the drill and its operation. The caller must hold the customer's lock and have made the checks."""
    operation = create_operation(kind=Operation.Kind.DRILL, snapshot=snapshot, requested_by=user)
    return create_drill(snapshot, operation, user=user, at=at)


def remove_leftovers(now: datetime) -> int:
    """Remove the temporary volumes of drills that ended without removing them. Returns how many.

    A worker whose drill was cancelled notices within its lease, so these wait for that long.
    """
    ended_before = now - timedelta(seconds=settings.OPERATION_LEASE_SECONDS)
    left = DrilledDisk.objects.filter(removed_at=None, drill__finished_at__lt=ended_before)
    removed = 0
    for drilled in left.select_related("disk__volume", "disk__snapshot__location")[:REMOVED_AT_ONCE]:
        try:
            removed += remove_volume(drilled)
        except ImproperlyConfigured:
            continue  # The location's page in the admin says so.
        except Exception:
            logger.exception("drill.removal_failed", volume=str(drilled.pk))
    return removed
