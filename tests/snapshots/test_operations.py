"""Operations: leases, attempts, backoff, and a worker that is stopped."""

import fcntl
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.utils import timezone
from django_tasks_db.models import DBTaskResult

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Location, VirtualMachine, Volume
from snapshots import restores, services
from snapshots.models import Draft, Operation, Snapshot, State
from snapshots.operations import lifecycle
from snapshots.storage.contract import Interrupted, advice_for
from snapshots.tasks import run_operation
from snapshots.wizard import wizard
from tests import forked
from tests.factories import DraftFactory, MembershipFactory, OperationFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, holds, put_volume, run_active_operations, sell_everywhere, touch_every_chunk

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, attached_stopped=True)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


@pytest.fixture
def operation(member: Membership, volume: Volume) -> Operation:
    return services.request_snapshot(source=volume, name="nightly", user=member.user).operations.get()


@pytest.fixture(autouse=True)
def no_stop_from_another_test() -> Iterator[None]:
    lifecycle.stopping.clear()
    yield
    lifecycle.stopping.clear()


def test_a_request_writes_the_operation_and_its_task_together(operation: Operation) -> None:
    assert DBTaskResult.objects.ready().count() == 1
    assert (operation.state, operation.attempt) == (Operation.State.PENDING, 0)


def test_a_claimed_operation_cannot_be_claimed_again_before_its_lease_ran_out(operation: Operation) -> None:
    now = timezone.now()
    first = lifecycle.claim(operation.pk, now=now)
    assert first is not None and first.attempt == 1
    assert lifecycle.claim(operation.pk, now=now + timedelta(seconds=29)) is None
    second = lifecycle.claim(operation.pk, now=now + timedelta(seconds=31))
    assert second is not None and second.attempt == 2


def test_a_worker_whose_clock_is_behind_claims_a_new_operation(operation: Operation) -> None:
    first = lifecycle.claim(operation.pk, now=operation.created_at - timedelta(milliseconds=300))
    assert first is not None and first.attempt == 1
    lifecycle.release(first, retry_in=timedelta(seconds=5), error="The disk is busy.")
    assert lifecycle.claim(operation.pk, now=timezone.now()) is None, "put off by an error"


def test_a_worker_without_the_lease_can_neither_report_nor_finish(operation: Operation) -> None:
    now = timezone.now()
    slow = lifecycle.claim(operation.pk, now=now)
    lifecycle.claim(operation.pk, now=now + timedelta(minutes=1))
    assert slow is not None
    assert not lifecycle.update(slow, bytes_done=1)
    with pytest.raises(lifecycle.LeaseLost):
        lifecycle.finish(slow, Operation.State.SUCCEEDED, lambda now: pytest.fail("settled"))
    lifecycle.release(slow)
    operation.refresh_from_db()
    assert (operation.state, operation.attempt) == (Operation.State.RUNNING, 2)


def test_the_heartbeat_reports_progress_and_notices_a_lost_lease(operation: Operation) -> None:
    claimed = lifecycle.claim(operation.pk)
    assert claimed is not None
    lease = lifecycle.Lease(claimed)
    lease.reported_at -= 5
    lease.heartbeat(5, 10)
    operation.refresh_from_db()
    assert (operation.bytes_done, operation.bytes_total) == (5, 10)
    Operation.objects.update(attempt=2)
    lease.reported_at -= 5
    with pytest.raises(lifecycle.LeaseLost):
        lease.heartbeat(6, 10)


def test_the_lease_is_renewed_while_storage_is_silent(operation: Operation, settings: Any) -> None:
    settings.OPERATION_LEASE_SECONDS = 0.3
    claimed = lifecycle.claim(operation.pk)
    assert claimed is not None
    with lifecycle.Lease(claimed) as lease:
        until = claimed.lease_until
        while until == claimed.lease_until and not lease.lost.is_set():
            until = Operation.objects.values_list("lease_until", flat=True).get(pk=operation.pk)
    assert until > claimed.lease_until


def test_after_the_deadline_the_lease_is_given_up(operation: Operation, settings: Any) -> None:
    settings.OPERATION_LEASE_SECONDS = 0.1
    settings.OPERATION_DEADLINE_HOURS = 0
    claimed = lifecycle.claim(operation.pk)
    assert claimed is not None
    with lifecycle.Lease(claimed) as lease:
        assert lease.lost.wait(10)
        with pytest.raises(lifecycle.LeaseLost):
            lease.heartbeat(0, 0)


