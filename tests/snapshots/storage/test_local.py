"""The local driver beyond the contract: paths, holes, checksums, locks and limits."""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from uuid import UUID, uuid4

import pytest
from blake3 import blake3

from snapshots.storage.checksums import ChunkedChecksum, PlainChecksum
from snapshots.storage.contract import (
    GIB,
    Busy,
    Corrupt,
    Interrupted,
    InvalidImage,
    NoSpace,
    NotPermitted,
    SnapshotRef,
    TooLarge,
    Unavailable,
    VolumeRef,
    no_heartbeat,
)
from snapshots.storage.local import LocalDriver
from snapshots.storage.local.copying import CHUNK, PIECE, Progress, copy_data, fill_image
from tests.snapshots.disks import checksum_of, flip_byte, holds, touch_every_chunk
from tests.snapshots.storage.stores import LocalStore

MIB = 1024**2
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-io"), reason="needs qemu-io (Debian: qemu-utils)")


@pytest.fixture(params=["copying", "cloning"])
def store(request: pytest.FixtureRequest) -> LocalStore:
    return LocalStore(request.getfixturevalue("default_root" if request.param == "copying" else "cloning_root"))


@pytest.fixture
def copying(default_root: Path) -> LocalStore:
    return LocalStore(default_root)


def put_image(store: LocalStore, content: dict[int, bytes], size_gb: int = 1) -> VolumeRef:
    """Create a sparse volume with {offset: bytes}."""
    volume = VolumeRef(uuid=uuid4(), name="files", size_gb=size_gb)
    store.driver.create_volume(volume)
    store.write(volume, content)
    return volume


def capture(store: LocalStore, volume: VolumeRef) -> Path:
    """Take a snapshot of the volume and return its folder."""
    [info] = store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)])
    return store.folder / "snapshots" / str(info.uuid)


def ref_of(folder: Path) -> SnapshotRef:
    return SnapshotRef(uuid=UUID(folder.name))


def noise(length: int) -> bytes:
    """Return bytes without zeros, so that none can become a hole."""
    return blake3(b"noise").digest(length).replace(b"\0", b"\1")


# Files


def test_the_files_have_their_documented_paths(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(100_000)})
    folder = capture(store, volume)
    assert sorted(path.name for path in folder.iterdir()) == ["disk.img", "manifest.json"]
    assert stat.S_IMODE((folder / "disk.img").stat().st_mode) == 0o440
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["snapshot_uuid"] == folder.name
    assert (manifest["volume_uuid"], manifest["volume_name"]) == (str(volume.uuid), "files")
    assert manifest["size_bytes"] == GIB
    assert manifest["allocated_bytes"] == (folder / "disk.img").stat().st_blocks * 512
    assert manifest["method"] == ("clone" if store.driver.clones else "copy")
    assert datetime.fromisoformat(manifest["captured_at"]).tzinfo
    assert manifest["verified_at"] is None


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({}, 0),
        ({}, 3 * CHUNK + 1),
        ({0: noise(1)}, 1),
        ({0: noise(5000)}, 5000),
        ({0: noise(CHUNK + 4097)}, CHUNK + 4097),
        ({PIECE: noise(PIECE), 5 * CHUNK - 3: noise(3)}, 5 * CHUNK),
        ({3 * MIB + 123: noise(2 * CHUNK), 11 * MIB: noise(70_001)}, 16 * MIB + 77),
        ({0: bytes(PIECE) + noise(PIECE) + bytes(2 * CHUNK) + noise(10)}, 8 * MIB),
    ],
)
def test_every_byte_of_an_image_of_any_size_is_copied_and_hashed(
    store: LocalStore, content: dict[int, bytes], size: int
) -> None:
    store.driver.free_bytes()  # makes the folders
    source, target = store.folder / "source", store.folder / "target"
    with open(source, "wb") as image:
        for offset, data in content.items():
            image.seek(offset)
            image.write(data)
        image.truncate(size)
    expected = source.read_bytes()
    copied, read_again, plain = ChunkedChecksum(), ChunkedChecksum(), PlainChecksum()
    with open(source, "rb") as reading, open(target, "w+b") as writing:
        files = reading.fileno(), writing.fileno()
        progress, cloning = Progress(no_heartbeat, size), store.driver.clones
        method = fill_image(*files, size + 12_345, progress, cloning=cloning, checksum=copied)
        assert progress.done == (size if method == "copy" else 0)
        copy_data(writing.fileno(), None, size, progress, read_again)
        copy_data(writing.fileno(), None, size, progress, plain)
    assert target.read_bytes() == expected + bytes(12_345)
    assert read_again.finish() == checksum_of(source)
    assert plain.finish() == blake3(expected).hexdigest()
    assert method == "clone" or copied.finish() == checksum_of(source)


