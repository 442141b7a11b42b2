"""How fast the local driver captures against cp, what checking a restore costs, and how much memory it takes.

Run alone with `python -m tests.lab.bench.bench_capture`. It takes up to 9 GB of disk in /var/tmp, for a minute or two.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from uuid import uuid4

from snapshots.storage.contract import GIB, SnapshotRef, VolumeRef
from snapshots.storage.local import LocalDriver
from tests.lab.bench import Measure

MIB = 1024**2
ROOM = 9 * GIB
MEASURE_MEMORY = """
import sys
from uuid import UUID, uuid4
from snapshots.storage.contract import SnapshotRef, VolumeRef
from snapshots.storage.local import LocalDriver
driver = LocalDriver(location="BENCH", root=sys.argv[1])
driver.folder.can_clone = False
snapshot = SnapshotRef(uuid=uuid4())
volume = VolumeRef(uuid=UUID(sys.argv[2]), name="bench", size_gb=int(sys.argv[3]))
driver.create_snapshots([(snapshot, volume)])
driver.verify_snapshot(snapshot)
driver.revert_volume(volume, snapshot)
driver.delete_snapshot(snapshot)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def make_volume(driver: LocalDriver, size_gb: int, *, data: int, of: int) -> VolumeRef:
    """Create a volume with `data` bytes of noise at the start of every `of` bytes."""
    volume = VolumeRef(uuid=uuid4(), name="bench", size_gb=size_gb)
    driver.create_volume(volume)
    noise = os.urandom(8 * MIB)
    with open(image_of(driver, volume), "r+b") as image:
        for start in range(0, size_gb * GIB, of):
            image.seek(start)
            for _block in range(data // len(noise)):
                image.write(noise)
        os.fsync(image.fileno())
    return volume


def image_of(driver: LocalDriver, volume: VolumeRef) -> Path:
    return driver.folder.volumes / f"{volume.uuid}.img"


def compare(
    driver: LocalDriver, volumes: list[VolumeRef], how: str, *, rounds: int, keep: bool
) -> list[tuple[float, float, float]]:
    """Return, for each volume, the median seconds of a capture, of `cp` with a sync, and of `cp` alone, measured in turns.

    With `keep`, nothing is removed: XFS keeps working in the background for a while after a removal.
    """
    times: dict[VolumeRef, list[tuple[float, float, float]]] = {volume: [] for volume in volumes}
    for _round in range(rounds):
        for volume in volumes:
            snapshot = SnapshotRef(uuid=uuid4())
            target = driver.folder.path / f"{snapshot.uuid}.img"
            os.sync()
            alone = seconds(lambda: run("cp", how, image_of(driver, volume), target))  # noqa: B023
            copy = alone + seconds(lambda: run("sync", target))  # noqa: B023
            if not keep:
                target.unlink()
            os.sync()
            capture = seconds(lambda: driver.create_snapshots([(snapshot, volume)]))  # noqa: B023
            if not keep:
                driver.delete_snapshot(snapshot)
            times[volume].append((capture, copy, alone))
    return [tuple(map(median, zip(*times[volume], strict=True))) for volume in volumes]  # type: ignore[misc]


def measure_copy(folder: Path) -> Measure:
    driver = LocalDriver(location="BENCH", root=str(folder))
    driver.folder.can_clone = False  # don't let the file system clone instead of copying
    volume = make_volume(driver, 4, data=8 * MIB, of=16 * MIB)
    [(capture, copy, alone)] = compare(driver, [volume], "--sparse=always", rounds=5, keep=False)
    return Measure(
        "capture, checksum included, against cp --sparse=always and sync: 4 GiB, half empty",
        copy / capture,
        "×",
        at_least=0.9,
        note=f"medians of 5: {capture:.2f} s against {copy:.2f} s, of which cp alone, not on the medium, {alone:.2f} s",
    )


def measure_hashing(folder: Path) -> list[Measure]:
    """Measure the cost of comparing every byte in a restore by copy, for a half-empty and a full disk."""
    driver = LocalDriver(location="BENCH", root=str(folder))
    driver.folder.can_clone = False
    measures = []
    for what, data in ("half empty", 8 * MIB), ("full", 16 * MIB):
        volume, snapshot = make_volume(driver, 2, data=data, of=16 * MIB), SnapshotRef(uuid=uuid4())
        driver.create_snapshots([(snapshot, volume)])
        times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for number in range(14):
            unchecked = number % 2 == 0
            os.sync()
            cpu = process_time()
            spent = seconds(lambda: driver.revert_volume(volume, snapshot, unchecked=unchecked))  # noqa: B023
            times[unchecked].append((spent, process_time() - cpu))
        # The best, because whatever else the machine does only adds to the others.
        (checked, cpu_checked), (plain, cpu_plain) = (
            map(min, zip(*times[each], strict=True)) for each in (False, True)
        )
        measures.append(
            Measure(
                f"restore by copy, with every byte hashed against without: 2 GiB, {what}",
                checked / plain,
                "×",
                at_most=1.15,
                note=f"best of 7: {checked:.2f} s against {plain:.2f} s; of CPU {cpu_checked:.2f} s and {cpu_plain:.2f} s",
            )
        )
        driver.delete_snapshot(snapshot)
        driver.delete_volume(volume)
    return measures


def measure_holes(folder: Path) -> Measure:
    driver = LocalDriver(location="BENCH", root=str(folder))
    driver.folder.can_clone = False
    volume, snapshot = make_volume(driver, 64, data=8 * MIB, of=64 * GIB), SnapshotRef(uuid=uuid4())
    capture = seconds(lambda: driver.create_snapshots([(snapshot, volume)]))
    verify = seconds(lambda: driver.verify_snapshot(snapshot))
    return Measure(
        "a hole of 64 GiB: hashed while it is captured, or read again",
        max(capture, verify),
        " s",
        at_most=1,
        note=f"{capture:.2f} s and {verify:.2f} s",
    )


def measure_clones(folder: Path) -> list[Measure]:
    what, sizes = "clone on XFS, 16 GiB against 1 GiB: time", (1, 4, 16)
    if os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        return [Measure(what, 0, note="not measured: needs root and mkfs.xfs")]
    image, mounted = folder / "xfs.img", folder / "xfs"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(24 * GIB)
    run("mkfs.xfs", "-q", "-m", "reflink=1", image)
    try:
        run("mount", "-o", "loop", image, mounted)
    except subprocess.CalledProcessError as error:
        return [Measure(what, 0, note=f"not measured: {error.stderr.decode().strip()}")]
    try:
        driver = LocalDriver(location="BENCH", root=str(mounted))
        volumes = [make_volume(driver, size_gb, data=64 * MIB, of=512 * MIB) for size_gb in sizes]
        times = compare(driver, volumes, "--reflink=always", rounds=9, keep=True)
    finally:
        run("umount", mounted)
        image.unlink()
    captures = [
        f"{size} GiB {1000 * capture:.0f} ms" for size, (capture, _copy, _alone) in zip(sizes, times, strict=True)
    ]
    copies = [f"{1000 * copy:.0f} ms" for _capture, copy, _alone in times]
    return [
        Measure(
            what,
            times[-1][0] / times[0][0],
            "×",
            at_most=1.5,
            note=f"medians of 9, one eighth full: {', '.join(captures)}; cp and sync: {', '.join(copies)}",
        ),
        Measure("clone on XFS against cp --reflink=always and sync, 16 GiB: speed", times[-1][1] / times[-1][0], "×"),
    ]


def measure_memory(folder: Path, size_gb: int) -> Measure:
    driver = LocalDriver(location="BENCH", root=str(folder))
    volume = make_volume(driver, size_gb, data=64 * MIB, of=512 * MIB)
    command = [sys.executable, "-c", MEASURE_MEMORY, str(folder), str(volume.uuid), str(size_gb)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measure(
        f"peak memory of a process that captures, verifies and restores {size_gb} GiB by copy",
        int(answer.stdout) / 1024,
        " MiB",
        at_most=64,
        note="all of the process: Python, the driver, Django's translations, but no other part of the portal",
    )


def main() -> list[Measure]:
    if shutil.disk_usage("/var/tmp").free < ROOM:
        return [Measure("capture", 0, note=f"not measured: /var/tmp has less than {ROOM // GIB} GB free")]
    measures: list[Measure] = []
    for measure in (
        lambda folder: [measure_copy(folder)],
        measure_hashing,
        lambda folder: [measure_holes(folder)],
        measure_clones,
        lambda folder: [measure_memory(folder, 1), measure_memory(folder, 8)],
    ):
        with tempfile.TemporaryDirectory(prefix="portal-bench-", dir="/var/tmp") as folder:
            measures += measure(Path(folder))
    return measures


if __name__ == "__main__":
    from tests.lab.bench.__main__ import main as run_benches

    sys.argv[1:] = ["bench_capture"]
    sys.exit(run_benches())
