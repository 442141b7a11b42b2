"""Compare the portal's rows with storage and billing, in both directions.

Rows are read in pages and storage is listed as a stream, so memory is bounded. The portal may run meanwhile: nothing is
locked, and whatever looks wrong is read again before it is reported, in the order in which operations write, so that work
in progress isn't reported.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.usage import running_usage
from cng_portal.common.batches import batched, iterate_by_pk
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import Location, Volume

from ..locks import get_lock
from ..models import (
    SERVICE_KINDS,
    BackupSchedule,
    DiskImage,
    DrilledDisk,
    Kind,
    Operation,
    Snapshot,
    SnapshotLock,
    State,
    volume_ref,
)
from ..operations import lifecycle
from ..storage.contract import (
    GIB,
    Busy,
    Corrupt,
    Driver,
    InvalidImage,
    NotFound,
    SnapshotInfo,
    StorageError,
    StoredObject,
)
from ..storage.registry import get_driver
from . import repairs
from .findings import Finding

# Data older than this without a row won't get one. An import writes the disk before the row.
SETTLED_AFTER = timedelta(minutes=1)
# The scheduler enqueues pending operations every minute, so one this old has no scheduler.
OVERDUE_AFTER = timedelta(minutes=5)


def check_location(
    location: Location,
    *,
    read: bool = False,
    now: datetime | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Iterator[Finding]:
    """Yield every inconsistency of one location. `read` also reads the data of every snapshot, which takes long."""
    now = now or timezone.now()
    yield from check_rows(location, now)
    yield from check_charges(location)
    try:
        yield from StorageComparison(location, read=read, now=now, progress=progress).run()
    except (StorageError, ImproperlyConfigured) as error:
        yield Finding("unreachable", location.pk, location.pk, str(error))


class StorageComparison:
    """Compares the rows of a location with its storage. Raises StorageError and ImproperlyConfigured."""

    def __init__(self, location: Location, *, read: bool, now: datetime, progress: Callable[[int], object]) -> None:
        self.location, self.read, self.now, self.progress = location, read, now, progress
        self.driver: Driver = get_driver(location)

    def run(self) -> Iterator[Finding]:
        yield from self.find_missing_snapshots()
        yield from self.find_missing_volumes()
        for cloud_project in self.cloud_projects():
            yield from self.find_unexpected(cloud_project)

    def finding(self, code: str, subject: str, detail: str = "", repair: Callable[[], bool] | None = None) -> Finding:
        return Finding(code, self.location.pk, subject, detail, repair)

    def find_missing_snapshots(self) -> Iterator[Finding]:
        present = Q(snapshot__state=State.READY) | Q(snapshot__bin_until__isnull=False)
        disks = DiskImage.objects.filter(present, snapshot__location=self.location)
        for disk in iterate_by_pk(disks.select_related("snapshot", "volume")):
            self.progress(1)
            finding = self.check_disk(disk)
            # A deletion is accepted before any data is removed, so a snapshot that is still Ready is really damaged.
            if finding and disks.filter(pk=disk.pk).exists():
                yield finding

    def check_disk(self, disk: DiskImage) -> Finding | None:
        subject = describe_disk(disk)
        try:
            info = self.find_disk(disk)
        except Corrupt as error:
            is_new = self.read and not disk.snapshot.is_damaged and not disk.snapshot.is_in_bin
            repair = partial(repairs.mark_damaged, disk, str(error)) if is_new else None
            return self.finding("corrupt", subject, str(error), repair)
        except NotFound as error:
            return self.finding(missing_code(disk), subject, str(error))
        if info is None:
            return self.finding(missing_code(disk), subject, _("Storage has nothing with this ID."))
        if differences := list(compare(disk, info)):
            return self.finding("mismatch", subject, "; ".join(differences))
        if disk.snapshot.is_in_bin:  # Neither verified nor marked as damaged until it is put back.
            return None
        if disk.damage:
            return self.finding("damaged", subject, disk.damage, partial(repairs.clear_damage, disk, self.driver))
        if self.driver.reads_bytes and not disk.checksum and not is_being_verified(disk):
            return self.finding("unverified", subject, repair=partial(repairs.request_verification, disk.snapshot_id))
        return None

    def find_disk(self, disk: DiskImage) -> SnapshotInfo | None:
        """Raises Corrupt and NotFound."""
        info = self.driver.find_snapshot(disk.ref)
        if info and self.read:
            try:
                # Without the portal's checksum: `compare` reports a difference as a mismatch.
                return self.driver.verify_snapshot(replace(disk.ref, checksum=""))
            except Busy:  # Being verified or deleted.
                pass
        return info

    def find_missing_volumes(self) -> Iterator[Finding]:
        volumes = Volume.objects.in_storage().filter(location=self.location)
        for volume in iterate_by_pk(volumes):
            self.progress(1)
            try:
                self.driver.bytes_needed([volume_ref(volume)])
            except NotFound as error:
                if volumes.filter(pk=volume.pk).exists():
                    yield self.finding("volume-missing", describe_volume(volume), str(error))
            except InvalidImage:
                pass  # Reported as "volume-size" by find_unexpected.

    def cloud_projects(self) -> list[str]:
        """Return the cloud's projects that hold our volumes; "" is the one that the portal signs in to."""
        named = Volume.objects.filter(location=self.location).exclude(backend_project="")
        return ["", *named.order_by("backend_project").values_list("backend_project", flat=True).distinct()]

    def find_unexpected(self, cloud_project: str) -> Iterator[Finding]:
        for batch in batched(self.driver.list_objects(cloud_project)):
            self.progress(len(batch))
            uuids = [stored.uuid for stored in batch if stored.uuid]
            disks = DiskImage.objects.select_related("snapshot", "volume").in_bulk(uuids)
            volumes = Volume.objects.in_bulk(uuids)
            drilled = DrilledDisk.objects.select_related("drill", "disk__snapshot", "disk__volume").in_bulk(uuids)
            for stored in batch:
                if stored.is_incomplete:
                    finding = self.check_partial(stored, cloud_project)
                elif stored.uuid is None:
                    finding = self.finding("foreign", stored.name)
                elif disk := disks.get(stored.uuid):
                    finding = self.check_stored_disk(stored, disk)
                elif volume := volumes.get(stored.uuid):
                    finding = self.check_stored_volume(stored, volume)
                elif temporary := drilled.get(stored.uuid):
                    finding = self.check_temporary_volume(stored, temporary)
                else:
                    finding = self.check_orphan(stored)
                if finding and stored.is_unchanged():
                    yield finding

    def check_partial(self, stored: StoredObject, cloud_project: str) -> Finding | None:
        if stored.uuid and is_being_worked_on(stored.uuid):
            return None
        repair = partial(repairs.delete_partial, self.driver, cloud_project, stored)
        return self.finding("partial", stored.name, repair=repair)

    def check_stored_disk(self, stored: StoredObject, disk: DiskImage) -> Finding | None:
        state = disk.snapshot.state
        if state not in (State.FAILED, State.DELETED) or disk.snapshot.is_in_bin or is_being_worked_on(disk.pk):
            return None
        detail = _("In storage as %(name)s; the snapshot is %(state)s.") % {
            "name": stored.name,
            "state": disk.snapshot.get_state_display(),
        }
        is_deleted = state == State.DELETED
        repair = partial(repairs.delete_snapshot_data, self.driver, disk) if is_deleted else None
        return self.finding("undeleted", describe_disk(disk), detail, repair)

    def check_stored_volume(self, stored: StoredObject, volume: Volume) -> Finding | None:
        if volume.state == Volume.State.ERROR or volume.deleted_at:
            if volume.is_in_bin or is_being_worked_on(volume.pk):
                return None
            # A failed one may have become available since the database's backup, one whose deletion was accepted can't.
            is_final = volume.delete_requested_at is not None
            repair = partial(repairs.delete_volume_data, self.driver, volume) if is_final else None
            return self.finding("volume-undeleted", describe_volume(volume), stored.name, repair)
        size = volume.size_gb * GIB
        if volume.state != Volume.State.AVAILABLE or stored.size_bytes in (None, size):
            return None
        detail = _("%(portal)s bytes in the portal, %(storage)s in storage")
        sizes = {"portal": size, "storage": stored.size_bytes}
        repair = partial(repairs.record_growth, volume, stored.size_bytes) if stored.size_bytes else None
        return self.finding("volume-size", describe_volume(volume), detail % sizes, repair)

    def check_temporary_volume(self, stored: StoredObject, drilled: DrilledDisk) -> Finding | None:
        """A drill's worker removes it, and the scheduler what a dead worker left, both of which take their time."""
        finished_at = drilled.drill.finished_at
        if finished_at is None or self.now - OVERDUE_AFTER < finished_at:
            return None
        repair = partial(repairs.delete_temporary_volume, self.driver, drilled)
        return self.finding("drill-undeleted", stored.name, describe_disk(drilled.disk), repair)

    def check_orphan(self, stored: StoredObject) -> Finding | None:
        changed_at = stored.changed_at
        is_new = changed_at and self.now - SETTLED_AFTER < changed_at <= self.now + SETTLED_AFTER
        return None if is_new else self.finding("orphan", stored.name)


