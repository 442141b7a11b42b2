"""A worker is killed at every step of its work on a volume: see tests/snapshots/test_crashes.py."""

from pathlib import Path
from typing import Any

import pytest
from django.db.models import F

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Location, Volume
from snapshots import services
from snapshots.models import Operation
from snapshots.operations import lifecycle
from snapshots.storage.contract import GIB
from snapshots.tasks import run_operation
from snapshots.volumes import services as volume_services
from tests.factories import LocationFactory, MembershipFactory
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.test_crashes import deaths, files_below, let_the_next_worker_do_it, work_and_die

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]


@pytest.fixture(autouse=True)
def no_limits(settings: Any) -> None:
    settings.ACTIONS_PER_HOUR = dict.fromkeys(settings.ACTIONS_PER_HOUR, 0)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(
        project__customer__postpaid=True,
        project__customer__volume_quota=-1,
        project__customer__volume_gb_quota=-1,
    )


@pytest.fixture
def location() -> Location:
    location = LocationFactory()
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    return location


def request_new(member: Membership, location: Location, name: str = "data") -> Volume:
    return volume_services.request_volume(
        project=member.project, location=location, size_gb=1, name=name, user=member.user
    )


def charges(volume: Volume) -> list[UsageSegment]:
    """The running one comes last: those that change within a paid hour all start at its end."""
    order = ("started_at", F("ended_at").asc(nulls_last=True))
    return list(UsageSegment.objects.filter(resource_id=volume.pk).order_by(*order))


def test_a_creation_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, location: Location
) -> None:
    expected = set()
    for operation, _killed in deaths(lambda number: request_new(member, location).operations.get()):
        volume = Volume.objects.get(pk=operation.volume_id)
        assert (volume.state, operation.state) == (Volume.State.AVAILABLE, Operation.State.SUCCEEDED)
        [segment] = charges(volume)
        assert (segment.started_at, segment.ended_at) == (volume.available_at, None)
        expected.add(f"{location.pk}/volumes/{volume.pk}.img")
        assert files_below(storage_root) == expected


def test_a_growth_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, location: Location
) -> None:
    volume = request_new(member, location)
    let_the_next_worker_do_it()
    image = storage_root / location.pk / "volumes" / f"{volume.pk}.img"
    with open(image, "r+b") as file:
        file.write(b"precious")

    def ask(number: int) -> Operation:
        return volume_services.request_extension(volume=volume, user=member.user, size_gb=number + 1)

    for operation, _killed in deaths(ask):
        volume.refresh_from_db()
        assert (volume.size_gb, operation.state) == (operation.new_size_gb, Operation.State.SUCCEEDED)
        assert image.stat().st_size == volume.size_gb * GIB and image.open("rb").read(8) == b"precious"
        *_before, last = charges(volume)
        assert (last.size_gb, last.ended_at) == (volume.size_gb, None)
        assert len(files_below(storage_root)) == 1


def test_a_deletion_survives_the_death_of_its_worker_at_every_step(
    storage_root: Path, member: Membership, location: Location
) -> None:
    def ask(number: int) -> Operation:
        volume = request_new(member, location)
        let_the_next_worker_do_it()
        volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="data")
        return volume.operations.get(kind=Operation.Kind.DELETE_VOLUME)

    for operation, _killed in deaths(ask):
        volume = Volume.objects.get(pk=operation.volume_id)
        assert volume.is_deleted and operation.state == Operation.State.SUCCEEDED
        [segment] = charges(volume)
        assert segment.ended_at == volume.delete_requested_at
        assert files_below(storage_root) == set()


def kill_all_workers_of(operation: Operation, kill_at: int, attempts: int) -> None:
    while operation.attempt < attempts:
        assert not work_and_die(operation, kill_at)
        operation.refresh_from_db()
        kill_at += 5 * (operation.attempt == 0)  # It died before it had claimed the operation.
        Operation.objects.filter(pk=operation.pk, state=Operation.State.RUNNING).update(
            lease_until=operation.created_at
        )
        lifecycle.reconcile()
    run_operation(operation.pk)
    operation.refresh_from_db()


@pytest.mark.parametrize("kill_at", [5, 9, 12], ids=["claimed", "before the truncation", "volume there"])
def test_a_creation_whose_workers_all_die_fails_and_leaves_nothing(
    storage_root: Path, member: Membership, location: Location, settings: Any, kill_at: int
) -> None:
    volume = request_new(member, location)
    operation = volume.operations.get()
    kill_all_workers_of(operation, kill_at, settings.OPERATION_MAX_ATTEMPTS)
    volume.refresh_from_db()
    assert (volume.state, operation.state) == (Volume.State.ERROR, Operation.State.FAILED)
    assert "stopped unexpectedly" in operation.error
    assert charges(volume) == [] and files_below(storage_root) == set()

    services.retry(operation=operation, user=member.user)
    let_the_next_worker_do_it()
    volume.refresh_from_db()
    assert volume.state == Volume.State.AVAILABLE


@pytest.mark.parametrize("kill_at", [5, 7, 12], ids=["claimed", "file grown", "at the commit"])
def test_a_growth_whose_workers_all_die_has_the_size_of_the_disk(
    storage_root: Path, member: Membership, location: Location, settings: Any, kill_at: int
) -> None:
    volume = request_new(member, location)
    let_the_next_worker_do_it()
    operation = volume_services.request_extension(volume=volume, user=member.user, size_gb=3)
    kill_all_workers_of(operation, kill_at, settings.OPERATION_MAX_ATTEMPTS)
    volume.refresh_from_db()
    image = storage_root / location.pk / "volumes" / f"{volume.pk}.img"
    assert image.stat().st_size == volume.size_gb * GIB
    assert volume.size_gb == (3 if operation.state == Operation.State.SUCCEEDED else 1)
    assert charges(volume)[-1].size_gb == volume.size_gb
