"""The queue's entry: run operations, and turn errors into a retry or a failure."""

import contextlib
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, override
from django_tasks import task

from cng_portal.accounts.services import lock_customer
from cng_portal.common.log_context import bind_fields
from cng_portal.monitoring.models import StorageCheck

from .models import DiskImage, Operation, State, volume_ref
from .operations import lifecycle
from .operations.handlers import (
    HANDLERS,
    DamagedDisk,
    delete_disks,
    end_without_snapshot,
    fail_operation,
    why_snapshot_is_gone,
)
from .operations.lifecycle import LeaseLost
from .storage.contract import NOT_SET_UP, UNEXPECTED, WORKER_DIED, Busy, Corrupt, Interrupted, Refused, StorageError
from .storage.registry import get_driver

logger = structlog.stdlib.get_logger(__name__)


@task()
def run_waiting_operations() -> None:
    """Run one operation after the other until none may run or the worker stops."""
    while not lifecycle.stopping.is_set() and (operation := lifecycle.claim_next()):
        run_claimed(operation)
        close_old_connections()


def run_operation(operation_id: UUID, *, now: datetime | None = None) -> None:
    """Run this operation if it is waiting, whatever else waits. `now` replaces the clock."""
    if operation := lifecycle.claim(operation_id, now=now):
        run_claimed(operation)


def run_claimed(operation: Operation) -> None:
    """Run the operation's handler. Doesn't raise for failures, which are recorded on the row."""
    ids = bind_fields(operation_id=str(operation.pk), request_id=operation.request_id)
    with ids, override("en"):  # The reason is stored once, for all readers.
        logger.info("operation.started", kind=operation.kind, attempt=operation.attempt)
        try:
            if operation.may_fail_for_good and operation.failures >= settings.OPERATION_MAX_ATTEMPTS:
                give_up(operation)
                return
            with lifecycle.Lease(operation) as lease:
                HANDLERS[Operation.Kind(operation.kind)].run(operation, lease)
        except LeaseLost:
            if Operation.objects.filter(pk=operation.pk, state=Operation.State.CANCELLED).exists():
                clean_up_cancelled(operation)
            else:
                logger.warning("operation.lease_lost", kind=operation.kind, attempt=operation.attempt)
        except Interrupted:
            lifecycle.release(operation, counted=False)
        except Busy as error:
            retry_when_free(operation, str(error))
        except DamagedDisk as error:
            retry_or_fail(operation, str(error), retryable=False, cause=Corrupt.__name__, damaged_disk=error.disk)
        except StorageError as error:
            if reason := why_snapshot_is_gone(operation):
                end_without_snapshot(operation, reason)
                return
            if not isinstance(error, Refused):
                StorageCheck.objects.record_error(operation.subject.location_id)
            retry_or_fail(operation, str(error), retryable=error.retryable, cause=type(error).__name__)
        except ImproperlyConfigured:
            logger.exception("operation.storage_not_set_up", kind=operation.kind, attempt=operation.attempt)
            reason = _("The storage of %(location)s is not set up. Contact your provider.")
            reason %= {"location": operation.subject.location_id}
            retry_or_fail(operation, reason, retryable=False, cause=NOT_SET_UP)
        except Exception:
            logger.exception("operation.crashed", kind=operation.kind, attempt=operation.attempt)
            reason = _("Something went wrong in the portal. Try again. If it fails again, contact your provider.")
            retry_or_fail(operation, reason, retryable=True, cause=UNEXPECTED)


def clean_up_cancelled(operation: Operation) -> None:
    """Request a clean-up again: one that ran before this worker stopped may have missed what it created."""
    with transaction.atomic():
        lock_customer(operation.customer_id)
        lifecycle.request_clean_up(operation)
    logger.info("operation.cancelled", kind=operation.kind, attempt=operation.attempt)


def retry_or_fail(
    operation: Operation, reason: str, *, retryable: bool, cause: str, damaged_disk: DiskImage | None = None
) -> None:
    """Retry with backoff if that can help, else fail with the reason."""
    if retryable and not operation.is_last_attempt:
        lifecycle.release(operation, retry_in=lifecycle.retry_pause(operation), error=reason)
        return
    with contextlib.suppress(LeaseLost):  # Its new worker records the outcome.
        if HANDLERS[Operation.Kind(operation.kind)].settle(operation):
            return
        lifecycle.finish(
            operation,
            Operation.State.FAILED,
            lambda now: fail_operation(operation, reason, now, damaged_disk=damaged_disk),
            error=reason,
            cause=cause,
        )


def retry_when_free(operation: Operation, reason: str) -> None:
    """Retry without counting the attempt while something else holds the disk, until the deadline."""
    assert operation.started_at is not None  # held by the constraint operation_lease
    hours = settings.OPERATION_DEADLINE_HOURS
    now = operation.now_override or timezone.now()
    if operation.may_fail_for_good and now >= operation.started_at + timedelta(hours=hours):
        deadline = ngettext(
            "It was busy for %(hours)s hour, so the operation was stopped.",
            "It was busy for %(hours)s hours, so the operation was stopped.",
            hours,
        ) % {"hours": hours}
        retry_or_fail(operation, f"{reason} {deadline}", retryable=False, cause=Busy.__name__)
    else:
        lifecycle.release(operation, counted=False, retry_in=lifecycle.busy_pause(operation), error=reason)


def give_up(operation: Operation) -> None:
    """Fail after every attempt ended with the death of its worker, and delete the remains of the last one.

    Drivers clean up when a call fails, and at the next call after a crash. Here there is no next call.
    """
    kinds = Operation.Kind
    unfinished = {kinds.CAPTURE: operation.snapshot, kinds.RESTORE: operation.safety_snapshot}.get(
        kinds(operation.kind)
    )
    if unfinished and unfinished.state in (State.PENDING, State.CREATING):
        delete_disks(unfinished)
    if operation.volume and operation.kind in (kinds.NEW_VOLUME, kinds.CREATE_VOLUME):
        get_driver(operation.volume.location).delete_volume(volume_ref(operation.volume))
    retry_or_fail(
        operation,
        _("The storage worker stopped unexpectedly %(count)s times. Nothing was changed. Try again later.")
        % {"count": operation.failures},
        retryable=False,
        cause=WORKER_DIED,
    )
