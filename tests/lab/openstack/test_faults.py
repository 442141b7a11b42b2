"""Storage that stops, dies, hangs or loses requests: the driver's errors, and no leftovers or duplicates."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from snapshots.storage.cinder import CinderDriver, creation
from snapshots.storage.cinder import driver as cinder_driver
from snapshots.storage.cinder.creation import UNWANTED, name_of
from snapshots.storage.contract import SnapshotRef, StorageError, Unavailable, VolumeRef
from tests.lab.openstack.lab import Lab, wait_until
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.storage.contract import AFTER, BEFORE, assert_holds, capture, new_volume

ATTEMPTS = 8


@pytest.fixture
def impatient() -> CinderDriver:
    return CinderDriver(location="TEST-1", cloud="demo", create_timeout="4", delete_timeout="4")


@pytest.fixture(autouse=True)
def everything_works_before_and_after(lab: Lab, store: CinderStore) -> Iterator[None]:
    lab.wait_for_cinder()
    yield
    for name in lab.services:
        lab.start_service(name)
    lab.wait_for_cinder()
    remove_items_stuck_creating(store)
    assert wait_until(lambda: not store.leftovers(), seconds=30), store.leftovers()


def states(store: CinderStore, uuid: UUID) -> list[str]:
    return [
        item.status for item in [*store.cinder.snapshots(name=name_of(uuid)), *store.cinder.volumes(name=name_of(uuid))]
    ]


def unwanted(store: CinderStore, volume: VolumeRef) -> list[str]:
    return [item.status for item in store.cinder.snapshots(volume_id=volume.backend_ref) if item.name == UNWANTED]


def remove_items_stuck_creating(store: CinderStore) -> None:
    """Do what the scheduler does a day later: objects whose message RabbitMQ lost stay `creating` until they are removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cinder_driver, "STUCK_SECONDS", 0.0)
        store.driver.remove_orphans()