def missing_code(disk: DiskImage) -> str:
    return "locked-missing" if get_lock(disk.snapshot) else "missing"


def compare(disk: DiskImage, info: SnapshotInfo) -> Iterator[str]:
    pairs = [
        (_("size in bytes"), disk.size_gb * GIB, info.size_bytes),
        (_("checksum"), disk.checksum, disk.checksum and info.checksum),
        (_("time of capture"), disk.captured_at, disk.captured_at and info.captured_at),
        (_("backend reference"), disk.backend_ref, disk.backend_ref and info.backend_ref),
    ]
    for field, portal, storage in pairs:
        if portal != storage:
            yield _("%(field)s: %(portal)s in the portal, %(storage)s in storage") % {
                "field": field,
                "portal": portal,
                "storage": storage,
            }


def check_rows(location: Location, now: datetime) -> Iterator[Finding]:
    """Find rows that wait for an operation that doesn't exist, and operations without a worker.

    A row and its operation are written in one transaction, and each query sees both or neither.
    """
    ready = Snapshot.objects.filter(location=location, state=State.READY)
    incomplete = ready.alias(disks_gb=Sum("disks__size_gb", default=0)).exclude(disks_gb=F("size_gb"))
    for damaged in iterate_by_pk(incomplete):
        detail = _("Its disks don't add up to its %(size)s GB: a disk's row is missing or another's.")
        yield Finding("mismatch", location.pk, describe(damaged), detail % {"size": damaged.size_gb})
    broken = SnapshotLock.objects.active().filter(snapshot__location=location).exclude(snapshot__state=State.READY)
    for lock in iterate_by_pk(broken.select_related("snapshot")):
        detail = _("It is locked until %(time)s, and %(state)s.")
        values = {"time": minute(lock.until), "state": lock.snapshot.get_state_display()}
        yield Finding("lock-broken", location.pk, describe(lock.snapshot), detail % values)
    active = Operation.objects.active()
    own = active.filter(snapshot=OuterRef("pk"))
    pending = Snapshot.objects.filter(location=location, state__in=[State.PENDING, State.CREATING])
    captures = own.filter(kind=Operation.Kind.CAPTURE), active.filter(safety_snapshot=OuterRef("pk"))
    for snapshot in iterate_by_pk(pending.exclude(Exists(captures[0])).exclude(Exists(captures[1]))):
        state, repair = snapshot.get_state_display(), partial(repairs.fail_snapshot, snapshot.pk)
        yield Finding("stuck", location.pk, describe(snapshot), state, repair)
    deleting = Snapshot.objects.filter(location=location, state=State.DELETING)
    for snapshot in iterate_by_pk(deleting.exclude(Exists(own.filter(kind=Operation.Kind.DELETE)))):
        state, repair = snapshot.get_state_display(), partial(repairs.request_deletion, snapshot.pk)
        yield Finding("stuck", location.pk, describe(snapshot), state, repair)
    creating = Volume.objects.filter(location=location, state=Volume.State.CREATING)
    for volume in iterate_by_pk(creating.exclude(Exists(active.filter(volume=OuterRef("pk"))))):
        state, repair = volume.get_state_display(), partial(repairs.fail_volume, volume.pk)
        yield Finding("stuck", location.pk, describe_volume(volume), state, repair)
    leaving = Volume.objects.filter(location=location, state=Volume.State.DELETING, deleted_at=None)
    for volume in iterate_by_pk(leaving.exclude(Exists(active.filter(volume=OuterRef("pk"))))):
        state, repair = volume.get_state_display(), partial(repairs.request_volume_deletion, volume)
        yield Finding("stuck", location.pk, describe_volume(volume), state, repair)
    overdue_before = now - OVERDUE_AFTER
    overdue = active.filter(state=Operation.State.RUNNING, lease_until__lt=overdue_before)
    if lifecycle.lacks_queued_task(now):
        claimable = lifecycle.in_turn(now).filter(state=Operation.State.PENDING, not_before__lt=overdue_before)
        overdue = overdue | claimable
    for operation in iterate_by_pk(
        overdue.filter(Q(snapshot__location=location) | Q(snapshot=None, volume__location=location))
    ):
        repair = partial(repairs.enqueue_operations, now)
        yield Finding("overdue", location.pk, f"{operation} · {operation.pk}", repair=repair)


