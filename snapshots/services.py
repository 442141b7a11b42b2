"""What users do with snapshots: take, verify, rename, delete, retry. Views, admin and commands use the same functions.

Each validates, writes in one transaction under the customer's lock, and returns the object, or raises an ActionRefused with
nothing written.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.usage import rename_resource
from cng_portal.accounts.models import Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.names import fold_name
from cng_portal.inventory.models import VirtualMachine, Volume

from . import checks, limits
from .checks import Source
from .deletion_preview import join_names, preview_disks
from .errors import ActionRefused, DamagedSnapshot, InvalidState, LastRestorePoint
from .locks import why_locked
from .models import (
    BackupRun,
    DeletionCause,
    DiskImage,
    Draft,
    Kind,
    Operation,
    OperationQuerySet,
    Snapshot,
    State,
)
from .operations.lifecycle import create_operation
from .recycle_bin import goes_to_bin, put_in_bin
from .volumes.services import check_price, retry_volume_operation

# More IDs make a URL that web servers refuse.
MAX_DELETIONS = 50


def request_snapshot(
    *,
    source: Source,
    name: str,
    user: User,
    project: Project | None = None,
    expires_at: datetime | None = None,
    shown_hourly_micro: int | None = None,
    draft: Draft | None = None,
    note: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Snapshot:
    """Request a snapshot of a volume or machine. The same draft again returns the snapshot it created the first time.

    `project` is the snapshot's, of the same customer, by default the source's. The portal deletes it at `expires_at`,
    which must be later than now. `shown_hourly_micro` is the price that the user saw. Raises any ActionRefused.
    """
    checks.check_space(source)
    with transaction.atomic():
        lock_customer(source.project.customer_id)
        if draft and (made := Snapshot.objects.filter(draft=draft).first()):
            return made
        source = checks.reload_source(source)
        project = checks.reload_project(project or source.project, source.project.customer_id)
        user = User.objects.get(pk=user.pk)
        checks.require_change(user, source.project_id)
        checks.require_change(user, project.pk)
        limits.check_rate_limit(source.project.customer_id, Operation.Kind.CAPTURE)
        quote = checks.check_deliverable(source, project=project)
        name = checks.check_name(source.project.customer_id, name)
        checks.check_shown_price(quote, shown_hourly_micro)
        snapshot = create_snapshot_row(
            source=source,
            volumes=checks.volumes_of(source),
            name=name,
            user=user,
            project=project,
            draft=draft,
            note=note,
            metadata=metadata,
        )
        if expires_at:
            if expires_at <= timezone.now():
                raise InvalidState(_("Its expiry date has already passed. Choose another one."))
            snapshot.expires_at = expires_at
            snapshot.save(update_fields=["expires_at"])
        create_operation(kind=Operation.Kind.CAPTURE, snapshot=snapshot, requested_by=user)
    return snapshot


def create_snapshot_row(
    *,
    source: Source,
    volumes: list[Volume],
    name: str,
    user: User | None,
    project: Project | None = None,
    draft: Draft | None = None,
    kind: Kind | None = None,
    note: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Snapshot:
    """Create the pending snapshot and its disks. `project` is by default the source's.

    The caller must hold the customer's lock, have made the checks, and create the operation.
    """
    kind = kind or checks.kind_of(source)
    snapshot = Snapshot.objects.create(
        kind=kind,
        customer_id=source.project.customer_id,
        project=project or source.project,
        location=source.location,
        volume=source if isinstance(source, Volume) else None,
        vm=source if isinstance(source, VirtualMachine) else None,
        vm_config=describe_machine(source, volumes) if isinstance(source, VirtualMachine) else {},
        name=name,
        name_key=fold_name(name),
        size_gb=sum(volume.size_gb for volume in volumes),
        requested_by=user,
        draft=draft,
        note=note,
        metadata=metadata,
    )
    for position, volume in enumerate(volumes):
        DiskImage.objects.create(
            # A volume snapshot is one disk, which storage knows by the same ID.
            id=snapshot.pk if kind == Kind.VOLUME else uuid4(),
            snapshot=snapshot,
            volume=volume,
            volume_name=volume.name,
            position=position,
            size_gb=volume.size_gb,
        )
    return snapshot


def describe_machine(vm: VirtualMachine, volumes: list[Volume]) -> dict[str, Any]:
    """Return the configuration from which a machine like this one is created."""
    return {
        "name": vm.name,
        "vcpus": vm.vcpus,
        "memory_mb": vm.memory_mb,
        "hourly_price_micro": vm.hourly_price_micro,
        "volumes": [
            {"uuid": str(volume.pk), "name": volume.name, "size_gb": volume.size_gb, "position": volume.position}
            for volume in volumes
        ],
    }


def request_verification(*, snapshot: Snapshot, user: User) -> Operation:
    """Request a verification, or return the one that is active."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        checks.require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        checks.require_ready(snapshot)
        running = Operation.objects.active().filter(snapshot=snapshot, kind=Operation.Kind.VERIFY).first()
        if running:
            return running
        limits.check_rate_limit(snapshot.customer_id, Operation.Kind.VERIFY)
        return create_operation(kind=Operation.Kind.VERIFY, snapshot=snapshot, requested_by=user)


