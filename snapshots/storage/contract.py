"""The contract between the portal and a storage engine.

A driver serves one location. It takes the small dataclasses below, never models, and it is called by the worker outside
any database transaction. Every call may be repeated: after a crash the worker cannot know how far the last call came, so
a second call finishes or confirms what the first one began. The uuids are the portal's own; an engine that names things
itself must carry our uuid along, so that it can be asked what it already has.

An engine that answers at once (local files) and one that answers later (Cinder) fit alike: a call returns when the thing
is there, and calls ``heartbeat`` at least once a second until then.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from uuid import UUID

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

GIB = 1024**3
# A clone of a snapshot that was verified within this time is made without reading the snapshot first.
VERIFICATION_VALID_FOR = timedelta(days=1)
# An interrupted read can be resumed for this long. Reading the largest disk takes days, because it yields to other work.
RESUMABLE_FOR = timedelta(days=7)

# heartbeat(bytes_done, bytes_total) reports progress and may raise Interrupted, after which the driver must leave nothing
# half-made behind and let the exception through. A total of 0 means that it cannot be told.
Heartbeat = Callable[[int, int], None]


def no_heartbeat(bytes_done: int, bytes_total: int) -> None:
    """For callers that neither show progress nor interrupt."""


class Consistency(Enum):
    """What "one instant" means when several volumes are captured together."""

    INSTANT = "instant"  # writers are held off all of them until the last one is captured
    PER_DISK = "per_disk"  # each is crash-consistent by itself; instants differ


@dataclass(frozen=True, kw_only=True)
class VolumeRef:
    uuid: UUID
    name: str  # for messages only
    size_gb: int  # GiB
    backend_ref: str = ""  # the engine's own name of it; "" when it derives from the uuid
    backend_project: str = ""  # the engine's own name of whose it is; "" where the engine knows only the portal


@dataclass(frozen=True, kw_only=True)
class SnapshotRef:
    uuid: UUID
    backend_ref: str = ""
    backend_project: str = ""  # of its volume
    checksum: str = ""  # the portal's own record of it; "" where there is none yet


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """What the engine knows of one complete snapshot of one volume."""

    uuid: UUID
    backend_ref: str
    size_bytes: int  # logical
    allocated_bytes: int | None  # really used; None where the engine cannot tell
    checksum: str  # see checksums.py; "" while it is not computed, or where the bytes cannot be read
    captured_at: datetime  # aware, UTC
    verified_at: datetime | None = None  # when its bytes were last read and matched; None where they never were


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """Something that the engine holds below our name, for a comparison with what the portal knows."""

    name: str  # what the engine calls it, for a person who looks for it there
    uuid: UUID | None  # None for what no driver made
    is_incomplete: bool = False  # nobody is working on it, and it is not complete
    size_bytes: int | None = None  # logical, of a complete volume; None where it takes another question
    changed_at: datetime | None = None
    # Asked again, because much may happen while a long list is read: whether this very thing is there as it was seen, not
    # another of its name.
    is_unchanged: Callable[[], bool] = lambda: True


class StorageError(Exception):
    """``str(error)`` is one sentence for the customer. ``retryable``: the same call may succeed later. ``advice`` is for the
    operator who finds it on the page of the work: what is wrong, and what mends it.
    """

    retryable = False
    advice: str | Promise = _(
        "Look in the log for what the storage answered, by the request's id on the operation's page."
    )


class NotFound(StorageError):
    """The volume or the snapshot is not there."""

    advice = _(
        "The bytes are not where they should be. manage.py fsck says what else is missing, in the storage or here."
    )


class Busy(StorageError):
    """Somebody else is writing to the volume, or works on the same thing."""

    retryable = True
    advice = _(
        "Something else held the disk until the deadline of the operation. See what does: another operation, an import, a "
        "job of the storage's own. Then try again."
    )


class NoSpace(StorageError):
    """The storage does not have the room; nothing was written."""

    advice = _(
        "The storage is full. Give it room or let customers delete; everything there fails until then. Local files leave "
        "reserve_percent of their file system free, an option in STORAGE."
    )


class Corrupt(StorageError):
    """The bytes are not what was captured."""

    advice = _(
        "Bytes have changed since they were captured. Keep the damaged snapshot, look at the disks below the storage, and "
        "let the customer take a new one now."
    )


class Unreadable(StorageError):
    """The medium below a volume fails to deliver its bytes."""

    advice = _(
        "The medium below the volume reports errors: see the kernel's log. Replace it, then restore the volume from its "
        "newest snapshot that is sound."
    )


class Refused(StorageError):
    """The engine said no for good: a policy, a conflict, a wrong argument."""

    advice = _(
        "The storage will say no again. Its own log has more; what the customer asked for has to be asked differently."
    )


class InvalidImage(Refused):
    """The volume's disk is not what the portal says: another size, or no regular file."""

    advice = _(
        "Look at the volume's file in the storage: somebody resized it, cut it off, or put a link or a pipe in its place. "
        "Bring back a regular file of the volume's size; manage.py fsck lists every volume whose file has another size."
    )


