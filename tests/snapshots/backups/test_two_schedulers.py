"""Two schedulers and two workers are killed at random: no occurrence runs twice, and no backup is lost or incomplete.

It runs for 20 seconds, or for BACKUPS_FOR_SECONDS.
"""

import logging
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from cng_portal.monitoring.models import Lease
from snapshots.backups.runs import settle_runs
from snapshots.backups.schedules import edit_schedule
from snapshots.models import BackupRun, BackupSchedule, Operation, Snapshot, State
from snapshots.operations import lifecycle
from tests.factories import BackupScheduleFactory, MembershipFactory, VirtualMachineFactory, VolumeFactory
from tests.snapshots.disks import content, holds, put_volume, sell_everywhere
from tests.snapshots.test_crashes import files_below

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]

SECONDS = float(os.environ.get("BACKUPS_FOR_SECONDS", "20"))
MACHINES, DISKS, KEEP = 4, 2, 2
COMMANDS = [("scheduler", "--interval", "0.2")] * 2 + [("worker", "--interval", "0.1")] * 2
SOON = timedelta(seconds=60)


class Crew:
    """The four processes, forked so that they work at once. One that is killed is replaced."""

    def __init__(self) -> None:
        self.processes = [self.start(number) for number in range(len(COMMANDS))]
        self.kills: Counter[str] = Counter()

    def start(self, number: int) -> int:
        connections.close_all()
        if connection.vendor == "postgresql":
            connection.close_pool()  # its sockets must not be shared with the child
        pid = os.fork()
        if pid == 0:
            try:
                call_command(*COMMANDS[number])
            finally:
                os._exit(1)
        return pid

    def kill_one(self) -> None:
        number = random.randrange(len(COMMANDS))
        self.kill(number)
        self.kills[COMMANDS[number][0]] += 1
        self.processes[number] = self.start(number)

    def kill(self, number: int) -> None:
        os.kill(self.processes[number], signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.processes[number], 0)[1])
        assert status == -signal.SIGKILL, "it had ended by itself"


@pytest.fixture
def crew(settings: Any) -> Iterator[Crew]:
    settings.OPERATION_LEASE_SECONDS = 1
    logging.disable()  # kills and restarts would log hundreds of lines
    crew = Crew()
    yield crew
    for number in range(len(COMMANDS)):
        crew.kill(number)
    logging.disable(logging.NOTSET)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def schedules(storage_root: Path, member: Membership) -> list[BackupSchedule]:
    """Schedules of four machines. The first machine has two, which take turns."""
    created = []
    far_away = timezone.localtime(timezone.now() + timedelta(hours=12), member.project.customer.zone).time()
    for number in range(MACHINES):
        vm = VirtualMachineFactory(project=member.project)
        for position in range(DISKS):
            volume = VolumeFactory(project=member.project, location=vm.location, vm=vm, position=position)
            put_volume(storage_root, volume, content(b"disk %d of %d" % (position, number)))
        created.append(BackupScheduleFactory(vm=vm, at=far_away, retention_count=KEEP))
    sell_everywhere(kind=ServiceKind.VM_BACKUP)
    return [*created, BackupScheduleFactory(vm=created[0].vm, at=far_away, retention_count=KEEP)]


def plan_again(schedule: BackupSchedule, member: Membership, planned: dict[UUID, set[datetime]]) -> None:
    """Move the time of day to a few seconds from now, as a user would, once the last run is over."""
    schedule.refresh_from_db()
    now = timezone.now()
    if schedule.next_run_at < now + SOON or schedule.runs.filter(finished_at=None).exists():
        return
    at = timezone.localtime(now + timedelta(seconds=random.uniform(1, 3)), member.project.customer.zone)
    changed = edit_schedule(
        schedule=schedule, interval="daily", at=at.time().replace(microsecond=0), retention_count=KEEP, user=member.user
    )
    if changed.next_run_at < now + SOON:  # except at midnight
        planned[schedule.pk].add(changed.next_run_at)


def expire_the_lease() -> None:
    """Expire the lease, which only saves work: without it, two schedulers do the same at the same time."""
    Lease.objects.update(expires_at=timezone.now() - timedelta(days=1))