def test_every_byte_of_a_volume_is_restored(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(70_001), 300 * MIB + 123: noise(2 * CHUNK), GIB - 3: noise(3)})
    expected = checksum_of(store.path(volume))
    folder = capture(store, volume)
    assert checksum_of(folder / "disk.img") == expected
    assert store.driver.verify_snapshot(ref_of(folder)).checksum == expected
    store.write(volume, {0: bytes(MIB), 100 * MIB: noise(MIB), 302 * MIB: noise(MIB)})
    store.driver.revert_volume(volume, ref_of(folder))
    assert checksum_of(store.path(volume)) == expected


def test_a_copy_knows_its_checksum_at_once(copying: LocalStore) -> None:
    if copying.driver.clones:
        pytest.skip("the default file system clones")
    volume = put_image(copying, {5 * MIB: noise(CHUNK)})
    manifest = json.loads((capture(copying, volume) / "manifest.json").read_text())
    assert (manifest["format"], manifest["checksum"]) == (2, checksum_of(copying.path(volume)))


def test_a_hole_of_64_gib_takes_no_time(copying: LocalStore) -> None:
    """Hashing its zeros would take half a minute, twice."""
    if copying.driver.clones:
        pytest.skip("the default file system clones")
    volume = put_image(copying, {5 * MIB: noise(CHUNK)}, size_gb=64)
    start = perf_counter()
    folder = capture(copying, volume)
    verified = copying.driver.verify_snapshot(ref_of(folder))
    assert perf_counter() - start < 5
    assert verified.checksum == json.loads((folder / "manifest.json").read_text())["checksum"]


def test_a_snapshot_with_a_plain_checksum_is_verified_by_it(store: LocalStore) -> None:
    """Manifests of format 1 have the blake3 of all bytes."""
    volume = put_image(store, {5 * MIB: noise(CHUNK)})
    folder = capture(store, volume)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    plain = blake3(store.path(volume).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1, "blake3": plain}))
    info = store.driver.find_snapshot(ref_of(folder))
    assert info and info.checksum == plain
    assert store.driver.verify_snapshot(ref_of(folder)).checksum == plain
    store.driver.revert_volume(volume, ref_of(folder))
    (folder / "disk.img").chmod(0o640)
    with open(folder / "disk.img", "r+b") as disk:
        disk.write(b"x")
    with pytest.raises(Corrupt, match="checksum"):
        store.driver.verify_snapshot(ref_of(folder))


def test_the_checksum_does_not_depend_on_holes(copying: LocalStore) -> None:
    sparse = put_image(copying, {MIB: noise(MIB)})
    full = put_image(copying, {0: bytes(MIB) + noise(MIB) + bytes(6 * MIB)})
    checksums = {copying.driver.verify_snapshot(ref_of(capture(copying, volume))).checksum for volume in (sparse, full)}
    assert len(checksums) == 1


