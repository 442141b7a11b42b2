"""Paths in a file system: finding one, and walking everything below one. Links are never followed."""

from collections.abc import Iterator, Sequence
from time import monotonic

from .entries import FOLDER, UNREADABLE, Damaged, Entry, FileSystem

# Deeper folders are not entered: their paths would take quadratic memory.
MAX_DEPTH = 200


class Missing(Exception):
    """No such path."""


def find(system: FileSystem, path: Sequence[bytes], number: int | None = None) -> Entry:
    """Return the entry at the path. `number` is its inode, which decides between entries of the same name.

    Raises Missing, Damaged, OSError.
    """
    entry = system.root
    for depth, name in enumerate(path):
        if entry.kind != FOLDER:
            raise Missing
        is_last = depth == len(path) - 1
        matches = (
            child
            for child in system.entries(entry.id)
            if child.name == name and (not is_last or number is None or child.id == number)
        )
        child_entry = next(matches, None)
        if child_entry is None:
            raise Missing
        entry = child_entry
    return entry


class Walk:
    """Everything below a folder, in no order: (path below it, entry), folders before their content.

    A folder that is met again, because the file system is damaged, isn't entered twice. Afterwards `unread` has the
    paths of the folders that weren't listed, or not completely, and `is_complete` is False if a limit ended the walk.
    """

    def __init__(self, system: FileSystem, folder: Entry, *, max_entries: int, seconds: float) -> None:
        self.system, self.folder, self.max_entries, self.seconds = system, folder, max_entries, seconds
        self.unread: list[tuple[bytes, ...]] = []
        self.is_complete = True

    def __iter__(self) -> Iterator[tuple[tuple[bytes, ...], Entry]]:
        entered = {self.folder.id, self.system.root.id}
        waiting: list[tuple[tuple[bytes, ...], int]] = [((), self.folder.id)]
        count, until = 0, monotonic() + self.seconds
        while waiting:
            base, number = waiting.pop()
            if len(base) >= MAX_DEPTH:
                self.unread.append(base)
                continue
            try:
                for entry in self.system.entries(number):
                    count += 1
                    if count > self.max_entries or (not count % 1000 and monotonic() > until):
                        self.is_complete = False
                        return
                    path = (*base, entry.name)
                    yield path, entry
                    if entry.kind == UNREADABLE and not entry.name:
                        self.unread.append(base)
                    elif entry.kind == FOLDER and entry.id not in entered:
                        entered.add(entry.id)
                        waiting.append((path, entry.id))
                    elif entry.kind == FOLDER:
                        self.unread.append(path)
            except (Damaged, OSError):
                self.unread.append(base)
