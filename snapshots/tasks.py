"""What the worker does for each kind of operation.

Each function asks the driver to bring about what the operation wants and then settles the outcome in one transaction.
The driver's calls can be repeated, so an attempt need not know how far the one before came. No transaction is open
while a driver works.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections, transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, override
from django_tasks import task

from cng_portal import logs
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import Volume
from cng_portal.monitoring.models import StorageCheck
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from . import operations
from .charging import start_charging
from .damage import record_damage, record_sound
from .models import DiskImage, Kind, Operation, Snapshot, State, usable
from .scrub import YIELD_FOR, must_yield
from .storage.contract import (
    NOT_SET_UP,
    UNEXPECTED,
    VERIFICATION_VALID_FOR,
    WORKER_DIED,
    Busy,
    Corrupt,
    Driver,
    Heartbeat,
    Interrupted,
    Refused,
    SnapshotInfo,
    SnapshotRef,
    StorageError,
    VolumeRef,
)
from .storage.registry import get_driver

logger = logging.getLogger(__name__)


@task()
def run_waiting_operations() -> None:
    """Run one operation after the other, in turn, until none may run or the worker stops."""
    while not operations.stopping.is_set() and (operation := operations.claim_next()):
        run_claimed(operation)
        close_old_connections()


def run_operation(operation_id: UUID, *, now: datetime | None = None) -> None:
    """Run this operation if it waits, whatever else does. `now` is the instant at which it ends, where that is given."""
    if operation := operations.claim(operation_id, now=now):
        run_claimed(operation)


def run_claimed(operation: Operation) -> None:
    """Never raises for what storage does: the row says how it ended."""
    ids = logs.within(operation_id=str(operation.pk), request_id=operation.request_id)
    with ids, override("en"):  # a reason is stored once, for every reader
        logger.info("Attempt %s: %s", operation.attempt, operation.kind)
        try:
            if operation.may_fail_for_good and operation.failures >= settings.OPERATION_MAX_ATTEMPTS:
                give_up(operation)
                return
            with operations.Lease(operation) as lease:
                HANDLERS[Operation.Kind(operation.kind)](operation, lease)
        except operations.LeaseLost:
            if Operation.objects.filter(pk=operation.pk, state=Operation.State.CANCELLED).exists():
                clean_up_after(operation)
            else:
                logger.warning("Operation %s, attempt %s: the lease was lost", operation.pk, operation.attempt)
        except Interrupted:
            operations.release(operation, counted=False)
        except Busy as error:
            retry_when_free(operation, str(error))
        except DamagedDisk as error:
            fail_damaged(operation, error)
        except StorageError as error:
            if not isinstance(error, Refused):
                StorageCheck.objects.record_error(operation.snapshot.location_id)
            retry_or_fail(operation, str(error), retryable=error.retryable, cause=type(error).__name__)
        except ImproperlyConfigured:
            logger.exception("Operation %s, attempt %s, has no storage", operation.pk, operation.attempt)
            reason = _("The storage of %(location)s is not set up. Contact support.")
            reason %= {"location": operation.snapshot.location_id}
            retry_or_fail(operation, reason, retryable=False, cause=NOT_SET_UP)
        except Exception:
            logger.exception("Operation %s, attempt %s, failed unexpectedly", operation.pk, operation.attempt)
            reason = _("Something unexpected happened in the portal. Try again; if it stays so, ask support.")
            retry_or_fail(operation, reason, retryable=True, cause=UNEXPECTED)


def clean_up_after(operation: Operation) -> None:
    """It was cancelled while this worker was busy with it. A clean-up may have come too early to find what was made."""
    with transaction.atomic():
        lock_customer(operation.snapshot.customer_id)
        operations.request_clean_up(operation)
    logger.info("Operation %s, attempt %s: cancelled", operation.pk, operation.attempt)


def retry_or_fail(operation: Operation, reason: str, *, retryable: bool, cause: str) -> None:
    """Try again after a pause when that can help, else fail with the reason."""
    if retryable and not operation.is_last_attempt:
        operations.release(operation, retry_in=operations.retry_pause(operation), error=reason)
        return
    with contextlib.suppress(operations.LeaseLost):  # then its new owner settles it
        operations.finish(
            operation,
            Operation.State.FAILED,
            lambda now: fail_operation(operation, reason, now),
            error=reason,
            cause=cause,
        )


def fail_damaged(operation: Operation, error: "DamagedDisk") -> None:
    """What the operation needed is damaged: it fails, and the snapshot is marked in the same transaction."""
    reason = str(error)

    def settle(now: datetime) -> None:
        FAILURE_HANDLERS[Operation.Kind(operation.kind)](operation, reason, now)
        if not record_damage(operation.snapshot, {error.disk: reason}, now, user=operation.requested_by):
            notify_failure(operation, reason)

    with contextlib.suppress(operations.LeaseLost):  # then its new owner settles it
        operations.finish(operation, Operation.State.FAILED, settle, error=reason, cause=Corrupt.__name__)


def retry_when_free(operation: Operation, reason: str) -> None:
    """Something else holds the disk: try again without counting the attempt, until the deadline after the first one."""
    assert operation.started_at is not None  # held by the constraint operation_lease
    hours = settings.OPERATION_DEADLINE_HOURS
    now = operation.now_override or timezone.now()
    if operation.may_fail_for_good and now >= operation.started_at + timedelta(hours=hours):
        given_up = ngettext(
            "It stayed so for %(hours)s hour, so this was given up.",
            "It stayed so for %(hours)s hours, so this was given up.",
            hours,
        ) % {"hours": hours}
        retry_or_fail(operation, f"{reason} {given_up}", retryable=False, cause=Busy.__name__)
    else:
        operations.release(operation, counted=False, retry_in=operations.busy_pause(operation), error=reason)


def fail_operation(operation: Operation, reason: str, now: datetime) -> None:
    FAILURE_HANDLERS[Operation.Kind(operation.kind)](operation, reason, now)
    notify_failure(operation, reason)


def notify_failure(operation: Operation, reason: str, *, title: str | Promise = "") -> None:
    """Who asked for it learns of it in the bell, wherever that person is; the project's people where nobody asked."""
    if operation.kind in (Operation.Kind.CLEAN_UP, Operation.Kind.SCRUB):
        return  # of a failure that was told; a read that failed without damage is the operator's
    snapshot = operation.snapshot
    reading = operation.kind == Operation.Kind.VERIFY and operation.requested_by is None
    if snapshot.kind == Kind.BACKUP and (reading or operation.kind == Operation.Kind.CAPTURE):
        return  # its run tells, with what happens next
    asked = operation.requested_by
    notify(
        users=[asked] if asked and asked.is_active else project_members(snapshot.project),
        key=f"operation-{operation.pk}",
        level=Notification.Level.DANGER,
        message=lambda: (
            str(title or FAILURE_TITLES[Operation.Kind(operation.kind)]) % {"name": snapshot.name},
            reason,
        ),
        url=reverse("snapshots:snapshot", args=[snapshot.pk]),
    )


