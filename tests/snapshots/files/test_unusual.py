"""Unusual changes: measured on a disk whose files were really encrypted, judged by history, and what they keep."""

import random
import subprocess
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from pathlib import Path

import pytest
from django.db import IntegrityError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role, User
from cng_portal.activity.models import Activity
from snapshots.backups.retention import apply_retention
from snapshots.expiry import announce_expiring, delete_expired
from snapshots.files import catalogue, unusual
from snapshots.files.reader.commands import is_random
from snapshots.models import DeletionCause, DiskChange, Snapshot, State
from snapshots.services import request_deletion
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    DiskChangeFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.smtp import sent_mails
from tests.snapshots.files.images import blank, need, run
from tests.snapshots.files.test_catalogues import pack
from tests.snapshots.files.test_versions import MIB, file, take

DAY = timedelta(days=1)


def change(affected: int, *, files: int = 1000, unreadable: int = 0) -> DiskChange:
    return DiskChange(
        files_before=files, changed=affected, added=0, removed=0, renamed=0, sampled=100, unreadable=unreadable
    )


@pytest.mark.parametrize(
    ("new", "history", "expected"),
    [
        (change(900), [change(10)] * 4, False),  # too little history
        (change(900), [change(10)] * 5, True),
        (change(199), [change(10)] * 5, False),  # below the floor
        (change(900), [change(500)] * 30, False),  # half of it changes every time
        (change(900), [change(10)] * 27 + [change(999)] * 3, True),  # three days unlike the others hide nothing
        (change(900), [change(10)] * 26 + [change(500)] * 4, False),  # every Sunday
        (change(60, unreadable=90), [change(60, unreadable=5)] * 5, True),  # few files, but encrypted
        (change(60, unreadable=90), [change(60, unreadable=90)] * 5, False),  # photos, every day
        (change(19, files=20, unreadable=100), [change(0, files=20)] * 5, False),  # a small disk
    ],
)
def test_a_change_is_unusual_by_the_history_of_its_volume(
    new: DiskChange, history: list[DiskChange], expected: bool
) -> None:
    unusual.judge(new, history)
    assert new.is_unusual == expected


@pytest.mark.parametrize("size", [256, 1024, 4096])
def test_random_bytes_are_told_from_text(size: int) -> None:
    chance = random.Random(size)
    assert all(is_random(chance.randbytes(size)) for _time in range(200))
    words = [chance.randbytes(chance.randint(2, 9)).hex() for _word in range(500)]
    text = " ".join(chance.choice(words) for _word in range(5000)).encode()
    for data in (text, text.hex().encode(), b"\0" * size):
        assert not is_random(data[:size])
    assert not is_random(b"")


def test_counts_leave_out_folders_and_permissions_and_pair_what_was_renamed() -> None:
    old = [
        *(file(f"same-{number}", inode=number) for number in range(10)),
        file("mode", inode=20),
        file("folder", kind="d", inode=21),
        file("was", 900, inode=22),
        file("gone", inode=23),
        file("edited", inode=24),
    ]
    new = [
        *(file(f"same-{number}", inode=number) for number in range(10)),
        file("mode", inode=20, mode="600"),
        file("is", 900, inode=22),
        file("edited", 700, inode=24),
        file("new", 800, inode=25),
        file("tiny", 10, inode=26),
    ]
    summary = {"is_complete": True, "parts": [{"files": 14, "unread": 0}]}
    with catalogue.opened(pack(old, summary)) as before, catalogue.opened(pack(new, summary)) as after:
        counted, sample = unusual.count_changes(before, after)
    assert counted
    counts = (counted.added, counted.changed, counted.removed, counted.renamed, counted.affected)
    assert counts == (2, 1, 1, 1, 3)
    assert sorted(record.path for record in sample) == [b"0/edited", b"0/new"]


def test_a_sample_is_bounded_and_takes_from_everywhere() -> None:
    sample = unusual.Sample()
    for number in range(5000):
        sample.add(catalogue.parse(file(f"f{number:04}", 1000)))
    assert len(sample.files) == unusual.SAMPLE
    assert {record.path[3:4] for record in sample.files} == {b"0", b"1", b"2", b"3", b"4"}


