"""Backups of machines: schedules, what the scheduler starts and settles, and the administrator's switch.

The same door as services.py: each function validates, writes in one transaction that holds the customer's lock, and
returns the object, or raises a `Refusal` with nothing written. `now` may be left out everywhere.

A copy is a `Snapshot` of kind BACKUP that belongs to a run. It is *verified* once the verify operation that follows each
capture has succeeded: where the engine can read bytes (local files) every byte was read back and compared with the
checksum of the capture, and where it cannot (Cinder) the engine was asked again and still has it whole. Only then the run
is done, and only then older copies make room.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, override

from billing import rating
from billing import services as billing
from billing.models import ServiceKind
from cng_portal.accounts import activity
from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import AutomaticBackupSwitch, Interval, Location, VirtualMachine
from cng_portal.notifications.services import notify, project_members

from . import slots
from .models import BackupRun, BackupSchedule, DeletionCause, Draft, Kind, Operation, Snapshot, State
from .operations import create_operation
from .services import (
    NoRoom,
    NotNow,
    NotSold,
    Refusal,
    SourceGone,
    accept_deletion,
    check_capturable,
    check_cover,
    check_deliverable,
    check_pace,
    check_room,
    check_shown_price,
    create_snapshot_row,
    free_name,
    fresh,
    has_other_disks,
    locked,
    require_change,
    retake,
    uses_of,
    volumes_of,
)

logger = logging.getLogger(__name__)

# the fields that say how often, when, and how many copies
RHYTHM = ("interval", "weekday", "month_day", "at", "keep")
MOST_KEPT = 365
# of one machine: the scheduler looks at each of them
MOST_SCHEDULES = 20
# before the second, third and fourth try
PAUSES = (timedelta(minutes=5), timedelta(minutes=20), timedelta(minutes=60))
# no two slots are further apart, but where clocks are changed
LONGEST_STEPS = {
    Interval.DAILY: timedelta(days=1, hours=2),
    Interval.WEEKLY: timedelta(days=7, hours=2),
    Interval.MONTHLY: timedelta(days=31, hours=2),
}
# schedules read, and started, in one turn of the scheduler: its other duties have to be done too
BATCH = 200
MOST_AT_ONCE = 500
STILL_BUSY = gettext_lazy("The backup before it was still under way.")
MADE_UP_FOR = gettext_lazy(
    "The portal could not start it at its time. The latest of the runs that were missed is made up for."
)


class BadSchedule(Refusal):
    """An answer is missing or does not fit; `field` is interval, weekday, month_day or keep."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


# --- schedules -------------------------------------------------------------------------------------------------------


def rhythm(*, interval: str, weekday: int | None, month_day: int | None, at: time, keep: int) -> dict[str, Any]:
    """The fields of a schedule, without those that its interval does not have. Raises BadSchedule."""
    if interval not in Interval.values:
        raise BadSchedule(_("Choose how often: daily, weekly or monthly."), "interval")
    if interval == Interval.WEEKLY and weekday not in range(7):
        raise BadSchedule(_("Choose the day of the week."), "weekday")
    if interval == Interval.MONTHLY and month_day not in range(1, 32):
        raise BadSchedule(_("Choose a day of the month, from 1 to 31."), "month_day")
    if not 1 <= keep <= MOST_KEPT:
        raise BadSchedule(_("Between 1 and %(most)s copies can be kept.") % {"most": MOST_KEPT}, "keep")
    return {
        "interval": interval,
        "weekday": weekday if interval == Interval.WEEKLY else None,
        "month_day": month_day if interval == Interval.MONTHLY else None,
        "at": at,
        "keep": keep,
    }


