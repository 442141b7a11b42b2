"""Concurrent syncs of one cloud, and syncs during customers' actions: no duplicates, no losses, no deadlocks.

The cloud is a list in the test. Real ones are tested in tests/lab/openstack/test_sync.py.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from django.db import connections, transaction
from django.utils import timezone

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership, Project
from cng_portal.inventory.models import CloudProject, Location, Volume
from snapshots import services
from snapshots.assignment import move_snapshot
from snapshots.cloudsync.sync import sync_location
from snapshots.damage import record_damage, record_sound
from snapshots.errors import ActionRefused, NameTaken
from snapshots.models import Operation, Snapshot, State
from snapshots.storage.inventory import (
    CloudProjectInfo,
    CloudServer,
    CloudSnapshot,
    CloudVolume,
    Inventory,
    ProjectUsage,
)
from snapshots.storage.local import LocalDriver
from tests.factories import LocationFactory, MembershipFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

LOOKS = 6
BORN = timezone.now() - timedelta(days=1)


class Cloud(LocalDriver, Inventory):
    """A cloud with one project, whose lists the test sets; captures are files."""

    listed_volumes: list[CloudVolume] = []
    listed_snapshots: list[CloudSnapshot] = []
    page = 120

    def list_projects(self) -> list[CloudProjectInfo]:
        return [CloudProjectInfo(ref="0a1b2c", name="shop", is_own=False)]

    def get_usage(self, backend_project: str) -> ProjectUsage:
        return ProjectUsage(volumes=0, volume_quota=-1, snapshots=0, snapshot_quota=-1, gb=0, gb_quota=-1)

    def volume_pages(self, backend_project: str) -> Iterator[list[CloudVolume]]:
        yield from (
            self.listed_volumes[start : start + self.page] for start in range(0, len(self.listed_volumes), self.page)
        )

    def snapshot_pages(self, backend_project: str) -> Iterator[list[CloudSnapshot]]:
        yield from (
            self.listed_snapshots[start : start + self.page]
            for start in range(0, len(self.listed_snapshots), self.page)
        )

    def server_pages(self, backend_project: str) -> Iterator[list[CloudServer]] | None:
        return None


def volume_of(number: int, name: str = "data") -> CloudVolume:
    return CloudVolume(
        ref=f"volume-{number}",
        name=f"{name} {number}",
        size_gb=1,
        is_ready=True,
        is_creating=False,
        server_ref="",
        position=0,
        portal_uuid=None,
        created_at=BORN,
    )


def snapshot_of(number: int, name: str = "by hand") -> CloudSnapshot:
    return CloudSnapshot(
        ref=f"snapshot-{number}",
        name=name,
        volume_ref=f"volume-{number}",
        size_gb=1,
        portal_uuid=None,
        created_at=BORN,
    )


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def location(settings: Any, tmp_path: Any, member: Membership, monkeypatch: pytest.MonkeyPatch) -> Location:
    settings.STORAGE = {"cloud": {"driver": f"{__name__}.Cloud", "options": {"root": str(tmp_path / "cloud")}}}
    monkeypatch.setattr(Cloud, "listed_volumes", [])
    monkeypatch.setattr(Cloud, "listed_snapshots", [])
    location = LocationFactory(driver="cloud", charges_outside=True)
    CloudProject.objects.create(location=location, external_id="0a1b2c", name="shop", project=member.project)
    sell_everywhere()
    return location


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Run all at once, each in a thread with its own connection. Returns their results, including refusals."""
    barrier = Barrier(len(actions))

    def call(action: Callable[[], Any]) -> Any:
        try:
            barrier.wait()
            return action()
        except ActionRefused as refusal:
            return refusal
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(call, actions))


def open_segments() -> int:
    return UsageSegment.objects.filter(ended_at=None).count()