def rename_snapshot(*, snapshot: Snapshot, user: User, name: str) -> Snapshot:
    """Raises NameTaken, InvalidState."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        checks.require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.state in (State.DELETING, State.DELETED):
            raise InvalidState(_("The snapshot is being deleted, so it can't be renamed."))
        before, snapshot.name = snapshot.name, checks.check_name(snapshot.customer_id, name, exclude=snapshot.pk)
        snapshot.name_key = fold_name(snapshot.name)
        snapshot.save(update_fields=["name", "name_key"])
        rename_resource(resource_id=snapshot.pk, name=snapshot.name)
        old, new = {"name": before}, {"name": snapshot.name}
        activity.record(action="snapshot.rename", actor=user, target=snapshot, before=old, after=new)
    return snapshot


def request_deletion(*, snapshot: Snapshot, user: User, even_if_last: bool = False) -> Snapshot:
    """Put the snapshot in the recycle bin, or delete it if there is none. Either ends the charge at once.

    No-op if it was deleted before. Raises InvalidState, and LastRestorePoint for the last restore point of a disk, unless
    the user has confirmed that: `even_if_last`.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        checks.require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.state in (State.DELETING, State.DELETED):
            return snapshot
        if reason := why_not_deletable(snapshot):
            raise InvalidState(reason)
        if not even_if_last:
            check_not_last(snapshot, user)
        if goes_to_bin(snapshot):
            put_in_bin(snapshot, at=timezone.now(), user=user)
        else:
            accept_deletion(snapshot, at=timezone.now(), cause=DeletionCause.USER, user=user)
    snapshot.refresh_from_db()
    return snapshot


def check_not_last(snapshot: Snapshot, user: User) -> None:
    """Raise LastRestorePoint if a disk would have no restore point without the snapshot."""
    volumes = {disk.volume_id: disk.volume for disk in snapshot.disks.select_related("volume")}
    if last_of := [disk.volume for disk in preview_disks(volumes, [snapshot.pk], user) if disk.loses_last]:
        raise LastRestorePoint(
            _("“%(name)s” is the last restore point of %(volumes)s. Confirm that you want to delete it.")
            % {"name": snapshot.name, "volumes": join_names(volume.name for volume in last_of)}
        )


def why_not_deletable(snapshot: Snapshot) -> str:
    """Return why the snapshot can't be deleted now, or an empty string."""
    if snapshot.state in (State.PENDING, State.CREATING):
        return _("The snapshot is still being taken. Cancel it instead.")
    if reason := why_locked(snapshot):
        return reason
    operation = uses_of(snapshot).exclude(kind=Operation.Kind.DELETE).first()
    if operation is None:
        return ""
    return _("The snapshot is in use (%(operation)s). Delete it when that has finished.") % {
        "operation": operation.get_kind_display()
    }


