"""A storage whose file system isn't mounted: nothing is created, deleted or found damaged until it is back."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.utils import timezone

from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Location, Volume
from cng_portal.monitoring.models import StorageCheck
from snapshots import services, tasks
from snapshots.models import Operation, Snapshot, State
from snapshots.monitoring.storage import check_storage
from snapshots.storage.registry import get_driver
from tests.factories import MembershipFactory, UserFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    check_storage()
    return volume


def test_a_storage_that_answered_once_is_expected_ever_after(volume: Volume, storage_root: Path) -> None:
    location = Location.objects.get()
    first_seen_at = location.storage_seen_at
    assert first_seen_at
    storage_root.rename(storage_root.with_name("unmounted"))
    check_storage()
    assert "isn't mounted" in StorageCheck.objects.get().error
    assert not storage_root.exists()
    check_storage()
    assert StorageCheck.objects.get().error
    storage_root.with_name("unmounted").rename(storage_root)
    check_storage()
    assert not StorageCheck.objects.get().error
    assert Location.objects.get().storage_seen_at == first_seen_at


def test_work_waits_until_the_storage_is_mounted_again(volume: Volume, member: Membership, storage_root: Path) -> None:
    deleted = services.request_snapshot(source=volume, name="old", user=member.user)
    run_active_operations()
    disk = storage_root / volume.location_id / "snapshots" / str(deleted.pk) / "disk.img"
    snapshot = services.request_snapshot(source=volume, name="new", user=member.user)
    services.request_deletion(snapshot=deleted, user=member.user, even_if_last=True)
    storage_root.rename(storage_root.with_name("unmounted"))
    for operation in Operation.objects.active():
        tasks.run_operation(operation.pk)
        operation.refresh_from_db()
        assert (operation.state, operation.attempt) == (Operation.State.PENDING, 1)
        assert "isn't mounted" in operation.error
    assert not storage_root.exists()
    storage_root.with_name("unmounted").rename(storage_root)
    assert disk.exists()
    for operation in Operation.objects.active():
        tasks.run_operation(operation.pk, now=timezone.now() + timedelta(hours=1))
    assert Snapshot.objects.get(pk=snapshot.pk).state == State.READY
    assert Snapshot.objects.get(pk=deleted.pk).state == State.DELETED
    assert not disk.exists()


def test_a_location_that_gets_another_storage_is_set_up_anew(
    volume: Volume, storage_root: Path, client_for: Callable[..., Client]
) -> None:
    location = Location.objects.get()
    page = f"/admin/inventory/location/{location.pk}/change/"
    fields = {name: getattr(location, name) for name in ("city", "country", "region", "driver", "default_interval")}
    fields |= {"default_at": "02:00", "default_retention_count": 2, "active": "on"}
    other = storage_root.with_name("other")
    fields["driver_options"] = f'{{"root": "{other}"}}'
    assert client_for(UserFactory(admin=True)).post(page, fields).status_code == 302
    location.refresh_from_db()
    assert location.storage_seen_at is None
    get_driver(location).check_health()
    assert other.exists()
