"""Scrubbing: every snapshot is read in time, longest unread first, without delaying customers."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from django.db.models import Min
from django.utils import timezone

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Location, Volume
from cng_portal.monitoring.models import Process, StorageCheck
from cng_portal.monitoring.status import load_cluster_status
from cng_portal.notifications.models import Notification
from snapshots import restores, scrub, services, tasks
from snapshots.models import DiskImage, Operation, Snapshot, State
from snapshots.monitoring.status import load_operation_status
from snapshots.monitoring.storage import measure_storage
from snapshots.operations import lifecycle
from snapshots.views import bell
from tests.factories import LocationFactory, MembershipFactory, OperationFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import flip_byte, put_volume, run_active_operations, sell_everywhere, touch_every_chunk
from tests.snapshots.storage.medium import failing_medium

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

DAY = timedelta(days=1)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    put_volume(storage_root, volume, b"precious" * 1000)
    return volume


def take(volume: Volume, member: Membership, name: str, *, days_ago: float) -> Snapshot:
    """Take a snapshot, as if captured `days_ago`."""
    snapshot = services.request_snapshot(source=volume, name=name, user=member.user)
    work()
    age(snapshot, timezone.now() - days_ago * DAY)
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    return snapshot


def age(snapshot: Snapshot, read_at: datetime) -> None:
    DiskImage.objects.filter(snapshot=snapshot).update(captured_at=read_at, verified_at=None)
    Snapshot.objects.filter(pk=snapshot.pk).update_last_read()


def work() -> None:
    while Operation.objects.active().exists():
        run_active_operations()


def scrubs() -> list[str]:
    """Return the names of the snapshots to scrub, in the order of the requests."""
    queue = Operation.objects.filter(kind=Operation.Kind.SCRUB).order_by("created_at")
    return list(queue.values_list("snapshot__name", flat=True))


def test_scrubs_read_the_longest_unread_snapshot_first_one_at_a_time(volume: Volume, member: Membership) -> None:
    for name, days_ago in {"new": 20, "old": 26, "oldest": 40, "older": 29}.items():
        take(volume, member, name, days_ago=days_ago)
    for expected in ["oldest"], ["oldest", "older"], ["oldest", "older", "old"], ["oldest", "older", "old"]:
        scrub.start_scrubs(timezone.now())
        scrub.start_scrubs(timezone.now())
        assert scrubs() == expected
        work()
    assert not Operation.objects.exclude(state=Operation.State.SUCCEEDED).exists()
    assert Snapshot.objects.aggregate(oldest=Min("last_read_at"))["oldest"] < timezone.now() - 19 * DAY
    assert DiskImage.objects.filter(verified_at__gt=timezone.now() - DAY).count() == 3


def test_every_disk_is_read_within_the_days_of_the_setting(volume: Volume, member: Membership, settings: Any) -> None:
    settings.SCRUB_DAYS = 10
    snapshots = [take(volume, member, f"snapshot-{number}", days_ago=number) for number in range(5)]
    for day in range(30):
        now = timezone.now() + day * DAY
        while scrub.start_scrubs(now):
            for operation in Operation.objects.active():
                tasks.run_operation(operation.pk, now=now)
        read_at = Snapshot.objects.filter(pk__in=[snapshot.pk for snapshot in snapshots]).values_list(
            "last_read_at", flat=True
        )
        assert all(now - at <= 10 * DAY for at in read_at)
    assert Operation.objects.filter(kind=Operation.Kind.SCRUB).count() >= 3 * len(snapshots)


def test_each_location_scrubs_unless_its_storage_is_failing(
    volume: Volume, member: Membership, storage_root: Path
) -> None:
    take(volume, member, "here", days_ago=40)
    elsewhere = VolumeFactory(project=member.project, location=LocationFactory())
    sell_everywhere_else(elsewhere.location)
    put_volume(storage_root, elsewhere, b"there")
    take(elsewhere, member, "there", days_ago=50)
    StorageCheck.objects.create(location=elsewhere.location, error="It hangs.")
    scrub.start_scrubs(timezone.now())
    assert scrubs() == ["here"]
    StorageCheck.objects.update(error="")
    scrub.start_scrubs(timezone.now())
    assert set(scrubs()) == {"here", "there"}


def sell_everywhere_else(location: Location) -> None:
    from billing.pricing.packages import create_package
    from tests.snapshots.disks import PRICED_SINCE

    create_package(location=location, kind="bs_snapshot", rate_micro=400_000, starts_at=PRICED_SINCE)


@pytest.mark.parametrize("traits", [{"damaged": True}, {"deleting": True}, {"failed": True}])
def test_unusable_snapshots_are_not_scrubbed(traits: dict[str, bool]) -> None:
    SnapshotFactory(last_read_at=timezone.now() - 90 * DAY, **traits)
    assert scrub.start_scrubs(timezone.now()) == 0


def test_an_engine_that_shows_no_bytes_is_not_scrubbed() -> None:
    SnapshotFactory(last_read_at=None)
    assert scrub.start_scrubs(timezone.now()) == 0


def test_a_scrub_starts_only_when_nobody_waits_for_a_worker(volume: Volume, member: Membership) -> None:
    take(volume, member, "old", days_ago=40)
    waiting = services.request_snapshot(source=volume, name="new", user=member.user)
    assert scrub.start_scrubs(timezone.now()) == 0
    Operation.objects.filter(snapshot=waiting).update(
        state="running", lease_until=timezone.now() + DAY, started_at=timezone.now()
    )
    assert scrub.start_scrubs(timezone.now()) == 1


def test_a_worker_scrubs_last(volume: Volume, member: Membership) -> None:
    take(volume, member, "old", days_ago=40)
    scrub.start_scrubs(timezone.now())
    services.request_snapshot(source=volume, name="new", user=member.user)
    later = timezone.now() + 2 * lifecycle.BACKGROUND_WAITS
    Operation.objects.filter(kind="scrub").update(created_at=timezone.now() - DAY)
    assert [operation.kind for operation in lifecycle.in_turn(later)] == ["capture", "scrub"]


def test_a_scrub_does_not_count_as_the_customers_operation(
    running: Operation, volume: Volume, member: Membership
) -> None:
    """A customer with nothing else running doesn't wait behind others because of it."""
    other = MembershipFactory(project__customer__postpaid=True)
    new_snapshot = services.request_snapshot(source=volume, name="new", user=member.user)
    elsewhere = VolumeFactory(project=other.project, location=volume.location)
    OperationFactory(snapshot=SnapshotFactory(volume=elsewhere, creating=True), capture=True)
    for _worker in range(2):
        Process.objects.create(kind=Process.Kind.WORKER, host="here", pid=1)
    assert lifecycle.claim(running.pk)
    assert lifecycle.in_turn(timezone.now())[0].snapshot == new_snapshot


