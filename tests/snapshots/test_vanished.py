"""Snapshots that are erased while they are read: whoever reads them says so, and blames no storage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from zeal import zeal_ignore

from cng_portal.accounts.models import BillingType, Customer, Project, User
from cng_portal.activity.models import Activity
from cng_portal.monitoring.models import StorageCheck
from cng_portal.notifications.models import Notification
from snapshots import tasks
from snapshots.drills.services import request_drill
from snapshots.files.comparison import compare
from snapshots.files.services import FilesUnavailable
from snapshots.models import DiskImage, Drill, Operation, Snapshot
from snapshots.operations.lifecycle import create_operation
from snapshots.restores import request_restore
from snapshots.services import request_deletion
from snapshots.storage.local.driver import LocalDriver
from snapshots.volumes.new_volumes import request_new_volume
from tests.factories import UserFactory
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.files.conftest import capture, project  # noqa: F401  # fixtures

pytestmark = pytest.mark.django_db
DELETED = "The snapshot was deleted before this had finished."


@pytest.fixture
def disk(capture: Callable[[Path], DiskImage], tmp_path: Path, settings: Any) -> DiskImage:  # noqa: F811
    settings.RECYCLE_BIN_DAYS = 0
    (tmp_path / "empty.img").write_bytes(b"")
    return capture(tmp_path / "empty.img")


@pytest.fixture
def member(project: Project) -> User:  # noqa: F811
    return UserFactory(member_of=project)


def erase(snapshot: Snapshot, user: User) -> None:
    with zeal_ignore():  # another process does it
        request_deletion(snapshot=snapshot, user=user, even_if_last=True)
    tasks.run_operation(Operation.objects.get(kind=Operation.Kind.DELETE).pk)
    assert Snapshot.objects.get(pk=snapshot.pk).state == "deleted"


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (Operation.Kind.VERIFY, "verify_snapshot"),
        (Operation.Kind.SCRUB, "verify_snapshot"),
        (Operation.Kind.CATALOGUE, "open_for_reading"),
        (Operation.Kind.CATALOGUE, "store_catalogue"),
        (Operation.Kind.DRILL, "delete_volume"),
    ],
)
def test_an_operation_whose_snapshot_is_erased_meanwhile_says_so(
    kind: Operation.Kind, call: str, disk: DiskImage, member: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = getattr(LocalDriver, call)

    def erase_first(driver: LocalDriver, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(LocalDriver, call, method)
        erase(disk.snapshot, member)
        return method(driver, *args, **options)

    if kind == Operation.Kind.DRILL:
        operation = request_drill(snapshot=disk.snapshot, user=member).operation
        assert operation
    else:
        operation = create_operation(kind=kind, snapshot=disk.snapshot, requested_by=member)
    monkeypatch.setattr(LocalDriver, call, erase_first)
    tasks.run_operation(operation.pk)
    operation.refresh_from_db()
    assert operation.state == Operation.State.CANCELLED
    assert "The snapshot was deleted" in operation.error and operation.cause == ""
    assert not Notification.objects.exists()
    assert not StorageCheck.objects.exists(), "the storage did nothing wrong"
    assert not Drill.objects.filter(finished_at=None).exists()
    if kind == Operation.Kind.VERIFY:
        assert Activity.objects.get(action="failed.verify").after == {"reason": DELETED}


def test_a_verification_that_was_requested_before_its_snapshot_was_erased_says_so(
    disk: DiskImage, member: User
) -> None:
    operation = create_operation(kind=Operation.Kind.VERIFY, snapshot=disk.snapshot, requested_by=member)
    erase(disk.snapshot, member)
    tasks.run_operation(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.error) == (Operation.State.CANCELLED, DELETED)


@pytest.mark.parametrize("kind", [Operation.Kind.NEW_VOLUME, Operation.Kind.RESTORE])
def test_who_uses_a_snapshot_that_vanishes_in_the_cloud_reads_what_happened(
    kind: Operation.Kind, disk: DiskImage, member: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deletion in the portal waits for them."""
    snapshot = disk.snapshot
    sell_everywhere()
    Customer.objects.filter(pk=snapshot.customer_id).update(billing_type=BillingType.POSTPAID)
    if kind == Operation.Kind.NEW_VOLUME:
        operation = request_new_volume(
            snapshot=snapshot, user=member, project=snapshot.project, name="copy", size_gb=disk.size_gb
        )
    else:
        operation = request_restore(snapshot=snapshot, user=member, confirmation=disk.volume.name)
    name = "create_volume_from_snapshot" if kind == Operation.Kind.NEW_VOLUME else "revert_volume"
    method = getattr(LocalDriver, name)

    def vanish_first(driver: LocalDriver, *args: Any, **options: Any) -> Any:
        driver.delete_snapshot(disk.ref)
        Snapshot.objects.filter(pk=disk.snapshot_id).update(missing_since=disk.snapshot.ready_at)
        return method(driver, *args, **options)

    monkeypatch.setattr(LocalDriver, name, vanish_first)
    tasks.run_operation(operation.pk)
    operation.refresh_from_db()
    assert operation.state == Operation.State.FAILED
    assert "deleted in the cloud, outside the portal" in operation.error
    assert "outside the portal" in Notification.objects.get(user=member).text
    assert not StorageCheck.objects.exists()


def test_the_page_of_files_says_that_its_snapshot_was_erased_meanwhile(
    disk: DiskImage, member: User, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = LocalDriver.open_for_reading

    def erase_first(driver: LocalDriver, *args: Any) -> int:
        erase(disk.snapshot, member)
        return method(driver, *args)

    monkeypatch.setattr(LocalDriver, "open_for_reading", erase_first)
    client.force_login(member)
    page = client.get(reverse("snapshots:files", args=[disk.snapshot_id])).content.decode()
    assert "is not ready (Deleted)" in page and "is not in the storage" not in page


def test_a_comparison_says_that_one_of_its_snapshots_was_erased_meanwhile(disk: DiskImage, member: User) -> None:
    Snapshot.objects.filter(pk=disk.snapshot_id).update(catalogued_at=disk.snapshot.ready_at)
    disk = DiskImage.objects.select_related("snapshot__location").get(pk=disk.pk)
    erase(disk.snapshot, member)
    with pytest.raises(FilesUnavailable, match=r"is not ready \(Deleted\)"):
        compare(disk, disk)
