"""What a worker does for each kind of operation.

Each handler has the driver do its work and then records the outcome in one transaction with `lifecycle.finish`. Drivers'
calls are idempotent, so an attempt doesn't need to know how far the previous one got. No transaction is open while a
driver works.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import Volume
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from ..damage import record_damage, record_sound
from ..drills import running
from ..files import cataloguing
from ..locks import why_locked
from ..models import DiskImage, Drill, Kind, Operation, Snapshot, State, usable, volume_ref
from ..scrub import YIELD_FOR, must_yield
from ..storage.contract import (
    GIB,
    NOT_PROVEN,
    VERIFICATION_VALID_FOR,
    Corrupt,
    Driver,
    Heartbeat,
    Interrupted,
    Refused,
    SnapshotInfo,
    StorageError,
)
from ..storage.registry import get_driver
from ..volumes.charges import change_volume_charge, start_charging_volume
from . import lifecycle
from .lifecycle import Lease, LeaseLost


class DamagedDisk(Corrupt):
    """The driver found this disk damaged."""

    def __init__(self, message: str, disk: DiskImage) -> None:
        super().__init__(message)
        self.disk = disk


class Yielded(Interrupted):
    """A scrub or a drill gave way to other work."""


def snapshot_of(operation: Operation) -> Snapshot:
    assert operation.snapshot is not None  # held by the constraint operation_target
    return operation.snapshot


def volume_of(operation: Operation) -> Volume:
    assert operation.volume is not None  # held by the constraint operation_target
    return operation.volume


def capture(operation: Operation, lease: Lease) -> None:
    infos = capture_disks(snapshot_of(operation), lease)
    lifecycle.finish(
        operation, Operation.State.SUCCEEDED, lambda now: complete_capture(snapshot_of(operation), infos, now)
    )


def capture_disks(snapshot: Snapshot, lease: Lease, *, safety: bool = False) -> list[SnapshotInfo]:
    Snapshot.objects.transition(snapshot.pk, [State.PENDING], State.CREATING)
    snapshot.refresh_from_db(fields=["state"])
    if snapshot.state != State.CREATING:  # It was cancelled before this worker started.
        raise LeaseLost
    disks = [(disk.ref, volume_ref(disk.volume)) for disk in snapshot.disks.select_related("volume")]
    driver = get_driver(snapshot.location)
    create = driver.create_safety_snapshots if safety else driver.create_snapshots
    return create(disks, lease.heartbeat)


def complete_capture(snapshot: Snapshot, infos: list[SnapshotInfo], now: datetime) -> None:
    """Make the snapshot Ready and start charging it. The caller must hold the customer's lock.

    A verification follows if a checksum is missing, and for all that a schedule took, because retention counts only what
    was verified.
    """
    for info in infos:
        DiskImage.objects.filter(pk=info.uuid).update(
            backend_ref=info.backend_ref,
            allocated_bytes=info.allocated_bytes,
            checksum=info.checksum,
            captured_at=info.captured_at,
            verified_at=None,
            damage="",
        )
    driver = get_driver(snapshot.location)
    fields = {"ready_at": now, "error": "", "consistency": driver.consistency.value}
    if not Snapshot.objects.transition(snapshot.pk, [State.CREATING], State.READY, **fields):
        raise LeaseLost
    if driver.reads_bytes:
        Snapshot.objects.filter(pk=snapshot.pk).update_last_read()
    snapshot.refresh_from_db()
    if snapshot.is_charged:
        snapshot.start_charging(now)
    lacks_checksum = driver.reads_bytes and not all(info.checksum for info in infos)
    if lacks_checksum or snapshot.kind == Kind.BACKUP or snapshot.is_scheduled:
        lifecycle.create_operation(kind=Operation.Kind.VERIFY, snapshot=snapshot)


def fail_capture(snapshot: Snapshot, reason: str) -> None:
    failed = Snapshot.objects.transition(snapshot.pk, [State.PENDING, State.CREATING], State.FAILED, error=reason)
    with contextlib.suppress(ImproperlyConfigured):  # Without storage there is nothing to clean up.
        if failed and get_driver(snapshot.location).finishes_late:
            lifecycle.create_operation(kind=Operation.Kind.CLEAN_UP, snapshot=snapshot)


def restore(operation: Operation, lease: Lease) -> None:
    """1. Refuse while the machine runs. 2. Take and record the safety snapshot, so that it survives whatever follows.
    3. Verify all disks of a machine before the first is overwritten. A single disk is verified by the driver itself.
    4. Revert the disks in order.
    """
    safety = operation.safety_snapshot
    assert safety is not None  # request_restore creates one for every restore.
    disks = list(snapshot_of(operation).disks.select_related("volume__vm"))
    for disk in disks:
        if disk.volume.vm and disk.volume.vm.is_running:
            raise Refused(
                _("%(volume)s is in use: its instance %(vm)s is running. Stop the instance, then restore again.")
                % {"volume": disk.volume.name, "vm": disk.volume.vm.name}
            )
    refuse_damaged(operation)
    if safety.state in (State.PENDING, State.CREATING):
        take_safety_snapshot(operation, safety, lease)
    driver = get_driver(snapshot_of(operation).location)
    if len(disks) > 1 and not operation.unchecked:
        for disk in disks:
            with damage_of(disk):
                verify_unless_recent(disk, driver, lease)
    for disk in disks:
        with damage_of(disk):
            driver.revert_volume(volume_ref(disk.volume), disk.ref, lease.heartbeat, unchecked=operation.unchecked)
    infos = [] if operation.unchecked else verified_infos(disks, driver)
    lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: record_verified(infos))


def take_safety_snapshot(operation: Operation, safety: Snapshot, lease: Lease) -> None:
    infos = capture_disks(safety, lease, safety=True)
    with transaction.atomic():
        lock_customer(safety.customer_id)
        if not lifecycle.update(operation, bytes_done=0):
            raise LeaseLost
        complete_capture(safety, infos, timezone.now())
        activity.record(action="ready.capture", actor=None, target=safety)


def verify_unless_recent(disk: DiskImage, driver: Driver, lease: Lease) -> None:
    info = driver.find_snapshot(disk.ref)
    age = timezone.now() - info.verified_at if info and info.verified_at else None
    if driver.reads_bytes and not (age and timedelta() <= age < VERIFICATION_VALID_FOR):
        driver.verify_snapshot(disk.ref, lease.heartbeat)


def refuse_damaged(operation: Operation) -> None:
    """Raise Corrupt if the snapshot was found damaged since the operation was requested."""
    if snapshot_of(operation).is_damaged and not operation.unchecked:
        raise Corrupt(_("“%(name)s” is damaged. Nothing was changed.") % {"name": snapshot_of(operation).name})


@contextlib.contextmanager
def damage_of(disk: DiskImage) -> Iterator[None]:
    """Turn Corrupt into DamagedDisk."""
    try:
        yield
    except Corrupt as error:
        raise DamagedDisk(str(error), disk) from error


def verified_infos(disks: Iterable[DiskImage], driver: Driver) -> list[SnapshotInfo]:
    """Return the infos of the disks that the driver verified before it used them."""
    infos = [driver.find_snapshot(disk.ref) for disk in disks] if driver.reads_bytes else []
    return [info for info in infos if info and info.verified_at]


def record_verified(infos: Sequence[SnapshotInfo]) -> None:
    for info in infos:
        DiskImage.objects.filter(pk=info.uuid).update(checksum=info.checksum, verified_at=info.verified_at)
    Snapshot.objects.filter(disks__in=[info.uuid for info in infos]).update_last_read()


def fail_restore(operation: Operation, reason: str, now: datetime) -> None:
    if operation.safety_snapshot:
        fail_capture(operation.safety_snapshot, reason)


def create_volume(operation: Operation, lease: Lease) -> None:
    volume, disk = operation.volume, operation.disk
    assert volume is not None and disk is not None  # held by the constraint operation_target
    refuse_damaged(operation)
    driver = get_driver(snapshot_of(operation).location)
    with damage_of(disk):
        backend_ref = driver.create_volume_from_snapshot(
            disk.ref, volume_ref(volume), lease.heartbeat, unchecked=operation.unchecked
        )
    infos = [] if operation.unchecked else verified_infos([disk], driver)

    def complete(now: datetime) -> None:
        record_verified(infos)
        complete_volume(volume, backend_ref, now)

    lifecycle.finish(operation, Operation.State.SUCCEEDED, complete)


def fail_new_volume(operation: Operation, reason: str, now: datetime) -> None:
    """Hide the volume. Its row stays for a retry."""
    Volume.objects.filter(pk=operation.volume_id).update(state=Volume.State.ERROR, deleted_at=now)


def create_empty_volume(operation: Operation, lease: Lease) -> None:
    volume = volume_of(operation)
    backend_ref = get_driver(volume.location).create_volume(volume_ref(volume), lease.heartbeat)
    lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: complete_volume(volume, backend_ref, now))


def complete_volume(volume: Volume, backend_ref: str, now: datetime) -> None:
    """Make a new volume available and start charging it. The caller must hold the customer's lock."""
    creating = Volume.objects.filter(pk=volume.pk, state=Volume.State.CREATING)
    if not creating.update(state=Volume.State.AVAILABLE, backend_ref=backend_ref, available_at=now):
        raise LeaseLost
    volume.refresh_from_db()
    start_charging_volume(volume, at=now)


