"""The entries of a file system, the same for every reader."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

CHUNK = 1024**2
FOLDER, FILE, LINK, OTHER, UNREADABLE = "d", "f", "l", "o", "u"


class Damaged(Exception):
    """The file system's own description can't be followed here."""


class Entry(NamedTuple):
    """`name` is raw bytes. `kind` is one of the above; OTHER is a device, pipe or socket."""

    name: bytes
    id: int
    kind: str
    size: int = 0  # bytes
    changed_at: float = 0  # seconds since 1970; 0 is unknown
    mode: int = 0
    owner: int = 0
    group: int = 0
    target: bytes = b""  # of a link
    link_count: int = 1


class FileSystem(ABC):
    """`id`s are the file system's inode numbers. Every method may raise Damaged or OSError."""

    has_owners = True
    is_replayed = False  # what its journal holds is read as if it had been written back

    @property
    @abstractmethod
    def root(self) -> Entry: ...

    @abstractmethod
    def entries(self, folder: int) -> Iterator[Entry]:
        """Yield the folder's entries in its own order, without `.` and `..`."""

    @abstractmethod
    def read(self, file: int, offset: int, size: int) -> bytes:
        """Return exactly these bytes, which are inside of the file."""

    def stream(self, file: Entry) -> Iterator[bytes]:
        """Yield the whole content of the file."""
        for offset in range(0, file.size, CHUNK):
            yield self.read(file.id, offset, min(CHUNK, file.size - offset))

    @abstractmethod
    def data_ranges(self, file: Entry) -> list[tuple[int, int]]:
        """Return [(offset, size)] of the data between holes, sorted and within the file."""


def merge(ranges: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """Sort ranges, join neighbours, and cut them at the file's end."""
    merged: list[tuple[int, int]] = []
    for offset, size in sorted(ranges):
        size = min(size, end - offset)
        if size <= 0:
            continue
        if merged and offset <= merged[-1][0] + merged[-1][1]:
            start, merged_size = merged.pop()
            merged.append((start, max(merged_size, offset + size - start)))
        else:
            merged.append((offset, size))
    return merged
