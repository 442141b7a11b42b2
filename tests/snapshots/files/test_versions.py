"""The pages of a path's history and of what changed between two snapshots, on disks that were really listed."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role, User
from cng_portal.inventory.models import Volume
from snapshots.files import cataloguing, comparison
from snapshots.files.catalogue import Record
from snapshots.models import DiskImage, Snapshot, volume_ref
from snapshots.storage.contract import GIB
from snapshots.storage.registry import get_driver
from tests.factories import ProjectFactory, SnapshotFactory, UserFactory, VolumeFactory
from tests.snapshots.files.images import blank, copy_sparse, need, run
from tests.snapshots.files.test_catalogues import pack

MIB = 1024**2
Take = Callable[..., DiskImage]


@pytest.fixture
def user(project: Project) -> User:
    return UserFactory(member_of=project, member_of__role=Role.MEMBER)


@pytest.fixture
def client(user: User, client_for: Callable[..., Client]) -> Client:
    return client_for(user)


def url(name: str, disk: DiskImage, **query: Any) -> str:
    args = [disk.snapshot_id, disk.pk, *([0] if name in ("file_history", "download_file") else [])]
    return reverse(f"snapshots:{name}", args=args, query=query or None)


def words(response: Any) -> str:
    assert response.status_code == 200
    return " ".join(unescape(response.text.split("<main")[1]).split())


@pytest.fixture
def stored(project: Project, storage_root: Path) -> Callable[..., list[DiskImage]]:
    """stored(records, …) are the disks of a volume's snapshots, a day apart, with catalogues of these records."""

    def stored(*catalogues: list[bytes] | None, unread: int = 0) -> list[DiskImage]:
        volume = VolumeFactory(project=project, size_gb=1)
        disks = []
        for position, records in enumerate(catalogues):
            at = timezone.now() - timedelta(days=len(catalogues) - position)
            snapshot = SnapshotFactory(volume=volume, name=f"{volume.name} {position}", ready_at=at, created_at=at)
            disk = snapshot.disks.get()
            path = storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"
            path.parent.mkdir(parents=True, exist_ok=True)
            blank(path, GIB)
            driver = get_driver(snapshot.location)
            driver.create_snapshots([(disk.ref, volume_ref(volume))])
            if records is not None:
                summary = {"is_complete": True, "parts": [{"unread": unread}]}
                file = pack(records, summary)
                driver.store_catalogue(disk.ref, [os.pread(file, 10**7, 0)])
                os.close(file)
            disks.append(disk)
        return disks

    return stored


def file(path: str, size: int = 1, at: int = 5_000_000, inode: int = 7, kind: str = "f", mode: str = "644") -> bytes:
    return f"0/{path}\0{kind} {size} {at} {inode} {mode}".encode()


@pytest.mark.django_db
def test_a_history_says_when_a_file_came_changed_and_went(stored: Any, client: Client) -> None:
    disks = stored(
        [file("other")],
        [file("docs/a")],
        [file("docs/a", at=6_000_000)],
        [file("docs/a", size=2, at=7_000_000)],
        [file("docs/a", size=2, at=7_000_000)],
        [file("other")],
        None,
    )
    page = words(client.get(url("file_history", disks[0], path="/docs/a")))
    name = disks[0].volume.name
    order = [
        f"{name} 4",
        "Same size and time",
        f"{name} 3",
        "Changed",
        f"{name} 2",
        "Saved again, same size",
        f"{name} 1",
        "Created",
    ]
    table = page[page.index("<tbody") :]
    at = [
        table.index(each) for each in [f"between {name} 4 and {name} 5", *[each for each in order if each != "Changed"]]
    ]
    assert at == sorted(at)
    assert (
        "6 snapshots and backups" in page and "1 snapshot is missing here, because its files aren't listed yet" in page
    )
    assert url("download_file", disks[3], path="/docs/a", id=7) in page


