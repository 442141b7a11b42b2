"""The contract of every storage driver. A driver's tests subclass `DriverContract` and define a fixture `store`.

Volumes have 1 or 2 GiB, as on a real engine, but only a few blocks are written and read.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID, uuid4

import pytest

from snapshots.storage.contract import (
    GIB,
    Consistency,
    Corrupt,
    Driver,
    Interrupted,
    NotFound,
    Refused,
    SnapshotInfo,
    SnapshotRef,
    VolumeRef,
)

LAST = GIB - 4096  # the last block of a volume of 1 GiB
BEFORE = {0: b"boot" * 1024, 300 * 1024**2: b"data" * 5000, LAST: b"last" * 1024}
AFTER = {0: b"lost" * 1024, 300 * 1024**2: bytes(20000), 700 * 1024**2: b"more" * 1024, LAST: b"gone" * 1024}


class Store(Protocol):
    """Access to data, which the tests need beyond the contract."""

    driver: Driver

    def write(self, volume: VolumeRef, content: dict[int, bytes]) -> None:
        """Write {offset: bytes} to a volume, as its machine would, and sync."""

    def read(self, volume: VolumeRef, offset: int, length: int) -> bytes: ...

    def read_snapshot(self, snapshot: SnapshotRef, offset: int, length: int) -> bytes: ...

    def holds(self, volume: VolumeRef, data: bytes) -> bool:
        """Return whether the volume starts with these bytes, followed by zeros only."""

    def size(self, volume: VolumeRef) -> int:
        """Return the size in bytes that the engine reports."""

    def leftovers(self) -> list[str]:
        """Return everything besides complete volumes and snapshots."""


def new_volume(store: Store, content: dict[int, bytes] | None = None, size_gb: int = 1) -> VolumeRef:
    """Create a volume with `content`."""
    ref = VolumeRef(uuid=uuid4(), name="files", size_gb=size_gb)
    ref = VolumeRef(uuid=ref.uuid, name="files", size_gb=size_gb, backend_ref=store.driver.create_volume(ref))
    store.write(ref, content or {})
    return ref


def capture(store: Store, *volumes: VolumeRef) -> list[SnapshotRef]:
    infos = store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume) for volume in volumes])
    return [ref_of(info) for info in infos]


def ref_of(info: SnapshotInfo) -> SnapshotRef:
    return SnapshotRef(uuid=info.uuid, backend_ref=info.backend_ref)


def assert_holds(store: Store, volume: VolumeRef, content: dict[int, bytes]) -> None:
    for offset, data in content.items():
        assert store.read(volume, offset, len(data)) == data, f"other bytes at {offset}"


def interrupt(bytes_done: int, bytes_total: int) -> None:
    raise Interrupted


class DriverContract:
    def test_a_new_volume_is_empty_and_has_its_size(self, store: Store) -> None:
        volume = new_volume(store, size_gb=2)
        assert store.size(volume) == 2 * GIB
        assert_holds(store, volume, {0: bytes(4096), 2 * GIB - 4096: bytes(4096)})

    def test_a_volume_made_twice_keeps_its_bytes(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        assert store.driver.create_volume(volume) == volume.backend_ref
        assert_holds(store, volume, BEFORE)

    def test_a_volume_is_not_made_again_with_another_size(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        with pytest.raises(Refused, match="files"):
            store.driver.create_volume(VolumeRef(uuid=volume.uuid, name=volume.name, size_gb=2))
        assert_holds(store, volume, BEFORE)

    def test_an_extended_volume_keeps_its_bytes_and_ends_with_zeros(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        beats: list[tuple[int, int]] = []
        store.driver.extend_volume(volume, 3, lambda done, total: beats.append((done, total)))
        assert beats
        grown = replace(volume, size_gb=3)
        assert store.size(grown) == 3 * GIB
        assert_holds(store, grown, BEFORE | {GIB: bytes(4096), 3 * GIB - 4096: bytes(4096)})
        for ref in volume, grown:  # as passed by a worker that died before or after recording the size
            store.driver.extend_volume(ref, 3)
            assert store.driver.measure_volume(ref) == 3 * GIB
        store.write(grown, {3 * GIB - 4096: b"tail" * 1024})
        [snapshot] = capture(store, grown)
        info = store.driver.find_snapshot(snapshot)
        assert info and info.size_bytes == 3 * GIB

    def test_an_extension_continues_after_a_failed_one(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        store.driver.extend_volume(volume, 2)
        store.driver.extend_volume(volume, 3)
        assert store.size(volume) == 3 * GIB
        assert_holds(store, volume, BEFORE)

    def test_a_volume_never_shrinks(self, store: Store) -> None:
        volume = new_volume(store, BEFORE, size_gb=2)
        for ref in volume, replace(volume, size_gb=1):
            with pytest.raises(Refused, match="“files” can't shrink"):
                store.driver.extend_volume(ref, 1)
        assert store.size(volume) == 2 * GIB
        assert_holds(store, volume, BEFORE)

    def test_a_snapshot_keeps_its_size_when_its_volume_grows(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        store.driver.extend_volume(volume, 2)
        info = store.driver.find_snapshot(snapshot)
        assert info and info.size_bytes == GIB
        copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        store.driver.create_volume_from_snapshot(snapshot, copy)
        assert_holds(store, copy, BEFORE)

    def test_an_interrupted_creation_or_extension_leaves_nothing_half_done(self, store: Store) -> None:
        fresh, volume = VolumeRef(uuid=uuid4(), name="fresh", size_gb=1), new_volume(store, BEFORE)
        with pytest.raises(Interrupted):
            store.driver.create_volume(fresh, interrupt)
        with pytest.raises(Interrupted):
            store.driver.extend_volume(volume, 2, interrupt)
        assert store.size(volume) == GIB
        assert store.leftovers() == []
        store.driver.create_volume(fresh)
        store.driver.extend_volume(volume, 2)
        assert store.size(volume) == 2 * GIB

    def test_a_missing_volume_cannot_be_extended(self, store: Store) -> None:
        with pytest.raises(NotFound, match="gone for good"):
            store.driver.extend_volume(VolumeRef(uuid=uuid4(), name="gone for good", size_gb=1), 2)
        with pytest.raises(NotFound, match="gone for good"):
            store.driver.measure_volume(VolumeRef(uuid=uuid4(), name="gone for good", size_gb=1))

    def test_a_snapshot_records_what_was_captured_and_when(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        start = datetime.now(UTC)
        snapshot = SnapshotRef(uuid=uuid4())
        [info] = store.driver.create_snapshots([(snapshot, volume)])
        assert info.uuid == snapshot.uuid
        assert info.size_bytes == GIB
        assert info.allocated_bytes is None or 0 < info.allocated_bytes < GIB
        assert info.checksum == "" or len(bytes.fromhex(info.checksum.removeprefix("blake3-2m:"))) == 32
        assert start <= info.captured_at <= datetime.now(UTC)
        assert store.driver.find_snapshot(ref_of(info)) == info

    def test_a_snapshot_does_not_follow_its_volume(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        store.write(volume, AFTER)
        copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        store.driver.create_volume_from_snapshot(snapshot, copy)
        assert_holds(store, copy, BEFORE)
        assert_holds(store, volume, AFTER)

    def test_capturing_again_returns_the_first_capture(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        first = store.driver.find_snapshot(snapshot)
        store.write(volume, AFTER)
        assert store.driver.create_snapshots([(snapshot, volume)]) == [first]
        store.driver.revert_volume(volume, snapshot)
        assert_holds(store, volume, BEFORE)

    def test_several_disks_are_captured_in_the_requested_order(self, store: Store) -> None:
        volumes = [new_volume(store, {0: name * 512}) for name in (b"root", b"data", b"logs")]
        snapshots = capture(store, *volumes)
        for volume, snapshot in zip(volumes, snapshots, strict=True):
            before = store.read(volume, 0, 2048)
            store.write(volume, {0: bytes(2048)})
            store.driver.revert_volume(volume, snapshot)
            assert store.read(volume, 0, 2048) == before
        if store.driver.consistency is Consistency.INSTANT:
            infos = [store.driver.find_snapshot(snapshot) for snapshot in snapshots]
            assert len({info.captured_at for info in infos if info}) == 1

    def test_when_one_disk_is_missing_none_is_captured(self, store: Store) -> None:
        volume, gone = new_volume(store, BEFORE), VolumeRef(uuid=uuid4(), name="gone for good", size_gb=1)
        snapshots = SnapshotRef(uuid=uuid4()), SnapshotRef(uuid=uuid4())
        with pytest.raises(NotFound, match="gone for good"):
            store.driver.create_snapshots([(snapshots[0], volume), (snapshots[1], gone)])
        assert [store.driver.find_snapshot(snapshot) for snapshot in snapshots] == [None, None]
        assert store.leftovers() == []

    def test_an_interrupted_capture_leaves_nothing_and_can_be_repeated(self, store: Store) -> None:
        volumes = [new_volume(store, BEFORE), new_volume(store, AFTER)]
        disks = [(SnapshotRef(uuid=uuid4()), volume) for volume in volumes]
        with pytest.raises(Interrupted):
            store.driver.create_snapshots(disks, interrupt)
        assert [store.driver.find_snapshot(snapshot) for snapshot, _volume in disks] == [None, None]
        assert store.leftovers() == []
        assert len(store.driver.create_snapshots(disks)) == 2

    def test_progress_ends_with_all_done(self, store: Store) -> None:
        beats: list[tuple[int, int]] = []
        volumes = [new_volume(store, BEFORE), new_volume(store, AFTER, size_gb=2)]
        store.driver.create_snapshots(
            [(SnapshotRef(uuid=uuid4()), volume) for volume in volumes], lambda done, total: beats.append((done, total))
        )
        assert beats
        assert beats == sorted(beats)
        assert len({total for _done, total in beats}) == 1
        assert beats[-1][0] == beats[-1][1]

    def test_an_unknown_snapshot_is_not_found(self, store: Store) -> None:
        volume, unknown = new_volume(store, BEFORE), SnapshotRef(uuid=uuid4())
        assert store.driver.find_snapshot(unknown) is None
        with pytest.raises(NotFound):
            store.driver.verify_snapshot(unknown)
        with pytest.raises(NotFound):
            store.driver.revert_volume(volume, unknown)
        with pytest.raises(NotFound):
            store.driver.create_volume_from_snapshot(unknown, VolumeRef(uuid=uuid4(), name="copy", size_gb=1))
        assert_holds(store, volume, BEFORE)
        assert store.leftovers() == []

    def test_verifying_records_the_checksum_of_the_content(self, store: Store) -> None:
        volumes = [new_volume(store, BEFORE), new_volume(store, BEFORE), new_volume(store, AFTER)]
        infos = [store.driver.verify_snapshot(snapshot) for snapshot in capture(store, *volumes)]
        assert [store.driver.find_snapshot(ref_of(info)) for info in infos] == infos
        if store.driver.reads_bytes:
            assert infos[0].checksum == infos[1].checksum != infos[2].checksum
            assert all(info.verified_at for info in infos)
            assert store.driver.verify_snapshot(ref_of(infos[0])).checksum == infos[0].checksum

    def test_an_interrupted_verification_changes_nothing(self, store: Store) -> None:
        [snapshot] = capture(store, new_volume(store, BEFORE))
        before = store.driver.find_snapshot(snapshot)
        with pytest.raises(Interrupted):
            store.driver.verify_snapshot(snapshot, interrupt)
        assert store.driver.find_snapshot(snapshot) == before

    def test_a_deleted_snapshot_is_gone_and_may_be_deleted_again(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot, other] = capture(store, volume, volume)
        copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        store.driver.create_volume_from_snapshot(snapshot, copy)
        store.driver.delete_snapshot(snapshot)
        store.driver.delete_snapshot(snapshot)
        assert store.driver.find_snapshot(snapshot) is None
        assert store.driver.find_snapshot(other)
        assert_holds(store, copy, BEFORE)
        assert_holds(store, volume, BEFORE)
        assert store.leftovers() == []

    def test_deleting_an_unknown_snapshot_succeeds(self, store: Store) -> None:
        store.driver.delete_snapshot(SnapshotRef(uuid=uuid4()))

    def test_a_deleted_volume_is_gone_and_may_be_deleted_again(self, store: Store) -> None:
        volume, other = new_volume(store), new_volume(store, BEFORE)
        for _time in range(2):
            store.driver.delete_volume(volume)
        with pytest.raises(NotFound):
            capture(store, volume)
        assert_holds(store, other, BEFORE)
        assert store.leftovers() == []

    def test_a_volume_from_a_snapshot_grows_with_zeros_and_can_be_written(self, store: Store) -> None:
        [snapshot] = capture(store, new_volume(store, BEFORE))
        copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=2)
        store.driver.create_volume_from_snapshot(snapshot, copy)
        assert store.size(copy) == 2 * GIB
        assert_holds(store, copy, BEFORE | {GIB: bytes(4096), 2 * GIB - 4096: bytes(4096)})
        store.write(copy, AFTER)
        store.driver.create_volume_from_snapshot(snapshot, copy)  # it is complete, so it stays as it is
        assert_holds(store, copy, AFTER)

    def test_a_volume_smaller_than_the_snapshot_is_refused(self, store: Store) -> None:
        [snapshot] = capture(store, new_volume(store, BEFORE, size_gb=2))
        with pytest.raises(Refused, match="2 GB"):
            store.driver.create_volume_from_snapshot(snapshot, VolumeRef(uuid=uuid4(), name="copy", size_gb=1))
        assert store.leftovers() == []

    def test_an_interrupted_volume_from_a_snapshot_leaves_nothing(self, store: Store) -> None:
        [snapshot] = capture(store, new_volume(store, BEFORE))
        copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        with pytest.raises(Interrupted):
            store.driver.create_volume_from_snapshot(snapshot, copy, interrupt)
        assert store.leftovers() == []
        with pytest.raises(NotFound):
            store.driver.bytes_needed([copy])

    def test_reverting_gives_the_bytes_back_any_number_of_times(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        for _time in range(2):
            store.write(volume, AFTER)
            store.driver.revert_volume(volume, snapshot)
            assert_holds(store, volume, BEFORE | {700 * 1024**2: bytes(4096)})
        store.driver.revert_volume(volume, snapshot)
        assert_holds(store, volume, BEFORE)
        assert store.leftovers() == []

    def test_an_interrupted_revert_keeps_the_old_bytes(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        store.write(volume, AFTER)
        with pytest.raises(Interrupted):
            store.driver.revert_volume(volume, snapshot, interrupt)
        assert_holds(store, volume, AFTER)
        assert store.leftovers() == []

    def test_unchecked_use_of_a_sound_snapshot_gives_the_same_bytes(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        store.write(volume, AFTER)
        store.driver.revert_volume(volume, snapshot, unchecked=True)
        assert_holds(store, volume, BEFORE | {700 * 1024**2: bytes(4096)})
        copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        store.driver.create_volume_from_snapshot(snapshot, copy, unchecked=True)
        assert_holds(store, copy, BEFORE | {700 * 1024**2: bytes(4096)})

    def test_progress_of_a_restore_ends_with_all_done(self, store: Store) -> None:
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        for _time in range(2):  # the second one may find a recent verification
            beats: list[tuple[int, int]] = []
            store.driver.revert_volume(volume, snapshot, lambda done, total: beats.append((done, total)))  # noqa: B023
            assert beats == sorted(beats)
            assert beats[-1][0] == beats[-1][1]

    def test_the_portals_own_checksum_is_compared_too(self, store: Store) -> None:
        if not store.driver.reads_bytes:
            pytest.skip("the engine cannot read bytes")
        volume = new_volume(store, BEFORE)
        [snapshot] = capture(store, volume)
        store.write(volume, AFTER)
        wrong, copy = replace(snapshot, checksum="00" * 32), VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        for _time in range(2):
            with pytest.raises(Corrupt):
                store.driver.revert_volume(volume, wrong)
            with pytest.raises(Corrupt):
                store.driver.create_volume_from_snapshot(wrong, copy)
            with pytest.raises(Corrupt):
                store.driver.verify_snapshot(wrong)
            checksum = store.driver.verify_snapshot(snapshot).checksum  # a recent verification doesn't change that
        assert_holds(store, volume, AFTER)
        with pytest.raises(NotFound):
            store.driver.bytes_needed([copy])
        assert store.leftovers() == []
        store.driver.revert_volume(volume, replace(snapshot, checksum=checksum))
        assert_holds(store, volume, BEFORE)

    def test_reverting_a_missing_volume_names_it(self, store: Store) -> None:
        [snapshot] = capture(store, new_volume(store, BEFORE))
        with pytest.raises(NotFound, match="gone for good"):
            store.driver.revert_volume(VolumeRef(uuid=uuid4(), name="gone for good", size_gb=1), snapshot)

    def test_needed_and_free_space_are_reported(self, store: Store) -> None:
        volumes = [new_volume(store, BEFORE), new_volume(store, AFTER)]
        needed = store.driver.bytes_needed(volumes)
        assert 0 <= needed <= 2 * GIB
        assert needed == sum(store.driver.bytes_needed([volume]) for volume in volumes)
        free = store.driver.free_bytes()
        assert free is None or free > 0
        with pytest.raises(NotFound, match="gone for good"):
            store.driver.bytes_needed([volumes[0], VolumeRef(uuid=UUID(int=7), name="gone for good", size_gb=1)])

    def test_an_engine_that_works_is_healthy(self, store: Store) -> None:
        store.driver.check_health()
        assert store.leftovers() == []

    def test_it_lists_stored_objects(self, store: Store) -> None:
        volume = new_volume(store)
        remaining, removed = capture(store, volume)[0], capture(store, volume)[0]
        store.driver.delete_snapshot(removed)
        objects = {stored.uuid: stored for stored in store.driver.list_objects()}
        assert objects.keys() & {volume.uuid, remaining.uuid, removed.uuid} == {volume.uuid, remaining.uuid}
        for uuid in volume.uuid, remaining.uuid:
            assert not objects[uuid].is_incomplete and objects[uuid].is_unchanged()
        assert objects[volume.uuid].size_bytes == GIB
