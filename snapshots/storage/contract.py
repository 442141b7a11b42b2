"""The contract between the portal and a storage engine.

A driver serves one location. It takes the small dataclasses below, never models, and the worker calls it outside any
database transaction. Every call is idempotent: after a crash the worker can't know how far the last call got, so a second
call completes or confirms what the first one began. The uuids are the portal's own. An engine that chooses its own names
must store our uuid as well, so that it can be asked what it already has.

Engines may be synchronous (local files) or asynchronous (Cinder): a call returns once the result exists, and calls
``heartbeat`` at least once a second until then.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from uuid import UUID

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

GIB = 1024**3
# A clone of a snapshot that was verified within this time is made without reading the snapshot first.
VERIFICATION_VALID_FOR = timedelta(days=1)
# An interrupted read can be resumed for this long. Reading the largest disk takes days, because it yields to other work.
RESUMABLE_FOR = timedelta(days=7)

# heartbeat(bytes_done, bytes_total) reports progress and may raise Interrupted, after which the driver must leave nothing
# incomplete behind and let the exception through. A total of 0 means that the size is unknown.
Heartbeat = Callable[[int, int], None]


def no_heartbeat(bytes_done: int, bytes_total: int) -> None:
    """For callers that neither show progress nor interrupt."""


class Consistency(Enum):
    """The guarantee when several volumes are captured together."""

    INSTANT = "instant"  # nobody can write to any of them until the last one is captured
    PER_DISK = "per_disk"  # each is crash-consistent by itself; instants differ


@dataclass(frozen=True, kw_only=True)
class VolumeRef:
    uuid: UUID
    name: str  # for messages only
    size_gb: int  # GiB
    backend_ref: str = ""  # the engine's id; "" when it derives from the uuid
    backend_project: str = ""  # the engine's id of the project; "" where the engine has no projects


@dataclass(frozen=True, kw_only=True)
class SnapshotRef:
    uuid: UUID
    backend_ref: str = ""
    backend_project: str = ""  # that of its volume
    checksum: str = ""  # as the portal recorded it; "" if it has none yet


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """A complete snapshot of one volume, as the engine describes it."""

    uuid: UUID
    backend_ref: str
    size_bytes: int  # logical
    allocated_bytes: int | None  # None where the engine doesn't tell
    checksum: str  # see checksums.py; "" before it is computed, or where the engine gives no access to the bytes
    captured_at: datetime  # aware, UTC
    verified_at: datetime | None = None  # when its bytes were last read and matched the checksum


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """A volume, snapshot or file that the engine stores for the portal, for comparison with the database."""

    name: str  # the engine's name, for an operator who looks for it there
    uuid: UUID | None  # None unless a driver created it
    is_incomplete: bool = False  # nobody is working on it
    size_bytes: int | None = None  # logical size of a complete volume; None where the list doesn't tell
    changed_at: datetime | None = None
    # Whether the object still exists as it was listed: it may change while a long list is processed.
    is_unchanged: Callable[[], bool] = lambda: True


class StorageError(Exception):
    """``str(error)`` is a message for the customer. ``retryable``: the same call may succeed later. ``advice`` tells the
    operator, on the operation's page, what is wrong and how to fix it.
    """

    retryable = False
    advice: str | Promise = _("The log has the storage's answer, under the request's id on the operation's page.")


class NotFound(StorageError):
    """The volume or the snapshot doesn't exist."""

    advice = _(
        "The disk is missing from the storage. manage.py fsck lists what else is missing, in the storage or in the portal."
    )


class Busy(StorageError):
    """Somebody else is writing to the volume, or another call is working on the same volume or snapshot."""

    retryable = True
    advice = _(
        "The disk was in use until the operation's deadline. Find out by what: another operation, an import, or a job of "
        "the storage itself. Then try again."
    )


class NoSpace(StorageError):
    """The storage is full. Nothing was written."""

    advice = _(
        "The storage is full. Give it room, or ask customers to delete snapshots: until then everything there fails. Local "
        "storage keeps reserve_percent of its file system free, an option in STORAGE."
    )


