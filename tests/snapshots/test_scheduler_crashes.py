"""A scheduler killed before every change of the database: the next one does what is left, and nothing twice.

The scheduler is a forked process that sends itself SIGKILL before its n-th change or commit, for n from 1 until it
survives. Where its death changed nothing, its whole transaction was rolled back. Where it changed something, another
scheduler goes on from there, and the end must be that of an undisturbed one.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, time, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone

from billing import scheduling, verification
from billing.models import Invoice, Seal, ServiceKind, UsageSegment, UsedUpGrant, WalletTransaction
from billing.usage import open_segment
from billing.wallet import buy_credits, grant_credits
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Volume
from cng_portal.mail.models import OutgoingMail
from cng_portal.notifications.models import Notification
from snapshots.backups.runs import settle_runs, start_due_runs
from snapshots.backups.upkeep import maintain_schedules
from snapshots.expiry import announce_expiring, delete_expired
from snapshots.models import BackupRun, BackupSchedule, DeletionCause, DiskImage, Operation, Snapshot, State
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    MembershipFactory,
    SnapshotFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, sell_everywhere
from tests.snapshots.test_crashes import survives

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases, pytest.mark.slow]

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
Kind = Operation.Kind
TABLES = (
    Activity,
    BackupRun,
    BackupSchedule,
    Invoice,
    Notification,
    Operation,
    OutgoingMail,
    Seal,
    Snapshot,
    UsageSegment,
    UsedUpGrant,
    WalletTransaction,
)


def rows() -> list[list[dict[str, Any]]]:
    return [list(model._default_manager.order_by("pk").values()) for model in TABLES]


def kill_before_every_change(
    duty: Callable[[], object], create: Callable[[], SimpleNamespace]
) -> Iterator[SimpleNamespace]:
    """Yield each world that a dead scheduler, and then the next one, have dealt with; last that of a survivor."""

    world, before = create(), rows()
    for kill_at in count(1):
        survived = survives(lambda _steps: duty(), kill_at)
        if survived or rows() != before:
            duty()
            done = rows()
            duty()
            assert rows() == done, "a later round changed what was done"
            yield world
            world, before = create(), rows()
        if survived:
            assert kill_at > 3, "the changes were not counted"
            return


def charged(snapshot: Snapshot) -> Snapshot:
    snapshot.start_charging(snapshot.ready_at)
    return snapshot


def verified(**fields: Any) -> Snapshot:
    snapshot = charged(SnapshotFactory(**fields))
    DiskImage.objects.filter(snapshot=snapshot).update(verified_at=snapshot.ready_at)
    return snapshot


def assert_deletion_was_accepted(snapshot: Snapshot, cause: DeletionCause, at: datetime) -> None:
    snapshot.refresh_from_db()
    assert (snapshot.state, snapshot.deletion_cause) == (State.DELETING, cause)
    assert snapshot.delete_requested_at == UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == at
    assert snapshot.operations.get().kind == Kind.DELETE


@pytest.fixture(autouse=True)
def prices() -> None:
    """The location that all volumes here share sells everything."""
    VolumeFactory(location__code="1CNG-YGN-AZ01")
    for kind in (ServiceKind.BS_SNAPSHOT, ServiceKind.VM_BACKUP):
        sell_everywhere(kind=kind)


@pytest.fixture
def create_volume(storage_root: Path) -> Callable[[], Volume]:
    def create() -> Volume:
        """A volume with an image, of a customer of its own."""
        member = MembershipFactory(project__customer__postpaid=True, project__customer__time_zone="UTC")
        volume = VolumeFactory(project=member.project, location__code="1CNG-YGN-AZ01")
        put_volume(storage_root, volume, content(b"before"))
        return volume

    return create


def test_a_due_run_starts_once_and_the_missed_ones_are_recorded_once(create_volume: Callable[[], Volume]) -> None:
    first = timezone.now().replace(hour=2, minute=0, second=0, microsecond=0) + DAY
    now = first + 2 * DAY + HOUR

    def create() -> SimpleNamespace:
        volume = create_volume()
        schedule = BackupScheduleFactory(vm=None, volume=volume, at=time(2), next_run_at=first)
        return SimpleNamespace(schedule=schedule, volume=volume)

    for world in kill_before_every_change(lambda: start_due_runs(now), create):
        runs = list(world.schedule.runs.order_by("number"))
        assert [(run.state, run.reason) for run in runs][-1] == ("taking", "")
        assert [run.state for run in runs] == ["missed", "missed", "taking"]
        assert [run.number for run in runs] == [1, 2, 3]
        assert [run.scheduled_at for run in runs] == [first, first + DAY, first + 2 * DAY]
        world.schedule.refresh_from_db()
        assert world.schedule.next_run_at == first + 3 * DAY
        snapshot = Snapshot.objects.get(volume=world.volume)
        assert runs[2].snapshot == snapshot and snapshot.operations.get().kind == Kind.CAPTURE
        [owner] = world.volume.project.memberships.all()
        assert owner.user.notifications.count() == 1


def test_a_verified_run_is_done_once_and_applies_retention_once(create_volume: Callable[[], Volume]) -> None:
    now = timezone.now()

    def create() -> SimpleNamespace:
        volume = create_volume()
        schedule = BackupScheduleFactory(vm=None, volume=volume, retention_count=1)
        older, newer = (verified(volume=volume, ready_at=now - age * HOUR) for age in (30, 2))
        BackupRunFactory(schedule=schedule, snapshot=older)
        run = BackupRunFactory(schedule=schedule, snapshot=newer, taking=True)
        return SimpleNamespace(run=run, older=older, newer=newer)

    for world in kill_before_every_change(lambda: settle_runs(now), create):
        world.run.refresh_from_db()
        assert (world.run.state, world.run.finished_at) == (BackupRun.State.DONE, now)
        assert_deletion_was_accepted(world.older, DeletionCause.RETENTION, now)
        world.newer.refresh_from_db()
        assert world.newer.state == State.READY and not world.newer.operations.exists()


def test_a_failed_run_is_tried_again_once(create_volume: Callable[[], Volume]) -> None:
    now = timezone.now()

    def create() -> SimpleNamespace:
        volume = create_volume()
        schedule = BackupScheduleFactory(vm=None, volume=volume)
        failed = SnapshotFactory(volume=volume, failed=True)
        return SimpleNamespace(run=BackupRunFactory(schedule=schedule, snapshot=failed, taking=True), failed=failed)

    def settle_twice() -> None:
        settle_runs(now)
        settle_runs(now + HOUR)

    for world in kill_before_every_change(settle_twice, create):
        world.run.refresh_from_db()
        assert (world.run.state, world.run.tries) == (BackupRun.State.TAKING, 2)
        capture = Operation.objects.get(snapshot__volume=world.failed.volume, kind=Kind.CAPTURE)
        assert capture.snapshot == world.run.snapshot
        [owner] = world.failed.project.memberships.all()
        assert owner.user.notifications.count() == 1


def test_the_schedule_of_a_deleted_machine_ends_once() -> None:
    now = timezone.now()

    def create() -> SimpleNamespace:
        member = MembershipFactory(project__customer__postpaid=True)
        vm = VirtualMachineFactory(project=member.project, deleted_at=now)
        schedule = BackupScheduleFactory(vm=vm)
        run = BackupRunFactory(schedule=schedule, waiting=True)
        return SimpleNamespace(schedule=schedule, run=run)

    for world in kill_before_every_change(lambda: maintain_schedules(now), create):
        world.schedule.refresh_from_db()
        world.run.refresh_from_db()
        assert (world.schedule.deleted_at, world.schedule.next_run_at) == (now, None)
        assert (world.run.state, world.run.finished_at) == (BackupRun.State.FAILED, now)


def test_snapshots_are_announced_once_and_expire_once_at_their_instant(create_volume: Callable[[], Volume]) -> None:
    now = timezone.now()

    def create() -> SimpleNamespace:
        volume = create_volume()
        over = charged(SnapshotFactory(volume=volume, ready_at=now - 2 * DAY))
        soon = SnapshotFactory(volume=volume, expires_at=now + HOUR)
        Snapshot.objects.filter(pk=over.pk).update(expires_at=now - HOUR, expiry_announced_at=now - DAY)
        return SimpleNamespace(soon=soon, over=over)

    def expire() -> None:
        announce_expiring(now=now)
        delete_expired(now=now)

    for world in kill_before_every_change(expire, create):
        assert_deletion_was_accepted(world.over, DeletionCause.EXPIRED, now - HOUR)
        world.soon.refresh_from_db()
        assert (world.soon.state, world.soon.expiry_announced_at) == (State.READY, now)
        [owner] = world.soon.project.memberships.all()
        assert [notice.title for notice in owner.user.notifications.all()] == [f"“{world.soon.name}” will be deleted"]


def test_a_month_is_invoiced_once_and_credits_expire_once() -> None:
    now = datetime(2040, 3, 5, 12, tzinfo=timezone.get_default_timezone())

    def create() -> SimpleNamespace:
        member = MembershipFactory()
        customer = member.project.customer
        volume = VolumeFactory(project=member.project, location__code="1CNG-YGN-AZ01")
        common: dict[str, Any] = {"customer": customer, "reason": "agreed", "by": None, "at": now - 30 * DAY}
        buy_credits(**common, amount_micro=10**9, key=f"bought-{customer.pk}")
        for number, amount_micro in enumerate((10**9, 9 * 10**9)):
            key, expires_at = f"grant-{number}-{customer.pk}", now - (2 - number) * HOUR
            grant_credits(**common, amount_micro=amount_micro, key=key, expires_at=expires_at)
        open_segment(
            resource_id=volume.pk,
            kind=ServiceKind.BS_SNAPSHOT,
            name="charged",
            project=member.project,
            location=volume.location,
            size_gb=10,
            at=now - 20 * DAY,
        )
        return SimpleNamespace(customer=customer)

    for world in kill_before_every_change(lambda: scheduling.run_due(at=now), create):
        [invoice] = world.customer.invoices.all()
        moves = WalletTransaction.objects.filter(customer=world.customer)
        assert moves.get(kind="spent").amount_micro == invoice.total_micro > 0
        expired = moves.get(kind="expired")
        [used_up] = UsedUpGrant.objects.filter(grant__customer=world.customer)
        assert {expired.grant_id, used_up.grant_id} == set(moves.filter(kind="granted").values_list("pk", flat=True))
        assert verification.differences(at=now) == []
