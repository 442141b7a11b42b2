"""Real disks for the tests: sparse images below the storage folder, small enough to read whole."""

from datetime import UTC, datetime
from pathlib import Path

from billing import services as billing
from billing.models import ServiceKind
from cng_portal.inventory.models import Location, Volume
from snapshots.drivers.base import GIB
from snapshots.models import Operation
from snapshots.tasks import run_operation


def content(mark: bytes) -> bytes:
    """One GiB would be slow to compare at every step, so an image of the tests may be shorter than its volume says."""
    return mark * 3000


def put_volume(root: Path, volume: Volume, data: bytes) -> Path:
    path = root / volume.location_id / "volumes" / f"{volume.pk}.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def put_full_volume(root: Path, volume: Volume, data: bytes, at: int = 0) -> Path:
    """An image of the volume's real size, a hole but for `data`."""
    path = put_volume(root, volume, b"")
    with open(path, "r+b") as file:
        file.truncate(volume.size_gb * GIB)
        file.seek(at)
        file.write(data)
    return path


def flip_byte(path: Path, at: int = 0) -> None:
    """Change one bit of a file, as a rotten medium does. Flipping it again mends it."""
    path.chmod(0o640)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


# Earlier than any instant that a test names, so that no test depends on today's date.
PRICED_SINCE = datetime(2000, 1, 1, tzinfo=UTC)


def sell_everywhere(rate_micro: int = 400_000, kind: ServiceKind = ServiceKind.BS_SNAPSHOT) -> None:
    """Set a price of K 0.4 per GB and hour in every location."""
    for location in Location.objects.all():
        billing.create_package(
            location=location,
            kind=kind,
            rate_micro=rate_micro,
            starts_at=PRICED_SINCE,
        )


def carry_out_what_waits() -> None:
    """What a worker would do now, in this process."""
    for operation in Operation.objects.active().order_by("created_at"):
        run_operation.func(str(operation.pk))
