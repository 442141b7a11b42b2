"""Cancellation ends an operation at once, is free, and leaves nothing in the storage, whatever the worker was doing."""

import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import restores, services, tasks
from snapshots.backups.runs import settle_runs
from snapshots.backups.schedules import run_now
from snapshots.errors import InvalidState
from snapshots.models import Kind, Operation, Snapshot, State
from snapshots.operations import cancellation, handlers, lifecycle
from snapshots.volumes import new_volumes
from snapshots.volumes.charges import start_charging_volume
from tests import forked
from tests.factories import (
    BackupScheduleFactory,
    DiskImageFactory,
    MembershipFactory,
    OperationFactory,
    SnapshotFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere, touch_every_chunk

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]


@pytest.fixture(autouse=True)
def no_stop_from_another_test() -> None:
    lifecycle.stopping.clear()


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, project__customer__snapshot_quota=3)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, attached_stopped=True, name="data")
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


@pytest.fixture
def snapshot(member: Membership, volume: Volume) -> Snapshot:
    snapshot = services.request_snapshot(source=volume, name="taken", user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    return snapshot


@pytest.fixture
def client(member: Membership, client_for: Callable[..., Client]) -> Client:
    return client_for(member.user)


def request_capture(member: Membership, volume: Volume, name: str = "nightly") -> Operation:
    return services.request_snapshot(source=volume, name=name, user=member.user).operations.get()


def files_of(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def heartbeat(operation: Operation) -> None:
    lease = lifecycle.Lease(operation)
    lease.reported_at -= 5
    lease.heartbeat(1, 2)


def test_cancelling_a_pending_snapshot_frees_its_name_and_quota_at_once(member: Membership, volume: Volume) -> None:
    for number in range(2):
        request_capture(member, volume, f"other {number}")
    operation = request_capture(member, volume)
    cancellation.cancel(operation=operation, user=member.user)

    operation.refresh_from_db()
    snapshot = operation.snapshot
    assert (operation.state, snapshot.state, snapshot.shown_state) == ("cancelled", State.DELETED, "cancelled")
    assert not Operation.objects.filter(kind=Operation.Kind.CLEAN_UP).exists(), "no worker has come to it"
    assert Activity.objects.get(action="snapshot.cancel").actor == member.user
    again = request_capture(member, volume)  # the same name, and the third of three
    run_active_operations()
    assert UsageSegment.objects.filter(resource_id=again.snapshot_id).exists()
    assert not UsageSegment.objects.filter(resource_id=snapshot.pk).exists()


def test_cancelling_twice_is_a_no_op_and_finished_operations_cannot_be_cancelled(
    member: Membership, volume: Volume, snapshot: Snapshot
) -> None:
    operation = request_capture(member, volume)
    for _time in range(2):
        assert cancellation.cancel(operation=operation, user=member.user).state == Operation.State.CANCELLED
    assert Activity.objects.filter(action="snapshot.cancel").count() == 1
    with pytest.raises(InvalidState, match="just ended"):
        cancellation.cancel(operation=snapshot.operations.get(kind="capture"), user=member.user)


def test_the_worker_of_a_cancelled_operation_stops_at_its_next_heartbeat(member: Membership, volume: Volume) -> None:
    operation = lifecycle.claim(request_capture(member, volume).pk)
    assert operation is not None
    heartbeat(operation)
    cancellation.cancel(operation=operation, user=member.user)
    with pytest.raises(lifecycle.LeaseLost):
        heartbeat(operation)
    with pytest.raises(lifecycle.LeaseLost):
        lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: pytest.fail("settled"))


def test_data_captured_before_the_cancellation_was_noticed_is_removed(
    storage_root: Path, member: Membership, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clean-up came first and found nothing, so the worker requests another one."""
    operation = request_capture(member, volume)
    captured = handlers.capture_disks

    def cancelled_meanwhile(*args: Any, **options: Any) -> Any:
        infos = captured(*args, **options)
        cancellation.cancel(operation=operation, user=member.user)
        Operation.objects.filter(kind=Operation.Kind.CLEAN_UP).update(state="succeeded", finished_at=timezone.now())
        return infos

    monkeypatch.setattr(handlers, "capture_disks", cancelled_meanwhile)
    tasks.run_operation(operation.pk)
    assert len(files_of(storage_root)) == 3, "the volume and a snapshot that nobody wants"
    run_active_operations()
    assert files_of(storage_root) == {f"{volume.pk}.img"}
    assert not Operation.objects.active().exists() and not UsageSegment.objects.exists()


def test_a_restore_can_be_cancelled_until_it_writes(
    storage_root: Path, member: Membership, volume: Volume, snapshot: Snapshot
) -> None:
    def request() -> Operation:
        return restores.request_restore(snapshot=snapshot, user=member.user, confirmation="data")

    waiting = request()
    cancellation.cancel(operation=waiting, user=member.user)
    assert Snapshot.objects.get(pk=waiting.safety_snapshot_id).is_cancelled
    assert not waiting.can_be_undone

    saving = lifecycle.claim(request().pk)
    assert saving is not None and saving.safety_snapshot is not None
    Snapshot.objects.filter(pk=saving.safety_snapshot_id).update(state=State.CREATING)
    cancellation.cancel(operation=saving, user=member.user)
    assert Operation.objects.active().get().snapshot_id == saving.safety_snapshot_id, "its clean-up"
    run_active_operations()

    writing = lifecycle.claim(request().pk)
    assert writing is not None
    Snapshot.objects.filter(pk=writing.safety_snapshot_id).update(state=State.READY, ready_at=timezone.now())
    with pytest.raises(InvalidState, match="undo it once it has finished"):
        cancellation.cancel(operation=writing, user=member.user)
    lifecycle.release(writing, counted=False, error="The volume is in use.")
    cancellation.cancel(operation=writing, user=member.user)
    assert Snapshot.objects.get(pk=writing.safety_snapshot_id).state == State.READY, "it is a snapshot like any other"
    assert not Operation.objects.active().exists()


def test_a_cancelled_new_volume_leaves_no_data(
    storage_root: Path, member: Membership, snapshot: Snapshot, volume: Volume
) -> None:
    def request(name: str) -> Operation:
        return new_volumes.request_new_volume(
            snapshot=snapshot, user=member.user, project=member.project, name=name, size_gb=1
        )

    before = files_of(storage_root)
    cancelled = []
    for name in ("first", "second"):  # two of one snapshot, so two clean-ups
        operation = lifecycle.claim(request(name).pk)
        assert operation is not None and operation.volume is not None
        put_volume(storage_root, operation.volume, b"made, but not written down")
        cancellation.cancel(operation=operation, user=member.user)
        cancelled.append(operation)
    assert Operation.objects.active().filter(kind=Operation.Kind.CLEAN_UP).count() == 2
    run_active_operations()
    assert files_of(storage_root) == before
    for operation in cancelled:
        volume = Volume.objects.get(pk=operation.volume_id)
        assert volume.deleted_at is not None and volume.state == Volume.State.ERROR
        with pytest.raises(InvalidState):
            services.retry(operation=operation, user=member.user)


def test_one_volume_of_a_new_machine_cancels_the_machine(
    storage_root: Path, member: Membership, volume: Volume
) -> None:
    snapshot = VMSnapshotFactory(
        vm=volume.vm, vm_config={"vcpus": 1, "memory_mb": 512, "hourly_price_micro": 0, "volumes": []}
    )
    for position in range(2):
        DiskImageFactory(id=None, snapshot=snapshot, volume=volume, volume_name="data", size_gb=1, position=position)
    vm = new_volumes.request_new_machine(snapshot=snapshot, user=member.user, project=member.project, name="copy")
    done, waiting = Operation.objects.active().order_by("volume__position")
    put_volume(storage_root, done.volume, b"done")
    Operation.objects.filter(pk=done.pk).update(state="succeeded", finished_at=timezone.now())
    Volume.objects.filter(pk=done.volume_id).update(state=Volume.State.AVAILABLE)
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    start_charging_volume(done.volume, at=timezone.now())

    cancellation.cancel(operation=waiting, user=member.user)
    run_active_operations()

    vm.refresh_from_db()
    assert vm.deleted_at is not None and not vm.volumes.present().exists()
    assert files_of(storage_root) == {f"{volume.pk}.img"}
    assert VirtualMachine.objects.filter(deleted_at=None).get() == volume.vm
    done.volume.refresh_from_db()
    assert done.volume.delete_requested_at == UsageSegment.objects.get(resource_id=done.volume_id).ended_at


def test_only_verifications_requested_by_users_can_be_cancelled(member: Membership, snapshot: Snapshot) -> None:
    operation = services.request_verification(snapshot=snapshot, user=member.user)
    cancellation.cancel(operation=operation, user=member.user)
    assert services.request_verification(snapshot=snapshot, user=member.user) != operation
    with pytest.raises(InvalidState, match="can't be cancelled"):
        cancellation.cancel(operation=OperationFactory(snapshot__volume__project=member.project), user=member.user)


def test_a_cancelled_backup_ends_its_run_and_the_next_one_is_started(member: Membership, volume: Volume) -> None:
    sell_everywhere(kind=ServiceKind.VM_BACKUP)
    schedule = BackupScheduleFactory(vm=volume.vm)
    run_now(schedule=schedule, user=member.user)
    [operation] = Operation.objects.active()
    cancellation.cancel(operation=operation, user=member.user)
    settle_runs(timezone.now())
    assert schedule.runs.get().state == "failed"
    assert run_now(schedule=schedule, user=member.user).state == "taking"
    assert operation.snapshot.kind == Kind.BACKUP


def test_the_page_of_a_snapshot_that_is_being_taken_offers_to_cancel_it(
    client: Client, member: Membership, volume: Volume
) -> None:
    operation = request_capture(member, volume)
    snapshot = operation.snapshot
    cancel, delete = (reverse(f"snapshots:{name}", args=[snapshot.pk]) for name in ("cancel_snapshot", "delete"))
    assert cancel in client.get(reverse("snapshots:snapshot", args=[snapshot.pk])).content.decode()
    menu = reverse("snapshots:menu", args=[snapshot.pk])
    assert menu in client.get(reverse("snapshots:volume_snapshots")).content.decode()
    assert cancel in client.get(menu, headers={"HX-Request": "true"}).content.decode()

    deletion = unescape(client.get(delete).content.decode())
    assert cancel in deletion and "still being taken" in deletion
    assert "stop paying" not in deletion and "confirmation" not in deletion

    question = client.get(cancel)
    assert "Nothing is charged" in question.content.decode()
    answer = client.post(reverse("snapshots:cancel", args=[operation.pk]), follow=True)
    page = unescape(answer.content.decode())
    assert "“nightly” is cancelled" in page and "This snapshot was cancelled" in page
    assert cancel not in page
    assert "nothing to cancel" in client.get(reverse("snapshots:cancel", args=[operation.pk])).content.decode()
    again = client.post(reverse("snapshots:cancel_snapshot", args=[snapshot.pk]), follow=True)
    assert "is no longer being taken" in again.content.decode()


@pytest.mark.parametrize("name", ["cancel", "cancel_snapshot"])
def test_a_stranger_gets_404_and_a_viewer_403(
    client_for: Callable[..., Client], member: Membership, volume: Volume, name: str
) -> None:
    operation = request_capture(member, volume)
    url = reverse(f"snapshots:{name}", args=[operation.pk if name == "cancel" else operation.snapshot_id])
    viewer = UserFactory(member_of=member.project, member_of__role=Role.VIEWER)
    for user, status in ((UserFactory(), 404), (viewer, 403)):
        assert client_for(user).post(url).status_code == status
    operation.refresh_from_db()
    assert operation.is_active


def test_a_new_volume_is_cancelled_from_its_page(client: Client, member: Membership, snapshot: Snapshot) -> None:
    operation = new_volumes.request_new_volume(
        snapshot=snapshot, user=member.user, project=member.project, name="copy", size_gb=1
    )
    url, page = (
        reverse("snapshots:cancel", args=[operation.pk]),
        reverse("snapshots:volume", args=[operation.volume_id]),
    )
    assert url in client.get(page).content.decode()
    answer = client.post(url, follow=True)
    assert answer.redirect_chain[-1][0] == page
    assert "This volume was cancelled" in answer.content.decode()


def test_a_snapshot_that_is_in_use_cannot_be_deleted_and_its_page_says_so_first(
    client: Client, member: Membership
) -> None:
    snapshot = SnapshotFactory(volume__project=member.project)
    OperationFactory(snapshot=snapshot, restore=True)
    page = client.get(reverse("snapshots:delete", args=[snapshot.pk])).content.decode()
    assert "The snapshot is in use (Restore)" in page and "confirmation" not in page


@pytest.fixture
def start_worker() -> Iterator[Callable[[], forked.Process]]:
    started: list[forked.Process] = []

    def start() -> forked.Process:
        started.append(forked.Process("worker", "--interval", "0.1", "--no-startup-delay"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], Any]) -> None:
    give_up = timezone.now() + timedelta(seconds=60)
    while not condition():
        assert timezone.now() < give_up, list(Operation.objects.values("kind", "state", "attempt", "error"))


@pytest.mark.parametrize("fate", ["alive", "killed", "frozen"])
def test_a_worker_is_cancelled_in_the_middle_of_a_capture_and_nothing_stays(
    storage_root: Path, member: Membership, volume: Volume, start_worker: Callable[[], forked.Process], fate: str
) -> None:
    Volume.objects.filter(pk=volume.pk).update(size_gb=20)
    volume.refresh_from_db()
    touch_every_chunk(put_volume(storage_root, volume, content(b"bytes")))
    operation = request_capture(member, volume)
    worker = start_worker()
    wait_until(lambda: Operation.objects.filter(pk=operation.pk, bytes_done__gt=0).exists())
    if fate == "frozen":
        worker.send_signal(signal.SIGSTOP)
    cancellation.cancel(operation=operation, user=member.user)
    if fate == "killed":
        worker.kill()
        worker.wait()
    if fate != "alive":
        start_worker()
    clean_up = Operation.objects.filter(kind=Operation.Kind.CLEAN_UP)
    if fate == "frozen":  # which still holds the snapshot's lock
        wait_until(clean_up.exclude(error="").exists)
        worker.send_signal(signal.SIGCONT)
    wait_until(lambda: enqueue_backed_off() and not Operation.objects.active().exists())
    wait_until(lambda: files_of(storage_root) == {f"{volume.pk}.img"})
    operation.refresh_from_db()
    assert (operation.state, operation.snapshot.state) == (Operation.State.CANCELLED, State.DELETED)
    assert not UsageSegment.objects.exists()
    assert not list((storage_root / volume.location_id / "snapshots").iterdir())


def enqueue_backed_off() -> bool:
    """Make backed-off operations due, because a clean-up that found the disk busy would wait for seconds."""
    if Operation.objects.filter(state=Operation.State.PENDING).exclude(error="").update(error=""):
        lifecycle.enqueue_worker()
    return True
