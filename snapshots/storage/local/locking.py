"""Locks that the kernel releases when their holder dies, so that a killed worker never blocks the next one.

No function waits for a lock. Open file description locks are used because, unlike the older POSIX locks, they also work
between the threads of a process, and aren't released when an unrelated descriptor of the same file is closed.
"""

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

# QEMU announces with shared locks on single bytes what it does to an image and what it allows others to do: one byte for
# each permission, at either base. Source: QEMU, block/file-posix.c (raw_apply_lock_bytes, raw_check_lock_bytes).
QEMU_USED, QEMU_NOT_SHARED = 100, 200
QEMU_READ, QEMU_WRITE, QEMU_RESIZE = 0, 1, 3


class Locked(Exception):
    """Somebody else holds the lock `name`."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.name = name


def flock_struct(kind: int, start: int, length: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def set_lock(file: int, kind: int, start: int, length: int = 1) -> None:
    """Raises BlockingIOError when it conflicts with another holder."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, flock_struct(kind, start, length))


def is_locked(file: int, kind: int, start: int, length: int = 1) -> bool:
    """Return whether another holder would prevent this lock."""
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, flock_struct(kind, start, length))
    return struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK


def offset_of(name: str) -> int:
    return min(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 1, 2**63 - 2)


def is_name_held(path: Path, name: str) -> bool:
    """Return whether somebody holds a lock on the name, tested without taking it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        return is_locked(file, fcntl.F_WRLCK, offset_of(name))
    finally:
        os.close(file)


@contextmanager
def hold_names(path: Path, *, exclusive: Iterable[str] = (), shared: Iterable[str] = ()) -> Iterator[None]:
    """Hold locks on names, all of them or none. Raises Locked with the name that is taken.

    Each name is one byte at a hashed offset of the lock file at `path`, so that no lock files are left behind.
    """
    kinds = dict.fromkeys(shared, fcntl.F_RDLCK) | dict.fromkeys(exclusive, fcntl.F_WRLCK)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        for name, kind in sorted(kinds.items()):
            try:
                set_lock(file, kind, offset_of(name))
            except BlockingIOError as error:
                raise Locked(name) from error
        yield
    finally:
        os.close(file)


def lock_image(file: int, *, writing: bool) -> None:
    """Keep writers away from an open disk image for as long as it stays open. Raises Locked when there is one.

    Works against QEMU and its tools, and against everybody who takes an ordinary flock or fcntl lock. `writing`: we are
    going to replace or resize the image, so nobody may rely on it either.
    """
    used = [QEMU_READ, QEMU_WRITE, QEMU_RESIZE] if writing else [QEMU_READ]
    not_shared = [QEMU_WRITE, QEMU_RESIZE]
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        # Lock first, then test, as QEMU does: of two that start at once, at least one sees the other.
        for permission in used:
            set_lock(file, fcntl.F_RDLCK, QEMU_USED + permission)
        for permission in not_shared:
            set_lock(file, fcntl.F_RDLCK, QEMU_NOT_SHARED + permission)
    except BlockingIOError as error:
        raise Locked from error
    if (
        any(is_locked(file, fcntl.F_WRLCK, QEMU_NOT_SHARED + permission) for permission in used)
        or any(is_locked(file, fcntl.F_WRLCK, QEMU_USED + permission) for permission in not_shared)
        or is_locked(file, fcntl.F_RDLCK, 0, 0)  # an exclusive lock on any byte
    ):
        raise Locked


def find_lock_holder(file: int) -> tuple[str, int] | None:
    """Return the name and pid of another process that locks this file, as far as /proc shows it to us."""
    locked = os.fstat(file)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # the process has ended, or we may not see it
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    opened = descriptor.stat()
                    if (opened.st_dev, opened.st_ino) == (locked.st_dev, locked.st_ino) and "\nlock:" in (
                        process / "fdinfo" / descriptor.name
                    ).read_text():
                        return (process / "comm").read_text().strip(), int(process.name)
    return None
