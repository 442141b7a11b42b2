"""A failing disk: a loop device whose file is truncated, so that the kernel answers reads with EIO."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE = 64 * 1024**2  # one block group, so that new files get blocks before the broken part
BLOCK = 4096
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
FIBMAP = 1  # linux/fs.h: the block on the medium that holds a block of the file


class Medium:
    def __init__(self, image: Path, root: Path) -> None:
        self.image, self.root = image, root
        self.lost, self.lost_at = b"", 0

    def break_at(self, path: Path, offset: int) -> None:
        """Make the file unreadable from `offset` on, and everything behind it on the medium."""
        os.sync()
        with open(path, "rb") as file:
            answer = fcntl.ioctl(file, FIBMAP, struct.pack("i", offset // BLOCK))
        self.lost_at = struct.unpack("i", answer)[0] * BLOCK
        self.lost = self.image.read_bytes()[self.lost_at :]
        os.truncate(self.image, self.lost_at)

    def shut_down(self) -> None:
        """Make every access to the file system fail with EIO until it is mounted again."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", 0))
        finally:
            os.close(folder)

    def mend(self) -> None:
        with open(self.image, "r+b") as image:
            image.seek(self.lost_at)
            image.write(self.lost)
            image.flush()
            os.fsync(image.fileno())


@contextmanager
def failing_medium(folder: Path) -> Iterator[Medium]:
    """Yield a failing disk. Skips the test if mounting isn't permitted, or if reads come from the page cache."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not shutil.which("losetup"):
        pytest.skip("needs root, mkfs.ext4 and losetup")
    image, root = folder / "medium.img", folder / "medium"
    root.mkdir()
    with open(image, "wb") as file:
        file.truncate(SIZE)
    make = ["mkfs.ext4", "-q", "-m", "0", "-b", str(BLOCK), "-O", "^has_journal", str(image)]
    subprocess.run(make, check=True, capture_output=True)
    attach = ["losetup", "--show", "--find", "--direct-io=on", str(image)]
    attached = subprocess.run(attach, capture_output=True, text=True)
    if attached.returncode:
        pytest.skip(f"cannot attach a loop device here: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        subprocess.run(["mount", device, str(root)], check=True, capture_output=True)
        try:
            yield Medium(image, root)
        finally:
            subprocess.run(["umount", str(root)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()