def fail_empty_volume(operation: Operation, reason: str, now: datetime) -> None:
    fail_new_volume(operation, reason, now)
    with contextlib.suppress(ImproperlyConfigured):  # Without storage there is nothing to clean up.
        if get_driver(volume_of(operation).location).finishes_late:
            lifecycle.request_clean_up(operation)


def extend_volume(operation: Operation, lease: Lease) -> None:
    volume, size_gb = volume_of(operation), operation.new_size_gb
    assert size_gb is not None  # held by the constraint operation_target
    get_driver(volume.location).extend_volume(volume_ref(volume), size_gb, lease.heartbeat)
    lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: record_size(volume, size_gb, now))


def record_size(volume: Volume, size_gb: int, now: datetime) -> None:
    """Record the size and charge it. The caller must hold the customer's lock."""
    Volume.objects.filter(pk=volume.pk).update(size_gb=size_gb)
    volume.refresh_from_db()
    change_volume_charge(volume, at=now)


def settle_extension(operation: Operation) -> bool:
    """Record the new size if the storage has grown the volume although the call failed or its worker died."""
    volume, size_gb = volume_of(operation), operation.new_size_gb
    assert size_gb is not None  # held by the constraint operation_target
    try:
        if get_driver(volume.location).measure_volume(volume_ref(volume)) != size_gb * GIB:
            return False
    except (StorageError, ImproperlyConfigured):
        return False  # If it has grown, a repeated request succeeds, and fsck reports the size.
    lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: record_size(volume, size_gb, now))
    return True


