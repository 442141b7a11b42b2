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
from datetime import datetime, time
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from billing import services as billing
from billing.models import ServiceKind
from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import AutomaticBackupSwitch, Interval, Location, VirtualMachine

from . import slots
from .models import BackupRun, BackupSchedule, Draft, Kind, Operation, Snapshot, State
from .operations import create_operation
from .services import (
    NotNow,
    NotSold,
    Refusal,
    SourceGone,
    accept_deletion,
    check_capturable,
    check_cover,
    check_deliverable,
    check_room,
    check_shown_price,
    create_snapshot_row,
    free_name,
    fresh,
    has_other_disks,
    locked,
    require_change,
    retake,
    volumes_of,
)

logger = logging.getLogger(__name__)

MOST_KEPT = 365


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
        check_shown_price(check_deliverable(vm, kind=Kind.BACKUP), shown_hourly_micro)
        schedule = BackupSchedule(vm=vm, created_by=user, draft=draft, created_at=now, **fields)
        plan(schedule, now)
        schedule.save(force_insert=True)
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
    first = schedule.next_run_at
    assert first is not None
    return [first, *slots.slots_between(schedule.rule, schedule.vm.project.customer.zone, first, now)]


def miss(schedule: BackupSchedule, missed: Sequence[datetime], now: datetime, reason: str) -> None:
    BackupRun.objects.bulk_create(
        BackupRun(
            schedule=schedule,
            vm=schedule.vm,
            slot=slot,
            state=BackupRun.State.MISSED,
            reason=reason,
            created_at=now,
            finished_at=now,
        )
        for slot in missed
    )


# --- copies ----------------------------------------------------------------------------------------------------------


def ask_now(schedule: BackupSchedule, user: User, now: datetime) -> BackupRun:
    """The caller holds the lock and has asked for room."""
    if BackupRun.objects.unfinished().filter(vm=schedule.vm).exists():
        raise NotNow(_("A backup of this machine is under way already. Ask again when that has ended."))
    run = BackupRun(schedule=schedule, vm=schedule.vm, slot=now, requested_by=user, created_at=now)
    ask_for_copy(run, now)
    return run


def ask_for_copy(run: BackupRun, now: datetime) -> None:
    """Ask the storage for what the run lacks: a first copy, the failed one again, or that it is verified. Raises every
    Refusal. The caller holds the lock and has asked for room.
    """
    copy = locked(run.snapshot) if run.snapshot else None
    if copy and copy.state == State.FAILED and has_other_disks(copy):
        accept_deletion(copy, at=now)  # a copy of the disks that the machine had
        copy = None
    if copy is None or copy.state in (State.DELETING, State.DELETED):
        run.snapshot = new_copy(run, now)
    elif copy.state == State.FAILED:
        retake(copy)
        create_operation(kind=Operation.Kind.CAPTURE, snapshot=copy)
    elif copy.state == State.READY:
        create_operation(kind=Operation.Kind.VERIFY, snapshot=copy)
    run.tries += 1
    run.state, run.next_try_at, run.reason = BackupRun.State.TAKING, None, ""
    run.save()


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
    return vm


def switch_on(vm: VirtualMachine, user: User | None, now: datetime) -> None:
    if vm.deleted_at is not None:
        raise SourceGone(_("“%(name)s” has been deleted, so there is nothing to back up.") % {"name": vm.name})
    quote = automatic_backup_quote(vm=vm, at=now)
    check_cover(vm.project.customer, quote.hourly_micro, now)
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
    return {name: getattr(location, f"default_{name}") for name in ("interval", "weekday", "month_day", "at", "keep")}


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