def test_a_stop_signal_releases_the_operation_without_counting_the_attempt(operation: Operation) -> None:
    lifecycle.stopping.set()
    claimed = lifecycle.claim(operation.pk)
    assert claimed is not None
    with pytest.raises(Interrupted):
        lifecycle.Lease(claimed).heartbeat(0, 0)
    lifecycle.release(claimed, counted=False)
    operation.refresh_from_db()
    assert (operation.state, operation.failures) == (Operation.State.PENDING, 0)
    assert DBTaskResult.objects.count() == 2


def test_a_busy_disk_is_waited_for_until_the_deadline_and_the_attempts_do_not_count(
    storage_root: Path, volume: Volume, operation: Operation, settings: Any
) -> None:
    image = storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"
    now = timezone.now()
    pauses = [timedelta(seconds=seconds) for seconds in (5, 20, 60, 60, 60, 60)]
    assert len(pauses) == 2 * settings.OPERATION_MAX_ATTEMPTS
    with open(image, "r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        for pause in pauses:
            Operation.objects.filter(pk=operation.pk).update(not_before=now)
            before = timezone.now()
            run_operation(operation.pk)
            operation.refresh_from_db()
            assert before + pause <= operation.not_before <= timezone.now() + pause
        assert (operation.state, operation.failures) == (Operation.State.PENDING, 0)
        assert operation.started_at is not None
        deadline = operation.started_at + timedelta(hours=settings.OPERATION_DEADLINE_HOURS)
        for now in (deadline - timedelta(seconds=1), deadline + timedelta(minutes=2)):
            run_operation(operation.pk, now=now)
            operation.refresh_from_db()
            assert operation.is_active == (now < deadline)
    assert operation.state == Operation.State.FAILED
    assert "is in use by" in operation.error and volume.name in operation.error
    assert operation.error.endswith("It was busy for 24 hours, so the operation was stopped.")
    snapshot = Snapshot.objects.get()
    assert (snapshot.state, snapshot.error) == (State.FAILED, operation.error)
    assert not UsageSegment.objects.exists()


def test_a_lost_task_is_enqueued_again_at_once_and_only_while_none_is_queued(operation: Operation) -> None:
    DBTaskResult.objects.all().delete()
    for _round in range(3):
        assert lifecycle.reconcile() == 0
        assert DBTaskResult.objects.count() == 1
    run_active_operations()
    DBTaskResult.objects.all().delete()
    lifecycle.reconcile()
    assert not DBTaskResult.objects.exists(), "nothing waits"


def test_a_large_backlog_of_lost_operations_is_released_in_rounds(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RECONCILED_AT_ONCE", 1)
    later = timezone.now() + timedelta(minutes=5)
    for lost in (operation, OperationFactory()):
        lifecycle.claim(lost.pk)
    assert [lifecycle.reconcile(now=later) for _round in range(3)] == [1, 1, 0]


@pytest.mark.both_databases
def test_operations_requested_before_the_clock_was_set_back_are_claimed_at_once(operation: Operation) -> None:
    now = timezone.now()
    later = now + timedelta(hours=2)
    Operation.objects.filter(pk=operation.pk).update(not_before=later)
    assert DBTaskResult.objects.ready().count() == 1, "the task waits for no instant either"
    assert lifecycle.claim(operation.pk, now=now)


@pytest.mark.parametrize("backed_off", [False, True])
def test_operations_started_before_the_clock_was_set_back_are_released(operation: Operation, backed_off: bool) -> None:
    """Its worker died, or it was backed off after an error."""
    now = timezone.now()
    claimed = lifecycle.claim(operation.pk, now=now + timedelta(hours=2))
    assert claimed is not None
    if backed_off:
        lifecycle.release(claimed, retry_in=timedelta(hours=2), error="The disk is busy.")
    assert lifecycle.claim(operation.pk, now=now) is None
    assert lifecycle.reconcile(now=now) == 1
    assert lifecycle.reconcile(now=now) == 0
    assert lifecycle.claim(operation.pk, now=now)


def test_a_worker_whose_clock_is_ahead_takes_over_no_running_operation(operation: Operation) -> None:
    """SQLite runs on one machine, whose clock all workers share, so there the lease has expired."""
    claimed_by_somebody(operation)
    with time_machine.travel(timezone.now() + timedelta(hours=2)):
        claimed = lifecycle.claim(operation.pk)
        released = lifecycle.reconcile()
    assert (claimed is None, released) == ((True, 0) if connection.vendor == "postgresql" else (False, 0))


def test_a_clock_that_jumps_neither_ends_a_lease_nor_hides_progress(operation: Operation) -> None:
    lease = lifecycle.Lease(claimed_by_somebody(operation))
    for hours in 26, -7:
        with time_machine.travel(timezone.now() + timedelta(hours=hours)):
            lease.reported_at -= 5
            lease.heartbeat(hours + 10, 100)
        operation.refresh_from_db()
        assert operation.bytes_done == hours + 10
        assert time.monotonic() < lease.deadline


def test_an_operation_with_the_longest_backoff_is_left_alone(operation: Operation) -> None:
    operation = claimed_by_somebody(operation)
    lifecycle.release(operation, retry_in=lifecycle.LONGEST_PAUSE)
    assert lifecycle.reconcile() == 0


def claimed_by_somebody(operation: Operation) -> Operation:
    claimed = lifecycle.claim(operation.pk)
    assert claimed is not None
    return claimed


def test_an_operation_that_is_done_is_not_run_again(operation: Operation) -> None:
    run_active_operations()
    run_operation(operation.pk)
    operation.refresh_from_db()
    assert operation.attempt == 1


def test_impossible_changes_of_state_are_refused() -> None:
    snapshot = SnapshotFactory()
    with pytest.raises(ValueError, match="never goes from ready to pending"):
        Snapshot.objects.transition(snapshot.pk, [State.READY], State.PENDING)
    assert not Snapshot.objects.transition(snapshot.pk, [State.FAILED], State.PENDING)


def test_a_restore_is_refused_when_the_machine_was_started_meanwhile(
    storage_root: Path, member: Membership, volume: Volume, operation: Operation
) -> None:
    run_active_operations()
    snapshot = Snapshot.objects.get()
    changed = content(b"later")
    image = put_volume(storage_root, volume, changed)
    restore = restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    VirtualMachine.objects.update(state=VirtualMachine.State.RUNNING)
    run_active_operations()
    restore.refresh_from_db()
    assert restore.state == Operation.State.FAILED and "Stop the instance" in restore.error
    assert restore.safety_snapshot.state == State.FAILED
    assert holds(image, changed)


def test_a_storage_that_is_not_set_up_fails_the_operation_at_once(operation: Operation) -> None:
    Location.objects.update(driver="nowhere")
    run_active_operations()
    operation.refresh_from_db()
    operation.snapshot.refresh_from_db()
    assert (operation.state, operation.attempt, operation.snapshot.state) == (Operation.State.FAILED, 1, State.FAILED)
    assert "is not set up" in operation.error and "nowhere" not in operation.error
    assert "STORAGE" in str(advice_for(operation.cause))


def test_old_drafts_are_deleted_and_finished_ones_are_kept(member: Membership, volume: Volume) -> None:
    now = timezone.now()
    DraftFactory(created_by=member.user, customer=member.project.customer, created_at=now - timedelta(days=31))
    fresh = DraftFactory(created_by=member.user, customer=member.project.customer)
    used = DraftFactory(created_by=member.user, customer=member.project.customer, created_at=now - timedelta(days=31))
    services.request_snapshot(source=volume, name="x", user=member.user, draft=used)
    wizard.delete_old_drafts(now=now)
    assert set(Draft.objects.all()) == {fresh, used}


@pytest.fixture
def start_worker() -> Iterator[Callable[..., forked.Process]]:
    started: list[forked.Process] = []

    def start(*options: str) -> forked.Process:
        started.append(forked.Process("worker", "--interval", "0.1", "--no-startup-delay", *options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(operation: Operation, condition: Callable[[Operation], bool]) -> None:
    give_up = timezone.now() + timedelta(seconds=60)
    while not condition(operation):
        assert timezone.now() < give_up, f"{operation.state}, attempt {operation.attempt}: {operation.error}"
        operation.refresh_from_db()


def test_sigterm_during_a_copy_releases_it_for_the_next_worker(
    storage_root: Path, member: Membership, volume: Volume, start_worker: Callable[..., forked.Process]
) -> None:
    Volume.objects.filter(pk=volume.pk).update(size_gb=10)
    volume.refresh_from_db()
    touch_every_chunk(put_volume(storage_root, volume, content(b"bytes")))  # a hole would take no time
    snapshot = services.request_snapshot(source=volume, name="long", user=member.user)
    operation = snapshot.operations.get()
    worker = start_worker()
    wait_for(operation, lambda current: current.bytes_done > 0)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    operation.refresh_from_db()
    assert (operation.state, operation.attempt, operation.interruptions) == (Operation.State.PENDING, 1, 1)
    folder = storage_root / volume.location_id / "snapshots"
    assert not [path for path in folder.rglob("*") if path.is_file()]
    start_worker("--batch").wait()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY


def test_waiting_for_a_frozen_worker_uses_up_no_attempts(
    storage_root: Path,
    member: Membership,
    volume: Volume,
    start_worker: Callable[..., forked.Process],
    settings: Any,
) -> None:
    Volume.objects.filter(pk=volume.pk).update(size_gb=10)
    volume.refresh_from_db()
    touch_every_chunk(put_volume(storage_root, volume, content(b"bytes")))
    snapshot = services.request_snapshot(source=volume, name="long", user=member.user)
    operation = snapshot.operations.get()
    frozen = start_worker()
    wait_for(operation, lambda current: current.bytes_done > 0)
    frozen.send_signal(signal.SIGSTOP)
    Operation.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    lifecycle.reconcile()
    start_worker()
    attempts = range(2, settings.OPERATION_MAX_ATTEMPTS + 4)
    for attempt in attempts:
        wait_for(operation, lambda current: current.attempt == attempt and current.state == Operation.State.PENDING)  # noqa: B023
        assert "Another operation is using this snapshot" in operation.error
        if attempt == attempts[-1]:  # the disk becomes free and quick to read
            Volume.objects.update(size_gb=1)
            put_volume(storage_root, Volume.objects.get(), content(b"bytes"))
            frozen.kill()
            frozen.wait()
        Operation.objects.update(not_before=timezone.now())
        lifecycle.enqueue_worker()
    wait_for(operation, lambda current: current.state == Operation.State.SUCCEEDED)
    snapshot.refresh_from_db()
    assert (snapshot.state, operation.failures) == (State.READY, 1)


def test_two_workers_side_by_side_do_each_operation_once(
    member: Membership, volume: Volume, start_worker: Callable[..., forked.Process]
) -> None:
    for number in range(12):
        services.request_snapshot(source=volume, name=f"snapshot {number}", user=member.user)
    for worker in [start_worker("--batch"), start_worker("--batch")]:
        assert worker.wait(60) == 0
    assert list(Operation.objects.values_list("state", "attempt")) == [(Operation.State.SUCCEEDED, 1)] * 12
    assert not Snapshot.objects.exclude(state=State.READY).exists()
    assert UsageSegment.objects.count() == 12


def test_the_scheduler_releases_what_a_dead_worker_held() -> None:
    held = OperationFactory(running=True, lease_until=timezone.now() - timedelta(seconds=1))
    assert forked.Process("scheduler", "--once").wait() == 0
    held.refresh_from_db()
    assert held.state == Operation.State.PENDING
    assert DBTaskResult.objects.count() == 1


def test_the_scheduler_removes_incomplete_files_of_dead_workers(storage_root: Path, volume: Volume) -> None:
    left = storage_root / volume.location_id / "volumes" / f".{volume.pk}.new"
    left.write_bytes(b"half")
    assert forked.Process("scheduler", "--once").wait() == 0
    assert not left.exists()


def test_the_outcome_is_logged_as_the_portals_own_action(
    storage_root: Path, operation: Operation, volume: Volume, member: Membership
) -> None:
    run_active_operations()
    snapshot = operation.snapshot
    snapshot.refresh_from_db()
    restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    run_active_operations()
    services.request_verification(snapshot=snapshot, user=member.user)
    run_active_operations()
    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    run_active_operations()
    services.request_snapshot(source=volume, name="second", user=member.user)
    put_volume(storage_root, volume, b"").unlink()
    run_active_operations()

    log = Activity.objects.filter(actor=None, project=member.project).order_by("at", "pk")
    assert {entry.action for entry in log} == {
        "ready.capture",
        "ready.restore",
        "ready.verify",
        "ready.delete",
        "failed.capture",
    }
    assert log.filter(action="ready.capture").count() == 2, "the safety snapshot of the restore is one as well"
    assert log.filter(action="ready.restore", target_name="nightly", target_id=snapshot.pk).count() == 1
    assert "is not in the storage" in log.get(action="failed.capture").after["reason"]
    assert Operation.objects.get(state=Operation.State.FAILED).cause == "NotFound"


def test_an_outcome_that_is_not_settled_leaves_no_entry(operation: Operation) -> None:
    claimed = lifecycle.claim(operation.pk)
    assert claimed is not None

    def lost(now: Any) -> None:
        raise lifecycle.LeaseLost

    with pytest.raises(lifecycle.LeaseLost):
        lifecycle.finish(claimed, Operation.State.SUCCEEDED, lost)
    assert not Activity.objects.filter(action__startswith="ready.").exists()