def test_six_concurrent_syncs_do_nothing_twice_and_do_not_deadlock(location: Location) -> None:
    count = 250  # three pages of the list
    looks = [lambda: sync_location(Location.objects.get())] * LOOKS

    Cloud.listed_volumes = [volume_of(number) for number in range(count)]
    Cloud.listed_snapshots = [snapshot_of(number) for number in range(count)]
    at_once(*looks)
    assert (Volume.objects.count(), Snapshot.objects.count(), open_segments()) == (count, count, count)

    # everything is renamed, and listed in another order each time
    Cloud.listed_volumes = [volume_of(number, "renamed") for number in reversed(range(count))]
    at_once(*looks)
    assert set(Volume.objects.values_list("name", flat=True)) == {f"renamed {number}" for number in range(count)}

    # half of it vanishes
    Cloud.listed_volumes, Cloud.listed_snapshots = (
        Cloud.listed_volumes[: count // 2],
        Cloud.listed_snapshots[: count // 2],
    )
    at_once(*looks)
    assert Volume.objects.present().count() == count // 2
    assert Snapshot.objects.filter(state=State.DELETED).count() == Snapshot.objects.filter(state=State.READY).count()
    assert (UsageSegment.objects.count(), open_segments()) == (count, count // 2)

    # the rule changes
    Location.objects.update(charges_outside=False)
    at_once(*looks)
    assert (UsageSegment.objects.count(), open_segments()) == (count, 0)
    assert sync_location(Location.objects.get()).changes == {}


def test_snapshots_that_vanish_during_their_deletion_are_deleted_once_and_charged_until_then(
    location: Location, member: Membership
) -> None:
    count = 12
    Cloud.listed_volumes = [volume_of(number) for number in range(count)]
    Cloud.listed_snapshots = [snapshot_of(number) for number in range(count)]
    sync_location(location)
    snapshots = list(Snapshot.objects.all())
    assert (len(snapshots), open_segments()) == (count, count)

    Cloud.listed_snapshots = []
    deletions = [
        lambda snapshot=snapshot: services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
        for snapshot in snapshots
    ]
    at_once(*deletions, *[lambda: sync_location(Location.objects.get())] * 3)
    run_active_operations()
    assert set(Snapshot.objects.values_list("state", flat=True)) == {State.DELETED}
    assert (UsageSegment.objects.count(), open_segments()) == (count, 0)
    assert not Operation.objects.exclude(state=Operation.State.SUCCEEDED).exists()
    assert sync_location(location).changes == {}


def test_a_customer_and_a_sync_never_use_the_same_name(location: Location, member: Membership, tmp_path: Path) -> None:
    Cloud.listed_volumes = [volume_of(1)]
    sync_location(location)
    volume = Volume.objects.get()
    put_volume(tmp_path / "cloud", volume, content(b"bytes"))
    for turn in range(4):
        name = f"nightly {turn}"
        Cloud.listed_snapshots = [replace(snapshot_of(1, name), ref=f"{turn}")]
        mine, _report = at_once(
            lambda name=name: services.request_snapshot(source=volume, name=name, user=member.user),
            lambda: sync_location(Location.objects.get()),
        )
        outside = Snapshot.objects.get(made_outside=True, deleted_at=None)
        assert isinstance(mine, NameTaken) is (outside.name == name)
        assert outside.name in (name, f"{name} {turn}")
        run_active_operations()


def test_a_snapshot_that_reappears_during_its_deletion_costs_nothing(
    location: Location, member: Membership, tmp_path: Path
) -> None:
    Location.objects.update(charges_missing=False)
    Cloud.listed_volumes = [volume_of(1)]
    sync_location(location)
    volume = Volume.objects.get()
    put_volume(tmp_path / "cloud", volume, content(b"bytes"))
    for turn in range(4):
        snapshot = services.request_snapshot(source=volume, name=f"nightly {turn}", user=member.user)
        run_active_operations()
        Cloud.listed_snapshots = []
        assert sync_location(Location.objects.get()).snapshots_gone == 1
        assert open_segments() == 0
        Cloud.listed_snapshots = [replace(snapshot_of(1), portal_uuid=snapshot.pk)]
        at_once(
            lambda snapshot=snapshot: services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True),
            *[lambda: sync_location(Location.objects.get())] * 2,
        )
        run_active_operations()
        snapshot.refresh_from_db()
        assert (snapshot.state, open_segments()) == (State.DELETED, 0)


def test_members_are_notified_once_before_outside_snapshots_are_charged(location: Location, member: Membership) -> None:
    Location.objects.update(charges_outside=False)
    Cloud.listed_volumes = [volume_of(number) for number in range(3)]
    Cloud.listed_snapshots = [snapshot_of(number) for number in range(3)]
    sync_location(Location.objects.get())
    assert open_segments() == 0 and not member.user.notifications.exists()

    Location.objects.update(charges_outside=True)
    for _turn in range(2):
        sync_location(Location.objects.get())
    assert open_segments() == 3
    notification = member.user.notifications.get()
    assert "3 snapshots of 3 GB" in notification.text and "K 1.20 an hour" in notification.text


def test_a_snapshot_found_damaged_while_missing_is_not_charged_again(
    location: Location, member: Membership, tmp_path: Path
) -> None:
    Location.objects.update(charges_missing=True)
    location.refresh_from_db()
    Cloud.listed_volumes = [volume_of(1)]
    sync_location(location)
    volume = Volume.objects.get()
    put_volume(tmp_path / "cloud", volume, content(b"bytes"))
    snapshot = services.request_snapshot(source=volume, name="nightly", user=member.user)
    run_active_operations()
    Cloud.listed_snapshots = []
    sync_location(location)
    assert open_segments() == 1
    with transaction.atomic():
        record_damage(snapshot, {snapshot.disks.get(): "A block is damaged."}, timezone.now())
    assert open_segments() == 0
    Cloud.listed_snapshots = [replace(snapshot_of(1), portal_uuid=snapshot.pk)]
    assert sync_location(location).snapshots_back == 1
    snapshot.refresh_from_db()
    assert (snapshot.missing_since, open_segments()) == (None, 0)
    with transaction.atomic():
        assert record_sound(snapshot, timezone.now())
    assert open_segments() == 1


def test_a_moved_snapshot_stays_in_its_project_after_a_sync(location: Location, member: Membership) -> None:
    Cloud.listed_volumes, Cloud.listed_snapshots = [volume_of(1)], [snapshot_of(1)]
    sync_location(location)
    snapshot, archive = (
        Snapshot.objects.get(),
        MembershipFactory(user=member.user, project__customer=member.project.customer).project,
    )
    move_snapshot(snapshot=snapshot, user=member.user, project=archive)
    sync_location(location)
    Cloud.listed_snapshots = []
    sync_location(location)
    snapshot.refresh_from_db()
    assert (snapshot.project, snapshot.volume.project, snapshot.state) == (archive, member.project, State.DELETED)
    assert open_segments() == 0


def test_nothing_is_imported_into_an_archived_project(location: Location, member: Membership) -> None:
    Cloud.listed_volumes = [volume_of(1)]
    Project.objects.update(archived_at=timezone.now())
    assert sync_location(location).failed == {}
    assert not Volume.objects.exists()
    Project.objects.update(archived_at=None)
    sync_location(location)
    assert Volume.objects.count() == 1
