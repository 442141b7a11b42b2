"""Runs that the scheduler starts, retries and settles, and which backups retention deletes."""

from collections.abc import Callable
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer, Membership, Role
from cng_portal.accounts.services import lock_customer
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import VirtualMachine, Volume
from cng_portal.notifications.models import Notification
from snapshots import checks, services, tasks
from snapshots.backups.retention import pin_backup
from snapshots.backups.runs import settle_runs, start_due_runs
from snapshots.backups.schedules import edit_schedule, run_now
from snapshots.backups.upkeep import maintain_schedules
from snapshots.models import BackupRun, BackupSchedule, DeletionCause, DiskImage, Operation, Snapshot, State
from snapshots.recycle_bin import put_back
from snapshots.volumes import new_volumes
from tests.factories import BackupScheduleFactory, MembershipFactory, VirtualMachineFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere
from tests.snapshots.test_races import all_at_once

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]

DAY = timedelta(days=1)
DONE, FAILED, MISSED = BackupRun.State.DONE, BackupRun.State.FAILED, BackupRun.State.MISSED
TAKING, WAITING = BackupRun.State.TAKING, BackupRun.State.WAITING


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def vm(storage_root: Path, member: Membership) -> VirtualMachine:
    vm = VirtualMachineFactory(project=member.project, name="db-01", hourly_price_micro=50_000_000)
    for position in range(2):
        volume = VolumeFactory(project=member.project, location=vm.location, vm=vm, position=position)
        put_volume(storage_root, volume, content(b"disk %d" % position))
    sell_everywhere(kind=ServiceKind.VM_BACKUP, rate_micro=600_000)
    return vm


@pytest.fixture
def schedule(vm: VirtualMachine) -> BackupSchedule:
    return BackupScheduleFactory(vm=vm)


def images(root: Path, vm: VirtualMachine) -> list[Path]:
    return [root / vm.location_id / "volumes" / f"{volume.pk}.img" for volume in checks.volumes_of(vm)]


def copy_file(root: Path, backup: Snapshot) -> Path:
    return root / backup.location_id / "snapshots" / str(backup.disks.first().pk) / "disk.img"


def due_at(schedule: BackupSchedule) -> datetime:
    schedule.refresh_from_db()
    assert schedule.next_run_at is not None
    return schedule.next_run_at


def run_once(schedule: BackupSchedule) -> BackupRun:
    """Complete the next run."""
    now = due_at(schedule)
    assert start_due_runs(now) == 1
    work()
    settle_runs(now)
    run = schedule.runs.get(scheduled_at=now)
    assert run.state == DONE
    return run


def work() -> None:
    """Run the waiting captures, then verify them."""
    run_active_operations()
    run_active_operations()


def states(schedule: BackupSchedule) -> list[str]:
    return list(schedule.runs.order_by("scheduled_at").values_list("state", flat=True))


def backup_states(schedule: BackupSchedule) -> list[str]:
    """Return the states of the schedule's backups, oldest first."""
    return list(
        Snapshot.objects.filter(run__schedule=schedule).order_by("run__scheduled_at").values_list("state", flat=True)
    )


def test_a_due_run_is_started_once_and_done_when_its_backup_is_verified(schedule: BackupSchedule) -> None:
    slot = due_at(schedule)
    assert start_due_runs(slot - timedelta(seconds=1)) == 0
    assert start_due_runs(slot) == 1
    assert start_due_runs(slot) == 0
    assert due_at(schedule) == slot + DAY
    run = schedule.runs.get()
    assert (run.scheduled_at, run.state, run.tries) == (slot, TAKING, 1)

    assert settle_runs(slot) == 0
    run_active_operations()
    backup = Snapshot.objects.get()
    assert backup.state == State.READY
    assert UsageSegment.objects.get().kind == ServiceKind.VM_BACKUP
    assert settle_runs(slot) == 0, "not verified yet"
    run_active_operations()
    assert all(disk.verified_at and disk.checksum for disk in backup.disks.all())
    assert settle_runs(slot + timedelta(minutes=3)) == 1
    run.refresh_from_db()
    assert (run.state, run.finished_at) == (DONE, slot + timedelta(minutes=3))
    assert settle_runs(slot) == 0


