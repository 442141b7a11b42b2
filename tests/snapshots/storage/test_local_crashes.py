"""A process is killed before any line of the driver that changes files: files stay complete, and the next call continues.

The process is a fork that counts the lines it is about to run, and sends itself SIGKILL at the n-th. Each test increases
n until the call survives.
"""

import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID, uuid4

import pytest
from blake3 import blake3

from snapshots.storage.contract import GIB, SnapshotRef, VolumeRef
from snapshots.storage.local import copying, driver, folder, reading, snapshots, volumes
from tests.snapshots.disks import checksum_of, holds
from tests.snapshots.storage.stores import LocalStore

# Locks are held around all of this, and the copying loop only fills a file without a name.
DRIVER_FILES = {module.__file__ for module in (copying, driver, folder, reading, snapshots, volumes)}
FILE_CHANGING = {"create_volume", "create_volume_from_snapshot", "extend_volume", "revert_volume", "delete"}
FILE_CHANGING |= {
    "capture",
    "_fill_hidden",
    "publish",
    "settle",
    "clear",
    "replacement",
    "created_file",
    "fill",
    "verify",
}
FILE_CHANGING |= {"write_manifest", "fill_image", "write_file", "sync_folder", "logged_read"}
pytestmark = pytest.mark.slow

BEFORE = blake3(b"before").digest(100_000)
AFTER = blake3(b"after").digest(100_000)


@pytest.fixture(params=["copying", "cloning"])
def store(request: pytest.FixtureRequest) -> Iterator[LocalStore]:
    if request.param == "cloning":
        yield LocalStore(request.getfixturevalue("cloning_root"))
    else:  # in memory if possible: hundreds of rounds would wait for hundreds of fsyncs
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        root = Path(tempfile.mkdtemp(dir=memory))
        yield LocalStore(root)
        shutil.rmtree(root)


def steps(store: LocalStore) -> Iterator[int]:
    return count(1, 3 if store.driver.clones else 1)  # clones differ in a few lines only, and wait for a medium


def is_killed(call: Callable[[], object], line: int) -> bool:
    """Run the call in a process that dies before the n-th line. Returns False if it completed."""
    process = os.fork()
    if process == 0:
        lines = count(1)

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            code = frame.f_code
            if code.co_filename not in DRIVER_FILES or code.co_name not in FILE_CHANGING:
                return None
            if event == "line" and next(lines) == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            call()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    assert status in (0, signal.SIGKILL), "the call failed"
    return status != 0


def new_volume(store: LocalStore, content: bytes = BEFORE) -> VolumeRef:
    volume = VolumeRef(uuid=uuid4(), name="files", size_gb=1)
    store.driver.create_volume(volume)
    store.write(volume, {0: content})
    return volume


def bytes_of(store: LocalStore, disk: VolumeRef | SnapshotRef) -> bytes:
    """Return the bytes at its start, after checking that it has no others."""
    path = store.path(disk) if isinstance(disk, VolumeRef) else store.folder / f"snapshots/{disk.uuid}/disk.img"
    with open(path, "rb") as image:
        data = image.read(len(BEFORE))
    assert path.stat().st_size == GIB and holds(path, data)
    return data


def discard(store: LocalStore, volumes: list[VolumeRef]) -> None:
    for volume in volumes:
        store.path(volume).unlink()


def test_a_killed_capture_of_two_disks_is_all_or_nothing_and_of_one_instant(store: LocalStore) -> None:
    outcomes = set()
    for line in steps(store):
        volumes = [new_volume(store), new_volume(store)]
        disks = [(SnapshotRef(uuid=uuid4()), volume) for volume in volumes]
        killed = is_killed(lambda: store.driver.create_snapshots(disks), line)  # noqa: B023
        infos_found = [store.driver.find_snapshot(snapshot) for snapshot, _volume in disks]
        assert all(infos_found) or not any(infos_found)
        for volume in volumes:
            store.write(volume, {0: AFTER})
        infos = store.driver.create_snapshots(disks)
        assert len({info.captured_at for info in infos}) == 1
        contents = {bytes_of(store, snapshot) for snapshot, _volume in disks}
        assert contents == ({BEFORE} if all(infos_found) else {AFTER})
        outcomes.add((killed, all(infos_found)))
        for snapshot, _volume in disks:
            store.driver.verify_snapshot(snapshot)
            store.driver.delete_snapshot(snapshot)
        assert store.leftovers() == []
        discard(store, volumes)
        if not killed:
            break
    assert outcomes == {(True, False), (True, True), (False, True)}


def test_a_killed_revert_leaves_the_old_bytes_or_the_new(store: LocalStore) -> None:
    volume, snapshot = new_volume(store), SnapshotRef(uuid=uuid4())
    store.driver.create_snapshots([(snapshot, volume)])
    outcomes = set()
    for line in steps(store):
        store.write(volume, {0: AFTER})
        killed = is_killed(lambda: store.driver.revert_volume(volume, snapshot), line)  # noqa: B023
        outcomes.add(bytes_of(store, volume))
        store.driver.revert_volume(volume, snapshot)
        assert bytes_of(store, volume) == BEFORE
        assert store.leftovers() == []
        if not killed:
            break
    assert outcomes == {BEFORE, AFTER}


