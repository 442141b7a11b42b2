"""What changed between two snapshots of a volume: a merge of their catalogues."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlencode

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import DiskImage
from . import catalogue, names
from .catalogue import Catalogue, Record, parse
from .services import FilesUnavailable, logger, require_present, to_instant
from .versions import open_catalogue

ADDED, REMOVED, CHANGED, RENAMED = "added", "removed", "changed", "renamed"
KINDS: dict[str, str | Promise] = {
    ADDED: gettext_lazy("Added"),
    REMOVED: gettext_lazy("Removed"),
    CHANGED: gettext_lazy("Changed"),
    RENAMED: gettext_lazy("Renamed"),
}
# More are only counted, so that the memory of a web process doesn't grow with the disk.
MAX_CHANGES = 100_000


@dataclass(frozen=True, slots=True)
class Change:
    """`old` is None for an added entry, `new` for a removed one.

    `is_same_content` is None unless the content of both was compared. See contents.py.
    """

    kind: str
    old: Record | None
    new: Record | None
    is_same_content: bool | None = None

    @property
    def record(self) -> Record:
        record = self.new or self.old
        assert record is not None
        return record

    @property
    def path(self) -> bytes:
        return self.record.path

    @property
    def label(self) -> str | Promise:
        return KINDS[self.kind]

    @property
    def shown_path(self) -> str:
        return show(self.path)

    @property
    def old_path(self) -> str:
        return show(self.old.path) if self.old else ""

    @property
    def changed_at(self) -> datetime | None:
        return to_instant(self.record.changed_at / 1_000_000)

    @property
    def size_change(self) -> int:
        return (self.new.size if self.new else 0) - (self.old.size if self.old else 0)

    @property
    def is_new_content(self) -> bool:
        """Return whether the content may differ, not only the permissions."""
        if self.kind != CHANGED or not self.old or not self.new:
            return self.kind == ADDED
        old, new = self.old, self.new
        return (old.kind, old.size, old.changed_at) != (new.kind, new.size, new.changed_at)

    @property
    def part(self) -> int:
        return int(self.path.split(b"/", 1)[0])

    @property
    def query(self) -> str:
        """Return the parameters of its address, in the newest of the two snapshots that has it."""
        path = names.to_parameter(self.path.split(b"/")[1:])
        return urlencode({"path": path, "id": self.record.inode})

    @property
    def detail(self) -> str:
        """Say why it counts as changed, where its size doesn't show that."""
        if self.kind != CHANGED or not self.old or not self.new:
            return ""
        if self.old.kind != self.new.kind:
            return _("Now another kind of entry")
        if self.old.size != self.new.size:
            return ""
        if self.is_same_content is not None:
            return _("Saved again, same content") if self.is_same_content else _("Other content, same size")
        if self.old.changed_at != self.new.changed_at:
            return _("Saved again, same size")
        return _("Permissions only")


@dataclass
class Comparison:
    """`counts` include changes that didn't fit into `changes`, which are sorted by path."""

    changes: list[Change] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    is_complete: bool = True  # every change is in `changes`, and renames were recognized
    incomplete: list[str] = field(default_factory=list)  # names of the snapshots whose lists lack files


def show(path: bytes) -> str:
    """Return the path to display, without the part's number if that is the first."""
    part, *rest = path.split(b"/")
    text = names.show_path(rest)
    return text if part == b"0" else _("Partition %(number)s: %(path)s") % {"number": int(part) + 1, "path": text}


def compare(old: DiskImage, new: DiskImage) -> Comparison:
    """Raises FilesUnavailable."""
    try:
        with (
            catalogue.opened(open_catalogue(old)) as before,
            catalogue.opened(open_catalogue(new)) as after,
        ):
            result = compare_catalogues(before, after)
            pairs = (old, before), (new, after)
            result.incomplete = [disk.snapshot.name for disk, opened in pairs if not opened.is_whole]
            return result
    except FilesUnavailable:
        require_present(old, new)
        raise
    except ValueError as error:
        logger.exception("catalogue.damaged", disks=[str(old.pk), str(new.pk)])
        raise FilesUnavailable(_("The list of files of one of these snapshots is damaged.")) from error


