"""The state machine of operations: created, claimed by a worker under a lease, finished once.

Every write to an operation is a compare-and-set that names the attempt, so that a worker whose lease ran out can't overwrite
its successor's work. Leases go by the database's clock, because workers' clocks differ.

A task in the queue starts a worker and names no operation: `claim_next` decides what runs next. A worker goes on claiming
until nothing may run, so tasks may be lost or doubled without harm, and `reconcile` enqueues one where none is left.
"""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import close_old_connections, connection, transaction
from django.db.models import Case, Count, DateTimeField, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce, Least
from django.utils import timezone
from django.utils.module_loading import import_string
from django_tasks.base import Task
from django_tasks_db.models import DBTaskResult

from cng_portal.accounts.models import Customer
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.clock import database_now
from cng_portal.common.log_context import bind_fields, get_request_id
from cng_portal.inventory.models import Location
from cng_portal.monitoring.heartbeats import count_workers

from ..models import CUSTOMER, Operation, OperationQuerySet, Snapshot
from ..storage.contract import Interrupted

logger = structlog.stdlib.get_logger(__name__)

RECONCILED_AT_ONCE = 1_000
# A snapshot on which maintenance failed is tried once a day, so that it doesn't hold up the others.
RETRY_MAINTENANCE_AFTER = timedelta(days=1)
LONGEST_PAUSE = timedelta(minutes=10)
# While the disk is busy. Short, to notice soon that it is free.
LONGEST_BUSY_PAUSE = timedelta(minutes=1)
# After this a background verification is treated like any other operation.
BACKGROUND_WAITS = timedelta(hours=1)
IS_MAINTENANCE = Q(kind__in=Operation.MAINTENANCE)
# Nobody waits long behind these.
SHORT_KINDS = [
    Operation.Kind.DELETE,
    Operation.Kind.CLEAN_UP,
    Operation.Kind.CREATE_VOLUME,
    Operation.Kind.EXTEND_VOLUME,
    Operation.Kind.DELETE_VOLUME,
]
LAST_SERVED_AT = Coalesce("snapshot__customer__last_served_at", "volume__project__customer__last_served_at")
PROGRESS_EVERY_SECONDS = 1.0

# By name, because tasks.py imports handlers.py, which imports this module.
WORKER_TASK = "snapshots.tasks.run_waiting_operations"

# Set by the worker's SIGTERM handler. The running operation is released at its next heartbeat.
stopping = threading.Event()


class LeaseLost(Interrupted):
    """Another worker has this operation, or it was cancelled. Nothing more may be written."""


def enqueue_worker(*, at: datetime | None = None) -> None:
    """Start a worker once the caller's transaction commits, or at `at`."""
    task: Task[[], None] = import_string(WORKER_TASK)
    task.using(run_after=at).enqueue()


def create_operation(**fields: Any) -> Operation:
    """Create the operation, record it in the activity log, and start a worker."""
    operation = Operation.objects.create(**fields, request_id=get_request_id())
    if operation.kind not in Operation.MAINTENANCE:  # Not a user's action. Damage has its own entry.
        area = "snapshot" if operation.snapshot else "volume"
        activity.record(action=f"{area}.{operation.kind}", actor=operation.requested_by, target=operation.subject)
    enqueue_worker()
    with bind_fields(operation_id=str(operation.pk)):
        logger.info("operation.requested", kind=operation.kind)
    return operation


def request_clean_up(operation: Operation) -> None:
    """Request the removal of a cancelled operation's remains in the storage. No-op if it is requested already.

    The caller must hold the customer's lock.
    """
    kinds = Operation.Kind
    if operation.kind in (kinds.VERIFY, kinds.DRILL) or (
        operation.kind == kinds.RESTORE and operation.safety_snapshot and operation.safety_snapshot.ready_at
    ):
        return  # It leaves nothing, what `drills.services.remove_leftovers` removes, or a Ready snapshot.
    target = {
        "snapshot": operation.safety_snapshot or operation.snapshot,
        "volume": operation.volume if operation.kind in (kinds.NEW_VOLUME, kinds.CREATE_VOLUME) else None,
    }
    if not Operation.objects.active().filter(kind=kinds.CLEAN_UP, **target).exists():
        create_operation(kind=kinds.CLEAN_UP, **target)