def check_charges(location: Location) -> Iterator[Finding]:
    """Compare Ready snapshots with running usage. Usage starts and ends in the transaction that changes the snapshot."""
    usage = running_usage(location_code=location.pk, kinds=SERVICE_KINDS.values())
    chargeable = chargeable_snapshots(location)
    for snapshots in batched(iterate_by_pk(chargeable)):
        sizes = sizes_in_gb(usage, snapshots)
        for snapshot in snapshots:
            size = sizes.get((snapshot.pk, snapshot.service_kind))
            if size != snapshot.size_gb and chargeable.filter(pk=snapshot.pk).exists():
                detail = _("charged as %(size)s GB, it has %(real)s") % {"size": size, "real": snapshot.size_gb}
                yield Finding("not-charged", location.pk, describe(snapshot), detail if size else "")
    for segments in batched(iterate_by_pk(usage)):
        charged = Snapshot.objects.in_bulk([segment.resource_id for segment in segments])
        for segment in segments:
            target = charged.get(segment.resource_id)
            is_usable = target and target.state == State.READY and not target.is_damaged
            if is_usable or not usage.filter(pk=segment.pk).exists():
                continue
            subject = f"{segment.resource_name} ({segment.resource_id})"
            state = target.shown_state_label if target else _("unknown to the portal")
            ended_at = target and (target.damaged_at or target.delete_requested_at)
            repair = partial(repairs.end_usage, target, ended_at) if target and ended_at else None
            yield Finding("charged", location.pk, subject, state, repair)