def give_up(operation: Operation) -> None:
    """Every attempt ended with the death of its worker: remove what the last one may have left, then fail.

    Drivers clean up after themselves when a call fails, and at the next call for the same snapshot when it was killed;
    here no next call follows.
    """
    unfinished = {Operation.Kind.CAPTURE: operation.snapshot, Operation.Kind.RESTORE: operation.safety_snapshot}.get(
        Operation.Kind(operation.kind)
    )
    if unfinished and unfinished.state in (State.PENDING, State.CREATING):
        remove_disks(unfinished)
    retry_or_fail(
        operation,
        _("The storage worker stopped in the middle, %(count)s times. Nothing was changed. Try again later.")
        % {"count": operation.failures},
        retryable=False,
        cause=WORKER_DIED,
    )


def is_needed(uuid: UUID) -> bool:
    """Whether the portal counts on the bytes of this disk image or volume: then nothing that has its id is half-made."""
    image = DiskImage.objects.filter(pk=uuid, snapshot__state=State.READY)
    return image.exists() or Volume.objects.present().filter(pk=uuid, state=Volume.State.AVAILABLE).exists()


def volume_ref(volume: Volume) -> VolumeRef:
    return VolumeRef(
        uuid=volume.pk,
        name=volume.name,
        size_gb=volume.size_gb,
        backend_ref=volume.backend_ref,
        backend_project=volume.backend_project,
    )


