"""Health and usage of each location's storage, recorded by the scheduler."""

import time
from threading import Thread

import structlog
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Count, Min, Q, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.inventory.models import Location
from cng_portal.monitoring.models import StorageCheck

from ..models import DiskImage, Snapshot, State, in_storage, usable
from ..storage.contract import StorageError
from ..storage.registry import get_driver

logger = structlog.get_logger(__name__)

# The scheduler's other tasks wait meanwhile, and to a customer a slower storage is as good as down.
TIMEOUT_SECONDS = 15

_checks: dict[str, Thread] = {}  # by location code; a hanging check is not started a second time


def check_storage(*, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Check the storage of every active location in parallel and record the results.

    Each check has its own thread, so a hanging storage delays nobody beyond `timeout_seconds`.
    """
    locations = list(Location.objects.active())
    results: dict[str, tuple[str, int | None]] = {}
    for location in locations:
        if location.code not in _checks or not _checks[location.code].is_alive():
            _checks[location.code] = Thread(target=_check, args=[location, results], name="storage", daemon=True)
            _checks[location.code].start()
    deadline = time.monotonic() + timeout_seconds
    for location in locations:
        _checks[location.code].join(max(0, deadline - time.monotonic()))
    for location in locations:
        error, free_bytes = results.get(location.code) or (_("The storage isn't responding."), None)
        if error:
            logger.error("storage.check_failed", location=location.code, error=error)
            StorageCheck.objects.record_error(location.code)
        elif not location.storage_seen_at:
            Location.objects.filter(pk=location.pk, storage_seen_at=None).update(storage_seen_at=timezone.now())
        result = {"checked_at": timezone.now(), "error": error, "free_bytes": free_bytes}
        StorageCheck.objects.update_or_create(location=location, defaults=result)


def _check(location: Location, results: dict[str, tuple[str, int | None]]) -> None:
    try:
        driver = get_driver(location)
        driver.check_health()
        results[location.code] = "", driver.free_bytes()
    except (StorageError, ImproperlyConfigured) as error:
        results[location.code] = str(error), None
    except Exception:
        logger.exception("storage.check_crashed", location=location.code)
        results[location.code] = _("The check failed unexpectedly; see the log."), None


def measure_storage() -> None:
    """Record snapshot count, damage, usage and the oldest read of each location. Reads every row, so it runs seldom."""
    images = DiskImage.objects.filter(in_storage("snapshot__"), captured_at__isnull=False).order_by()
    is_damaged = Q(snapshot__state=State.READY, snapshot__damaged_at__isnull=False)
    counts = images.values("snapshot__location").annotate(
        snapshot_count=Count("snapshot", distinct=True),
        damaged_count=Count("snapshot", distinct=True, filter=is_damaged),
        snapshot_bytes=Sum("allocated_bytes", default=0),
    )
    counts_by_location = {row.pop("snapshot__location"): row for row in counts}
    # NULL while there are no snapshots, or the driver has no access to their bytes.
    reads = Snapshot.objects.filter(usable(), last_read_at__isnull=False).order_by().values_list("location")
    oldest_reads = dict(reads.annotate(Min("last_read_at")))
    no_snapshots = {"snapshot_count": 0, "damaged_count": 0, "snapshot_bytes": 0}
    now = timezone.now()
    for code in Location.objects.values_list("pk", flat=True):
        usage = counts_by_location.get(code, no_snapshots)
        StorageCheck.objects.update_or_create(
            location_id=code, defaults=usage | {"counted_at": now, "oldest_read_at": oldest_reads.get(code)}
        )
