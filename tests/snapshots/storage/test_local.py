"""The local driver beyond the contract: paths, holes, checksums and damage."""

import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import pytest
from blake3 import blake3

from snapshots.storage.checksums import ChunkedChecksum, PlainChecksum
from snapshots.storage.contract import (
    GIB,
    Corrupt,
    SnapshotRef,
    VolumeRef,
    no_heartbeat,
)
from snapshots.storage.local import LocalDriver
from snapshots.storage.local.copying import CHUNK, PIECE, Progress, copy_data, fill_image
from tests.snapshots.disks import checksum_of, flip_byte, holds
from tests.snapshots.storage.stores import LocalStore, capture, noise, put_image, ref_of

MIB = 1024**2
pytestmark = pytest.mark.slow


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