def request_deletions(*, snapshots: Iterable[Snapshot], user: User, even_if_last: bool = False) -> dict[UUID, str]:
    """Delete each snapshot that can be deleted, and return {ID: why it wasn't, or an empty string}.

    They are deleted one by one, so without `even_if_last` one restore point of each disk stays. The caller limits them to
    MAX_DELETIONS. Raises only PermissionDenied.
    """
    results = {}
    for snapshot in snapshots:
        try:
            request_deletion(snapshot=snapshot, user=user, even_if_last=even_if_last)
            results[snapshot.pk] = ""
        except ActionRefused as error:
            results[snapshot.pk] = str(error)
    return results


def uses_of(snapshot: Snapshot) -> OperationQuerySet:
    """Return the active operations that need the snapshot."""
    operations = Operation.objects.active().filter(Q(snapshot=snapshot) | Q(safety_snapshot=snapshot))
    return operations.exclude(kind__in=[*Operation.READING, Operation.Kind.CLEAN_UP])


def accept_deletion(snapshot: Snapshot, *, at: datetime, cause: DeletionCause, user: User | None = None) -> None:
    """End the charge and create the operation that deletes the snapshot.

    The caller must hold the customer's lock and have checked that it is Ready or Failed. Raises IntegrityError if anything
    but a user would delete a pinned backup or a schedule's newest verified one.
    """
    Snapshot.objects.transition(
        snapshot.pk, [snapshot.state], State.DELETING, delete_requested_at=at, deletion_cause=cause
    )
    snapshot.stop_charging(at)
    create_operation(kind=Operation.Kind.DELETE, snapshot=snapshot, requested_by=user)


def delete_automatically(snapshot: Snapshot, *, at: datetime, cause: DeletionCause, uses_bin: bool = False) -> None:
    """Delete a snapshot that expired or that retention removes, for good unless it goes to the recycle bin.

    It goes there with `uses_bin`, and always where a second owner approves deletions past the bin. The caller must hold the
    customer's lock. Raises IntegrityError as `accept_deletion` does.
    """
    uses_bin = uses_bin or snapshot.project.customer.needs_approval
    remove = put_in_bin if uses_bin and goes_to_bin(snapshot) else accept_deletion
    remove(snapshot, at=at, cause=cause)


def retry(*, operation: Operation, user: User) -> Operation:
    """Request a failed operation again, as a new one, after the checks of a first request.

    Raises InvalidState if it didn't fail, was requested again already, or is the portal's own, as a drill is, which is
    started anew; and any ActionRefused of its kind.
    """
    snapshot = operation.snapshot
    if snapshot is None:
        return retry_volume_operation(operation=operation, user=user)
    if operation.kind == Operation.Kind.CAPTURE:
        checks.check_space(snapshot.source)
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        operation = Operation.objects.select_related("volume__project").get(pk=operation.pk)
        snapshot = checks.reload_snapshot(snapshot)
        user = User.objects.get(pk=user.pk)
        checks.require_change(user, snapshot.project_id)
        if operation.kind == Operation.Kind.CAPTURE:
            checks.require_change(user, snapshot.source.project_id)
        elif operation.kind == Operation.Kind.NEW_VOLUME and operation.volume:
            checks.require_change(user, operation.volume.project_id)
        newer = Operation.objects.filter(
            snapshot=snapshot, kind=operation.kind, volume=operation.volume, created_at__gt=operation.created_at
        )
        nothing_to_retry = InvalidState(_("There is nothing to retry: it didn't fail, or it was already retried."))
        # `newer` depends on clocks. The states checked below decide.
        is_failure = operation.state == Operation.State.FAILED and operation.kind not in Operation.MAINTENANCE
        if not is_failure or newer.exists():
            raise nothing_to_retry
        if operation.kind == Operation.Kind.RESTORE:
            raise InvalidState(
                _("Start the restore again from the snapshot's page, because it needs your confirmation.")
            )
        limits.check_rate_limit(snapshot.customer_id, Operation.Kind(operation.kind))
        if operation.kind == Operation.Kind.CAPTURE:
            stop_clean_up(snapshot)
            reopen_run(snapshot)
            retake(snapshot)
        elif operation.kind == Operation.Kind.NEW_VOLUME:
            checks.require_ready(snapshot)
            if snapshot.is_damaged and not operation.unchecked:
                raise DamagedSnapshot(
                    _("“%(name)s” is damaged. Make a new volume from another snapshot.") % {"name": snapshot.name}
                )
            assert operation.volume is not None  # held by the constraint operation_target
            check_price(operation.volume.project, snapshot.location, operation.volume.size_gb)
            failed = Volume.objects.filter(pk=operation.volume_id, state=Volume.State.ERROR)
            if not failed.update(state=Volume.State.CREATING, deleted_at=None):
                raise nothing_to_retry
            limits.check_volume_quota(operation.volume.project_id, [])  # The volume counts already.
        elif operation.kind == Operation.Kind.DELETE and not can_be_erased(snapshot):
            raise nothing_to_retry
        elif operation.kind == Operation.Kind.VERIFY:
            checks.require_ready(snapshot)
        return create_operation(
            kind=operation.kind,
            snapshot=snapshot,
            volume=operation.volume,
            disk_id=operation.disk_id,
            unchecked=operation.unchecked,
            requested_by=user,
        )