def delete_volume(operation: Operation, lease: Lease) -> None:
    volume = volume_of(operation)
    get_driver(volume.location).delete_volume(volume_ref(volume))

    def complete(now: datetime) -> None:
        Volume.objects.filter(pk=volume.pk, state=Volume.State.DELETING).update(deleted_at=now)

    lifecycle.finish(operation, Operation.State.SUCCEEDED, complete)


def verify(operation: Operation, lease: Lease) -> None:
    verify_disks(operation, lease.heartbeat)


def scrub(operation: Operation, lease: Lease) -> None:
    """Verify, but release the operation while customers' work waits. Afterwards it continues where it stopped."""

    if not Snapshot.objects.filter(usable(), pk=operation.snapshot_id).exists():
        operation.delete()  # The snapshot was deleted or found damaged since.
        return
    try:
        verify_disks(operation, yielding(operation, lease), resume=True)
    except Yielded:
        release_for_others(operation)


def yielding(operation: Operation, lease: Lease) -> Heartbeat:
    """Return a heartbeat that also raises Yielded while customers' work waits."""

    def heartbeat(bytes_done: int, bytes_total: int) -> None:
        if must_yield(operation, timezone.now()):
            raise Yielded
        lease.heartbeat(bytes_done, bytes_total)

    return heartbeat