def test_holes_stay_holes_and_zeros_become_holes(copying: LocalStore) -> None:
    if copying.driver.clones:
        pytest.skip("the default file system clones")
    volume = put_image(copying, {0: noise(MIB), 500 * MIB: bytes(8 * MIB), GIB - MIB: noise(MIB)})
    assert store_blocks(copying.path(volume)) >= 10 * MIB
    assert store_blocks(capture(copying, volume) / "disk.img") <= 2 * MIB + 64 * 1024


def store_blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_reverted_volume_keeps_its_size_mode_and_owner(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    volume = replace(volume, size_gb=2)
    os.truncate(store.path(volume), 2 * GIB)
    store.path(volume).chmod(0o604)
    if os.geteuid() == 0:
        os.chown(store.path(volume), 1234, 2345)
    before = store.path(volume).stat()
    store.write(volume, {5 * MIB: noise(MIB), GIB + 5 * MIB: noise(MIB)})
    store.driver.revert_volume(volume, ref_of(folder))
    after = store.path(volume).stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_size == 2 * GIB and holds(store.path(volume), noise(MIB))


def test_the_driver_takes_no_part_of_a_path_but_uuids_and_location_codes(tmp_path: Path) -> None:
    for code in ("", "..", "A/B", "a", "-A", "A\n"):
        with pytest.raises(ValueError, match="location code"):
            LocalDriver(location=code, root=str(tmp_path))
    driver = LocalDriver(location="A", root=str(tmp_path))
    with pytest.raises(TypeError):
        driver.find_snapshot(SnapshotRef(uuid="../../etc"))  # type: ignore[arg-type]


# Damage


@pytest.mark.parametrize("offset", [0, 3 * MIB, GIB - 1])
def test_one_changed_byte_is_found(store: LocalStore, offset: int) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    verified = store.driver.verify_snapshot(ref_of(folder))
    (folder / "disk.img").chmod(0o640)
    with open(folder / "disk.img", "r+b") as disk:
        disk.seek(offset)
        disk.write(b"\0" if offset == 0 else b"x")
    with pytest.raises(Corrupt, match="checksum"):
        store.driver.verify_snapshot(ref_of(folder))
    assert store.driver.find_snapshot(ref_of(folder)) == replace(verified, verified_at=None)
    with pytest.raises(Corrupt):  # a clone is read again, however recently it was verified
        store.driver.revert_volume(volume, ref_of(folder))


@pytest.mark.parametrize("verified_before", [False, True], ids=["never verified", "verified two days ago"])
@pytest.mark.parametrize("offset", [0, 3 * MIB, GIB - 1])
def test_a_corrupt_snapshot_is_not_restored(store: LocalStore, offset: int, verified_before: bool) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    recorded = store.driver.verify_snapshot(ref_of(folder)).checksum
    change_manifest(folder, verified_at=str(datetime.now(UTC) - timedelta(days=2)) if verified_before else None)
    flip_byte(folder / "disk.img", offset)
    store.write(volume, {0: bytes(4096)})
    inode, before = store.path(volume).stat().st_ino, checksum_of(store.path(volume))
    copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
    for snapshot in ref_of(folder), replace(ref_of(folder), checksum=recorded):
        with pytest.raises(Corrupt, match="checksum"):
            store.driver.revert_volume(volume, snapshot)
        with pytest.raises(Corrupt, match="checksum"):
            store.driver.create_volume_from_snapshot(snapshot, copy)
    assert (store.path(volume).stat().st_ino, checksum_of(store.path(volume))) == (inode, before)
    assert not store.path(copy).exists()
    assert store.leftovers() == []
    store.driver.revert_volume(volume, ref_of(folder), unchecked=True)
    assert checksum_of(store.path(volume)) == checksum_of(folder / "disk.img")
    store.driver.create_volume_from_snapshot(ref_of(folder), copy, unchecked=True)
    assert checksum_of(store.path(copy)) == checksum_of(folder / "disk.img")
    assert store.leftovers() == []


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_clone_trusts_a_verification_for_a_day(store: LocalStore) -> None:
    if not store.driver.clones:
        pytest.skip("a copy is read anyway")
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    checksum = store.driver.verify_snapshot(ref_of(folder)).checksum
    flip_byte(folder / "disk.img", 5)
    store.driver.revert_volume(volume, ref_of(folder))  # nothing is read, so it takes no time
    for age in timedelta(days=1, seconds=1), timedelta(hours=-1):  # the second as if the clock had been set back
        change_manifest(folder, verified_at=str(datetime.now(UTC) - age))
        with pytest.raises(Corrupt):
            store.driver.revert_volume(volume, ref_of(folder))
    flip_byte(folder / "disk.img", 5)
    store.driver.revert_volume(volume, ref_of(folder))
    info = store.driver.find_snapshot(ref_of(folder))
    assert info
    assert info.checksum == checksum
    assert info.verified_at
    assert datetime.now(UTC) - info.verified_at < timedelta(minutes=1)


def test_a_snapshot_without_a_checksum_gets_it_from_the_first_restore(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    expected = checksum_of(store.path(volume))
    for use in (
        lambda snapshot: store.driver.revert_volume(volume, snapshot),
        lambda snapshot: store.driver.create_volume_from_snapshot(
            snapshot, VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        ),
    ):
        folder = capture(store, volume)
        change_manifest(folder, checksum=None)
        use(ref_of(folder))
        info = store.driver.find_snapshot(ref_of(folder))
        assert info
        assert info.checksum == expected
        assert info.verified_at


def test_a_restore_during_a_verification_waits_for_nothing_and_is_checked(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    flip_byte(folder / "disk.img", 5)
    rival = LocalStore(store.folder.parent).driver

    def restore(bytes_done: int, bytes_total: int) -> None:
        with pytest.raises(Corrupt):
            rival.revert_volume(volume, replace(ref_of(folder), checksum="ab" * 32))

    change_manifest(folder, checksum=None)
    store.driver.verify_snapshot(ref_of(folder), restore)


def test_a_damaged_snapshot_is_not_used(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    before = checksum_of(store.path(volume))
    shorter, silent, empty, older = (capture(store, volume) for _each in range(4))
    (shorter / "disk.img").chmod(0o640)
    os.truncate(shorter / "disk.img", MIB)
    (silent / "manifest.json").write_text("{")
    (empty / "disk.img").unlink()
    manifest = json.loads((older / "manifest.json").read_text())
    (older / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    for folder in shorter, silent, empty, older:
        with pytest.raises(Corrupt):
            store.driver.verify_snapshot(ref_of(folder))
        with pytest.raises(Corrupt):
            store.driver.revert_volume(volume, ref_of(folder))
        assert checksum_of(store.path(volume)) == before
        store.driver.delete_snapshot(ref_of(folder))
        assert store.driver.find_snapshot(ref_of(folder)) is None
    assert store.leftovers() == []


# Strange images


def make_strange(path: Path, kind: str) -> None:
    """Replace a file by something else."""
    aside = path.rename(path.with_suffix(".aside"))
    match kind:
        case "link":
            path.symlink_to(aside)
        case "dangling link":
            path.symlink_to(path.with_suffix(".nothing"))
        case "pipe":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "folder":
            path.mkdir()
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero


STRANGE = ["link", "dangling link", "pipe", "socket", "folder"]
if os.geteuid() == 0:
    STRANGE.append("device")


@pytest.mark.parametrize("kind", STRANGE)
def test_a_volume_that_is_not_a_regular_file_is_not_used(store: LocalStore, kind: str) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    snapshot = SnapshotRef(uuid=uuid4())
    make_strange(store.path(volume), kind)
    for call in (
        lambda: store.driver.create_snapshots([(snapshot, volume)]),
        lambda: store.driver.revert_volume(volume, ref_of(folder)),
        lambda: store.driver.create_volume(volume),
        lambda: store.driver.bytes_needed([volume]),
    ):
        with pytest.raises(InvalidImage, match="“files” is not a regular file"):
            call()
    assert store.driver.find_snapshot(snapshot) is None


@pytest.mark.parametrize("size", [0, GIB - 1, GIB + 1, 2 * GIB])
def test_a_volume_of_another_size_is_not_used(store: LocalStore, size: int) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    snapshot = SnapshotRef(uuid=uuid4())
    os.truncate(store.path(volume), size)
    for call in (
        lambda: store.driver.create_snapshots([(snapshot, volume)]),
        lambda: store.driver.revert_volume(volume, ref_of(folder)),
        lambda: store.driver.create_volume(volume),
        lambda: store.driver.bytes_needed([volume]),
    ):
        with pytest.raises(InvalidImage, match=f"“files” has {size:,} bytes, which is not the volume's size of 1 GB"):
            call()
    assert store.driver.find_snapshot(snapshot) is None
    assert store.size(volume) == size
    assert store.leftovers() == []


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("part", ["disk.img", "manifest.json", ""])
def test_a_snapshot_with_a_part_that_is_no_regular_file_is_not_used(store: LocalStore, kind: str, part: str) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
    manifest = (folder / "manifest.json").read_text()
    make_strange(folder / part, kind)
    for call in (
        lambda: store.driver.find_snapshot(ref_of(folder)),
        lambda: store.driver.verify_snapshot(ref_of(folder)),
        lambda: store.driver.revert_volume(volume, ref_of(folder)),
        lambda: store.driver.create_volume_from_snapshot(ref_of(folder), copy),
    ):
        with pytest.raises(Corrupt):
            call()
    if part != "manifest.json":
        assert not store.driver.put_manifest(ref_of(folder).uuid, manifest)
    assert list(store.driver.manifests()) == ([(ref_of(folder).uuid, manifest)] if part == "disk.img" else [])
    store.driver.remove_orphans()
    store.driver.delete_snapshot(ref_of(folder))
    assert not os.path.lexists(folder)


# Locks


@contextmanager
def qemu(image: Path, *options: str) -> Iterator[subprocess.Popen]:
    """Hold an image open with QEMU's own tool."""
    process = subprocess.Popen(
        ["qemu-io", *options, "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    process.stdin.write("length\n")
    process.stdin.flush()
    assert "1 GiB" in process.stdout.readline(), "qemu-io did not open the image"
    try:
        yield process
    finally:
        process.communicate("quit\n", timeout=10)


@needs_qemu
def test_an_image_that_qemu_writes_to_is_neither_captured_nor_reverted(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    snapshot = SnapshotRef(uuid=uuid4())
    with qemu(store.path(volume)) as process:
        for call in (
            lambda: store.driver.create_snapshots([(snapshot, volume)]),
            lambda: store.driver.revert_volume(volume, ref_of(folder)),
        ):
            with pytest.raises(Busy, match=rf"“files” is in use by qemu-io \(process {process.pid}\)"):
                call()
    assert store.leftovers() == []
    store.driver.create_snapshots([(snapshot, volume)])
    store.driver.revert_volume(volume, ref_of(folder))


@needs_qemu
def test_an_image_that_qemu_only_reads_can_be_captured(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    with qemu(store.path(volume), "-r"):
        capture(store, volume)


@needs_qemu
def test_qemu_cannot_write_to_an_image_that_is_being_captured_or_reverted(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    answers: list[str] = []

    def try_to_write(bytes_done: int, bytes_total: int) -> None:
        command = ["qemu-io", "-f", "raw", "-c", "write -P 255 0 4096", str(store.path(volume))]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=False).stderr)

    [info] = store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)], try_to_write)
    captured = len(answers)
    store.driver.revert_volume(volume, SnapshotRef(uuid=info.uuid), try_to_write)
    assert 0 < captured < len(answers)
    assert all("lock" in answer for answer in answers)
    assert store.read(volume, 0, MIB) == noise(MIB)


@pytest.mark.parametrize("how", ["flock", "fcntl"])
def test_an_ordinary_exclusive_lock_is_respected(store: LocalStore, how: str) -> None:
    volume = put_image(store, {0: noise(MIB)})
    with open(store.path(volume), "r+b") as image:
        if how == "flock":
            fcntl.flock(image, fcntl.LOCK_EX)
        else:
            fcntl.lockf(image, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="files"):
            capture(store, volume)
    capture(store, volume)
    assert len(list((store.folder / "snapshots").iterdir())) == 1


def test_a_locked_object_is_busy_for_others(store: LocalStore) -> None:
    volume, other = (put_image(store, {0: noise(MIB)}) for _each in range(2))
    snapshot, second = SnapshotRef(uuid=uuid4()), SnapshotRef(uuid=uuid4())
    rival = LocalStore(store.folder.parent).driver
    calls: list[str] = []

    def try_everything(bytes_done: int, bytes_total: int) -> None:
        assert rival.find_snapshot(snapshot) is None
        for call in (
            lambda: rival.create_snapshots([(snapshot, other)]),
            lambda: rival.delete_snapshot(snapshot),
            lambda: rival.revert_volume(volume, second),
            lambda: rival.create_volume(volume),
        ):
            with pytest.raises(Busy) as caught:
                call()
            calls.append(str(caught.value))
        rival.remove_orphans()  # leaves files of live processes alone

    store.driver.create_snapshots([(snapshot, volume)], try_everything)
    assert "files" in calls[2]
    assert store.driver.find_snapshot(snapshot)
    assert store.driver.find_snapshot(second) is None

    def capture_meanwhile(bytes_done: int, bytes_total: int) -> None:
        with pytest.raises(Busy, match="files"):
            rival.create_snapshots([(second, volume)])
        with pytest.raises(Busy):
            rival.delete_snapshot(snapshot)

    store.driver.revert_volume(volume, snapshot, capture_meanwhile)

    def verify_meanwhile(bytes_done: int, bytes_total: int) -> None:
        with pytest.raises(Busy):
            rival.verify_snapshot(snapshot)
        rival.revert_volume(volume, snapshot)  # verifications keep nobody waiting

    store.driver.verify_snapshot(snapshot, verify_meanwhile)
    assert store.leftovers() == []


def test_two_concurrent_captures_make_one_snapshot(copying: LocalStore) -> None:
    volume = put_image(copying, {0: noise(20 * MIB)})
    snapshot = uuid4()
    program = (  # without translations, which would need all of Django
        "import sys; from uuid import UUID; from snapshots.storage.contract import *\n"
        "from snapshots.storage.local import LocalDriver\n"
        "from django.conf import settings; settings.configure(USE_I18N=False)\n"
        "driver = LocalDriver(location='TEST-1', root=sys.argv[1])\n"
        "volume = VolumeRef(uuid=UUID(sys.argv[2]), name='files', size_gb=1)\n"
        "print('ready', flush=True); input()\n"
        "try: print(driver.create_snapshots([(SnapshotRef(uuid=UUID(sys.argv[3])), volume)])[0].captured_at)\n"
        "except Busy: print('busy')\n"
    )
    arguments = [sys.executable, "-c", program, str(copying.folder.parent), str(volume.uuid), str(snapshot)]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _each in range(4)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=30)[0].strip() for process in processes]
    info = copying.driver.find_snapshot(SnapshotRef(uuid=snapshot))
    assert info
    assert set(answers) <= {"busy", str(info.captured_at)}
    assert str(info.captured_at) in answers
    assert copying.leftovers() == []


# Free space and failures


def test_space_is_checked_before_anything_is_written(small_file_system: Path) -> None:
    store = LocalStore(small_file_system)
    volume = put_image(store, {0: noise(40 * MIB)})
    beats: list[int] = []
    with pytest.raises(NoSpace, match=r"TEST-1 is too full: this needs 0\.1 GB and 0\.0 GB are free"):
        store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)], lambda done, total: beats.append(done))
    assert beats == []
    assert store.leftovers() == []
    assert store.driver.bytes_needed([volume]) >= 40 * MIB


