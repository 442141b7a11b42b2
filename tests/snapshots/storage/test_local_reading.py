"""Reads of snapshots: an interrupted read continues where it stopped, and a failing medium is damage."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from blake3 import blake3

from snapshots.storage.contract import (
    GIB,
    Corrupt,
    Heartbeat,
    Interrupted,
    SnapshotRef,
    Unavailable,
    Unreadable,
    VolumeRef,
)
from snapshots.storage.local import copying
from snapshots.storage.local.copying import CHUNK
from tests.snapshots.disks import checksum_of, flip_byte, touch_every_chunk
from tests.snapshots.storage.medium import Medium, failing_medium
from tests.snapshots.storage.stores import LocalStore

MIB = 1024**2
SIZE_GB = 1


@pytest.fixture
def store(default_root: Path) -> LocalStore:
    return LocalStore(default_root)


def put_image(store: LocalStore, content: dict[int, bytes], size_gb: int = 1) -> VolumeRef:
    volume = VolumeRef(uuid=uuid4(), name="files", size_gb=size_gb)
    store.driver.create_volume(volume)
    store.write(volume, content)
    return volume


def capture(store: LocalStore, volume: VolumeRef) -> SnapshotRef:
    [info] = store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)])
    ref = SnapshotRef(uuid=info.uuid)
    return replace(ref, checksum=store.driver.verify_snapshot(ref).checksum)


def folder_of(store: LocalStore, snapshot: SnapshotRef) -> Path:
    return store.folder / "snapshots" / str(snapshot.uuid)


@pytest.fixture
def slow(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> SnapshotRef:
    """A snapshot that is read in many chunks, because every one has data, with a heartbeat after each."""
    monkeypatch.setattr(copying, "BEAT_SECONDS", 0)
    volume = put_image(store, {}, size_gb=SIZE_GB)
    touch_every_chunk(store.path(volume))
    return capture(store, volume)


def recorder(beats: list[int], stop_when: Callable[[int], bool] = lambda done: False) -> Heartbeat:
    def beat(bytes_done: int, bytes_total: int) -> None:
        beats.append(bytes_done)
        if stop_when(bytes_done):
            raise Interrupted

    return beat


def interrupt_in_the_middle(store: LocalStore, snapshot: SnapshotRef) -> int:
    """Interrupt the read halfway. Returns the number of bytes read."""
    beats: list[int] = []
    with pytest.raises(Interrupted):
        store.driver.verify_snapshot(snapshot, recorder(beats, lambda done: done >= SIZE_GB * GIB / 2), resume=True)
    return beats[-1]


# Interrupted reads


def test_an_interrupted_read_continues_where_it_stopped(store: LocalStore, slow: SnapshotRef) -> None:
    started_at, read = datetime.now(UTC), interrupt_in_the_middle(store, slow)
    beats: list[int] = []
    resumed_at = datetime.now(UTC)
    info = store.driver.verify_snapshot(slow, recorder(beats), resume=True)
    assert read - CHUNK < beats[0] <= read
    assert beats == sorted(beats)
    assert beats[-1] == SIZE_GB * GIB
    assert info.checksum == checksum_of(folder_of(store, slow) / "disk.img")
    assert info.verified_at and started_at <= info.verified_at <= resumed_at, "its first bytes were read back then"
    assert store.leftovers() == []


def test_damage_behind_the_place_of_an_interruption_is_found(store: LocalStore, slow: SnapshotRef) -> None:
    interrupt_in_the_middle(store, slow)
    flip_byte(folder_of(store, slow) / "disk.img", SIZE_GB * GIB - 5)
    with pytest.raises(Corrupt, match="checksum"):
        store.driver.verify_snapshot(slow, resume=True)
    assert store.leftovers() == []


def test_a_requested_verification_reads_everything(store: LocalStore, slow: SnapshotRef) -> None:
    read = interrupt_in_the_middle(store, slow)
    flip_byte(folder_of(store, slow) / "disk.img", read // 2)
    beats: list[int] = []
    with pytest.raises(Corrupt):
        store.driver.verify_snapshot(slow, recorder(beats))
    assert beats[0] == 0
    assert store.leftovers() == []


def damage_a_digest(log: Path) -> None:
    flip_byte(log, log.stat().st_size - 40)


def cut_off(log: Path) -> None:
    os.truncate(log, log.stat().st_size - 5)


def pretend_more(log: Path) -> None:
    with open(log, "ab") as file:
        file.write(bytes(32 * SIZE_GB * 512))


def change_header(log: Path, **changes: str) -> None:
    header, digests = log.read_bytes().split(b"\n", 1)
    log.write_bytes(json.dumps(json.loads(header) | changes).encode() + b"\n" + digests)


@pytest.mark.parametrize(
    ("change", "resumes"),
    [
        (damage_a_digest, True),
        (cut_off, True),
        (pretend_more, False),
        (lambda log: log.write_bytes(b"not a log"), False),
        (lambda log: change_header(log, checksum="blake3-2m:" + "ab" * 32), False),
        (lambda log: change_header(log, started_at=str(datetime.now(UTC) - timedelta(days=8))), False),
        (lambda log: change_header(log, started_at=str(datetime.now(UTC) + timedelta(hours=1))), False),
    ],
)
def test_an_invalid_log_does_not_damage_the_snapshot(
    store: LocalStore, slow: SnapshotRef, change: Callable[[Path], object], resumes: bool
) -> None:
    interrupt_in_the_middle(store, slow)
    change(folder_of(store, slow) / ".verification")
    beats: list[int] = []
    info = store.driver.verify_snapshot(slow, recorder(beats), resume=True)
    assert info.checksum == slow.checksum
    assert bool(beats[0]) is resumes
    assert store.leftovers() == []


def test_a_snapshot_without_a_checksum_is_read_as_a_whole(store: LocalStore, slow: SnapshotRef) -> None:
    """A valid log couldn't be distinguished from an invalid one."""
    manifest = folder_of(store, slow) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"checksum": None}))
    without = replace(slow, checksum="")
    interrupt_in_the_middle(store, without)
    assert store.leftovers() == []
    assert store.driver.verify_snapshot(without, resume=True).checksum == slow.checksum