def test_after_an_outage_the_latest_occurrence_runs_and_the_others_are_recorded_as_missed(
    schedule: BackupSchedule, member: Membership
) -> None:
    viewer = MembershipFactory(project=member.project, role=Role.VIEWER)
    slot = due_at(schedule)
    assert start_due_runs(slot + 3 * DAY + timedelta(hours=5)) == 1
    runs = list(schedule.runs.order_by("scheduled_at"))
    assert [(run.scheduled_at, run.state) for run in runs] == [
        (slot, MISSED),
        (slot + DAY, MISSED),
        (slot + 2 * DAY, MISSED),
        (slot + 3 * DAY, TAKING),
    ]
    assert due_at(schedule) == slot + 4 * DAY
    notice = Notification.objects.get()
    assert notice.user == member.user != viewer.user
    assert notice.title == "Backups of db-01 were missed"
    assert notice.text.startswith("3 backups were missed, from ")
    assert notice.text.endswith("Only the latest missed run is taken late.")
    entry = Activity.objects.get(action="backup.missed")
    assert (entry.actor, entry.project, entry.target_name) == (None, member.project, "db-01")
    assert (entry.after["runs"], entry.after["last"]) == (3, (slot + 2 * DAY).isoformat())


def test_an_occurrence_during_the_schedules_own_run_is_missed(schedule: BackupSchedule) -> None:
    slot = due_at(schedule)
    start_due_runs(slot)
    assert start_due_runs(slot + DAY) == 1
    assert states(schedule) == [TAKING, MISSED]
    assert schedule.runs.get(state=MISSED).reason == "The previous run hadn't finished."
    assert Snapshot.objects.count() == 1


def test_an_occurrence_during_another_schedules_run_waits(schedule: BackupSchedule, vm: VirtualMachine) -> None:
    other = BackupScheduleFactory(vm=vm, automatic=True)
    slot = due_at(schedule)
    assert start_due_runs(slot) == 1
    assert Snapshot.objects.count() == 1
    work()
    assert settle_runs(slot) == 1
    later = slot + timedelta(minutes=10)
    assert start_due_runs(later) == 1
    work()
    settle_runs(later)
    assert states(schedule) == states(other) == [DONE]
    assert schedule.runs.get().scheduled_at == other.runs.get().scheduled_at == slot
    assert not Notification.objects.exists()


def test_a_schedule_that_cannot_start_does_not_stop_others(schedule: BackupSchedule) -> None:
    broken = BackupScheduleFactory(next_run_at=due_at(schedule) - timedelta(hours=1))
    broken.vm.location.__class__.objects.filter(pk=broken.vm.location_id).update(driver="none such")
    VolumeFactory(project=broken.vm.project, location=broken.vm.location, vm=broken.vm)
    assert start_due_runs(due_at(schedule)) == 1
    assert states(schedule) == [TAKING]


def test_twenty_schedulers_start_and_settle_an_occurrence_once(schedule: BackupSchedule, vm: VirtualMachine) -> None:
    other = BackupScheduleFactory(vm=vm, automatic=True)
    slot = due_at(schedule)
    started: list[int] = []
    assert all_at_once(lambda number: started.append(start_due_runs(slot + DAY))) == {"done": 20}
    # both have missed an occurrence, and one of the two takes its turn
    assert sum(started) == 1
    assert sorted(states(schedule) + states(other)) == [MISSED, TAKING]
    work()
    settled: list[int] = []
    all_at_once(lambda number: settled.append(settle_runs(slot + DAY)))
    assert sum(settled) == 1
    assert (
        Snapshot.objects.count()
        == UsageSegment.objects.count() + BackupRun.objects.filter(schedule=other, state=DONE).count()
    )


