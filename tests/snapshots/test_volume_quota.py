"""Quotas of volumes for customers and projects, shown before a form is filled in."""

from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Customer, Membership
from cng_portal.inventory.models import Volume
from snapshots import services
from snapshots.errors import OutOfSpace, QuotaExceeded
from snapshots.models import Operation, Snapshot
from snapshots.storage.local import LocalDriver
from snapshots.volumes import new_volumes
from tests.factories import (
    CustomerFactory,
    DiskImageFactory,
    MembershipFactory,
    OperationFactory,
    SnapshotFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.test_races import TAKERS, all_at_once

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def snapshot(storage_root: Path, member: Membership) -> Snapshot:
    """A snapshot of the only volume, which has 5 GB."""
    return SnapshotFactory(volume__project=member.project, volume__size_gb=5)


@pytest.fixture
def client(member: Membership, client_for: Callable[..., Client]) -> Client:
    return client_for(member.user)


def request(snapshot: Snapshot, member: Membership, size_gb: int = 5) -> Operation:
    return new_volumes.request_new_volume(
        snapshot=snapshot, user=member.user, project=member.project, name="copy", size_gb=size_gb
    )


def test_a_new_customer_has_a_limit_and_a_project_has_none(member: Membership) -> None:
    customer = CustomerFactory()
    assert (customer.volume_quota, customer.volume_gb_quota) == (100, 10_000)
    assert (member.project.volume_quota, member.project.volume_gb_quota) == (-1, -1)


@pytest.mark.parametrize("owner", ["customer", "project"])
@pytest.mark.parametrize(
    ("quota", "sentence"),
    [({"volume_quota": 2}, "2 of 2 volumes of "), ({"volume_gb_quota": 19}, "10 of 19 GB of volumes of ")],
)
def test_a_full_quota_is_shown_in_advance_and_enforced(
    client: Client, snapshot: Snapshot, member: Membership, owner: str, quota: dict[str, int], sentence: str
) -> None:
    limited = member.project.customer if owner == "customer" else member.project
    type(limited).objects.filter(pk=limited.pk).update(**quota)
    VolumeFactory(project=member.project, size_gb=50, gone=True)
    first = request(snapshot, member)

    url = reverse("snapshots:new_volume", args=[snapshot.pk])
    assert sentence in " ".join(unescape(client.get(url).content.decode()).split())
    answers = {"name": "copy", "size_gb": 10, "project": member.project.pk}
    refused = unescape(client.post(url, answers).content.decode())
    assert f"Quota full: {sentence}" in refused and "ask your provider" in refused
    assert Operation.objects.get() == first and Volume.objects.present().count() == 2


def test_a_machine_needs_room_for_all_of_its_volumes(member: Membership, client: Client) -> None:
    machine = VMSnapshotFactory(
        vm__project=member.project, vm_config={"vcpus": 1, "memory_mb": 1, "hourly_price_micro": 0}
    )
    for position in range(3):
        DiskImageFactory(
            id=None,
            snapshot=machine,
            volume=VolumeFactory(project=member.project),
            volume_name="x",
            size_gb=1,
            position=position,
        )
    Customer.objects.update(volume_quota=5)
    options: dict[str, Any] = {"snapshot": machine, "user": member.user, "project": member.project, "name": "db-02"}
    with pytest.raises(QuotaExceeded, match="3 of 5 volumes of your account are used and this one needs 3"):
        new_volumes.request_new_machine(**options)
    assert "3 of 5 volumes" in client.get(reverse("snapshots:new_machine", args=[machine.pk])).content.decode()
    Customer.objects.update(volume_quota=6)
    assert new_volumes.request_new_machine(**options).volumes.count() == 3


def test_a_retry_counts_towards_the_quota(snapshot: Snapshot, member: Membership) -> None:
    failed = OperationFactory(snapshot=snapshot, new_volume=True, failed=True)
    Volume.objects.filter(pk=failed.volume_id).update(state="error", deleted_at=timezone.now())
    Customer.objects.update(volume_quota=1)
    with pytest.raises(QuotaExceeded):
        services.retry(operation=failed, user=member.user)
    Customer.objects.update(volume_quota=2)
    assert services.retry(operation=failed, user=member.user).volume_id == failed.volume_id


def test_twenty_concurrent_requests_respect_the_quota(snapshot: Snapshot, member: Membership) -> None:
    Customer.objects.update(volume_quota=4)
    outcome = all_at_once(lambda number: request(snapshot, member))
    assert outcome == {"done": 3, "QuotaExceeded": TAKERS - 3}


def test_no_volume_is_larger_than_the_provider_allows(
    client: Client, snapshot: Snapshot, member: Membership, settings: Any
) -> None:
    Customer.objects.update(volume_gb_quota=-1)
    settings.MAX_VOLUME_GB = 100
    with pytest.raises(OutOfSpace, match="at most 100 GB"):
        request(snapshot, member, 101)
    url = reverse("snapshots:new_volume", args=[snapshot.pk])
    answers = {"name": "copy", "size_gb": 101, "project": member.project.pk}
    assert "A volume has at most 100 GB" in client.post(url, answers).content.decode()
    assert request(snapshot, member, 100)


def test_the_storage_has_to_have_room_for_the_bytes_and_not_for_the_holes(
    snapshot: Snapshot, member: Membership, storage_root: Path
) -> None:
    driver = LocalDriver(location=snapshot.location_id, root=str(storage_root))
    if driver.shares_blocks:
        pytest.skip("copies need no room here")
    Customer.objects.update(volume_gb_quota=-1)
    snapshot.disks.update(allocated_bytes=2 * driver.free_bytes())
    with pytest.raises(OutOfSpace, match="is too full"):
        request(snapshot, member)
    snapshot.disks.update(allocated_bytes=4096)
    assert request(snapshot, member, 10_000)


def test_the_page_of_the_limits_counts_volumes(client: Client, snapshot: Snapshot) -> None:
    page = " ".join(client.get(reverse("snapshots:limits")).content.decode().split())
    assert "GB of volumes" in page and "5 of 10,000" in page and "1 of 100" in page