def can_be_erased(snapshot: Snapshot) -> bool:
    """Return whether its deletion was accepted, or it has left the recycle bin to be erased."""
    return snapshot.state == State.DELETING or (snapshot.state == State.DELETED and not snapshot.is_in_bin)


def reopen_run(snapshot: Snapshot) -> None:
    """Continue the run of a backup that a user retries, with a new number because it becomes the newest backup.

    The caller must hold the customer's lock. Raises InvalidState while another run of its source is unfinished.
    """
    run = BackupRun.objects.select_related("schedule", "vm", "volume").filter(snapshot=snapshot).first()
    if run is None:
        return
    if BackupRun.objects.unfinished().of_source(run.source).exclude(pk=run.pk).exists():
        raise InvalidState(_("The schedule is already taking another one. Try again when it has finished."))
    BackupRun.objects.filter(pk=run.pk).update(
        number=run.schedule.next_run_number(),
        state=BackupRun.State.TAKING,
        next_try_at=None,
        finished_at=None,
        reason="",
    )


def has_other_disks(snapshot: Snapshot) -> bool:
    """Return whether disks were attached to or detached from its source since the snapshot was requested."""
    volumes = checks.volumes_of(snapshot.source)
    return {disk.volume_id for disk in snapshot.disks.all()} != {volume.pk for volume in volumes}


def stop_clean_up(snapshot: Snapshot) -> None:
    """Cancel the pending clean-up, because the retry reuses what it would remove. Raises InvalidState if it is running."""
    clean_ups = Operation.objects.active().filter(snapshot=snapshot, volume=None, kind=Operation.Kind.CLEAN_UP)
    clean_ups.filter(state=Operation.State.PENDING).delete()
    if clean_ups.exists():
        raise InvalidState(
            _("The storage is still cleaning up after the failed attempt. Try again when it has finished.")
        )


def retake(snapshot: Snapshot, at: datetime | None = None) -> None:
    """Make a failed snapshot pending again, with the current sizes of its disks. The caller must hold the lock."""
    source = checks.reload_source(snapshot.source)
    if snapshot.is_charged:
        checks.check_deliverable(source, at, project=snapshot.project, kind=snapshot.kind)
    else:
        checks.check_capturable(source, project=snapshot.project)
    volumes = checks.volumes_of(source)
    if has_other_disks(snapshot):
        raise InvalidState(_("The instance's disks have changed since this was requested. Take a new one instead."))
    size_gb = sum(volume.size_gb for volume in volumes)
    if not Snapshot.objects.transition(snapshot.pk, [State.FAILED], State.PENDING, error="", size_gb=size_gb):
        raise InvalidState(_("The snapshot can't be retried in its state. Take a new one instead."))
    for volume in volumes:
        snapshot.disks.filter(volume=volume).update(size_gb=volume.size_gb)
