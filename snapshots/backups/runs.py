"""Runs of schedules: the scheduler starts, settles and retries them, and a user starts one with *Run now*.

Any number of schedulers may work at once and be killed at any point: what one has dealt with, another no longer finds.
Errors of one schedule or run are logged and don't stop the others.
"""

from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, override

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity

from ..checks import (
    Source,
    check_capturable,
    check_deliverable,
    check_space,
    free_name,
    reload_snapshot,
    reload_source,
    volumes_of,
)
from ..errors import ActionRefused, InvalidState, OutOfSpace
from ..limits import check_rate_limit
from ..locks import lock_scheduled, why_locked
from ..models import BackupRun, BackupSchedule, DeletionCause, Kind, Operation, Snapshot, State, source_fields
from ..operations.lifecycle import create_operation
from ..services import accept_deletion, create_snapshot_row, has_other_disks, retake
from .ending import end_schedules_of
from .notifications import notify_failed, notify_missed
from .planning import due_occurrences, record_missed, set_next_run
from .retention import apply_retention

logger = structlog.stdlib.get_logger(__name__)

# Before the second, third and fourth try.
RETRY_PAUSES = (timedelta(minutes=5), timedelta(minutes=20), timedelta(minutes=60))
# Per turn of the scheduler, which has other duties too.
BATCH_SIZE = 200
MAX_RUNS_PER_TURN = 500
MISSED_BUSY = gettext_lazy("The previous run hadn't finished.")
MISSED_OUTAGE = gettext_lazy("The portal couldn't start it on time. Only the latest missed run is taken late.")


def start_due_runs(now: datetime, *, limit: int = MAX_RUNS_PER_TURN) -> int:
    """Start due runs, the longest overdue first, until about `limit` schedules were handled. Returns how many.

    If several occurrences of a schedule have passed, the latest one runs and the others are recorded as missed.
    """
    handled = 0
    last = None
    while batch := list(due_schedules(now, last)[:BATCH_SIZE]):
        last = batch[-1]
        for schedule in batch:
            try:
                handled += start_due_run(schedule, now)
            except Exception:
                logger.exception("backup.start_failed", schedule_id=str(schedule.pk))
            if handled >= limit:
                return handled
    return handled


def due_schedules(now: datetime, after: BackupSchedule | None = None) -> QuerySet[BackupSchedule]:
    """Return the schedules that are due, in the order of the index; only those that follow `after`."""
    due = BackupSchedule.objects.with_related().filter(next_run_at__lte=now).order_by("next_run_at", "pk")
    if after is None:
        return due
    at = after.next_run_at
    return due.filter(Q(next_run_at__gt=at) | Q(pk__gt=after.pk), next_run_at__gte=at)


def start_due_run(schedule: BackupSchedule, now: datetime) -> bool:
    """Handle the due occurrences of a schedule. False if another scheduler was faster, or if it has to wait.

    A machine or volume has at most one unfinished run. An occurrence that is due while the schedule's own previous run is
    unfinished is missed. One that is due while another schedule's run is unfinished waits.
    """
    source = schedule.source
    if source.deleted_at is not None:
        return bool(end_schedules_of(source, now))
    if is_other_schedule_running(schedule):
        return False
    problem = describe_storage_problem(source)
    with transaction.atomic(), override("en"):  # Reasons are stored once, for readers of every language.
        lock_customer(schedule.customer.pk)
        recurrence = {name: getattr(schedule, name) for name in ("interval", "weekday", "month_day", "at")}
        unchanged = BackupSchedule.objects.filter(pk=schedule.pk, next_run_at=schedule.next_run_at, **recurrence)
        if is_other_schedule_running(schedule):
            return False
        due = due_occurrences(schedule, now)
        set_next_run(schedule, now)
        if not unchanged.update(next_run_at=schedule.next_run_at, time_zone=schedule.time_zone):
            return False
        is_running = BackupRun.objects.unfinished().of_source(source).exists()
        missed, started = (due, []) if is_running else (due[:-1], due[-1:])
        if missed:
            reason = MISSED_BUSY if is_running else MISSED_OUTAGE
            record_missed(schedule, missed, now, reason)
            notify_missed(schedule, missed, reason)
        for occurrence in started:
            try_backup(build_run(schedule, occurrence, now), now, problem)
    return True