def release_for_others(operation: Operation) -> None:
    # The error makes it wait for YIELD_FOR. Without one it would be due at once.
    lifecycle.release(operation, counted=False, retry_in=YIELD_FOR, error=_("It gave way to other work."))


def verify_disks(operation: Operation, heartbeat: Heartbeat, *, resume: bool = False) -> None:
    """Verify every disk. Damage is recorded on the snapshot and fails the operation.

    `resume`: don't read again what earlier attempts of this operation have read.
    """
    driver = get_driver(snapshot_of(operation).location)
    sound: list[SnapshotInfo] = []
    damage: dict[DiskImage, str] = {}
    for disk in snapshot_of(operation).disks.select_related("volume"):
        try:
            info = driver.find_snapshot(disk.ref) if resume else None
            if not (info and info.verified_at and operation.started_at and info.verified_at >= operation.started_at):
                info = driver.verify_snapshot(disk.ref, heartbeat, resume=resume)
            sound.append(info)
        except Corrupt as error:
            damage[disk] = str(error)
    reason = "\n".join(damage.values())

    def record(now: datetime) -> None:
        offset = now - timezone.now() if operation.now_override else timedelta(0)
        for info in sound:
            verified_at = info.verified_at + offset if info.verified_at else now
            DiskImage.objects.filter(pk=info.uuid).update(checksum=info.checksum, verified_at=verified_at)
        if driver.reads_bytes:
            Snapshot.objects.filter(pk=operation.snapshot_id).update_last_read()
        if damage:
            if not record_damage(snapshot_of(operation), damage, now, user=operation.requested_by):
                notify_failure(operation, reason, title=gettext_lazy("“%(name)s” is damaged"))
        elif operation.requested_by:
            record_sound(snapshot_of(operation), now, user=operation.requested_by)

    state = Operation.State.FAILED if damage else Operation.State.SUCCEEDED
    cause = Corrupt.__name__ if damage else ""
    lifecycle.finish(operation, state, record, error=reason, cause=cause)


def list_files(operation: Operation, lease: Lease) -> None:
    snapshot = snapshot_of(operation)
    if not Snapshot.objects.filter(pk=snapshot.pk, state=State.READY, missing_since=None).exists():
        operation.delete()  # The snapshot was deleted since.
        return
    disks = cataloguing.list_files(snapshot, lease.heartbeat)
    lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: cataloguing.record_listed(snapshot, disks, now))


def drill(operation: Operation, lease: Lease) -> None:
    """Restore the snapshot to temporary volumes and record what the checks of them found.

    It yields to customers' work like a scrub, and then begins anew, but not beyond settings.OPERATION_DEADLINE_HOURS.
    """
    drill = Drill.objects.select_related("snapshot", "requested_by").get(operation=operation)
    snapshot, started_at = drill.snapshot, operation.now_override or timezone.now()
    if not can_be_drilled(snapshot):
        give_up(drill, operation, _("The snapshot was deleted before the drill ran."))
        return
    assert operation.started_at is not None  # held by the constraint operation_lease
    may_yield = started_at < operation.started_at + timedelta(hours=settings.OPERATION_DEADLINE_HOURS)
    try:
        reports = running.run_disks(drill, operation, yielding(operation, lease) if may_yield else lease.heartbeat)
    except Yielded:
        release_for_others(operation)
        return
    damage = {report.drilled.disk: report.damage for report in reports if report.damage}
    has_failed = any(report.has_failed for report in reports)
    if has_failed and not can_be_drilled(snapshot):  # Its deletion was accepted before its data went.
        give_up(drill, operation, _("The snapshot was deleted while the drill ran."))
        return

    def record(now: datetime) -> None:
        running.record_reports(drill, reports, started_at=started_at, at=now)
        # The notification of damage says it all.
        if has_failed and not (damage and record_damage(snapshot, damage, now, user=operation.requested_by)):
            running.notify_failed(drill, reports)

    state = Operation.State.FAILED if has_failed else Operation.State.SUCCEEDED
    cause = "" if not has_failed else Corrupt.__name__ if damage else NOT_PROVEN
    error = _("The snapshot failed its restore drill.") if has_failed else ""
    lifecycle.finish(operation, state, record, error=error, cause=cause)


