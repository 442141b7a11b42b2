"""The life of an operation: asked for, woken, claimed under a lease, finished once.

Nothing here touches storage. Every write to an operation is a compare-and-set that names the attempt, so that a worker
whose lease ran out cannot change what its successor does. Wake-ups may be lost or doubled without harm: a doubled one
finds nothing to claim, and `reconcile` repeats a lost one.
"""

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import close_old_connections, connection, transaction
from django.db.models import DateTimeField, F, Q, Value, Window
from django.db.models.functions import Coalesce, Least, RowNumber
from django.utils import timezone

from cng_portal import logs
from cng_portal.accounts import activity
from cng_portal.accounts.services import lock_customer

from .drivers.base import Interrupted
from .models import Draft, Operation

logger = logging.getLogger(__name__)

# A pending operation that nobody took for this long gets another wake-up call.
WAKE_AGAIN_AFTER = timedelta(seconds=60)
WOKEN_AT_ONCE = 1_000
LONGEST_PAUSE = timedelta(minutes=10)
PROGRESS_EVERY_SECONDS = 1.0
KEEP_DRAFTS = timedelta(days=30)
# of one person, who may begin as many as a program can
MOST_DRAFTS = 200
DRAFTS_AT_ONCE = 10_000

# Set by the worker's SIGTERM handler: the running operation is handed back at its next heartbeat.
stopping = threading.Event()


class LeaseLost(Interrupted):
    """Somebody else has this operation now; whatever is not written yet must not be."""


def enqueue(operation: Operation, *, at: datetime | None = None) -> None:
    """Send the wake-up call, inside the caller's transaction; `at` delays it."""
    from .tasks import run_operation

    task = run_operation.using(run_after=at) if at else run_operation
    task.enqueue(str(operation.pk))


def create_operation(**fields: Any) -> Operation:
    operation = Operation.objects.create(**fields, request_id=logs.request_id())
    activity.record(act=f"snapshot.{operation.kind}", actor=operation.requested_by, thing=operation.snapshot)
    enqueue(operation)
    with logs.within(operation_id=str(operation.pk)):
        logger.info("Asked for: %s", operation.kind)
    return operation


def put_off(now: datetime) -> Q:
    """By an error, until later. What has none can be taken at once: the clock of who asked for it may be ahead of ours."""
    return Q(not_before__gt=now) & ~Q(error="")


def claim(operation_id: UUID | str, *, now: datetime | None = None) -> Operation | None:
    """Take a waiting operation, or one whose lease ran out, with a new attempt number; None if there is none to take."""
    given, now = now, now or timezone.now()
    claimable = Operation.objects.filter(pk=operation_id).filter(
        Q(~put_off(now), state=Operation.State.PENDING) | Q(state=Operation.State.RUNNING, lease_until__lt=now)
    )
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
        "snapshot__location", "volume", "disk__volume", "safety_snapshot__location"
    )
    operation = related.get(pk=operation_id)
    operation.attempt = attempt + 1  # ours, even if another claim followed before the read
    operation.carried_out_at = given
    return operation