class TooLarge(Refused):
    """A volume of this size can never be created there."""

    advice = _("The file system below the storage limits the size of a file. Larger volumes need another file system.")


class QuotaReached(Refused):
    """The engine's own limit, not the portal's."""

    advice = _("Raise the project's quota in the cloud, or lower its quota here so that the customer is told before.")


class Denied(Refused):
    """The engine knows the portal's account, and does not let it do this."""

    advice = _("The portal's account lacks a right in the cloud: docs/cinder.md has the policy that it needs.")


class Unavailable(StorageError):
    """The engine cannot be reached or answered with a failure of its own."""

    retryable = True
    advice = _(
        "The storage could not be reached, or failed by itself. See that it works; nothing here has to be mended."
    )


class NotAccepted(Unavailable):
    """The engine does not take the portal's credentials."""

    advice = _(
        "The credentials in the location's options have expired or were withdrawn. Set new ones, then start the workers "
        "again."
    )


class NotPermitted(Unavailable):
    """The engine's files cannot be used before an operator has changed something."""

    retryable = False
    advice = _(
        "The portal may not read or write below the storage's root, or the file system is mounted read-only, perhaps after "
        "an error of the disk: see the kernel's log. Mend that, then try again."
    )


class TooSlow(Unavailable):
    """The engine took the order and was not done in time."""

    advice = _(
        "The storage took the order and did not finish. See whether it is overloaded or hangs, and with manage.py fsck what "
        "it made in the end."
    )


# Causes that are no answer of a storage.
WORKER_DIED, UNEXPECTED, NOT_SET_UP = "WorkerDied", "Unexpected", "NotSetUp"


def advice_for(cause: str) -> str | Promise:
    """By what a failed operation keeps as its cause: the name of the error's class, or one of those above."""
    own = {
        NOT_SET_UP: _(
            "The location names a storage that STORAGE does not define, or whose options cannot be used: the worker's log "
            "says which. Change it, start the workers again, then try again."
        ),
        WORKER_DIED: _("The worker died each time. Look in its journal for why: memory, a disk, a restart."),
        UNEXPECTED: _(
            "This is an error of the portal. Its log has the traceback, by the request's id on the operation's page."
        ),
    }
    return own.get(cause) or next((each.advice for each in _classes(StorageError) if each.__name__ == cause), "")


def _classes(root: type[StorageError]) -> Iterator[type[StorageError]]:
    yield root
    for each in root.__subclasses__():
        yield from _classes(each)


class Interrupted(Exception):
    """Raised by a heartbeat: stop now, clean up, let it through. Not a failure of the storage."""