def can_be_drilled(snapshot: Snapshot) -> bool:
    """Return whether it is still there, as the database says now."""
    return Snapshot.objects.filter(pk=snapshot.pk, state=State.READY, missing_since=None).exists()


def give_up(drill: Drill, operation: Operation, reason: str) -> None:
    lifecycle.finish(
        operation, Operation.State.CANCELLED, lambda now: running.end_unfinished(drill, reason, now), error=reason
    )


def fail_drill(operation: Operation, reason: str, now: datetime) -> None:
    running.end_unfinished(Drill.objects.get(operation=operation), reason, now)


def delete(operation: Operation, lease: Lease) -> None:
    snapshot = snapshot_of(operation)
    delete_disks(snapshot)

    def complete(now: datetime) -> None:
        is_deleted = Snapshot.objects.transition(snapshot.pk, [State.DELETING], State.DELETED, deleted_at=now)
        erased = Snapshot.objects.filter(pk=snapshot.pk, state=State.DELETED, bin_until=None)  # From the recycle bin.
        if not is_deleted and not erased.exists():
            raise LeaseLost

    lifecycle.finish(operation, Operation.State.SUCCEEDED, complete)


def clean_up(operation: Operation, lease: Lease) -> None:
    """Delete the remains of a failed or cancelled operation in the storage. Retried until nothing is left."""
    if operation.volume:
        get_driver(operation.volume.location).delete_volume(volume_ref(operation.volume))
    else:
        delete_disks(snapshot_of(operation))
    lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: None)


def delete_disks(snapshot: Snapshot) -> None:
    """The last check before the storage erases anything. Raises Refused for what is locked."""
    if reason := why_locked(snapshot):
        raise Refused(reason)
    for disk in snapshot.disks.select_related("volume"):
        get_driver(snapshot.location).delete_snapshot(disk.ref)


def is_needed(uuid: UUID) -> bool:
    """Return whether a usable disk image or volume has this ID, so that its files aren't orphaned."""
    image = DiskImage.objects.filter(Q(snapshot__state=State.READY) | Q(snapshot__bin_until__isnull=False), pk=uuid)
    return image.exists() or Volume.objects.in_storage().filter(pk=uuid).exists()


def fail_operation(operation: Operation, reason: str, now: datetime, *, damaged_disk: DiskImage | None = None) -> None:
    """Record what a failure means for the snapshot or volume, and notify. Call it within `lifecycle.finish`."""
    HANDLERS[Operation.Kind(operation.kind)].fail(operation, reason, now)
    if damaged_disk and record_damage(snapshot_of(operation), {damaged_disk: reason}, now, user=operation.requested_by):
        return  # The notification of the damage says it all.
    notify_failure(operation, reason)


def why_snapshot_is_gone(operation: Operation) -> str:
    """Return why the snapshot that the operation reads is gone, or an empty string."""
    kinds = Operation.Kind
    if operation.kind not in (*Operation.READING, kinds.RESTORE, kinds.NEW_VOLUME):
        return ""
    snapshot = Snapshot.objects.get(pk=operation.snapshot_id)
    if snapshot.state in (State.DELETING, State.DELETED):
        return _("The snapshot was deleted before this had finished.")
    if snapshot.missing_since:
        return _("The snapshot was deleted in the cloud, outside the portal, before this had finished.")
    return ""