def fill_file_system(folder: Path, but: int = 0) -> Path:
    """Leave only `but` MiB free. Removing the returned file undoes it."""
    filler = folder / "filler"
    with open(filler, "wb") as file:
        for step in (MIB, 4096):
            while (usage := os.statvfs(folder)).f_bavail * usage.f_frsize > but * MIB:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    break
    return filler


@pytest.mark.parametrize("cloning", [False, True])
def test_a_reserve_is_left_to_the_portal(small_file_system: Path, xfs: Path, cloning: bool) -> None:
    root = xfs if cloning else small_file_system
    driver = LocalDriver(location="TEST-1", root=str(root), reserve_percent="20")
    store = LocalStore(root, driver)
    assert driver.clones is cloning
    usage = os.statvfs(root)
    reserve = usage.f_blocks * usage.f_frsize // 5
    assert abs(driver.free_bytes() - (usage.f_bavail * usage.f_frsize - reserve)) < MIB
    volume = put_image(store, {0: noise(MIB)})
    [snapshot] = [ref_of(capture(store, volume))]
    filler = fill_file_system(root, but=reserve // MIB)
    assert driver.free_bytes() == 0
    for call in (
        lambda: driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)]),
        lambda: driver.revert_volume(volume, snapshot),
        lambda: driver.create_volume_from_snapshot(snapshot, VolumeRef(uuid=uuid4(), name="copy", size_gb=1)),
    ):
        with pytest.raises(NoSpace, match="is too full"):
            call()
    driver.verify_snapshot(snapshot)  # the portal's own records go on
    driver.delete_snapshot(snapshot)
    filler.unlink()
    for path in store.folder.glob("volumes/*"):
        path.unlink()