def backed_off(now: datetime) -> Q:
    """Match operations backed off after an error. Others are due at once: the requester's clock may be ahead of ours."""
    return Q(not_before__gt=now) & ~Q(error="")


def exclude_busy(snapshots: QuerySet[Snapshot], kind: Operation.Kind, now: datetime) -> QuerySet[Snapshot]:
    """Exclude snapshots that are in use, and those on which this kind of operation has just failed."""
    busy = Operation.objects.active().filter(Q(snapshot=OuterRef("pk")) | Q(safety_snapshot=OuterRef("pk")))
    failed = Operation.objects.filter(
        snapshot=OuterRef("pk"),
        kind=kind,
        state=Operation.State.FAILED,
        finished_at__gt=now - RETRY_MAINTENANCE_AFTER,
    )
    return snapshots.exclude(Exists(busy)).exclude(Exists(failed))


def start_maintenance(location: Location, kind: Operation.Kind, due: QuerySet[Snapshot], *, at_once: int) -> int:
    """Start the operation on the first of the location's snapshots that are due. Returns how many were started.

    At most `at_once` of this kind are active in a location. Whether a snapshot is due is asked again under the lock.
    """
    active = Operation.objects.active().filter(kind=kind, snapshot__location=location).count()
    started = 0
    for snapshot in due[: max(0, at_once - active)]:
        with transaction.atomic():
            lock_customer(snapshot.customer_id)
            if due.filter(pk=snapshot.pk).exists():
                create_operation(kind=kind, snapshot=snapshot)
                started += 1
    return started


def waiting(now: datetime) -> OperationQuerySet:
    """Return the operations that a worker could claim, including those of dead workers."""
    pending, lost = (
        Q(~backed_off(now), state=Operation.State.PENDING),
        Q(state=Operation.State.RUNNING, lease_until__lt=now),
    )
    return Operation.objects.active().filter(pending | lost)


def in_turn(now: datetime) -> OperationQuerySet:
    """Return the operations that a free worker may claim now, in order.

    1. The last free worker takes no long operation of a customer that has one running, so that nobody waits behind
       another customer's long work. A single worker takes everything.
    2. Customers' work comes before background verifications, which never take the last free worker either. After
       BACKGROUND_WAITS they are treated like any other operation, except scrubs, catalogues and drills.
    3. The customer with the fewest running operations comes first, these not counted, then the one served longest ago,
       then the oldest operation.
    """
    active = Operation.objects.active().filter(state=Operation.State.RUNNING, lease_until__gte=now).order_by()
    counts = active.values(owner=CUSTOMER).annotate(total=Count("pk"), own=Count("pk", filter=~IS_MAINTENANCE))
    by_customer = list(counts.values_list("owner", "own", "total"))
    running = {customer: own for customer, own, _total in by_customer if own}
    workers = count_workers(now)
    in_background = IS_MAINTENANCE | (Operation.BACKGROUND & Q(created_at__gt=now - BACKGROUND_WAITS))
    allowed = waiting(now).alias(owner=CUSTOMER, last_served_at=LAST_SERVED_AT)
    if workers > 1 and workers - sum(total for _customer, _own, total in by_customer) <= 1:
        allowed = allowed.exclude(in_background | (~Q(kind__in=SHORT_KINDS) & Q(owner__in=running)))
    # PostgreSQL refuses to sort by a constant, which a Case without conditions is.
    loads = [When(owner=pk, then=count) for pk, count in running.items()]
    # A time in the future was written before the clock was set back.
    served_at = Case(When(last_served_at__lte=now, then=F("last_served_at")))
    return allowed.order_by(
        Case(When(in_background, then=1), default=0),
        *([Case(*loads, default=0)] if loads else []),
        served_at.asc(nulls_first=True),
        "created_at",
        "pk",
    )