def end_without_snapshot(operation: Operation, reason: str) -> None:
    """End the operation because its snapshot is gone: cancelled if it only reads the snapshot, else failed."""
    if operation.kind in Operation.READING:
        state, fail = Operation.State.CANCELLED, HANDLERS[Operation.Kind(operation.kind)].fail
    else:
        state, fail = Operation.State.FAILED, fail_operation
    lifecycle.finish(operation, state, lambda now: fail(operation, reason, now), error=reason)


def notify_failure(operation: Operation, reason: str, *, title: str | Promise = "") -> None:
    """Notify the user who requested it, or the project's members if nobody did."""
    failure_title = HANDLERS[Operation.Kind(operation.kind)].failure_title
    if not failure_title:
        return
    subject, user = operation.subject, operation.requested_by
    is_automatic = operation.kind == Operation.Kind.VERIFY and user is None
    is_of_run = isinstance(subject, Snapshot) and (subject.kind == Kind.BACKUP or subject.is_scheduled)
    if is_of_run and (is_automatic or operation.kind == Operation.Kind.CAPTURE):
        return  # The run sends its own notification.
    page = "snapshots:volume" if isinstance(subject, Volume) else "snapshots:snapshot"
    notify(
        users=[user] if user and user.is_active else project_members(subject.project),
        key=f"operation-{operation.pk}",
        level=Notification.Level.DANGER,
        message=lambda: (str(title or failure_title) % {"name": subject.name}, reason),
        url=reverse(page, args=[subject.pk]),
    )


@dataclass(frozen=True)
class Handler:
    """How an operation of one kind runs, and what its failure means. Without a title nobody is notified.

    `settle` is called outside any transaction before a failure is recorded. It finds out whether the storage did the work
    after all, records that as a success, and returns whether it did.
    """

    run: Callable[[Operation, Lease], None]
    fail: Callable[[Operation, str, datetime], None] = lambda operation, reason, now: None
    failure_title: str | Promise = ""
    settle: Callable[[Operation], bool] = lambda operation: False


HANDLERS = {
    Operation.Kind.CAPTURE: Handler(
        capture,
        lambda operation, reason, now: fail_capture(snapshot_of(operation), reason),
        gettext_lazy("The snapshot “%(name)s” could not be taken"),
    ),
    Operation.Kind.RESTORE: Handler(restore, fail_restore, gettext_lazy("“%(name)s” could not be restored")),
    Operation.Kind.NEW_VOLUME: Handler(
        create_volume, fail_new_volume, gettext_lazy("The new volume from “%(name)s” could not be created")
    ),
    Operation.Kind.VERIFY: Handler(verify, failure_title=gettext_lazy("“%(name)s” could not be verified")),
    Operation.Kind.SCRUB: Handler(scrub),
    Operation.Kind.CATALOGUE: Handler(list_files),
    Operation.Kind.DRILL: Handler(drill, fail_drill, gettext_lazy("The restore drill of “%(name)s” didn't finish")),
    # A snapshot whose deletion failed stays Deleting, and its page offers a retry.
    Operation.Kind.DELETE: Handler(delete, failure_title=gettext_lazy("“%(name)s” could not be deleted")),
    Operation.Kind.CLEAN_UP: Handler(clean_up),
    Operation.Kind.CREATE_VOLUME: Handler(
        create_empty_volume, fail_empty_volume, gettext_lazy("The volume “%(name)s” could not be created")
    ),
    Operation.Kind.EXTEND_VOLUME: Handler(
        extend_volume,
        failure_title=gettext_lazy("The volume “%(name)s” could not grow"),
        settle=settle_extension,
    ),
    # A volume whose deletion failed stays Deleting, and its page offers a retry.
    Operation.Kind.DELETE_VOLUME: Handler(
        delete_volume, failure_title=gettext_lazy("The volume “%(name)s” could not be deleted")
    ),
}
