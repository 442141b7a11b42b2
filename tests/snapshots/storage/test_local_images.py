"""What is in the place of an image or a snapshot may be anything: only regular files of the right size are used."""

import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from snapshots.storage.contract import (
    GIB,
    Corrupt,
    InvalidImage,
    SnapshotRef,
    VolumeRef,
)
from tests.snapshots.storage.stores import LocalStore, capture, noise, put_image, ref_of

MIB = 1024**2
pytestmark = pytest.mark.slow


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
