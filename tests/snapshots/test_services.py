"""What the services refuse and store."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import checks, restores, services
from snapshots.errors import InvalidState, NameTaken, SourceUnavailable
from snapshots.models import Operation, Snapshot, State
from snapshots.storage.local import LocalDriver
from snapshots.volumes import new_volumes
from tests.factories import DiskImageFactory, MembershipFactory, SnapshotFactory, VMSnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


@pytest.fixture
def snapshot(volume: Volume, member: Membership) -> Snapshot:
    snapshot = services.request_snapshot(source=volume, name="Nightly", user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    return snapshot


def test_billing_ends_at_the_instant_the_deletion_is_accepted_and_not_when_it_is_done(
    snapshot: Snapshot, member: Membership
) -> None:
    accepted = services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    assert accepted.state == State.DELETING
    assert UsageSegment.objects.get().ended_at == accepted.delete_requested_at
    again = services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    assert again.delete_requested_at == accepted.delete_requested_at
    assert Operation.objects.filter(kind=Operation.Kind.DELETE).count() == 1


def test_neither_a_snapshot_nor_its_safety_snapshot_is_deleted_under_a_restore(
    snapshot: Snapshot, member: Membership, volume: Volume
) -> None:
    restore = restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    Snapshot.objects.filter(pk=restore.safety_snapshot_id).update(state=State.READY, ready_at=snapshot.ready_at)
    for needed in (snapshot, restore.safety_snapshot):
        with pytest.raises(InvalidState, match="in use"):
            services.request_deletion(snapshot=needed, user=member.user, even_if_last=True)


def test_a_name_is_free_again_once_its_snapshot_is_gone(snapshot: Snapshot, member: Membership, volume: Volume) -> None:
    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    with pytest.raises(NameTaken):
        services.request_snapshot(source=volume, name="nightly", user=member.user)
    run_active_operations()
    assert services.request_snapshot(source=volume, name="nightly", user=member.user).name == "nightly"


def test_a_snapshot_can_change_the_case_of_its_own_name(snapshot: Snapshot, member: Membership) -> None:
    assert services.rename_snapshot(snapshot=snapshot, user=member.user, name="NIGHTLY").name == "NIGHTLY"
    assert UsageSegment.objects.get().resource_name == "NIGHTLY"


@pytest.mark.parametrize("same", ["STRASSE", "Straße ", "straße"])
def test_names_are_compared_without_case_in_every_script(volume: Volume, member: Membership, same: str) -> None:
    services.request_snapshot(source=volume, name="straße", user=member.user)
    with pytest.raises(NameTaken, match="is free"):
        services.request_snapshot(source=volume, name=same, user=member.user)


def test_another_customer_may_use_the_same_name(snapshot: Snapshot) -> None:
    SnapshotFactory(name=snapshot.name)


def test_a_deleted_volume_keeps_its_snapshots_and_their_bill(
    snapshot: Snapshot, member: Membership, volume: Volume
) -> None:
    Volume.objects.filter(pk=volume.pk).update(deleted_at=snapshot.ready_at)
    assert UsageSegment.objects.get().ended_at is None
    with pytest.raises(SourceUnavailable):
        restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    operation = new_volumes.request_new_volume(
        snapshot=snapshot, user=member.user, project=member.project, name="rescued", size_gb=1
    )
    run_active_operations()
    operation.volume.refresh_from_db()
    assert operation.volume.state == Volume.State.AVAILABLE


def test_a_failed_snapshot_can_be_retried_only_once(storage_root: Path, member: Membership, volume: Volume) -> None:
    image = put_volume(storage_root, volume, content(b"bytes"))
    snapshot = services.request_snapshot(source=volume, name="later", user=member.user)
    aside = image.rename(image.with_suffix(".aside"))
    run_active_operations()
    failed = snapshot.operations.get()
    assert failed.state == Operation.State.FAILED
    aside.rename(image)
    services.retry(operation=failed, user=member.user)
    with pytest.raises(InvalidState, match="nothing to retry"):
        services.retry(operation=failed, user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY


def test_a_volume_created_by_a_retry_is_not_created_again_despite_wrong_clocks(
    storage_root: Path, snapshot: Snapshot, member: Membership
) -> None:
    operation = new_volumes.request_new_volume(
        snapshot=snapshot, user=member.user, project=member.project, name="rescued", size_gb=1
    )
    folder = storage_root / snapshot.location_id / "snapshots" / str(snapshot.pk)
    aside = folder.rename(storage_root / "aside")
    run_active_operations()
    aside.rename(folder)
    # The request came from a machine whose clock was ahead.
    Operation.objects.filter(pk=operation.pk).update(created_at=timezone.now() + timedelta(hours=5))
    services.retry(operation=operation, user=member.user)
    run_active_operations()
    operation.volume.refresh_from_db()
    assert operation.volume.state == Volume.State.AVAILABLE
    with pytest.raises(InvalidState, match="nothing to retry"):
        services.retry(operation=operation, user=member.user)
    operation.volume.refresh_from_db()
    assert operation.volume.state == Volume.State.AVAILABLE


def test_damage_is_recorded_on_the_disk_and_notified(
    storage_root: Path, snapshot: Snapshot, member: Membership
) -> None:
    disk = storage_root / snapshot.location_id / "snapshots" / str(snapshot.pk) / "disk.img"
    disk.chmod(0o640)
    with open(disk, "r+b") as file:
        file.write(b"X")
    operation = services.request_verification(snapshot=snapshot, user=member.user)
    assert services.request_verification(snapshot=snapshot, user=member.user) == operation
    run_active_operations()
    operation.refresh_from_db()
    assert operation.state == Operation.State.FAILED and "checksum" in operation.error
    assert snapshot.disks.get().damage == operation.error


class LatestOnlyDriver(LocalDriver):
    """The local engine with Cinder's limits."""

    reverts_only_latest = True
    reverts_attached = False