@pytest.mark.django_db
def test_a_comparison_finds_added_removed_changed_and_renamed(stored: Any, client: Client) -> None:
    same = [file(f"same/{number}", inode=100 + number) for number in range(50)]
    old, new = stored(
        [*same, file("a/gone", inode=1), file("a/was", 9, inode=2), file("b/c", inode=3), file("a", kind="d", inode=8)],
        [
            *same,
            file("b/came", inode=4),
            file("b/is", 9, inode=2),
            file("b/c", 3, inode=3),
            file("x", kind="d", inode=8),
        ],
    )
    page = words(client.get(url("compare_files", new)))
    for text in ["/a/gone", "/b/came", "Before: /a/was", "/b/is", "/b/c", "Before: /a</span>"]:
        assert text in page
    assert "/same/" not in page
    assert client.get(url("compare_files", old)).text.count("/a/gone") == client.get(
        url("compare_files", new)
    ).text.count("/a/gone")
    only = words(client.get(url("compare_files", new, kind="removed", **{"with": old.pk})))
    assert "/a/gone" in only and "/b/came" not in only
    inside = words(client.get(url("compare_files", new, folder="/0/b")))
    assert "/b/came" in inside and "/a/gone" not in inside
    assert "No change matches" in words(client.get(url("compare_files", new, q="nothing like it")))
    csv = b"".join(client.get(url("compare_files_csv", new))).decode()
    assert client.get(url("compare_files_csv", new), {"kind": "odd"})["Location"].endswith("?kind=odd")
    assert "removed,/a/gone,,f,1,," in csv and "renamed,/b/is,/a/was,f,9,9," in csv


@pytest.mark.django_db
def test_a_first_or_unlisted_snapshot_explains_itself(stored: Any, client: Client) -> None:
    [only] = stored([file("a")])
    assert "Nothing to compare with" in words(client.get(url("compare_files", only)))
    assert client.get(url("compare_files_csv", only)).status_code == 302
    _listed, unlisted = stored([file("a")], None)
    assert "aren't listed yet" in words(client.get(url("compare_files", unlisted)))
    assert "None of the searched snapshots contains this path" in words(
        client.get(url("file_history", only, path="/none"))
    )
    assert client.get(url("file_history", only)).status_code == 302


@pytest.mark.django_db
def test_a_missing_or_incomplete_list_is_said(stored: Any, client: Client) -> None:
    old, unread, new = stored([file("a"), file("b")], None, [file("b")], unread=1)
    Snapshot.objects.filter(pk=unread.snapshot_id).update(catalogued_at=timezone.now())
    history = words(client.get(url("file_history", new, path="/a")))
    assert "1 snapshot is missing here, because its files could not be listed" in history
    assert "The lists of files of 2 snapshots are incomplete" in history
    assert "Not in the list" in history and "Deleted" not in history
    compared = words(client.get(url("compare_files", new, **{"with": old.pk})))
    assert f"The list of files of “{old.snapshot.name}”, “{new.snapshot.name}” is incomplete" in compared
    assert "because its disk can't be read" in words(client.get(url("compare_files", new)))


@pytest.mark.django_db
def test_a_forged_catalogue_breaks_no_page(stored: Any, client: Client, storage_root: Path) -> None:
    forged = [
        b"0/x\0f",
        b"0/y\0f a b c d",
        b"zero\0f 1 1 1 1",
        b"0/<script>\0f 99999999999999999999 " + b"9" * 30 + b" 1 1",
    ]
    for records in forged:
        old, new = stored([file("a")], [records])
        for page in (
            url("compare_files", new),
            url("file_history", new, path="/x"),
            url("file_history", new, path="/<script>"),
        ):
            response = client.get(page)
            assert response.status_code == 200 and "<script>\0" not in response.text
        path = storage_root / new.snapshot.location_id / "snapshots" / str(new.pk) / "catalogue"
        path.chmod(0o640)
        path.write_bytes(b"nonsense")
        assert "damaged" in words(client.get(url("compare_files", new)))


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["file_history", "compare_files", "compare_files_csv"])
def test_only_those_who_may_read_see_what_changed(
    name: str, stored: Any, project: Project, client_for: Callable[..., Client], client: Client
) -> None:
    old, new = stored([file("a")], [file("b")])
    address = url(name, new, path="/a")
    assert client_for(UserFactory(member_of=ProjectFactory())).get(address).status_code == 404
    assert client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER)).get(address).status_code == 403
    # A snapshot that belongs to a project of others is no part of it, although the volume is the same.
    Snapshot.objects.filter(pk=old.snapshot_id).update(project=ProjectFactory(customer=project.customer))
    assert old.snapshot.name not in client.get(address, follow=True).text
    assert client.get(url("compare_files", new, **{"with": old.pk})).status_code == 404


def test_more_changes_than_fit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from snapshots.files import catalogue

    monkeypatch.setattr(comparison, "MAX_CHANGES", 10)
    summary = {"is_complete": True, "parts": []}
    new = [file(f"f{number}", inode=number) for number in range(30)]
    with catalogue.opened(pack([file("a")], summary)) as before, catalogue.opened(pack(new, summary)) as after:
        result = comparison.compare_catalogues(before, after)
    assert not result.is_complete and len(result.changes) == 10 and result.counts.total() == 31