class Corrupt(StorageError):
    """The snapshot's bytes differ from what was captured, or can't be read."""

    advice = _(
        "Bytes have changed since they were captured, or the medium fails to deliver them. Keep the damaged snapshot, check "
        "the disks below the storage, and ask the customer to take a new snapshot now."
    )


class Unreadable(StorageError):
    """The medium of a volume reports errors."""

    advice = _(
        "The medium of the volume reports errors: see the kernel's log. Replace it, then restore the volume from its latest "
        "undamaged snapshot."
    )


class Refused(StorageError):
    """The engine rejected the call, and would again: a policy, a conflict, a wrong argument."""

    advice = _("The storage would refuse this again. Its log has details. The customer has to request something else.")


class NotOffered(Refused):
    """The engine can't do this at all, for a reason that the customer should read."""

    advice = _("Nothing is broken: this storage gives the portal no access to the bytes of a disk.")


class InvalidImage(Refused):
    """The volume's disk isn't what the portal expects: it has another size, or isn't a regular file."""

    advice = _(
        "Check the volume's file in the storage: it was resized, truncated, or replaced with a link or a pipe. Restore a "
        "regular file of the volume's size. manage.py fsck lists every volume whose file has another size."
    )


class TooLarge(Refused):
    """A volume of this size can never be created there."""

    advice = _("The storage's file system limits the size of files. Larger volumes need another file system.")


class QuotaReached(Refused):
    """The engine's own limit, not the portal's."""

    advice = _("Raise the project's quota in the cloud, or lower its quota here so that customers see it in time.")


class Denied(Refused):
    """The portal's account isn't authorized to do this."""

    advice = _("The portal's account lacks a right in the cloud: docs/cinder.md has the policy that it needs.")


class Unavailable(StorageError):
    """The engine can't be reached, or failed internally."""

    retryable = True
    advice = _(
        "The storage couldn't be reached, or failed internally. Check that it works. Nothing in the portal needs fixing."
    )


class NotAccepted(Unavailable):
    """The engine rejects the portal's credentials."""

    advice = _(
        "The credentials in the location's options have expired or were revoked. Set new ones, then restart the workers."
    )


class NotPermitted(Unavailable):
    """The storage can't be used until an operator changes something."""

    retryable = False
    advice = _(
        "The portal has no permission to read or write below the storage's root, or the file system is mounted read-only, "
        "perhaps after a disk error: see the kernel's log. Fix that, then try again."
    )


class TooSlow(Unavailable):
    """The engine accepted the request and didn't finish in time."""

    advice = _(
        "The storage accepted the request and didn't finish. Check whether it is overloaded or hangs, and with manage.py "
        "fsck whether it finished later."
    )


# Causes of failure other than a StorageError.
WORKER_DIED, UNEXPECTED, NOT_SET_UP, NOT_PROVEN = "WorkerDied", "Unexpected", "NotSetUp", "NotProven"


def advice_for(cause: str) -> str | Promise:
    """Return the advice for a failed operation's cause: the name of an error's class, or one of the constants above."""
    own = {
        NOT_SET_UP: _(
            "The location names a storage that STORAGE doesn't define, or whose options are invalid: the worker's log says "
            "which. Fix it, restart the workers, then try again."
        ),
        WORKER_DIED: _("The worker died each time. Its journal may say why: out of memory, a disk, a restart."),
        NOT_PROVEN: _(
            "The restored copy isn't what it should be, although the snapshot's bytes match its checksum. The drill's page "
            "says which check failed. If the file system is damaged, it was so when the snapshot was taken: ask the "
            "customer to check the volume."
        ),
        UNEXPECTED: _(
            "This is a bug in the portal. Its log has the traceback, under the request's id on the operation's page."
        ),
    }
    return own.get(cause) or next((each.advice for each in _classes(StorageError) if each.__name__ == cause), "")


def _classes(root: type[StorageError]) -> Iterator[type[StorageError]]:
    yield root
    for each in root.__subclasses__():
        yield from _classes(each)


class Interrupted(Exception):
    """Raised by a heartbeat: stop, clean up and let it through. Not a failure of the storage."""