@pytest.mark.parametrize("half_renamed", [False, True], ids=["a whole group", "a group whose maker died"])
def test_a_killed_deletion_is_none_or_done(store: LocalStore, half_renamed: bool) -> None:
    outcomes = set()
    for line in steps(store):
        volumes = [new_volume(store), new_volume(store)]
        snapshots = [SnapshotRef(uuid=uuid4()), SnapshotRef(uuid=uuid4())]
        store.driver.create_snapshots(list(zip(snapshots, volumes, strict=True)))
        if half_renamed:  # as left by a process that dies between the two renames
            path = store.folder / "snapshots" / str(snapshots[1].uuid)
            path.rename(path.with_name(f".{path.name}.new"))
        killed = is_killed(lambda: store.driver.delete_snapshot(snapshots[0]), line)  # noqa: B023
        outcomes.add(store.driver.find_snapshot(snapshots[0]) is None)
        if store.driver.find_snapshot(snapshots[0]):
            store.driver.verify_snapshot(snapshots[0])
        store.driver.delete_snapshot(snapshots[0])
        assert store.driver.find_snapshot(snapshots[0]) is None
        assert store.driver.verify_snapshot(snapshots[1])
        assert store.leftovers() == []
        discard(store, volumes)
        if not killed:
            break
    assert outcomes == {True, False}


@pytest.mark.parametrize("from_snapshot", [True, False])
def test_a_killed_new_volume_is_none_or_whole(store: LocalStore, from_snapshot: bool) -> None:
    snapshot = SnapshotRef(uuid=uuid4())
    store.driver.create_snapshots([(snapshot, new_volume(store))])
    outcomes = set()
    for line in steps(store):
        volume = VolumeRef(uuid=uuid4(), name="new", size_gb=1)

        def make(volume: VolumeRef = volume) -> None:
            if from_snapshot:
                store.driver.create_volume_from_snapshot(snapshot, volume)
            else:
                store.driver.create_volume(volume)

        killed = is_killed(make, line)
        outcomes.add(store.path(volume).exists())
        make()
        assert store.size(volume) == 1024**3
        assert store.read(volume, 0, len(BEFORE)) == (BEFORE if from_snapshot else bytes(len(BEFORE)))
        assert store.leftovers() == []
        store.path(volume).unlink()
        if not killed:
            break
    assert outcomes == {True, False}


@pytest.mark.parametrize("resume", [False, True])
def test_a_killed_verification_leaves_a_readable_snapshot(store: LocalStore, resume: bool) -> None:
    snapshot = SnapshotRef(uuid=uuid4())
    volume = new_volume(store)
    store.driver.create_snapshots([(snapshot, volume)])
    expected = checksum_of(store.path(volume))
    for line in steps(store):
        killed = is_killed(lambda: store.driver.verify_snapshot(snapshot, resume=resume), line)
        info = store.driver.find_snapshot(snapshot)
        assert info
        assert info.checksum in ("", expected)
        assert store.driver.verify_snapshot(snapshot, resume=resume).checksum == expected
        assert store.leftovers() == []
        if not killed:
            break


def test_nothing_stays_locked_after_a_kill_while_others_wait(store: LocalStore) -> None:
    """The kernel releases a dead process's locks, so there is no lease to wait for and no lock file to remove."""
    volume, snapshot = new_volume(store), SnapshotRef(uuid=UUID(int=5))

    def die(bytes_done: int, bytes_total: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert is_killed(lambda: store.driver.create_snapshots([(snapshot, volume)], die), 0)
    assert len(store.leftovers()) <= 1
    store.driver.remove_orphans()
    assert store.leftovers() == []
    assert store.driver.create_snapshots([(snapshot, volume)])


def test_a_killed_extension_leaves_the_old_size_or_the_new(store: LocalStore) -> None:
    outcomes = set()
    for line in steps(store):
        volume = new_volume(store)
        killed = is_killed(lambda: store.driver.extend_volume(volume, 2), line)  # noqa: B023
        outcomes.add(store.size(volume))
        store.driver.extend_volume(volume, 2)
        assert store.size(volume) == 2 * GIB
        assert store.read(volume, 0, len(BEFORE)) == BEFORE
        assert store.leftovers() == []
        discard(store, [volume])
        if not killed:
            break
    assert outcomes == {GIB, 2 * GIB}


def test_a_killed_deletion_of_a_volume_is_none_or_done(store: LocalStore) -> None:
    outcomes = set()
    for line in steps(store):
        volume = new_volume(store)
        killed = is_killed(lambda: store.driver.delete_volume(volume), line)  # noqa: B023
        outcomes.add(store.path(volume).exists())
        store.driver.delete_volume(volume)
        assert not store.path(volume).exists()
        assert store.leftovers() == []
        if not killed:
            break
    assert outcomes == {True, False}