def compare_catalogues(before: Catalogue, after: Catalogue) -> Comparison:
    """Raises ValueError for a damaged one."""
    result = Comparison()
    removed: list[Record] = []
    added: list[Record] = []
    for change in read_changes(before, after):
        if len(removed) + len(added) + len(result.changes) >= MAX_CHANGES:
            result.is_complete = False
            result.counts[change.kind] += 1
        elif change.kind == REMOVED and change.old:
            removed.append(change.old)
        elif change.kind == ADDED and change.new:
            added.append(change.new)
        else:
            result.changes.append(change)
    if result.is_complete:
        result.changes += pair_renamed(removed, added)
    else:
        result.changes += [Change(REMOVED, record, None) for record in removed]
        result.changes += [Change(ADDED, None, record) for record in added]
    result.counts.update(change.kind for change in result.changes)
    result.changes.sort(key=lambda change: change.path)
    return result


def read_changes(before: Catalogue, after: Catalogue) -> Iterator[Change]:
    """Yield added, removed and changed entries. A renamed one comes as removed and added."""
    for old_lines, new_lines in catalogue.differences(before, after):
        for path, line in old_lines.items():
            other = new_lines.pop(path, None)
            old = parse(line)
            if other is None:
                yield Change(REMOVED, old, None)
            elif is_changed(old, new := parse(other)):
                yield Change(CHANGED, old, new)
        for line in new_lines.values():
            yield Change(ADDED, None, parse(line))


def is_changed(old: Record, new: Record) -> bool:
    """Folders change whenever an entry of theirs does, and an inode alone says nothing about the content."""
    if (old.kind, old.mode) != (new.kind, new.mode):
        return True
    return old.kind != "d" and (old.size, old.changed_at) != (new.size, new.changed_at)


def pair_renamed(removed: list[Record], added: list[Record]) -> Iterator[Change]:
    """Yield renamed entries, by their inode and unchanged content, and the remainder of both lists.

    Inodes are used again, so a file's size and time have to be the same too.
    """
    by_identity: dict[tuple[object, ...], list[Record]] = {}
    for record in added:
        by_identity.setdefault(identity(record), []).append(record)
    for record in removed:
        if matches := by_identity.get(identity(record)):
            yield Change(RENAMED, record, matches.pop(0))
        else:
            yield Change(REMOVED, record, None)
    for records in by_identity.values():
        for record in records:
            yield Change(ADDED, None, record)


def identity(record: Record) -> tuple[object, ...]:
    part = record.path.split(b"/", 1)[0]
    if record.kind == "d":
        return part, record.kind, record.inode
    return part, record.kind, record.inode, record.size, record.changed_at


def filtered(result: Comparison, folder: bytes, kind: str, text: str) -> list[Change]:
    """Return the changes below the folder, whose path may be empty, of one kind if given, that contain the text."""
    prefix = folder + b"/" if folder else b""
    wanted = text.casefold()
    return [
        change
        for change in result.changes
        if change.path.startswith(prefix)
        and (not kind or change.kind == kind)
        and (not wanted or wanted in change.shown_path.casefold() or wanted in change.old_path.casefold())
    ]


@dataclass
class FolderTotal:
    """The changes in a folder. `path` is empty for those directly in the current one."""

    name: str
    path: bytes
    counts: Counter[str] = field(default_factory=Counter)
    size_change: int = 0

    @property
    def total(self) -> int:
        return self.counts.total()


def total_by_folder(changes: list[Change], folder: bytes) -> list[FolderTotal]:
    """Return the totals of each folder directly in this one, the largest number of changes first."""
    totals: dict[bytes, FolderTotal] = {}
    start = len(folder) + 1 if folder else 0
    for change in changes:
        name, slash, _rest = change.path[start:].partition(b"/")
        path = (folder + b"/" + name if folder else name) if slash else b""
        if path not in totals:
            shown = names.show(name) + "/" if folder else _("Partition %(number)s") % {"number": int(name) + 1}
            totals[path] = FolderTotal(shown if slash else _("Directly in this folder"), path)
        total = totals[path]
        total.counts[change.kind] += 1
        if change.record.kind != "d":
            total.size_change += change.size_change
    return sorted(totals.values(), key=lambda total: (-total.total, total.path))
