"""The folder of one location: paths, locks, free space, and the translation of file system errors."""

import errno
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from uuid import UUID

from django.utils.translation import gettext as _

from cng_portal.common.ids import parse_uuid

from ..contract import (
    GIB,
    Busy,
    Corrupt,
    Heartbeat,
    NoSpace,
    NotPermitted,
    SnapshotRef,
    StorageError,
    TooLarge,
    Unavailable,
    VolumeRef,
)
from ..files import NotRegularFile
from .copying import clone_file
from .locking import Locked, hold_names, is_name_held

FOLDER_MODE = 0o750
FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}
HIDDEN = re.compile(r"\.([0-9a-f-]{36})\.(?:new|old)")


@dataclass(frozen=True)
class Entry:
    """A file or folder that was found in the location's folder."""

    kind: str  # "volume", "snapshot", or "" for anything else
    uuid: UUID | None  # None unless a driver created it
    is_hidden: bool
    path: Path


class LocationFolder:
    def __init__(self, root: Path, location: str, reserve_percent: int) -> None:
        self.location, self.reserve_percent = location, reserve_percent
        self.path = root / location
        self.volumes, self.snapshots = self.path / "volumes", self.path / "snapshots"
        self.lock_file = self.path / ".lock"
        self.is_set_up = False

    # Paths

    def create(self) -> None:
        """Create the folders, unless they were there before. Raises Unavailable."""
        self.require_mounted()
        for folder in self.volumes, self.snapshots:
            folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)

    def require_mounted(self) -> None:
        """Raise Unavailable where the folders were there before and are missing: their file system isn't mounted.

        Otherwise new files would get lost below the mount point, and what can't be seen would count as deleted.
        """
        was_set_up = self.is_set_up  # Read first: another thread may be creating the folders.
        is_there = self.volumes.is_dir() and self.snapshots.is_dir()
        if was_set_up and not is_there:
            raise Unavailable(
                _(
                    "The storage of %(location)s isn't mounted: its folders are missing. Try again later; if this "
                    "continues, contact your provider."
                )
                % {"location": self.location}
            )
        if is_there:
            self.is_set_up = True

    def volume_path(self, uuid: UUID) -> Path:
        return self.volumes / f"{require_uuid(uuid)}.img"

    def snapshot_path(self, uuid: UUID) -> Path:
        return self.snapshots / str(require_uuid(uuid))

    def disk_path(self, uuid: UUID) -> Path:
        return self.snapshot_path(uuid) / "disk.img"

    def hidden_path(self, folder: Path, uuid: UUID, suffix: str) -> Path:
        return folder / f".{require_uuid(uuid)}.{suffix}"

    def entries(self) -> Iterator[Entry]:
        """Yield everything in the folder but the `.lock` file, unordered."""
        self.create()
        for folder, kind, suffix in (self.volumes, "volume", ".img"), (self.snapshots, "snapshot", ""):
            with os.scandir(folder) as entries:
                for entry in entries:
                    hidden = HIDDEN.fullmatch(entry.name)
                    uuid = parse_uuid(hidden[1] if hidden else entry.name.removesuffix(suffix))
                    if not hidden and uuid and entry.name != f"{uuid}{suffix}":
                        uuid = None
                    yield Entry(kind, uuid, bool(hidden), Path(entry.path))
        for path in self.path.iterdir():
            if path not in (self.volumes, self.snapshots, self.lock_file):
                yield Entry("", None, False, path)

    # Locks

    @contextmanager
    def lock(
        self,
        *,
        exclusive: Sequence[VolumeRef | SnapshotRef] = (),
        shared: Sequence[VolumeRef | SnapshotRef] = (),
        verifying: Sequence[SnapshotRef] = (),
    ) -> Iterator[None]:
        """Hold the locks of volumes and snapshots. Raises Busy if one is taken, and contract errors for the block's."""
        with self.errors():
            self.create()
            refs = {lock_name(ref): ref for ref in (*exclusive, *shared)}
            try:
                with hold_names(
                    self.lock_file,
                    exclusive=[*map(lock_name, exclusive), *map(verification_lock, verifying)],
                    shared=map(lock_name, shared),
                ):
                    yield
            except Locked as error:
                ref = refs.get(error.name)
                if isinstance(ref, VolumeRef):
                    message = _(
                        "The volume “%(name)s” is being captured or written right now. Try again when that has finished."
                    )
                    raise Busy(message % {"name": ref.name}) from error
                raise Busy(
                    _("Another operation is using this snapshot right now. Try again when it has finished.")
                ) from error

    @contextmanager
    def lock_verification(self, snapshot: SnapshotRef) -> Iterator[None]:
        """Raises Locked. Writing to the manifest of a complete snapshot requires this lock."""
        with hold_names(self.lock_file, exclusive=[verification_lock(snapshot)]):
            yield

    @contextmanager
    def lock_catalogue(self, snapshot: SnapshotRef) -> Iterator[None]:
        """Raises Busy. Writing the catalogue of a snapshot requires this lock."""
        try:
            with hold_names(self.lock_file, exclusive=[f"catalogue:{snapshot.uuid}"]):
                yield
        except Locked as error:
            raise Busy(_("The files of this snapshot are being listed already.")) from error

    @contextmanager
    def lock_entry(self, entry: Entry) -> Iterator[None]:
        """Raises Locked."""
        with hold_names(self.lock_file, exclusive=[f"{entry.kind}:{entry.uuid}"]):
            yield

    def is_entry_locked(self, entry: Entry) -> bool:
        return is_name_held(self.lock_file, f"{entry.kind}:{entry.uuid}")

    # Space

    @cached_property
    def can_clone(self) -> bool:
        """Return whether files of this file system can share blocks: tried once, with files that have no name."""
        self.create()
        with tempfile.TemporaryFile(dir=self.path) as source, tempfile.TemporaryFile(dir=self.path) as target:
            source.write(bytes(4096))
            source.flush()
            return clone_file(source.fileno(), target.fileno())

    def free_bytes(self) -> int:
        """Free space, without the reserve."""
        self.create()
        usage = os.statvfs(self.path)
        reserve = usage.f_blocks * self.reserve_percent // 100
        return max(0, usage.f_bavail - reserve) * usage.f_frsize

    def check_space(self, sources: Sequence[int], *, unpacked: int = 0) -> None:
        """Raises NoSpace unless copies of these files fit, which clones do not need, or `unpacked` bytes."""
        needed = unpacked
        if not unpacked and not self.can_clone:
            needed = sum(os.fstat(source).st_blocks * 512 for source in sources)
        needed += needed // 100 + 1024**2  # for the file system's own records
        free = self.free_bytes()
        if needed > free:
            raise NoSpace(
                _(
                    "The storage of %(location)s is too full: this needs %(needed).1f GB and %(free).1f GB are free. "
                    "Delete snapshots that you do not need, or contact your provider."
                )
                % {
                    "location": self.location,
                    "needed": math.ceil(needed / GIB * 10) / 10,
                    "free": math.floor(free / GIB * 10) / 10,
                }
            )

    def guard_reserve(self, heartbeat: Heartbeat) -> Heartbeat:
        """Return a heartbeat that also raises NoSpace once only the reserve is left: others write at the same time."""

        def beat(bytes_done: int, bytes_total: int) -> None:
            if not self.free_bytes():
                raise self._became_full()
            heartbeat(bytes_done, bytes_total)

        return beat

    def check_health(self) -> None:
        """Raises OSError when a file can't be written and synced now."""
        self.create()
        with tempfile.TemporaryFile(dir=self.path) as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())

    # Errors

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the block's errors of the file system into errors of the contract. Raises Unavailable if it isn't mounted."""
        try:
            self.require_mounted()
            yield
        except OSError as error:
            raise self.describe(error) from error
        except NotRegularFile as error:  # replaced after it was checked
            raise Corrupt(
                _("A file in the storage of %(location)s was replaced while it was used. Contact your provider.")
                % {"location": self.location}
            ) from error

    def describe(self, error: OSError) -> StorageError:
        """Say what failed and, by the kind of error, whether a retry can help.

        Errors that only an operator can fix, or nobody, aren't retried. A file system that is slow or unmounted may recover.
        """
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        values = {"location": self.location, "reason": reason}
        if error.errno in FULL:
            return self._became_full()
        if error.errno == errno.EFBIG:
            return TooLarge(
                _(
                    "The storage of %(location)s cannot hold a volume as large as this. Nothing was created. Choose a "
                    "smaller size."
                )
                % values
            )
        if error.errno in NOT_PERMITTED:
            return NotPermitted(
                _(
                    "The portal has no permission to use the storage of %(location)s: %(reason)s. Nothing was changed. "
                    "Contact your provider."
                )
                % values
            )
        return Unavailable(
            _(
                "The storage of %(location)s failed: %(reason)s. Try again later; if this continues, contact your "
                "provider."
            )
            % values
        )

    def _became_full(self) -> NoSpace:
        return NoSpace(
            _(
                "The storage of %(location)s filled up while this was written, so nothing of it was kept. Delete "
                "snapshots that you do not need, or contact your provider."
            )
            % {"location": self.location}
        )


@contextmanager
def created_file(path: Path, mode: int) -> Iterator[int]:
    """Create a new file and open it for reading and writing."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.fchmod(file, mode)  # whatever the umask is
        yield file
    finally:
        os.close(file)


def require_uuid(uuid: UUID) -> UUID:
    """Return the uuid. Raises TypeError for anything else, because paths are built from uuids only."""
    if not isinstance(uuid, UUID):
        raise TypeError(f"{uuid!r} is no UUID")
    return uuid


def lock_name(ref: VolumeRef | SnapshotRef) -> str:
    return f"{'volume' if isinstance(ref, VolumeRef) else 'snapshot'}:{ref.uuid}"


def verification_lock(snapshot: SnapshotRef) -> str:
    return f"verify:{snapshot.uuid}"
