"""Every file of every file system is downloaded byte for byte, and unreadable ones are named."""

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from cng_portal.accounts.models import Project
from snapshots.files import names, services
from snapshots.files.reader.journal import MAGIC
from snapshots.models import DiskImage
from tests.factories import UserFactory
from tests.snapshots.files import images as make
from tests.snapshots.files.conftest import Images
from tests.snapshots.files.images import BIG, FILES, LINKS, MIB, ORDINARY, PACKED, SPARSE

pytestmark = pytest.mark.django_db

Capture = Callable[[Path], DiskImage]
SPARSE_DATA = bytes(33 * MIB) + b"middle" + bytes(SPARSE - 33 * MIB - 6)
# What each of them can hold: FAT and NTFS are filled with ordinary names, XFS by a prototype without spaces.
CONTENT = {
    **dict.fromkeys(("ext4", "gpt", "mbr", "lvm"), FILES | {b"hard": b"hello\n", b"suid": b"#!/bin/sh\n"}),
    "xfs": ORDINARY | {b"suid": b"#!/bin/sh\n"},
    "fat": ORDINARY,
    "ntfs": {name: content for name, content in ORDINARY.items() if b"/" not in name} | {b"packed": PACKED},
}
WITH_LINKS = ("ext4", "gpt", "mbr", "lvm")


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


def address(name: str, disk: DiskImage, part: int = 0) -> str:
    return reverse(f"snapshots:{name}", args=[disk.snapshot_id, disk.pk, part])


def walk(disk: DiskImage, path: tuple[bytes, ...] = ()) -> Iterator[services.File]:
    listing = services.list_folder(disk, 0, path, number=None, order="name", start=0)
    assert listing.total == len(listing.files) and listing.notes == []
    for file in listing.files:
        yield file
        if file.kind == "d":
            yield from walk(disk, file.path)


def digest(response: HttpResponse) -> str:
    assert response.status_code == 200, response
    sha256, size = hashlib.sha256(), 0
    for chunk in response:
        sha256.update(chunk)
        size += len(chunk)
    assert size == int(response["Content-Length"])
    return sha256.hexdigest()


def extract(response: HttpResponse) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(response)), encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("name", CONTENT)
def test_every_file_is_downloaded_unchanged(name: str, images: Images, capture: Capture, client: Client) -> None:
    disk = capture(images(name))
    files = {b"/".join(file.path): file for file in walk(disk)}
    expected = CONTENT[name]
    assert {path for path, file in files.items() if file.kind == "f"} - {b"sparse", b"big"} == set(expected)
    for path, content in expected.items():
        response = client.get(f"{address('download_file', disk)}?{files[path].query}")
        assert digest(response) == hashlib.sha256(content).hexdigest(), path
        assert response["Content-Type"] == "application/octet-stream"
        assert response["X-Content-Type-Options"] == "nosniff"
        assert response["Content-Disposition"].startswith("attachment; filename")
    if name in WITH_LINKS:
        links = {path: file.target for path, file in files.items() if file.kind == "l"}
        assert links == {path: target.decode() for path, target in LINKS.items()}
        assert files[b"pipe"].kind == "o"
    if b"sparse" in files:
        response = client.get(f"{address('download_file', disk)}?{files[b'sparse'].query}")
        assert digest(response) == hashlib.sha256(SPARSE_DATA).hexdigest()