def test_captures_at_the_same_time_do_not_use_up_the_reserve(small_file_system: Path) -> None:
    driver = LocalDriver(location="TEST-1", root=str(small_file_system), reserve_percent=20)
    store = LocalStore(small_file_system, driver)
    volume = put_image(store, {0: noise(8 * MIB)})

    def write_as_well(bytes_done: int, bytes_total: int) -> None:
        if bytes_done == 0:
            fill_file_system(small_file_system, but=12)

    with pytest.raises(NoSpace, match="filled up"):
        driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)], write_as_well)
    assert store.leftovers() == []


@pytest.mark.parametrize("percent", ["", "-1", "100", "5.5", "5%", "\u0665"])
def test_a_reserve_that_is_not_a_percentage_is_refused(tmp_path: Path, percent: str) -> None:
    with pytest.raises(ValueError, match="whole number from 0 to 99"):
        LocalDriver(location="A", root=str(tmp_path), reserve_percent=percent)


def test_a_storage_that_fills_up_keeps_nothing_incomplete(small_file_system: Path) -> None:
    store = LocalStore(small_file_system)
    first, second = (put_image(store, {0: noise(8 * MIB)}) for _each in range(2))
    folder = capture(store, first)
    disks = [(SnapshotRef(uuid=uuid4()), volume) for volume in (first, second)]
    filler = small_file_system / "filler"

    def fill_up(bytes_done: int, bytes_total: int) -> None:
        if not filler.exists():
            fill_file_system(small_file_system)

    with pytest.raises(NoSpace, match="filled up"):
        store.driver.create_snapshots(disks, fill_up)
    filler.unlink()
    assert [store.driver.find_snapshot(snapshot) for snapshot, _volume in disks] == [None, None]
    with pytest.raises(NoSpace, match="filled up"):
        store.driver.revert_volume(first, ref_of(folder), fill_up)
    filler.unlink()
    assert store.read(first, 0, 8 * MIB) == noise(8 * MIB)
    assert store.leftovers() == []