def test_an_inode_that_is_used_again_is_no_rename() -> None:
    old, new = Record(b"0/a", "f", 1, 5, 7, 0o644), Record(b"0/b", "f", 2, 6, 7, 0o644)
    assert [change.kind for change in comparison.pair_renamed([old], [new])] == ["removed", "added"]
    assert [change.kind for change in comparison.pair_renamed([old], [Record(b"0/b", "f", 1, 5, 7, 0o644)])] == [
        "renamed"
    ]


@pytest.mark.slow
@pytest.mark.django_db
def test_a_comparison_shows_exactly_the_changes_that_a_program_made(
    project: Project, storage_root: Path, tmp_path: Path, client: Client
) -> None:
    need("mke2fs", "debugfs")
    tree = tmp_path / "tree"
    (tree / "docs").mkdir(parents=True)
    for name in ("letter.txt", "report.txt", "plan.txt"):
        (tree / "docs" / name).write_text(f"the {name}")
    image = blank(tmp_path / "disk.img", 16 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image)
    volume = VolumeFactory(project=project, size_gb=1)
    before = take(volume, image, storage_root, days_ago=2)
    (tmp_path / "new").write_text("new, and longer")
    for command in (
        "rm docs/letter.txt",
        "ln docs/plan.txt docs/final.txt",
        "unlink docs/plan.txt",
        "rm docs/report.txt",
    ):
        run("debugfs", "-w", "-R", command, image)
    run("debugfs", "-w", "-f", "-", image, input=f"cd docs\nwrite {tmp_path}/new report.txt\n".encode())
    after = take(volume, image, storage_root, days_ago=1)
    page = words(client.get(url("compare_files", after)))
    for text in ["/docs/letter.txt", "/docs/report.txt", "/docs/final.txt", "Before: /docs/plan.txt"]:
        assert text in page
    history = client.get(url("file_history", after, path="/docs/letter.txt"))
    assert f"between {before.snapshot.name} and {after.snapshot.name}" in words(history)
    link = next(row.query for row in history.context["history"].versions)
    download = client.get(f"{url('download_file', before)}?{link}")
    assert b"".join(download) == b"the letter.txt"
    download.close = lambda: None


@pytest.mark.slow
@pytest.mark.django_db
def test_a_file_that_was_saved_again_is_compared_by_its_content(
    project: Project, storage_root: Path, tmp_path: Path, client: Client
) -> None:
    need("mke2fs")
    tree = tmp_path / "tree"
    tree.mkdir()
    volume = VolumeFactory(project=project, size_gb=1)
    disks = []
    for days_ago, last in ((2, "1"), (1, "2")):
        for name, text in (("same.txt", "as before"), ("other.txt", f"version {last}"), ("large", "x" * 3 * MIB)):
            (tree / name).write_text(text)
            os.utime(tree / name, (1_700_000_000 - days_ago, 1_700_000_000 - days_ago))
        image = blank(tmp_path / f"disk{last}.img", 16 * MIB)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image)
        disks.append(take(volume, image, storage_root, days_ago=days_ago))
    changes = client.get(url("compare_files", disks[1])).context["changes"]
    details = {change.shown_path: change.detail for change in changes}
    assert details == {
        "/large": "Saved again, same content",
        "/other.txt": "Other content, same size",
        "/same.txt": "Saved again, same content",
    }
    for disk in disks:
        folder = storage_root / disk.snapshot.location_id / "snapshots" / str(disk.pk)
        assert len(json.loads((folder / "hashes").read_text())) == 3
        (folder / "disk.img").unlink()  # so that only what is kept can answer
    again = client.get(url("compare_files", disks[1])).context["changes"]
    assert {change.shown_path: change.detail for change in again} == details
    (folder / "hashes").unlink()
    assert "Saved again, same size" in words(client.get(url("compare_files", disks[1])))


def take(volume: Volume, image: Path, storage_root: Path, *, days_ago: int) -> DiskImage:
    """Take a snapshot of the image, and list its files as the worker does."""
    at = timezone.now() - timedelta(days=days_ago)
    snapshot = SnapshotFactory(volume=volume, ready_at=at, created_at=at)
    path = storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as target:
        copy_sparse(image, target.fileno(), 0)
        os.truncate(path, GIB)
    disk = snapshot.disks.get()
    get_driver(snapshot.location).create_snapshots([(disk.ref, volume_ref(volume))])
    cataloguing.record_listed(snapshot, cataloguing.list_files(snapshot, lambda done, total: None), timezone.now())
    return disk