def create_schedule(
    *,
    vm: VirtualMachine,
    interval: str,
    weekday: int | None = None,
    month_day: int | None = None,
    at: time,
    keep: int = 2,
    take_one_now: bool = False,
    user: User,
    shown_hourly_micro: int | None = None,
    draft: Draft | None = None,
    now: datetime | None = None,
) -> BackupSchedule:
    """Back the machine up regularly, and once at once where asked. The same draft again gives what it made before.

    `shown_hourly_micro` is the price of one copy that the person saw; another one today raises PriceMoved. What would be
    refused to a copy now is refused to the schedule. Raises every Refusal.
    """
    now = now or timezone.now()
    check_room(vm)
    with transaction.atomic():
        lock_customer(vm.project.customer_id)
        if draft and (made := BackupSchedule.objects.filter(draft=draft).first()):
            return made
        vm = fresh(vm)
        require_change(User.objects.get(pk=user.pk), vm.project_id)
        fields = rhythm(interval=interval, weekday=weekday, month_day=month_day, at=at, keep=keep)
        check_shown_price(check_deliverable(vm, now, kind=Kind.BACKUP), shown_hourly_micro)
        if BackupSchedule.objects.present().filter(vm=vm).count() >= MOST_SCHEDULES:
            raise NotNow(
                _(
                    "“%(name)s” has %(most)s schedules already, which is as many as fit. Delete one, or change it instead."
                )
                % {"name": vm.name, "most": MOST_SCHEDULES}
            )
        schedule = BackupSchedule(vm=vm, created_by=user, draft=draft, created_at=now, **fields)
        plan(schedule, now)
        schedule.save(force_insert=True)
        activity.record(act="backup.schedule", actor=user, thing=vm, after=fields)
        if take_one_now:
            ask_now(schedule, user, now)
    return schedule


def edit_schedule(
    *,
    schedule: BackupSchedule,
    interval: str,
    weekday: int | None = None,
    month_day: int | None = None,
    at: time,
    keep: int,
    user: User,
    now: datetime | None = None,
) -> BackupSchedule:
    """Other times, from now on; fewer copies from the next one that is verified. Raises BadSchedule, NotNow."""
    now = now or timezone.now()
    fields = rhythm(interval=interval, weekday=weekday, month_day=month_day, at=at, keep=keep)
    with transaction.atomic():
        schedule = locked_schedule(schedule, user)
        before = {name: getattr(schedule, name) for name in fields}
        activity.record(act="backup.change", actor=user, thing=schedule.vm, before=before, after=fields)
        give_up_slots(schedule, now, _("The schedule was changed before this run could be started."))
        for name, value in fields.items():
            setattr(schedule, name, value)
        if schedule.paused_at is None:
            plan(schedule, now)
        schedule.save()
    return schedule


