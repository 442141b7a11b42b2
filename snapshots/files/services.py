"""Who may read which files of a snapshot, and reading them: through a child, within limits, with a record of downloads."""

import os
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from stat import filemode
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import structlog
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.accounts.models import User
from cng_portal.activity.services import record

from .. import checks
from ..errors import ActionRefused, InvalidState
from ..models import DiskImage, Snapshot, State
from ..storage.contract import StorageError
from ..storage.registry import get_driver
from . import children, names
from .limits import ReaderSlot

logger = structlog.stdlib.get_logger(__name__)

PAGE_SIZE, MAX_RESULTS = 100, 200
MAX_TEXT = 255
MOST_SECONDS = 2**35  # the year 3058; file systems end before
# How often a download checks that its user still has access.
CHECK_SECONDS = 5

# Messages about failures of a reader.
COULD_NOT_READ = gettext_lazy(
    "The disk could not be read. It may be damaged, or in a format that the portal can't read. Your "
    "snapshot is unchanged; you can restore it, or create a new volume from it."
)
REASONS: dict[str, str | Promise] = {
    "not_installed": gettext_lazy("Files can't be shown, because this portal was installed without its disk readers."),
    "no_sandbox": gettext_lazy("Files can't be shown, because this server can't sandbox the disk reader."),
    "missing": gettext_lazy("There is no such file or folder in this snapshot."),
    "damaged": COULD_NOT_READ,
    "crashed": COULD_NOT_READ,
    "slow": gettext_lazy("The disk could not be read in time. Try a folder with fewer files."),
    "too_large": gettext_lazy(
        "The file is much larger than the disk, so most of it is empty. Download its folder instead: in an archive, holes "
        "stay holes."
    ),
    "archive_too_large": gettext_lazy(
        "The folder's files add up to more than the disk holds, because they share space or are damaged. Download its "
        "folders one by one."
    ),
    "archive_too_many": gettext_lazy(
        "The folder holds too many files for one archive. Download its folders one by one."
    ),
}
# Messages about parts that can't be browsed, by their signature or their surroundings.
UNREADABLE_KINDS: dict[str, str | Promise] = {
    "btrfs": gettext_lazy("Btrfs can't be browsed here."),
    "swap": gettext_lazy("Swap space: it has no files."),
    "luks": gettext_lazy("Encrypted with LUKS: only your instance has the key."),
    "bitlocker": gettext_lazy("Encrypted with BitLocker: only your instance has the key."),
    "raid": gettext_lazy("Part of a RAID: its files are spread over several disks."),
    "lvm_disks": gettext_lazy("An LVM volume group over several disks."),
    "lvm_layout": gettext_lazy("LVM with thin, mirrored, striped or cached volumes can't be browsed here."),
    "lvm_empty": gettext_lazy("An LVM volume group without volumes."),
    "zeros": gettext_lazy("Empty: it starts with nothing but zeros."),
    "no_partitions": gettext_lazy("A partition table without partitions."),
    "damaged": gettext_lazy("Damaged: its metadata can't be read."),
}
UNKNOWN_KIND = gettext_lazy("No file system that the portal knows.")
FILE_SYSTEMS = {"xfs": "XFS", "ntfs": "NTFS", "fat": "FAT", "exfat": "exFAT"}


class FilesUnavailable(ActionRefused):
    """The files can't be shown now, or at all."""


@dataclass(frozen=True)
class Part:
    """A partition, logical volume or whole disk. `reason` says why it isn't readable."""

    index: int
    name: str
    label: str
    file_system: str
    size: int
    reason: str | Promise
    may_lack_last_seconds: bool

    @property
    def title(self) -> str:
        return self.label or self.name or _("Disk %(number)s") % {"number": self.index + 1}


@dataclass(frozen=True)
class File:
    """An entry of a folder, or a search result. `path` ends with its own name."""

    path: tuple[bytes, ...]
    id: int
    kind: str
    size: int
    changed_at: datetime | None
    mode: str
    owner: str
    target: str

    @property
    def name(self) -> str:
        return names.show(self.path[-1])

    @property
    def shown_path(self) -> str:
        return names.show_path(self.path)

    @property
    def query(self) -> str:
        """Return the parameters of its address."""
        return urlencode({"path": names.to_parameter(self.path), "id": self.id})