class Driver(ABC):
    """One engine in one location. ``location`` is the location's code; options come from settings, then the location."""

    consistency: Consistency
    reads_bytes: bool  # whether verify_snapshot reads the content again, or only asks the engine

    reverts_only_latest = False  # whether a volume can be reverted to nothing but the latest of its snapshots
    reverts_attached = True  # whether also while it is attached to a machine of the engine's, even one that is stopped
    finishes_late = False  # whether what was asked for may still appear when the call has failed

    @abstractmethod
    def __init__(self, *, location: str, **options: str) -> None: ...

    @property
    def clones(self) -> bool:
        """Whether a restore shares blocks with the snapshot, so that reading it first takes most of the time.

        Quick enough for a page. Raises Unavailable.
        """
        return False

    def check_volume_size(self, size_gb: int) -> None:  # noqa: B027  # most engines have no limit that can be asked for
        """Raises TooLarge when no volume of this size can be created, Unavailable. Quick enough for a page."""

    @abstractmethod
    def create_volume(self, volume: VolumeRef, heartbeat: Heartbeat = no_heartbeat) -> str:
        """Create an empty volume of ``volume.size_gb`` GiB that reads as zeros, and return its backend_ref.

        A volume of that uuid and size is left as it is, with its bytes; one of another size is refused.
        Raises Busy, NoSpace, Refused (TooLarge, QuotaReached, InvalidImage), Unavailable.
        """

    @abstractmethod
    def extend_volume(self, volume: VolumeRef, new_size_gb: int, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Grow a volume of ``volume.size_gb`` GiB to ``new_size_gb`` GiB; what is added reads as zeros.

        A volume never shrinks. One that has the new size already is left as it is, so a repeated call succeeds, and so
        does one that follows an attempt which got only a part of the way.
        Raises NotFound, InvalidImage, Busy (in use), NoSpace, Refused (smaller than it is, TooLarge, QuotaReached),
        Unavailable.
        """

    @abstractmethod
    def delete_volume(self, volume: VolumeRef) -> None:
        """Remove the volume and anything incomplete of it. Gone already is a success.

        Raises Busy, Refused (an engine whose snapshots need the volume refuses while there are any), Unavailable.
        """

    @abstractmethod
    def create_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        """Capture every volume, in the order given: all of them, or none and nothing left behind.

        Those that are already captured under the same uuid are returned as they are. Nobody writes to a volume meanwhile,
        as far as ``consistency`` promises. Raises NotFound, InvalidImage, Busy, NoSpace, Refused, Unavailable.
        """

    def create_safety_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        """Like create_snapshots, but so that the volumes can still be reverted to the snapshots that they have now."""
        return self.create_snapshots(disks, heartbeat)

    @abstractmethod
    def find_snapshot(self, snapshot: SnapshotRef) -> SnapshotInfo | None:
        """The snapshot if it is complete, else None: a half one is as good as none. Raises Unavailable."""

    @abstractmethod
    def verify_snapshot(
        self, snapshot: SnapshotRef, heartbeat: Heartbeat = no_heartbeat, *, resume: bool = False
    ) -> SnapshotInfo:
        """Read the snapshot again and compare it with its checksum, here and in ``snapshot``, or record the checksum when it
        has none yet.

        With ``resume`` an interruption loses nothing: the next call that resumes within RESUMABLE_FOR continues where this
        one was interrupted. Bytes that the medium fails to deliver twice are damage.
        Raises NotFound, Busy, NoSpace, Corrupt, Unavailable.
        """

    @abstractmethod
    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove it and whatever half of it there may be; volumes made from it stay. Gone already is a success.

        Raises Busy, Refused, Unavailable.
        """

    @abstractmethod
    def create_volume_from_snapshot(
        self,
        snapshot: SnapshotRef,
        volume: VolumeRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> str:
        """Make a new volume with the snapshot's bytes, grown with zeros to ``volume.size_gb``; return its backend_ref.

        A complete volume of that uuid is left as it is. An engine that reads bytes compares them as revert_volume does.
        Raises NotFound, Busy, NoSpace, Corrupt, Refused (smaller than the snapshot), Unavailable.
        """

    @abstractmethod
    def revert_volume(
        self,
        volume: VolumeRef,
        snapshot: SnapshotRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> None:
        """Give the volume the snapshot's bytes again: all, or the old ones stay. Nobody writes to it meanwhile.

        Volumes keep their size: bytes beyond the snapshot's end become zeros. Reverting twice gives the same bytes.

        An engine that reads bytes raises Corrupt, before the volume changes, when they do not match the snapshot's
        checksum, the engine's or that of ``snapshot``, and records the checksum when there is none yet. A copy is checked
        while it is written. A clone is checked by reading the snapshot first, unless it was verified within
        VERIFICATION_VALID_FOR. With ``unchecked`` nothing is compared, so that a damaged snapshot can be used too.
        Raises NotFound, InvalidImage, Busy, NoSpace, Corrupt, Refused, Unavailable.
        """

    @abstractmethod
    def bytes_needed(self, volumes: Sequence[VolumeRef]) -> int:
        """Upper bound of the room that capturing these volumes now would take; 0 where captures share blocks.

        Quick enough for a page. Raises NotFound, InvalidImage, Unavailable.
        """

    @property
    def shares_blocks(self) -> bool:
        """Whether a copy shares blocks with its original, so that it needs no room of its own."""
        return True

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Room left for new data, without what the engine keeps in reserve; None where it does not tell. Raises
        Unavailable.
        """

    @abstractmethod
    def check_health(self) -> None:
        """Return when the engine can work now. Raises Unavailable with the reason."""

    @abstractmethod
    def list_objects(self, backend_project: str = "") -> Iterator[StoredObject]:
        """All that is there, in no order and in bounded memory. What is being made or removed right now is left out
        where that can be told. Raises Unavailable.
        """

    def manifests(self) -> Iterator[tuple[UUID, str]]:
        """What the driver itself keeps beside each complete snapshot, for a backup of the portal's state; for engines that
        keep all of that themselves there is nothing.
        """
        return iter(())

    def put_manifest(self, uuid: UUID, text: str) -> bool:
        """Bring back one of `manifests` whose snapshot has bytes but lacks it. True when it was needed and fits."""
        return False

    def remove_orphans(  # noqa: B027  # not every engine has any
        self, backend_project: str = "", needed: Callable[[UUID], bool] = lambda uuid: False
    ) -> None:
        """Remove what dead workers left half-made and nobody asks for again; what is being worked on stays, and so does
        the only copy of what is `needed`, whatever it is called.

        Called now and then, for each of the engine's projects. For engines that clean up by themselves there is nothing
        to do. Raises Unavailable.
        """