def snapshot_ref(disk: DiskImage) -> SnapshotRef:
    return SnapshotRef(
        uuid=disk.pk,
        backend_ref=disk.backend_ref,
        backend_project=disk.volume.backend_project,
        checksum=disk.checksum,
    )


def remove_disks(snapshot: Snapshot) -> None:
    for disk in snapshot.disks.select_related("volume"):
        get_driver(snapshot.location).delete_snapshot(snapshot_ref(disk))


# --- capture ---------------------------------------------------------------------------------------------------------


def capture(operation: Operation, lease: operations.Lease) -> None:
    infos = take(operation.snapshot, lease)
    operations.finish(
        operation, Operation.State.SUCCEEDED, lambda now: complete_capture(operation.snapshot, infos, now)
    )


def take(snapshot: Snapshot, lease: operations.Lease, *, safety: bool = False) -> list[SnapshotInfo]:
    Snapshot.objects.transition(snapshot.pk, [State.PENDING], State.CREATING)
    snapshot.refresh_from_db(fields=["state"])
    if snapshot.state != State.CREATING:  # cancelled before this worker came to it
        raise operations.LeaseLost
    disks = [(snapshot_ref(disk), volume_ref(disk.volume)) for disk in snapshot.disks.select_related("volume")]
    driver = get_driver(snapshot.location)
    create = driver.create_safety_snapshots if safety else driver.create_snapshots
    return create(disks, lease.heartbeat)


def complete_capture(snapshot: Snapshot, infos: list[SnapshotInfo], now: datetime) -> None:
    """Ready, and billed from this very instant; a checksum that is still missing follows. The caller holds the customer's
    lock.

    A backup is always verified: retention deletes an older one only for a verified one.
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
    ready = {"ready_at": now, "error": "", "consistency": get_driver(snapshot.location).consistency.value}
    if not Snapshot.objects.transition(snapshot.pk, [State.CREATING], State.READY, **ready):
        raise operations.LeaseLost
    reads_bytes = get_driver(snapshot.location).reads_bytes
    if reads_bytes:
        Snapshot.objects.filter(pk=snapshot.pk).update_last_read()
    snapshot.refresh_from_db()
    if snapshot.is_charged:
        start_charging(snapshot, now)
    lacks_checksum = reads_bytes and not all(info.checksum for info in infos)
    if lacks_checksum or snapshot.kind == Kind.BACKUP:
        operations.create_operation(kind=Operation.Kind.VERIFY, snapshot=snapshot)


def fail_capture(snapshot: Snapshot, reason: str) -> None:
    failed = Snapshot.objects.transition(snapshot.pk, [State.PENDING, State.CREATING], State.FAILED, error=reason)
    try:
        driver = get_driver(snapshot.location)
    except ImproperlyConfigured:  # then nothing was asked for that could appear later
        return
    if failed and driver.finishes_late:
        operations.create_operation(kind=Operation.Kind.CLEAN_UP, snapshot=snapshot)


# --- restore ---------------------------------------------------------------------------------------------------------


def restore(operation: Operation, lease: operations.Lease) -> None:
    """1. Refuse while the VM runs. 2. Take the safety snapshot and record it, so that it survives whatever follows.
    3. Read the disks of a machine, so that damage to the last one is found before the first is written. 4. Revert every
    disk, in order. A single disk is checked by the driver, before anything of the volume changes.
    """
    safety = operation.safety_snapshot
    assert safety is not None  # request_restore gives every restore one
    disks = list(operation.snapshot.disks.select_related("volume__vm"))
    for disk in disks:
        if disk.volume.vm and disk.volume.vm.is_running:
            raise Refused(
                _("%(volume)s is in use: its virtual machine %(vm)s runs. Stop the machine, then restore again.")
                % {"volume": disk.volume.name, "vm": disk.volume.vm.name}
            )
    refuse_damaged(operation)
    if safety.state in (State.PENDING, State.CREATING):
        infos = take(safety, lease, safety=True)
        with transaction.atomic():
            lock_customer(safety.customer_id)
            if not operations.update(operation, bytes_done=0):
                raise operations.LeaseLost
            complete_capture(safety, infos, timezone.now())
            activity.record(action="ready.capture", actor=None, target=safety)
    driver = get_driver(operation.snapshot.location)
    if len(disks) > 1 and not operation.unchecked:
        for disk in disks:
            with damage_of(disk):
                verify_unless_recent(disk, driver, lease)
    for disk in disks:
        with damage_of(disk):
            driver.revert_volume(
                volume_ref(disk.volume), snapshot_ref(disk), lease.heartbeat, unchecked=operation.unchecked
            )
    checks = [] if operation.unchecked else find_checks(disks, driver)
    operations.finish(operation, Operation.State.SUCCEEDED, lambda now: record_checks(checks))


def verify_unless_recent(disk: DiskImage, driver: Driver, lease: operations.Lease) -> None:
    info = driver.find_snapshot(snapshot_ref(disk))
    age = timezone.now() - info.verified_at if info and info.verified_at else None
    if driver.reads_bytes and not (age and timedelta() <= age < VERIFICATION_VALID_FOR):
        driver.verify_snapshot(snapshot_ref(disk), lease.heartbeat)


def refuse_damaged(operation: Operation) -> None:
    """Damage may have been found since the operation was requested."""
    if operation.snapshot.is_damaged and not operation.unchecked:
        raise Corrupt(_("“%(name)s” is damaged. Nothing was changed.") % {"name": operation.snapshot.name})


class DamagedDisk(Corrupt):
    """The driver's finding, with the disk that it is about."""

    def __init__(self, message: str, disk: DiskImage) -> None:
        super().__init__(message)
        self.disk = disk


