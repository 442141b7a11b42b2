"""`manage.py fsck` finds every kind of damage, and repairs those with only one correct outcome."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from blake3 import blake3
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from django_tasks_db.models import DBTaskResult

from billing.models import UsageSegment
from billing.usage import close_segment
from cng_portal.accounts.models import Membership
from cng_portal.common import batches
from cng_portal.inventory.models import Volume
from snapshots import restores, services
from snapshots.maintenance import fsck
from snapshots.maintenance.findings import EXPLANATIONS
from snapshots.models import DiskImage, Operation, Snapshot, State
from snapshots.storage.contract import GIB
from snapshots.storage.local.locking import hold_names
from snapshots.volumes import new_volumes
from tests.factories import LocationFactory, MembershipFactory, OperationFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import put_volume, run_active_operations, sell_everywhere

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]

LONG_AGO = timezone.now() - timedelta(hours=1)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    put_volume(storage_root, volume, b"precious" * 1000)
    return volume


@pytest.fixture
def snapshot(volume: Volume, member: Membership) -> Snapshot:
    """A ready and charged snapshot of a healthy portal."""
    snapshot = services.request_snapshot(source=volume, name="monday", user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    return snapshot


@pytest.fixture
def folder(snapshot: Snapshot, storage_root: Path) -> Path:
    return storage_root / snapshot.location_id / "snapshots" / str(snapshot.pk)


def find(**options: object) -> list[str]:
    """Return the codes of all findings, in order."""
    locations = {snapshot.location for snapshot in Snapshot.objects.all()} or {LocationFactory()}
    return sorted(finding.code for location in locations for finding in fsck.check_location(location, **options))


def run(**options: object) -> str:
    output = StringIO()
    with pytest.raises(CommandError):
        call_command("fsck", stdout=output, **options)
    return output.getvalue()


def age(path: Path) -> None:
    os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))


def test_a_healthy_portal_has_no_findings(snapshot: Snapshot, member: Membership) -> None:
    new_volumes.request_new_volume(
        snapshot=snapshot, user=member.user, project=member.project, name="copy", size_gb=2, disk=None
    )
    second = services.request_snapshot(source=snapshot.volume, name="tuesday", user=member.user)
    run_active_operations()
    second.refresh_from_db()
    services.request_deletion(snapshot=second, user=member.user, even_if_last=True)
    run_active_operations()
    output = StringIO()
    call_command("fsck", read=True, stdout=output)
    assert output.getvalue() == "Portal, storage and billing agree.\n"


def test_a_ready_snapshot_without_data_is_reported_and_never_repaired(snapshot: Snapshot, folder: Path) -> None:
    shutil.rmtree(folder)
    text = run(repair=True)
    assert f"missing {snapshot.location_id} Volume snapshot “monday” ({snapshot.pk})" in text
    assert "A Ready snapshot has no data" in text and "copy the folder back" in text
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    assert find() == ["missing"]


def test_a_volume_without_a_disk_is_reported(snapshot: Snapshot, storage_root: Path) -> None:
    (storage_root / snapshot.location_id / "volumes" / f"{snapshot.volume_id}.img").unlink()
    assert find() == ["volume-missing"]


@pytest.mark.parametrize("part", ["disk.img", "manifest.json"])
def test_a_snapshot_of_which_a_part_is_missing_is_corrupt(folder: Path, part: str) -> None:
    (folder / part).unlink()
    assert find() == ["corrupt"]


@pytest.mark.parametrize(
    "value",
    [
        {"group": None},
        {"group": [5]},
        {"checksum": 5},
        {"blake3": ""},
        {"format": 1},
        {"format": 3},
        {"allocated_bytes": "much"},
    ],
)
def test_a_manifest_that_the_portal_did_not_write_is_corrupt(folder: Path, value: dict[str, object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | value))
    assert find() == ["corrupt"]


@pytest.mark.parametrize("text", ["", "[]", "5", "[" * 100_000, '{"format": 2}', "\udcff", "{}" + " " * 2**20])
def test_a_manifest_of_junk_is_corrupt(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, errors="surrogateescape")
    assert find() == ["corrupt"]


def test_a_file_in_place_of_a_snapshot_does_not_stop_the_check(
    snapshot: Snapshot, folder: Path, storage_root: Path
) -> None:
    shutil.rmtree(folder)
    folder.write_text("what is this?")
    (storage_root / snapshot.location_id / "volumes" / f"{snapshot.volume_id}.img").unlink()
    assert sorted(find()) == ["corrupt", "volume-missing"]


def test_a_ready_snapshot_without_a_disk_row_is_reported(snapshot: Snapshot, folder: Path) -> None:
    DiskImage.objects.filter(snapshot=snapshot).delete()
    shutil.rmtree(folder)
    assert find() == ["mismatch"]


def test_an_unexpected_file_beside_the_volumes_is_reported(folder: Path) -> None:
    (folder.parent.parent / "notes.txt").write_text("mine")
    assert find() == ["foreign"]


@pytest.mark.parametrize("suffix", ["new", "old"])
def test_the_only_copy_of_what_a_row_needs_is_never_removed(
    snapshot: Snapshot, folder: Path, storage_root: Path, suffix: str
) -> None:
    """As after a restore of an older database, in which an object that was being removed is ready again."""
    hidden = folder.rename(folder.with_name(f".{folder.name}.{suffix}"))
    volume = storage_root / snapshot.location_id / "volumes" / f"{snapshot.volume_id}.img"
    disk = volume.rename(volume.with_name(f".{snapshot.volume_id}.new"))
    (folder.parent / f".{uuid4()}.old").write_text("no folder at all")
    codes = ["missing", "partial", "partial", "partial", "volume-missing"]
    assert sorted(find()) == codes

    run(repair=True)
    call_command("scheduler", once=True)

    assert (hidden / "disk.img").exists() and disk.exists()
    assert sorted(find()) == ["missing", "partial", "partial", "volume-missing"]
    hidden.rename(folder)
    disk.rename(volume)
    assert find() == []


def test_a_disk_that_is_too_short_is_corrupt(folder: Path) -> None:
    os.truncate(folder / "disk.img", 4096)
    assert find() == ["corrupt"]


def test_a_manifest_of_another_snapshot_is_corrupt(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["snapshot_uuid"] = "0b7c6f52-6f0a-4c0b-9d0a-4f6c1f1f2a11"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find() == ["corrupt"]


@pytest.mark.parametrize(
    ("key", "value", "label"),
    [
        ("checksum", f"blake3-2m:{blake3(b'other').hexdigest()}", "checksum"),
        ("captured_at", "2026-01-02T03:04:05+00:00", "time of capture"),
    ],
)
def test_a_manifest_that_differs_from_the_portal_is_reported(folder: Path, key: str, value: str, label: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    text = run()
    assert text.startswith("mismatch ") and f"{label}: " in text and "in the portal" in text


def test_changed_bytes_are_found_only_with_read_and_recorded_only_with_repair(snapshot: Snapshot, folder: Path) -> None:
    with open(folder / "disk.img", "r+b") as disk:
        disk.seek(300 * 1024**2)
        disk.write(b"!")
    assert find() == []
    assert find(read=True) == ["corrupt"]
    assert not snapshot.disks.get().damage
    run(read=True, repair=True)
    assert "checksum does not match" in snapshot.disks.get().damage
    assert find() == ["damaged"], "the mark stays until a verification has read sound bytes"


def test_a_snapshot_without_a_checksum_is_read_when_repair_asks_for_it(snapshot: Snapshot, folder: Path) -> None:
    checksum = snapshot.disks.get().checksum
    DiskImage.objects.update(checksum="")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksum": None}))
    assert find() == ["unverified"]
    run(repair=True)
    assert not snapshot.disks.get().checksum, "nothing is healthy before it was read"
    assert find() == []
    run_active_operations()
    assert snapshot.disks.get().checksum == checksum
    assert find() == []


def test_unknown_objects_are_reported_and_kept(snapshot: Snapshot, folder: Path) -> None:
    orphan = folder.with_name("0b7c6f52-6f0a-4c0b-9d0a-4f6c1f1f2a11")
    shutil.copytree(folder, orphan)
    image = folder.parent.parent / "volumes" / "0b7c6f52-6f0a-4c0b-9d0a-4f6c1f1f2a12.img"
    image.write_bytes(b"whose?")
    age(image)
    age(orphan)
    (folder.parent / "notes.txt").write_text("what is this?")
    assert find() == ["foreign", "orphan", "orphan"]
    run(repair=True)
    assert orphan.exists() and image.exists()


def test_a_disk_that_has_just_been_imported_may_still_get_its_row(snapshot: Snapshot, storage_root: Path) -> None:
    image = storage_root / snapshot.location_id / "volumes" / "0b7c6f52-6f0a-4c0b-9d0a-4f6c1f1f2a12.img"
    image.write_bytes(b"new")
    image.touch()  # under faketime, only this sets the portal's time instead of the machine's
    assert find() == []


def test_incomplete_files_are_removed_unless_in_use(snapshot: Snapshot, folder: Path, storage_root: Path) -> None:
    new = folder.with_name(".0b7c6f52-6f0a-4c0b-9d0a-4f6c1f1f2a11.new")
    old = folder.with_name(f".{snapshot.pk}.old")
    image = folder.parent.parent / "volumes" / f".{snapshot.volume_id}.new"
    new.mkdir()
    old.mkdir()
    image.write_bytes(b"half")
    lock = storage_root / snapshot.location_id / ".lock"
    with hold_names(lock, exclusive=[f"volume:{snapshot.volume_id}", f"snapshot:{snapshot.pk}"]):
        assert find() == ["partial"]
    assert find() == ["partial"] * 3
    assert "Repaired." in run(repair=True)
    assert find() == []
    assert not new.exists() and not old.exists() and not image.exists()
    assert folder.exists()


def test_incomplete_files_of_an_unfinished_operation_are_not_a_finding(snapshot: Snapshot, folder: Path) -> None:
    waiting = SnapshotFactory(volume=snapshot.volume, creating=True)
    OperationFactory(snapshot=waiting, capture=True, running=True)
    folder.with_name(f".{waiting.pk}.new").mkdir()
    assert find() == []


def test_data_of_a_deleted_snapshot_is_removed_and_of_a_failed_one_reported(snapshot: Snapshot, folder: Path) -> None:
    deleted, failed = (
        SnapshotFactory(volume=snapshot.volume, deleted=True),
        SnapshotFactory(volume=snapshot.volume, failed=True),
    )
    for done_with in deleted, failed:
        shutil.copytree(folder, folder.with_name(str(done_with.pk)))
    assert find() == ["undeleted"] * 2
    run(repair=True)
    assert find() == ["undeleted"], "after a restore of an older database it may be Ready in truth"
    assert not folder.with_name(str(deleted.pk)).exists()
    assert folder.with_name(str(failed.pk)).exists() and folder.exists()


def test_the_disk_of_a_deleted_volume_and_one_of_another_size_are_reported(
    snapshot: Snapshot, storage_root: Path
) -> None:
    gone = VolumeFactory(project=snapshot.project, location=snapshot.location, gone=True)
    put_volume(storage_root, gone, b"")
    Volume.objects.filter(pk=snapshot.volume_id).update(size_gb=7)
    assert find() == ["volume-size", "volume-undeleted"]


def test_the_disk_of_a_volume_whose_deletion_was_accepted_is_removed(snapshot: Snapshot, storage_root: Path) -> None:
    at = timezone.now()
    fields = {
        "project": snapshot.project,
        "location": snapshot.location,
        "state": "deleting",
        "delete_requested_at": at,
    }
    gone, leaving = VolumeFactory(**fields, deleted_at=at), VolumeFactory(**fields)
    for each in gone, leaving:
        put_volume(storage_root, each, b"")
    assert find() == ["stuck", "volume-undeleted"]
    run(repair=True)
    run_active_operations()
    leaving.refresh_from_db()
    assert leaving.is_deleted and find() == []


def test_a_growth_that_failed_after_the_disk_had_grown_is_recorded(snapshot: Snapshot, storage_root: Path) -> None:
    volume = snapshot.volume
    assert volume
    path = storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"
    os.truncate(path, 3 * GIB)
    run(repair=True)
    assert find() == ["volume-size"], "nobody has asked for it"
    OperationFactory(kind="extend_volume", snapshot=None, volume=volume, new_size_gb=3, failed=True)
    run(repair=True)
    volume.refresh_from_db()
    assert volume.size_gb == 3 and find() == []


@pytest.mark.parametrize("replace", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir])
def test_a_volume_that_is_not_a_regular_file_is_reported(
    snapshot: Snapshot, storage_root: Path, replace: Callable[[Path], None]
) -> None:
    path = storage_root / snapshot.location_id / "volumes" / f"{snapshot.volume_id}.img"
    path.unlink()
    replace(path)
    assert find() == ["volume-size"]


def test_rows_without_an_operation_fail_and_accepted_deletions_are_requested_again(
    snapshot: Snapshot, folder: Path
) -> None:
    waiting = SnapshotFactory(volume=snapshot.volume, pending=True)
    creating = VolumeFactory(project=snapshot.project, location=snapshot.location, state=Volume.State.CREATING)
    services.request_deletion(snapshot=snapshot, user=snapshot.requested_by, even_if_last=True)
    Operation.objects.active().update(state="failed", finished_at=timezone.now())
    assert find() == ["stuck"] * 3
    run(repair=True)
    waiting.refresh_from_db()
    creating.refresh_from_db()
    assert (waiting.state, creating.state) == (State.FAILED, Volume.State.ERROR)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.DELETED and not folder.exists()
    assert find() == []


def test_a_forgotten_operation_is_enqueued(snapshot: Snapshot, member: Membership) -> None:
    services.request_verification(snapshot=snapshot, user=member.user)
    assert find() == []
    Operation.objects.active().update(not_before=LONG_AGO)
    assert find() == [], "a task is queued: no worker has come to it yet"
    DBTaskResult.objects.all().delete()
    assert find() == ["overdue"]
    run(repair=True)
    assert find() == []


def test_a_ready_snapshot_without_usage_is_reported(snapshot: Snapshot) -> None:
    close_segment(resource_id=snapshot.pk, kind=snapshot.service_kind, at=timezone.now())
    assert find() == ["not-charged"]
    run(repair=True)
    assert find() == ["not-charged"], "what a customer pays is nothing to guess"


def test_a_snapshot_charged_for_another_size_is_reported(snapshot: Snapshot) -> None:
    UsageSegment.objects.update(size_gb=50)
    assert "charged as 50 GB, it has 1" in run()


def test_usage_of_an_unusable_snapshot_is_reported_and_ended(snapshot: Snapshot) -> None:
    services.request_deletion(snapshot=snapshot, user=snapshot.requested_by, even_if_last=True)
    UsageSegment.objects.update(ended_at=None)
    assert find() == ["charged"]
    run(repair=True)
    snapshot.refresh_from_db()
    assert UsageSegment.objects.get().ended_at == snapshot.delete_requested_at
    assert find() == []


def test_an_unavailable_storage_is_reported_and_the_others_are_checked(snapshot: Snapshot, folder: Path) -> None:
    other = LocationFactory(driver="nowhere")
    shutil.rmtree(folder)
    text = run()
    assert f"unreachable {other.pk}" in text and f"missing {snapshot.location_id}" in text
    with pytest.raises(CommandError, match="No location MOON"):
        call_command("fsck", location=["MOON"])


def test_many_rows_are_read_in_pages(
    snapshot: Snapshot, folder: Path, monkeypatch: pytest.MonkeyPatch, member: Membership
) -> None:
    monkeypatch.setattr(batches, "BATCH_SIZE", 2)
    for number in range(4):
        services.request_snapshot(source=snapshot.volume, name=f"more {number}", user=member.user)
    run_active_operations()
    assert find() == []
    for path in folder.parent.iterdir():
        shutil.rmtree(path)
    assert find() == ["missing"] * 5


def test_concurrent_operations_are_not_findings(volume: Volume, member: Membership) -> None:
    """Snapshots are created and deleted continuously while fsck runs."""
    done = threading.Event()
    errors: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for number in range(12):
                snapshot = services.request_snapshot(source=volume, name=f"brief {number}", user=member.user)
                run_active_operations()
                snapshot.refresh_from_db()
                new_volumes.request_new_volume(
                    snapshot=snapshot, user=member.user, project=member.project, name=f"copy {number}", size_gb=1
                )
                run_active_operations()
                services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
                run_active_operations()
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()
            done.set()

    worker = threading.Thread(target=come_and_go)
    worker.start()
    runs, findings = 0, []
    while not done.is_set() or runs < 3:
        findings += fsck.check_location(volume.location)
        runs += 1
    worker.join()
    assert not errors
    assert findings == []
    assert runs > 5


def test_repair_skips_objects_in_use(volume: Volume, member: Membership, storage_root: Path) -> None:
    """Repeated runs with --repair find nothing and disturb no attempt, and every restore restores the captured data."""
    image = put_volume(storage_root, volume, b"")
    done = threading.Event()
    brought_back: list[bytes] = []
    errors: list[BaseException] = []

    def write(data: bytes) -> None:
        with open(image, "r+b") as disk:  # as its machine does, so that its size stays the same
            disk.write(data)

    def there_and_back() -> None:
        try:
            for number in range(6):
                write(b"round %d" % number)
                snapshot = services.request_snapshot(source=volume, name=f"round {number}", user=member.user)
                run_active_operations()
                write(b"encrypted")
                restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
                run_active_operations()
                with open(image, "rb") as file:
                    brought_back.append(file.read(7))
                services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
                run_active_operations()
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()
            done.set()

    worker = threading.Thread(target=there_and_back)
    worker.start()
    runs, reports = 0, []
    while not done.is_set():
        output = StringIO()
        try:
            call_command("fsck", repair=True, stdout=output)
        except CommandError:
            reports.append(output.getvalue())
        runs += 1
    worker.join()
    assert not errors
    assert reports == []
    assert brought_back == [b"round %d" % number for number in range(6)]
    assert not Operation.objects.exclude(state="succeeded").exists() and not Operation.objects.filter(attempt__gt=1)
    assert runs > 5


def test_an_object_recreated_meanwhile_is_not_incomplete(
    volume: Volume, member: Membership, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore has ended when its row is read, and the next one has begun when its file is."""
    image = put_volume(storage_root, volume, b"")
    draft = image.with_name(f".{volume.pk}.new")
    draft.write_bytes(b"of the first")
    assert [finding.code for finding in fsck.check_location(volume.location)] == ["partial"]

    def next_one_begins(uuid: UUID) -> bool:
        other = storage_root / "other"
        other.write_bytes(b"of the next.")
        other.replace(draft)
        return False

    monkeypatch.setattr(fsck, "is_being_worked_on", next_one_begins)
    assert list(fsck.check_location(volume.location)) == []


def test_every_finding_is_explained() -> None:
    output = StringIO()
    call_command("fsck", explain=True, stdout=output)
    for code in EXPLANATIONS:
        assert f"\n{code}: " in output.getvalue()
