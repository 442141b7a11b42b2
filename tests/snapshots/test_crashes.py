"""A worker is killed at every step of its work; after the next worker, nothing is lost, duplicated or left over.

The worker is a forked process that runs one operation and sends itself SIGKILL before its n-th step. Steps are SQL
statements that write, commits, changes of files, and the end. The test increases n from 1 until the operation survives.
Reads and locks between two steps leave nothing behind, so dying there equals dying before the next step. Files change alike
on both databases: on PostgreSQL workers die before the other steps only.
"""

import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from snapshots import restores, services
from snapshots.drills.services import request_drill
from snapshots.files import children
from snapshots.models import Drill, Operation, Snapshot, State
from snapshots.operations import lifecycle
from snapshots.tasks import run_operation, run_waiting_operations
from snapshots.volumes import new_volumes
from tests.factories import MembershipFactory, VirtualMachineFactory, VolumeFactory
from tests.snapshots.disks import checksum_of, content, holds, put_volume, sell_everywhere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

FILE_EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "os.link",
    "fcntl.ioctl",
    "shutil.rmtree",
}
READS = re.compile(r"\s*(SELECT|SAVEPOINT|RELEASE|BEGIN)\b")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
MOST_STEPS = 200


class Steps:
    """Counts what the process changes, and kills it before the change with this number."""

    def __init__(self, kill_at: int) -> None:
        self.left = kill_at

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(self, event: str, args: tuple) -> None:
        if event not in FILE_EVENTS or "site-packages" in str(args[0]):
            return
        only_reads = event == "open" and not args[2] & WRITES
        exists_already = event == "os.mkdir" and os.path.isdir(args[0])
        if not only_reads and not exists_already:
            self()

    def on_statement(self, execute: Callable, sql: str, params: object, many: bool, context: dict) -> object:
        if not READS.match(sql):
            self()
        return execute(sql, params, many, context)

    def before_commits(self) -> None:
        commit = connection._commit

        def count_and_commit() -> None:
            self()
            commit()

        connection._commit = count_and_commit


def survives(work: Callable[[Steps], None], kill_at: int) -> bool:
    """Work in a process that dies at its n-th step, a change of the database or what `work` counts besides."""
    connections.close_all()
    if connection.vendor == "postgresql":
        connection.close_pool()  # its sockets must not be shared with the child
    gc.collect()
    gc.freeze()  # else the child's garbage collector copies all of the parent's memory
    pid = os.fork()
    if pid == 0:
        try:
            steps = Steps(kill_at)
            connection.ensure_connection()
            steps.before_commits()
            with connection.execute_wrapper(steps.on_statement):
                work(steps)
            steps()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def work_and_die(operation: Operation, kill_at: int, *, count_files: bool = True) -> bool:
    """Run the operation in a process that dies at its n-th step. Returns True if it survived."""

    def work(steps: Steps) -> None:
        if count_files:
            sys.addaudithook(steps.on_event)
        run_waiting_operations.func()

    return survives(work, kill_at)


def let_the_next_worker_do_it() -> None:
    """Let the dead worker's lease expire, and another worker take over."""
    Operation.objects.active().filter(state=Operation.State.RUNNING).update(
        lease_until=timezone.now() - timedelta(seconds=1)
    )
    lifecycle.reconcile()
    for operation in Operation.objects.active().order_by("created_at"):
        run_operation(operation.pk)
    assert not Operation.objects.active().exists()


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def deaths(operation_factory: Callable[[int], Operation]) -> Iterator[tuple[Operation, bool]]:
    """Yield (operation, whether it was killed) for each step at which its worker can die, and once for a survivor."""
    for kill_at in range(1, MOST_STEPS):
        operation = operation_factory(kill_at)
        survived = work_and_die(operation, kill_at, count_files=connection.vendor == "sqlite")
        let_the_next_worker_do_it()
        operation.refresh_from_db()
        yield operation, not survived
        if survived:
            assert kill_at > 10, "the steps were not counted"
            return
    raise AssertionError(f"still dying after {MOST_STEPS} steps")


@pytest.fixture(autouse=True)
def no_limits(settings: Any) -> None:
    """Lift the rate limits, because these tests request more than customers may."""
    settings.ACTIONS_PER_HOUR = dict.fromkeys(settings.ACTIONS_PER_HOUR, 0)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, project__customer__volume_quota=-1)


@pytest.fixture
def volume(member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    return volume


def test_a_capture_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, volume: Volume
) -> None:
    image = put_volume(storage_root, volume, content(b"before"))
    checksum, expected = checksum_of(image), {str(image.relative_to(storage_root))}

    def ask(number: int) -> Operation:
        snapshot = services.request_snapshot(source=volume, name=f"snapshot {number}", user=member.user)
        return snapshot.operations.get()

    for operation, killed in deaths(ask):
        snapshot = Snapshot.objects.get(pk=operation.snapshot_id)
        assert (snapshot.state, operation.state) == (State.READY, Operation.State.SUCCEEDED)
        assert operation.attempt in ((1, 2) if killed else (1,))
        folder = storage_root / snapshot.location_id / "snapshots" / str(snapshot.pk)
        disk = snapshot.disks.get()
        assert disk.checksum == checksum
        assert holds(folder / "disk.img", content(b"before")) and holds(image, content(b"before"))
        segment = UsageSegment.objects.get(resource_id=snapshot.pk)
        assert (segment.started_at, segment.ended_at) == (snapshot.ready_at, None)
        expected |= {str((folder / name).relative_to(storage_root)) for name in ("disk.img", "manifest.json")}
        assert files_below(storage_root) == expected