class Lease:
    """Keeps an operation ours while storage works on it, in a thread of its own because a call may be long and silent.

    Use as a context manager. `heartbeat` is what drivers call: it records progress and raises Interrupted when the
    worker shall stop, LeaseLost when the operation is no longer ours. After settings.OPERATION_DEADLINE_HOURS the
    lease is not renewed any more, so that a call that hangs for ever does not hold its operation for ever.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.lost = threading.Event()
        self.done = threading.Event()
        self.deadline = timezone.now() + timedelta(hours=settings.OPERATION_DEADLINE_HOURS)
        self.reported_at = timezone.now()
        in_our_words = copy_context()  # what the thread logs carries our ids
        self.thread = threading.Thread(
            target=in_our_words.run, args=[self._renew], name=f"lease-{operation.pk}", daemon=True
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
        now = timezone.now()
        if (now - self.reported_at).total_seconds() >= PROGRESS_EVERY_SECONDS:
            self.reported_at = now
            if not update(self.operation, bytes_done=bytes_done, bytes_total=bytes_total):
                self.lost.set()
                raise LeaseLost

    def _renew(self) -> None:
        try:
            while not self.done.wait(settings.OPERATION_LEASE_SECONDS / 3):
                close_old_connections()
                now = timezone.now()
                lease_until = now + timedelta(seconds=settings.OPERATION_LEASE_SECONDS)
                if now > self.deadline or not update(self.operation, lease_until=lease_until):
                    self.lost.set()
                    return
        except Exception:
            # without renewal the lease runs out and another worker takes over, so this one must not go on
            logger.exception("The lease of operation %s could not be renewed", self.operation.pk)
            self.lost.set()
        finally:
            connection.close()


def update(operation: Operation, **fields: Any) -> bool:
    """Write to the operation while it is still ours."""
    mine = Operation.objects.filter(pk=operation.pk, state=Operation.State.RUNNING, attempt=operation.attempt)
    return mine.update(**fields) == 1


def finish(
    operation: Operation, state: str, settle: Callable[[datetime], None], *, error: str = "", cause: str = ""
) -> None:
    """End the operation, apply what it means and write it down, in one transaction: all or nothing. Raises LeaseLost.

    `settle` gets the instant at which it ended. The customer's lock comes first, as `lock_customer` says.
    """
    with transaction.atomic():
        lock_customer(operation.snapshot.customer_id)
        now = operation.carried_out_at or timezone.now()
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
        settle(now)
        result = "ready" if state == Operation.State.SUCCEEDED else "failed"
        reason = {"reason": error} if error else {}
        activity.record(act=f"{result}.{operation.kind}", actor=None, thing=operation.snapshot, after=reason)
    logger.info("Ended: %s", f"{state}. {error}" if error else state)


def hand_back(
    operation: Operation, *, interrupted: bool = False, retry_in: timedelta = timedelta(), error: str = ""
) -> None:
    """Let another attempt have it: at once after an interruption, later after an error that may pass. Ours or no-op."""
    at = timezone.now() + retry_in
    with transaction.atomic():
        handed_back = update(
            operation,
            state=Operation.State.PENDING,
            lease_until=None,
            not_before=at,
            woken_at=at,
            error=error,
            interruptions=F("interruptions") + int(interrupted),
        )
        if handed_back:
            enqueue(operation, at=at if retry_in else None)
    logger.info("Handed back: %s", "interrupted" if interrupted else error)


def retry_pause(operation: Operation) -> timedelta:
    """5, 20, 80 … seconds, at most 10 minutes."""
    return timedelta(seconds=min(LONGEST_PAUSE.total_seconds(), 5 * 4**operation.failures))


def reconcile(*, now: datetime | None = None) -> int:
    """Wake what was forgotten: operations of dead workers, and waiting ones whose wake-up call got lost. Returns how
    many; at most WOKEN_AT_ONCE, and the next round the others.

    So is what waits for an instant further ahead than anything is ever put off: the clock was set back since.
    """
    now = now or timezone.now()
    far_ahead = now + LONGEST_PAUSE + WAKE_AGAIN_AFTER
    forgotten = Operation.objects.active().filter(
        Q(state=Operation.State.RUNNING, lease_until__lt=now)
        | Q(
            state=Operation.State.RUNNING, lease_until__gt=now + 2 * timedelta(seconds=settings.OPERATION_LEASE_SECONDS)
        )
        | Q(state=Operation.State.PENDING, not_before__lte=now, woken_at__lt=now - WAKE_AGAIN_AFTER)
        | Q(state=Operation.State.PENDING, not_before__gt=far_ahead)
        | Q(state=Operation.State.PENDING, woken_at__gt=far_ahead)
    )
    woken = 0
    # all are read before the first is changed: SQLite lets nobody write who has not read to the end what others change
    for operation in list(forgotten.order_by("not_before")[:WOKEN_AT_ONCE]):
        with transaction.atomic():
            # compare-and-set, so that of two schedulers only one sends the call
            same = forgotten.filter(pk=operation.pk, attempt=operation.attempt, woken_at=operation.woken_at)
            waits_since = Least("not_before", Value(now, output_field=DateTimeField()))
            if same.update(state=Operation.State.PENDING, lease_until=None, woken_at=now, not_before=waits_since):
                enqueue(operation)
                woken += 1
                with logs.within(operation_id=str(operation.pk), request_id=operation.request_id):
                    logger.warning("Woken again: nobody had taken it, or its worker died")
    return woken


def forget_old_drafts(*, now: datetime | None = None) -> int:
    """Remove the drafts that nobody finished within 30 days, and of one person's all but the newest MOST_DRAFTS. Returns
    how many.
    """
    unfinished = Draft.objects.filter(snapshot=None, schedule=None)
    newest_first = Window(RowNumber(), partition_by="created_by", order_by=["-created_at", "-id"])
    too_many = unfinished.annotate(place=newest_first).filter(place__gt=MOST_DRAFTS).values_list("pk", flat=True)
    old = Q(created_at__lt=(now or timezone.now()) - KEEP_DRAFTS)
    return unfinished.filter(old | Q(pk__in=list(too_many[:DRAFTS_AT_ONCE]))).delete()[0]