class CatalogueFile(StrEnum):
    """What is stored of the files in a snapshot. The values are names of files."""

    RECORDS = "catalogue"
    HASHES = "hashes"


class Driver(ABC):
    """One engine in one location. ``location`` is the location's code; options come from settings, then the location."""

    consistency: Consistency
    reads_bytes: bool  # whether verify_snapshot reads the content, or only asks the engine

    reverts_only_latest = False  # a volume can only be reverted to its latest snapshot
    reverts_attached = True  # a volume can be reverted while it is attached to a stopped machine
    finishes_late = False  # what was requested may still appear after the call has failed
    attaches = True  # the portal says which machine a volume is attached to; else the engine does
    deletes_with_snapshots = True  # a volume can be deleted while it has snapshots
    is_set_up = False  # it has answered before, so nothing has to be created for it

    @abstractmethod
    def __init__(self, *, location: str, **options: str) -> None: ...

    @property
    def clones(self) -> bool:
        """Return whether a restore shares blocks with the snapshot, so that verifying it first takes most of the time.

        Quick enough for a page. Raises Unavailable.
        """
        return False

    def check_volume_size(self, size_gb: int) -> None:  # noqa: B027  # most engines don't tell their limit
        """Raises TooLarge when no volume of this size can be created, Unavailable. Quick enough for a page."""

    @abstractmethod
    def create_volume(self, volume: VolumeRef, heartbeat: Heartbeat = no_heartbeat) -> str:
        """Create an empty volume of ``volume.size_gb`` GiB that reads as zeros, and return its backend_ref.

        A volume of that uuid and size is left as it is, with its bytes; one of another size is refused.
        Raises Busy, NoSpace, Refused (TooLarge, QuotaReached, InvalidImage), Unavailable.
        """

    @abstractmethod
    def extend_volume(self, volume: VolumeRef, new_size_gb: int, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Grow a volume of ``volume.size_gb`` GiB to ``new_size_gb`` GiB; the added space reads as zeros.

        A volume never shrinks. A repeated call succeeds, also after an attempt that grew the volume only partly.
        Raises NotFound, InvalidImage, Busy (in use), NoSpace, Refused (smaller than it is, TooLarge, QuotaReached),
        Unavailable.
        """

    @abstractmethod
    def delete_volume(self, volume: VolumeRef) -> None:
        """Remove the volume and anything incomplete of it. Succeeds if it is already gone.

        Raises Busy, Refused (an engine whose snapshots need the volume refuses while there are any), Unavailable.
        """

    @abstractmethod
    def measure_volume(self, volume: VolumeRef) -> int:
        """Return the size of the volume in bytes, whatever ``volume`` says. Raises NotFound, InvalidImage, Unavailable."""

    @abstractmethod
    def create_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        """Capture the volumes, in the order given: all of them, or none and nothing left behind.

        Snapshots that exist already are returned as they are. Nobody writes to the volumes meanwhile, as far as
        ``consistency`` promises. Raises Unreadable, NotFound, InvalidImage, Busy, NoSpace, Refused, Unavailable.
        """

    def create_safety_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        """Capture the volumes without making their existing snapshots unusable for `revert_volume`."""
        return self.create_snapshots(disks, heartbeat)

    @abstractmethod
    def find_snapshot(self, snapshot: SnapshotRef) -> SnapshotInfo | None:
        """Return the snapshot if it is complete, else None. Raises Corrupt, Unavailable."""

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
    def open_for_reading(self, snapshot: SnapshotRef) -> int:
        """Return a read-only descriptor of a regular file with the snapshot's bytes, which the caller closes.

        The bytes stay readable when the snapshot is deleted meanwhile. Nothing is verified.
        Raises NotOffered where the engine gives no access to the bytes, NotFound, Busy, Corrupt, Unavailable.
        """

    def open_volume(self, volume: VolumeRef) -> int:
        """Return a read-only descriptor of a regular file with the volume's bytes, which the caller closes.

        Nobody else may use the volume: it isn't locked. Raises NotOffered where the engine gives no access to the bytes,
        NotFound, InvalidImage, Unavailable.
        """
        raise NotOffered(_("This storage gives the portal no access to the bytes of a disk."))

    def checksum_volume(self, volume: VolumeRef, like: str, heartbeat: Heartbeat = no_heartbeat) -> str:
        """Read all bytes of a volume from the medium and return their checksum, computed in the way that `like` was.

        Raises NotOffered where the engine gives no access to the bytes, Unreadable, NotFound, InvalidImage, Busy,
        Unavailable.
        """
        raise NotOffered(_("This storage gives the portal no access to the bytes of a disk."))

    def store_catalogue(
        self, snapshot: SnapshotRef, data: Iterable[bytes], file: CatalogueFile = CatalogueFile.RECORDS
    ) -> None:
        """Store a file of a snapshot's catalogue beside it, in place of an earlier one. It goes when the snapshot goes.

        What `data` raises passes through, and nothing is stored. Takes room, which is refused like any other.
        Raises NotOffered where the engine gives no access to the bytes, NotFound, Busy, NoSpace, Unavailable.
        """
        raise NotOffered(_("This storage gives the portal no access to the files of a disk."))

    def open_catalogue(self, snapshot: SnapshotRef, file: CatalogueFile = CatalogueFile.RECORDS) -> int | None:
        """Return a read-only descriptor of the stored catalogue, which the caller closes; None if there is none.

        Raises Corrupt, Unavailable.
        """
        return None

    @abstractmethod
    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove the snapshot and anything incomplete of it. Volumes created from it stay. Succeeds if it is already gone.

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
        """Create a volume with the snapshot's bytes, zeros up to ``volume.size_gb`` GiB; return its backend_ref.

        A complete volume of that uuid is left as it is. An engine that reads bytes checks them as revert_volume does.
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
        """Replace the volume's bytes with the snapshot's: all of them, or none. Nobody writes to it meanwhile.

        The volume keeps its size: bytes beyond the snapshot's end become zeros. Reverting twice gives the same bytes.

        An engine that reads bytes raises Corrupt, before the volume changes, when they don't match the snapshot's
        checksum, the engine's or that of ``snapshot``, and records the checksum when there is none yet. A copy is checked
        while it is written. A clone is checked by reading the snapshot first, unless it was verified within
        VERIFICATION_VALID_FOR. With ``unchecked`` nothing is compared, so that a damaged snapshot can be used as well.
        Raises NotFound, InvalidImage, Busy, NoSpace, Corrupt, Refused, Unavailable.
        """

    @abstractmethod
    def bytes_needed(self, volumes: Sequence[VolumeRef]) -> int:
        """Return the most space that capturing these volumes now could take; 0 where captures share blocks.

        Quick enough for a page. Raises NotFound, InvalidImage, Unavailable.
        """

    @property
    def shares_blocks(self) -> bool:
        """Return whether a copy shares blocks with its original, so that it takes no space of its own."""
        return True

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return the space left for new data, without the engine's reserve; None where it doesn't tell.

        Raises Unavailable.
        """

    @abstractmethod
    def check_health(self) -> None:
        """Return when the engine can work now. Raises Unavailable with the reason."""

    @abstractmethod
    def list_objects(self, backend_project: str = "") -> Iterator[StoredObject]:
        """List everything that is stored, in no order and in bounded memory. Raises Unavailable.

        What is being created or removed right now is left out where the engine can tell.
        """

    def manifests(self) -> Iterator[tuple[UUID, str]]:
        """List the manifests that the driver stores beside complete snapshots, for a backup of the portal's state.

        Engines that store all of it themselves have none.
        """
        return iter(())

    def put_manifest(self, uuid: UUID, text: str) -> bool:
        """Restore one of `manifests` if its snapshot exists without it. True when it was missing and fits."""
        return False

    def remove_orphans(  # noqa: B027  # not every engine leaves any
        self, backend_project: str = "", needed: Callable[[UUID], bool] = lambda uuid: False
    ) -> None:
        """Remove incomplete objects of dead workers. Objects in use stay, and so does the only copy of something
        that is `needed`.

        Called regularly, for each of the engine's projects. Raises Unavailable.
        """