def is_other_schedule_running(schedule: BackupSchedule) -> bool:
    return BackupRun.objects.unfinished().of_source(schedule.source).exclude(schedule=schedule).exists()


def start_requested_run(schedule: BackupSchedule, user: User, now: datetime) -> BackupRun:
    """Start the run that a user requested. The caller must hold the customer's lock and have called `check_space`.

    Raises InvalidState while another run of the machine or volume is unfinished, and what `request_backup` raises.
    """
    if BackupRun.objects.unfinished().of_source(schedule.source).exists():
        raise InvalidState(already_running(schedule))
    check_rate_limit(schedule.customer.pk, Operation.Kind.CAPTURE)
    run = build_run(schedule, now, now)
    run.requested_by = user
    request_backup(run, now)
    return run


def already_running(schedule: BackupSchedule) -> str:
    if schedule.kind == Kind.BACKUP:
        return _("A backup of this instance is already running. Try again when it has finished.")
    return _("A scheduled snapshot of this volume is already running. Try again when it has finished.")


def build_run(schedule: BackupSchedule, scheduled_at: datetime, now: datetime) -> BackupRun:
    """Return an unsaved run with the schedule's next number. The caller must hold the customer's lock."""
    number = schedule.next_run_number()
    return BackupRun(
        schedule=schedule,
        number=number,
        scheduled_at=scheduled_at,
        created_at=now,
        **source_fields(schedule.source),
    )


def describe_storage_problem(source: Source) -> str:
    """Return why the storage has no room for a backup now, or "". Call it outside of transactions: it may be slow."""
    try:
        check_space(source)
    except ActionRefused as refusal:
        return str(refusal)
    return ""


def try_backup(run: BackupRun, now: datetime, problem: str) -> None:
    """Try the run, for the first time or again. The caller must hold the customer's lock.

    `problem` comes from `describe_storage_problem`.
    """
    try:
        if problem:
            raise OutOfSpace(problem)
        request_backup(run, now)
    except ActionRefused as refusal:
        run.tries += 1
        record_failed_try(run, str(refusal), now)


def request_backup(run: BackupRun, now: datetime) -> None:
    """Request the run's next operation: a backup, the failed one again, or its verification. Saves the run.

    The caller must hold the customer's lock. Raises every ActionRefused.
    """
    backup = reload_snapshot(run.snapshot) if run.snapshot else None
    if backup and backup.state == State.FAILED and has_other_disks(backup):
        if not backup.is_pinned:
            accept_deletion(backup, at=now, cause=DeletionCause.FAILED)
        backup = None
    if backup is None or backup.is_damaged or backup.state in (State.DELETING, State.DELETED):
        run.snapshot = create_backup(run, now)
    elif backup.state == State.FAILED:
        retake(backup, now)
        create_operation(kind=Operation.Kind.CAPTURE, snapshot=backup)
    elif backup.state == State.READY:
        if not Operation.objects.active().filter(snapshot=backup, kind=Operation.Kind.VERIFY).exists():
            create_operation(kind=Operation.Kind.VERIFY, snapshot=backup)
    run.tries += 1
    run.state, run.next_try_at, run.reason = BackupRun.State.TAKING, None, ""
    run.save()


def create_backup(run: BackupRun, now: datetime) -> Snapshot:
    """Create the pending backup or snapshot of a run and its capture operation. Raises every ActionRefused."""
    source, kind, project = reload_source(run.source), run.schedule.kind, run.schedule.home
    if run.schedule.is_automatic:
        check_capturable(source, project=project)
    else:
        check_deliverable(source, now, project=project, kind=kind)
    customer = source.project.customer
    name = (_("%(name)s-backup-%(day)s") if kind == Kind.BACKUP else _("%(name)s-snapshot-%(day)s")) % {
        "name": source.name[:40],
        "day": run.scheduled_at.astimezone(customer.zone).date().isoformat(),
    }
    backup = create_snapshot_row(
        source=source,
        volumes=volumes_of(source),
        name=free_name(customer.pk, name),
        user=run.requested_by,
        project=project,
        kind=kind,
    )
    create_operation(kind=Operation.Kind.CAPTURE, snapshot=backup, requested_by=run.requested_by)
    return backup


