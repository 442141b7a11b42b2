"""Catalogues: what the worker stores beside a snapshot, looked up, compared, and gone with it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from snapshots import services, tasks
from snapshots.files import catalogue, cataloguing
from snapshots.files.catalogue import Record
from snapshots.models import DiskImage, Operation
from snapshots.storage.contract import NoSpace
from snapshots.storage.registry import get_driver
from tests.factories import SnapshotFactory, UserFactory
from tests.snapshots.files.conftest import Images

Capture = Callable[[Path], DiskImage]


def pack(records: list[bytes], summary: dict[str, Any] | None = None) -> int:
    file = os.memfd_create("catalogue")
    for piece in catalogue.compress([catalogue.SEPARATOR.join(sorted(records))], summary or {}):
        os.write(file, piece)
    return file


def line(path: str, *, size: int = 1, changed_at: int = 5, inode: int = 9) -> bytes:
    return b"%s\0f %d %d %d 644" % (path.encode(), size, changed_at, inode)


def many(count: int, **fields: int) -> list[bytes]:
    return [line(f"0/folder-{number % 50}/file-{number:07}", inode=number, **fields) for number in range(count)]


def test_a_path_is_looked_up_in_any_block() -> None:
    with catalogue.opened(pack(many(5000), {"is_complete": True})) as opened:
        assert len(opened.first_paths) > 2 and opened.summary == {"is_complete": True}
        assert opened.find(b"0/folder-7/file-0000007") == Record(b"0/folder-7/file-0000007", "f", 1, 5, 7, 0o644)
        for path in [b"", b"0", b"0/folder-7", b"0/folder-7/file-000000", b"zzz"]:
            assert opened.find(path) is None
        for number in range(0, 5000, 97):
            assert opened.find(b"0/folder-%d/file-%07d" % (number % 50, number))


def test_names_hold_every_byte_that_a_name_may_hold() -> None:
    names = [bytes([byte]) for byte in range(1, 256) if byte != ord("/")]
    with catalogue.opened(pack([b"0/" + name + b"\0f 1 2 3 644" for name in names])) as opened:
        assert all(opened.find(b"0/" + name) for name in names)
        assert sum(len(lines) for lines in opened.lines()) == len(names)


@pytest.mark.parametrize("prefix", [b"", b"0/folder-7/", b"0/none/"])
def test_differences_equal_those_of_sets(prefix: bytes) -> None:
    old = many(5000)
    new = old[:1000] + old[1001:4000] + many(4100, changed_at=6)[4000:] + [line("0/new"), line("0/folder-7/new")]
    removed: dict[bytes, bytes] = {}
    added: dict[bytes, bytes] = {}
    with catalogue.opened(pack(old)) as left, catalogue.opened(pack(new)) as right:
        for before, after in catalogue.differences(left, right, prefix):
            removed |= before
            added |= after
    old, new = [[each for each in lines if each.startswith(prefix)] for lines in (old, new)]
    assert sorted(removed.values()) == sorted(set(old) - set(new))
    assert sorted(added.values()) == sorted(set(new) - set(old))


def test_unsorted_or_endless_records_are_refused() -> None:
    with pytest.raises(ValueError, match="sorted"):
        list(catalogue.compress([line("b") + catalogue.SEPARATOR + line("a")], {}))
    with pytest.raises(ValueError, match="too long"):
        list(catalogue.compress([b"a" * 100_000, b"a" * 100_000], {}))


def test_a_damaged_catalogue_is_a_value_error() -> None:
    for data in (b"", b"1CNGCAT1", os.urandom(100)):
        file = os.memfd_create("damaged")
        os.write(file, data)
        with pytest.raises(ValueError), catalogue.opened(file):
            pass
    file = pack(many(5000))
    os.pwrite(file, b"\0" * 100, 20)
    with pytest.raises(ValueError), catalogue.opened(file) as opened:
        list(opened.lines())


@pytest.fixture
def disk(images: Images, capture: Capture) -> DiskImage:
    return capture(images("ext4"))


def list_files(disk: DiskImage) -> None:
    """Let the scheduler and the worker do what they do."""
    assert cataloguing.start_catalogues(timezone.now()) == 1
    operation = Operation.objects.get(kind=Operation.Kind.CATALOGUE, snapshot=disk.snapshot_id, finished_at=None)
    tasks.run_operation(operation.pk)
    operation.refresh_from_db()
    assert operation.state == Operation.State.SUCCEEDED, operation.error
    disk.refresh_from_db()
    disk.snapshot.refresh_from_db()


@pytest.mark.slow
@pytest.mark.django_db
def test_the_worker_lists_the_files_of_a_snapshot_and_they_go_with_it(disk: DiskImage) -> None:
    list_files(disk)
    assert disk.snapshot.catalogued_at and disk.file_count and disk.file_count > 10
    driver = get_driver(disk.snapshot.location)
    file = driver.open_catalogue(disk.ref)
    assert file is not None
    with catalogue.opened(file) as opened:
        plain = opened.find(b"0/plain.txt")
        assert plain and plain.kind == "f" and plain.size
        assert opened.find(b"0/new\nline") and opened.find(b"0/nonutf8-\xff\xfe")
        assert opened.summary["is_complete"] and opened.summary["parts"][0]["entries"] == disk.file_count
    assert cataloguing.start_catalogues(timezone.now()) == 0
    driver.delete_snapshot(disk.ref)
    assert driver.open_catalogue(disk.ref) is None


@pytest.mark.slow
@pytest.mark.django_db
def test_a_disk_that_nobody_can_read_is_not_tried_again(capture: Capture, tmp_path: Path) -> None:
    (tmp_path / "empty.img").write_bytes(b"")
    disk = capture(tmp_path / "empty.img")
    list_files(disk)
    assert disk.snapshot.catalogued_at and disk.file_count == 0


@pytest.mark.django_db
def test_a_catalogue_waits_for_customers_work_and_ends_with_its_snapshot(disk: DiskImage) -> None:
    waiting = Operation.objects.create(kind=Operation.Kind.VERIFY, snapshot=disk.snapshot)
    assert cataloguing.start_catalogues(timezone.now()) == 0
    waiting.delete()
    assert cataloguing.start_catalogues(timezone.now()) == 1
    assert not services.uses_of(disk.snapshot).exists()
    services.request_deletion(
        snapshot=disk.snapshot, user=UserFactory(member_of=disk.snapshot.project), even_if_last=True
    )
    Operation.objects.filter(kind=Operation.Kind.DELETE).delete()
    tasks.run_operation(Operation.objects.get().pk)
    assert not Operation.objects.exists()


@pytest.mark.django_db
def test_a_catalogue_that_does_not_fit_leaves_nothing(disk: DiskImage, storage_root: Path) -> None:
    driver = get_driver(disk.snapshot.location)

    def fill() -> Any:
        yield b"part"
        raise NoSpace("full")

    with pytest.raises(NoSpace):
        driver.store_catalogue(disk.ref, fill())
    folder = storage_root / disk.snapshot.location_id / "snapshots" / str(disk.pk)
    assert sorted(os.listdir(folder)) == ["disk.img", "manifest.json"]


@pytest.mark.both_databases
@pytest.mark.django_db
def test_a_snapshot_is_listed_by_one_operation_at_a_time() -> None:
    snapshot = SnapshotFactory()
    first = Operation.objects.create(kind=Operation.Kind.CATALOGUE, snapshot=snapshot)
    with pytest.raises(IntegrityError), transaction.atomic():
        Operation.objects.create(kind=Operation.Kind.CATALOGUE, snapshot=snapshot)
    Operation.objects.filter(pk=first.pk).update(state=Operation.State.SUCCEEDED, finished_at=timezone.now())
    Operation.objects.create(kind=Operation.Kind.CATALOGUE, snapshot=snapshot)
