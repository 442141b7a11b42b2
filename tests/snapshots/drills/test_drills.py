"""Restore drills: what they prove, what they find, and that nothing of them remains."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role, User
from cng_portal.notifications.models import Notification
from snapshots import tasks
from snapshots.drills.services import remove_leftovers, request_drill
from snapshots.errors import InvalidState
from snapshots.files import catalogue, cataloguing
from snapshots.maintenance.fsck import check_location
from snapshots.models import DiskImage, Drill, DrillCheck, DrillPlan, Operation
from snapshots.operations import cancellation
from snapshots.services import request_deletion, retry
from snapshots.storage.local.driver import LocalDriver
from snapshots.storage.registry import get_driver
from tests.factories import ProjectFactory, UserFactory
from tests.snapshots.disks import flip_byte
from tests.snapshots.drills.records import record_drill
from tests.snapshots.files.conftest import capture, project  # noqa: F401  # fixtures
from tests.snapshots.files.images import MIB, blank, make_gpt, need, run

pytestmark = pytest.mark.django_db
Capture = Callable[[Path], DiskImage]
Kind, Outcome = DrillCheck.Kind, DrillCheck.Outcome
PASSED, FAILED, SKIPPED = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED


@pytest.fixture
def member(project: Project) -> User:  # noqa: F811
    return UserFactory(member_of=project)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with an ext4 file system and a few files, which tests only read."""
    need("mke2fs", "e2fsck")
    tree = tmp_path_factory.mktemp("tree")
    (tree / "folder").mkdir()
    for name in ("plain.txt", "folder/other.txt"):
        (tree / name).write_text("hello")
    path = tree.parent / "drilled.img"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, blank(path, 16 * MIB))
    return path


@pytest.fixture
def disk(image: Path, capture: Capture) -> DiskImage:  # noqa: F811
    """A disk with an ext4 file system, verified and with a list of its files."""
    disk = capture(image)
    prepare(disk)
    return disk


@pytest.fixture
def plain(capture: Capture, tmp_path: Path) -> DiskImage:  # noqa: F811
    """A disk without a file system, which takes no time."""
    (tmp_path / "empty.img").write_bytes(b"")
    return capture(tmp_path / "empty.img")


def prepare(disk: DiskImage) -> None:
    info = get_driver(disk.snapshot.location).verify_snapshot(disk.ref)
    DiskImage.objects.filter(pk=disk.pk).update(checksum=info.checksum, verified_at=info.verified_at)
    disk.refresh_from_db()
    listed = cataloguing.list_files(disk.snapshot, lambda done, total: None)
    cataloguing.record_listed(disk.snapshot, listed, timezone.now())


def run_drill(disk: DiskImage, user: User) -> Drill:
    drill = request_drill(snapshot=disk.snapshot, user=user)
    assert drill.operation_id
    tasks.run_operation(drill.operation_id)
    drill.refresh_from_db()
    return drill


def outcomes(drill: Drill) -> dict[str, str]:
    checks = DrillCheck.objects.filter(drilled__drill=drill)
    return {f"{check.kind} {check.part}".strip(): check.outcome for check in checks}


def volume_files(root: Path, disk: DiskImage) -> list[str]:
    return sorted(os.listdir(root / disk.snapshot.location_id / "volumes"))


@pytest.mark.slow
def test_a_healthy_disk_is_proven_and_nothing_of_the_drill_remains(
    disk: DiskImage, member: User, storage_root: Path
) -> None:
    drill = run_drill(disk, member)
    assert drill.result == Drill.Result.PROVEN
    assert outcomes(drill) == dict.fromkeys(["restore", "checksum", "files", "file_system"], PASSED)
    assert drill.restored_bytes == disk.size_gb * 1024**3 and drill.seconds
    assert drill.disks.get().removed_at
    assert volume_files(storage_root, disk) == [f"{disk.volume_id}.img"]
    assert not Notification.objects.exists()