@pytest.fixture
def latest_only(settings: Any, storage_root: Path) -> None:
    settings.STORAGE = {
        "local": {"driver": f"{__name__}.{LatestOnlyDriver.__name__}", "options": {"root": str(storage_root)}}
    }


def test_where_only_the_latest_can_be_restored_an_earlier_one_is_refused_in_advance(
    latest_only: None, member: Membership, volume: Volume, client_for: Callable[..., Client]
) -> None:
    client = client_for(member.user)

    def offered(snapshot: Snapshot) -> bool:
        restore = reverse("snapshots:restore", args=[snapshot.pk])
        page = client.get(reverse("snapshots:snapshot", args=[snapshot.pk])).text
        menu = client.get(reverse("snapshots:menu", args=[snapshot.pk]), headers={"HX-Request": "true"}).text
        links = {f'href="{restore}"' in html for html in (page, menu)}
        assert len(links) == 1, "the pages disagree"
        return links.pop()

    first = services.request_snapshot(source=volume, name="first", user=member.user)
    run_active_operations()
    assert offered(first)
    restores.request_restore(snapshot=first, user=member.user, confirmation=volume.name)
    run_active_operations()
    restore = Operation.objects.get(kind=Operation.Kind.RESTORE)
    assert restore.state == Operation.State.SUCCEEDED, "a safety snapshot is no later one"
    safety = restore.safety_snapshot
    assert safety and offered(first) and not offered(safety)

    second = services.request_snapshot(source=volume, name="second", user=member.user)
    run_active_operations()
    assert offered(second) and not offered(first) and not offered(safety)
    for snapshot, reason in ((first, "only to the latest"), (safety, "made before a restore")):
        with pytest.raises(InvalidState, match=reason):
            restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
        for name in ("snapshot", "restore"):
            page = client.get(reverse(f"snapshots:{name}", args=[snapshot.pk])).content.decode()
            assert reason in page and "Undo restore</a>" not in page

    services.request_deletion(snapshot=second, user=member.user, even_if_last=True)
    run_active_operations()
    assert offered(first)


def test_a_restore_that_needs_a_detached_volume_is_refused_in_advance(
    latest_only: None, member: Membership, client_for: Callable[..., Client]
) -> None:
    volume = VolumeFactory(project=member.project, attached_stopped=True)
    snapshot = SnapshotFactory(volume=volume)
    sell_everywhere()
    restores.check_restorable(snapshot)  # of a machine that isn't in a cloud
    VirtualMachine.objects.update(backend_ref="0a1b", backend_project="shop")
    page = reverse("snapshots:restore", args=[snapshot.pk])
    assert f"“{volume.name}” is attached to" in client_for(member.user).get(page).content.decode()

    vm_snapshot = VMSnapshotFactory(vm=VirtualMachine.objects.get(), ready_at=timezone.now() - timedelta(hours=1))
    DiskImageFactory(snapshot=vm_snapshot, volume=volume, volume_name=volume.name)
    assert "restores only detached volumes" in restores.irreversible_reasons([vm_snapshot])[vm_snapshot.pk]
    Volume.objects.update(vm=None)
    restores.check_restorable(Snapshot.objects.get(pk=snapshot.pk))


@pytest.mark.parametrize("name", ["Night\u2060ly", "\u202eylthgiN", "\u3164", "\ufeffNightly"])
def test_a_name_that_differs_only_by_invisible_characters_is_refused(snapshot: Snapshot, name: str) -> None:
    with pytest.raises(NameTaken, match="can't be displayed"):
        checks.check_name(snapshot.customer_id, name)
    for joined in "Nightly\u200d", "Night\u200bly":
        with pytest.raises(NameTaken, match="Another snapshot has the name"):
            checks.check_name(snapshot.customer_id, joined)
    checks.check_name(snapshot.customer_id, "ညစဉ်\u200bမိတ္တူ")  # Burmese as typed on some keyboards
