"""Copy disk images: holes stay holes, every byte is read once, and the heartbeat is called every half second."""

import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from time import monotonic
from typing import TypeVar

from ..checksums import Checksum
from ..contract import Heartbeat

T = TypeVar("T")

FICLONE = 0x40049409  # linux/fs.h: make the target share all blocks of the source
CANNOT_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV}
ALIGNMENT = 4096  # of positions, lengths and buffers where reads and writes go past the page cache
CHUNK = 2 * 1024**2
BUFFERS = 8
WRITERS = 2
HOLE_STEP = 128 * CHUNK
PIECE = 64 * 1024  # aligned zeros of this length become a hole
BEAT_SECONDS = 0.5
ZERO_PIECE = bytes(PIECE)


class Progress:
    """Reports progress to a heartbeat, always in the caller's thread."""

    def __init__(self, heartbeat: Heartbeat, total: int, done: int = 0) -> None:
        self.heartbeat, self.done, self.total = heartbeat, done, total
        self.beat()

    def beat(self) -> None:
        self.heartbeat(self.done, self.total)
        self.last = monotonic()

    def add(self, length: int) -> None:
        self.done += length
        if monotonic() - self.last >= BEAT_SECONDS:
            self.beat()

    def wait_for(self, future: Future[T]) -> T:
        while wait([future], timeout=BEAT_SECONDS).not_done:
            self.beat()
        return future.result()

    def during(self, function: Callable[..., T], *args: object) -> T:
        """Return the result of a call that may block, such as fsync. An interruption still waits for its end."""
        with ThreadPoolExecutor(1) as pool:
            return self.wait_for(pool.submit(function, *args))


def clone_file(source: int, target: int) -> bool:
    """Make the empty `target` share the blocks of `source`. False where the file system can't."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in CANNOT_CLONE:
            return False
        raise
    return True


def bypass_page_cache(file: int) -> None:
    """Read from the medium, and write without filling the memory or leaving all the waiting to fsync.

    A large copy spent half of its time on the kernel's allocation of pages. No-op where the file system can't.
    """
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def iterate_extents(file: int, size: int, position: int = 0) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether there is data) from `position` to `size` without gaps.

    Inner borders are multiples of ALIGNMENT, as `position` has to be.
    """
    while position < size:
        try:
            start = os.lseek(file, position, os.SEEK_DATA) // ALIGNMENT * ALIGNMENT
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            start = size  # a hole up to the end
        if start > position:
            yield position, min(start, size), False
            position = start
        if position < size:
            end = -(-os.lseek(file, position, os.SEEK_HOLE) // ALIGNMENT) * ALIGNMENT
            if end <= position:  # `start` was rounded down into the hole before it
                end = position + ALIGNMENT
            yield position, min(end, size), True
            position = end


def read_fully(file: int, view: memoryview, position: int) -> None:
    """Fill `view` with the bytes at `position`, and with zeros beyond the end of the file."""
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], position + done)
        if not count:
            view[done:] = bytes(len(view) - done)
        done += count or len(view) - done


class MediumError(OSError):
    """The medium failed to read the same bytes twice."""


def read_twice(read: Callable[[], T], between: Callable[[], None] = lambda: None) -> T:
    """Return what `read` returns, after a second try if the medium reports an error. Raises MediumError."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    between()
    try:
        return read()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise MediumError(*error.args) from error


def write_data(file: int, buffer: mmap.mmap, length: int, position: int) -> None:
    """Write `buffer[:length]` except for pieces of zeros."""
    view = memoryview(buffer)
    start = 0
    for piece in range(0, length + PIECE, PIECE):
        # Checking the first byte saves most of the comparisons.
        if piece >= length or (not buffer[piece] and buffer[piece : piece + PIECE] == ZERO_PIECE):
            end = min(piece, length)
            while start < end:
                start += os.pwrite(file, view[start:end], position + start)
            start = piece + PIECE


def copy_data(
    source: int,
    target: int | None,
    size: int,
    progress: Progress,
    checksum: Checksum | None = None,
    *,
    start: int = 0,
) -> None:
    """Copy the bytes of `source` from `start` to `size` into `target`, a hole or empty, or only read them if it is None.

    All of these bytes are added to the checksum. The target isn't synced, and its last block may reach beyond `size`.
    Other threads write while this one reads and hashes. Hashing a chunk that has just been read costs less than handing
    it to a thread of its own, whose turn it also has to wait for on a busy machine. Raises MediumError.
    """
    free = [mmap.mmap(-1, CHUNK) for _ in range(BUFFERS)]
    pending: deque[tuple[Future, mmap.mmap]] = deque()

    def finish_oldest() -> None:
        future, buffer = pending.popleft()
        progress.wait_for(future)
        free.append(buffer)

    with ThreadPoolExecutor(WRITERS) as writing:
        for first, end, has_data in iterate_extents(source, size, start):
            step = CHUNK if has_data else HOLE_STEP
            for position in range(first, end, step):
                length = min(step, end - position)
                if has_data:
                    if not free:
                        finish_oldest()
                    buffer = free.pop()
                    aligned = -(-length // ALIGNMENT) * ALIGNMENT
                    content = memoryview(buffer)[:aligned]
                    read_twice(partial(read_fully, source, content, position), progress.beat)
                    if target is None:
                        free.append(buffer)
                    else:
                        pending.append((writing.submit(write_data, target, buffer, aligned, position), buffer))
                    if checksum:
                        checksum.add(content[:length])
                elif checksum:
                    checksum.add_zeros(length)
                progress.add(length)
        while pending:
            finish_oldest()


def fill_image(
    source: int, target: int, size: int, progress: Progress, *, cloning: bool, checksum: Checksum | None = None
) -> str:
    """Fill the empty file `target` with the bytes of `source`, resize it to `size`, and sync it.

    Returns the method: "copy", which adds the source's bytes to the checksum and its size to the progress, or "clone",
    which reads nothing and adds nothing.
    """
    source_size = os.fstat(source).st_size
    if cloning and progress.during(clone_file, source, target):
        method = "clone"
    else:
        method = "copy"
        bypass_page_cache(target)
        os.ftruncate(target, size)  # writes that make a file longer wait for each other
        copy_data(source, target, source_size, progress, checksum)
    os.ftruncate(target, size)  # a copy as well: its last write was rounded up
    progress.during(os.fsync, target)
    return method


def write_file(path: os.PathLike[str], text: str) -> None:
    """Write a small file and sync its content. The caller syncs the folder."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: os.PathLike[str]) -> None:
    """Sync the names in a folder."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