def claim_next(*, now: datetime | None = None) -> Operation | None:
    """Claim the next operation, or return None if none may run now.

    The customer's lock keeps two workers from exceeding the customer's share together.
    """
    override, now = now, now or database_now()
    while first := in_turn(now).annotate(owner=CUSTOMER).values_list("pk", "owner").first():
        operation_id, customer_id = first
        with transaction.atomic():
            lock_customer(customer_id)
            still_in_turn = in_turn(now).filter(pk=operation_id).exists()
            if still_in_turn and (operation := claim(operation_id, now=override)):
                Customer.objects.filter(pk=customer_id).update(last_served_at=now)
                return operation
    return None


def claim(operation_id: UUID | str, *, now: datetime | None = None) -> Operation | None:
    """Claim this operation with a new attempt number, or return None if it isn't waiting."""
    override, now = now, now or database_now()
    claimable = waiting(now).filter(pk=operation_id)
    attempt = claimable.values_list("attempt", flat=True).first()
    if attempt is None:
        return None
    taken = claimable.filter(attempt=attempt).update(
        state=Operation.State.RUNNING,
        attempt=attempt + 1,
        lease_until=now + timedelta(seconds=settings.OPERATION_LEASE_SECONDS),
        started_at=Coalesce("started_at", now),
        bytes_done=0,
        error="",
    )
    if not taken:
        return None
    related = Operation.objects.select_related(
        "snapshot__location", "volume__project", "volume__location", "disk__volume", "safety_snapshot__location"
    )
    operation = related.get(pk=operation_id)
    operation.attempt = attempt + 1  # Ours, even if another claim followed before the read.
    operation.now_override = override
    return operation


