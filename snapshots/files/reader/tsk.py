"""ext2, ext3, ext4, NTFS, FAT and exFAT by The Sleuth Kit."""

from collections.abc import Iterator
from typing import Any

import pytsk3

from .entries import CHUNK, FILE, FOLDER, LINK, OTHER, UNREADABLE, Damaged, Entry, FileSystem, merge
from .journal import ReplayedWindow, Unusable
from .signatures import EXFAT, EXT, FAT, NTFS, describe_ext
from .windows import Window

TYPES = {
    EXT: pytsk3.TSK_FS_TYPE_EXT_DETECT,
    NTFS: pytsk3.TSK_FS_TYPE_NTFS_DETECT,
    FAT: pytsk3.TSK_FS_TYPE_FAT_DETECT,
    EXFAT: pytsk3.TSK_FS_TYPE_FAT_DETECT,
}
KINDS = {
    int(pytsk3.TSK_FS_META_TYPE_REG): FILE,
    int(pytsk3.TSK_FS_META_TYPE_DIR): FOLDER,
    int(pytsk3.TSK_FS_META_TYPE_LNK): LINK,
}
# The Sleuth Kit's own additions, such as the folder of orphans.
VIRTUAL = (int(pytsk3.TSK_FS_META_TYPE_VIRT), int(pytsk3.TSK_FS_META_TYPE_VIRT_DIR))
NTFS_ROOT, NTFS_FIRST_FILE = 5, 24  # the records between and before are $MFT, $Bitmap and so on
VOLUME_LABEL = b" (Volume Label Entry)"  # appended by The Sleuth Kit to the entry of a label, which is no file
UNALLOCATED = int(pytsk3.TSK_FS_NAME_FLAG_UNALLOC)
UNUSED_INODE = 2  # TSK_FS_META_FLAG_UNALLOC
UNDEFINED = int(pytsk3.TSK_FS_META_TYPE_UNDEF)
JOURNAL_INODE = 1024 + 224  # where ext's superblock has its number
INLINE_LINK, MAX_LINK = 60, 4096  # bytes; a longer target than the first has a block of its own in ext2 to ext4
NON_RESIDENT = int(pytsk3.TSK_FS_ATTR_NONRES)
COMPRESSED = int(pytsk3.TSK_FS_ATTR_COMP)
SPARSE, FILLER = int(pytsk3.TSK_FS_ATTR_RUN_FLAG_SPARSE), int(pytsk3.TSK_FS_ATTR_RUN_FLAG_FILLER)
CONTENT = (1, 128)  # the types of the attribute that is a file's content: TSK_FS_ATTR_TYPE_DEFAULT, and NTFS's $DATA


class Image(pytsk3.Img_Info):  # type: ignore[misc]
    def __init__(self, window: Window) -> None:
        self.window = window
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, size: int) -> bytes:
        return self.window.read_at(offset, size)

    def get_size(self) -> int:
        return self.window.size

    def close(self) -> None:
        pass