def test_a_storage_that_cannot_be_written_is_unavailable_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "TEST-1").write_text("not a folder")
    driver = LocalStore(tmp_path).driver
    for call in (driver.check_health, driver.free_bytes, lambda: driver.delete_snapshot(SnapshotRef(uuid=uuid4()))):
        with pytest.raises(Unavailable, match="TEST-1 failed: Not a directory") as caught:
            call()
        assert str(tmp_path) not in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)


def test_a_volume_larger_than_the_file_system_allows_is_refused_for_good(small_file_system: Path) -> None:
    store = LocalStore(small_file_system)
    folder = capture(store, put_image(store, {0: noise(MIB)}))
    huge = VolumeRef(uuid=uuid4(), name="huge", size_gb=1_000_000)
    for call in (
        lambda: store.driver.check_volume_size(huge.size_gb),
        lambda: store.driver.create_volume(huge),
        lambda: store.driver.create_volume_from_snapshot(ref_of(folder), huge),
    ):
        with pytest.raises(TooLarge, match="cannot hold a volume as large as this") as caught:
            call()
        assert not caught.value.retryable
    store.driver.check_volume_size(1)
    assert store.leftovers() == []


def test_permanent_errors_are_not_retried(small_file_system: Path) -> None:
    store = LocalStore(small_file_system)
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)

    def assert_not_permitted(reason: str) -> None:
        for call in (
            lambda: store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)]),
            lambda: store.driver.revert_volume(volume, ref_of(folder)),
            lambda: store.driver.delete_snapshot(ref_of(folder)),
            store.driver.check_health,
        ):
            with pytest.raises(
                NotPermitted, match=f"has no permission to use the storage of TEST-1: {reason}"
            ) as caught:
                call()
            assert not caught.value.retryable

    folders = [store.folder, store.folder / "volumes", store.folder / "snapshots"]
    subprocess.run(["chattr", "+i", *folders], check=True)
    try:
        assert_not_permitted("Operation not permitted")
    finally:
        subprocess.run(["chattr", "-i", *folders], check=True)
    subprocess.run(["mount", "-o", "remount,ro", small_file_system], check=True)
    try:
        assert_not_permitted("Read-only file system")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_file_system], check=True)
    store.driver.delete_snapshot(ref_of(folder))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
