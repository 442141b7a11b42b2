"""What a restore drill takes beside the restore itself: a full disk of 4 GiB with an ext4 file system of 20,000 files.

Run alone with `python -m tests.lab.bench bench_drills`. It takes up to 13 GB of disk below DATA_DIR, for a few minutes.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from django.utils import timezone

from snapshots import tasks
from snapshots.drills.services import request_drill
from snapshots.files import cataloguing
from snapshots.models import DiskImage, Drill, Snapshot, volume_ref
from snapshots.storage.contract import GIB
from snapshots.storage.local import LocalDriver
from snapshots.storage.registry import get_driver
from tests.factories import SnapshotFactory, UserFactory
from tests.lab.bench import Measure
from tests.snapshots.files.images import need, run

SIZE_GB, FILES, ROUNDS = 4, 20_000, 3
FULL = 3.6  # GiB of files: as much as the file system takes


def main() -> Iterator[Measure]:
    need("mke2fs", "e2fsck")
    snapshot = SnapshotFactory(volume__size_gb=SIZE_GB, size_gb=SIZE_GB)
    snapshot.disks.update(size_gb=SIZE_GB)
    disk, user = snapshot.disks.get(), UserFactory(member_of=snapshot.project)
    driver = get_driver(snapshot.location)
    assert isinstance(driver, LocalDriver)
    driver.folder.can_clone = False  # what is restored is copied
    volume = volume_ref(disk.volume)
    driver.folder.create()
    make_disk(driver.folder.volume_path(volume.uuid))
    [info] = driver.create_snapshots([(disk.ref, volume)])
    DiskImage.objects.filter(pk=disk.pk).update(checksum=info.checksum)
    disk.refresh_from_db()
    cataloguing.record_listed(snapshot, cataloguing.list_files(snapshot, lambda _done, _total: None), timezone.now())
    restores, drills = [], []
    for _round in range(ROUNDS):  # in turns
        os.sync()
        start = perf_counter()
        driver.revert_volume(volume, disk.ref)
        restores.append(perf_counter() - start)
        os.sync()
        drills.append(run_drill(snapshot, user))
    restore, drill = median(restores), median(drills)
    yield Measure(
        "restore drill against the restore: 4 GiB, full, 20,000 files, checked by e2fsck",
        drill / restore,
        "×",
        at_most=1.5,
        note=f"medians of {ROUNDS}: {drill:.2f} s against {restore:.2f} s",
    )


def make_disk(path: Path) -> None:
    noise = os.urandom(int(FULL * GIB / FILES))
    with tempfile.TemporaryDirectory(dir=os.environ["DATA_DIR"]) as name:
        for number in range(FILES):
            file = Path(name, f"{number % 100:02}", f"{number:05}")
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(noise)
        with path.open("wb") as image:
            image.truncate(SIZE_GB * GIB)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", name, path)


def run_drill(snapshot: Snapshot, user: object) -> float:
    start = perf_counter()
    drill = request_drill(snapshot=snapshot, user=user)  # type: ignore[arg-type]
    assert drill.operation_id
    tasks.run_operation(drill.operation_id)
    drill.refresh_from_db()
    assert drill.result == Drill.Result.PROVEN
    return perf_counter() - start
