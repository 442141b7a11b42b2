"""Disk images as files of one machine.

Below `<root>/<location code>/`, with uuids as names:

    volumes/<volume>.img                 writable, sparse
    snapshots/<snapshot>/disk.img        read-only
    snapshots/<snapshot>/manifest.json   see manifest.py
    snapshots/<snapshot>/catalogue       the list of its files, see files/catalogue.py
    snapshots/<snapshot>/hashes          of the content of some of them, see files/contents.py
    snapshots/<snapshot>/.verification   how far an interrupted scrub has come, see reading.py
    .lock                                one byte of it for each volume or snapshot in use

What is being created or removed has a hidden name: `.<uuid>.new`, `.<uuid>.old`. A rename makes it visible or invisible
at once, after everything below it is on the medium. The holder of a uuid's lock may remove its hidden files, because
the process that made them is dead.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog
from django.utils.translation import gettext as _

from ..checksums import checksum_like
from ..contract import (
    GIB,
    CatalogueFile,
    Consistency,
    Driver,
    Heartbeat,
    Refused,
    SnapshotInfo,
    SnapshotRef,
    StoredObject,
    Unreadable,
    VolumeRef,
    no_heartbeat,
)
from ..files import opened
from .copying import MediumError, Progress, bypass_page_cache, copy_data, fill_image
from .folder import LocationFolder
from .importing import open_image, unpack, unpacked_bytes
from .locking import Locked
from .manifest import Manifest
from .reading import SnapshotReader
from .snapshots import SnapshotFiles
from .volumes import VolumeFiles, lock_against_programs

logger = structlog.stdlib.get_logger(__name__)


class LocalDriver(Driver):
    """Files below `root`: clones where the file system shares blocks (XFS, Btrfs), else copies that keep holes."""

    consistency = Consistency.INSTANT
    reads_bytes = True

    def __init__(self, *, location: str, root: str, reserve_percent: int | str = 5) -> None:
        """Snapshots and volumes leave `reserve_percent` of the file system free for the portal itself, which must write even
        to delete: its database may be on the same file system, and every snapshot has a manifest.
        """
        if not re.fullmatch(r"[A-Z0-9][A-Z0-9-]{0,31}", location):
            raise ValueError(f"{location!r} is no location code.")
        if not re.fullmatch("[0-9]{1,2}", str(reserve_percent)):
            raise ValueError(f"reserve_percent is {reserve_percent!r}. Give a whole number from 0 to 99.")
        self.folder = LocationFolder(Path(root).absolute(), location, int(reserve_percent))
        self.volumes = VolumeFiles(self.folder)
        self.snapshots = SnapshotFiles(self.folder, self.volumes)
        self.reader = SnapshotReader(self.folder, self.snapshots)

    @property
    def is_set_up(self) -> bool:  # type: ignore[override]
        return self.folder.is_set_up

    @is_set_up.setter
    def is_set_up(self, is_set_up: bool) -> None:
        self.folder.is_set_up = is_set_up

    # Volumes

    def check_volume_size(self, size_gb: int) -> None:
        with self.folder.errors():
            self.folder.create()
            with tempfile.TemporaryFile(dir=self.folder.volumes) as probe:
                os.ftruncate(probe.fileno(), size_gb * GIB)

    def create_volume(self, volume: VolumeRef, heartbeat: Heartbeat = no_heartbeat) -> str:
        heartbeat(0, 0)
        with self.folder.lock(exclusive=[volume]):
            if not self.volumes.exists(volume):
                with self.volumes.replacement(volume) as image:
                    os.ftruncate(image, volume.size_gb * GIB)
                    os.fsync(image)
        return ""

    def extend_volume(self, volume: VolumeRef, new_size_gb: int, heartbeat: Heartbeat = no_heartbeat) -> None:
        heartbeat(0, 0)
        with (
            self.folder.lock(exclusive=[volume]),
            self.volumes.open(volume, writing=True, up_to_gb=new_size_gb) as image,
        ):
            # Through /proc, because the image is open for reading only.
            os.truncate(f"/proc/self/fd/{image}", new_size_gb * GIB)
            os.fsync(image)

    def create_volume_from_snapshot(
        self,
        snapshot: SnapshotRef,
        volume: VolumeRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> str:
        size = volume.size_gb * GIB
        with self.folder.lock(exclusive=[volume], shared=[snapshot]):
            if self.volumes.exists(volume):
                return ""
            with self._open_snapshot(snapshot, volume, size) as (manifest, source):
                with self.volumes.replacement(volume) as image:
                    self.reader.fill(snapshot, manifest, source, image, size, heartbeat, unchecked=unchecked)
        return ""

    def revert_volume(
        self,
        volume: VolumeRef,
        snapshot: SnapshotRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> None:
        with (
            self.folder.lock(exclusive=[volume], shared=[snapshot]),
            self.volumes.open(volume, writing=True) as current,
        ):
            before = os.fstat(current)
            with self._open_snapshot(snapshot, volume, before.st_size) as (manifest, source):
                with self.volumes.replacement(volume, before.st_mode & 0o7777) as image:
                    fresh = os.fstat(image)
                    if (before.st_uid, before.st_gid) != (fresh.st_uid, fresh.st_gid):
                        os.fchown(image, before.st_uid, before.st_gid)
                    self.reader.fill(snapshot, manifest, source, image, before.st_size, heartbeat, unchecked=unchecked)

    @contextmanager
    def _open_snapshot(self, snapshot: SnapshotRef, volume: VolumeRef, size: int) -> Iterator[tuple[Manifest, int]]:
        """Open the snapshot's disk for a volume of `size` bytes. Raises NotFound, NoSpace, Corrupt, Refused."""
        manifest = self.snapshots.get(snapshot.uuid)
        if size < manifest.size_bytes:
            raise Refused(
                _("The volume “%(name)s” would be smaller than the snapshot. Choose a size of %(size)s GB or more.")
                % {"name": volume.name, "size": -(-manifest.size_bytes // GIB)}
            )
        with opened(self.folder.disk_path(snapshot.uuid), below=self.folder.path) as source:
            self.folder.check_space([source])
            yield manifest, source

    def delete_volume(self, volume: VolumeRef) -> None:
        with self.folder.lock(exclusive=[volume]):
            self.volumes.delete(volume)

    def measure_volume(self, volume: VolumeRef) -> int:
        with self.folder.errors():
            return self.volumes.stat_any_size(volume).st_size

    def open_volume(self, volume: VolumeRef) -> int:
        with self.folder.errors():
            return self.volumes.open_for_reading(volume)

    def checksum_volume(self, volume: VolumeRef, like: str, heartbeat: Heartbeat = no_heartbeat) -> str:
        with self.folder.lock(shared=[volume]), self.volumes.open(volume, writing=False) as image:
            size, checksum = os.fstat(image).st_size, checksum_like(like)
            progress = Progress(heartbeat, size)
            bypass_page_cache(image)
            try:
                copy_data(image, None, size, progress, checksum)
            except MediumError as error:
                message = _("The disk of the volume “%(name)s” could not be read: the medium reports errors.")
                raise Unreadable(message % {"name": volume.name}) from error
            progress.beat()
            return checksum.finish()

    def import_image(self, volume: VolumeRef, image: Path, heartbeat: Heartbeat = no_heartbeat) -> str:
        """Create a volume from a disk image, with zeros up to its size; return its backend_ref. Not in the contract.

        Raises Refused (not an image that can be imported, larger than the volume, the volume exists), Busy, NoSpace,
        Unavailable.
        """
        with self.folder.lock(exclusive=[volume]), open_image(image) as source:
            if os.path.lexists(self.folder.volume_path(volume.uuid)) or source.size > volume.size_gb * GIB:
                raise Refused(
                    _("The volume “%(name)s” already exists, or is smaller than the image.") % {"name": volume.name}
                )
            is_raw = source.format == "raw"
            if is_raw:  # for other formats qemu-img takes the locks
                lock_against_programs(source.file, image.name, writing=False)
            self.folder.check_space([source.file], unpacked=0 if is_raw else unpacked_bytes(source))
            with self.volumes.replacement(volume) as target:
                progress = Progress(self.folder.guard_reserve(heartbeat), source.size)
                if is_raw:
                    cloning = self.folder.can_clone
                    if fill_image(source.file, target, volume.size_gb * GIB, progress, cloning=cloning) == "clone":
                        progress.add(source.size)
                else:
                    os.ftruncate(target, volume.size_gb * GIB)
                    unpack(source, target, progress)
                    progress.during(os.fsync, target)
                progress.beat()
        return ""

    # Snapshots

    def create_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        snapshots, volumes = [snapshot for snapshot, _volume in disks], [volume for _snapshot, volume in disks]
        with self.folder.lock(exclusive=snapshots, shared=volumes):
            missing = {snapshot.uuid: volume for snapshot, volume in disks if not self.snapshots.find(snapshot.uuid)}
            if missing:
                self.snapshots.capture(missing, heartbeat)
            return [self.snapshots.get(snapshot.uuid).as_info() for snapshot in snapshots]

    def find_snapshot(self, snapshot: SnapshotRef) -> SnapshotInfo | None:
        with self.folder.errors():
            manifest = self.snapshots.find(snapshot.uuid)
            return manifest.as_info() if manifest else None

    def verify_snapshot(
        self, snapshot: SnapshotRef, heartbeat: Heartbeat = no_heartbeat, *, resume: bool = False
    ) -> SnapshotInfo:
        with self.folder.lock(shared=[snapshot], verifying=[snapshot]):
            return self.reader.verify(snapshot, heartbeat, resume=resume).as_info()

    def open_for_reading(self, snapshot: SnapshotRef) -> int:
        with self.folder.lock(shared=[snapshot]):
            return self.snapshots.open_disk(snapshot.uuid)

    def store_catalogue(
        self, snapshot: SnapshotRef, data: Iterable[bytes], file: CatalogueFile = CatalogueFile.RECORDS
    ) -> None:
        with self.folder.lock(shared=[snapshot]), self.folder.lock_catalogue(snapshot):
            self.snapshots.store_catalogue(snapshot.uuid, data, file)

    def open_catalogue(self, snapshot: SnapshotRef, file: CatalogueFile = CatalogueFile.RECORDS) -> int | None:
        with self.folder.errors():
            return self.snapshots.open_catalogue(snapshot.uuid, file)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        with self.folder.lock(exclusive=[snapshot]):
            self.snapshots.delete(snapshot.uuid)

    def manifests(self) -> Iterator[tuple[UUID, str]]:
        with self.folder.errors():
            yield from self.snapshots.manifests()

    def put_manifest(self, uuid: UUID, text: str) -> bool:
        with self.folder.lock(exclusive=[SnapshotRef(uuid=uuid)]):
            return self.snapshots.put_manifest(uuid, text)

    # Capacity and health

    @property
    def clones(self) -> bool:
        return self.shares_blocks

    @property
    def shares_blocks(self) -> bool:
        with self.folder.errors():
            return self.folder.can_clone

    def bytes_needed(self, volumes: Sequence[VolumeRef]) -> int:
        with self.folder.errors():
            allocated = [self.volumes.stat(volume).st_blocks * 512 for volume in volumes]
            return 0 if self.folder.can_clone else sum(allocated)

    def free_bytes(self) -> int:
        with self.folder.errors():
            return self.folder.free_bytes()

    def check_health(self) -> None:
        with self.folder.errors():
            self.folder.check_health()

    # Inventory

    def list_objects(self, backend_project: str = "") -> Iterator[StoredObject]:
        with self.folder.errors():
            for entry in self.folder.entries():
                if entry.is_hidden and self.folder.is_entry_locked(entry):
                    continue
                try:
                    status = entry.path.lstat()
                except FileNotFoundError:  # complete or gone meanwhile
                    continue
                is_volume = entry.kind == "volume" and entry.uuid and not entry.is_hidden
                yield StoredObject(
                    name=os.path.relpath(entry.path, self.folder.path.parent),
                    uuid=entry.uuid,
                    is_incomplete=entry.is_hidden,
                    size_bytes=status.st_size if is_volume else None,
                    changed_at=datetime.fromtimestamp(status.st_mtime, UTC),
                    is_unchanged=partial(is_unchanged, entry.path, status, at_rest=entry.is_hidden),
                )

    def remove_orphans(self, backend_project: str = "", needed: Callable[[UUID], bool] = lambda uuid: False) -> None:
        with self.folder.errors():
            for entry in list(self.folder.entries()):
                if entry.is_hidden and entry.uuid:
                    with suppress(Locked), self.folder.lock_entry(entry):
                        self._remove_orphan(entry.kind, entry.uuid, entry.path, needed)

    def _remove_orphan(self, kind: str, uuid: UUID, path: Path, needed: Callable[[UUID], bool]) -> None:
        """Remove hidden files whose process is dead, unless they are the only copy of something that is needed."""
        if kind == "snapshot":
            self.snapshots.settle(uuid)
        visible = self.folder.volume_path(uuid) if kind == "volume" else self.folder.snapshot_path(uuid)
        if not visible.exists() and needed(uuid):
            logger.error("storage.orphan_needed", path=str(path))
        elif kind == "volume":
            path.unlink(missing_ok=True)
        else:
            self.snapshots.clear(uuid)


def is_unchanged(path: Path, before: os.stat_result, *, at_rest: bool) -> bool:
    """Return whether it is still the same file of the same size and, with `at_rest`, nobody has written to it since."""
    try:
        now = path.lstat()
    except FileNotFoundError:
        return False
    is_untouched = now.st_mtime_ns == before.st_mtime_ns or not at_rest
    return (now.st_ino, now.st_size) == (before.st_ino, before.st_size) and is_untouched
