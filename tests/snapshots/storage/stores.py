"""Implementations of `contract.Store`, and images and snapshots of the local driver."""

import os
from pathlib import Path
from uuid import UUID, uuid4

from blake3 import blake3

from snapshots.storage.contract import SnapshotRef, VolumeRef
from snapshots.storage.local import LocalDriver
from tests.snapshots.disks import holds


class LocalStore:
    """The local driver in a folder of its own."""

    def __init__(self, root: Path, driver: LocalDriver | None = None, location: str = "TEST-1") -> None:
        self.driver = driver or LocalDriver(location=location, root=str(root))
        self.folder = root / location

    def path(self, volume: VolumeRef) -> Path:
        return self.folder / "volumes" / f"{volume.uuid}.img"

    def write(self, volume: VolumeRef, content: dict[int, bytes]) -> None:
        with open(self.path(volume), "r+b") as image:
            for offset, data in content.items():
                image.seek(offset)
                image.write(data)
            image.flush()
            os.fsync(image.fileno())

    def read(self, volume: VolumeRef, offset: int, length: int) -> bytes:
        with open(self.path(volume), "rb") as image:
            image.seek(offset)
            return image.read(length)

    def read_snapshot(self, snapshot: SnapshotRef, offset: int, length: int) -> bytes:
        with open(self.folder / "snapshots" / str(snapshot.uuid) / "disk.img", "rb") as image:
            image.seek(offset)
            return image.read(length)

    def holds(self, volume: VolumeRef, data: bytes) -> bool:
        return holds(self.path(volume), data)

    def size(self, volume: VolumeRef) -> int:
        return self.path(volume).stat().st_size

    def leftovers(self) -> list[str]:
        files = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        files -= {".lock"} | {f"volumes/{path.name}" for path in self.folder.glob("volumes/[!.]*.img")}
        for path in self.folder.glob("snapshots/[!.]*"):
            files -= {f"snapshots/{path.name}/disk.img", f"snapshots/{path.name}/manifest.json"}
        return sorted(files | {f"snapshots/{path.name}" for path in self.folder.glob("snapshots/.*")})


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
