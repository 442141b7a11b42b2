"""`contract.Store` for the lab's Cinder."""

from typing import Any

from snapshots.storage.cinder import CinderDriver
from snapshots.storage.cinder.creation import name_of
from snapshots.storage.contract import GIB, SnapshotRef, VolumeRef
from tests.lab.openstack.pool import Pool


class CinderStore:
    def __init__(self, driver: CinderDriver, cinder: Any, pool: Pool) -> None:
        self.driver = driver
        self.cinder = cinder  # the block storage service of the same project
        self.pool = pool

    def id(self, volume: VolumeRef) -> str:
        if volume.backend_ref:
            return volume.backend_ref
        [item] = self.cinder.volumes(name=name_of(volume.uuid))
        return item.id

    def write(self, volume: VolumeRef, content: dict[int, bytes]) -> None:
        self.pool.write(self.id(volume), content)

    def read(self, volume: VolumeRef, offset: int, length: int) -> bytes:
        return self.pool.read(self.id(volume), offset, length)

    def read_snapshot(self, snapshot: SnapshotRef, offset: int, length: int) -> bytes:
        volume_id = self.cinder.get_snapshot(snapshot.backend_ref).volume_id
        return self.pool.read_snapshot(volume_id, snapshot.backend_ref, offset, length)

    def holds(self, volume: VolumeRef, data: bytes) -> bool:
        volume_id, end = self.id(volume), len(data)
        if self.pool.read(volume_id, 0, end) != data:
            return False
        rest = [(max(start, end), start + length) for start, length in self.pool.extents(volume_id)]
        return not any(
            self.pool.read(volume_id, start, stop - start).strip(b"\0") for start, stop in rest if start < stop
        )

    def size(self, volume: VolumeRef) -> int:
        size_gb = self.cinder.get_volume(self.id(volume)).size
        assert self.pool.size(self.id(volume)) == size_gb * GIB
        return size_gb * GIB

    def leftovers(self, *, of: str = "") -> list[str]:
        """Return incomplete and duplicate objects, and images and snapshots on Ceph that Cinder doesn't know.

        `of` restricts it to a volume, its snapshots and their copies, because other tests may run at the same time.
        """
        volumes, snapshots, images = list(self.cinder.volumes()), list(self.cinder.snapshots()), self.pool.images()
        expected = {f"volume-{volume.id}" for volume in volumes}
        if of:
            snapshots = [snapshot for snapshot in snapshots if snapshot.volume_id == of]
            sources = {of, *(snapshot.id for snapshot in snapshots)}
            volumes = [each for each in volumes if sources & {each.id, each.source_volume_id, each.snapshot_id}]
            images = [image for image in images if self.pool.parent(image) == f"volume-{of}"]
        items = [*volumes, *snapshots]
        problems = [f"{item.name} is {item.status}" for item in items if item.status not in {"available", "in-use"}]
        names = [item.name for item in items]
        problems += [f"{name} twice" for name in sorted(set(names)) if names.count(name) > 1]
        problems += [image for image in images if image not in expected and not image.endswith(".deleted")]
        for volume in volumes:
            ids = {snapshot.id for snapshot in snapshots if snapshot.volume_id == volume.id}
            there = {name for name in self.pool.snapshots(volume.id) if not name.endswith(".clone_snap")}
            problems += [f"snapshot {name}" for name in sorted(there ^ ids)]
        return problems
