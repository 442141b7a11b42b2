"""The disks of the customers' machines. Everything written is recorded, so that snapshots can be compared with it."""

import collections
import fcntl
import os
from pathlib import Path

from cng_portal.inventory.models import Volume
from snapshots.storage.contract import GIB

from . import portal

CHUNK = 16 * 1024
OFFSETS = (0, 400 * 1024**2, GIB - CHUNK)

written: dict[str, set[bytes]] = collections.defaultdict(set)  # {volume: every stamp it ever held}


def image(volume: Volume) -> Path:
    return portal.STORAGE / volume.location_id / "volumes" / f"{volume.pk}.img"


def make(volume: Volume) -> None:
    path = image(volume)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(GIB)
    write(volume, 0)


def stamp(volume: Volume, number: int) -> bytes:
    return f"{volume.pk} {number:>20} ".encode()


def write(volume: Volume, number: int) -> bool:
    """Write to the disk as a machine does, in one transaction of its file system. Returns False while the disk is being
    captured or restored.
    """
    text = stamp(volume, number)
    with open(image(volume), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.fstat(file.fileno()).st_ino != image(volume).stat().st_ino:
            return False  # restored just now
        written[str(volume.pk)].add(text)
        for offset in OFFSETS:
            os.pwrite(file.fileno(), (text * (CHUNK // len(text) + 1))[:CHUNK], offset)
    return True


def read_stamp(path: Path) -> bytes | None:
    """Return the stamp that the disk has at all offsets, or None if they differ."""
    with open(path, "rb") as file:
        parts = {os.pread(file.fileno(), CHUNK, offset) for offset in OFFSETS}
    return parts.pop()[:58] if len(parts) == 1 else None
