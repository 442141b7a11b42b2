"""A damaged snapshot: detected by every full read, never used without an override, free of charge, and notified."""

from collections.abc import Callable
from datetime import timedelta
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Volume
from cng_portal.notifications.models import Notification
from snapshots import restores, services
from snapshots.backups.runs import settle_runs
from snapshots.backups.schedules import run_now
from snapshots.errors import DamagedSnapshot, WrongOverride
from snapshots.maintenance import fsck
from snapshots.models import BackupRun, DiskImage, Operation, Snapshot, State
from snapshots.operations import lifecycle
from snapshots.tasks import run_operation
from snapshots.usage_check import check_usage
from snapshots.volumes import new_volumes
from tests.factories import BackupScheduleFactory, MembershipFactory, VirtualMachineFactory, VolumeFactory
from tests.smtp import sent_mails
from tests.snapshots.disks import flip_byte, put_volume, run_active_operations, sell_everywhere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

BEFORE, AFTER = b"before " * 3000, b"after! " * 3000
MIDDLE = 300 * 1024**2


@pytest.fixture(params=["copying", "cloning"])
def storage_root(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> Path:
    """Storage on a file system that copies, and on one that clones."""
    root = request.getfixturevalue("cloning_root") if request.param == "cloning" else tmp_path / "storage"
    settings.STORAGE = {"local": {"driver": "snapshots.storage.local.LocalDriver", "options": {"root": str(root)}}}
    return root


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(project=member.project, name="web-01-root")
    sell_everywhere()
    put_volume(storage_root, volume, BEFORE, at=MIDDLE)
    return volume


@pytest.fixture
def snapshot(volume: Volume, member: Membership, storage_root: Path) -> Snapshot:
    """A ready snapshot with a checksum, whose volume has changed since, without a recent verification."""
    snapshot = services.request_snapshot(source=volume, name="monday", user=member.user)
    work()
    write(storage_root, volume, AFTER)
    forget_verifications(storage_root)
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    return snapshot


def work() -> None:
    """Run operations, including those that follow, such as the checksum of a clone."""
    while Operation.objects.active().exists():
        run_active_operations()


def forget_verifications(root: Path) -> None:
    two_days_ago = timezone.now() - timedelta(days=2)
    DiskImage.objects.update(verified_at=two_days_ago)
    for manifest in root.glob("*/snapshots/*/manifest.json"):
        text = manifest.read_text()
        start = text.index('"verified_at": ')
        manifest.write_text(f'{text[:start]}"verified_at": "{two_days_ago}"{text[text.index(",", start) :]}')


def disk_of(root: Path, snapshot: Snapshot, position: int = 0) -> Path:
    disk = snapshot.disks.get(position=position)
    return root / snapshot.location_id / "snapshots" / str(disk.pk) / "disk.img"


def image_of(root: Path, volume: Volume) -> Path:
    return root / volume.location_id / "volumes" / f"{volume.pk}.img"


def write(root: Path, volume: Volume, data: bytes) -> None:
    with open(image_of(root, volume), "r+b") as image:
        image.seek(MIDDLE)
        image.write(data)


def read(root: Path, volume: Volume) -> bytes:
    with open(image_of(root, volume), "rb") as image:
        image.seek(MIDDLE)
        return image.read(len(BEFORE))


def restore(snapshot: Snapshot, member: Membership, **fields: Any) -> Operation:
    operation = restores.request_restore(
        snapshot=snapshot, user=member.user, confirmation=snapshot.source.name, **fields
    )
    work()
    operation.refresh_from_db()
    return operation


def copy(snapshot: Snapshot, member: Membership, **fields: Any) -> Operation:
    operation = new_volumes.request_new_volume(
        snapshot=snapshot, user=member.user, project=member.project, name="copy", size_gb=1, **fields
    )
    work()
    operation.refresh_from_db()
    return operation


def verify(snapshot: Snapshot, member: Membership) -> Operation:
    operation = services.request_verification(snapshot=snapshot, user=member.user)
    work()
    operation.refresh_from_db()
    return operation


def check_everything(findings: set[str]) -> None:
    """Check fsck's findings, and that every bill is correct."""
    codes = {
        finding.code
        for location in {location.location for location in Snapshot.objects.all()}
        for finding in fsck.check_location(location)
    }
    assert codes == findings
    output = StringIO()
    call_command("verify_billing", stdout=output)
    assert "are what they should be" in output.getvalue()


USES = {"restore": restore, "new volume": copy, "verification": verify}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_one_flipped_byte_stops_every_use_and_ends_the_bill(
    use: Callable[..., Operation],
    storage_root: Path,
    snapshot: Snapshot,
    volume: Volume,
    member: Membership,
) -> None:
    colleague = MembershipFactory(project=member.project)
    MembershipFactory(project=member.project, role=Role.VIEWER)
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    inode = image_of(storage_root, volume).stat().st_ino

    operation = use(snapshot, member)

    assert operation.state == Operation.State.FAILED
    assert (operation.cause, "checksum does not match" in operation.error) == ("Corrupt", True)
    assert read(storage_root, volume) == AFTER
    assert image_of(storage_root, volume).stat().st_ino == inode
    created = Volume.objects.exclude(pk=volume.pk)
    assert not any(image_of(storage_root, new_volume).exists() for new_volume in created)

    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    assert snapshot.damaged_at == operation.finished_at
    assert "checksum does not match" in snapshot.disks.get().damage
    assert UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == snapshot.damaged_at
    assert Activity.objects.get(action="snapshot.damaged").actor is None
    check_everything({"damaged"})

    notices = Notification.objects.filter(title="“monday” is damaged")
    assert {notice.user for notice in notices} == {member.user, colleague.user}
    assert not Notification.objects.exclude(title="“monday” is damaged").exists()
    assert "It costs nothing from" in notices[0].text
    assert "Take a new snapshot of “web-01-root” now, then delete this one." in notices[0].text
    assert {(mail.subject, *mail.to) for mail in sent_mails()} == {
        ("1CNG: “monday” is damaged", member.user.email),
        ("1CNG: “monday” is damaged", colleague.user.email),
    }


def test_a_damaged_snapshot_is_used_only_by_typing_its_name(
    storage_root: Path, snapshot: Snapshot, volume: Volume, member: Membership
) -> None:
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    verify(snapshot, member)
    for use in restore, copy:
        with pytest.raises(DamagedSnapshot, match="“monday” is damaged"):
            use(snapshot, member)
        with pytest.raises(WrongOverride, match="Type “monday”"):
            use(snapshot, member, override="tuesday")
    assert read(storage_root, volume) == AFTER

    rotten = bytes([BEFORE[0] ^ 1]) + BEFORE[1:]
    operation = copy(snapshot, member, override=" MONDAY ")
    assert (operation.state, operation.unchecked) == (Operation.State.SUCCEEDED, True)
    assert operation.volume
    assert read(storage_root, operation.volume) == rotten
    assert restore(snapshot, member, override="monday").state == Operation.State.SUCCEEDED
    assert read(storage_root, volume) == rotten
    snapshot.refresh_from_db()
    assert snapshot.is_damaged


def test_damage_found_between_the_request_and_the_work_is_refused(
    storage_root: Path, snapshot: Snapshot, volume: Volume, member: Membership
) -> None:
    operation = restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    Snapshot.objects.filter(pk=snapshot.pk).update(damaged_at=timezone.now())
    work()
    operation.refresh_from_db()
    assert operation.state == Operation.State.FAILED
    assert "is damaged. Nothing was changed." in operation.error
    assert read(storage_root, volume) == AFTER


def test_repeated_damage_is_notified_only_to_the_requester(
    storage_root: Path, snapshot: Snapshot, member: Membership
) -> None:
    colleague = MembershipFactory(project=member.project)
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    verify(snapshot, member)
    snapshot.refresh_from_db()
    found_at = snapshot.damaged_at
    verify(snapshot, colleague)
    snapshot.refresh_from_db()
    assert snapshot.damaged_at == found_at
    notices = Notification.objects.filter(title="“monday” is damaged")
    assert [notices.filter(user=reader.user).count() for reader in (member, colleague)] == [1, 2]


def test_a_snapshot_that_a_user_verifies_as_intact_is_charged_again(
    storage_root: Path, snapshot: Snapshot, volume: Volume, member: Membership
) -> None:
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    verify(snapshot, member)
    # So long ago that the paid hour is over.
    ready_at = timezone.now() - timedelta(hours=3)
    Snapshot.objects.filter(pk=snapshot.pk).update(ready_at=ready_at)
    UsageSegment.objects.update(started_at=ready_at, ended_at=ready_at + timedelta(hours=1))
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)

    operation = verify(snapshot, member)

    assert operation.state == Operation.State.SUCCEEDED
    snapshot.refresh_from_db()
    assert (snapshot.damaged_at, snapshot.disks.get().damage) == (None, "")
    free, charged = UsageSegment.objects.filter(resource_id=snapshot.pk).order_by("started_at")
    assert (charged.started_at, charged.ended_at) == (operation.finished_at, None)
    notice = Notification.objects.get(title="“monday” is no longer damaged")
    assert notice.user == member.user
    assert "It is charged again from" in notice.text
    check_everything(set())
    assert restore(snapshot, member).state == Operation.State.SUCCEEDED
    assert read(storage_root, volume) == BEFORE