class Lease:
    """Renews an operation's lease in a thread while the driver works, because a driver's call may be long and silent.

    Use as a context manager. Drivers call `heartbeat`, which records progress and raises Interrupted when the worker has to
    stop and LeaseLost when the operation is no longer ours. After settings.OPERATION_DEADLINE_HOURS the lease isn't renewed,
    so that a call that hangs doesn't hold the operation forever.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.lost = threading.Event()
        self.done = threading.Event()
        # Monotonic, because the clock may be set meanwhile.
        self.deadline = time.monotonic() + settings.OPERATION_DEADLINE_HOURS * 3600
        self.reported_at = time.monotonic()
        context = copy_context()  # The thread logs with our IDs.
        self.thread = threading.Thread(
            target=context.run, args=[self._renew], name=f"lease-{operation.pk}", daemon=True
        )

    def __enter__(self) -> "Lease":
        self.thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.done.set()
        self.thread.join()

    def heartbeat(self, bytes_done: int, bytes_total: int) -> None:
        if self.lost.is_set():
            raise LeaseLost
        if stopping.is_set():
            raise Interrupted
        now = time.monotonic()
        if now - self.reported_at >= PROGRESS_EVERY_SECONDS:
            self.reported_at = now
            if not update(self.operation, bytes_done=bytes_done, bytes_total=bytes_total):
                self.lost.set()
                raise LeaseLost

    def _renew(self) -> None:
        try:
            while not self.done.wait(settings.OPERATION_LEASE_SECONDS / 3):
                close_old_connections()
                lease_until = database_now() + timedelta(seconds=settings.OPERATION_LEASE_SECONDS)
                if time.monotonic() > self.deadline or not update(self.operation, lease_until=lease_until):
                    self.lost.set()
                    return
        except Exception:
            # The lease runs out and another worker takes over, so this one must stop.
            logger.exception("operation.renewal_failed", operation_id=str(self.operation.pk))
            self.lost.set()
        finally:
            connection.close()


def update(operation: Operation, **fields: Any) -> bool:
    """Write to the operation. Returns False if it is no longer ours."""
    same_attempt = Operation.objects.filter(pk=operation.pk, state=Operation.State.RUNNING, attempt=operation.attempt)
    return same_attempt.update(**fields) == 1


def finish(
    operation: Operation, state: str, record: Callable[[datetime], None], *, error: str = "", cause: str = ""
) -> None:
    """Finish the operation and record its outcome in one transaction. Raises LeaseLost.

    `record` is called with the time of the end. The customer's lock comes first, as in every transaction.
    """
    with transaction.atomic():
        lock_customer(operation.customer_id)
        now = operation.now_override or timezone.now()
        fields: dict[str, Any] = {
            "state": state,
            "finished_at": now,
            "lease_until": None,
            "error": error,
            "cause": cause,
        }
        if state == Operation.State.SUCCEEDED:
            fields["bytes_done"] = F("bytes_total")
        if not update(operation, **fields):
            raise LeaseLost
        record(now)
        result = "ready" if state == Operation.State.SUCCEEDED else "failed"
        reason = {"reason": error} if error else {}
        if operation.kind not in Operation.MAINTENANCE:
            activity.record(action=f"{result}.{operation.kind}", actor=None, target=operation.subject, after=reason)
    logger.info("operation.finished", kind=operation.kind, attempt=operation.attempt, state=str(state), error=error)


def release(operation: Operation, *, counted: bool = True, retry_in: timedelta = timedelta(), error: str = "") -> None:
    """Release the operation for another attempt, at once or after `retry_in`. No-op if it is no longer ours.

    `counted` is whether this attempt counts towards settings.OPERATION_MAX_ATTEMPTS.
    """
    at = database_now() + retry_in
    with transaction.atomic():
        released = update(
            operation,
            state=Operation.State.PENDING,
            lease_until=None,
            not_before=at,
            error=error,
            interruptions=F("interruptions") + int(not counted),
        )
        if released:
            enqueue_worker(at=at if retry_in else None)
    logger.info("operation.released", kind=operation.kind, attempt=operation.attempt, error=error)


def retry_pause(operation: Operation) -> timedelta:
    """Return 5, 20, 80 … seconds, at most 10 minutes."""
    return back_off(operation.failures, LONGEST_PAUSE)


def busy_pause(operation: Operation) -> timedelta:
    """Return 5, 20, 60, 60 … seconds."""
    return back_off(operation.attempt - 1, LONGEST_BUSY_PAUSE)


def back_off(failures: int, longest: timedelta) -> timedelta:
    return min(longest, timedelta(seconds=5 * 4 ** min(failures, 10)))


def reconcile(*, now: datetime | None = None) -> int:
    """Release and enqueue lost operations. Returns how many were released.

    1. Release the operations whose worker died, at most RECONCILED_AT_ONCE a call.
    2. Release operations whose lease or pause is longer than possible, because the clock was set back.
    3. Enqueue tasks if none is left although an operation may run.
    """
    now = now or database_now()
    longest_lease = 2 * timedelta(seconds=settings.OPERATION_LEASE_SECONDS)
    lost = Operation.objects.active().filter(
        Q(state=Operation.State.RUNNING, lease_until__lt=now)
        | Q(state=Operation.State.RUNNING, lease_until__gt=now + longest_lease)
        | Q(state=Operation.State.PENDING, not_before__gt=now + LONGEST_PAUSE + longest_lease)
    )
    released = 0
    # Read all before writing, because SQLite refuses to write during a read that others have overtaken.
    for operation in list(lost.order_by("not_before")[:RECONCILED_AT_ONCE]):
        due_at = Least("not_before", Value(now, output_field=DateTimeField()))
        same_attempt = lost.filter(pk=operation.pk, attempt=operation.attempt)
        if same_attempt.update(state=Operation.State.PENDING, lease_until=None, not_before=due_at):
            released += 1
            with bind_fields(operation_id=str(operation.pk), request_id=operation.request_id):
                logger.warning("operation.abandoned", kind=operation.kind, attempt=operation.attempt)
    if lacks_queued_task(now):
        for _worker in range(min(in_turn(now).count(), max(1, count_workers(now)))):
            enqueue_worker()
    return released


def lacks_queued_task(now: datetime) -> bool:
    """Return whether an operation may run and no task is queued for it."""
    return in_turn(now).exists() and not DBTaskResult.objects.ready().exists()
