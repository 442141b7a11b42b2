"""Disk images as files of one machine.

Below `<root>/<location code>/`, with uuids as names:

    volumes/<volume>.img                 writable, sparse
    snapshots/<snapshot>/disk.img        read-only
    snapshots/<snapshot>/manifest.json   see Manifest
    .lock                                one byte of it for each thing that is being worked on

What is being built or removed has a hidden name: `.<uuid>.new`, `.<uuid>.old`. A rename, after everything below it is
on the medium, makes it visible or invisible at once. Whoever holds the lock of a uuid may remove its hidden files,
because their maker is dead.

Several disks captured together are decided by the first of their renames: from then on the others count as captured
too, and whoever meets them next renames what a dead process did not come to (`_settle`).
"""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from uuid import UUID, uuid4

import structlog
from django.utils.translation import gettext as _

from ..checksums import ChunkedChecksum, checksum_like
from ..contract import (
    GIB,
    VERIFICATION_VALID_FOR,
    Busy,
    Consistency,
    Corrupt,
    Driver,
    Heartbeat,
    Held,
    InvalidImage,
    NoSpace,
    NotFound,
    NotPermitted,
    Refused,
    SnapshotInfo,
    SnapshotRef,
    StorageError,
    TooLarge,
    Unavailable,
    VolumeRef,
    no_heartbeat,
)
from ..files import NotRegularFile, opened, read_small_file, stat_regular_file
from .copying import Progress, bypass_page_cache, clone_file, copy_data, fill_image, sync_folder, write_file
from .importing import open_image, unpack, unpacked_bytes
from .locking import Locked, find_lock_holder, hold_names, is_name_held, lock_image

