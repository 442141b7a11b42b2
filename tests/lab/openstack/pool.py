"""The bytes of Cinder's volumes and snapshots, read and written through librbd behind Cinder's back.

Cinder calls the image of a volume `volume-<id>` and a snapshot in it `snapshot-<id>`. Debian's python3-rados and
python3-rbd are modules of the system's Python only, so they are loaded from where they lie.
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
        patience = {"rados_osd_op_timeout": "90"}  # without it a test would wait for ever
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

    def snapshots(self, volume_id: str) -> list[str]:
        with self.rbd.Image(self.volumes, f"volume-{volume_id}", read_only=True) as image:
            return [snapshot["name"].removeprefix("snapshot-") for snapshot in image.list_snaps()]

    def images(self) -> list[str]:
        return self.rbd.RBD().list(self.volumes)

    def parent(self, image_name: str) -> str:
        """The image that it was cloned from, "" when it was not, or is gone by now."""
        try:
            with self.rbd.Image(self.volumes, image_name, read_only=True) as image:
                return image.get_parent_image_spec()["image_name"]
        except self.rbd.ImageNotFound:  # also when there is no parent
            return ""

    def remove(self, volume_id: str) -> None:
        """Take the image away from under its volume."""
        self.rbd.RBD().remove(self.volumes, f"volume-{volume_id}")

    def close(self) -> None:
        self.volumes.close()
        self.cluster.shutdown()