def let_them_finish() -> None:
    """Let all processes finish, without further kills and without backoff."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        now = timezone.now()
        open_runs = BackupRun.objects.unfinished()
        if not (
            open_runs.exists()
            or Operation.objects.active().exists()
            or BackupSchedule.objects.filter(next_run_at__lt=now + SOON).exists()
        ):
            return
        expire_the_lease()
        lifecycle.reconcile(now=now + timedelta(minutes=2))
        if open_runs.filter(state=BackupRun.State.WAITING).exists():
            settle_runs(now + timedelta(hours=2))
        time.sleep(0.5)
    raise AssertionError(f"still unfinished: {list(open_runs.values())} {list(Operation.objects.active().values())}")


def test_randomly_killed_processes_take_each_occurrence_once_and_lose_no_backup(
    storage_root: Path, schedules: list[BackupSchedule], member: Membership, crew: Crew
) -> None:
    planned: dict[UUID, set[datetime]] = defaultdict(set)
    end = time.monotonic() + SECONDS
    next_kill = time.monotonic() + 1
    while time.monotonic() < end:
        expire_the_lease()
        for schedule in schedules:
            plan_again(schedule, member, planned)
        if time.monotonic() > next_kill:
            crew.kill_one()
            next_kill = time.monotonic() + random.uniform(0.1, 2)
        time.sleep(0.05)
    let_them_finish()

    expected = {str(path.relative_to(storage_root)) for path in storage_root.glob("*/volumes/*.img")}
    for schedule in schedules:
        runs = list(schedule.runs.order_by("scheduled_at").select_related("snapshot"))
        assert {run.scheduled_at for run in runs} == planned[schedule.pk], "a slot was lost"
        done = [run for run in runs if run.state == BackupRun.State.DONE]
        assert [run.snapshot.state for run in done[-KEEP:]] == [State.READY] * len(done[-KEEP:]), "a copy was lost"
        assert {run.snapshot.state for run in done[:-KEEP]} <= {State.DELETED}
        for run in runs:
            if run.snapshot and run.snapshot.state == State.READY:
                expected |= complete_backup(storage_root, run.snapshot)
    manifests = {path for path in expected if path.endswith("manifest.json")}
    lists_of_files = {path.replace("manifest.json", "catalogue") for path in manifests}  # made when a worker has time
    assert files_below(storage_root) - lists_of_files == expected
    for backup in Snapshot.objects.exclude(ready_at=None):
        segment = UsageSegment.objects.get(resource_id=backup.pk)
        assert (segment.started_at, segment.ended_at) == (backup.ready_at, backup.delete_requested_at)
    assert UsageSegment.objects.count() == Snapshot.objects.exclude(ready_at=None).count()
    outcomes = Counter(BackupRun.objects.values_list("state", flat=True))
    attempts = Operation.objects.filter(attempt__gt=1).count()
    print(f"\n{dict(outcomes)} of {sum(map(len, planned.values()))} slots; killed: {dict(crew.kills)}; ", end="")
    print(f"{attempts} operations needed another attempt; {Snapshot.objects.count()} copies were taken")
    assert outcomes[BackupRun.State.DONE] >= len(schedules)


def complete_backup(root: Path, backup: Snapshot) -> set[str]:
    """Return the files of the backup after comparing them with the machine's disks."""
    disks = list(backup.disks.all())
    assert {disk.volume_id for disk in disks} == set(Volume.objects.filter(vm=backup.vm).values_list("pk", flat=True))
    assert len({disk.captured_at for disk in disks}) == 1, "not of one instant"
    files = set()
    for disk in disks:
        folder = root / backup.location_id / "snapshots" / str(disk.pk)
        with open(root / backup.location_id / "volumes" / f"{disk.volume_id}.img", "rb") as original:
            data = original.read(1024**2)
        assert data.strip(b"\0") and holds(Path(original.name), data) and holds(folder / "disk.img", data)
        files |= {str((folder / name).relative_to(root)) for name in ("disk.img", "manifest.json")}
    return files