def test_an_unrequested_read_never_clears_the_damage(
    storage_root: Path, snapshot: Snapshot, member: Membership
) -> None:
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    verify(snapshot, member)
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    lifecycle.create_operation(kind=Operation.Kind.VERIFY, snapshot=snapshot)
    work()
    snapshot.refresh_from_db()
    assert snapshot.is_damaged
    assert snapshot.disks.get().damage
    check_everything({"damaged"})


def test_fsck_marks_what_it_finds_and_clears_what_matches_again(
    storage_root: Path, snapshot: Snapshot, member: Membership
) -> None:
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    [finding] = fsck.check_location(snapshot.location, read=True)
    assert finding.code == "corrupt"
    assert finding.repair and finding.repair()
    assert Notification.objects.get().title == "“monday” is damaged"
    check_everything({"damaged"})

    [finding] = fsck.check_location(snapshot.location)
    assert finding.repair and not finding.repair(), "it is still damaged"
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    assert finding.repair()
    snapshot.refresh_from_db()
    assert not snapshot.is_damaged
    check_everything(set())


def test_fsck_ends_the_charge_of_a_damaged_snapshot(snapshot: Snapshot) -> None:
    found_at = timezone.now()
    Snapshot.objects.filter(pk=snapshot.pk).update(damaged_at=found_at)
    [finding] = fsck.check_location(snapshot.location)
    assert finding.code == "charged"
    assert finding.repair and finding.repair()
    assert UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == found_at
    assert not list(fsck.check_location(snapshot.location))


