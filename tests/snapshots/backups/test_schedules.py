"""Schedules: creating, editing, pausing and deleting them."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import pytest
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction

from billing.models import Package, ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer, Membership, Role
from cng_portal.inventory.models import VirtualMachine
from snapshots.backups import schedules
from snapshots.backups.retention import pin_backup, unpin_backup
from snapshots.backups.schedules import (
    InvalidSchedule,
    create_schedule,
    delete_schedule,
    edit_schedule,
    pause_schedule,
    resume_schedule,
    run_now,
)
from snapshots.errors import InsufficientCredit, InvalidState, NotSold, PriceChanged, QuotaExceeded
from snapshots.models import BackupRun, BackupSchedule, Kind, Snapshot, State
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    DraftFactory,
    MembershipFactory,
    SnapshotFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)  # 18:30 in Yangon
NIGHTLY = {"interval": "daily", "at": time(2), "retention_count": 2}


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def vm(storage_root: Path, member: Membership) -> VirtualMachine:
    vm = VirtualMachineFactory(project=member.project, name="db-01")
    for position, size_gb in enumerate([10, 30]):
        volume = VolumeFactory(project=member.project, location=vm.location, vm=vm, position=position, size_gb=size_gb)
        put_volume(storage_root, volume, content(b"disk %d" % position))
    sell_everywhere(kind=ServiceKind.VM_BACKUP, rate_micro=600_000)
    return vm


def create(vm: VirtualMachine, member: Membership, **fields: object) -> BackupSchedule:
    return create_schedule(**({"source": vm, "user": member.user, "now": NOON} | NIGHTLY | fields))


@pytest.mark.parametrize(
    ("fields", "next_run_at"),
    [
        ({}, datetime(2026, 11, 22, 19, 30, tzinfo=UTC)),
        # fields of other intervals are dropped
        ({"weekday": 3, "month_day": 5}, datetime(2026, 11, 22, 19, 30, tzinfo=UTC)),
        ({"interval": "weekly", "weekday": 2}, datetime(2026, 11, 24, 19, 30, tzinfo=UTC)),
        ({"interval": "monthly", "month_day": 31, "at": time(20)}, datetime(2026, 11, 30, 13, 30, tzinfo=UTC)),
    ],
)
def test_a_schedule_runs_next_at_its_time_in_the_customers_zone(
    vm: VirtualMachine, member: Membership, fields: dict, next_run_at: datetime
) -> None:
    schedule = create(vm, member, **fields)
    schedule.refresh_from_db()
    assert (schedule.next_run_at, schedule.origin, schedule.created_by) == (next_run_at, "customer", member.user)
    assert not schedule.runs.exists()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"interval": "hourly"}, "interval"),
        ({"interval": "weekly"}, "weekday"),
        ({"interval": "monthly", "month_day": 32}, "month_day"),
        ({"retention_count": 0}, "retention_count"),
        ({"retention_count": 366}, "retention_count"),
    ],
)
def test_invalid_schedule_fields_are_refused_and_named(
    vm: VirtualMachine, member: Membership, fields: dict, field: str
) -> None:
    with pytest.raises(InvalidSchedule) as refusal:
        create(vm, member, **fields)
    assert refusal.value.field == field
    assert not BackupSchedule.objects.exists()


def test_a_schedule_is_refused_for_the_reasons_of_a_backup(vm: VirtualMachine, member: Membership) -> None:
    with pytest.raises(PriceChanged, match="has changed to K 24.00"):
        create(vm, member, shown_hourly_micro=1)
    Customer.objects.update(snapshot_gb_quota=39)
    with pytest.raises(QuotaExceeded):
        create(vm, member)
    Customer.objects.update(snapshot_gb_quota=-1, billing_type="prepaid")
    with pytest.raises(InsufficientCredit):
        create(vm, member)
    Package.objects.update(active=False)
    with pytest.raises(NotSold):
        create(vm, member)
    assert not BackupSchedule.objects.exists()


def test_the_number_of_schedules_of_a_machine_is_limited(
    vm: VirtualMachine, member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MAX_SCHEDULES_PER_SOURCE", 2)
    first, _second = create(vm, member), create(vm, member)
    with pytest.raises(InvalidState, match="“db-01” already has 2 schedules"):
        create(vm, member)
    delete_schedule(schedule=first, user=member.user, now=NOON)
    create(vm, member)


def test_a_viewer_cannot_change_schedules(vm: VirtualMachine, member: Membership) -> None:
    viewer = MembershipFactory(project=member.project, role=Role.VIEWER)
    schedule = create(vm, member)
    for action in (
        lambda: create(vm, viewer),
        lambda: pause_schedule(schedule=schedule, user=viewer.user),
        lambda: delete_schedule(schedule=schedule, user=viewer.user),
        lambda: run_now(schedule=schedule, user=viewer.user),
    ):
        with pytest.raises(PermissionDenied):
            action()


def test_the_same_draft_makes_one_schedule(vm: VirtualMachine, member: Membership) -> None:
    draft = DraftFactory(customer=member.project.customer, kind=Kind.BACKUP)
    assert create(vm, member, draft=draft) == create(vm, member, draft=draft, take_one_now=True)
    assert BackupSchedule.objects.count() == 1
    assert not BackupRun.objects.exists()


def test_a_backup_taken_immediately_is_charged_per_gb(vm: VirtualMachine, member: Membership) -> None:
    schedule = create(vm, member, take_one_now=True)
    run = schedule.runs.get()
    assert (run.state, run.scheduled_at, run.requested_by) == (BackupRun.State.TAKING, NOON, member.user)
    assert (run.snapshot.kind, run.snapshot.name) == (Kind.BACKUP, "db-01-backup-2026-11-22")
    run_active_operations()
    backup = Snapshot.objects.get()
    assert backup.state == State.READY
    segment = UsageSegment.objects.get()
    assert (segment.kind, segment.size_gb, segment.resource_id) == (ServiceKind.VM_BACKUP, 40, backup.pk)


def test_run_now_is_refused_while_a_run_is_unfinished(vm: VirtualMachine, member: Membership) -> None:
    schedule = create(vm, member, take_one_now=True)
    with pytest.raises(InvalidState, match="already running"):
        run_now(schedule=schedule, user=member.user)
    assert Snapshot.objects.count() == 1


def test_a_paused_schedule_has_no_next_run_until_it_is_resumed(vm: VirtualMachine, member: Membership) -> None:
    schedule = create(vm, member)
    paused = pause_schedule(schedule=schedule, user=member.user, now=NOON)
    assert (paused.paused_at, paused.next_run_at) == (NOON, None)
    again = pause_schedule(schedule=schedule, user=member.user, now=NOON + timedelta(days=1))
    assert again.paused_at == NOON
    later = NOON + timedelta(days=10)
    resumed = resume_schedule(schedule=schedule, user=member.user, now=later)
    assert (resumed.paused_at, resumed.next_run_at) == (None, datetime(2026, 12, 2, 19, 30, tzinfo=UTC))
    assert not schedule.runs.exists()


def test_runs_due_when_a_schedule_is_paused_edited_or_deleted_are_recorded(
    vm: VirtualMachine, member: Membership
) -> None:
    schedule = create(vm, member)
    first, second, third = (datetime(2026, 11, day, 19, 30, tzinfo=UTC) for day in (22, 23, 24))
    edit_schedule(schedule=schedule, user=member.user, now=second, **NIGHTLY | {"at": time(3)})
    third += timedelta(hours=1)
    pause_schedule(schedule=schedule, user=member.user, now=third)
    runs = [(run.scheduled_at, run.state, run.reason) for run in schedule.runs.order_by("scheduled_at")]
    changed, paused = "The schedule was changed before this run could be started.", "The schedule was paused."
    assert runs == [
        (first, "missed", changed),
        (second, "missed", changed),
        (second + timedelta(hours=1), "missed", paused),
        (third, "missed", paused),
    ]


def test_an_edited_schedule_runs_at_its_new_time(vm: VirtualMachine, member: Membership) -> None:
    schedule = create(vm, member)
    edited = edit_schedule(
        schedule=schedule, user=member.user, now=NOON, interval="weekly", weekday=0, at=time(5, 30), retention_count=7
    )
    assert (edited.next_run_at, edited.retention_count) == (datetime(2026, 11, 22, 23, tzinfo=UTC), 7)


def test_a_deleted_schedule_keeps_its_backups_and_stops_retrying(vm: VirtualMachine, member: Membership) -> None:
    done = BackupRunFactory(schedule=create(vm, member))
    waiting = BackupRunFactory(schedule=done.schedule, waiting=True)
    deleted = delete_schedule(schedule=done.schedule, user=member.user, now=NOON)
    assert (deleted.deleted_at, deleted.next_run_at) == (NOON, None)
    done.snapshot.refresh_from_db()
    waiting.refresh_from_db()
    assert done.snapshot.state == State.READY
    assert (waiting.state, waiting.reason) == (BackupRun.State.FAILED, "The schedule was deleted.")
    delete_schedule(schedule=done.schedule, user=member.user)
    with pytest.raises(InvalidState, match="has been deleted"):
        resume_schedule(schedule=done.schedule, user=member.user)


def test_customers_cannot_change_automatic_backups(member: Membership, vm: VirtualMachine) -> None:
    schedule = BackupScheduleFactory(vm=vm, automatic=True)
    for action in (pause_schedule, resume_schedule, delete_schedule, run_now):
        with pytest.raises(InvalidState, match="Only your provider can change"):
            action(schedule=schedule, user=member.user)


def test_a_backup_is_pinned_and_unpinned(vm: VirtualMachine, member: Membership) -> None:
    backup = BackupRunFactory(schedule=create(vm, member)).snapshot
    assert pin_backup(snapshot=backup, user=member.user).is_pinned
    assert not unpin_backup(snapshot=backup, user=member.user).is_pinned
    of_a_volume = SnapshotFactory(volume__project=member.project)
    with pytest.raises(InvalidState, match="Only scheduled backups and snapshots"):
        pin_backup(snapshot=of_a_volume, user=member.user)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("broken", "constraint"),
    [
        ({"interval": "weekly"}, "schedule_interval"),
        ({"weekday": 1}, "schedule_interval"),
        ({"interval": "monthly", "month_day": 0}, "schedule_interval"),
        ({"retention_count": 0}, "schedule_retention_count"),
        ({"next_run_at": None}, "schedule_next_run"),
        ({"paused_at": NOON}, "schedule_next_run"),
    ],
)
def test_the_database_refuses_inconsistent_schedules(broken: dict, constraint: str) -> None:
    schedule = BackupScheduleFactory()
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        BackupSchedule.objects.filter(pk=schedule.pk).update(**broken)


@pytest.mark.both_databases
def test_the_database_allows_one_run_per_occurrence_one_unfinished_per_machine_and_one_automatic_schedule() -> None:
    run = BackupRunFactory(taking=True)
    with pytest.raises(IntegrityError), transaction.atomic():
        BackupRunFactory(schedule=run.schedule, scheduled_at=run.scheduled_at)
    with pytest.raises(IntegrityError), transaction.atomic():
        BackupRunFactory(schedule__vm=run.vm, waiting=True)
    BackupScheduleFactory(vm=run.vm, automatic=True, deleted=True)
    BackupScheduleFactory(vm=run.vm, automatic=True)
    with pytest.raises(IntegrityError), transaction.atomic():
        BackupScheduleFactory(vm=run.vm, automatic=True)
