"""The folders of snapshots: captured aside, published by a rename, read with their manifest, and removed.

Several disks that are captured together are decided by the first of their renames: from then on the others count as
captured too, and the next process that meets them finishes the renames of a dead one (`settle`).
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from django.utils.translation import gettext as _

from ..checksums import ChunkedChecksum
from ..contract import CatalogueFile, Corrupt, Heartbeat, NotFound, Unreadable, VolumeRef, no_heartbeat
from ..files import NotRegularFile, open_regular_file, read_small_file, stat_regular_file
from .copying import MediumError, Progress, fill_image, read_twice, sync_folder, write_file
from .folder import FOLDER_MODE, LocationFolder, created_file
from .manifest import Manifest
from .volumes import VolumeFiles

SNAPSHOT_MODE = 0o440
NO_MANIFEST = (FileNotFoundError, ValueError, MediumError)


class SnapshotFiles:
    """The caller holds the snapshot's lock for whatever changes it."""

    def __init__(self, folder: LocationFolder, volumes: VolumeFiles) -> None:
        self.folder, self.volumes = folder, volumes

    # Manifests

    def find(self, uuid: UUID) -> Manifest | None:
        """None when the snapshot is missing or incomplete. Raises Corrupt when its manifest or its disk is damaged."""
        self.settle(uuid)
        path = self.folder.snapshot_path(uuid)
        try:
            manifest = self.read_manifest(path)
            size = stat_regular_file(self.folder.disk_path(uuid), below=self.folder.path).st_size
        except FileNotFoundError as error:
            if not path.exists():
                return None
            raise Corrupt(
                _("A part of the snapshot is missing, so it cannot be used. Contact your provider.")
            ) from error
        except NotRegularFile as error:
            raise Corrupt(
                _("A part of the snapshot is not a regular file, so it cannot be used. Contact your provider.")
            ) from error
        except MediumError as error:
            raise self.unreadable() from error
        except ValueError as error:
            raise Corrupt(
                _("The snapshot's description is damaged, so it cannot be used. Contact your provider.")
            ) from error
        if manifest.snapshot_uuid != str(uuid) or manifest.size_bytes != size:
            raise Corrupt(
                _("The snapshot does not have the size that was captured. Do not rely on it; contact your provider.")
            )
        return manifest

    def get(self, uuid: UUID) -> Manifest:
        """Raises NotFound, Corrupt."""
        manifest = self.find(uuid)
        if not manifest:
            raise NotFound(
                _("The snapshot is not in the storage of %(location)s.") % {"location": self.folder.location}
            )
        return manifest

    def open_disk(self, uuid: UUID) -> int:
        """Return a read-only descriptor of its disk. Raises NotFound, Corrupt."""
        manifest = self.get(uuid)
        image = open_regular_file(self.folder.disk_path(uuid), below=self.folder.path)
        if os.fstat(image).st_size != manifest.size_bytes:  # replaced since `get` looked
            os.close(image)
            raise self.unreadable()
        return image

    def unreadable(self) -> Corrupt:
        """The error for a snapshot whose medium fails.

        Raises OSError when the file system fails altogether, because then nothing is known about this snapshot.
        """
        self.folder.check_health()
        return Corrupt(
            _(
                "The snapshot could not be read: the medium reports errors. Do not rely on it; take a new snapshot and "
                "contact your provider."
            )
        )

    def read_manifest(self, path: Path) -> Manifest:
        """Raises FileNotFoundError, ValueError when it is damaged, MediumError."""
        return Manifest.parse(read_twice(lambda: read_small_file(path / "manifest.json", below=self.folder.path)))

    def write_manifest(self, uuid: UUID, manifest: Manifest) -> None:
        path = self.folder.snapshot_path(uuid)
        write_file(path / ".manifest.json.new", manifest.dump())
        os.replace(path / ".manifest.json.new", path / "manifest.json")
        sync_folder(path)

    def manifests(self) -> Iterator[tuple[UUID, str]]:
        for entry in self.folder.entries():
            if entry.kind == "snapshot" and entry.uuid and not entry.is_hidden:
                try:
                    text = self.read_manifest(entry.path).dump()
                except NO_MANIFEST:  # removed meanwhile, or of no use to anybody
                    continue
                yield entry.uuid, text

    def put_manifest(self, uuid: UUID, text: str) -> bool:
        """Write this manifest if the snapshot has bytes that it fits, and no readable manifest."""
        manifest = Manifest.parse(text)
        try:
            size = stat_regular_file(self.folder.disk_path(uuid), below=self.folder.path).st_size
        except (FileNotFoundError, NotRegularFile):
            return False
        try:
            self.read_manifest(self.folder.snapshot_path(uuid))
            return False
        except NO_MANIFEST:
            pass
        if manifest.snapshot_uuid != str(uuid) or manifest.size_bytes != size:
            return False
        # The bytes may have changed since the manifest was backed up.
        self.write_manifest(uuid, replace(manifest, verified_at=None))
        return True

    # Catalogues

    def store_catalogue(self, uuid: UUID, data: Iterable[bytes], name: CatalogueFile) -> None:
        """Raises NotFound, Corrupt, NoSpace, OSError, and what `data` raises."""
        self.get(uuid)
        path = self.folder.snapshot_path(uuid)
        hidden = path / f".{name}.new"
        hidden.unlink(missing_ok=True)  # of a process that died
        require_room = self.folder.guard_reserve(no_heartbeat)
        try:
            with created_file(hidden, SNAPSHOT_MODE) as file, open(file, "wb", closefd=False) as stream:
                for piece in data:
                    require_room(0, 0)
                    stream.write(piece)
                stream.flush()
                os.fsync(file)
            hidden.rename(path / name)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        sync_folder(path)

    def open_catalogue(self, uuid: UUID, name: CatalogueFile) -> int | None:
        """Raises Corrupt if it isn't a regular file."""
        try:
            return open_regular_file(self.folder.snapshot_path(uuid) / name, below=self.folder.path)
        except FileNotFoundError:
            return None

    # Capturing

    def capture(self, volumes: dict[UUID, VolumeRef], heartbeat: Heartbeat) -> None:
        """Capture {snapshot uuid: volume}, whose locks are held: all of them, or none."""
        with ExitStack() as stack:
            sources = {
                uuid: stack.enter_context(self.volumes.open(volume, writing=False)) for uuid, volume in volumes.items()
            }
            for uuid in volumes:
                self.clear(uuid)
            self.folder.check_space(list(sources.values()))
            total = sum(os.fstat(source).st_size for source in sources.values())
            progress = Progress(self.folder.guard_reserve(heartbeat), total)
            captured_at, capture = datetime.now(UTC).isoformat(), str(uuid4())
            group = [str(uuid) for uuid in volumes]
            try:
                for uuid, volume in volumes.items():
                    self._fill_hidden(uuid, volume, sources[uuid], progress, captured_at, capture, group)
                sync_folder(self.folder.snapshots)
                progress.beat()
            except BaseException:
                for uuid in volumes:
                    self.clear(uuid)
                raise
            # The first rename decides. Should a later one fail, the next call finishes the others.
            for uuid in volumes:
                self.publish(uuid)
            sync_folder(self.folder.snapshots)

    def _fill_hidden(
        self,
        uuid: UUID,
        volume: VolumeRef,
        source: int,
        progress: Progress,
        captured_at: str,
        capture: str,
        group: list[str],
    ) -> None:
        """Write a snapshot with its manifest into its hidden folder. Raises Unreadable."""
        path = self.folder.hidden_path(self.folder.snapshots, uuid, "new")
        path.mkdir(FOLDER_MODE)
        size, checksum = os.fstat(source).st_size, ChunkedChecksum()
        with created_file(path / "disk.img", SNAPSHOT_MODE) as target:
            try:
                method = fill_image(source, target, size, progress, cloning=self.folder.can_clone, checksum=checksum)
            except MediumError as error:
                message = _(
                    "The disk of the volume “%(name)s” could not be read: the medium reports errors. Contact your provider."
                )
                raise Unreadable(message % {"name": volume.name}) from error
            if method == "clone":
                progress.add(size)
            allocated = os.fstat(target).st_blocks * 512
        manifest = Manifest(
            snapshot_uuid=str(uuid),
            volume_uuid=str(volume.uuid),
            volume_name=volume.name,
            size_bytes=size,
            allocated_bytes=allocated,
            checksum=checksum.finish() if method == "copy" else None,
            captured_at=captured_at,
            method=method,
            capture=capture,
            group=group,
        )
        write_file(path / "manifest.json", manifest.dump())
        sync_folder(path)

    def publish(self, uuid: UUID) -> None:
        path = self.folder.snapshot_path(uuid)
        try:
            self.folder.hidden_path(self.folder.snapshots, uuid, "new").rename(path)
        except FileNotFoundError:
            if not path.exists():  # otherwise another process settled it first
                raise

    def settle(self, uuid: UUID) -> None:
        """Publish a snapshot whose group is captured, but whose process died before this rename."""
        try:
            manifest = self.read_manifest(self.folder.hidden_path(self.folder.snapshots, uuid, "new"))
        except NO_MANIFEST:
            return
        for member in manifest.group:
            try:
                other = self.read_manifest(self.folder.snapshot_path(UUID(member)))
            except NO_MANIFEST:
                continue
            if other.capture == manifest.capture and UUID(member) != uuid:
                self.publish(uuid)
                sync_folder(self.folder.snapshots)
                return

    # Removing

    def delete(self, uuid: UUID) -> None:
        self.settle(uuid)
        path = self.folder.snapshot_path(uuid)
        self.clear(uuid)
        if os.path.lexists(path):
            for other in self._read_group(path):
                self.settle(other)  # without this one nothing would show that the others were captured
            path.rename(self.folder.hidden_path(self.folder.snapshots, uuid, "old"))
            sync_folder(self.folder.snapshots)
            self.clear(uuid)

    def clear(self, uuid: UUID) -> None:
        """Remove the hidden folders of a snapshot whose lock is held: their maker died or gave up."""
        for suffix in "new", "old":
            path = self.folder.hidden_path(self.folder.snapshots, uuid, suffix)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _read_group(self, path: Path) -> list[UUID]:
        try:
            return [UUID(member) for member in self.read_manifest(path).group]
        except NO_MANIFEST:
            return []
