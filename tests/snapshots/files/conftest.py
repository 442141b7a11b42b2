"""Images of every file system, created once, and snapshots of them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cng_portal.accounts.models import Project
from snapshots.models import DiskImage, volume_ref
from snapshots.storage.contract import GIB
from snapshots.storage.registry import get_driver
from tests.factories import ProjectFactory, SnapshotFactory
from tests.snapshots.files.images import MAKERS, copy_sparse, make_tree

Images = Callable[[str], Path]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """images("ext4") returns an image with the tree of images.py, which tests only read."""
    folder = tmp_path_factory.mktemp("images")
    tree = make_tree(tmp_path_factory.mktemp("tree"))
    created: dict[str, Path] = {}

    def images(name: str) -> Path:
        if name not in created:
            created[name] = MAKERS[name](folder / f"{name}.img", tree)
        return created[name]

    return images


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def capture(project: Project, storage_root: Path) -> Callable[..., DiskImage]:
    """capture(image) returns the disk of a snapshot of a volume with this image."""

    def capture(image: Path) -> DiskImage:
        snapshot = SnapshotFactory(volume__project=project, volume__size_gb=1)
        volume = snapshot.volume
        path = storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            copy_sparse(image, file.fileno(), 0)
            os.truncate(path, GIB)
        disk = snapshot.disks.get()
        get_driver(snapshot.location).create_snapshots([(disk.ref, volume_ref(volume))])
        return disk

    return capture