class TSKFileSystem(FileSystem):
    def __init__(self, window: Window, kind: str) -> None:
        self.kind = kind
        self.has_owners = kind == EXT
        self._open(window)
        if kind == EXT and describe_ext(window.read_at)[2]:
            self._replay(window)

    def _open(self, window: Window) -> None:
        self.image = Image(window)
        try:
            self.fs = pytsk3.FS_Info(self.image, offset=0, type=TYPES[self.kind])
        except OSError as error:
            raise Damaged(str(error)) from error

    def _replay(self, window: Window) -> None:
        """Open the file system as it is after its journal was replayed, if that can be."""
        original = self.image, self.fs
        try:
            journal = self.fs.open_meta(inode=int.from_bytes(window.read_at(JOURNAL_INODE, 4), "little"))
            self._open(ReplayedWindow(window, journal.read_random, journal.info.meta.size))
            self.is_replayed = True
        except (Damaged, Unusable, OSError, OverflowError):
            self.image, self.fs = original

    @property
    def root(self) -> Entry:
        return Entry(b"", self.fs.info.root_inum, FOLDER)

    def entries(self, folder: int) -> Iterator[Entry]:
        try:
            directory = self.fs.open_dir(inode=folder)
        except OSError as error:
            raise Damaged(str(error)) from error
        own = {b".", b".."}  # the first of each; another one is a forged entry
        files = iter(directory)
        for _number in range(directory.size):
            try:
                file = next(files)
            except StopIteration:
                return
            except OSError:
                yield Entry(b"", 0, UNREADABLE)
                continue
            name, meta = file.info.name, file.info.meta
            if int(name.flags) & UNALLOCATED or not name.name:
                continue
            if name.name in own:
                own.discard(name.name)
                continue
            if self.kind in (FAT, EXFAT) and name.name.endswith(VOLUME_LABEL):
                continue
            if meta is None or int(meta.flags) & UNUSED_INODE or int(meta.type) == UNDEFINED:
                yield Entry(name.name, name.meta_addr, UNREADABLE)
            elif int(meta.type) not in VIRTUAL and not self._is_internal(meta.addr):
                yield self._describe(name.name, meta)

    def _describe(self, name: bytes, meta: Any) -> Entry:
        entry = describe(name, meta)
        if self.kind != EXT or entry.kind != LINK or entry.size < INLINE_LINK:
            return entry
        try:  # The Sleuth Kit doesn't follow the extents of a link
            return entry._replace(target=self.read(entry.id, 0, min(entry.size, MAX_LINK)))
        except (Damaged, OSError):
            return Entry(name, entry.id, UNREADABLE)

    def _is_internal(self, number: int) -> bool:
        return self.kind == NTFS and number < NTFS_FIRST_FILE and number != NTFS_ROOT

    def read(self, file: int, offset: int, size: int) -> bytes:
        data = self.fs.open_meta(inode=file).read_random(offset, size)
        if len(data) != size:
            raise Damaged("a file ends before its size")
        return data

    def stream(self, file: Entry) -> Iterator[bytes]:
        """Read ext's blocks without The Sleuth Kit, which would ask for 64 KiB at a time and copy them twice."""
        offset = 0
        for at, position, size in self._blocks(file.id) if self.kind == EXT else []:
            size = min(size, file.size - at)
            if at != offset or size <= 0:
                break
            for start in range(0, size, CHUNK):
                length = min(CHUNK, size - start)
                data = bytes(length) if position is None else self.image.window.read_at(position + start, length)
                if len(data) != length:
                    raise Damaged("a file ends before its size")
                yield data
            offset += size
        for start in range(offset, file.size, CHUNK):
            yield self.read(file.id, start, min(CHUNK, file.size - start))

    def _blocks(self, file: int) -> Iterator[tuple[int, int | None, int]]:
        """Yield (offset in the file, in the file system, size) of its pieces in order; None in the file system for holes."""
        block = self.fs.info.block_size
        for attribute in self.fs.open_meta(inode=file):
            if int(attribute.info.type) != CONTENT[0] or not int(attribute.info.flags) & NON_RESIDENT:
                continue
            for run in attribute:
                is_hole = int(run.flags) & (SPARSE | FILLER)
                yield run.offset * block, None if is_hole else run.addr * block, run.len * block

    def data_ranges(self, file: Entry) -> list[tuple[int, int]]:
        block = self.fs.info.block_size
        for attribute in self.fs.open_meta(inode=file.id):
            if int(attribute.info.type) not in CONTENT or attribute.info.name:
                continue
            if int(attribute.info.flags) & COMPRESSED:  # its holes are the space that compression saved
                break
            ranges = [
                (run.offset * block, run.len * block) for run in attribute if not int(run.flags) & (SPARSE | FILLER)
            ]
            if ranges:
                return merge(ranges, file.size)
        return [(0, file.size)] if file.size else []


def describe(name: bytes, meta: Any) -> Entry:
    return Entry(
        name=name,
        id=meta.addr,
        kind=KINDS.get(int(meta.type), OTHER),
        size=max(0, meta.size),
        changed_at=meta.mtime,
        mode=int(meta.mode) & 0o7777,
        owner=meta.uid,
        group=meta.gid,
        target=meta.link or b"",
        link_count=meta.nlink,
    )
