"""Disks for tests: sparse images in the storage folder, as large as their volumes."""

import errno
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from blake3 import blake3

from billing.models import ServiceKind
from billing.pricing.packages import create_package
from cng_portal.inventory.models import Location, Volume
from snapshots.models import Operation
from snapshots.storage.contract import GIB
from snapshots.tasks import run_operation

CHUNK = 2 * 1024**2
ZERO_DIGEST = blake3(bytes(CHUNK)).digest()


def content(mark: bytes) -> bytes:
    """Return bytes for the start of a disk. The rest is a hole, which takes no time."""
    return mark * 3000


def put_volume(root: Path, volume: Volume, data: bytes, at: int = 0) -> Path:
    """Write the volume's image: `data`, and a hole for the rest."""
    path = root / volume.location_id / "volumes" / f"{volume.pk}.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.seek(at)
        file.write(data)
        file.truncate(volume.size_gb * GIB)
    return path


def flip_byte(path: Path, at: int = 0) -> None:
    """Flip one bit of a file, as a decaying medium does. Flipping it again repairs it."""
    path.chmod(0o640)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@contextmanager
def largest_file(size_gb: int) -> Iterator[None]:
    """Let the file system refuse larger files, as ext4 refuses more than 16 TiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_gb * GIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def touch_every_chunk(image: Path, up_to: float = math.inf) -> None:
    """Make hashing a sparse image slow, so that all of its bytes have to be read."""
    with open(image, "r+b") as file:
        for start in range(0, int(min(up_to, image.stat().st_size)), CHUNK):
            os.pwrite(file.fileno(), b"x", start + CHUNK // 2)


def checksum_of(image: Path) -> str:
    """Return the BLAKE3 hash of the hashes of its chunks of 2 MiB. Holes aren't read."""
    digests, size = [], image.stat().st_size
    with open(image, "rb") as file:
        for start in range(0, size, CHUNK):
            end = start + CHUNK
            is_hole = end <= size and next_data(file.fileno(), start) >= end
            digests.append(ZERO_DIGEST if is_hole else blake3(os.pread(file.fileno(), CHUNK, start)).digest())
    return f"blake3-2m:{blake3(b''.join(digests)).hexdigest()}"


def holds(image: Path, data: bytes) -> bool:
    """Return whether the image starts with these bytes, followed by zeros only. Holes aren't read."""
    with open(image, "rb") as file:
        if file.read(len(data)) != data:
            return False
        position, size = len(data), image.stat().st_size
        while (position := next_data(file.fileno(), position)) < size:
            hole = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            chunk = os.pread(file.fileno(), min(CHUNK, hole - position), position)
            if chunk != bytes(len(chunk)):
                return False
            position += len(chunk)
    return True


def next_data(file: int, position: int) -> float:
    """Return where data begins at or after the position, or infinity if only a hole follows."""
    try:
        return os.lseek(file, position, os.SEEK_DATA)
    except OSError as error:
        assert error.errno == errno.ENXIO
        return math.inf


# Earlier than any instant in a test, so that no test depends on today's date.
PRICED_SINCE = datetime(2000, 1, 1, tzinfo=UTC)


def sell_everywhere(rate_micro: int = 400_000, kind: ServiceKind = ServiceKind.BS_SNAPSHOT) -> None:
    """Set a price of K 0.4 per GB and hour in every location."""
    for location in Location.objects.all():
        create_package(
            location=location,
            kind=kind,
            rate_micro=rate_micro,
            starts_at=PRICED_SINCE,
        )


def run_active_operations() -> None:
    """Run all active operations in this process, as workers would."""
    for operation in Operation.objects.active().order_by("created_at"):
        run_operation(operation.pk)