@pytest.mark.slow
def test_a_flipped_byte_is_found_and_the_snapshot_is_marked_as_damaged(
    disk: DiskImage, member: User, storage_root: Path
) -> None:
    folder = storage_root / disk.snapshot.location_id / "snapshots" / str(disk.pk)
    flip_byte(folder / "disk.img", at=MIB)
    drill = run_drill(disk, member)
    assert drill.result == Drill.Result.FAILED
    assert outcomes(drill) == {"restore": PASSED, "checksum": FAILED}
    disk.snapshot.refresh_from_db()
    assert disk.snapshot.is_damaged
    assert drill.operation and (drill.operation.state, drill.operation.cause) == (Operation.State.FAILED, "Corrupt")
    assert "is damaged" in Notification.objects.get(user=member).title
    assert volume_files(storage_root, disk) == [f"{disk.volume_id}.img"]
    with pytest.raises(InvalidState, match="damaged"):
        request_drill(snapshot=disk.snapshot, user=member)


@pytest.mark.slow
def test_a_truncated_file_system_is_found_although_every_byte_is_as_captured(
    capture: Capture,  # noqa: F811
    member: User,
    tmp_path: Path,
) -> None:
    need("mke2fs", "e2fsck")
    image = blank(tmp_path / "truncated.img", 2 * 1024**3)
    run("mke2fs", "-q", "-F", "-t", "ext4", image)
    os.truncate(image, 1024**3)
    disk = capture(image)
    prepare(disk)
    drill = run_drill(disk, member)
    assert drill.result == Drill.Result.FAILED
    found = outcomes(drill)
    assert (found["checksum"], found["file_system"]) == (PASSED, FAILED)
    disk.snapshot.refresh_from_db()
    assert not disk.snapshot.is_damaged, "its bytes are those that were captured"
    notification = Notification.objects.get(user=member)
    assert "failed its restore drill" in notification.title and "e2fsck found errors" in notification.text
    assert notification.mail_id
    assert drill.operation and drill.operation.cause == "NotProven"


@pytest.mark.slow
def test_a_missing_file_is_found(disk: DiskImage, member: User) -> None:
    driver = get_driver(disk.snapshot.location)
    listed = driver.open_catalogue(disk.ref)
    assert listed is not None
    with catalogue.opened(listed) as opened:
        records = [record for block in opened.lines() for record in block]
        more = catalogue.SEPARATOR.join(sorted([*records, b"0/secret.txt\0f 1 2 3 644"]))
        driver.store_catalogue(disk.ref, catalogue.compress([more], opened.summary))
    drill = run_drill(disk, member)
    assert (drill.result, outcomes(drill)["files"]) == (Drill.Result.FAILED, FAILED)
    detail = DrillCheck.objects.get(drilled__drill=drill, kind=Kind.FILES).detail
    assert "1 missing, 0 more, 0 changed" in detail and "secret.txt" not in detail


@pytest.mark.slow
def test_partitions_are_checked_where_they_lie(
    image: Path,
    capture: Capture,  # noqa: F811
    member: User,
    tmp_path: Path,
) -> None:
    disk = capture(make_gpt(tmp_path / "disk.img", image))
    prepare(disk)
    drill = run_drill(disk, member)
    assert drill.result == Drill.Result.PROVEN, outcomes(drill)
    assert any(kind.startswith("file_system") and result == PASSED for kind, result in outcomes(drill).items())


@pytest.mark.slow
def test_an_empty_disk_is_proven_by_its_bytes(plain: DiskImage, member: User) -> None:
    drill = run_drill(plain, member)
    assert drill.result == Drill.Result.PROVEN
    assert outcomes(drill) == {"restore": PASSED, "checksum": PASSED, "files": SKIPPED}


def leave_volume(drill: Drill) -> str:
    """Create the temporary volume, as a worker does that dies then."""
    [drilled] = drill.disks.select_related("disk__volume", "disk__snapshot__location")
    get_driver(drilled.disk.snapshot.location).create_volume(drilled.volume_ref)
    return f"{drilled.pk}.img"


