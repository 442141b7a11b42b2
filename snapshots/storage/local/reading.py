"""Read a snapshot's bytes, to verify them or to fill a volume, and compare them with the checksum."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from django.utils.translation import gettext as _

from ..checksums import CHUNK, DIGEST_SIZE, PREFIX, Checksum, ChunkedChecksum, checksum_like
from ..contract import RESUMABLE_FOR, Corrupt, Heartbeat, SnapshotRef
from ..files import opened
from .copying import MediumError, Progress, bypass_page_cache, copy_data, fill_image
from .folder import LocationFolder
from .locking import Locked
from .manifest import Manifest
from .snapshots import SnapshotFiles

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class LoggedRead:
    """A read whose chunk digests are logged, so that the next one can continue where this one was interrupted."""

    checksum: ChunkedChecksum
    position: int  # where to continue, in bytes
    started_at: datetime


class SnapshotReader:
    def __init__(self, folder: LocationFolder, snapshots: SnapshotFiles) -> None:
        self.folder, self.snapshots = folder, snapshots

    # Verifying

    def verify(self, snapshot: SnapshotRef, heartbeat: Heartbeat, *, resume: bool) -> Manifest:
        """Read all bytes and record their checksum. The caller holds the lock for verifying.

        Raises NotFound, Corrupt. Only an interruption leaves the log of the read behind.
        """
        manifest = self.snapshots.get(snapshot.uuid)
        log = self._log_path(snapshot)
        expected = manifest.checksum or snapshot.checksum
        try:
            if resume and expected.startswith(PREFIX):
                checksum, read_at = self._read_on(snapshot, manifest, expected, heartbeat)
            else:
                read_at, hashing = datetime.now(UTC), checksum_like(expected)
                self._read(snapshot, manifest, Progress(heartbeat, manifest.size_bytes), hashing)
                checksum = hashing.finish()
            self._compare(manifest, snapshot, checksum)
        except Corrupt:
            log.unlink(missing_ok=True)
            self._forget_verification(snapshot)
            raise
        log.unlink(missing_ok=True)
        return self._record_verification(snapshot, checksum, read_at)

    def _read_on(
        self, snapshot: SnapshotRef, manifest: Manifest, expected: str, heartbeat: Heartbeat
    ) -> tuple[str, datetime]:
        """Return the checksum and the instant at which the first of the bytes was read."""
        with logged_read(self._log_path(snapshot), expected, manifest.size_bytes) as read:
            progress = Progress(heartbeat, manifest.size_bytes, done=read.position)
            self._read(snapshot, manifest, progress, read.checksum, start=read.position)
            checksum = read.checksum.finish()
        if read.position and checksum != expected:
            # The log itself may be damaged, so everything is read again before the snapshot is blamed.
            self._log_path(snapshot).unlink()
            return self._read_on(snapshot, manifest, expected, heartbeat)
        return checksum, read.started_at

    def _read(
        self, snapshot: SnapshotRef, manifest: Manifest, progress: Progress, checksum: Checksum, start: int = 0
    ) -> None:
        with self._medium_errors(), opened(self.folder.disk_path(snapshot.uuid), below=self.folder.path) as disk:
            bypass_page_cache(disk)
            copy_data(disk, None, manifest.size_bytes, progress, checksum, start=start)
            progress.beat()

    def _log_path(self, snapshot: SnapshotRef) -> Path:
        return self.folder.snapshot_path(snapshot.uuid) / ".verification"

    # Filling a volume

    def fill(
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
        """Give the empty `target` the bytes of the snapshot, open as `source`. Raises Corrupt as the contract says.

        A clone is checked by reading the snapshot first, unless it was verified recently; a copy while it is written.
        """
        progress = Progress(self.folder.guard_reserve(heartbeat), manifest.size_bytes)
        hashing = checksum_like(manifest.checksum or snapshot.checksum)
        cloning, read_at, checksum = self.folder.can_clone, datetime.now(UTC), ""
        with self._medium_errors():
            if cloning and not unchecked:
                if manifest.is_verified_recently(read_at):
                    self._compare(manifest, snapshot, manifest.checksum or "")
                else:
                    bypass_page_cache(source)
                    copy_data(source, None, manifest.size_bytes, progress, hashing)
                    checksum = hashing.finish()
                    self._compare(manifest, snapshot, checksum)
            check_copy = not unchecked and not checksum
            method = fill_image(
                source, target, size, progress, cloning=cloning, checksum=hashing if check_copy else None
            )
        if method == "copy" and check_copy:
            checksum = hashing.finish()
            self._compare(manifest, snapshot, checksum)
        if method == "clone" and not checksum:
            progress.add(manifest.size_bytes)
        progress.beat()
        if checksum:
            # While it is locked, a verification is running that records the same.
            with suppress(Locked), self.folder.lock_verification(snapshot):
                self._record_verification(snapshot, checksum, read_at)

    # Checksums

    def _compare(self, manifest: Manifest, snapshot: SnapshotRef, checksum: str) -> None:
        """Raises Corrupt unless it is the checksum in the manifest and in the portal, where they have one."""
        if any(recorded and recorded != checksum for recorded in (manifest.checksum, snapshot.checksum)):
            raise Corrupt(
                _(
                    "The snapshot's bytes are not the ones that were captured: its checksum does not match. "
                    "Do not rely on it; take a new snapshot and contact your provider."
                )
            )

    def _record_verification(self, snapshot: SnapshotRef, checksum: str, read_at: datetime) -> Manifest:
        """The caller holds the lock for verifying, which is the one for writing the manifest."""
        manifest = replace(self.snapshots.get(snapshot.uuid), checksum=checksum, verified_at=read_at.isoformat())
        self.snapshots.write_manifest(snapshot.uuid, manifest)
        return manifest

    def _forget_verification(self, snapshot: SnapshotRef) -> None:
        """After damage was found, so that no clone is made unread. The caller holds the lock for verifying."""
        try:
            manifest = replace(self.snapshots.get(snapshot.uuid), verified_at=None)
            self.snapshots.write_manifest(snapshot.uuid, manifest)
        except (OSError, Corrupt):  # a failing medium may reject writes, too; the caller must see the damage
            logger.exception("storage.manifest_unwritable", uuid=str(snapshot.uuid))

    @contextmanager
    def _medium_errors(self) -> Iterator[None]:
        try:
            yield
        except MediumError as error:
            raise self.snapshots.unreadable() from error


@contextmanager
def logged_read(path: Path, expected: str, size: int) -> Iterator[LoggedRead]:
    """Continue the read that is logged in this file, or begin one if there is none to resume.

    The file has a line of JSON, then the digest of each chunk. A process that dies loses the last of them.
    """
    now = datetime.now(UTC)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640), "r+b") as log:
        checksum = ChunkedChecksum(log)
        started_at = parse_header(log.readline(1024), expected)
        first_digest = log.tell()
        chunks = (os.fstat(log.fileno()).st_size - first_digest) // DIGEST_SIZE
        if not started_at or not timedelta() <= now - started_at < RESUMABLE_FOR or chunks * CHUNK > size:
            started_at, chunks = now, 0
            log.seek(0)
            log.write(json.dumps({"checksum": expected, "started_at": now.isoformat()}).encode() + b"\n")
            first_digest = log.tell()
        log.truncate(first_digest + chunks * DIGEST_SIZE)
        while digests := log.read(1024**2):
            checksum.skip(digests)
        yield LoggedRead(checksum, chunks * CHUNK, started_at)


def parse_header(line: bytes, expected: str) -> datetime | None:
    """When the logged read started; None when it isn't one of a snapshot with this checksum."""
    try:
        header = json.loads(line)
        return datetime.fromisoformat(header["started_at"]) if header["checksum"] == expected else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
