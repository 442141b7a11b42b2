"""Repairs of findings of fsck. Each returns whether it succeeded, and works even if the finding is out of date."""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.usage import close_segment
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Volume

from ..damage import record_damage, record_sound
from ..models import DiskImage, DrilledDisk, Operation, Snapshot, State, volume_ref
from ..operations import lifecycle
from ..operations.handlers import fail_capture, is_needed, record_size
from ..storage.contract import GIB, Driver, StorageError, StoredObject


def mark_damaged(disk: DiskImage, damage: str) -> bool:
    with transaction.atomic():
        return record_damage(disk.snapshot, {disk: damage}, timezone.now())


def clear_damage(disk: DiskImage, driver: Driver) -> bool:
    """Read the disk again and clear its mark if the data matches. The snapshot is sound once all of its disks are."""
    try:
        driver.verify_snapshot(disk.ref)
    except StorageError:
        return False
    with transaction.atomic():
        snapshot = lock_snapshot(disk.snapshot_id)
        DiskImage.objects.filter(pk=disk.pk).update(damage="")
        return snapshot.disks.exclude(damage="").exists() or record_sound(snapshot, timezone.now())


def request_verification(snapshot_id: UUID) -> bool:
    return request_operation(snapshot_id, kind=Operation.Kind.VERIFY, state=State.READY)


def request_deletion(snapshot_id: UUID) -> bool:
    return request_operation(snapshot_id, kind=Operation.Kind.DELETE, state=State.DELETING)


def request_operation(snapshot_id: UUID, *, kind: Operation.Kind, state: State) -> bool:
    with transaction.atomic():
        snapshot = lock_snapshot(snapshot_id)
        is_requested = Operation.objects.active().filter(snapshot=snapshot, kind=kind).exists()
        if snapshot.state == state and not is_requested:
            lifecycle.create_operation(kind=kind, snapshot=snapshot)
    return True


def fail_snapshot(snapshot_id: UUID) -> bool:
    with transaction.atomic():
        reason = _("The snapshot couldn't be taken because its operation was lost. Nothing was charged. Try again.")
        fail_capture(lock_snapshot(snapshot_id), reason)
    return True


def fail_volume(volume_id: UUID) -> bool:
    creating = Volume.objects.filter(pk=volume_id, state=Volume.State.CREATING)
    return creating.update(state=Volume.State.ERROR, deleted_at=timezone.now()) == 1


def request_volume_deletion(volume: Volume) -> bool:
    with transaction.atomic():
        volume = lock_volume(volume)
        is_requested = Operation.objects.active().filter(volume=volume).exists()
        if volume.state == Volume.State.DELETING and volume.deleted_at is None and not is_requested:
            lifecycle.create_operation(kind=Operation.Kind.DELETE_VOLUME, volume=volume)
    return True


def delete_volume_data(driver: Driver, volume: Volume) -> bool:
    """Only for volumes whose deletion was accepted, which is final."""
    try:
        driver.delete_volume(volume_ref(volume))
    except StorageError:
        return False
    return True


def delete_temporary_volume(driver: Driver, drilled: DrilledDisk) -> bool:
    try:
        driver.delete_volume(drilled.volume_ref)
    except StorageError:
        return False
    return True


def record_growth(volume: Volume, size_bytes: int) -> bool:
    """Record and charge the size that the volume's user requested last, if the disk has it although that failed."""
    with transaction.atomic():
        volume = lock_volume(volume)
        growths = volume.operations.filter(kind=Operation.Kind.EXTEND_VOLUME).order_by("-created_at")
        last = growths.first()
        is_wanted = last and last.state == Operation.State.FAILED and (last.new_size_gb or 0) * GIB == size_bytes
        if is_wanted and last and last.new_size_gb:
            record_size(volume, last.new_size_gb, timezone.now())
    return bool(is_wanted)


def lock_volume(volume: Volume) -> Volume:
    lock_customer(volume.customer_id)
    return Volume.objects.select_related("project").get(pk=volume.pk)


def enqueue_operations(now: datetime) -> bool:
    lifecycle.reconcile(now=now)
    return True


def end_usage(snapshot: Snapshot, at: datetime) -> bool:
    return close_segment(resource_id=snapshot.pk, kind=snapshot.service_kind, at=at)


def delete_partial(driver: Driver, cloud_project: str, stored: StoredObject) -> bool:
    """Delete incomplete files, except for those that a row needs: after a restore of an older database, they may be the only
    copy.
    """
    try:
        driver.remove_orphans(cloud_project, is_needed)
    except StorageError:
        return False
    return not stored.is_unchanged()


def delete_snapshot_data(driver: Driver, disk: DiskImage) -> bool:
    """Only for deleted snapshots that aren't in the recycle bin, a state that is final."""
    try:
        driver.delete_snapshot(disk.ref)
    except StorageError:
        return False
    return True


def lock_snapshot(snapshot_id: UUID) -> Snapshot:
    lock_customer(Snapshot.objects.values_list("customer_id", flat=True).get(pk=snapshot_id))
    return Snapshot.objects.get(pk=snapshot_id)
