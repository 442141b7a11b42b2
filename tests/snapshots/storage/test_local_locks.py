"""Locks of the local driver: against QEMU, other programs, and other processes of the portal."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from snapshots.storage.contract import (
    Busy,
    SnapshotRef,
)
from tests.snapshots.storage.stores import LocalStore, capture, noise, put_image, ref_of

MIB = 1024**2
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-io"), reason="needs qemu-io (Debian: qemu-utils)")
pytestmark = pytest.mark.slow


@contextmanager
def qemu(image: Path, *options: str) -> Iterator[subprocess.Popen]:
    """Hold an image open with QEMU's own tool."""
    process = subprocess.Popen(
        ["qemu-io", *options, "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    process.stdin.write("length\n")
    process.stdin.flush()
    assert "1 GiB" in process.stdout.readline(), "qemu-io did not open the image"
    try:
        yield process
    finally:
        process.communicate("quit\n", timeout=10)


@needs_qemu
def test_an_image_that_qemu_writes_to_is_neither_captured_nor_reverted(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    folder = capture(store, volume)
    snapshot = SnapshotRef(uuid=uuid4())
    with qemu(store.path(volume)) as process:
        for call in (
            lambda: store.driver.create_snapshots([(snapshot, volume)]),
            lambda: store.driver.revert_volume(volume, ref_of(folder)),
        ):
            with pytest.raises(Busy, match=rf"“files” is in use by qemu-io \(process {process.pid}\)"):
                call()
    assert store.leftovers() == []
    store.driver.create_snapshots([(snapshot, volume)])
    store.driver.revert_volume(volume, ref_of(folder))


@needs_qemu
def test_an_image_that_qemu_only_reads_can_be_captured(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    with qemu(store.path(volume), "-r"):
        capture(store, volume)


@needs_qemu
def test_qemu_cannot_write_to_an_image_that_is_being_captured_or_reverted(store: LocalStore) -> None:
    volume = put_image(store, {0: noise(MIB)})
    answers: list[str] = []

    def try_to_write(bytes_done: int, bytes_total: int) -> None:
        command = ["qemu-io", "-f", "raw", "-c", "write -P 255 0 4096", str(store.path(volume))]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=False).stderr)

    [info] = store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)], try_to_write)
    captured = len(answers)
    store.driver.revert_volume(volume, SnapshotRef(uuid=info.uuid), try_to_write)
    assert 0 < captured < len(answers)
    assert all("lock" in answer for answer in answers)
    assert store.read(volume, 0, MIB) == noise(MIB)


@pytest.mark.parametrize("how", ["flock", "fcntl"])
def test_an_ordinary_exclusive_lock_is_respected(store: LocalStore, how: str) -> None:
    volume = put_image(store, {0: noise(MIB)})
    with open(store.path(volume), "r+b") as image:
        if how == "flock":
            fcntl.flock(image, fcntl.LOCK_EX)
        else:
            fcntl.lockf(image, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="files"):
            capture(store, volume)
    capture(store, volume)
    assert len(list((store.folder / "snapshots").iterdir())) == 1


def test_a_locked_object_is_busy_for_others(store: LocalStore) -> None:
    volume, other = (put_image(store, {0: noise(MIB)}) for _each in range(2))
    snapshot, second = SnapshotRef(uuid=uuid4()), SnapshotRef(uuid=uuid4())
    rival = LocalStore(store.folder.parent).driver
    calls: list[str] = []

    def try_everything(bytes_done: int, bytes_total: int) -> None:
        assert rival.find_snapshot(snapshot) is None
        for call in (
            lambda: rival.create_snapshots([(snapshot, other)]),
            lambda: rival.delete_snapshot(snapshot),
            lambda: rival.revert_volume(volume, second),
            lambda: rival.create_volume(volume),
        ):
            with pytest.raises(Busy) as caught:
                call()
            calls.append(str(caught.value))
        rival.remove_orphans()  # leaves files of live processes alone

    store.driver.create_snapshots([(snapshot, volume)], try_everything)
    assert "files" in calls[2]
    assert store.driver.find_snapshot(snapshot)
    assert store.driver.find_snapshot(second) is None

    def capture_meanwhile(bytes_done: int, bytes_total: int) -> None:
        with pytest.raises(Busy, match="files"):
            rival.create_snapshots([(second, volume)])
        with pytest.raises(Busy):
            rival.delete_snapshot(snapshot)

    store.driver.revert_volume(volume, snapshot, capture_meanwhile)

    def verify_meanwhile(bytes_done: int, bytes_total: int) -> None:
        with pytest.raises(Busy):
            rival.verify_snapshot(snapshot)
        rival.revert_volume(volume, snapshot)  # verifications keep nobody waiting

    store.driver.verify_snapshot(snapshot, verify_meanwhile)
    assert store.leftovers() == []


def test_two_concurrent_captures_make_one_snapshot(copying: LocalStore) -> None:
    volume = put_image(copying, {0: noise(20 * MIB)})
    snapshot = uuid4()
    program = (  # without translations, which would need all of Django
        "import sys; from uuid import UUID; from snapshots.storage.contract import *\n"
        "from snapshots.storage.local import LocalDriver\n"
        "from django.conf import settings; settings.configure(USE_I18N=False)\n"
        "driver = LocalDriver(location='TEST-1', root=sys.argv[1])\n"
        "volume = VolumeRef(uuid=UUID(sys.argv[2]), name='files', size_gb=1)\n"
        "print('ready', flush=True); input()\n"
        "try: print(driver.create_snapshots([(SnapshotRef(uuid=UUID(sys.argv[3])), volume)])[0].captured_at)\n"
        "except Busy: print('busy')\n"
    )
    arguments = [sys.executable, "-c", program, str(copying.folder.parent), str(volume.uuid), str(snapshot)]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _each in range(4)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=30)[0].strip() for process in processes]
    info = copying.driver.find_snapshot(SnapshotRef(uuid=snapshot))
    assert info
    assert set(answers) <= {"busy", str(info.captured_at)}
    assert str(info.captured_at) in answers
    assert copying.leftovers() == []