def record_failed_try(run: BackupRun, reason: str, now: datetime) -> None:
    """Schedule a retry, or fail the run if that was the last try. The caller must hold the customer's lock."""
    run.reason = reason
    if run.tries <= len(RETRY_PAUSES):
        run.state, run.next_try_at = BackupRun.State.WAITING, now + RETRY_PAUSES[run.tries - 1]
    else:
        run.state, run.next_try_at, run.finished_at = BackupRun.State.FAILED, None, now
        log_failure(run)
    run.save()
    if run.tries == 1 or run.state == BackupRun.State.FAILED:
        notify_failed(run)


def log_failure(run: BackupRun) -> None:
    after = {"scheduled_at": run.scheduled_at, "reason": run.reason}
    activity.record(action="backup.failed", actor=None, target=run.source, project=run.schedule.home, after=after)


def settle_runs(now: datetime) -> int:
    """Settle the runs whose backup storage has finished, and retry those that are due. Returns how many runs changed."""
    # A retry further ahead than any pause was planned by a clock that was ahead.
    is_due = Q(next_try_at__lte=now) | Q(next_try_at__gt=now + max(RETRY_PAUSES))
    waiting = runs_with_related().filter(is_due, state=BackupRun.State.WAITING)
    settled = 0
    for run in [*finished_by_storage(), *waiting]:
        try:
            settled += settle_run(run, now)
        except Exception:
            logger.exception("backup.settle_failed", run_id=str(run.pk))
    return settled


def finished_by_storage() -> QuerySet[BackupRun]:
    """Return the running runs whose backup was taken and verified, or failed."""
    verifying = Operation.objects.active().filter(snapshot=OuterRef("snapshot"), kind=Operation.Kind.VERIFY)
    runs = runs_with_related().filter(state=BackupRun.State.TAKING)
    return runs.exclude(snapshot__state__in=[State.PENDING, State.CREATING]).filter(~Exists(verifying))


def runs_with_related() -> QuerySet[BackupRun]:
    """Select the rows that properties of the run, its schedule and its snapshot read."""
    schedules = BackupSchedule.objects.with_related()
    return BackupRun.objects.prefetch_related(Prefetch("schedule", schedules)).select_related(
        "vm__project__customer", "vm__location", "volume__project__customer", "volume__location", "snapshot"
    )


def settle_run(run: BackupRun, now: datetime) -> bool:
    """Conclude or retry the run. False if another scheduler was faster."""
    before = run.state
    problem = describe_storage_problem(run.source) if before == BackupRun.State.WAITING else ""
    with transaction.atomic(), override("en"):
        lock_customer(run.source.project.customer_id)
        try:
            run = runs_with_related().get(pk=run.pk, state=before, tries=run.tries)
        except BackupRun.DoesNotExist:
            return False
        if before == BackupRun.State.WAITING:
            try_backup(run, now, problem)
        else:
            conclude_run(run, now)
    return True


def conclude_run(run: BackupRun, now: datetime) -> None:
    """Finish the run, or record that this try failed, by the state of its backup. The caller holds the lock."""
    backup = run.snapshot
    assert backup is not None  # The constraint run_state requires it.
    if backup.state == State.FAILED:
        record_failed_try(run, backup.error, now)
    elif backup.state in (State.DELETING, State.DELETED):
        run.state, run.finished_at = BackupRun.State.FAILED, now
        run.reason = _("It was deleted before it was verified.")
        run.save()
        log_failure(run)
    elif backup.state == State.READY:
        damage = [disk.damage for disk in backup.disks.all() if disk.damage]
        if damage:
            reason = _("Verification found it damaged: %(damage)s")
            if not backup.is_pinned and not why_locked(backup):
                # It is of no use to anybody: its source is still there, and a new one is taken.
                accept_deletion(backup, at=now, cause=DeletionCause.DAMAGED)
                reason = _("Verification found it damaged, so it was deleted: %(damage)s")
            record_failed_try(run, reason % {"damage": " ".join(damage)}, now)
        elif Snapshot.objects.verified().filter(pk=backup.pk).exists():
            run.state, run.finished_at, run.reason = BackupRun.State.DONE, now, ""
            run.save()
            if run.schedule.lock_days:
                lock_scheduled(backup, days=run.schedule.lock_days)
            apply_retention(run.schedule, now)
        else:
            verification = backup.operations.filter(kind=Operation.Kind.VERIFY).first()
            if verification is None or not verification.is_active:
                error = verification.error if verification else ""
                record_failed_try(run, error or _("It could not be verified."), now)