# A medium that fails


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[Medium]:
    with failing_medium(tmp_path) as medium:
        yield medium


@pytest.fixture
def on_medium(medium: Medium) -> tuple[LocalStore, VolumeRef, SnapshotRef]:
    """Create a volume of some megabytes at the start of the medium, followed by its snapshot."""
    store = LocalStore(medium.root)
    volume = put_image(store, {0: blake3(b"noise").digest(8 * MIB)})
    return store, volume, capture(store, volume)


def test_bytes_that_the_medium_does_not_deliver_are_damage(
    medium: Medium, on_medium: tuple[LocalStore, VolumeRef, SnapshotRef]
) -> None:
    store, _volume, snapshot = on_medium
    medium.break_at(folder_of(store, snapshot) / "disk.img", 6 * MIB)
    with pytest.raises(Corrupt, match="could not be read: the medium reports errors") as caught:
        store.driver.verify_snapshot(snapshot)
    assert not caught.value.retryable
    info = store.driver.find_snapshot(snapshot)
    assert info and info.verified_at is None
    store.driver.delete_snapshot(snapshot)
    assert store.driver.find_snapshot(snapshot) is None


def test_a_transient_read_error_is_not_damage(
    medium: Medium, on_medium: tuple[LocalStore, VolumeRef, SnapshotRef]
) -> None:
    store, _volume, snapshot = on_medium
    medium.break_at(folder_of(store, snapshot) / "disk.img", 6 * MIB)
    beats: list[int] = []

    def mend_between_the_two_tries(bytes_done: int, bytes_total: int) -> None:
        beats.append(bytes_done)
        if len(beats) == 2:  # the first heartbeat is the start
            medium.mend()

    assert store.driver.verify_snapshot(snapshot, mend_between_the_two_tries).checksum == snapshot.checksum
    assert beats[1] < 8 * MIB