def test_temporary_errors_are_retried(tmp_path: Path, number: int) -> None:
    assert LocalStore(tmp_path).driver.folder.describe(OSError(number, "")).retryable


def test_only_files_of_dead_processes_are_removed(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    (store.folder / "volumes" / f".{uuid4()}.new").write_bytes(b"half")
    for suffix in "new", "old":
        half = store.folder / "snapshots" / f".{uuid4()}.{suffix}"
        half.mkdir()
        (half / "disk.img").write_bytes(b"half")
    (store.folder / "volumes" / ".nfs0001").touch()
    store.driver.remove_orphans()
    assert store.leftovers() == ["volumes/.nfs0001"]
    assert store.driver.find_snapshot(ref_of(folder))
    assert store.path(volume).exists()


def test_a_long_copy_can_be_interrupted_in_its_middle(copying: LocalStore) -> None:
    if copying.driver.clones:
        pytest.skip("the default file system clones")
    volume = put_image(copying, {0: noise(CHUNK)}, size_gb=10)
    touch_every_chunk(copying.path(volume))
    beats: list[int] = []

    def interrupt_in_the_middle(bytes_done: int, bytes_total: int) -> None:
        beats.append(bytes_done)
        if 0 < bytes_done < bytes_total:
            raise Interrupted

    with pytest.raises(Interrupted):
        copying.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)], interrupt_in_the_middle)
    assert beats[0] == 0
    assert 0 < beats[-1] < 10 * GIB
    assert copying.leftovers() == []