@pytest.mark.parametrize("name", ["ext4", "xfs", "ntfs", "fat"])
def test_a_folder_is_downloaded_as_an_archive(name: str, images: Images, capture: Capture, client: Client) -> None:
    disk = capture(images(name))
    response = client.get(address("download_folder", disk))
    archive = extract(response)
    assert response["Content-Type"] == "application/x-tar"
    members = {os.fsencode(member.name): member for member in archive.getmembers()}
    for path, content in CONTENT[name].items():
        file = archive.extractfile(members[path])
        assert file and file.read() == content, path
    assert not any(member.mode & 0o6000 for member in members.values())
    assert not any(path.startswith(b"/") or b".." in path.split(b"/") for path in members)
    if name == "ext4":
        assert {path: os.fsencode(members[path].linkname) for path in LINKS} == LINKS
        assert members[b"plain.txt"].islnk() != members[b"hard"].islnk()
        assert members[b"sparse"].issparse() and members[b"sparse"].size == SPARSE
        assert members[b"big"].issparse() and members[b"big"].size == BIG
        assert int(response["Content-Length"]) < 20 * MIB
        assert archive.extractfile(members[b"sparse"]).read() == SPARSE_DATA  # type: ignore[union-attr]
        assert archive.extractfile(members[b"LEFT-OUT.txt"]).read() == b"pipe: a device, pipe or socket\n"  # type: ignore[union-attr]


def test_an_archive_is_what_tar_expects(images: Images, capture: Capture, client: Client, tmp_path: Path) -> None:
    disk = capture(images("ext4"))
    archive, target = tmp_path / "a.tar", tmp_path / "out"
    with open(archive, "wb") as file:
        file.writelines(client.get(address("download_folder", disk)))
    target.mkdir()
    make.run("tar", "-x", "-C", target, "-f", archive)
    for path, content in CONTENT["ext4"].items():
        assert Path(os.fsdecode(os.path.join(os.fsencode(target), path))).read_bytes() == content
    assert (target / "big").stat().st_size == BIG and (target / "big").stat().st_blocks * 512 < MIB
    assert not (target / "suid").stat().st_mode & 0o6000


def test_a_sparse_file_that_is_larger_than_its_disk_is_sent(images: Images, capture: Capture, client: Client) -> None:
    disk = capture(images("ext4"))
    response = client.get(f"{address('download_file', disk)}?path=/big")
    assert response["Content-Length"] == str(BIG)
    size, end = 0, b""
    for chunk in response:
        size, end = size + len(chunk), (end + chunk)[-3:]
    assert (size, end) == (BIG, b"end")


def test_blocks_that_were_reserved_but_never_written_are_zeros(
    capture: Capture, client: Client, tmp_path: Path
) -> None:
    make.need("mke2fs", "debugfs")
    image, content = tmp_path / "disk.img", b"written" * 2000
    image.write_bytes(b"\xaa" * 16 * MIB)
    (tmp_path / "content").write_bytes(content)
    make.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", "nodiscard", image)
    commands = f"write {tmp_path}/content f\nfallocate /f 4 40\nset_inode_field /f size 150000\n"
    make.run("debugfs", "-w", "-f", "-", image, input=commands.encode())
    response = client.get(f"{address('download_file', capture(image))}?path=/f")
    assert b"".join(response) == content.ljust(150_000, b"\0")


def test_a_pending_journal_is_read_as_a_machine_would_replay_it(
    capture: Capture, client: Client, tmp_path: Path
) -> None:
    make.need("mke2fs", "debugfs", "e2fsck")
    tree, image, replayed = tmp_path / "tree", tmp_path / "disk.img", tmp_path / "replayed.img"
    tree.mkdir()
    (tree / "letter").write_bytes(b"old" * 5000)
    make.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", tree, make.blank(image, 64 * MIB))
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    listed = subprocess.check_output(["debugfs", "-R", "blocks /letter", image], env={"PATH": path})
    first, second, third = listed.split()[:3]
    # What begins with the journal's own mark is escaped in it, and what is revoked isn't replayed.
    (tmp_path / "new").write_bytes((MAGIC + b"new" * 5000)[:4096] + b"new" * 1365 + b"!" + b"revoked!" * 512)
    blocks = b",".join([first, second, third]).decode()
    commands = f"jo\njw -b {blocks} {tmp_path}/new\njw -r {third.decode()}\njc\n"
    make.run("debugfs", "-w", "-f", "-", image, input=commands.encode())
    disk = capture(image)
    [part] = services.list_parts(disk)
    assert not part.may_lack_last_seconds
    make.copy(image, replayed)
    subprocess.run(["e2fsck", "-fy", "-E", "journal_only", replayed], env={"PATH": path}, capture_output=True)
    make.run("debugfs", "-R", f"dump /letter {tmp_path}/expected", replayed)
    expected = (tmp_path / "expected").read_bytes()
    assert expected.startswith(MAGIC + b"new") and expected.endswith(b"old" * 100) and b"revoked" not in expected
    response = client.get(f"{address('download_file', disk)}?path=/letter")
    assert b"".join(response) == expected


