"""Cancelling an active operation.

For the customer it ends at once: name and quota are free, and nothing is charged. Its worker notices at the next heartbeat
and removes what it has created so far; a clean-up operation removes what is left if that worker has died.
"""

from datetime import datetime

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import VirtualMachine, Volume

from ..checks import require_change
from ..drills.running import end_unfinished
from ..errors import InvalidState
from ..models import DeletionCause, Operation, Snapshot, State
from ..volumes.charges import stop_charging_volume
from .lifecycle import request_clean_up


def cancel(*, operation: Operation, user: User) -> Operation:
    """Cancel the operation. No-op if it is cancelled already. Raises InvalidState if it can no longer be cancelled.

    A new volume of a new machine is cancelled together with the machine and all of its volumes.
    """
    now = timezone.now()
    with transaction.atomic():
        lock_customer(operation.customer_id)
        related = ("snapshot", "safety_snapshot", "volume__vm", "volume__project")
        operation = Operation.objects.select_related(*related).get(pk=operation.pk)
        requester = User.objects.get(pk=user.pk)
        written = [target for target in (operation.safety_snapshot, operation.volume) if target is not None]
        for project_id in {operation.subject.project_id, *(target.project_id for target in written)}:
            require_change(requester, project_id)
        if operation.state == Operation.State.CANCELLED:
            return operation
        if not operation.can_be_cancelled:
            raise InvalidState(why_not(operation))
        machine = operation.volume.vm if operation.kind == Operation.Kind.NEW_VOLUME and operation.volume else None
        if machine and operation.snapshot:
            cancel_machine(machine, operation.snapshot, now)
        else:
            end(operation, now)
        after = {"operation": operation.get_kind_display()}
        activity.record(action="snapshot.cancel", actor=user, target=operation.subject, after=after)
    operation.refresh_from_db()
    return operation


def why_not(operation: Operation) -> str:
    """Return why the operation can't be cancelled."""
    if operation.is_active and operation.kind == Operation.Kind.RESTORE:
        return _(
            "The volume is being overwritten, so the restore can't be cancelled. You can undo it once it has finished."
        )
    if operation.is_active and operation.kind == Operation.Kind.EXTEND_VOLUME:
        return _("The storage is growing the volume already, so this can't be cancelled.")
    if operation.is_active:
        return _("This can't be cancelled.")
    return _("It has just ended, so there is nothing to cancel.")


def end(operation: Operation, now: datetime) -> None:
    """Mark the operation as cancelled. The customer's lock, which the caller must hold, keeps workers from claiming it."""
    Operation.objects.active().filter(pk=operation.pk).update(
        state=Operation.State.CANCELLED, finished_at=now, lease_until=None, error="", cause=""
    )
    if operation.kind == Operation.Kind.CAPTURE and operation.snapshot:
        remove_unfinished(operation.snapshot, now)
    elif operation.safety_snapshot:
        remove_unfinished(operation.safety_snapshot, now)
    elif operation.kind == Operation.Kind.DRILL:
        end_unfinished(operation.drill, _("It was cancelled."), now)
    elif operation.kind in (Operation.Kind.NEW_VOLUME, Operation.Kind.CREATE_VOLUME):
        Volume.objects.filter(pk=operation.volume_id).update(state=Volume.State.ERROR, deleted_at=now)
    if operation.attempt:
        request_clean_up(operation)


def remove_unfinished(snapshot: Snapshot, now: datetime) -> None:
    """Delete the row at once. It was never Ready, so it was never charged."""
    Snapshot.objects.transition(
        snapshot.pk,
        [State.PENDING, State.CREATING],
        State.DELETED,
        delete_requested_at=now,
        deleted_at=now,
        deletion_cause=DeletionCause.CANCELLED,
    )


def cancel_machine(machine: VirtualMachine, snapshot: Snapshot, now: datetime) -> None:
    """Delete the machine with its volumes, also those that are available: nothing has used them yet."""
    VirtualMachine.objects.filter(pk=machine.pk).update(deleted_at=now)
    makers = Operation.objects.filter(kind=Operation.Kind.NEW_VOLUME, snapshot=snapshot, volume__vm=machine)
    for operation in makers.select_related("snapshot", "volume"):
        if operation.is_active:
            end(operation, now)
        elif operation.state == Operation.State.SUCCEEDED:
            delete_at_once(operation.volume, now)
            request_clean_up(operation)


def delete_at_once(volume: Volume | None, now: datetime) -> None:
    """Delete an available volume and end its charge. Nothing has used it."""
    assert volume is not None  # held by the constraint operation_target
    deletable = Volume.objects.filter(pk=volume.pk, delete_requested_at=None)
    if deletable.update(state=Volume.State.DELETING, delete_requested_at=now, deleted_at=now):
        stop_charging_volume(volume, at=now)