def test_all_disks_of_a_machine_are_verified_before_the_first_is_written(
    storage_root: Path, member: Membership
) -> None:
    vm = VirtualMachineFactory(project=member.project, name="db-01", stopped=True)
    sell_everywhere(kind=ServiceKind.VM_SNAPSHOT)
    disks = [
        VolumeFactory(project=member.project, location=vm.location, vm=vm, position=number, name=f"disk-{number}")
        for number in range(3)
    ]
    for disk in disks:
        put_volume(storage_root, disk, BEFORE, at=MIDDLE)
    vm_snapshot = services.request_snapshot(source=vm, name="machine", user=member.user)
    work()
    for disk in disks:
        write(storage_root, disk, AFTER)
    forget_verifications(storage_root)
    flip_byte(disk_of(storage_root, vm_snapshot, 2), MIDDLE)

    vm_snapshot.refresh_from_db()
    operation = restore(vm_snapshot, member)

    assert operation.state == Operation.State.FAILED
    assert [read(storage_root, disk) for disk in disks] == [AFTER] * 3
    vm_snapshot.refresh_from_db()
    assert vm_snapshot.is_damaged
    assert [bool(disk.damage) for disk in vm_snapshot.disks.order_by("position")] == [False, False, True]
    check_everything({"damaged"})

    flip_byte(disk_of(storage_root, vm_snapshot, 2), MIDDLE)
    verify(vm_snapshot, member)
    vm_snapshot.refresh_from_db()
    assert restore(vm_snapshot, member).state == Operation.State.SUCCEEDED
    assert [read(storage_root, disk) for disk in disks] == [BEFORE] * 3


def test_disks_read_by_a_restore_count_as_verified(
    storage_root: Path, snapshot: Snapshot, volume: Volume, member: Membership
) -> None:
    before = timezone.now()
    assert restore(snapshot, member).state == Operation.State.SUCCEEDED
    assert read(storage_root, volume) == BEFORE
    disk = snapshot.disks.get()
    assert disk.verified_at
    assert disk.verified_at >= before
    assert disk.checksum


def test_damage_found_after_the_deletion_was_accepted_changes_nothing(
    storage_root: Path, snapshot: Snapshot, member: Membership
) -> None:
    operation = services.request_verification(snapshot=snapshot, user=member.user)
    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    work()
    operation.refresh_from_db()
    snapshot.refresh_from_db()
    assert operation.state == Operation.State.FAILED
    assert (snapshot.state, snapshot.damaged_at) == (State.DELETED, None)
    assert UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == snapshot.delete_requested_at


def test_a_damaged_snapshot_can_be_deleted(storage_root: Path, snapshot: Snapshot, member: Membership) -> None:
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    verify(snapshot, member)
    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    work()
    snapshot.refresh_from_db()
    assert snapshot.state == State.DELETED
    assert UsageSegment.objects.get(resource_id=snapshot.pk).ended_at == snapshot.damaged_at
    check_everything(set())
    assert list(check_usage(timezone.now())) == []