def test_an_occurrence_planned_again_by_a_slow_clock_does_not_run_twice(
    schedule: BackupSchedule, member: Membership
) -> None:
    slot = due_at(schedule)
    start_due_runs(slot)
    edit_schedule(
        schedule=schedule,
        interval="daily",
        at=time(2),
        retention_count=3,
        user=member.user,
        now=slot - timedelta(seconds=2),
    )
    assert due_at(schedule) == slot
    start_due_runs(slot)
    assert (states(schedule), due_at(schedule)) == ([TAKING], slot + DAY)


def test_a_failed_run_is_retried_with_backoff_and_fails_after_the_third_try(
    storage_root: Path, schedule: BackupSchedule, vm: VirtualMachine, member: Membership
) -> None:
    images(storage_root, vm)[1].unlink()
    at = due_at(schedule)
    start_due_runs(at)
    run = schedule.runs.get()
    for number, minutes in enumerate([5, 20, 60], start=1):
        assert (run.state, run.tries, run.next_try_at) == (WAITING, number, at + timedelta(minutes=minutes))
        assert "is not in the storage" in run.reason
        at = run.next_try_at
        assert settle_runs(at - timedelta(seconds=1)) == 0
        assert settle_runs(at) == 1
        run.refresh_from_db()
    assert (run.state, run.tries, run.next_try_at, run.finished_at) == (FAILED, 4, None, at)
    assert settle_runs(at + DAY) == 0
    first, last = Notification.objects.order_by("created_at")
    assert (first.title, last.title) == (
        "The backup of db-01 failed and will be retried",
        "The backup of db-01 failed",
    )
    assert "is not in the storage" in first.text
    local = timezone.localtime(run.scheduled_at + timedelta(minutes=5), member.user.zone)
    assert f"It will be retried at {local.day} {local:%b %Y, %H:%M}" in first.text
    assert "It was tried 4 times" in last.text
    entry = Activity.objects.get(action="backup.failed")
    assert (entry.actor, entry.project, entry.after["scheduled_at"]) == (
        None,
        member.project,
        run.scheduled_at.isoformat(),
    )
    assert "is not in the storage" in entry.after["reason"]
    assert not UsageSegment.objects.exists()