def test_a_restore_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, volume: Volume
) -> None:
    image = put_volume(storage_root, volume, content(b"precious"))
    snapshot = services.request_snapshot(source=volume, name="precious", user=member.user)
    let_the_next_worker_do_it()
    ruined = content(b"ruined!!")

    def ask(number: int) -> Operation:
        put_volume(storage_root, volume, ruined)
        snapshot.refresh_from_db()
        return restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)

    restore_count = 0
    for operation, _killed in deaths(ask):
        restore_count += 1
        assert operation.state == Operation.State.SUCCEEDED
        assert holds(image, content(b"precious"))
        safety = operation.safety_snapshot
        assert safety.state == State.READY
        safety_disk = storage_root / volume.location_id / "snapshots" / str(safety.pk) / "disk.img"
        assert holds(safety_disk, ruined)
        assert UsageSegment.objects.filter(resource_id=safety.pk).count() == 1
        # the volume, and two files for each snapshot: nothing half-made
        assert len(files_below(storage_root)) == 1 + 2 * (1 + restore_count)


def test_a_deletion_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, volume: Volume
) -> None:
    image = put_volume(storage_root, volume, content(b"before"))

    def ask(number: int) -> Operation:
        snapshot = services.request_snapshot(source=volume, name=f"snapshot {number}", user=member.user)
        let_the_next_worker_do_it()
        snapshot.refresh_from_db()
        services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
        return snapshot.operations.get(kind=Operation.Kind.DELETE)

    for operation, _killed in deaths(ask):
        snapshot = Snapshot.objects.get(pk=operation.snapshot_id)
        assert (snapshot.state, operation.state) == (State.DELETED, Operation.State.SUCCEEDED)
        assert UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == snapshot.delete_requested_at
        assert files_below(storage_root) == {str(image.relative_to(storage_root))}


def test_a_new_volume_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, volume: Volume
) -> None:
    put_volume(storage_root, volume, content(b"before"))
    snapshot = services.request_snapshot(source=volume, name="origin", user=member.user)
    let_the_next_worker_do_it()
    snapshot.refresh_from_db()

    def ask(number: int) -> Operation:
        return new_volumes.request_new_volume(
            snapshot=snapshot, user=member.user, project=member.project, name=f"copy {number}", size_gb=1
        )

    copies = 0
    for operation, _killed in deaths(ask):
        copies += 1
        volume = Volume.objects.get(pk=operation.volume_id)
        assert (volume.state, volume.deleted_at) == (Volume.State.AVAILABLE, None)
        image = storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"
        assert holds(image, content(b"before"))
        assert len(files_below(storage_root)) == 1 + 2 + copies


def test_a_drill_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "READERS", ("not_installed",))  # it changes nothing, and takes seconds
    put_volume(storage_root, volume, content(b"before"))
    snapshot = services.request_snapshot(source=volume, name="origin", user=member.user)
    let_the_next_worker_do_it()
    snapshot.refresh_from_db()
    stored = files_below(storage_root)

    def ask(number: int) -> Operation:
        operation = request_drill(snapshot=snapshot, user=member.user).operation
        assert operation is not None
        return operation

    for operation, _killed in deaths(ask):
        assert (operation.state, operation.drill.result) == (Operation.State.SUCCEEDED, Drill.Result.PROVEN)
        assert operation.drill.disks.get().removed_at
        assert files_below(storage_root) == stored


def test_the_capture_of_a_machine_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership
) -> None:
    vm = VirtualMachineFactory(project=member.project)
    sell_everywhere(kind=ServiceKind.VM_SNAPSHOT)
    images = {}
    for position in range(2):
        volume = VolumeFactory(project=member.project, location=vm.location, vm=vm, position=position)
        images[volume.pk] = put_volume(storage_root, volume, content(b"disk %d" % position))
    expected = {str(image.relative_to(storage_root)) for image in images.values()}

    def ask(number: int) -> Operation:
        snapshot = services.request_snapshot(source=vm, name=f"snapshot {number}", user=member.user)
        return snapshot.operations.get()

    for operation, _killed in deaths(ask):
        snapshot = Snapshot.objects.get(pk=operation.snapshot_id)
        assert (snapshot.state, operation.state) == (State.READY, Operation.State.SUCCEEDED)
        disks = list(snapshot.disks.all())
        assert len({disk.captured_at for disk in disks}) == 1, "not of one instant"
        for position, disk in enumerate(disks):
            folder = storage_root / vm.location_id / "snapshots" / str(disk.pk)
            for image in folder / "disk.img", images[disk.volume_id]:
                assert holds(image, content(b"disk %d" % position))
            expected |= {str((folder / name).relative_to(storage_root)) for name in ("disk.img", "manifest.json")}
        assert UsageSegment.objects.filter(resource_id=snapshot.pk).count() == 1
        assert files_below(storage_root) == expected


def test_operations_whose_workers_all_die_fail_with_a_reason_and_leave_nothing(
    storage_root: Path, member: Membership, volume: Volume, settings: Any
) -> None:
    image = put_volume(storage_root, volume, content(b"before"))
    snapshot = services.request_snapshot(source=volume, name="unlucky", user=member.user)
    operation = snapshot.operations.get()
    for _attempt in range(settings.OPERATION_MAX_ATTEMPTS):
        assert not work_and_die(operation, 13)  # in the middle of the copy
        Operation.objects.filter(pk=operation.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
        lifecycle.reconcile()
    run_operation(operation.pk)
    operation.refresh_from_db()
    snapshot.refresh_from_db()
    assert (snapshot.state, operation.state) == (State.FAILED, Operation.State.FAILED)
    assert "stopped unexpectedly" in operation.error
    assert not UsageSegment.objects.exists()
    assert files_below(storage_root) == {str(image.relative_to(storage_root))}

    services.retry(operation=operation, user=member.user)
    let_the_next_worker_do_it()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