@pytest.fixture
def user(project: Project) -> User:
    return UserFactory(member_of=project, member_of__role=Role.MEMBER)


@pytest.fixture
def client(user: User, client_for: Callable[..., Client]) -> Client:
    return client_for(user)


def make_image(path: Path, tree: Path) -> Path:
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, blank(path, 32 * MIB))
    return path


@pytest.mark.slow
@pytest.mark.django_db
def test_encrypted_files_are_called_unusual_with_their_figures(
    project: Project, storage_root: Path, tmp_path: Path, client: Client, user: User
) -> None:
    need("mke2fs", "openssl")
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(60):
        (tree / f"letter-{number:02}.txt").write_text(f"Dear customer {number},\n" + "thank you for your order.\n" * 40)
    volume = VolumeFactory(project=project, size_gb=1)
    for days_ago in range(10, 4, -1):
        snapshot = SnapshotFactory(volume=volume, ready_at=timezone.now() - days_ago * DAY)
        DiskChangeFactory(disk=snapshot.disks.get(), changed=2, files_before=60)
    before = take(volume, make_image(tmp_path / "before.img", tree), storage_root, days_ago=3)
    (tree / "letter-00.txt").write_text("Dear all,\n" * 300)
    usual = take(volume, make_image(tmp_path / "usual.img", tree), storage_root, days_ago=2)
    usual.snapshot.refresh_from_db()
    assert (usual.change.is_unusual, usual.snapshot.unusual_at) == (False, None)
    for path in sorted(tree.glob("*.txt"))[:54]:
        subprocess.run(
            ["openssl", "enc", "-aes-256-ctr", "-pass", "pass:x", "-in", path, "-out", f"{path}.locked"], check=True,
            capture_output=True,
        )  # fmt: skip
        path.unlink()
    encrypted = take(volume, make_image(tmp_path / "encrypted.img", tree), storage_root, days_ago=1)
    measured = DiskChange.objects.get(disk=encrypted)
    assert measured.previous_id == usual.pk != before.pk
    assert (measured.is_unusual, measured.removed, measured.sampled, measured.unreadable) == (True, 54, 54, 54)
    page = unescape(client.get(reverse("snapshots:snapshot", args=[encrypted.snapshot_id])).text)
    for text in ["54 of 60 files (90 %)", "Usually it is at most 3 %", "Of 54 new", "54 have unreadable content"]:
        assert text in page
    notification = user.notifications.get()
    assert notification.title == f"Unusual change in “{encrypted.snapshot.name}”"
    assert "54 of 60 files (90 %)" in notification.text
    assert "ransom" not in (page + notification.text).lower()
    assert Snapshot.objects.get(held_at__isnull=False) == usual.snapshot
    history = client.get(reverse("snapshots:volume", args=[volume.pk])).text
    assert history.count("Unusual change") == 1 and "Kept: an unusual change followed" in history


@pytest.fixture
def held(project: Project, user: User) -> Snapshot:
    """The last snapshot before an unusual one, of a schedule that keeps one."""
    schedule = BackupScheduleFactory(
        vm=None, volume=VolumeFactory(project=project, size_gb=1), project=project, retention_count=1
    )
    before, after = (
        SnapshotFactory(
            volume=schedule.volume, ready_at=timezone.now() - days_ago * DAY, disk__verified_at=timezone.now()
        )
        for days_ago in (2, 1)
    )
    for snapshot in (before, after):
        BackupRunFactory(schedule=schedule, snapshot=snapshot)
    disk = after.disks.get()
    measured = change(900, unreadable=99)
    measured.disk, measured.previous = disk, before.disks.get()
    for days_ago in range(9, 4, -1):
        old = SnapshotFactory(volume=schedule.volume, deleted=True, ready_at=timezone.now() - days_ago * DAY)
        DiskChangeFactory(disk=old.disks.get())
    unusual.record_changes(after, [measured], timezone.now())
    before.refresh_from_db()
    after.refresh_from_db()
    assert before.held_at and after.unusual_at
    return before