def test_a_damaged_backup_is_notified_by_its_unfinished_run(storage_root: Path, member: Membership) -> None:
    vm = VirtualMachineFactory(project=member.project, name="db-01")
    sell_everywhere(kind=ServiceKind.VM_BACKUP)
    put_volume(storage_root, VolumeFactory(project=member.project, location=vm.location, vm=vm), BEFORE, at=MIDDLE)
    run = run_now(schedule=BackupScheduleFactory(vm=vm), user=member.user)
    [capture] = Operation.objects.active()
    run_operation(capture.pk)
    flip_byte(disk_of(storage_root, run.snapshot), MIDDLE)
    if not DiskImage.objects.get().checksum:  # a clone has no checksum before it is read, so nothing can be found
        return
    work()
    settle_runs(timezone.now())
    run.refresh_from_db()
    assert run.state == BackupRun.State.WAITING
    assert "found it damaged, so it was deleted" in run.reason
    assert Notification.objects.get().title == "The backup of db-01 failed and will be retried"
    assert UsageSegment.objects.get().ended_at is not None


@pytest.fixture
def client(member: Membership, client_for: Callable[..., Client]) -> Client:
    return client_for(member.user)


def page(client: Client, name: str, snapshot: Snapshot) -> str:
    return unescape(client.get(reverse(f"snapshots:{name}", args=[snapshot.pk])).content.decode())


def test_pages_show_the_damage_and_require_typing_the_name(
    storage_root: Path, snapshot: Snapshot, volume: Volume, member: Membership, client: Client
) -> None:
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    verify(snapshot, member)

    text = page(client, "snapshot", snapshot)
    assert "This snapshot is damaged" in text
    assert "It can be restored only if you accept that the data may be wrong." in text
    assert "It costs nothing." in text
    listed = unescape(client.get(reverse("snapshots:volume_snapshots")).content.decode())
    assert "Damaged" in listed
    assert "K 0.40" not in listed
    for name in "restore", "new_volume":
        text = page(client, name, snapshot)
        assert "This snapshot is damaged, so restored data may be wrong." in text
        assert "Type the snapshot's name, “monday”, to use it anyway" in text
    assert "costs K 0.40 an hour from then on" in page(client, "verify", snapshot)

    url = reverse("snapshots:restore", args=[snapshot.pk])
    for override, message in {"": "that you accept damaged data", "other": "That is not the snapshot's name"}.items():
        answer = client.post(url, {"confirmation": volume.name, "override": override})
        assert message in unescape(answer.content.decode())
    assert not Operation.objects.filter(kind=Operation.Kind.RESTORE).exists()
    client.post(url, {"confirmation": volume.name, "override": "monday"})
    assert Operation.objects.get(kind=Operation.Kind.RESTORE).unchecked


def test_a_user_can_restore_a_clone_without_verification(
    storage_root: Path, snapshot: Snapshot, volume: Volume, member: Membership, client: Client
) -> None:
    url = reverse("snapshots:restore", args=[snapshot.pk])
    offered = "Restore without checking" in page(client, "restore", snapshot)
    assert offered == ("Create without checking" in page(client, "new_volume", snapshot))
    is_cloning = storage_root.parts[-2] == "mounted"
    assert offered == is_cloning
    if is_cloning:
        answer = client.post(url, {"confirmation": volume.name, "override": "other"})
        assert "That is not the snapshot's name" in unescape(answer.content.decode())
        client.post(url, {"confirmation": volume.name, "override": "monday"})
        work()
        assert read(storage_root, volume) == BEFORE
        assert snapshot.disks.get().verified_at < timezone.now() - timedelta(days=1)
        verify(snapshot, member)
        assert "Restore without checking" not in page(client, "restore", snapshot)


def test_damage_that_is_found_while_the_form_is_open_is_explained(
    snapshot: Snapshot, volume: Volume, member: Membership, client: Client
) -> None:
    DiskImage.objects.update(verified_at=timezone.now())
    with pytest.raises(DamagedSnapshot):
        Snapshot.objects.filter(pk=snapshot.pk).update(damaged_at=timezone.now())
        restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    url = reverse("snapshots:new_volume", args=[snapshot.pk])
    answers = {"name": "copy", "size_gb": "1", "project": member.project_id}
    assert "accept damaged data" in unescape(client.post(url, answers).content.decode())


def test_a_volume_whose_only_snapshot_is_damaged_is_not_protected(
    storage_root: Path, snapshot: Snapshot, member: Membership, client: Client
) -> None:
    url = reverse("snapshots:volumes")
    assert "web-01-root" not in client.get(url, {"show": "unprotected"}).content.decode()
    flip_byte(disk_of(storage_root, snapshot), MIDDLE)
    verify(snapshot, member)
    assert "web-01-root" in client.get(url, {"show": "unprotected"}).content.decode()


def test_a_damaged_snapshot_does_not_shorten_a_gap(
    storage_root: Path, snapshot: Snapshot, volume: Volume, client: Client
) -> None:
    url = reverse("snapshots:volume", args=[volume.pk])
    assert "None of them can be restored." not in client.get(url).content.decode()
    Snapshot.objects.filter(pk=snapshot.pk).update(damaged_at=timezone.now())
    page = client.get(url).content.decode()
    assert "None of them can be restored." in page
    assert "1 failed or damaged" in page
