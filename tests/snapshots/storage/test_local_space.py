"""The local driver on a file system that is full or fails, and what it removes."""

import errno
import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from snapshots.storage.contract import (
    GIB,
    Interrupted,
    NoSpace,
    NotPermitted,
    SnapshotRef,
    TooLarge,
    Unavailable,
    VolumeRef,
)
from snapshots.storage.local import LocalDriver
from snapshots.storage.local.copying import CHUNK
from tests.snapshots.disks import touch_every_chunk
from tests.snapshots.storage.stores import LocalStore, capture, noise, put_image, ref_of

MIB = 1024**2
pytestmark = pytest.mark.slow


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
