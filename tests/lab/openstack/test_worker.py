"""The worker's operations on a real Cinder: a ready snapshot exists once and is charged, a failed one does neither."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Location, Volume
from snapshots import services
from snapshots.models import Operation, Snapshot, State
from snapshots.storage.cinder.creation import name_of
from snapshots.storage.contract import VolumeRef
from snapshots.tasks import run_operation
from snapshots.volumes import new_volumes
from tests.factories import LocationFactory, MembershipFactory, VolumeFactory
from tests.lab.openstack.lab import Lab, wait_until
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.disks import run_active_operations, sell_everywhere
from tests.snapshots.storage.contract import AFTER, BEFORE, assert_holds, new_volume

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def location(settings: Any) -> Location:
    settings.STORAGE = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "demo"}}}
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


def created(store: CinderStore, uuid: UUID) -> list[Any]:
    return [*store.cinder.snapshots(name=name_of(uuid)), *store.cinder.volumes(name=name_of(uuid))]


def test_a_snapshot_becomes_a_volume_and_is_deleted(store: CinderStore, volume: Volume, member: Membership) -> None:
    snapshot = services.request_snapshot(source=volume, name="nightly", user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert (snapshot.state, UsageSegment.objects.count()) == (State.READY, 1)
    disk = snapshot.disks.get()
    assert [item.id for item in created(store, disk.pk)] == [disk.backend_ref]

    source = VolumeRef(uuid=volume.pk, name=volume.name, size_gb=1, backend_ref=volume.backend_ref)
    store.write(source, AFTER)
    new_volumes.request_new_volume(snapshot=snapshot, user=member.user, project=member.project, name="copy", size_gb=2)
    run_active_operations()
    copy = Volume.objects.get(name="copy")
    assert (copy.state, copy.size_gb) == (Volume.State.AVAILABLE, 2)
    assert_holds(store, VolumeRef(uuid=copy.pk, name="copy", size_gb=2, backend_ref=copy.backend_ref), BEFORE)

    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.DELETED
    assert created(store, disk.pk) == []


def test_an_object_that_appears_after_the_last_attempt_is_deleted_and_costs_nothing(
    lab: Lab, store: CinderStore, volume: Volume, member: Membership, settings: Any
) -> None:
    settings.OPERATION_MAX_ATTEMPTS = 1
    settings.STORAGE["cinder"]["options"] = {"cloud": "demo", "create_timeout": "4", "delete_timeout": "4"}
    with lab.stopped("cinder-volume", kill=True):
        snapshot = services.request_snapshot(source=volume, name="nightly", user=member.user)
        run_active_operations()
        snapshot.refresh_from_db()
        assert snapshot.state == State.FAILED and "did not finish in time" in snapshot.error
        clean_up = Operation.objects.get(kind=Operation.Kind.CLEAN_UP)
        for hours in (1, 2, 3):  # more attempts than any other operation gets
            run_operation(clean_up.pk, now=timezone.now() + timedelta(hours=hours))
        clean_up.refresh_from_db()
        assert (clean_up.state, clean_up.attempt) == (Operation.State.PENDING, 3)
        assert "not finished deleting" in clean_up.error

    def is_clean() -> bool:
        run_operation(clean_up.pk, now=timezone.now() + timedelta(hours=4))
        clean_up.refresh_from_db()
        return clean_up.state == Operation.State.SUCCEEDED

    assert wait_until(is_clean, seconds=60)
    assert not list(store.cinder.snapshots(volume_id=volume.backend_ref))
    assert not UsageSegment.objects.exists()

    # the customer's second attempt succeeds
    services.retry(operation=Operation.objects.get(kind=Operation.Kind.CAPTURE), user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert (snapshot.state, len(created(store, snapshot.disks.get().pk))) == (State.READY, 1)


def test_a_retry_stops_the_clean_up(
    lab: Lab, store: CinderStore, volume: Volume, member: Membership, settings: Any
) -> None:
    settings.OPERATION_MAX_ATTEMPTS = 1
    settings.STORAGE["cinder"]["options"] = {"cloud": "demo", "create_timeout": "4"}
    with lab.stopped("cinder-volume", kill=True):
        snapshot = services.request_snapshot(source=volume, name="nightly", user=member.user)
        run_active_operations()
        [started] = store.cinder.snapshots(volume_id=volume.backend_ref)
        services.retry(operation=Operation.objects.get(kind=Operation.Kind.CAPTURE), user=member.user)
        assert not Operation.objects.filter(kind=Operation.Kind.CLEAN_UP).exists()
    settings.STORAGE["cinder"]["options"] = {"cloud": "demo"}
    run_active_operations()
    snapshot.refresh_from_db()
    assert (snapshot.state, snapshot.disks.get().backend_ref) == (State.READY, started.id)


def test_a_request_refused_by_the_storage_fails_with_its_reason_and_is_free(
    store: CinderStore, volume: Volume, member: Membership, settings: Any
) -> None:
    settings.STORAGE["cinder"]["options"] = {"cloud": "demo-reader"}
    services.request_snapshot(source=volume, name="nightly", user=member.user)
    run_active_operations()
    operation = Operation.objects.get(kind=Operation.Kind.CAPTURE)
    snapshot = Snapshot.objects.get()
    assert (operation.state, snapshot.state) == (Operation.State.FAILED, State.FAILED)
    assert "The portal's account isn't allowed to do this" in operation.error
    assert not UsageSegment.objects.exists()
    assert created(store, snapshot.disks.get().pk) == []
