"""Scheduled verification: every usable snapshot is read again within SCRUB_DAYS, the one read longest ago first.

It finds damage while the source still exists. Only engines that read bytes are scrubbed. A scrub has the lowest priority:
one snapshot at a time in each location, started only when no customer's operation waits, and released when one has to.
"""

from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Location

from . import operations
from .models import Operation, Snapshot, usable

logger = structlog.get_logger(__name__)

AT_ONCE = 1  # in each location
# Scrubs start after this part of SCRUB_DAYS. The rest is for catching up.
DUE_AFTER = 0.8
# A snapshot that can't be read is tried once a day, so that it doesn't hold up the others.
RETRY_AFTER = timedelta(days=1)
# Another worker may be free, so a scrub yields only to operations that have waited for PATIENCE.
PATIENCE = timedelta(seconds=5)
YIELD_FOR = timedelta(minutes=1)


def start_scrubs(now: datetime) -> int:
    """Start due scrubs where the storage answers. Returns how many."""
    if operations.waiting(now).foreground().exists():
        return 0
    started = 0
    for location in Location.objects.exclude(storage_check__error__gt=""):
        try:
            started += start_in(location, now)
        except Exception:
            logger.exception("scrub.failed", location=location.pk)
    return started


def start_in(location: Location, now: datetime) -> int:
    under_way = Operation.objects.active().filter(kind=Operation.Kind.SCRUB, snapshot__location=location).count()
    started = 0
    for snapshot in due(location, now)[: max(0, AT_ONCE - under_way)]:
        with transaction.atomic():
            lock_customer(snapshot.customer_id)
            if due(location, now).filter(pk=snapshot.pk).exists():
                operations.create_operation(kind=Operation.Kind.SCRUB, snapshot=snapshot)
                started += 1
    return started


def due(location: Location, now: datetime) -> QuerySet[Snapshot]:
    """Return the snapshots to scrub, the one read longest ago first, without those that are in use."""
    busy = Operation.objects.active().filter(Q(snapshot=OuterRef("pk")) | Q(safety_snapshot=OuterRef("pk")))
    failed = Operation.objects.filter(
        snapshot=OuterRef("pk"),
        kind=Operation.Kind.SCRUB,
        state=Operation.State.FAILED,
        finished_at__gt=now - RETRY_AFTER,
    )
    read_before = now - DUE_AFTER * timedelta(days=settings.SCRUB_DAYS)
    snapshots = Snapshot.objects.filter(usable(), location=location, last_read_at__lt=read_before)
    return snapshots.exclude(Exists(busy)).exclude(Exists(failed)).order_by("last_read_at")


def must_yield(operation: Operation, now: datetime) -> bool:
    """Return whether a scrub has to yield: to any operation on its snapshot, or to one that waits for a worker."""
    own = Operation.objects.active().filter(snapshot=operation.snapshot_id).exclude(pk=operation.pk)
    return own.exists() or operations.in_turn(now).foreground().filter(not_before__lt=now - PATIENCE).exists()