def test_the_volume_of_a_dead_worker_is_removed_once_its_drill_was_cancelled(
    plain: DiskImage, member: User, storage_root: Path
) -> None:
    drill = request_drill(snapshot=plain.snapshot, user=member)
    name = leave_volume(drill)
    location = plain.snapshot.location
    assert not [finding for finding in check_location(location) if finding.code in ("orphan", "drill-undeleted")]
    assert drill.operation
    cancellation.cancel(operation=drill.operation, user=member)
    drill.refresh_from_db()
    assert drill.result == Drill.Result.UNFINISHED
    now = timezone.now()
    assert remove_leftovers(now) == 0, "its worker may not have noticed yet"
    findings = list(check_location(location, now=now + timedelta(hours=1)))
    assert [finding.code for finding in findings if name in finding.subject] == ["drill-undeleted"]
    assert remove_leftovers(now + timedelta(hours=1)) == 1
    assert name not in volume_files(storage_root, plain)
    assert remove_leftovers(now + timedelta(hours=1)) == 0
    assert plain.snapshot.disks.exists() and get_driver(location).find_snapshot(plain.ref), "the snapshot stays"


def test_a_drill_of_a_deleted_snapshot_proves_nothing(plain: DiskImage, member: User) -> None:
    drill = request_drill(snapshot=plain.snapshot, user=member)
    type(plain.snapshot).objects.filter(pk=plain.snapshot_id).update(missing_since=timezone.now())
    assert drill.operation_id
    tasks.run_operation(drill.operation_id)
    drill.refresh_from_db()
    assert (drill.result, drill.operation.state) == (Drill.Result.UNFINISHED, Operation.State.CANCELLED)  # type: ignore[union-attr]


