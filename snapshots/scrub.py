"""Scheduled verification: every usable snapshot is read again within SCRUB_DAYS, the one read longest ago first.

Damage is found this way while there is still something to take a new snapshot of. Only engines that read bytes are
scrubbed. It is the least urgent work there is: one snapshot at a time in each location, started only when no customer's
operation waits for a worker, and put off when one has to.
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
# Reading starts after this part of SCRUB_DAYS; the rest of the time is for catching up.
DUE_AFTER = 0.8
# One that could not be read keeps the others from it no longer than for one attempt a day.
RETRY_AFTER = timedelta(days=1)
# Another worker may be free, so an operation has to wait this long before a scrub yields to it, for so long.
PATIENCE = timedelta(seconds=5)
YIELD_FOR = timedelta(minutes=1)


def start_scrubs(now: datetime) -> int:
    """Returns how many. A location whose storage doesn't answer is left alone."""
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
    """The one read longest ago first, without those that something is being done with."""
    busy = Operation.objects.active().filter(Q(snapshot=OuterRef("pk")) | Q(safety_snapshot=OuterRef("pk")))
    failed = Operation.objects.filter(
        snapshot=OuterRef("pk"),
        kind=Operation.Kind.SCRUB,
        state=Operation.State.FAILED,
        finished_at__gt=now - RETRY_AFTER,
    )
    read_before = now - DUE_AFTER * timedelta(days=settings.SCRUB_DAYS)
    found = Snapshot.objects.filter(usable(), location=location, last_read_at__lt=read_before)
    return found.exclude(Exists(busy)).exclude(Exists(failed)).order_by("last_read_at")


def must_yield(operation: Operation, now: datetime) -> bool:
    """Whether a running scrub has to give way: at once to work on its own snapshot, else to what waits for a worker."""
    own = Operation.objects.active().filter(snapshot=operation.snapshot_id).exclude(pk=operation.pk)
    return own.exists() or operations.in_turn(now).foreground().filter(not_before__lt=now - PATIENCE).exists()
