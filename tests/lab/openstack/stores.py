"""What `contract.Store` asks for, on the lab's Cinder."""

from typing import Any

from snapshots.storage.cinder import CinderDriver
from snapshots.storage.cinder.creation import name_of
from snapshots.storage.contract import GIB, VolumeRef
from tests.lab.openstack.pool import Pool


class CinderStore:
    def __init__(self, driver: CinderDriver, cinder: Any, pool: Pool) -> None:
        self.driver = driver
        self.cinder = cinder  # openstacksdk's block storage service, of the same project
        self.pool = pool

    def id(self, volume: VolumeRef) -> str:
        if volume.backend_ref:
            return volume.backend_ref
        [found] = self.cinder.volumes(name=name_of(volume.uuid))
        return found.id

    def write(self, volume: VolumeRef, content: dict[int, bytes]) -> None:
        self.pool.write(self.id(volume), content)

    def read(self, volume: VolumeRef, offset: int, length: int) -> bytes:
        return self.pool.read(self.id(volume), offset, length)

    def size(self, volume: VolumeRef) -> int:
        size_gb = self.cinder.get_volume(self.id(volume)).size
        assert self.pool.size(self.id(volume)) == size_gb * GIB
        return size_gb * GIB

    def leftovers(self, *, of: str = "") -> list[str]:
        """Whatever is neither complete nor one of a kind, and images and snapshots on Ceph that Cinder does not know.

        With `of` only that volume, its snapshots, and what was made from either: others may be at work beside it.
        """
        volumes, snapshots, images = list(self.cinder.volumes()), list(self.cinder.snapshots()), self.pool.images()
        known = {f"volume-{volume.id}" for volume in volumes}
        if of:
            snapshots = [snapshot for snapshot in snapshots if snapshot.volume_id == of]
            sources = {of, *(snapshot.id for snapshot in snapshots)}
            volumes = [each for each in volumes if sources & {each.id, each.source_volume_id, each.snapshot_id}]
            images = [image for image in images if self.pool.parent(image) == f"volume-{of}"]
        things = [*volumes, *snapshots]
        found = [f"{thing.name} is {thing.status}" for thing in things if thing.status not in {"available", "in-use"}]
        names = [thing.name for thing in things]
        found += [f"{name} twice" for name in sorted(set(names)) if names.count(name) > 1]
        found += [image for image in images if image not in known and not image.endswith(".deleted")]
        for volume in volumes:
            ids = {snapshot.id for snapshot in snapshots if snapshot.volume_id == volume.id}
            there = {name for name in self.pool.snapshots(volume.id) if not name.endswith(".clone_snap")}
            found += [f"snapshot {name}" for name in sorted(there ^ ids)]
        return found
