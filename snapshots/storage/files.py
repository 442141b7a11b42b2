"""Open files that others may have replaced: links aren't followed, and only regular files are read.

A disk image that is a symbolic link would expose another file's bytes, and opening a named pipe would block the worker
until somebody writes to it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SMALL = 1024**2


class NotRegularFile(ValueError):
    """The path is a link, a pipe, a device, a socket or a folder."""


def open_regular_file(path: Path, *, below: Path | None = None) -> int:
    """Open a regular file for reading and return its descriptor.

    Nothing in the path after `below`, by default the file's folder, may be a link. Raises NotRegularFile and OSError.
    """
    with opened_folder(path, below) as folder:
        # Before opening it, because opening a device can have side effects.
        check_regular(path, os.stat(path.name, dir_fd=folder, follow_symlinks=False))
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        check_regular(path, os.fstat(file))  # it may have been replaced in between
    except NotRegularFile:
        os.close(file)
        raise
    return file


@contextmanager
def opened(path: Path, *, below: Path | None = None) -> Iterator[int]:
    file = open_regular_file(path, below=below)
    try:
        yield file
    finally:
        os.close(file)


def stat_regular_file(path: Path, *, below: Path | None = None) -> os.stat_result:
    """Raises NotRegularFile and OSError."""
    with opened_folder(path, below) as folder:
        status = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    check_regular(path, status)
    return status


@contextmanager
def opened_folder(path: Path, below: Path | None) -> Iterator[int]:
    """Open the file's folder without following a link after `below`."""
    below = below or path.parent
    folder = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parent.relative_to(below).parts:
            try:
                inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except NotADirectoryError as error:
                raise NotRegularFile(str(path)) from error
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFile(str(path))


def read_small_file(path: Path, *, below: Path | None = None) -> str:
    """Raises ValueError for a file that is not regular, not UTF-8 or larger than 1 MiB; OSError."""
    with opened(path, below=below) as file, open(file, "rb", closefd=False) as content:
        data = content.read(MAX_SMALL + 1)
    if len(data) > MAX_SMALL:
        raise ValueError(f"{path} is too large")
    return data.decode()