def test_the_names_of_partitions_and_labels_are_shown(images: Images, capture: Capture, client: Client) -> None:
    disk = capture(images("gpt"))
    page = client.get(reverse("snapshots:files", args=[disk.snapshot_id])).text
    assert "data ü" in page and "root fs ü" in page and "ext4" in page
    assert "Swap space" in page
    assert address("folder", disk) in page and address("folder", disk, 1) not in page


REFUSED = {
    "swap": ([(4086, b"SWAPSPACE2")], "Swap space"),
    "luks": ([(0, b"LUKS\xba\xbe\0\2")], "LUKS"),
    "bitlocker": ([(3, b"-FVE-FS-"), (510, b"\x55\xaa")], "BitLocker"),
    "raid": ([(4096, b"\xfc\x4e\x2b\xa9\1")], "RAID"),
    "a mirror's other end": ([(1080, b"\x53\xef"), (1024**3 - 8192, b"\xfc\x4e\x2b\xa9" + bytes(68) + b"\5")], "RAID"),
    "btrfs": ([(0x10040, b"_BHRfS_M")], "Btrfs"),
    "zeros": ([], "zeros"),
    "garbage": ([(0, os.urandom(70_000).replace(b"\x55\xaa", b"\x55\xab"))], "No file system"),
    "an empty group": ([], "without volumes"),
    "a group of two disks": ([], "several disks"),
    "a thin volume": ([], "thin"),
    "nonsense": ([], "Damaged"),
}
OTHER_DISK = 'pv1 {\nid = "x"\npe_start = 2048\n}\n'
GROUPS = {
    "an empty group": make.lvm_text("", 0).replace('"VISIBLE"', '"HIDDEN"'),
    "a group of two disks": make.lvm_text("", 0, OTHER_DISK),
    "a thin volume": make.lvm_text(make.SEGMENT.format(number=1, start=0, count=1, at=0, type="thin"), 1),
    "nonsense": "vg { } } extent_size = [",
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_without_files_are_identified(name: str, capture: Capture, client: Client, tmp_path: Path) -> None:
    marks, reason = REFUSED[name]
    if name in GROUPS:
        image = make.make_lvm(tmp_path / "image", None, text=GROUPS[name])
    else:
        image = make.make_marked(tmp_path / "image", *marks)
    disk = capture(image)
    page = client.get(reverse("snapshots:files", args=[disk.snapshot_id])).text
    assert reason in page
    assert address("folder", disk) not in page
    assert "could not be read" in client.get(address("folder", disk)).text


@pytest.mark.parametrize("name", [b"a", b"a/b", b"..", b"%2F", "မြန်မာ".encode(), b"\xff\n\0", b"a b+c&d=e", b"\\x"])
def test_a_name_survives_its_way_through_an_address(name: bytes) -> None:
    path = [b"folder", name]
    assert names.from_parameter(names.to_parameter(path)) == path
    assert parse_qs(urlsplit("?path=" + names.to_parameter([b"x"])).query)


@pytest.mark.parametrize(
    ("name", "text"),
    [(b"a\nb", "a\\nb"), (b"\xff\xfe", "\\xff\\xfe"), ("a\u202eb".encode(), "a\\u202eb"), ("ü".encode(), "ü")],
)
def test_undisplayable_characters_are_escaped(name: bytes, text: str) -> None:
    assert names.show(name) == text
