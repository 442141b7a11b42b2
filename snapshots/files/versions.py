"""The history of a path: the snapshots and backups of a volume that hold it, by their catalogues."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User

from ..models import DiskImage, Snapshot, State
from ..storage.contract import StorageError
from ..storage.registry import get_driver
from . import catalogue, names
from .catalogue import Record
from .reader import clean
from .services import FilesUnavailable, logger, to_instant

MAX_VERSIONS = 100


@dataclass(frozen=True)
class Version:
    """The path in one snapshot. `change` says how it differs from the previous snapshot."""

    disk: DiskImage
    record: Record
    path: tuple[bytes, ...]
    change: str
    is_new_content: bool

    @property
    def changed_at(self) -> datetime | None:
        return to_instant(self.record.changed_at / 1_000_000)

    @property
    def query(self) -> str:
        """Return the parameters of its address."""
        return urlencode({"path": names.to_parameter(self.path), "id": self.record.inode})


@dataclass(frozen=True)
class Gap:
    """The path was deleted between these snapshots; not certainly, if the list of files of the later one is incomplete."""

    after: DiskImage
    before: DiskImage
    is_certain: bool


@dataclass
class History:
    """`rows` are versions and gaps, the newest first.

    `unlisted` snapshots have no list yet, `unreadable` ones never will, and `incomplete` lists lack parts of the disk.
    """

    rows: list[Version | Gap] = field(default_factory=list)
    searched: int = 0
    unlisted: int = 0
    unreadable: int = 0
    incomplete: int = 0

    @property
    def versions(self) -> list[Version]:
        return [row for row in self.rows if isinstance(row, Version)]


def readable_disks(disk: DiskImage, user: User) -> QuerySet[DiskImage]:
    """Return the disks of Ready snapshots of the same volume whose files the user may read, the newest first."""
    snapshots = Snapshot.objects.visible_to(user).filter(
        state=State.READY, missing_since=None, project__in=user.readable_project_ids
    )
    disks = DiskImage.objects.filter(volume=disk.volume_id, snapshot__in=snapshots)
    return disks.select_related("volume", "snapshot__location").order_by("-snapshot__ready_at", "-snapshot")


def open_catalogue(disk: DiskImage) -> int:
    """Return a descriptor, which the caller closes. Raises FilesUnavailable."""
    try:
        file = get_driver(disk.snapshot.location).open_catalogue(disk.ref)
    except StorageError as error:
        raise FilesUnavailable(str(error)) from error
    if file is None:
        text = (
            _("The files of “%(name)s” could not be listed, because its disk can't be read.")
            if disk.snapshot.catalogued_at
            else _("The files of “%(name)s” aren't listed yet. That happens shortly after a snapshot is ready.")
        )
        raise FilesUnavailable(text % {"name": disk.snapshot.name})
    return file


def record_path(part: int, path: Sequence[bytes]) -> bytes:
    return b"/".join([b"%d" % part, *map(clean, path)])


def find_record(disk: DiskImage, path: bytes) -> tuple[Record | None, bool]:
    """Return (the record or None, whether the list of files is whole). Raises FilesUnavailable."""
    try:
        with catalogue.opened(open_catalogue(disk)) as opened:
            return opened.find(path), opened.is_whole
    except ValueError as error:
        logger.exception("catalogue.damaged", disk=str(disk.pk))
        raise FilesUnavailable(
            _("The list of files of “%(name)s” is damaged.") % {"name": disk.snapshot.name}
        ) from error


def load_history(disk: DiskImage, part: int, path: Sequence[bytes], user: User) -> History:
    """Look the path up in the newest MAX_VERSIONS snapshots of the disk's volume. Two queries."""
    wanted = record_path(part, path)
    history = History()
    previous: Record | None = None
    last: DiskImage | None = None
    for each in reversed(readable_disks(disk, user)[:MAX_VERSIONS]):
        try:
            record, is_whole = find_record(each, wanted)
        except FilesUnavailable:
            if each.snapshot.catalogued_at:
                history.unreadable += 1
            else:
                history.unlisted += 1
            continue
        history.searched += 1
        history.incomplete += not is_whole
        if record:
            change = describe_change(previous, record, is_first=last is None)
            history.rows.append(Version(each, record, tuple(path), *change))
        elif previous and last:
            history.rows.append(Gap(last, each, is_certain=is_whole))
        previous, last = record, each
    history.rows.reverse()
    return history


def describe_change(previous: Record | None, record: Record, *, is_first: bool) -> tuple[str, bool]:
    """Return (how the record differs from the previous one, whether its content may differ)."""
    if previous is None:
        return (_("Oldest listed") if is_first else _("Created")), True
    if previous.kind != record.kind:
        return _("Replaced"), True
    if record.kind == "d":
        return _("Still there"), False
    if previous.size != record.size:
        return _("Changed"), True
    if previous.changed_at != record.changed_at:
        return _("Saved again, same size"), True
    return _("Same size and time"), False