def test_a_failed_capture_is_retried_as_the_same_backup(
    storage_root: Path, schedule: BackupSchedule, vm: VirtualMachine
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    lost = images(storage_root, vm)[0]
    aside = lost.rename(lost.with_suffix(".aside"))
    run_active_operations()
    assert settle_runs(at) == 1
    run = schedule.runs.get()
    assert (run.state, run.snapshot.state) == (WAITING, State.FAILED)
    aside.rename(lost)
    at += timedelta(minutes=5)
    settle_runs(at)
    work()
    settle_runs(at)
    run.refresh_from_db()
    assert (run.state, run.tries, run.reason) == (DONE, 2, "")
    assert Snapshot.objects.get().state == State.READY
    assert Notification.objects.get().title == "The backup of db-01 failed and will be retried"


def test_a_retry_takes_a_new_backup_if_the_machines_disks_have_changed(
    storage_root: Path, schedule: BackupSchedule, vm: VirtualMachine
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    lost = images(storage_root, vm)[1]
    lost.unlink()
    run_active_operations()
    settle_runs(at)
    Volume.objects.filter(pk=lost.stem).update(vm=None)
    settle_runs(at + timedelta(minutes=5))
    work()
    settle_runs(at + timedelta(minutes=5))
    run = schedule.runs.get()
    assert (run.state, run.snapshot.disks.count()) == (DONE, 1)
    assert Snapshot.objects.exclude(pk=run.snapshot_id).get().state == State.DELETED


def test_a_refusal_is_the_reason_of_the_failure(schedule: BackupSchedule) -> None:
    Customer.objects.update(snapshot_quota=0)
    start_due_runs(due_at(schedule))
    run = schedule.runs.get()
    assert (run.state, run.snapshot) == (WAITING, None)
    assert run.reason.startswith("Quota full: 0 of 0")
    Customer.objects.update(snapshot_quota=-1, billing_type="prepaid")
    settle_runs(run.next_try_at)
    run.refresh_from_db()
    assert run.reason.startswith("Insufficient infra credit")


def test_a_backup_found_damaged_by_its_verification_is_removed_and_taken_again(
    storage_root: Path, schedule: BackupSchedule
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    run_active_operations()
    damaged = Snapshot.objects.get()
    spoil(copy_file(storage_root, damaged))
    run_active_operations()
    settle_runs(at)
    run = schedule.runs.get()
    assert run.state == WAITING and "found it damaged, so it was deleted" in run.reason
    assert UsageSegment.objects.get().ended_at is not None
    settle_runs(at + timedelta(minutes=5))
    work()
    settle_runs(at + timedelta(minutes=5))
    run.refresh_from_db()
    damaged.refresh_from_db()
    assert (run.state, damaged.state) == (DONE, State.DELETED)
    assert run.snapshot != damaged
    assert UsageSegment.objects.filter(ended_at=None).get().resource_id == run.snapshot_id


def test_a_pinned_backup_found_damaged_stays_and_another_is_taken(
    storage_root: Path, schedule: BackupSchedule, member: Membership
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    run_active_operations()
    damaged = pin_backup(snapshot=Snapshot.objects.get(), user=member.user)
    spoil(copy_file(storage_root, damaged))
    run_active_operations()
    settle_runs(at)
    run = schedule.runs.get()
    assert run.state == WAITING and "found it damaged:" in run.reason
    settle_runs(at + timedelta(minutes=5))
    work()
    settle_runs(at + timedelta(minutes=5))
    run.refresh_from_db()
    damaged.refresh_from_db()
    assert (run.state, damaged.is_damaged, run.snapshot == damaged) == (DONE, True, False)


def test_a_backup_that_could_not_be_verified_is_verified_again_and_not_taken_again(
    storage_root: Path, schedule: BackupSchedule
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    run_active_operations()
    backup = Snapshot.objects.get()
    folder = copy_file(storage_root, backup).parent
    aside = folder.rename(folder.with_name("aside"))
    run_active_operations()
    reading = Operation.objects.get(kind=Operation.Kind.VERIFY)
    assert reading.state == Operation.State.FAILED
    settle_runs(at)
    run = schedule.runs.get()
    assert (run.state, run.reason) == (WAITING, reading.error)
    aside.rename(folder)
    settle_runs(at + timedelta(minutes=5))
    work()
    settle_runs(at + timedelta(minutes=5))
    run.refresh_from_db()
    assert (run.state, run.snapshot) == (DONE, backup)
    assert [notice.title for notice in Notification.objects.all()] == ["The backup of db-01 failed and will be retried"]


def test_a_failed_backup_that_a_user_retries_finishes_its_run(
    storage_root: Path, schedule: BackupSchedule, vm: VirtualMachine, member: Membership
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    lost = images(storage_root, vm)[0]
    aside = lost.rename(lost.with_suffix(".aside"))
    run_active_operations()
    settle_runs(at)
    aside.rename(lost)
    services.retry(operation=Operation.objects.get(), user=member.user)
    assert settle_runs(at + timedelta(minutes=5)) == 0, "the person's try is under way"
    work()
    settle_runs(at)
    assert states(schedule) == [DONE]


def test_a_backup_that_is_deleted_before_it_is_verified_ends_its_run(
    schedule: BackupSchedule, member: Membership
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    run_active_operations()
    services.request_deletion(snapshot=Snapshot.objects.get(), user=member.user, even_if_last=True)
    work()
    settle_runs(at)
    run = schedule.runs.get()
    assert (run.state, run.reason) == (FAILED, "It was deleted before it was verified.")


def spoil(path: Path) -> None:
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.write(b"other bytes")


def test_the_oldest_backup_is_deleted_only_once_a_new_one_is_verified(schedule: BackupSchedule) -> None:
    first = run_once(schedule).snapshot
    run_once(schedule)
    now = due_at(schedule)
    start_due_runs(now)
    run_active_operations()
    assert backup_states(schedule) == [State.READY] * 3
    run_active_operations()
    assert backup_states(schedule) == [State.READY] * 3
    settle_runs(now)
    assert backup_states(schedule) == [State.DELETING, State.READY, State.READY]
    first.refresh_from_db()
    assert first.delete_requested_at == now
    assert UsageSegment.objects.get(resource_id=first.pk).ended_at is not None
    work()
    assert backup_states(schedule) == [State.DELETED, State.READY, State.READY]


@pytest.mark.parametrize(("days", "expected"), [(7, State.DELETED), (0, State.DELETING)])
def test_a_schedule_may_move_what_retention_deletes_to_the_recycle_bin(
    schedule: BackupSchedule, member: Membership, settings: Any, days: int, expected: State
) -> None:
    settings.RECYCLE_BIN_DAYS = days
    BackupSchedule.objects.update(uses_recycle_bin=True)
    first = [run_once(schedule).snapshot for _run in range(3)][0]
    first.refresh_from_db()
    assert (first.state, first.deletion_cause, first.is_in_bin) == (expected, DeletionCause.RETENTION, days > 0)
    assert UsageSegment.objects.get(resource_id=first.pk).ended_at == first.delete_requested_at
    assert Operation.objects.filter(snapshot=first, kind=Operation.Kind.DELETE).exists() == (days == 0)
    if first.is_in_bin:
        put_back(snapshot=first, user=member.user)
        run_once(schedule)
        assert backup_states(schedule) == [State.READY, State.DELETED, State.READY, State.READY], "it is pinned"


def test_a_schedule_erases_what_retention_deletes_by_default(schedule: BackupSchedule, settings: Any) -> None:
    settings.RECYCLE_BIN_DAYS = 7
    for _run in range(3):
        run_once(schedule)
    assert backup_states(schedule) == [State.DELETING, State.READY, State.READY]


def test_retention_erases_a_failed_backup_past_the_recycle_bin(schedule: BackupSchedule, settings: Any) -> None:
    settings.RECYCLE_BIN_DAYS = 7
    BackupSchedule.objects.update(uses_recycle_bin=True)
    first = run_once(schedule).snapshot
    Snapshot.objects.filter(pk=first.pk).update(missing_since=timezone.now())
    for _run in range(2):
        run_once(schedule)
    assert backup_states(schedule) == [State.DELETING, State.READY, State.READY]


def test_a_pinned_backup_is_neither_counted_nor_deleted(schedule: BackupSchedule, member: Membership) -> None:
    pin_backup(snapshot=run_once(schedule).snapshot, user=member.user)
    for _run in range(3):
        run_once(schedule)
    assert backup_states(schedule) == [State.READY, State.DELETING, State.READY, State.READY]


def test_a_damaged_backup_does_not_count_for_retention(
    storage_root: Path, schedule: BackupSchedule, member: Membership
) -> None:
    run_once(schedule)
    second = run_once(schedule).snapshot
    spoil(copy_file(storage_root, second))
    services.request_verification(snapshot=second, user=member.user)
    run_active_operations()
    assert DiskImage.objects.filter(snapshot=second).exclude(damage="").exists()
    run_once(schedule)
    assert backup_states(schedule) == [State.READY, State.READY, State.READY], "two sound ones were promised"
    run_once(schedule)
    assert backup_states(schedule) == [State.DELETING, State.DELETING, State.READY, State.READY]


def test_a_backup_in_use_stays_until_the_next_time(schedule: BackupSchedule, member: Membership) -> None:
    first = run_once(schedule).snapshot
    run_once(schedule)
    now = due_at(schedule)
    start_due_runs(now)
    work()
    new_volumes.request_new_volume(
        snapshot=first, user=member.user, project=member.project, name="back", size_gb=1, disk=first.disks.first()
    )
    settle_runs(now)
    assert backup_states(schedule) == [State.READY] * 3
    work()
    run_once(schedule)
    assert backup_states(schedule) == [State.DELETING, State.DELETING, State.READY, State.READY]


def test_a_lower_retention_count_applies_after_the_next_verified_backup(
    schedule: BackupSchedule, member: Membership
) -> None:
    run_once(schedule)
    run_once(schedule)
    now = due_at(schedule) - timedelta(hours=1)
    edit_schedule(schedule=schedule, interval="daily", at=time(2), retention_count=1, user=member.user, now=now)
    assert backup_states(schedule) == [State.READY, State.READY]
    run_once(schedule)
    assert backup_states(schedule) == [State.DELETING, State.DELETING, State.READY]


def test_the_backups_of_one_schedule_do_not_count_for_another(schedule: BackupSchedule, vm: VirtualMachine) -> None:
    other = BackupScheduleFactory(vm=vm, at=time(12), retention_count=1)
    for _round in range(2):
        for item in sorted([schedule, other], key=due_at):
            run_once(item)
    assert backup_states(schedule) == [State.READY, State.READY]
    older, newer = backup_states(other)
    # which schedule comes last depends on the hour, and its work runs the deletion as well
    assert older in (State.DELETING, State.DELETED)
    assert newer == State.READY


@pytest.mark.parametrize("check", [maintain_schedules, start_due_runs])
def test_the_schedules_of_a_deleted_machine_end_and_its_backups_stay(
    schedule: BackupSchedule, vm: VirtualMachine, check: Callable[[datetime], int]
) -> None:
    backup = run_once(schedule).snapshot
    now = due_at(schedule) + timedelta(hours=1)
    VirtualMachine.objects.update(deleted_at=now - timedelta(hours=2))
    assert check(now) == 1
    assert check(now) == 0
    schedule.refresh_from_db()
    backup.refresh_from_db()
    assert (schedule.deleted_at, schedule.next_run_at, backup.state) == (now - timedelta(hours=2), None, State.READY)
    assert states(schedule) == [DONE], "what came after the machine is no missed slot"


def test_schedules_follow_a_change_of_the_customers_time_zone(schedule: BackupSchedule) -> None:
    Customer.objects.update(time_zone="Asia/Tokyo")  # where 02:00 exists on every day
    now = timezone.now()
    assert maintain_schedules(now) == 1
    assert maintain_schedules(now) == 0
    customer = Customer.objects.get()
    assert timezone.localtime(due_at(schedule), customer.zone).time() == time(2)
    assert timezone.timedelta() < due_at(schedule) - now <= DAY + timedelta(hours=1)


def test_schedules_planned_by_a_clock_far_ahead_run_once_it_is_right(schedule: BackupSchedule) -> None:
    slot = due_at(schedule)
    start_due_runs(slot + 400 * DAY)
    work()
    settle_runs(slot + 400 * DAY)
    schedule.refresh_from_db()
    assert due_at(schedule) == slot + 401 * DAY
    now = slot - timedelta(hours=5)
    assert maintain_schedules(now) == 1
    assert maintain_schedules(now) == 0
    assert due_at(schedule) == slot
    # The occurrences of that time are recorded already, so none runs twice.
    assert start_due_runs(slot) == 1
    assert due_at(schedule) == slot + DAY
    assert Snapshot.objects.count() == 1
    # All later occurrences run, although that clock recorded them as missed.
    assert not schedule.runs.filter(scheduled_at__gt=now + DAY).exists()
    for number in range(1, 4):
        assert start_due_runs(slot + number * DAY) == 1
        work()
        settle_runs(slot + number * DAY)
        assert schedule.runs.get(scheduled_at=slot + number * DAY).state == DONE


def test_a_run_backed_off_by_a_clock_far_ahead_is_retried_once_it_is_right(
    schedule: BackupSchedule, storage_root: Path, vm: VirtualMachine
) -> None:
    image = images(storage_root, vm)[0]
    image.rename(image.with_suffix(".away"))
    at = due_at(schedule)
    start_due_runs(at + timedelta(hours=5))
    assert states(schedule) == [WAITING]
    image.with_suffix(".away").rename(image)
    assert settle_runs(at) == 1
    work()
    settle_runs(at)
    assert (states(schedule), backup_states(schedule)) == ([DONE], [State.READY])


@pytest.mark.parametrize("ahead", [3 * DAY, timedelta(seconds=45)], ids=["days", "less than a copy takes"])
def test_retention_deletes_a_backup_dated_by_a_clock_that_was_ahead(
    schedule: BackupSchedule, member: Membership, ahead: timedelta
) -> None:
    BackupSchedule.objects.update(retention_count=1)
    schedule.refresh_from_db()
    now = timezone.now()
    for at in now + ahead, now:
        run_now(schedule=schedule, user=member.user, now=at)
        work()
        settle_runs(at + timedelta(minutes=1))
    assert states(schedule) == [DONE, DONE]
    assert backup_states(schedule) == [State.READY, State.DELETING]


SECONDS = timedelta(seconds=1)
HOURS = timedelta(hours=1)


@pytest.mark.parametrize(
    "clocks",
    [
        [45 * SECONDS, 10 * SECONDS, 60 * SECONDS],
        [0 * HOURS, -7 * HOURS, 1 * HOURS],
        [5 * HOURS, 26 * HOURS, -3 * HOURS, 1 * HOURS, 6 * HOURS],
        [-7 * HOURS, 2 * HOURS, 2 * HOURS + SECONDS, -45 * SECONDS, 27 * HOURS],
    ],
)
def test_retention_follows_the_order_of_runs_despite_wrong_clocks(
    schedule: BackupSchedule, member: Membership, clocks: list[timedelta]
) -> None:
    """Each value is the clock error with which one run was started and settled."""
    start = timezone.now()
    backups = []
    for number, error in enumerate(clocks):
        now = start + number * SECONDS + error
        run = run_now(schedule=schedule, user=member.user, now=now)
        work()
        settle_runs(now)
        backups.append(run.snapshot_id)
        ready = set(Snapshot.objects.filter(state=State.READY).values_list("pk", flat=True))
        assert ready == set(backups[-schedule.retention_count :])


def test_a_backup_that_a_user_retries_is_the_newest_one(
    storage_root: Path, schedule: BackupSchedule, vm: VirtualMachine, member: Membership
) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    lost = images(storage_root, vm)[0]
    data = lost.read_bytes()
    lost.unlink()
    run_active_operations()
    failed = Operation.objects.get()
    BackupRun.objects.update(state=FAILED, next_try_at=None, finished_at=at, reason="It failed.")
    lost.write_bytes(data)
    later = run_once(schedule)
    BackupSchedule.objects.update(retention_count=1)
    services.retry(operation=failed, user=member.user)
    work()
    settle_runs(at)
    retried = schedule.runs.get(snapshot=failed.snapshot)
    assert (retried.state, retried.number, later.number) == (DONE, 3, 2)
    assert set(Snapshot.objects.values_list("pk", "state")) == {
        (failed.snapshot_id, State.READY),
        (later.snapshot_id, State.DELETING),
    }


def test_a_backup_deleted_in_the_cloud_does_not_count_for_retention(schedule: BackupSchedule) -> None:
    first, second = run_once(schedule).snapshot, run_once(schedule).snapshot
    Snapshot.objects.filter(pk=second.pk).update(missing_since=timezone.now())
    run_once(schedule)
    first.refresh_from_db()
    assert first.state == State.READY, "two that can be restored were promised"
    run_once(schedule)
    assert backup_states(schedule) == [State.DELETING, State.DELETING, State.READY, State.READY]


def delete(snapshot: Snapshot, cause: DeletionCause) -> None:
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        services.accept_deletion(snapshot, at=timezone.now(), cause=cause)


@pytest.mark.parametrize("cause", [cause for cause in DeletionCause if cause != DeletionCause.USER])
def test_the_database_lets_only_a_user_delete_the_newest_verified_backup(
    schedule: BackupSchedule, cause: DeletionCause
) -> None:
    older, newest = run_once(schedule).snapshot, run_once(schedule).snapshot
    # Whatever the clocks said.
    BackupRun.objects.filter(snapshot=newest).update(scheduled_at=timezone.now() - 400 * DAY)
    with pytest.raises(IntegrityError, match="newest verified backup of a schedule is never deleted automatically"):
        delete(newest, cause)
    newest.refresh_from_db()
    assert newest.state == State.READY
    delete(newest, DeletionCause.USER)
    with pytest.raises(IntegrityError, match="newest verified backup"):
        delete(older, cause)


def test_the_database_protects_the_newest_restorable_backup_not_just_the_newest(schedule: BackupSchedule) -> None:
    older, damaged, missing = (run_once(schedule).snapshot for _number in range(3))
    Snapshot.objects.filter(pk=older.pk).update(state=State.READY, delete_requested_at=None, deletion_cause="")
    older.refresh_from_db()
    damaged.disks.filter(position=1).update(damage="Other bytes.")
    Snapshot.objects.filter(pk=missing.pk).update(missing_since=timezone.now())
    missing.refresh_from_db()
    with pytest.raises(IntegrityError, match="newest verified backup"):
        delete(older, DeletionCause.RETENTION)
    delete(damaged, DeletionCause.DAMAGED)
    delete(missing, DeletionCause.OUTSIDE)


def test_the_database_lets_only_a_user_delete_a_pinned_backup(schedule: BackupSchedule, member: Membership) -> None:
    pinned = run_once(schedule).snapshot
    pinned = pin_backup(snapshot=pinned, user=member.user)
    run_once(schedule)
    with pytest.raises(IntegrityError, match="A pinned backup is never deleted automatically"):
        delete(pinned, DeletionCause.RETENTION)
    services.request_deletion(snapshot=pinned, user=member.user, even_if_last=True)
    pinned.refresh_from_db()
    assert (pinned.state, pinned.deletion_cause) == (State.DELETING, DeletionCause.USER)


def test_runs_are_numbered_in_the_order_in_which_they_were_started(schedule: BackupSchedule) -> None:
    slot = due_at(schedule)
    start_due_runs(slot + 2 * DAY)
    start_due_runs(slot + 3 * DAY)
    assert list(schedule.runs.order_by("number").values_list("number", "state")) == [
        (1, MISSED),
        (2, MISSED),
        (3, TAKING),
        (4, MISSED),
    ]
    with pytest.raises(IntegrityError), transaction.atomic():
        BackupRun.objects.filter(number=1).update(number=2)


def test_an_automatic_backup_costs_nothing_per_gb(vm: VirtualMachine) -> None:
    Customer.objects.update(billing_type="prepaid")  # without any credits
    schedule = BackupScheduleFactory(vm=vm, automatic=True)
    start_due_runs(due_at(schedule))
    assert checks.reserved_micro(vm.project.customer, at=timezone.now()) == 0
    work()
    settle_runs(timezone.now())
    assert (states(schedule), backup_states(schedule)) == ([DONE], [State.READY])
    assert not UsageSegment.objects.exists()


def test_a_worker_with_a_given_time_records_that_time(schedule: BackupSchedule) -> None:
    at = due_at(schedule)
    start_due_runs(at)
    tasks.run_operation(Operation.objects.get().pk, now=at + timedelta(minutes=1))
    assert Snapshot.objects.get().ready_at == UsageSegment.objects.get().started_at == at + timedelta(minutes=1)