def pause_schedule(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupSchedule:
    """No more runs until it is resumed, and nothing is tried again. Paused already: nothing changes. Raises NotNow."""
    now = now or timezone.now()
    with transaction.atomic():
        schedule = locked_schedule(schedule, user)
        if schedule.paused_at is None:
            stop(schedule, now, _("The schedule was paused."))
            schedule.paused_at = now
            schedule.save()
            activity.record(act="backup.pause", actor=user, thing=schedule.vm)
    return schedule


def resume_schedule(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupSchedule:
    """It runs again, from its next slot on. Not paused: nothing changes. Raises NotNow."""
    now = now or timezone.now()
    with transaction.atomic():
        schedule = locked_schedule(schedule, user)
        if schedule.paused_at is not None:
            schedule.paused_at = None
            plan(schedule, now)
            schedule.save()
            activity.record(act="backup.resume", actor=user, thing=schedule.vm)
    return schedule


def delete_schedule(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupSchedule:
    """It never runs again; its copies stay, and are charged, until somebody deletes them. Deleted already: nothing
    changes. Raises NotNow for the schedule of automatic backups.
    """
    now = now or timezone.now()
    with transaction.atomic():
        schedule = locked_schedule(schedule, user, deleted=True)
        if schedule.deleted_at is None:
            end(schedule, now, _("The schedule was deleted."))
            activity.record(act="backup.delete", actor=user, thing=schedule.vm)
    return schedule


def run_now(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupRun:
    """Take a copy at once, also of a paused schedule. Raises NotNow while another backup of the machine is under way,
    and what request_snapshot raises.
    """
    now = now or timezone.now()
    check_room(schedule.vm)
    with transaction.atomic():
        return ask_now(locked_schedule(schedule, user), user, now)


def keep_copy(*, snapshot: Snapshot, kept: bool, user: User) -> Snapshot:
    """Keep a backup for ever, whatever its schedule keeps, or no longer. Raises NotNow for what is no backup."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = locked(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.kind != Kind.BACKUP:
            raise NotNow(_("Only a backup can be kept for ever: no schedule deletes this one."))
        if snapshot.state in (State.DELETING, State.DELETED):
            raise NotNow(_("The backup is being deleted and cannot be kept any more."))
        snapshot.kept = kept
        snapshot.save(update_fields=["kept"])
        activity.record(act="backup.keep", actor=user, thing=snapshot, after={"kept": kept})
    return snapshot


def locked_schedule(schedule: BackupSchedule, user: User, *, deleted: bool = False) -> BackupSchedule:
    """The row as it is now that the customer's lock is held, if this person may change it. Raises NotNow.

    A deleted one only where `deleted`.
    """
    lock_customer(schedule.vm.project.customer_id)
    schedule = related().get(pk=schedule.pk)
    require_change(User.objects.get(pk=user.pk), schedule.vm.project_id)
    if schedule.is_automatic:
        raise NotNow(
            _("These are automatic backups, which only your provider changes. Create a backup of your own instead.")
        )
    if schedule.deleted_at is not None and not deleted:
        raise NotNow(_("The schedule has been deleted. Create a new one."))
    return schedule


def related() -> Any:
    return BackupSchedule.objects.select_related("vm__project__customer", "vm__location")


def plan(schedule: BackupSchedule, now: datetime) -> None:
    """It runs next at its first slot after `now`."""
    customer = schedule.vm.project.customer
    schedule.time_zone = customer.time_zone
    schedule.next_run_at = slots.next_slot(schedule.rule, customer.zone, now)


def stop(schedule: BackupSchedule, now: datetime, reason: str) -> None:
    """Nothing is started or tried again; what is being taken is taken to its end."""
    give_up_slots(schedule, now, reason)
    schedule.next_run_at = None
    BackupRun.objects.filter(schedule=schedule, state=BackupRun.State.WAITING).update(
        state=BackupRun.State.FAILED, next_try_at=None, finished_at=now, reason=reason
    )


def end(schedule: BackupSchedule, now: datetime, reason: str) -> None:
    stop(schedule, now, reason)
    schedule.deleted_at = now
    schedule.save()


def give_up_slots(schedule: BackupSchedule, now: datetime, reason: str) -> None:
    """What is due and was not started is recorded as missed: no slot is ever forgotten."""
    if schedule.next_run_at and schedule.next_run_at <= now:
        miss(schedule, due_slots(schedule, now), now, reason)


def due_slots(schedule: BackupSchedule, now: datetime) -> list[datetime]:
    """Those that have passed and that nobody has dealt with, oldest first."""
    first = schedule.next_run_at
    assert first is not None
    passed = [first, *slots.slots_between(schedule.rule, schedule.vm.project.customer.zone, first, now)]
    # where clocks differ, an edit may have planned a slot once more that has just run
    known = set(BackupRun.objects.filter(schedule=schedule, slot__gte=first).values_list("slot", flat=True))
    return [slot for slot in passed if slot not in known]


def miss(schedule: BackupSchedule, missed: Sequence[datetime], now: datetime, reason: str | Promise) -> None:
    """The caller holds the lock."""
    BackupRun.objects.bulk_create(
        BackupRun(
            schedule=schedule,
            vm=schedule.vm,
            number=number,
            slot=slot,
            state=BackupRun.State.MISSED,
            reason=str(reason),
            created_at=now,
            finished_at=now,
        )
        for number, slot in enumerate(missed, start=schedule.next_run_number())
    )
    if missed:
        what = {"runs": len(missed), "last": missed[-1], "reason": reason}
        activity.record(act="backup.missed", actor=None, thing=schedule.vm, after=what)


# --- copies ----------------------------------------------------------------------------------------------------------


def ask_now(schedule: BackupSchedule, user: User, now: datetime) -> BackupRun:
    """The caller holds the lock and has asked for room."""
    if BackupRun.objects.unfinished().filter(vm=schedule.vm).exists():
        raise NotNow(_("A backup of this machine is under way already. Ask again when that has ended."))
    check_pace(schedule.vm.project.customer_id, Operation.Kind.CAPTURE)
    run = new_run(schedule, now, now)
    run.requested_by = user
    ask_for_copy(run, now)
    return run


def new_run(schedule: BackupSchedule, slot: datetime, now: datetime) -> BackupRun:
    """Return an unsaved run with the schedule's next number. The caller must hold the customer's lock."""
    number = schedule.next_run_number()
    return BackupRun(schedule=schedule, vm=schedule.vm, number=number, slot=slot, created_at=now)


def ask_for_copy(run: BackupRun, now: datetime) -> None:
    """Ask the storage for what the run lacks: a first copy, the failed one again, or that it is verified. Raises every
    Refusal. The caller holds the lock and has asked for room.
    """
    copy = locked(run.snapshot) if run.snapshot else None
    if copy and copy.state == State.FAILED and has_other_disks(copy):
        accept_deletion(copy, at=now, cause=DeletionCause.FAILED)  # a copy of the disks that the machine had
        copy = None
    if copy is None or copy.state in (State.DELETING, State.DELETED):
        run.snapshot = new_copy(run, now)
    elif copy.state == State.FAILED:
        retake(copy, now)
        create_operation(kind=Operation.Kind.CAPTURE, snapshot=copy)
    elif copy.state == State.READY:
        request_reading(copy)
    run.tries += 1
    run.state, run.next_try_at, run.reason = BackupRun.State.TAKING, None, ""
    run.save()


def request_reading(copy: Snapshot) -> None:
    if not Operation.objects.active().filter(snapshot=copy, kind=Operation.Kind.VERIFY).exists():
        create_operation(kind=Operation.Kind.VERIFY, snapshot=copy)


def new_copy(run: BackupRun, now: datetime) -> Snapshot:
    source = fresh(run.vm)
    if run.schedule.is_automatic:
        check_capturable(source)
    else:
        check_deliverable(source, now, kind=Kind.BACKUP)
    customer = source.project.customer
    name = _("%(vm)s-backup-%(day)s") % {
        "vm": source.name[:40],
        "day": run.slot.astimezone(customer.zone).date().isoformat(),
    }
    copy = create_snapshot_row(
        source=source,
        volumes=volumes_of(source),
        name=free_name(customer.pk, name),
        user=run.requested_by,
        kind=Kind.BACKUP,
    )
    create_operation(kind=Operation.Kind.CAPTURE, snapshot=copy, requested_by=run.requested_by)
    return copy


# --- what the scheduler does -----------------------------------------------------------------------------------------


def start_due_runs(now: datetime, *, most: int = MOST_AT_ONCE) -> int:
    """Start what is due, the longest overdue first. Returns how many slots were dealt with, at most about `most`.

    Of the slots that passed since the last look, the latest is started and the others are recorded as missed. Any number
    of schedulers may do this at once, and be killed at any point: each schedule is one transaction, which begins with a
    compare-and-set of `next_run_at`.
    """
    done = 0
    beyond = None
    while batch := list(due(now, beyond)[:BATCH]):
        beyond = (batch[-1].next_run_at, batch[-1].pk)
        for schedule in batch:
            try:
                done += start_due(schedule, now)
            except Exception:  # one that cannot be started must not keep the others from it
                logger.exception("The schedule %s could not be started; it will be tried again", schedule.pk)
            if done >= most:
                return done
    return done


def due(now: datetime, beyond: tuple[datetime, UUID] | None = None) -> Any:
    """The schedules whose next run is due, in the order of the index; only those after the key `beyond`."""
    found = related().filter(next_run_at__lte=now).order_by("next_run_at", "pk")
    if beyond is None:
        return found
    at, pk = beyond
    return found.filter(Q(next_run_at__gt=at) | Q(pk__gt=pk), next_run_at__gte=at)


def start_due(schedule: BackupSchedule, now: datetime) -> bool:
    """Deal with the slots that are due; False where it is not ours or has to wait.

    A machine has one unfinished run at most. A slot that comes while the schedule's own last run is still unfinished is
    missed; one that comes while another schedule's is unfinished waits its turn and stays due.
    """
    vm = schedule.vm
    if vm.deleted_at is not None:
        return bool(end_of_machine(vm, now))
    if is_busy_elsewhere(schedule):
        return False
    problem = why_no_room(vm)
    with transaction.atomic(), override("en"):  # what is recorded is recorded once, for every reader
        lock_customer(vm.project.customer_id)
        rule = {name: getattr(schedule, name) for name in ("interval", "weekday", "month_day", "at")}
        mine = BackupSchedule.objects.filter(pk=schedule.pk, next_run_at=schedule.next_run_at, **rule)
        if is_busy_elsewhere(schedule):
            return False
        passed = due_slots(schedule, now)
        plan(schedule, now)
        if not mine.update(next_run_at=schedule.next_run_at, time_zone=schedule.time_zone):
            return False
        still_busy = BackupRun.objects.unfinished().filter(vm=vm).exists()
        missed, taken = (passed, []) if still_busy else (passed[:-1], passed[-1:])
        if missed:
            miss(schedule, missed, now, STILL_BUSY if still_busy else MADE_UP_FOR)
            tell_of_missed(schedule, missed, STILL_BUSY if still_busy else MADE_UP_FOR)
        for slot in taken:
            try_again(new_run(schedule, slot, now), now, problem)
    return True


def is_busy_elsewhere(schedule: BackupSchedule) -> bool:
    return BackupRun.objects.unfinished().filter(vm=schedule.vm_id).exclude(schedule=schedule).exists()


def why_no_room(vm: VirtualMachine) -> str:
    """Why the storage cannot take a copy now; "" where it can. Not inside a transaction."""
    try:
        check_room(vm)
    except Refusal as refusal:
        return str(refusal)
    return ""


def try_again(run: BackupRun, now: datetime, problem: str) -> None:
    """One try, the first or another one, of a run that is ours. The caller holds the lock; `problem` is why the storage
    has no room.
    """
    try:
        if problem:
            raise NoRoom(problem)
        ask_for_copy(run, now)
    except Refusal as refusal:
        run.tries += 1
        fail(run, str(refusal), now)


def fail(run: BackupRun, reason: str, now: datetime) -> None:
    """The try failed: another one follows after a pause, or it was the last. The caller holds the lock."""
    run.reason = reason
    if run.tries <= len(PAUSES):
        run.state, run.next_try_at = BackupRun.State.WAITING, now + PAUSES[run.tries - 1]
    else:
        run.state, run.next_try_at, run.finished_at = BackupRun.State.FAILED, None, now
        write_down_failure(run)
    run.save()
    if run.tries == 1 or run.state == BackupRun.State.FAILED:
        tell_of_failure(run)


def write_down_failure(run: BackupRun) -> None:
    activity.record(act="backup.failed", actor=None, thing=run.vm, after={"slot": run.slot, "reason": run.reason})


def settle_runs(now: datetime) -> int:
    """See what became of the copies that were asked for, and try again what failed and is due. Returns how many runs
    went on. Any number of schedulers may do this at once: what is settled is no longer found.

    What waits for longer than anything is ever put off is due as well: the clock was set back since.
    """
    settled = 0
    due_again = Q(next_try_at__lte=now) | Q(next_try_at__gt=now + max(PAUSES))
    for run in [*settling(), *related_runs().filter(due_again, state=BackupRun.State.WAITING)]:
        try:
            settled += settle(run, now)
        except Exception:
            logger.exception("The backup run %s could not be settled; it will be tried again", run.pk)
    return settled


def settling() -> Any:
    """The runs whose copy storage has done with: taken and read back, or failed."""
    reading = Operation.objects.active().filter(snapshot=OuterRef("snapshot"), kind=Operation.Kind.VERIFY)
    runs = related_runs().filter(state=BackupRun.State.TAKING)
    return runs.exclude(snapshot__state__in=[State.PENDING, State.CREATING]).filter(~Exists(reading))


def related_runs() -> Any:
    return BackupRun.objects.select_related(
        "schedule__vm__project__customer", "schedule__vm__location", "vm__project__customer", "vm__location", "snapshot"
    )


def settle(run: BackupRun, now: datetime) -> bool:
    before = run.state
    problem = why_no_room(run.vm) if before == BackupRun.State.WAITING else ""
    with transaction.atomic(), override("en"):
        lock_customer(run.vm.project.customer_id)
        try:
            run = related_runs().get(pk=run.pk, state=before, tries=run.tries)
        except BackupRun.DoesNotExist:
            return False  # somebody else was quicker
        if before == BackupRun.State.WAITING:
            try_again(run, now, problem)
        else:
            conclude(run, now)
    return True


def conclude(run: BackupRun, now: datetime) -> None:
    """The copy is there, or not. The caller holds the lock."""
    copy = run.snapshot
    assert copy is not None  # held by the constraint run_state
    if copy.state == State.FAILED:
        fail(run, copy.error, now)
    elif copy.state in (State.DELETING, State.DELETED):
        run.state, run.finished_at = BackupRun.State.FAILED, now
        run.reason = _("The copy was deleted before it was verified.")
        run.save()
        write_down_failure(run)
    elif copy.state == State.READY:
        damage = [disk.damage for disk in copy.disks.all() if disk.damage]
        if damage:
            # nothing that anybody could want: the machine is still there, and what was read back is not what it had
            accept_deletion(copy, at=now, cause=DeletionCause.DAMAGED)
            reason = _("The copy was read back and is damaged, so it was removed: %(damage)s")
            fail(run, reason % {"damage": " ".join(damage)}, now)
        elif Snapshot.objects.verified().filter(pk=copy.pk).exists():
            run.state, run.finished_at, run.reason = BackupRun.State.DONE, now, ""
            run.save()
            make_room(run.schedule, now)
        elif not (reading := copy.operations.filter(kind=Operation.Kind.VERIFY).first()) or not reading.is_active:
            fail(run, (reading and reading.error) or _("The copy could not be read back."), now)


def make_room(schedule: BackupSchedule, now: datetime) -> None:
    """Delete the copies beyond those that the schedule keeps, after one of its runs is done. The caller must hold the lock.

    Counted from the newest, by the number of the run and never by a clock, only verified copies count as kept. Everything
    older than the last of these is deleted, including what failed or was found damaged. A pinned copy neither counts nor
    is deleted, and one that is in use stays until the next time.
    """
    copies = Snapshot.objects.filter(run__schedule=schedule, kept=False)
    kept = list(copies.verified().order_by("-run__number").values_list("run__number", flat=True)[: schedule.keep])
    if len(kept) < schedule.keep:
        return
    older = copies.filter(run__number__lt=kept[-1], state__in=[State.READY, State.FAILED])
    for copy in older.order_by("-run__number"):
        if not uses_of(copy).exists():
            accept_deletion(copy, at=now, cause=DeletionCause.RETENTION)


def look_after_schedules(now: datetime) -> int:
    """End the schedules of machines that are gone, and plan anew those whose next run was planned in another time zone
    than the customer is in now, or by a clock that has been set back since. Returns how many.
    """
    changed = 0
    present = BackupSchedule.objects.present().filter(vm=OuterRef("pk"))
    gone = VirtualMachine.objects.filter(Exists(present), deleted_at__isnull=False)
    for vm in gone.select_related("project__customer"):
        changed += end_of_machine(vm, now)
    waiting = BackupSchedule.objects.filter(next_run_at__gt=now)
    moved = ~Q(time_zone=F("vm__project__customer__time_zone"))
    too_far = Q()
    for interval, longest in LONGEST_STEPS.items():
        too_far |= Q(interval=interval, next_run_at__gt=now + longest)
    for schedule in related().filter(moved | too_far, next_run_at__gt=now):
        before = schedule.next_run_at
        plan(schedule, now)
        changed += waiting.filter(pk=schedule.pk, next_run_at=before).update(
            next_run_at=schedule.next_run_at, time_zone=schedule.time_zone
        )
        correct_future_runs(schedule, now)
    return changed


def correct_future_runs(schedule: BackupSchedule, now: datetime) -> None:
    """Undo what a clock that was far ahead recorded for slots that are still to come, which would otherwise never run."""
    with transaction.atomic():
        lock_customer(schedule.vm.project.customer_id)
        future = schedule.runs.filter(slot__gt=now + LONGEST_STEPS[Interval(schedule.interval)])
        future.filter(state=BackupRun.State.MISSED).delete()
        for position, run in enumerate(future.order_by("-number")):
            run.slot = now - timedelta(microseconds=position)  # it was started before now, but nobody knows when
            run.save(update_fields=["slot"])


def end_of_machine(vm: VirtualMachine, now: datetime, user: User | None = None) -> int:
    """The machine is marked deleted: its schedules end, automatic backups are switched off at that instant, the copies
    stay. Returns how many schedules ended. `user` is the administrator who did it, if one did.
    """
    assert vm.deleted_at is not None
    at = min(now, vm.deleted_at)
    with transaction.atomic(), override("en"):
        lock_customer(vm.project.customer_id)
        schedules = list(related().filter(vm=vm, deleted_at=None))
        for schedule in schedules:
            if schedule.is_automatic:
                switch_automatic_backups(vm=vm, on=False, user=user, now=at)
            else:
                end(schedule, at, _("The machine was deleted."))
    return len(schedules)


# --- what people are told --------------------------------------------------------------------------------------------


def tell_of_failure(run: BackupRun) -> None:
    def message() -> tuple[str, str]:
        if run.next_try_at:
            title = _("The backup of %(vm)s failed and will be tried again")
            then = _("It will be tried again at %(time)s.") % {"time": minute(run.next_try_at)}
        else:
            title = _("The backup of %(vm)s failed")
            then = _("It was tried %(tries)s times and will not be tried again: no copy was kept of %(time)s.") % {
                "tries": run.tries,
                "time": minute(run.slot),
            }
        return title % {"vm": run.vm.name}, f"{run.reason} {then}"

    notify(
        users=project_members(run.vm.project),
        key=f"backup-run:{run.pk}:{run.tries}",
        level="warning" if run.next_try_at else "danger",
        message=message,
        url=page_of(run.schedule),
    )


def tell_of_missed(schedule: BackupSchedule, missed: Sequence[datetime], reason: str | Promise) -> None:
    def message() -> tuple[str, str]:
        text = ngettext(
            "The backup of %(first)s was missed.",
            "%(count)s backups were missed, from %(first)s to %(last)s.",
            len(missed),
        ) % {"count": len(missed), "first": minute(missed[0]), "last": minute(missed[-1])}
        return _("Backups of %(vm)s were missed") % {"vm": schedule.vm.name}, f"{text} {reason}"

    notify(
        users=project_members(schedule.vm.project),
        key=f"backup-missed:{schedule.pk}:{missed[-1].isoformat()}",
        level="warning",
        message=message,
        url=page_of(schedule),
    )


def page_of(schedule: BackupSchedule) -> str:
    return reverse("snapshots:schedule", args=[schedule.pk])


# --- the administrator's switch --------------------------------------------------------------------------------------


def automatic_backup_quote(*, vm: VirtualMachine, at: datetime | None = None) -> billing.Quote:
    """What automatic backups of it cost: `rate_micro` is the machine's hourly price, `hourly_micro` 20 % of it,
    `monthly_micro` that for 732 hours, and `formula` the sentence, such as “20 % of K 45.5000 = K 9.10 an hour”. Raises
    NotSold where the location has no VM Backup package.
    """
    try:
        return billing.quote(
            customer=vm.project.customer,
            location=vm.location,
            kind=ServiceKind.VM_BACKUP_AUTOMATIC,
            at=at or timezone.now(),
            base_rate_micro=vm.hourly_price_micro,
        )
    except billing.NotSold as error:
        raise NotSold(str(error)) from error


def automatic_costs(vms: Sequence[VirtualMachine], *, at: datetime) -> dict[UUID, int | None]:
    """{machine: what an hour of its automatic backups costs, in millionths}; None where they are not sold. One query."""
    sold = billing.sold_kinds({vm.location_id for vm in vms}, at=at)
    return {
        vm.pk: rating.hourly_micro(rate_micro=vm.hourly_price_micro, size_gb=None)
        if ServiceKind.VM_BACKUP_AUTOMATIC in sold.get(vm.location_id, set())
        else None
        for vm in vms
    }


def switch_automatic_backups(
    *, vm: VirtualMachine, on: bool, user: User | None, now: datetime | None = None
) -> VirtualMachine:
    """An administrator switches the machine's automatic backups; switched so already, nothing changes.

    On: they run as the location's default says, and 20 % of the machine's price is charged from now on. Off: both end,
    the copies stay. Without a `user` the portal does it, for a machine that is gone. Raises SourceGone, NotSold, NoCredit.
    """
    now = now or timezone.now()
    require_administrator(user)
    with transaction.atomic():
        lock_customer(vm.project.customer_id)
        vm = fresh(vm)
        if on == (vm.automatic_backups_since is not None):
            return vm
        if on:
            switch_on(vm, user, now)
        else:
            schedule = related().get(vm=vm, origin=BackupSchedule.Origin.AUTOMATIC, deleted_at=None)
            end(schedule, now, _("Automatic backups were switched off."))
            billing.close_segment(resource_id=vm.pk, kind=ServiceKind.VM_BACKUP_AUTOMATIC, at=now)
        vm.automatic_backups_since = now if on else None
        vm.save(update_fields=["automatic_backups_since"])
        AutomaticBackupSwitch.objects.create(vm=vm, on=on, switched_by=user, switched_at=now)
        activity.record(act="backup.automatic", actor=user, thing=vm, after={"on": on})
    return vm


def switch_on(vm: VirtualMachine, user: User | None, now: datetime) -> None:
    if vm.deleted_at is not None:
        raise SourceGone(_("“%(name)s” has been deleted, so there is nothing to back up.") % {"name": vm.name})
    quote = automatic_backup_quote(vm=vm, at=now)
    check_cover(vm.project.customer, quote.hourly_micro, at=now)
    before = BackupSchedule.objects.filter(vm=vm, origin=BackupSchedule.Origin.AUTOMATIC).order_by("created_at").last()
    # the one from before, where there is one, so that its copies are counted and make room again
    schedule = before or BackupSchedule(vm=vm, origin=BackupSchedule.Origin.AUTOMATIC, created_at=now)
    schedule.vm, schedule.created_by, schedule.deleted_at = vm, user, None
    for name, value in default_rhythm(vm.location).items():
        setattr(schedule, name, value)
    plan(schedule, now)
    schedule.save()
    billing.open_segment(
        resource_id=vm.pk,
        kind=ServiceKind.VM_BACKUP_AUTOMATIC,
        name=vm.name,
        project=vm.project,
        location=vm.location,
        at=now,
        base_rate_micro=vm.hourly_price_micro,
    )


def default_rhythm(location: Location) -> dict[str, Any]:
    """The fields of an automatic schedule in this location."""
    return {name: getattr(location, f"default_{name}") for name in RHYTHM}


def automatic_copies(vm: VirtualMachine) -> Any:
    """The copies of its automatic backups that are there and not kept for ever."""
    return Snapshot.objects.filter(
        vm=vm,
        run__schedule__origin=BackupSchedule.Origin.AUTOMATIC,
        kept=False,
        state__in=[State.READY, State.FAILED],
    )


def delete_automatic_copies(*, vm: VirtualMachine, user: User, now: datetime | None = None) -> int:
    """An administrator removes what automatic backups have left behind. What is kept for ever stays, and so does what is
    being used. Returns how many go. Raises NotNow while they are switched on.
    """
    now = now or timezone.now()
    require_administrator(user)
    with transaction.atomic():
        lock_customer(vm.project.customer_id)
        vm = fresh(vm)
        if vm.automatic_backups_since is not None:
            raise NotNow(_("Automatic backups are on and look after their copies. Switch them off first."))
        going = [copy for copy in automatic_copies(vm) if not uses_of(copy).exists()]
        for copy in going:
            accept_deletion(copy, at=now, cause=DeletionCause.USER, user=user)
    return len(going)


def change_machine_price(
    *, vm: VirtualMachine, hourly_price_micro: int, user: User, now: datetime | None = None
) -> VirtualMachine:
    """The machine's price, in millionths an hour; what its automatic backups cost follows from the next unpaid hour."""
    now = now or timezone.now()
    require_administrator(user)
    with transaction.atomic():
        lock_customer(vm.project.customer_id)
        vm = fresh(vm)
        vm.hourly_price_micro = hourly_price_micro
        vm.save(update_fields=["hourly_price_micro"])
        if vm.automatic_backups_since is not None:
            billing.change_base_rate(resource_id=vm.pk, base_rate_micro=hourly_price_micro, at=now)
    return vm


def change_default_schedule(
    *,
    location: Location,
    interval: str,
    weekday: int | None = None,
    month_day: int | None = None,
    at: time,
    keep: int,
    user: User,
    now: datetime | None = None,
) -> int:
    """When automatic backups of the location's machines run, and how many copies they keep; those that are switched on
    already follow. Returns how many those are. Raises BadSchedule.
    """
    now = now or timezone.now()
    require_administrator(user)
    fields = rhythm(interval=interval, weekday=weekday, month_day=month_day, at=at, keep=keep)
    with transaction.atomic():
        Location.objects.filter(pk=location.pk).update(**{f"default_{name}": value for name, value in fields.items()})
        following = BackupSchedule.objects.present().filter(
            origin=BackupSchedule.Origin.AUTOMATIC, vm__location=location
        )
        count = following.update(**fields)
        # a slot that is due stays due; the scheduler goes on from there by the new rule
        waiting = following.filter(next_run_at__gt=now)
        for zone in list(waiting.values_list("vm__project__customer__time_zone", flat=True).distinct().order_by()):
            replan(waiting.filter(vm__project__customer__time_zone=zone), fields, zone, now)
    location.refresh_from_db()
    return count


def replan(schedules: Any, fields: dict[str, Any], zone: str, now: datetime) -> int:
    """Schedules of one rule and one zone run next at its first slot after `now`."""
    rule = slots.Rule(**{name: value for name, value in fields.items() if name != "keep"})
    return schedules.update(next_run_at=slots.next_slot(rule, slots.ZoneInfo(zone), now), time_zone=zone)


def require_administrator(user: User | None) -> None:
    if user is not None and not (user.is_staff and user.has_perm("inventory.change_virtualmachine")):
        raise PermissionDenied(_("Only administrators switch automatic backups and change the prices of machines."))