@contextlib.contextmanager
def damage_of(disk: DiskImage) -> Iterator[None]:
    try:
        yield
    except Corrupt as error:
        raise DamagedDisk(str(error), disk) from error


def find_checks(disks: Iterable[DiskImage], driver: Driver) -> list[SnapshotInfo]:
    """What the driver learned about the snapshot's bytes when it read them."""
    infos = [driver.find_snapshot(snapshot_ref(disk)) for disk in disks] if driver.reads_bytes else []
    return [info for info in infos if info and info.verified_at]


def record_checks(infos: Sequence[SnapshotInfo]) -> None:
    for info in infos:
        DiskImage.objects.filter(pk=info.uuid).update(checksum=info.checksum, verified_at=info.verified_at)
    Snapshot.objects.filter(disks__in=[info.uuid for info in infos]).update_last_read()


def fail_restore(operation: Operation, reason: str) -> None:
    if operation.safety_snapshot:
        fail_capture(operation.safety_snapshot, reason)


# --- new volume ------------------------------------------------------------------------------------------------------


def create_volume(operation: Operation, lease: operations.Lease) -> None:
    volume, disk = operation.volume, operation.disk
    assert volume is not None and disk is not None  # held by the constraint operation_target
    refuse_damaged(operation)
    driver = get_driver(operation.snapshot.location)
    with damage_of(disk):
        backend_ref = driver.create_volume_from_snapshot(
            snapshot_ref(disk), volume_ref(volume), lease.heartbeat, unchecked=operation.unchecked
        )
    checks = [] if operation.unchecked else find_checks([disk], driver)

    def settle(now: datetime) -> None:
        record_checks(checks)
        Volume.objects.filter(pk=volume.pk).update(state=Volume.State.AVAILABLE, backend_ref=backend_ref)

    operations.finish(operation, Operation.State.SUCCEEDED, settle)


def fail_new_volume(operation: Operation, now: datetime) -> None:
    """The row stays for a second try, out of sight."""
    Volume.objects.filter(pk=operation.volume_id).update(state=Volume.State.ERROR, deleted_at=now)


# --- verify ----------------------------------------------------------------------------------------------------------


def verify(operation: Operation, lease: operations.Lease) -> None:
    read_again(operation, lease.heartbeat)


def scrub(operation: Operation, lease: operations.Lease) -> None:
    """A verification that nobody asked for: it is put off while somebody waits."""

    def heartbeat(bytes_done: int, bytes_total: int) -> None:
        if must_yield(operation, timezone.now()):
            raise Yielded
        lease.heartbeat(bytes_done, bytes_total)

    if not Snapshot.objects.filter(usable(), pk=operation.snapshot_id).exists():
        operation.delete()  # deleted or found damaged since; nothing was read
        return
    try:
        read_again(operation, heartbeat)
    except Yielded:
        # with an error, because without one it would be due at once
        operations.release(operation, counted=False, retry_in=YIELD_FOR, error=_("It gave way to other work."))