@pytest.fixture
def running(volume: Volume, member: Membership, monkeypatch: pytest.MonkeyPatch) -> Operation:
    """A scrub that is about to run."""
    take(volume, member, "old", days_ago=40)
    scrub.start_scrubs(timezone.now())
    return Operation.objects.get(kind=Operation.Kind.SCRUB)


def test_a_running_scrub_yields_to_operations_that_have_waited_some_seconds(
    running: Operation, volume: Volume, member: Membership
) -> None:
    services.request_snapshot(source=volume, name="new", user=member.user)
    [capture] = Operation.objects.active().foreground()
    Operation.objects.filter(pk=capture.pk).update(not_before=timezone.now() - 2 * scrub.PATIENCE)

    tasks.run_operation(running.pk)

    running.refresh_from_db()
    assert (running.state, running.interruptions, running.error) == (
        Operation.State.PENDING,
        1,
        "It gave way to other work.",
    )
    assert running.not_before > timezone.now() + scrub.YIELD_FOR / 2
    tasks.run_operation(capture.pk)
    tasks.run_operation(running.pk)
    running.refresh_from_db()
    assert running.state == Operation.State.PENDING, "its pause is not over"
    tasks.run_operation(running.pk, now=timezone.now() + 2 * scrub.YIELD_FOR)
    running.refresh_from_db()
    assert running.state == Operation.State.SUCCEEDED


