"""The worker's operations on a real Cinder: what becomes Ready is there once and charged, what fails is neither."""

from typing import Any
from uuid import UUID

import pytest

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Location, Volume
from snapshots import services
from snapshots.drivers.base import VolumeRef
from snapshots.drivers.cinder import name_of
from snapshots.models import Operation, Snapshot, State
from tests.factories import LocationFactory, MembershipFactory, VolumeFactory
from tests.openstack.stores import CinderStore
from tests.snapshots.disks import carry_out_what_waits, sell_everywhere
from tests.snapshots.drivers.contract import AFTER, BEFORE, assert_holds, new_volume

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def location(settings: Any) -> Location:
    settings.STORAGE = {"cinder": {"driver": "snapshots.drivers.cinder.CinderDriver", "options": {"cloud": "demo"}}}
    return LocationFactory(driver="cinder")


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(store: CinderStore, location: Location, member: Membership) -> Volume:
    ref = new_volume(store, BEFORE)
    volume = VolumeFactory(pk=ref.uuid, project=member.project, location=location, backend_ref=ref.backend_ref)
    sell_everywhere()
    return volume


def made(store: CinderStore, uuid: UUID) -> list[Any]:
    return [*store.cinder.snapshots(name=name_of(uuid)), *store.cinder.volumes(name=name_of(uuid))]


def test_a_snapshot_becomes_a_volume_and_is_deleted(store: CinderStore, volume: Volume, member: Membership) -> None:
    snapshot = services.request_snapshot(source=volume, name="nightly", user=member.user)
    carry_out_what_waits()
    snapshot.refresh_from_db()
    assert (snapshot.state, UsageSegment.objects.count()) == (State.READY, 1)
    disk = snapshot.disks.get()
    assert [item.id for item in made(store, disk.pk)] == [disk.backend_ref]

    source = VolumeRef(uuid=volume.pk, name=volume.name, size_gb=1, backend_ref=volume.backend_ref)
    store.write(source, AFTER)
    services.request_new_volume(snapshot=snapshot, user=member.user, project=member.project, name="copy", size_gb=2)
    carry_out_what_waits()
    copy = Volume.objects.get(name="copy")
    assert (copy.state, copy.size_gb) == (Volume.State.AVAILABLE, 2)
    assert_holds(store, VolumeRef(uuid=copy.pk, name="copy", size_gb=2, backend_ref=copy.backend_ref), BEFORE)

    services.request_deletion(snapshot=snapshot, user=member.user)
    carry_out_what_waits()
    snapshot.refresh_from_db()
    assert snapshot.state == State.DELETED
    assert made(store, disk.pk) == []


def test_what_the_storage_refuses_fails_with_its_reason_and_costs_nothing(
    store: CinderStore, volume: Volume, member: Membership, settings: Any
) -> None:
    settings.STORAGE["cinder"]["options"] = {"cloud": "demo-reader"}
    services.request_snapshot(source=volume, name="nightly", user=member.user)
    carry_out_what_waits()
    operation = Operation.objects.get()
    snapshot = Snapshot.objects.get()
    assert (operation.state, snapshot.state) == (Operation.State.FAILED, State.FAILED)
    assert "does not allow this to the portal's account" in operation.error
    assert not UsageSegment.objects.exists()
    assert made(store, snapshot.disks.get().pk) == []