class Yielded(Interrupted):
    """A scrub gave way to somebody's work."""


def read_again(operation: Operation, heartbeat: Heartbeat) -> None:
    """Read every disk again. Damage is a finding about the snapshot, so it is recorded there and fails the operation."""
    driver: Driver = get_driver(operation.snapshot.location)
    sound: list[SnapshotInfo] = []
    damage: dict[DiskImage, str] = {}
    for disk in operation.snapshot.disks.select_related("volume"):
        try:
            sound.append(driver.verify_snapshot(snapshot_ref(disk), heartbeat))
        except Corrupt as error:
            damage[disk] = str(error)
    reason = "\n".join(damage.values())

    def settle(now: datetime) -> None:
        for info in sound:
            DiskImage.objects.filter(pk=info.uuid).update(checksum=info.checksum, verified_at=now)
        if driver.reads_bytes:
            Snapshot.objects.filter(pk=operation.snapshot_id).update_last_read()
        if damage:
            if not record_damage(operation.snapshot, damage, now, user=operation.requested_by):
                notify_failure(operation, reason, title=gettext_lazy("“%(name)s” is damaged"))
        elif operation.requested_by:
            record_sound(operation.snapshot, now, user=operation.requested_by)

    state = Operation.State.FAILED if damage else Operation.State.SUCCEEDED
    cause = Corrupt.__name__ if damage else ""
    operations.finish(operation, state, settle, error=reason, cause=cause)


# --- delete ----------------------------------------------------------------------------------------------------------


def delete(operation: Operation, lease: operations.Lease) -> None:
    remove_disks(operation.snapshot)

    def settle(now: datetime) -> None:
        if not Snapshot.objects.transition(operation.snapshot_id, [State.DELETING], State.DELETED, deleted_at=now):
            raise operations.LeaseLost

    operations.finish(operation, Operation.State.SUCCEEDED, settle)


def clean_up(operation: Operation, lease: operations.Lease) -> None:
    """Remove what a failed or cancelled operation left, or what appeared since; again and again until the storage has none
    of it.
    """
    if operation.volume:
        get_driver(operation.snapshot.location).delete_volume(volume_ref(operation.volume))
    else:
        remove_disks(operation.snapshot)
    operations.finish(operation, Operation.State.SUCCEEDED, lambda now: None)


HANDLERS = {
    Operation.Kind.CAPTURE: capture,
    Operation.Kind.RESTORE: restore,
    Operation.Kind.NEW_VOLUME: create_volume,
    Operation.Kind.VERIFY: verify,
    Operation.Kind.SCRUB: scrub,
    Operation.Kind.DELETE: delete,
    Operation.Kind.CLEAN_UP: clean_up,
}
FAILURE_HANDLERS = {
    Operation.Kind.CAPTURE: lambda operation, reason, now: fail_capture(operation.snapshot, reason),
    Operation.Kind.RESTORE: lambda operation, reason, now: fail_restore(operation, reason),
    Operation.Kind.NEW_VOLUME: lambda operation, reason, now: fail_new_volume(operation, now),
    Operation.Kind.VERIFY: lambda operation, reason, now: None,
    Operation.Kind.SCRUB: lambda operation, reason, now: None,
    Operation.Kind.DELETE: lambda operation, reason, now: None,  # stays Deleting; Try again is offered
    Operation.Kind.CLEAN_UP: lambda operation, reason, now: None,
}
FAILURE_TITLES = {
    Operation.Kind.CAPTURE: gettext_lazy("The snapshot “%(name)s” could not be taken"),
    Operation.Kind.RESTORE: gettext_lazy("“%(name)s” could not be restored"),
    Operation.Kind.NEW_VOLUME: gettext_lazy("The new volume from “%(name)s” could not be made"),
    Operation.Kind.VERIFY: gettext_lazy("“%(name)s” could not be verified"),
    Operation.Kind.DELETE: gettext_lazy("“%(name)s” could not be deleted"),
}