def test_a_scrub_that_yielded_continues_where_it_stopped(member: Membership, storage_root: Path) -> None:
    volume = VolumeFactory(project=member.project, size_gb=10)
    sell_everywhere()
    touch_every_chunk(put_volume(storage_root, volume, b"precious"))
    snapshot = take(volume, member, "old", days_ago=40)
    scrub.start_scrubs(timezone.now())
    [operation] = Operation.objects.filter(kind=Operation.Kind.SCRUB)
    services.request_snapshot(source=volume, name="new", user=member.user)
    waiting = Operation.objects.active().foreground()
    waiting.update(not_before=timezone.now() - scrub.PATIENCE + timedelta(seconds=0.3))

    tasks.run_operation(operation.pk)
    gave_way_at = timezone.now()

    operation.refresh_from_db()
    assert (operation.state, operation.error) == (Operation.State.PENDING, "It gave way to other work.")
    tasks.run_operation(waiting.get().pk)
    disk = storage_root / volume.location_id / "snapshots" / str(snapshot.disks.get().pk) / "disk.img"
    flip_byte(disk)  # a skipped start would go unnoticed
    ahead = 2 * scrub.YIELD_FOR  # by this much the worker's clock is off
    tasks.run_operation(operation.pk, now=timezone.now() + ahead)
    operation.refresh_from_db()
    assert operation.state == Operation.State.SUCCEEDED
    snapshot.refresh_from_db()
    assert snapshot.disks.get().verified_at - ahead < gave_way_at, "its first bytes were read back then"
    assert snapshot.last_read_at == snapshot.disks.get().verified_at
    age(snapshot, timezone.now() - 40 * DAY)
    scrub.start_scrubs(timezone.now())
    work()
    snapshot.refresh_from_db()
    assert snapshot.is_damaged, "the next scrub reads all of it"


def test_a_scrub_yields_to_a_deletion_and_is_deleted(
    running: Operation, member: Membership, storage_root: Path
) -> None:
    services.request_deletion(snapshot=running.snapshot, user=member.user, even_if_last=True)
    tasks.run_operation(running.pk)
    assert not Operation.objects.filter(pk=running.pk).exists()
    work()
    assert Snapshot.objects.get().state == State.DELETED


def test_a_user_can_verify_a_snapshot_that_is_being_scrubbed(running: Operation, member: Membership) -> None:
    requested = services.request_verification(snapshot=running.snapshot, user=member.user)
    assert requested.pk != running.pk
    tasks.run_operation(running.pk)
    running.refresh_from_db()
    assert running.state == Operation.State.PENDING
    tasks.run_operation(requested.pk)
    requested.refresh_from_db()
    assert requested.state == Operation.State.SUCCEEDED


def test_damage_found_by_a_scrub_is_notified_and_ends_the_charge(
    running: Operation, member: Membership, storage_root: Path
) -> None:
    snapshot = running.snapshot
    flip_byte(storage_root / snapshot.location_id / "snapshots" / str(snapshot.pk) / "disk.img")
    work()
    snapshot.refresh_from_db()
    assert snapshot.is_damaged
    assert UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == snapshot.damaged_at
    notice = Notification.objects.get()
    assert (notice.title, notice.user) == ("“old” is damaged", member.user)
    assert Activity.objects.get(action="snapshot.damaged")
    assert scrub.start_scrubs(timezone.now() + 90 * DAY) == 0