@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_retention_keeps_the_last_snapshot_before_an_unusual_one_until_a_member_decides(
    held: Snapshot, user: User
) -> None:
    schedule = held.run.schedule
    apply_retention(schedule, timezone.now())
    held.refresh_from_db()
    assert held.state == State.READY
    for cause in (DeletionCause.RETENTION, DeletionCause.EXPIRED):
        with pytest.raises(IntegrityError, match="before an unusual change"):
            Snapshot.objects.transition(
                held.pk, [State.READY], State.DELETING, delete_requested_at=timezone.now(), deletion_cause=cause
            )
    unusual.keep_removing(snapshot=held, user=user)
    unusual.keep_removing(snapshot=held, user=user)
    assert Activity.objects.filter(action="snapshot.keep_removing").count() == 1
    assert DiskChange.objects.get(is_unusual=True).accepted_at
    apply_retention(schedule, timezone.now())
    held.refresh_from_db()
    assert (held.state, held.deletion_cause) == (State.DELETING, DeletionCause.RETENTION)


@pytest.mark.django_db
def test_an_expiry_date_waits_too_and_is_announced_after_the_decision(held: Snapshot, user: User) -> None:
    now = timezone.now()
    Snapshot.objects.filter(pk=held.pk).update(expires_at=now, expiry_announced_at=now - 2 * DAY)
    assert delete_expired(now=now) == 0
    Snapshot.objects.filter(pk=held.pk).update(expiry_announced_at=None)
    assert announce_expiring(now=now) == 0
    unusual.keep_removing(snapshot=held, user=user)
    assert (announce_expiring(now=now), delete_expired(now=now + DAY)) == (1, 1)


@pytest.mark.django_db
def test_a_user_may_delete_what_is_kept(held: Snapshot, user: User) -> None:
    request_deletion(snapshot=held, user=user, even_if_last=True)
    held.refresh_from_db()
    assert held.state in (State.DELETING, State.DELETED)


@pytest.mark.django_db
def test_an_accepted_change_counts_as_usual_and_another_one_does_not(held: Snapshot, user: User) -> None:
    disk = SnapshotFactory(volume=held.volume).disks.get()
    assert len(unusual.history_of(disk)) == 5
    unusual.keep_removing(snapshot=held, user=user)
    assert len(unusual.history_of(disk)) == 6


@pytest.mark.django_db
def test_the_members_decide_on_the_page_of_either_snapshot(held: Snapshot, client: Client, user: User) -> None:
    after = Snapshot.objects.get(unusual_at__isnull=False)
    decide = reverse("snapshots:keep_removing", args=[held.pk])
    for snapshot in (held, after):
        assert f'action="{decide}"' in client.get(reverse("snapshots:snapshot", args=[snapshot.pk])).text
    link = f'href="{reverse("snapshots:snapshot", args=[after.pk])}"'
    assert link in client.get(reverse("snapshots:snapshot", args=[held.pk])).text
    [mail] = sent_mails()
    assert "900 of 1,000 files (90 %)" in mail.body and "Keep removing as usual" in mail.body
    page = client.post(decide, follow=True).text
    assert "is removed as usual again" in page and "Kept: an unusual change followed" not in page
    assert decide not in client.get(reverse("snapshots:snapshot", args=[after.pk])).text


@pytest.mark.django_db
def test_strangers_and_viewers_decide_nothing(
    held: Snapshot, project: Project, client_for: Callable[..., Client]
) -> None:
    decide = reverse("snapshots:keep_removing", args=[held.pk])
    assert client_for(UserFactory(member_of=ProjectFactory())).post(decide).status_code == 404
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))
    assert viewer.post(decide).status_code == 403
    assert decide not in viewer.get(reverse("snapshots:snapshot", args=[held.pk])).text
    held.refresh_from_db()
    assert held.held_at
