"""What storage passes to the reader of files: a read-only descriptor of the right disk, or a reason."""

import os
from pathlib import Path
from uuid import uuid4

import pytest

from snapshots.storage.contract import GIB, Corrupt, NotFound, NotOffered, SnapshotRef
from tests.snapshots.storage.stores import LocalStore, capture, put_image, ref_of


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "driver")


@pytest.fixture
def folder(store: LocalStore) -> Path:
    return capture(store, put_image(store, {0: b"begin", GIB - 3: b"end"}))


def test_a_disk_can_be_read_and_not_written(store: LocalStore, folder: Path) -> None:
    image = store.driver.open_for_reading(ref_of(folder))
    assert (os.pread(image, 5, 0), os.pread(image, 9, GIB - 3)) == (b"begin", b"end")
    with pytest.raises(OSError):
        os.pwrite(image, b"x", 0)
    os.close(image)


def test_a_disk_that_was_opened_stays_readable_when_its_snapshot_is_deleted(store: LocalStore, folder: Path) -> None:
    image = store.driver.open_for_reading(ref_of(folder))
    store.driver.delete_snapshot(ref_of(folder))
    assert os.pread(image, 5, 0) == b"begin"
    os.close(image)
    with pytest.raises(NotFound):
        store.driver.open_for_reading(ref_of(folder))


@pytest.mark.parametrize("how", ["link", "pipe", "short"])
def test_a_disk_of_another_size_is_not_opened(how: str, store: LocalStore, folder: Path) -> None:
    disk = folder / "disk.img"
    disk.chmod(0o600)
    if how == "short":
        os.truncate(disk, GIB - 1)
    else:
        disk.unlink()
        os.symlink("/etc/passwd", disk) if how == "link" else os.mkfifo(disk)
    with pytest.raises(Corrupt):
        store.driver.open_for_reading(ref_of(folder))


def test_cinder_explains_that_it_gives_no_access_to_bytes() -> None:
    pytest.importorskip("openstack")
    from snapshots.storage.cinder.driver import CinderDriver

    driver = CinderDriver.__new__(CinderDriver)  # asks no cloud
    with pytest.raises(NotOffered, match="Create a new volume from it"):
        driver.open_for_reading(SnapshotRef(uuid=uuid4()))