def test_a_medium_that_reports_errors_is_damage(member: Membership, tmp_path: Path, settings: Any) -> None:
    with failing_medium(tmp_path) as medium:
        driver = "snapshots.storage.local.LocalDriver"
        settings.STORAGE = {"local": {"driver": driver, "options": {"root": str(medium.root)}}}
        volume = VolumeFactory(project=member.project, size_gb=1)
        sell_everywhere()
        put_volume(medium.root, volume, blake3(b"noise").digest(8 * 1024**2))
        snapshot = take(volume, member, "old", days_ago=40)
        folder = medium.root / volume.location_id / "snapshots" / str(snapshot.disks.get().pk)
        medium.break_at(folder / "disk.img", 6 * 1024**2)
        scrub.start_scrubs(timezone.now())
        work()
    [operation] = Operation.objects.filter(kind=Operation.Kind.SCRUB)
    assert (operation.state, operation.attempt) == (Operation.State.FAILED, 1)
    snapshot.refresh_from_db()
    assert snapshot.is_damaged
    assert "the medium reports errors" in snapshot.disks.get().damage
    assert UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == snapshot.damaged_at


def test_an_unreadable_snapshot_does_not_delay_other_scrubs(
    volume: Volume, member: Membership, storage_root: Path
) -> None:
    lost = take(volume, member, "lost", days_ago=50)
    take(volume, member, "old", days_ago=40)
    folder = storage_root / lost.location_id / "snapshots" / str(lost.pk)
    folder.rename(folder.with_name("elsewhere"))
    for _turn in range(3):
        scrub.start_scrubs(timezone.now())
        work()
    assert scrubs() == ["lost", "old"]
    assert not Notification.objects.exists(), "what could not be read is the operator's"
    scrub.start_scrubs(timezone.now() + 1.1 * DAY)
    assert scrubs() == ["lost", "old", "lost"]


def test_scrubs_are_not_shown_to_users(running: Operation, member: Membership) -> None:
    assert bell.in_progress(member.user)["rows"] == []
    assert not Activity.objects.filter(action__contains="scrub").exists()
    work()
    assert not Activity.objects.filter(action__contains="scrub").exists()


def test_a_killed_scrub_is_resumed(running: Operation) -> None:
    lifecycle.claim(running.pk, now=timezone.now() - DAY)
    assert lifecycle.reconcile() == 1
    work()
    running.refresh_from_db()
    assert running.state == Operation.State.SUCCEEDED


def test_a_restore_counts_as_reading(volume: Volume, member: Membership) -> None:
    snapshot = take(volume, member, "old", days_ago=40)
    restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    work()
    snapshot.refresh_from_db()
    assert snapshot.last_read_at
    assert timezone.now() - snapshot.last_read_at < DAY
    assert scrub.start_scrubs(timezone.now()) == 0


def test_a_machine_snapshots_last_read_is_that_of_its_longest_unread_disk() -> None:
    snapshot = SnapshotFactory()
    now = timezone.now()
    snapshot.disks.update(captured_at=now - 3 * DAY)
    DiskImage.objects.create(
        snapshot=snapshot,
        volume=snapshot.volume,
        position=1,
        size_gb=1,
        captured_at=now - 9 * DAY,
        verified_at=now - 5 * DAY,
    )
    Snapshot.objects.update_last_read()
    snapshot.refresh_from_db()
    assert snapshot.last_read_at == now - 5 * DAY


def test_the_operator_sees_overdue_and_damaged_snapshots(volume: Volume, member: Membership) -> None:
    take(volume, member, "old", days_ago=40)
    SnapshotFactory(volume=volume, damaged=True, last_read_at=timezone.now() - 90 * DAY).disks.update(
        captured_at=timezone.now()
    )
    measure_storage()
    check = StorageCheck.objects.get(location=volume.location)
    assert check.damaged_count == 1
    status = load_cluster_status(now=timezone.now())
    assert status.oldest_read_age(check).days == 40
    assert any("has not been read for 40 days" in warning for warning in status.warnings())
    OperationFactory(kind=Operation.Kind.SCRUB, not_before=timezone.now() - DAY)
    assert load_operation_status(now=timezone.now()).oldest_wait == timedelta()
    scrub.start_scrubs(timezone.now())
    work()
    measure_storage()
    assert not any("has not been read" in warning for warning in load_cluster_status(now=timezone.now()).warnings())