@dataclass(frozen=True)
class Listing:
    """A page of a folder, or search results. `notes` are warnings about missing entries."""

    files: list[File]
    total: int
    has_owners: bool
    notes: list[str] = field(default_factory=list)


def require_reader(user: User, snapshot: Snapshot) -> None:
    """Raise PermissionDenied for viewers, who see a snapshot but not what is in it, unless an owner shared the files."""
    if not user.can_read_files(snapshot.project_id):
        raise PermissionDenied(
            _(
                "You can see this snapshot, but your role “Viewer” does not allow reading the files in it. Ask an owner of "
                "the project to make you a member."
            )
        )


def require_present(*disks: DiskImage) -> None:
    """Raise FilesUnavailable if the snapshot of a disk has been deleted since the request began. One query."""
    try:
        for snapshot in Snapshot.objects.filter(disks__in=disks).distinct():
            checks.require_ready(snapshot)
    except InvalidState as error:
        raise FilesUnavailable(str(error)) from error


@contextmanager
def open_disk(disk: DiskImage) -> Iterator[int]:
    """Yield a descriptor of the disk. Raises FilesUnavailable."""
    try:
        image = get_driver(disk.snapshot.location).open_for_reading(disk.ref)
    except StorageError as error:
        require_present(disk)
        raise FilesUnavailable(str(error)) from error
    try:
        yield image
    finally:
        os.close(image)


def ask(disk: DiskImage, command: str, **request: Any) -> list[dict[str, Any]]:
    """Raises FilesUnavailable, InvalidState, RateLimited."""
    checks.require_ready(disk.snapshot)
    with ReaderSlot(disk.snapshot.project.customer), open_disk(disk) as image:
        try:
            return children.ask(image, {"command": command, **request})
        except children.ReaderFailed as error:
            raise FilesUnavailable(str(REASONS[error.reason])) from error


@contextmanager
def distrust() -> Iterator[None]:
    """Turn an answer with missing or invalid fields, as from a compromised reader, into FilesUnavailable."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        logger.exception("files.answer_refused")
        raise FilesUnavailable(str(COULD_NOT_READ)) from error


def require_number(value: Any) -> int:
    """Raises ValueError unless it is a number of 64 bits."""
    if not isinstance(value, int) or not 0 <= value < 2**64:
        raise ValueError(f"no number: {value!r:.100}")
    return value


def list_parts(disk: DiskImage) -> list[Part]:
    """Return what the disk is divided into. Raises as `ask` does."""
    answers = ask(disk, "parts")
    with distrust():
        return [build_part(index, answer) for index, answer in enumerate(answers)]


def build_part(index: int, answer: dict[str, Any]) -> Part:
    kind = answer["kind"]
    return Part(
        index=index,
        name=names.show(b64decode(answer["name"])),
        label=names.show(b64decode(answer["label"])),
        file_system=FILE_SYSTEMS.get(answer["file_system"], answer["file_system"]) if answer["is_readable"] else "",
        size=require_number(answer["size"]),
        reason="" if answer["is_readable"] else UNREADABLE_KINDS.get(kind, UNKNOWN_KIND),
        may_lack_last_seconds=answer["is_journal_pending"] or kind == "xfs",
    )


def list_folder(
    disk: DiskImage, part: int, path: Sequence[bytes], *, number: int | None, order: str, start: int
) -> Listing:
    """Return PAGE_SIZE entries of a folder. `number` is its inode, for a name that isn't unique. Raises as `ask` does."""
    request = {"part": part, "path": encode(path), "id": number, "order": order, "start": start, "count": PAGE_SIZE}
    answers = ask(disk, "folder", **request)
    with distrust():
        return build_folder(path, *answers)


def build_folder(path: Sequence[bytes], summary: dict[str, Any], *answers: dict[str, Any]) -> Listing:
    notes = []
    if not summary["is_complete"]:
        notes.append(_("This folder has more entries than can be shown. Search for a part of the name."))
    if summary["unreadable"]:
        notes.append(
            _("Some entries of this folder are damaged and can't be shown: %(count)s")
            % {"count": summary["unreadable"]}
        )
    files = [build_file(answer, (*path, b64decode(answer["name"]))) for answer in answers]
    return Listing(files, require_number(summary["total"]), summary["has_owners"], notes)


