"""Scheduled verification: every usable snapshot is read again within SCRUB_DAYS, the one read longest ago first.

It finds damage while the source still exists. Only engines that read bytes are scrubbed. A scrub has the lowest priority:
one snapshot at a time in each location, started only when no customer's operation waits, and released when one has to.
"""

from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db.models import QuerySet

from cng_portal.inventory.models import Location

from .models import Operation, Snapshot, usable
from .operations import lifecycle

logger = structlog.get_logger(__name__)

AT_ONCE = 1  # in each location
# Scrubs start after this part of SCRUB_DAYS. The rest is for catching up.
DUE_AFTER = 0.8
# Another worker may be free, so a scrub yields only to operations that have waited for PATIENCE.
PATIENCE = timedelta(seconds=5)
YIELD_FOR = timedelta(minutes=1)


def start_scrubs(now: datetime) -> int:
    """Start due scrubs where the storage answers. Returns how many."""
    if lifecycle.waiting(now).foreground().exists():
        return 0
    started = 0
    for location in Location.objects.exclude(storage_check__error__gt=""):
        try:
            started += lifecycle.start_maintenance(location, Operation.Kind.SCRUB, due(location, now), at_once=AT_ONCE)
        except Exception:
            logger.exception("scrub.failed", location=location.pk)
    return started


def due(location: Location, now: datetime) -> QuerySet[Snapshot]:
    """Return the snapshots to scrub, the one read longest ago first, without those that are in use."""
    read_before = now - DUE_AFTER * timedelta(days=settings.SCRUB_DAYS)
    snapshots = Snapshot.objects.filter(usable(), location=location, last_read_at__lt=read_before)
    return lifecycle.exclude_busy(snapshots, Operation.Kind.SCRUB, now).order_by("last_read_at")


def must_yield(operation: Operation, now: datetime) -> bool:
    """Return whether a scrub or drill has to yield: to work for users on its snapshot, or that waits for a worker."""
    own = Operation.objects.active().foreground().filter(snapshot=operation.snapshot_id)
    return own.exists() or lifecycle.in_turn(now).foreground().filter(not_before__lt=now - PATIENCE).exists()
