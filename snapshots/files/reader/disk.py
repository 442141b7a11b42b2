"""The parts of a disk: what its partition table and LVM divide it into, and which of them can be read."""

from collections.abc import Iterator
from typing import NamedTuple

from .entries import Damaged, FileSystem
from .lvm import NotReadable, find_logical_volumes
from .signatures import EXT, FILE_SYSTEMS, LVM, TABLES, XFS, describe_ext, identify, read_label
from .walking import Missing
from .windows import Window

MAX_PARTS = 256
# Errors that forged metadata may cause in our own code.
NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class Part(NamedTuple):
    """`kind` is one of signatures.py, or a reason of `NotReadable`, or "damaged"."""

    name: bytes
    kind: str
    window: Window
    file_system: str = ""  # as people call it
    label: bytes = b""
    is_journal_pending: bool = False  # it was in use when it was captured

    @property
    def is_readable(self) -> bool:
        return self.kind in FILE_SYSTEMS

    def open(self) -> FileSystem:
        """Raises Damaged."""
        if self.kind == XFS:
            from .xfs import XFSFileSystem

            return XFSFileSystem(self.window)
        from .tsk import TSKFileSystem

        return TSKFileSystem(self.window, self.kind)


def find_parts(image: int, size: int) -> list[Part]:
    """Return the parts in the order of the disk; never none."""
    parts = []
    for part in divide(b"", Window(image, [(0, size)]), is_disk=True):
        parts.append(part)
        if len(parts) == MAX_PARTS:
            break
    return parts


def divide(name: bytes, window: Window, *, is_disk: bool) -> Iterator[Part]:
    kind = identify(window.read_at, window.size)
    if kind in TABLES and is_disk:
        yield from divide_by_table(kind, window)
    elif kind == LVM:
        try:
            volumes = find_logical_volumes(window)
        except NotReadable as error:
            yield Part(name, str(error), window)
        except NONSENSE:
            yield Part(name, "damaged", window)
        else:
            for volume, content in volumes:
                yield describe(volume.encode(), content)
            if not volumes:
                yield Part(name, "lvm_empty", window)
    else:
        yield describe(name, window)


def divide_by_table(kind: str, disk: Window) -> Iterator[Part]:
    import pytsk3

    from .tsk import Image

    try:
        table = pytsk3.Volume_Info(Image(disk))
        entries = [entry for entry in table if int(entry.flags) == int(pytsk3.TSK_VS_PART_FLAG_ALLOC)]
    except OSError:
        yield Part(b"", "damaged", disk)
        return
    sector = table.info.block_size
    for entry in entries:
        start, size = entry.start * sector, entry.len * sector
        if not 0 <= start < disk.size:
            continue
        window = Window(disk.image, [(start, min(size, disk.size - start))])
        yield from divide(entry.desc if kind == "gpt" else b"", window, is_disk=False)
    if not entries:
        yield Part(b"", "no_partitions", disk)


def describe(name: bytes, window: Window) -> Part:
    kind = identify(window.read_at, window.size)
    if kind == EXT:
        file_system, label, is_pending = describe_ext(window.read_at)
        return Part(name, kind, window, file_system, label, is_pending)
    return Part(name, kind, window, kind, read_label(kind, window.read_at))


def open_part(image: int, size: int, index: int) -> FileSystem:
    """Raises Missing, and Damaged, also when the part can't be read."""
    parts = find_parts(image, size)
    if not 0 <= index < len(parts):
        raise Missing
    if not parts[index].is_readable:
        raise Damaged("no file system")
    return parts[index].open()