def test_a_snapshot_that_is_deleted_during_its_drill_has_not_failed_it(
    plain: DiskImage, member: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.RECYCLE_BIN_DAYS = 0
    drill = request_drill(snapshot=plain.snapshot, user=member)
    restore = LocalDriver.create_volume_from_snapshot

    def delete_first(driver: LocalDriver, *args: Any, **options: Any) -> None:
        request_deletion(snapshot=plain.snapshot, user=member, even_if_last=True)
        tasks.run_operation(Operation.objects.get(kind=Operation.Kind.DELETE).pk)
        restore(driver, *args, **options)

    monkeypatch.setattr(LocalDriver, "create_volume_from_snapshot", delete_first)
    assert drill.operation_id
    tasks.run_operation(drill.operation_id)
    drill.refresh_from_db()
    assert (drill.result, drill.reason) == (Drill.Result.UNFINISHED, "The snapshot was deleted while the drill ran.")
    assert drill.operation.state == Operation.State.CANCELLED and not Notification.objects.exists()  # type: ignore[union-attr]


@pytest.mark.both_databases
def test_what_a_drill_found_never_changes(plain: DiskImage, member: User) -> None:
    drill = request_drill(snapshot=plain.snapshot, user=member)
    with pytest.raises(IntegrityError), transaction.atomic():
        Drill.objects.create(snapshot=plain.snapshot)  # one at a time
    with pytest.raises(IntegrityError), transaction.atomic():
        Drill.objects.filter(pk=drill.pk).update(result=Drill.Result.PROVEN)  # without an end
    check = {"drilled": drill.disks.get(), "position": 0, "kind": Kind.RESTORE, "outcome": FAILED, "detail": "x"}
    DrillCheck.objects.create(**check)
    now = timezone.now()
    Drill.objects.filter(pk=drill.pk).update(result=Drill.Result.FAILED, started_at=now, finished_at=now)
    for change in [
        lambda: Drill.objects.filter(pk=drill.pk).update(result=Drill.Result.PROVEN),
        lambda: DrillCheck.objects.update(outcome=PASSED),
        lambda: DrillCheck.objects.create(**check | {"position": 1}),
    ]:
        with pytest.raises(IntegrityError), transaction.atomic():
            change()
    drill.disks.update(removed_at=now)
    Drill.objects.filter(pk=drill.pk).update(requested_by=None, operation=None)


def test_a_second_request_returns_the_active_drill(plain: DiskImage, member: User) -> None:
    first = request_drill(snapshot=plain.snapshot, user=member)
    assert request_drill(snapshot=plain.snapshot, user=member) == first
    assert Operation.objects.filter(kind=Operation.Kind.DRILL).count() == 1


def test_a_failed_drill_is_started_anew_not_retried(plain: DiskImage, member: User) -> None:
    operation, now = request_drill(snapshot=plain.snapshot, user=member).operation, timezone.now()
    assert operation
    Drill.objects.update(result=Drill.Result.FAILED, started_at=now, finished_at=now)
    Operation.objects.filter(pk=operation.pk).update(state=Operation.State.FAILED, finished_at=now)
    with pytest.raises(InvalidState, match="nothing to retry"):
        retry(operation=operation, user=member)
    assert request_drill(snapshot=plain.snapshot, user=member).operation != operation


@pytest.fixture
def browser(client: Client, member: User) -> Client:
    client.force_login(member)
    return client


def test_a_drill_is_requested_on_the_snapshots_page(browser: Client, plain: DiskImage, storage_root: Path) -> None:
    page = browser.get(reverse("snapshots:snapshot", args=[plain.snapshot_id])).content.decode()
    action = reverse("snapshots:request_drill", args=[plain.snapshot_id])
    assert action in page and "Never proven" in page
    assert "This is free" in browser.get(action).content.decode()
    response = browser.post(action, follow=True)
    drill = Drill.objects.get()
    assert response.redirect_chain[-1][0] == reverse("snapshots:drill", args=[drill.pk])
    assert "Waiting until no other work waits" in response.content.decode()
    tasks.run_operation(drill.operation_id)  # type: ignore[arg-type]
    page = browser.get(reverse("snapshots:drill", args=[drill.pk])).content.decode()
    assert "Proven restorable" in page and "Every byte is as captured" in page and "What was not checked" in page
    page = browser.get(reverse("snapshots:snapshot", args=[plain.snapshot_id])).content.decode()
    assert reverse("snapshots:drill", args=[drill.pk]) in page and "Never proven" not in page


def test_strangers_see_no_drill_and_viewers_start_none(client: Client, plain: DiskImage, member: User) -> None:
    drill = request_drill(snapshot=plain.snapshot, user=member)
    addresses = [
        reverse("snapshots:drill", args=[drill.pk]),
        reverse("snapshots:request_drill", args=[plain.snapshot_id]),
    ]
    client.force_login(UserFactory(member_of=ProjectFactory()))
    assert [client.get(address).status_code for address in addresses] == [404, 404]
    client.force_login(UserFactory(member_of=plain.snapshot.project, member_of__role=Role.VIEWER))
    assert [client.get(address).status_code for address in addresses] == [200, 403]


def test_a_damaged_snapshot_says_why_it_has_no_drill(browser: Client, plain: DiskImage) -> None:
    type(plain.snapshot).objects.filter(pk=plain.snapshot_id).update(damaged_at=timezone.now())
    address = reverse("snapshots:request_drill", args=[plain.snapshot_id])
    response = browser.post(address)
    assert response.status_code == 200 and "would prove nothing" in response.content.decode()
    assert not Drill.objects.exists()


def test_cancelling_ends_a_drill(browser: Client, plain: DiskImage, member: User, settings: Any) -> None:
    drill = request_drill(snapshot=plain.snapshot, user=member)
    browser.post(reverse("snapshots:cancel", args=[drill.operation_id]))
    page = browser.get(reverse("snapshots:drill", args=[drill.pk])).content.decode()
    assert "proves nothing" in page and "It was cancelled." in page
    assert not Operation.objects.filter(kind=Operation.Kind.CLEAN_UP).exists()


def test_the_support_desk_reads_drills_and_plans(
    client_for: Callable[..., Client], plain: DiskImage, member: User
) -> None:
    drill = record_drill(plain.snapshot)
    plan = DrillPlan.objects.create(volume=plain.volume, interval="weekly", next_at=timezone.now())
    desk = client_for(UserFactory(admin=True))
    listed = desk.get(reverse("admin:snapshots_drill_changelist"), {"q": plain.snapshot.name}).text
    assert str(drill.pk) in listed and "Proven restorable" in listed
    page = desk.get(reverse("admin:snapshots_drill_change", args=[drill.pk])).text
    assert "48,211 files and folders" in page and "Partition 2" in page and 'name="_save"' not in page
    assert desk.post(reverse("admin:snapshots_drill_delete", args=[drill.pk])).status_code == 403
    assert plain.volume.name in desk.get(reverse("admin:snapshots_drillplan_changelist")).text
    assert "Every week" in desk.get(reverse("admin:snapshots_drillplan_change", args=[plan.pk])).text
