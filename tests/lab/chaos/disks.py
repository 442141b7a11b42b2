"""The disks of the customers' machines: what is written to them, so that it is known afterwards what a copy may have."""

import collections
import fcntl
import os
from pathlib import Path

from cng_portal.inventory.models import Volume
from snapshots.storage.contract import GIB

from . import portal

CHUNK = 16 * 1024
PLACES = (0, 400 * 1024**2, GIB - CHUNK)

written: dict[str, set[bytes]] = collections.defaultdict(set)  # {volume: stamps that it ever had}


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
    """What a machine does to its disk, as one transaction of a file system: nobody captures in the middle of it. False
    while somebody captures or restores it.
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
        for place in PLACES:
            os.pwrite(file.fileno(), (text * (CHUNK // len(text) + 1))[:CHUNK], place)
    return True


def read_stamp(path: Path) -> bytes | None:
    """The one that a disk has in all its places; None when they differ."""
    with open(path, "rb") as file:
        parts = {os.pread(file.fileno(), CHUNK, place) for place in PLACES}
    return parts.pop()[:58] if len(parts) == 1 else None