def test_a_manifest_that_cannot_be_read_is_damage(
    medium: Medium, on_medium: tuple[LocalStore, VolumeRef, SnapshotRef]
) -> None:
    store, volume, snapshot = on_medium
    manifest = folder_of(store, snapshot) / "manifest.json"
    medium.break_at(manifest, 0)
    with open(manifest, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # otherwise it would come from the page cache
    with pytest.raises(Corrupt):
        store.driver.find_snapshot(snapshot)
    with pytest.raises(Corrupt):
        store.driver.revert_volume(volume, snapshot)
    assert list(store.driver.manifests()) == []
    store.driver.delete_snapshot(snapshot)


def test_a_volume_that_cannot_be_read_is_not_captured(medium: Medium, store: LocalStore) -> None:
    """Only volumes are on the medium, because writing to it would repair it."""
    volumes = store.folder / "volumes"
    volumes.mkdir(parents=True)
    subprocess.run(["mount", "--bind", medium.root, volumes], check=True)
    try:
        volume = put_image(store, {0: blake3(b"noise").digest(8 * MIB)})
        snapshot = capture(store, volume)
        medium.break_at(store.path(volume), 6 * MIB)
        with open(store.path(volume), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # otherwise it would come from the page cache
        with pytest.raises(Unreadable, match="“files” could not be read: the medium reports errors"):
            capture(store, volume)
        assert [path.name for path in (store.folder / "snapshots").iterdir()] == [str(snapshot.uuid)]
        assert store.driver.verify_snapshot(snapshot).checksum == snapshot.checksum
    finally:
        subprocess.run(["umount", volumes], check=True)


def test_a_medium_that_fails_completely_is_an_unavailable_storage(
    medium: Medium, on_medium: tuple[LocalStore, VolumeRef, SnapshotRef]
) -> None:
    """Nothing is considered damaged, missing or deleted."""
    store, volume, snapshot = on_medium
    actions: list[Callable[[], object]] = [
        store.driver.check_health,
        lambda: capture(store, volume),
        lambda: store.driver.create_volume(VolumeRef(uuid=uuid4(), name="new", size_gb=1)),
        lambda: store.driver.revert_volume(volume, snapshot),
        lambda: store.driver.verify_snapshot(snapshot),
        lambda: store.driver.delete_snapshot(snapshot),
    ]
    medium.shut_down()
    for action in actions:
        with pytest.raises(Unavailable, match="The storage of TEST-1 failed: Input/output error"):
            action()


# A storage that is not mounted


def test_a_storage_that_is_not_mounted_is_not_written_to(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    volume = put_image(store, {0: b"data"})
    snapshot = capture(store, volume)
    store.folder.rename(tmp_path / "unmounted")
    another = LocalStore(tmp_path)  # of a process that was started meanwhile
    another.driver.is_set_up = True
    other = VolumeRef(uuid=uuid4(), name="new", size_gb=1)
    for driver in (store.driver, another.driver):
        actions: list[Callable[[], object]] = [
            driver.check_health,
            driver.free_bytes,
            lambda driver=driver: driver.create_volume(other),
            lambda driver=driver: driver.delete_volume(volume),
            lambda driver=driver: driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)]),
            lambda driver=driver: driver.find_snapshot(snapshot),
            lambda driver=driver: driver.verify_snapshot(snapshot),
            lambda driver=driver: driver.delete_snapshot(snapshot),
            lambda driver=driver: driver.revert_volume(volume, snapshot),
            lambda driver=driver: driver.bytes_needed([volume]),
            lambda driver=driver: list(driver.list_objects()),
            driver.remove_orphans,
        ]
        for action in actions:
            with pytest.raises(Unavailable, match="The storage of TEST-1 isn't mounted"):
                action()
    assert list(tmp_path.iterdir()) == [tmp_path / "unmounted"]
    (tmp_path / "unmounted").rename(store.folder)
    assert store.driver.verify_snapshot(snapshot).checksum == snapshot.checksum