def search(disk: DiskImage, part: int, path: Sequence[bytes], text: str) -> Listing:
    """Return the first entries below a folder whose path contains the text. Raises as `ask` does."""
    request = {"part": part, "path": encode(path), "text": b64encode(text.encode()).decode(), "count": MAX_RESULTS}
    answers = ask(disk, "search", **request)
    with distrust():
        return build_search_results(path, *answers)


def build_search_results(path: Sequence[bytes], *answered: dict[str, Any]) -> Listing:
    *answers, summary = answered
    notes = []
    if not summary["is_complete"]:
        notes.append(_("There may be more: the search ended after %(count)s files.") % {"count": len(answers)})
    if summary["unread"]:
        notes.append(_("Some folders are damaged and were not searched: %(count)s") % {"count": summary["unread"]})
    files = [build_file(answer, (*path, *(b64decode(name) for name in answer["path"]))) for answer in answers]
    return Listing(files, len(files), has_owners=False, notes=notes)


def build_file(answer: dict[str, Any], path: tuple[bytes, ...]) -> File:
    kind, mode = answer["kind"], answer["mode"]
    type_bits = {"d": 0o040000, "l": 0o120000, "f": 0o100000}.get(kind, 0)
    return File(
        path=path,
        id=require_number(answer["id"]),
        kind=kind,
        size=require_number(answer["size"]),
        changed_at=to_instant(answer["changed_at"]),
        mode=filemode(mode | type_bits),
        owner=f"{answer['owner']}:{answer['group']}",
        target=names.show(b64decode(answer["target"])),
    )


def to_instant(seconds: float) -> datetime | None:
    """Return the instant, or None if it is unknown or outside the range of every time zone."""
    return datetime.fromtimestamp(seconds, UTC) if 0 < abs(seconds) < MOST_SECONDS else None


def encode(path: Sequence[bytes]) -> list[str]:
    return [b64encode(name).decode() for name in path]


class DownloadStream:
    """The bytes of a file or archive. It ends with an error if they can't be read, or access is revoked."""

    def __init__(self, download: children.Download, slot: ReaderSlot, snapshot: Snapshot, user: User) -> None:
        self.download, self.slot, self.snapshot_id, self.user_id = download, slot, snapshot.pk, user.pk
        self.checked_at = time.monotonic()

    @property
    def size(self) -> int:
        return self.download.size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if time.monotonic() - self.checked_at > CHECK_SECONDS:
            self.checked_at = time.monotonic()
            if not is_still_readable(self.snapshot_id, self.user_id) or not self.slot.renew():
                logger.warning("files.download_ended")
                raise DownloadEnded
        return next(self.download)

    def close(self) -> None:
        """A second call does nothing."""
        self.download.close()
        self.slot.release()

    def __del__(self) -> None:
        """For a response that an error replaced, which is never closed."""
        self.download.close()
        self.slot.abandon()


class DownloadEnded(Exception):
    """The snapshot is being deleted, or the user has lost the role."""


def is_still_readable(snapshot_id: UUID, user_id: Any) -> bool:
    user = User.objects.filter(pk=user_id, is_active=True).first()
    if not user:
        return False
    snapshot = Snapshot.objects.visible_to(user).filter(pk=snapshot_id, state=State.READY, missing_since=None).first()
    return snapshot is not None and user.can_read_files(snapshot.project_id)


def start_download(
    disk: DiskImage, part: int, path: Sequence[bytes], *, number: int | None, user: User, is_folder: bool
) -> DownloadStream:
    """Start reading a file or folder, and record that. The caller closes the stream. Raises as `ask` does."""
    snapshot = disk.snapshot
    checks.require_ready(snapshot)
    slot = ReaderSlot(snapshot.project.customer)
    try:
        command = "archive" if is_folder else "file"
        with open_disk(disk) as image:
            download = children.Download(image, {"command": command, "part": part, "path": encode(path), "id": number})
    except children.ReaderFailed as error:
        slot.release()
        raise FilesUnavailable(str(REASONS[error.reason])) from error
    except BaseException:
        slot.release()
        raise
    stream = DownloadStream(download, slot, snapshot, user)
    try:
        with transaction.atomic():
            after = {
                "path": names.show_path(path)[:1000],
                "disk": disk.volume_name,
                "partition": part + 1,
                "bytes": stream.size,
            }
            action = "snapshot.download_folder" if is_folder else "snapshot.download_file"
            record(action=action, actor=user, target=snapshot, after=after)
    except BaseException:
        stream.close()
        raise
    return stream