def chargeable_snapshots(location: Location) -> QuerySet[Snapshot]:
    """Return those that must have running usage."""
    ready = Snapshot.objects.filter(location=location, state=State.READY)
    automatic = Q(kind=Kind.BACKUP, run__schedule__origin=BackupSchedule.Origin.AUTOMATIC)
    # Snapshots created or deleted in the cloud are charged by the location's own rules, which every sync applies.
    return ready.exclude(automatic).filter(made_outside=False, missing_since=None, damaged_at=None)


def sizes_in_gb(usage: QuerySet[Any], snapshots: Iterable[Snapshot]) -> dict[tuple[UUID, str], int]:
    segments = usage.filter(resource_id__in=[snapshot.pk for snapshot in snapshots])
    return {(segment.resource_id, segment.kind): segment.size_gb for segment in segments}


def is_being_worked_on(uuid: UUID) -> bool:
    """Return whether an unfinished operation may write the disk image or volume with this ID. Listing files doesn't."""
    of_disk = Q(snapshot__disks=uuid) | Q(safety_snapshot__disks=uuid) | Q(drill__disks=uuid)
    active = Operation.objects.active().exclude(kind=Operation.Kind.CATALOGUE)
    return active.filter(of_disk | Q(volume=uuid) | Q(snapshot__disks__volume=uuid)).exists()


def is_being_verified(disk: DiskImage) -> bool:
    """Return whether the disk is being verified, was verified meanwhile, or no longer needs to be."""
    verifying = Operation.objects.active().filter(snapshot=disk.snapshot_id, kind=Operation.Kind.VERIFY)
    unverified = DiskImage.objects.filter(pk=disk.pk, checksum="", snapshot__state=State.READY)
    return verifying.exists() or not unverified.exists()


def describe(snapshot: Snapshot) -> str:
    return f"{snapshot.get_kind_display()} “{snapshot.name}” ({snapshot.pk})"


def describe_disk(disk: DiskImage) -> str:
    return f"{describe(disk.snapshot)}, {disk.volume_name} ({disk.pk})"


def describe_volume(volume: Volume) -> str:
    return _("Volume “%(name)s” (%(uuid)s)") % {"name": volume.name, "uuid": volume.pk}
