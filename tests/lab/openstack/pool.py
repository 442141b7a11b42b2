"""Reads and writes the data of Cinder's volumes and snapshots through librbd, bypassing Cinder.

The image of a volume is `volume-<id>` and a snapshot in it `snapshot-<id>`. Debian installs python3-rados and
python3-rbd for the system's Python only, so they are loaded from its folder.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")


def load(name: str) -> Any:
    if name not in sys.modules:
        [path] = SYSTEM_PACKAGES.glob(f"{name}.cpython-3{sys.version_info.minor}-*.so")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Pool:
    """The pool in which the lab's Cinder keeps its volumes."""

    def __init__(self, lab: Path) -> None:
        rados, self.rbd = load("rados"), load("rbd")
        patience = {"rados_osd_op_timeout": "90"}  # without it a test would wait forever
        self.cluster = rados.Rados(conffile=str(lab / "ceph" / "ceph.conf"), rados_id="cinder", conf=patience)
        self.cluster.connect(timeout=30)
        self.volumes = self.cluster.open_ioctx("volumes")

    def write(self, volume_id: str, content: dict[int, bytes]) -> None:
        with self.rbd.Image(self.volumes, f"volume-{volume_id}") as image:
            for offset, data in content.items():
                image.write(data, offset)
            image.flush()

    def read(self, volume_id: str, offset: int, length: int) -> bytes:
        with self.rbd.Image(self.volumes, f"volume-{volume_id}", read_only=True) as image:
            return image.read(offset, length)

    def read_snapshot(self, volume_id: str, snapshot_id: str, offset: int, length: int) -> bytes:
        name = f"volume-{volume_id}", f"snapshot-{snapshot_id}"
        with self.rbd.Image(self.volumes, name[0], snapshot=name[1], read_only=True) as image:
            return image.read(offset, length)

    def size(self, volume_id: str) -> int:
        with self.rbd.Image(self.volumes, f"volume-{volume_id}", read_only=True) as image:
            return image.size()

    def extents(self, volume_id: str) -> list[tuple[int, int]]:
        """Return the offset and length of each part that was written to the volume or to what it was cloned from."""
        extents: list[tuple[int, int]] = []
        with self.rbd.Image(self.volumes, f"volume-{volume_id}", read_only=True) as image:
            image.diff_iterate(0, image.size(), None, lambda start, length, exists: extents.append((start, length)))
        return extents

    def snapshots(self, volume_id: str) -> list[str]:
        with self.rbd.Image(self.volumes, f"volume-{volume_id}", read_only=True) as image:
            return [snapshot["name"].removeprefix("snapshot-") for snapshot in image.list_snaps()]

    def images(self) -> list[str]:
        return self.rbd.RBD().list(self.volumes)

    def parent(self, image_name: str) -> str:
        """Return the image it was cloned from; empty if it wasn't cloned or is gone."""
        try:
            with self.rbd.Image(self.volumes, image_name, read_only=True) as image:
                return image.get_parent_image_spec()["image_name"]
        except self.rbd.ImageNotFound:  # also raised if there is no parent
            return ""

    def remove(self, volume_id: str) -> None:
        """Remove a volume's image without telling Cinder."""
        self.rbd.RBD().remove(self.volumes, f"volume-{volume_id}")

    def close(self) -> None:
        self.volumes.close()
        self.cluster.shutdown()
