"""Listing the files of each snapshot once it is Ready, for histories and comparisons: an operation of its own.

It has the lowest priority, like a scrub: started only when no customer's operation waits. The same sandboxed child reads the
disk as for a page; see catalogue.py for what is stored, and where.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from cng_portal.inventory.models import Location

from ..models import DiskChange, DiskImage, Operation, Snapshot, State
from ..operations import lifecycle
from ..storage.contract import Heartbeat, NotOffered, Refused
from ..storage.registry import get_driver
from . import catalogue, children, unusual
from .reader import VERSION

logger = structlog.stdlib.get_logger(__name__)

AT_ONCE = 5  # in each location
# Of the reader, which no later attempt changes.
LASTING = ("damaged", "crashed", "slow", "missing")


@dataclass(frozen=True)
class Listed:
    """A disk whose catalogue was stored. `file_count` is None if its reader failed, so that there is none.

    `change` is since the previous snapshot, None if there is none to compare with.
    """

    disk: DiskImage
    file_count: int | None
    change: DiskChange | None = None


def start_catalogues(now: datetime) -> int:
    """Start listing the files of the newest snapshots that have no catalogue. Returns how many."""
    if children.find_libraries() is None or lifecycle.waiting(now).foreground().exists():
        return 0
    started = 0
    for location in Location.objects.exclude(storage_check__error__gt=""):
        try:
            if get_driver(location).reads_bytes:
                started += lifecycle.start_maintenance(
                    location, Operation.Kind.CATALOGUE, due(location, now), at_once=AT_ONCE
                )
        except ImproperlyConfigured:
            continue  # The location's page in the admin says so.
        except Exception:
            logger.exception("catalogue.start_failed", location=location.pk)
    return started


def due(location: Location, now: datetime) -> QuerySet[Snapshot]:
    """Return the snapshots to list, the newest first, without those that are in use."""
    snapshots = Snapshot.objects.filter(location=location, state=State.READY, missing_since=None, catalogued_at=None)
    return lifecycle.exclude_busy(snapshots, Operation.Kind.CATALOGUE, now).order_by("-ready_at")


def list_files(snapshot: Snapshot, heartbeat: Heartbeat) -> list[Listed]:
    """Store a catalogue of each disk. Raises StorageError, and what the heartbeat raises."""
    return [list_disk(disk, heartbeat) for disk in snapshot.disks.select_related("volume", "snapshot__location")]


def list_disk(disk: DiskImage, heartbeat: Heartbeat) -> Listed:
    heartbeat(0, 0)
    driver = get_driver(disk.snapshot.location)
    try:
        image = driver.open_for_reading(disk.ref)
        try:
            download = children.Download(image, {"command": "catalogue"}, on_progress=lambda _entries: heartbeat(0, 0))
        finally:
            os.close(image)
        try:
            summary = summarize(download.answer)
            beating = beat_between(download, heartbeat)
            driver.store_catalogue(disk.ref, catalogue.compress(beating, summary))
        finally:
            download.close()
    except NotOffered:
        return Listed(disk, None)
    except (children.ReaderFailed, ValueError) as error:
        reason = error.reason if isinstance(error, children.ReaderFailed) else "damaged"
        logger.warning("catalogue.unreadable", disk=str(disk.pk), reason=reason, error=str(error))
        if reason not in LASTING:
            raise Refused(_("The files can't be listed: this server can't run the disk reader.")) from error
        return Listed(disk, None)
    file_count = sum(part["entries"] for part in summary["parts"])
    return Listed(disk, file_count, unusual.measure(disk, heartbeat))


def summarize(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the reader's summary that is stored. Raises ValueError."""
    try:
        return {
            "reader": VERSION,
            "is_complete": bool(answer["is_complete"]),
            "parts": [
                {name: int(part[name]) for name in ("part", "entries", "files", "unread")} for part in answer["parts"]
            ],
        }
    except (LookupError, TypeError) as error:
        raise ValueError(str(error)) from error


def beat_between(pieces: Iterable[bytes], heartbeat: Heartbeat) -> Iterator[bytes]:
    for piece in pieces:
        heartbeat(0, 0)
        yield piece


def record_listed(snapshot: Snapshot, disks: Iterable[Listed], now: datetime) -> None:
    """Call it within `lifecycle.finish`."""
    disks = list(disks)
    for listed in disks:
        DiskImage.objects.filter(pk=listed.disk.pk).update(file_count=listed.file_count)
    Snapshot.objects.filter(pk=snapshot.pk).update(catalogued_at=now)
    unusual.record_changes(snapshot, [listed.change for listed in disks if listed.change], now)