logger = structlog.stdlib.get_logger(__name__)
FORMAT = 2
FOLDER_MODE, VOLUME_MODE, SNAPSHOT_MODE = 0o750, 0o640, 0o440
FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is kept beside a snapshot's bytes. Dates are ISO 8601 in UTC.

    Format 1 had `blake3`, a plain digest of all bytes, in the place of `checksum`, which says how it was computed.
    """

    format: int = FORMAT
    snapshot_uuid: str
    volume_uuid: str
    volume_name: str
    size_bytes: int
    allocated_bytes: int  # shared blocks of a clone are counted in full
    checksum: str | None  # see checksums.py
    captured_at: str
    method: str  # "clone" or "copy"
    verified_at: str | None = None
    capture: str  # the same for all that one call captured
    group: list[str]  # the snapshots that one call captured

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """Raises ValueError for anything that `dump` did not write."""
        try:
            content = json.loads(text)
            if content["format"] == 1:
                content = content | {"format": FORMAT, "checksum": content["blake3"]}
                del content["blake3"]
            manifest = cls(**content)
            captured_at = datetime.fromisoformat(manifest.captured_at)
            verified_at = datetime.fromisoformat(manifest.verified_at or manifest.captured_at)
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(str(error)) from error
        texts = [manifest.checksum or "", manifest.volume_uuid, manifest.capture]
        sizes = [manifest.size_bytes, manifest.allocated_bytes]
        if (
            manifest.format != FORMAT
            or captured_at.tzinfo is None
            or verified_at.tzinfo is None
            or not isinstance(manifest.group, list)
            or not all(isinstance(text, str) for text in (*texts, *manifest.group))
            or not all(isinstance(size, int) for size in sizes)
        ):
            raise ValueError("unknown format")
        return manifest

    def dump(self) -> str:
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, indent=2) + "\n"

    def as_info(self) -> SnapshotInfo:
        return SnapshotInfo(
            uuid=UUID(self.snapshot_uuid),
            backend_ref="",
            size_bytes=self.size_bytes,
            allocated_bytes=self.allocated_bytes,
            checksum=self.checksum or "",
            captured_at=datetime.fromisoformat(self.captured_at),
            verified_at=datetime.fromisoformat(self.verified_at) if self.verified_at else None,
        )

    def is_verified_recently(self, now: datetime) -> bool:
        """False also for an instant that lies ahead: the clock was set back since."""
        if not self.checksum or not self.verified_at:
            return False
        return timedelta() <= now - datetime.fromisoformat(self.verified_at) < VERIFICATION_VALID_FOR


class LocalDriver(Driver):
    """Files below `root`: clones where the file system shares blocks (XFS, Btrfs), else copies that keep holes."""

    consistency = Consistency.INSTANT
    reads_bytes = True

    def __init__(self, *, location: str, root: str, reserve_percent: int | str = 5) -> None:
        """Snapshots and volumes leave `reserve_percent` of the file system to the portal itself, which has to write even
        where it only deletes: its database may be on the same file system, and every snapshot has a manifest.
        """
        if not re.fullmatch(r"[A-Z0-9][A-Z0-9-]{0,31}", location):
            raise ValueError(f"{location!r} is no location code.")
        if not re.fullmatch("[0-9]{1,2}", str(reserve_percent)):
            raise ValueError(f"reserve_percent is {reserve_percent!r}. Give a whole number from 0 to 99.")
        self.location, self.reserve_percent = location, int(reserve_percent)
        self.folder = Path(root).absolute() / location
        self.volumes = self.folder / "volumes"
        self.snapshots = self.folder / "snapshots"

    @property
    def clones(self) -> bool:
        with self._contract_errors():
            return self._can_clone

    # Volumes

    def check_volume_size(self, size_gb: int) -> None:
        with self._contract_errors():
            self._make_folders()
            with tempfile.TemporaryFile(dir=self.volumes) as probe:
                os.ftruncate(probe.fileno(), size_gb * GIB)

    def create_volume(self, volume: VolumeRef, heartbeat: Heartbeat = no_heartbeat) -> str:
        heartbeat(0, 0)
        with self._working(exclusive=[volume]):
            if not self._has_volume(volume):
                with self._new_image(volume, VOLUME_MODE) as target:
                    os.ftruncate(target, volume.size_gb * GIB)
                    os.fsync(target)
        return ""

    def extend_volume(self, volume: VolumeRef, new_size_gb: int, heartbeat: Heartbeat = no_heartbeat) -> None:
        heartbeat(0, 0)
        with self._working(exclusive=[volume]), self._open_volume(volume, writing=True, up_to_gb=new_size_gb) as image:
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
        with self._working(exclusive=[volume], shared=[snapshot]):
            if self._has_volume(volume):
                return ""
            manifest = self._get_manifest(snapshot.uuid)
            self._check_size(manifest, volume, volume.size_gb * GIB)
            with opened(self._disk_path(snapshot.uuid), below=self.folder) as source:
                self._check_space([source])
                with self._new_image(volume, VOLUME_MODE) as target:
                    size = volume.size_gb * GIB
                    self._fill(snapshot, manifest, source, target, size, heartbeat, unchecked=unchecked)
        return ""

    def revert_volume(
        self,
        volume: VolumeRef,
        snapshot: SnapshotRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> None:
        with self._working(exclusive=[volume], shared=[snapshot]), self._open_volume(volume, writing=True) as current:
            before = os.fstat(current)
            manifest = self._get_manifest(snapshot.uuid)
            self._check_size(manifest, volume, before.st_size)
            with opened(self._disk_path(snapshot.uuid), below=self.folder) as source:
                self._check_space([source])
                with self._new_image(volume, before.st_mode & 0o7777) as target:
                    fresh = os.fstat(target)
                    if (before.st_uid, before.st_gid) != (fresh.st_uid, fresh.st_gid):
                        os.fchown(target, before.st_uid, before.st_gid)
                    self._fill(snapshot, manifest, source, target, before.st_size, heartbeat, unchecked=unchecked)

    # Beyond the contract: disks from elsewhere

    def import_image(self, volume: VolumeRef, image: Path, heartbeat: Heartbeat = no_heartbeat) -> str:
        """Make a volume of a disk image, with zeros up to its size; return its backend_ref.

        Raises Refused (not such an image, larger than the volume, the volume is there), Busy, NoSpace, Unavailable.
        """
        with self._working(exclusive=[volume]), open_image(image) as source:
            if os.path.lexists(self._volume_path(volume.uuid)) or source.size > volume.size_gb * GIB:
                raise Refused(
                    _("The volume “%(name)s” is there already, or smaller than the image.") % {"name": volume.name}
                )
            is_raw = source.format == "raw"
            if is_raw:  # for the others qemu-img takes the locks
                self._lock_image(source.file, image.name, writing=False)
            self._check_space([source.file], unpacked=0 if is_raw else unpacked_bytes(source))
            with self._new_image(volume, VOLUME_MODE) as target:
                progress = Progress(self._watching_space(heartbeat), source.size)
                if is_raw:
                    method = fill_image(source.file, target, volume.size_gb * GIB, progress, cloning=self._can_clone)
                    if method == "clone":
                        progress.add(source.size)
                else:
                    os.ftruncate(target, volume.size_gb * GIB)
                    unpack(source, target, progress)
                    progress.during(os.fsync, target)
                progress.beat()
        return ""

    def delete_volume(self, volume: VolumeRef) -> None:
        with self._working(exclusive=[volume]):
            self._hidden_path(self.volumes, volume.uuid, "new").unlink(missing_ok=True)
            try:
                with self._open_volume(volume, writing=True):
                    self._volume_path(volume.uuid).unlink()
            except NotFound:
                return
            sync_folder(self.volumes)

    # Snapshots

    def create_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        snapshots, volumes = [snapshot for snapshot, _volume in disks], [volume for _snapshot, volume in disks]
        with self._working(exclusive=snapshots, shared=volumes):
            manifests = {snapshot.uuid: self._find_manifest(snapshot.uuid) for snapshot in snapshots}
            missing = {snapshot.uuid: volume for snapshot, volume in disks if not manifests[snapshot.uuid]}
            if missing:
                self._capture(missing, heartbeat)
            return [self._get_manifest(snapshot.uuid).as_info() for snapshot in snapshots]

    def find_snapshot(self, snapshot: SnapshotRef) -> SnapshotInfo | None:
        with self._contract_errors():
            manifest = self._find_manifest(snapshot.uuid)
            return manifest.as_info() if manifest else None

    def verify_snapshot(self, snapshot: SnapshotRef, heartbeat: Heartbeat = no_heartbeat) -> SnapshotInfo:
        with self._working(shared=[snapshot], verifying=[snapshot]):
            manifest = self._get_manifest(snapshot.uuid)
            with opened(self._disk_path(snapshot.uuid), below=self.folder) as disk:
                bypass_page_cache(disk)
                progress = Progress(heartbeat, manifest.size_bytes)
                hashing = checksum_like(manifest.checksum or snapshot.checksum)
                copy_data(disk, None, manifest.size_bytes, progress, hashing)
                progress.beat()
            checksum = hashing.finish()
            try:
                self._compare(manifest, snapshot, checksum)
            except Corrupt:
                self._forget_verification(snapshot)
                raise
            return self._record_verification(snapshot, checksum).as_info()

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        with self._working(exclusive=[snapshot]):
            self._settle(snapshot.uuid)
            path = self._snapshot_path(snapshot.uuid)
            self._clear(snapshot.uuid)
            if os.path.lexists(path):
                for other in self._read_group(path):
                    self._settle(other)  # with this one gone nobody could tell any more that they were captured
                path.rename(self._hidden_path(self.snapshots, snapshot.uuid, "old"))
                sync_folder(self.snapshots)
                self._clear(snapshot.uuid)

    # Room and health

    def bytes_needed(self, volumes: Sequence[VolumeRef]) -> int:
        with self._contract_errors():
            allocated = [self._stat_volume(volume).st_blocks * 512 for volume in volumes]
            return 0 if self._can_clone else sum(allocated)

    @property
    def shares_blocks(self) -> bool:
        with self._contract_errors():
            return self._can_clone

    def free_bytes(self) -> int:
        with self._contract_errors():
            self._make_folders()
            usage = os.statvfs(self.folder)
            reserve = usage.f_blocks * self.reserve_percent // 100
            return max(0, usage.f_bavail - reserve) * usage.f_frsize

    def check_health(self) -> None:
        with self._contract_errors():
            self._make_folders()
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(bytes(4096))
                probe.flush()
                os.fsync(probe.fileno())

    def held(self, backend_project: str = "") -> Iterator[Held]:
        with self._contract_errors():
            self._make_folders()
            for folder, kind, visible in (
                (self.volumes, "volume", r"([0-9a-f-]{36})\.img"),
                (self.snapshots, "snapshot", "([0-9a-f-]{36})"),
                (self.folder, "", "()"),
            ):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if not kind and entry.name in (self.volumes.name, self.snapshots.name, ".lock"):
                            continue
                        complete = re.fullmatch(visible, entry.name)
                        hidden = re.fullmatch(r"\.([0-9a-f-]{36})\.(new|old)", entry.name) if kind else None
                        match = complete or hidden
                        uuid = parse_uuid(match[1]) if match else None
                        if hidden and is_name_held(self.folder / ".lock", f"{kind}:{uuid}"):
                            continue
                        try:
                            found = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:  # complete or gone meanwhile
                            continue
                        yield Held(
                            name=os.path.relpath(entry.path, self.folder.parent),
                            uuid=uuid,
                            half_made=bool(hidden),
                            size_bytes=found.st_size if complete and kind == "volume" else None,
                            changed_at=datetime.fromtimestamp(found.st_mtime, UTC),
                            still_there=partial(is_as_seen, Path(entry.path), found, at_rest=bool(hidden)),
                        )

    def manifests(self) -> Iterator[tuple[UUID, str]]:
        with self._contract_errors():
            self._make_folders()
            with os.scandir(self.snapshots) as entries:
                for entry in entries:
                    if uuid := parse_uuid(entry.name):
                        try:
                            text = self._read_manifest(Path(entry.path)).dump()
                        except (FileNotFoundError, ValueError):  # removed meanwhile, or of no use to anybody
                            continue
                        yield uuid, text

    def put_manifest(self, uuid: UUID, text: str) -> bool:
        manifest, path = Manifest.parse(text), self._snapshot_path(uuid)
        with self._working(exclusive=[SnapshotRef(uuid=uuid)]):
            try:
                size = stat_regular_file(self._disk_path(uuid), below=self.folder).st_size
            except (FileNotFoundError, NotRegularFile):
                return False
            try:
                self._read_manifest(path)
                return False
            except (FileNotFoundError, ValueError):
                pass
            if manifest.snapshot_uuid != str(uuid) or manifest.size_bytes != size:
                return False
            # The bytes may have changed since the manifest was backed up.
            self._write_manifest(path, replace(manifest, verified_at=None))
            return True

    def remove_leftovers(self, backend_project: str = "", needed: Callable[[UUID], bool] = lambda uuid: False) -> None:
        with self._contract_errors():
            self._make_folders()
            for path in (*self.volumes.glob(".*"), *self.snapshots.glob(".*")):
                if not (match := re.fullmatch(r"\.([0-9a-f-]{36})\.(new|old)", path.name)):
                    continue
                uuid, kind = UUID(match[1]), "volume" if path.parent == self.volumes else "snapshot"
                try:
                    with hold_names(self.folder / ".lock", exclusive=[f"{kind}:{uuid}"]):
                        if kind == "snapshot":
                            self._settle(uuid)
                        visible = self._volume_path(uuid) if kind == "volume" else self._snapshot_path(uuid)
                        if not visible.exists() and needed(uuid):
                            logger.error("storage.orphan_needed", path=str(path))
                        elif kind == "volume":
                            path.unlink(missing_ok=True)
                        else:
                            self._clear(uuid)
                except Locked:
                    continue

    # Capturing

    def _capture(self, volumes: dict[UUID, VolumeRef], heartbeat: Heartbeat) -> None:
        """Capture {snapshot uuid: volume}, whose locks are held: all of them, or none."""
        with ExitStack() as stack:
            sources = {
                uuid: stack.enter_context(self._open_volume(volume, writing=False)) for uuid, volume in volumes.items()
            }
            for uuid in volumes:
                self._clear(uuid)
            self._check_space(list(sources.values()))
            total = sum(os.fstat(source).st_size for source in sources.values())
            progress = Progress(self._watching_space(heartbeat), total)
            captured_at, capture = datetime.now(UTC).isoformat(), str(uuid4())
            try:
                for uuid, volume in volumes.items():
                    folder = self._hidden_path(self.snapshots, uuid, "new")
                    folder.mkdir(FOLDER_MODE)
                    size, checksum = os.fstat(sources[uuid]).st_size, ChunkedChecksum()
                    with self._create(folder / "disk.img", SNAPSHOT_MODE) as target:
                        method = fill_image(
                            sources[uuid], target, size, progress, cloning=self._can_clone, checksum=checksum
                        )
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
                        group=[str(member) for member in volumes],
                    )
                    write_file(folder / "manifest.json", manifest.dump())
                    sync_folder(folder)
                sync_folder(self.snapshots)
                progress.beat()
            except BaseException:
                for uuid in volumes:
                    self._clear(uuid)
                raise
            # The first rename decides. Should a later one fail, the next call finishes what is left.
            for uuid in volumes:
                self._publish(uuid)
            sync_folder(self.snapshots)

    def _publish(self, uuid: UUID) -> None:
        path = self._snapshot_path(uuid)
        try:
            self._hidden_path(self.snapshots, uuid, "new").rename(path)
        except FileNotFoundError:
            if not path.exists():  # else another process was first to settle it
                raise

    def _settle(self, uuid: UUID) -> None:
        """Make a snapshot visible whose group is captured, but whose maker died before it came to this rename."""
        try:
            manifest = self._read_manifest(self._hidden_path(self.snapshots, uuid, "new"))
        except (FileNotFoundError, ValueError):
            return
        for member in manifest.group:
            try:
                other = self._read_manifest(self._snapshot_path(UUID(member)))
            except (FileNotFoundError, ValueError):
                continue
            if other.capture == manifest.capture and UUID(member) != uuid:
                self._publish(uuid)
                sync_folder(self.snapshots)
                return

    def _read_group(self, path: Path) -> list[UUID]:
        try:
            return [UUID(member) for member in self._read_manifest(path).group]
        except (FileNotFoundError, ValueError):
            return []

    def _compare(self, manifest: Manifest, snapshot: SnapshotRef, checksum: str) -> None:
        """Raises Corrupt unless it is the checksum in the manifest and in the portal, where they have one."""
        if {manifest.checksum or checksum, snapshot.checksum or checksum} != {checksum}:
            raise Corrupt(
                _(
                    "The snapshot's bytes are not the ones that were captured: its checksum does not match. "
                    "Do not rely on it; take a new snapshot and contact support."
                )
            )

    def _record_verification(self, snapshot: SnapshotRef, checksum: str) -> Manifest:
        """The caller holds the lock for verifying, because it is the one for writing the manifest."""
        verified_at = datetime.now(UTC).isoformat()
        manifest = replace(self._get_manifest(snapshot.uuid), checksum=checksum, verified_at=verified_at)
        self._write_manifest(self._snapshot_path(snapshot.uuid), manifest)
        return manifest

    def _forget_verification(self, snapshot: SnapshotRef) -> None:
        """After damage was found, so that no clone is made unread. The caller holds the lock for verifying."""
        try:
            manifest = replace(self._get_manifest(snapshot.uuid), verified_at=None)
            self._write_manifest(self._snapshot_path(snapshot.uuid), manifest)
        except OSError:  # such a medium may not take any writes; the damage is what the caller has to hear of
            logger.exception("storage.manifest_unwritable", uuid=str(snapshot.uuid))

    def _read_manifest(self, folder: Path) -> Manifest:
        """Raises ValueError when it is damaged, FileNotFoundError when it is not there."""
        return Manifest.parse(read_small_file(folder / "manifest.json", below=self.folder))

    def _write_manifest(self, folder: Path, manifest: Manifest) -> None:
        write_file(folder / ".manifest.json.new", manifest.dump())
        os.replace(folder / ".manifest.json.new", folder / "manifest.json")
        sync_folder(folder)

    def _find_manifest(self, uuid: UUID) -> Manifest | None:
        """None when the snapshot is not there or not complete. Raises Corrupt when its manifest or disk is damaged."""
        self._settle(uuid)
        path = self._snapshot_path(uuid)
        try:
            manifest = self._read_manifest(path)
            size = stat_regular_file(self._disk_path(uuid), below=self.folder).st_size
        except FileNotFoundError as error:
            if not path.exists():
                return None
            raise Corrupt(_("A part of the snapshot is missing, so it cannot be used. Contact support.")) from error
        except NotRegularFile as error:
            raise Corrupt(
                _("A part of the snapshot is not a regular file, so it cannot be used. Contact support.")
            ) from error
        except ValueError as error:
            raise Corrupt(_("The snapshot's description is damaged, so it cannot be used. Contact support.")) from error
        if manifest.snapshot_uuid != str(uuid) or manifest.size_bytes != size:
            raise Corrupt(
                _("The snapshot does not have the size that was captured. Do not rely on it; contact support.")
            )
        return manifest

    def _get_manifest(self, uuid: UUID) -> Manifest:
        manifest = self._find_manifest(uuid)
        if not manifest:
            raise NotFound(_("The snapshot is not in the storage of %(location)s.") % {"location": self.location})
        return manifest

    # Images

    def _has_volume(self, volume: VolumeRef) -> bool:
        """Whether it is there. Raises InvalidImage when it has another size."""
        if volume.size_gb < 1:
            raise Refused(_("A volume has at least 1 GB. Choose a larger size."))
        try:
            self._stat_volume(volume)
        except NotFound:
            return False
        return True

    def _stat_volume(self, volume: VolumeRef) -> os.stat_result:
        """Raises NotFound, InvalidImage."""
        try:
            status = stat_regular_file(self._volume_path(volume.uuid), below=self.folder)
        except FileNotFoundError as error:
            raise self._no_volume(volume) from error
        except NotRegularFile as error:
            raise self._not_regular(volume) from error
        self._check_image_size(volume, status)
        return status

    def _check_image_size(self, volume: VolumeRef, status: os.stat_result, up_to_gb: int = 0) -> None:
        """Raises InvalidImage unless the image has the volume's size, Refused when it would have to shrink to `up_to_gb`."""
        if up_to_gb and max(status.st_size, volume.size_gb * GIB) > up_to_gb * GIB:
            raise Refused(_("The volume “%(name)s” can't shrink. Choose a larger size.") % {"name": volume.name})
        if not volume.size_gb * GIB <= status.st_size <= max(volume.size_gb, up_to_gb) * GIB:
            raise InvalidImage(
                _(
                    "The disk of the volume “%(name)s” has %(bytes)s bytes, which is not the volume's size of %(size)s GB. "
                    "Nothing was changed. Contact support."
                )
                % {"name": volume.name, "bytes": f"{status.st_size:,}", "size": volume.size_gb}
            )

    def _check_size(self, manifest: Manifest, volume: VolumeRef, size: int) -> None:
        if size < manifest.size_bytes:
            raise Refused(
                _("The volume “%(name)s” would be smaller than the snapshot. Choose a size of %(size)s GB or more.")
                % {"name": volume.name, "size": -(-manifest.size_bytes // GIB)}
            )

    def _fill(
        self,
        snapshot: SnapshotRef,
        manifest: Manifest,
        source: int,
        target: int,
        size: int,
        heartbeat: Heartbeat,
        *,
        unchecked: bool,
    ) -> None:
        """Give the empty `target` the bytes of the snapshot, open as `source`. Raises Corrupt as the contract says."""
        progress = Progress(self._watching_space(heartbeat), manifest.size_bytes)
        hashing = checksum_like(manifest.checksum or snapshot.checksum)
        checksum = ""
        if self._can_clone and not unchecked:
            if manifest.is_verified_recently(datetime.now(UTC)):
                self._compare(manifest, snapshot, manifest.checksum or "")
            else:
                bypass_page_cache(source)
                copy_data(source, None, manifest.size_bytes, progress, hashing)
                checksum = hashing.finish()
                self._compare(manifest, snapshot, checksum)
        check_copy = not unchecked and not checksum
        method = fill_image(
            source, target, size, progress, cloning=self._can_clone, checksum=hashing if check_copy else None
        )
        if method == "copy" and check_copy:
            checksum = hashing.finish()
            self._compare(manifest, snapshot, checksum)
        if method == "clone" and not checksum:
            progress.add(manifest.size_bytes)
        progress.beat()
        if checksum:
            # When it is locked, a verification is under way that records the same.
            with suppress(Locked), hold_names(self.folder / ".lock", exclusive=[verification_lock(snapshot)]):
                self._record_verification(snapshot, checksum)

    @contextmanager
    def _new_image(self, volume: VolumeRef, mode: int) -> Iterator[int]:
        """A new file that takes the place of the volume's image when the block ends, and vanishes when it fails.

        The block makes the content durable. The volume's lock is held.
        """
        path = self._hidden_path(self.volumes, volume.uuid, "new")
        path.unlink(missing_ok=True)  # of a dead process
        try:
            with self._create(path, mode) as target:
                yield target
            path.replace(self._volume_path(volume.uuid))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        sync_folder(self.volumes)

    @contextmanager
    def _create(self, path: Path, mode: int) -> Iterator[int]:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            os.fchmod(file, mode)  # whatever the umask is
            yield file
        finally:
            os.close(file)

    @contextmanager
    def _open_volume(self, volume: VolumeRef, *, writing: bool, up_to_gb: int = 0) -> Iterator[int]:
        """Open the volume's image for reading and lock it against other programs. The caller holds the volume's lock.

        With `up_to_gb` it may have grown to that many GiB already.
        """
        with ExitStack() as stack:
            try:
                file = stack.enter_context(opened(self._volume_path(volume.uuid), below=self.folder))
            except FileNotFoundError as error:
                raise self._no_volume(volume) from error
            except NotRegularFile as error:
                raise self._not_regular(volume) from error
            self._lock_image(file, volume.name, writing=writing)
            self._check_image_size(volume, os.fstat(file), up_to_gb)
            yield file

    def _lock_image(self, file: int, name: str, *, writing: bool) -> None:
        """Raises Busy with the name of the volume, and of the program that is in the way where that can be told."""
        try:
            lock_image(file, writing=writing)
        except Locked as error:
            holder = find_lock_holder(file)
            raise Busy(
                _("The volume “%(name)s” is in use by %(program)s (process %(pid)s). Stop it, then try again.")
                % {"name": name, "program": holder[0], "pid": holder[1]}
                if holder
                else _("The volume “%(name)s” is in use by another program. Stop what uses it, then try again.")
                % {"name": name}
            ) from error

    def _clear(self, uuid: UUID) -> None:
        """Remove the hidden folders of a snapshot whose lock is held: their maker is dead or gave up."""
        for suffix in "new", "old":
            path = self._hidden_path(self.snapshots, uuid, suffix)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # Paths

    def _volume_path(self, uuid: UUID) -> Path:
        return self.volumes / f"{checked(uuid)}.img"

    def _snapshot_path(self, uuid: UUID) -> Path:
        return self.snapshots / str(checked(uuid))

    def _disk_path(self, uuid: UUID) -> Path:
        return self._snapshot_path(uuid) / "disk.img"

    def _hidden_path(self, folder: Path, uuid: UUID, suffix: str) -> Path:
        return folder / f".{checked(uuid)}.{suffix}"

    def _make_folders(self) -> None:
        for folder in self.volumes, self.snapshots:
            folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)

    # Room, locks, errors

    @cached_property
    def _can_clone(self) -> bool:
        """Whether files of this file system can share blocks: tried once, with a file that has no name."""
        self._make_folders()
        with tempfile.TemporaryFile(dir=self.folder) as source, tempfile.TemporaryFile(dir=self.folder) as target:
            source.write(bytes(4096))
            source.flush()
            return clone_file(source.fileno(), target.fileno())

    def _check_space(self, sources: Sequence[int], *, unpacked: int = 0) -> None:
        """Raises NoSpace unless there is room for copies of these files, which clones do not need, or for `unpacked`."""
        needed = unpacked
        if not unpacked and not self._can_clone:
            needed = sum(os.fstat(source).st_blocks * 512 for source in sources)
        needed += needed // 100 + 1024**2  # for the file system's own records
        free = self.free_bytes()
        if needed > free:
            raise NoSpace(
                _(
                    "The storage of %(location)s does not have the room: this needs %(needed).1f GB and %(free).1f GB "
                    "are free. Delete snapshots that you do not need, or contact support."
                )
                % {
                    "location": self.location,
                    "needed": math.ceil(needed / GIB * 10) / 10,
                    "free": math.floor(free / GIB * 10) / 10,
                }
            )

    def _watching_space(self, heartbeat: Heartbeat) -> Heartbeat:
        """The heartbeat, which also raises NoSpace when only the reserve is left: others write at the same time."""

        def beat(bytes_done: int, bytes_total: int) -> None:
            if not self.free_bytes():
                raise self._became_full()
            heartbeat(bytes_done, bytes_total)

        return beat

    @contextmanager
    def _working(
        self,
        *,
        exclusive: Sequence[VolumeRef | SnapshotRef] = (),
        shared: Sequence[VolumeRef | SnapshotRef] = (),
        verifying: Sequence[SnapshotRef] = (),
    ) -> Iterator[None]:
        """Hold the locks of these things, raising Busy when one is taken; failures come out as contract errors."""
        with self._contract_errors():
            self._make_folders()
            names = {lock_name(thing): thing for thing in (*exclusive, *shared)}
            try:
                with hold_names(
                    self.folder / ".lock",
                    exclusive=[*map(lock_name, exclusive), *map(verification_lock, verifying)],
                    shared=map(lock_name, shared),
                ):
                    yield
            except Locked as error:
                thing = names.get(error.name)
                raise Busy(
                    _("The volume “%(name)s” is being captured or written right now. Try again when that is done.")
                    % {"name": thing.name}
                    if isinstance(thing, VolumeRef)
                    else _("Something else is being done with this snapshot right now. Try again when that is done.")
                ) from error

    @contextmanager
    def _contract_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._describe(error) from error
        except NotRegularFile as error:  # replaced after it was checked
            raise Corrupt(
                _("A file in the storage of %(location)s was replaced while it was used. Contact support.")
                % {"location": self.location}
            ) from error

    def _describe(self, error: OSError) -> StorageError:
        """Say what failed, and by the kind of error whether trying again can help. What only an operator can change, or
        nobody, is not tried again; a file system that is full, slow or away may pass.
        """
        if error.errno in FULL:
            return self._became_full()
        if error.errno == errno.EFBIG:
            return TooLarge(
                _(
                    "The storage of %(location)s cannot hold a volume as large as this. Nothing was created. Choose a "
                    "smaller size."
                )
                % {"location": self.location}
            )
        if error.errno in NOT_PERMITTED:
            return NotPermitted(
                _(
                    "The portal may not use the storage of %(location)s: %(reason)s. Nothing was changed. Contact support."
                )
                % {"location": self.location, "reason": os.strerror(error.errno)}
            )
        return Unavailable(
            _("The storage of %(location)s failed: %(reason)s. Try again later; if it stays so, contact support.")
            % {"location": self.location, "reason": os.strerror(error.errno) if error.errno else type(error).__name__}
        )

    def _became_full(self) -> NoSpace:
        return NoSpace(
            _(
                "The storage of %(location)s became full while this was written, so nothing of it was kept. "
                "Delete snapshots that you do not need, or contact support."
            )
            % {"location": self.location}
        )

    def _not_regular(self, volume: VolumeRef) -> InvalidImage:
        return InvalidImage(
            _("The disk of the volume “%(name)s” is not a regular file. Nothing was changed. Contact support.")
            % {"name": volume.name}
        )

    def _no_volume(self, volume: VolumeRef) -> NotFound:
        return NotFound(
            _("The disk of the volume “%(name)s” is not in the storage of %(location)s. Contact support.")
            % {"name": volume.name, "location": self.location}
        )


def is_as_seen(path: Path, seen: os.stat_result, *, at_rest: bool) -> bool:
    """Whether the file is still the one that was seen, of the same size; `at_rest`: and nobody has touched it since."""
    try:
        now = path.lstat()
    except FileNotFoundError:
        return False
    untouched = now.st_mtime_ns == seen.st_mtime_ns or not at_rest
    return (now.st_ino, now.st_size) == (seen.st_ino, seen.st_size) and untouched


def parse_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def checked(uuid: UUID) -> UUID:
    """Paths are made of uuids alone; anything else is a mistake of the caller."""
    if not isinstance(uuid, UUID):
        raise TypeError(f"{uuid!r} is no UUID")
    return uuid


def lock_name(thing: VolumeRef | SnapshotRef) -> str:
    return f"{'volume' if isinstance(thing, VolumeRef) else 'snapshot'}:{thing.uuid}"


def verification_lock(snapshot: SnapshotRef) -> str:
    return f"verify:{snapshot.uuid}"
