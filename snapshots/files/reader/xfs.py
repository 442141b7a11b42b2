"""XFS by libfsxfs, which decodes names: one that is not UTF-8 becomes `inode-<number>`."""

import stat
from collections.abc import Iterator

import pyfsxfs

from .entries import FILE, FOLDER, LINK, OTHER, UNREADABLE, Damaged, Entry, FileSystem, merge
from .windows import Window

SPARSE = 1
KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: FOLDER, stat.S_IFLNK: LINK}


class XFSFileSystem(FileSystem):
    def __init__(self, window: Window) -> None:
        self.volume = pyfsxfs.volume()
        try:
            self.volume.open_file_object(window)
            self.root_id = self.volume.root_directory.inode_number
        except (OSError, AttributeError) as error:
            raise Damaged(str(error)) from error

    @property
    def root(self) -> Entry:
        return Entry(b"", self.root_id, FOLDER)

    def entries(self, folder: int) -> Iterator[Entry]:
        directory = self.volume.get_file_entry_by_inode(folder)
        for position in range(directory.number_of_sub_file_entries):
            try:
                yield describe(directory.get_sub_file_entry(position))
            except OSError:
                yield Entry(b"", 0, UNREADABLE)

    def read(self, file: int, offset: int, size: int) -> bytes:
        data = self.volume.get_file_entry_by_inode(file).read_buffer_at_offset(size, offset)
        if len(data) != size:
            raise Damaged("a file ends before its size")
        return data

    def data_ranges(self, file: Entry) -> list[tuple[int, int]]:
        entry = self.volume.get_file_entry_by_inode(file.id)
        ranges, offset = [], 0
        for number in range(entry.number_of_extents):
            _start, size, flags = entry.get_extent(number)
            if not flags & SPARSE:
                ranges.append((offset, size))
            offset += size
        return merge(ranges, file.size)


def describe(entry: pyfsxfs.file_entry) -> Entry:
    mode = entry.file_mode
    kind = KINDS.get(stat.S_IFMT(mode), OTHER)
    try:
        name = entry.name.encode()
    except (OSError, AttributeError, UnicodeError):
        name = f"inode-{entry.inode_number}".encode()
    return Entry(
        name=name,
        id=entry.inode_number,
        kind=kind,
        size=entry.size or 0,
        changed_at=entry.get_modification_time_as_integer() / 1e9,
        mode=stat.S_IMODE(mode),
        owner=entry.owner_identifier,
        group=entry.group_identifier,
        target=(entry.symbolic_link_target or "").encode() if kind == LINK else b"",
        link_count=entry.number_of_links,
    )