def persist(call: Callable[[], Any]) -> Any:
    """Retry as the worker does, for errors that a retry can fix."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except StorageError as error:
            print(f"attempt {attempt + 1}: {type(error).__name__}: {error}")
            if not error.retryable or attempt == ATTEMPTS - 1:
                raise
            wait_until(lambda: False, seconds=2)


def in_background(call: Callable[[], Any]) -> Future:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def test_an_object_stuck_creating_fails_in_time_and_is_removed_if_it_completes(
    lab: Lab, store: CinderStore, impatient: CinderDriver
) -> None:
    volume, ref = new_volume(store, BEFORE), SnapshotRef(uuid=uuid4())
    beats: list[float] = []
    with lab.stopped("cinder-volume", kill=True):
        with pytest.raises(Unavailable, match="TEST-1 did not finish in time"):
            impatient.create_snapshots([(ref, volume)], lambda done, total: beats.append(time.monotonic()))
        assert unwanted(store, volume) == ["creating"]
        assert max(later - earlier for earlier, later in zip(beats, beats[1:], strict=False)) < 1
        with pytest.raises(Unavailable, match="not finished deleting"):
            impatient.delete_snapshot(ref)
    assert wait_until(lambda: unwanted(store, volume) == ["available"], seconds=60)
    store.driver.remove_orphans()
    assert wait_until(lambda: not unwanted(store, volume), seconds=30)


def test_an_object_that_appears_late_is_adopted_by_the_next_attempt(
    lab: Lab, store: CinderStore, impatient: CinderDriver
) -> None:
    volume, ref = new_volume(store, BEFORE), SnapshotRef(uuid=uuid4())
    with lab.stopped("cinder-volume", kill=True):
        with pytest.raises(Unavailable):
            impatient.create_snapshots([(ref, volume)])
        [started] = store.cinder.snapshots(volume_id=volume.backend_ref)
        again = in_background(lambda: store.driver.create_snapshots([(ref, volume)]))
    [info] = again.result(timeout=90)
    assert info.backend_ref == started.id
    assert states(store, ref.uuid) == ["available"]
    store.driver.remove_orphans()  # the snapshot is requested again
    assert store.driver.find_snapshot(ref) == info


@pytest.mark.thorough
def test_a_service_that_is_down_fails_new_objects(lab: Lab, store: CinderStore, admin: Any) -> None:
    volume = new_volume(store, BEFORE)
    refs = SnapshotRef(uuid=uuid4()), VolumeRef(uuid=uuid4(), name="new", size_gb=1)
    driver = CinderDriver(location="TEST-1", cloud="demo", create_timeout="20")
    with lab.stopped("cinder-volume"):
        assert wait_until(
            lambda: any(
                each.binary == "cinder-volume" and each.state == "down" for each in admin.block_storage.services()
            ),
            seconds=60,
        )
        with pytest.raises(Unavailable) as caught:
            driver.create_volume(refs[1])
        print("volume:", caught.value)
        assert states(store, refs[1].uuid) == []
        with pytest.raises(Unavailable) as caught:
            driver.create_snapshots([(refs[0], volume)])
        print("snapshot:", caught.value, states(store, refs[0].uuid))
    assert persist(lambda: store.driver.create_snapshots([(refs[0], volume)]))
    assert persist(lambda: store.driver.create_volume(refs[1]))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["cinder-volume", "rabbit", "cinder-scheduler", "cinder-api", "keystone"])
def test_a_service_killed_in_mid_flight_costs_time_only(
    lab: Lab, store: CinderStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(creation, "ADOPTABLE_SECONDS", 5.0)
    driver = CinderDriver(location="TEST-1", cloud="demo", create_timeout="30")
    volumes = [new_volume(store, BEFORE) for _each in range(4)]
    refs = [SnapshotRef(uuid=uuid4()) for _volume in volumes]
    copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
    [early] = capture(store, volumes[0])
    with ThreadPoolExecutor(5) as pool:
        calls = [
            pool.submit(persist, lambda ref=ref, volume=volume: driver.create_snapshots([(ref, volume)]))
            for ref, volume in zip(refs, volumes, strict=True)
        ]
        calls.append(pool.submit(persist, lambda: driver.create_volume_from_snapshot(early, copy)))
        assert wait_until(lambda: any(states(store, ref.uuid) for ref in refs), seconds=30)
        with lab.stopped(name, kill=True):
            pass
        results = [call.result(timeout=240) for call in calls]
    for ref, [info] in zip(refs, results[:-1], strict=True):
        assert states(store, ref.uuid) == ["available"]
        assert store.driver.find_snapshot(ref) == info
    assert states(store, copy.uuid) == ["available"]
    assert_holds(store, copy, BEFORE)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["snapshot", "volume"])
def test_an_object_lost_by_the_message_queue_is_recreated_and_the_stuck_one_removed(
    lab: Lab, store: CinderStore, impatient: CinderDriver, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(creation, "ADOPTABLE_SECONDS", 3.0)
    volume = new_volume(store, BEFORE)
    [early] = capture(store, volume)
    uuid = uuid4()

    def make(driver: CinderDriver) -> str:
        if kind == "volume":
            return driver.create_volume_from_snapshot(early, VolumeRef(uuid=uuid, name="copy", size_gb=1))
        [info] = driver.create_snapshots([(SnapshotRef(uuid=uuid), volume)])
        return info.backend_ref

    def ghosts() -> list[str]:
        items = store.cinder.volumes() if kind == "volume" else store.cinder.snapshots()
        return [item.status for item in items if item.name == UNWANTED]

    with lab.stopped("cinder-volume", kill=True):
        with pytest.raises(Unavailable, match="did not finish in time"):
            make(impatient)
        lab.stop_service("rabbit", kill=True)
        lab.start_service("rabbit")
        lab.wait_for_port("rabbit")
    # a new object doesn't wait for the stuck one, as it would for one that another attempt is creating
    driver = CinderDriver(location="TEST-1", cloud="demo", create_timeout=str(creation.CROWDED_SECONDS))
    ref = persist(lambda: make(driver))
    assert states(store, uuid) == ["available"]
    assert ghosts() == ["creating"]
    store.driver.remove_orphans()
    assert ghosts() == ["creating"]  # less than a day old
    remove_items_stuck_creating(store)
    assert wait_until(lambda: not ghosts(), seconds=30)
    assert make(store.driver) == ref


@pytest.mark.thorough
def test_storage_that_hangs_fails_with_an_error_and_works_again(lab: Lab, store: CinderStore) -> None:
    volume, ref = new_volume(store, BEFORE), SnapshotRef(uuid=uuid4())
    [old] = capture(store, volume)
    driver = CinderDriver(location="TEST-1", cloud="demo", create_timeout="40", delete_timeout="10")
    with lab.frozen("ceph-osd"):
        with pytest.raises(Unavailable) as caught:
            driver.create_snapshots([(ref, volume)])
        print("snapshot:", caught.value, states(store, ref.uuid))
        with pytest.raises(Unavailable) as caught:
            driver.delete_snapshot(old)
        print("deletion:", caught.value, states(store, old.uuid))
    persist(lambda: store.driver.delete_snapshot(old))
    assert persist(lambda: store.driver.create_snapshots([(ref, volume)]))
    assert states(store, ref.uuid) == ["available"]
    store.driver.remove_orphans()
    assert wait_until(lambda: not unwanted(store, volume), seconds=30)


def test_an_image_removed_behind_cinder_is_reported_with_cinders_reason(store: CinderStore, pool: Any) -> None:
    volume, sound = new_volume(store, BEFORE), new_volume(store, AFTER)
    refs = SnapshotRef(uuid=uuid4()), SnapshotRef(uuid=uuid4())
    pool.remove(volume.backend_ref)
    with pytest.raises(Unavailable) as caught:
        store.driver.create_snapshots([(refs[0], sound), (refs[1], volume)])
    print(caught.value)
    assert [states(store, ref.uuid) for ref in refs] == [[], []]
    store.cinder.delete_volume(volume.backend_ref)
    assert wait_until(lambda: not states(store, volume.uuid), seconds=30)


@pytest.mark.thorough
def test_a_revert_that_hangs_is_waited_for(lab: Lab, store: CinderStore) -> None:
    volume = new_volume(store, BEFORE)
    [snapshot] = capture(store, volume)
    store.write(volume, AFTER)
    impatient = CinderDriver(location="TEST-1", cloud="demo", create_timeout="5")
    with lab.frozen("ceph-osd"):
        with pytest.raises(StorageError) as caught:
            impatient.revert_volume(volume, snapshot)
        print("revert:", caught.value, states(store, volume.uuid))
    persist(lambda: store.driver.revert_volume(volume, snapshot))
    assert_holds(store, volume, BEFORE)
