"""The Cinder driver beyond the contract: its errors for what Cinder refuses, and no duplicates."""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest

from snapshots.storage.cinder import CinderDriver, client
from snapshots.storage.cinder.creation import name_of
from snapshots.storage.contract import GIB, Busy, Interrupted, NotFound, Refused, SnapshotRef, Unavailable, VolumeRef
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.storage.contract import AFTER, BEFORE, assert_holds, capture, interrupt, new_volume, ref_of


def created(store: CinderStore, uuid: Any) -> list[Any]:
    """Return everything in Cinder with this UUID of the portal."""
    return [*store.cinder.volumes(name=name_of(uuid)), *store.cinder.snapshots(name=name_of(uuid))]


def set_status(admin: Any, volume: VolumeRef, status: str) -> None:
    action = {"os-reset_status": {"status": status}}
    assert admin.block_storage.post(f"/volumes/{volume.backend_ref}/action", json=action).ok


@contextmanager
def attached(admin: Any, volume: VolumeRef) -> Iterator[None]:
    """Within the block, Cinder considers the volume attached to a machine."""
    path, machine = f"/volumes/{volume.backend_ref}/action", {"instance_uuid": str(uuid4()), "mountpoint": "/dev/vdb"}
    assert admin.block_storage.post(path, json={"os-attach": machine}).ok
    yield
    assert admin.block_storage.post(path, json={"os-detach": {}}).ok


@pytest.fixture
def quota(admin: Any, store: CinderStore) -> Iterator[Callable[..., None]]:
    """quota(snapshots=1) allows one more snapshot in the project `other`."""
    project = admin.identity.find_project("other")

    def quota(**limits: int) -> None:
        admin.block_storage.update_quota_set(project.id, **limits)

    yield quota
    admin.block_storage.update_quota_set(project.id, volumes=100, snapshots=100, gigabytes=1000)


# Refused by Cinder


def test_only_the_latest_snapshot_can_be_written_back(store: CinderStore) -> None:
    volume = new_volume(store, BEFORE)
    [older] = capture(store, volume)
    store.write(volume, AFTER)
    [newer] = capture(store, volume)
    with pytest.raises(Refused, match="“files” has newer snapshots.*new volume from the snapshot, or delete the newer"):
        store.driver.revert_volume(volume, older)
    assert_holds(store, volume, AFTER)
    store.driver.delete_snapshot(newer)
    store.driver.revert_volume(volume, older)
    assert_holds(store, volume, BEFORE)


def test_a_safety_copy_leaves_the_latest_snapshot_the_latest(store: CinderStore) -> None:
    volume = new_volume(store, BEFORE)
    [snapshot] = capture(store, volume)
    store.write(volume, AFTER)
    ref = SnapshotRef(uuid=uuid4())
    [info] = store.driver.create_safety_snapshots([(ref, volume)])
    assert store.driver.create_safety_snapshots([(ref, volume)]) == [info]
    safety = ref_of(info)
    store.driver.revert_volume(volume, snapshot)
    assert_holds(store, volume, BEFORE)

    assert store.driver.find_snapshot(ref) == store.driver.find_snapshot(safety) == info
    assert store.driver.verify_snapshot(safety) == info
    copy = VolumeRef(uuid=uuid4(), name="what it was", size_gb=2)
    store.driver.create_volume_from_snapshot(safety, copy)
    assert_holds(store, copy, AFTER)
    with pytest.raises(Refused, match="copy of a volume"):
        store.driver.revert_volume(volume, safety)
    store.driver.delete_snapshot(safety)
    store.driver.delete_snapshot(safety)
    assert store.driver.find_snapshot(safety) is None
    assert_holds(store, copy, AFTER)
    assert_holds(store, volume, BEFORE)
    assert store.leftovers() == []


def test_a_volume_that_has_grown_is_not_written_back(store: CinderStore) -> None:
    volume = new_volume(store, BEFORE)
    [snapshot] = capture(store, volume)
    store.cinder.extend_volume(volume.backend_ref, 2)
    store.cinder.wait_for_status(store.cinder.get_volume(volume.backend_ref), "available", interval=1, wait=30)
    with pytest.raises(Refused, match="“files” has grown since"):
        store.driver.revert_volume(volume, snapshot)


def test_a_snapshot_is_not_written_to_another_volume(store: CinderStore) -> None:
    volume, other = new_volume(store, BEFORE), new_volume(store, AFTER)
    [snapshot] = capture(store, volume)
    with pytest.raises(Refused, match="not taken of the volume"):
        store.driver.revert_volume(other, snapshot)
    assert_holds(store, other, AFTER)


@pytest.mark.parametrize("newest", [(3, 71), (3, 65)], ids=str)
def test_a_volume_in_use_is_captured_but_not_written(
    store: CinderStore, admin: Any, monkeypatch: pytest.MonkeyPatch, newest: tuple[int, int]
) -> None:
    monkeypatch.setattr(client, "NEWEST", newest)
    driver = CinderDriver(location="TEST-1", cloud="demo")
    volume = new_volume(store, BEFORE)
    with attached(admin, volume):
        [info] = driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)])
        with pytest.raises(Busy, match="“files” is attached"):
            driver.revert_volume(volume, ref_of(info))
    driver.revert_volume(volume, ref_of(info))


@pytest.mark.parametrize("newest", [(3, 0), (3, 39)], ids=str)
def test_a_cloud_that_is_too_old_to_write_back_recommends_a_new_volume(
    store: CinderStore, monkeypatch: pytest.MonkeyPatch, newest: tuple[int, int]
) -> None:
    monkeypatch.setattr(client, "NEWEST", newest)
    driver = CinderDriver(location="TEST-1", cloud="demo")
    volume = new_volume(store, BEFORE)
    ref = SnapshotRef(uuid=uuid4())
    [info] = driver.create_snapshots([(ref, volume)])
    assert driver.create_snapshots([(ref, volume)]) == [info]
    with pytest.raises(Refused, match="Make a new volume"):
        driver.revert_volume(volume, ref_of(info))
    copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
    driver.create_volume_from_snapshot(ref, copy)
    assert_holds(store, copy, BEFORE)
    driver.delete_snapshot(ref)
    assert driver.find_snapshot(ref) is None


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [("maintenance", Busy, "Another operation is using"), ("error", Refused, "reports the volume “files” as failed")],
)
def test_the_message_depends_on_the_state_of_the_volume(
    store: CinderStore, admin: Any, status: str, error: type[Exception], text: str
) -> None:
    volume = new_volume(store)
    set_status(admin, volume, status)
    with pytest.raises(error, match=text):
        store.driver.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)])
    set_status(admin, volume, "available")
    assert store.leftovers() == []


@pytest.mark.parametrize("newest", [(3, 71), (3, 41)], ids=str)
def test_an_attached_volume_grows_where_the_cloud_can(
    store: CinderStore, admin: Any, monkeypatch: pytest.MonkeyPatch, newest: tuple[int, int]
) -> None:
    monkeypatch.setattr(client, "NEWEST", newest)
    driver = CinderDriver(location="TEST-1", cloud="demo")
    volume = new_volume(store, BEFORE)
    with attached(admin, volume):
        if newest < (3, 42):
            with pytest.raises(Busy, match="“files” is attached"):
                driver.extend_volume(volume, 2)
        else:
            driver.extend_volume(volume, 2)
    driver.extend_volume(volume, 2)
    assert store.size(volume) == 2 * GIB
    assert_holds(store, volume, BEFORE)


def test_an_extension_that_the_storage_cannot_do_is_refused(store: CinderStore, pool: Any, admin: Any) -> None:
    volume = new_volume(store)
    pool.remove(volume.backend_ref)
    for _time in range(2):
        with pytest.raises(Refused, match="failed to grow the volume “files”, which is locked now"):
            store.driver.extend_volume(volume, 2)
    set_status(admin, volume, "available")
    store.driver.delete_volume(volume)


# Quotas, rights, accounts


def test_a_quota_is_explained_and_nothing_is_left(
    store: CinderStore, quota: Callable[..., None], cinder: Any, pool: Any
) -> None:
    driver = CinderDriver(location="TEST-1", cloud="other")
    volumes = [VolumeRef(uuid=uuid4(), name="files", size_gb=1) for _each in range(2)]
    for volume in volumes:
        driver.create_volume(volume)
    quota(volumes=2, snapshots=1, gigabytes=100)
    with pytest.raises(Refused, match="allows 2 of these and all are used"):
        driver.create_volume(VolumeRef(uuid=uuid4(), name="files", size_gb=1))
    snapshots = [SnapshotRef(uuid=uuid4()) for _volume in volumes]
    with pytest.raises(Refused, match="allows 1 of these"):
        driver.create_snapshots(list(zip(snapshots, volumes, strict=True)))
    assert [driver.find_snapshot(snapshot) for snapshot in snapshots] == [None, None]
    quota(volumes=10, snapshots=10, gigabytes=4)
    with pytest.raises(Refused, match=r"allows 4 GB, of which 2 GB are used and 3 GB more"):
        driver.create_volume(VolumeRef(uuid=uuid4(), name="files", size_gb=3))
    with pytest.raises(Refused, match=r"allows 4 GB, of which 2 GB are used and 3 GB more"):
        driver.extend_volume(volumes[0], 4)
    with pytest.raises(NotFound, match="files"):  # the volumes of another project
        store.driver.create_snapshots([(snapshots[0], VolumeRef(uuid=uuid4(), name="files", size_gb=1))])
    other = driver.cloud.connect().service
    for volume in volumes:
        with pytest.raises(NotFound, match="files"):
            store.driver.bytes_needed([volume])
        other.delete(f"/volumes/{next(other.volumes(name=name_of(volume.uuid))).id}")


def test_a_read_only_account_gets_a_clear_error(store: CinderStore) -> None:
    reader = CinderDriver(location="TEST-1", cloud="demo-reader")
    volume = new_volume(store, BEFORE)
    [snapshot] = capture(store, volume)
    assert reader.find_snapshot(snapshot) == store.driver.find_snapshot(snapshot)
    refused = [
        lambda: reader.create_volume(VolumeRef(uuid=uuid4(), name="files", size_gb=1)),
        lambda: reader.create_snapshots([(SnapshotRef(uuid=uuid4()), volume)]),
        lambda: reader.create_volume_from_snapshot(snapshot, VolumeRef(uuid=uuid4(), name="files", size_gb=1)),
        lambda: reader.extend_volume(volume, 2),
        lambda: reader.revert_volume(volume, snapshot),
        lambda: reader.delete_snapshot(snapshot),
    ]
    for call in refused:
        with pytest.raises(Refused, match="account isn't allowed to do this in the storage of TEST-1"):
            call()
    assert store.leftovers() == []


def test_a_token_that_the_cloud_no_longer_knows_is_replaced(store: CinderStore) -> None:
    store.driver.check_health()
    session = store.driver.cloud.connect().service.session
    session.auth.auth_ref._auth_token = "forgotten"
    store.driver.check_health()
    assert session.get_token() != "forgotten"


@pytest.mark.parametrize(
    ("change", "text"),
    [({"password": "hunter2-secret"}, "does not accept"), ({"auth_url": "http://127.0.0.1:9/v3"}, "does not answer")],
    ids=["wrong password", "nobody there"],
)
def test_an_unreachable_cloud_is_unavailable_and_reveals_no_secret(
    change: dict[str, str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clouds = json.loads(Path(os.environ["OS_CLIENT_CONFIG_FILE"]).read_text())
    clouds["clouds"]["demo"]["auth"] |= change
    (tmp_path / "clouds.yaml").write_text(json.dumps(clouds))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    driver = CinderDriver(location="TEST-1", cloud="demo")
    with caplog.at_level(logging.INFO), pytest.raises(Unavailable, match=f"TEST-1 {text}") as caught:
        driver.check_health()
    assert "127.0.0.1" not in str(caught.value)
    assert not any(secret in caplog.text + str(caught.value) for secret in ("hunter2", "labpass"))


def test_a_cloud_that_clouds_yaml_does_not_name_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="TEST-1 does not answer"):
        CinderDriver(location="TEST-1", cloud="no-such-cloud").check_health()


def test_an_availability_zone_that_is_not_there_is_unhealthy() -> None:
    with pytest.raises(Unavailable, match="switched off"):
        CinderDriver(location="TEST-1", cloud="demo", availability_zone="elsewhere").check_health()


def test_a_volume_gets_the_zone_and_type_of_its_location(store: CinderStore) -> None:
    driver = CinderDriver(location="T", cloud="demo", region="RegionOne", availability_zone="nova", volume_type="ceph")
    driver.create_volume(VolumeRef(uuid=uuid4(), name="files", size_gb=1))
    wrong = CinderDriver(location="T", cloud="demo", volume_type="gold")
    with pytest.raises(Refused, match="volume type"):
        wrong.create_volume(VolumeRef(uuid=uuid4(), name="files", size_gb=1))


# No duplicates


@pytest.mark.race
def test_concurrent_creations_of_one_object_end_with_one(store: CinderStore) -> None:
    volume, snapshot, copy = new_volume(store, BEFORE), SnapshotRef(uuid=uuid4()), uuid4()
    drivers = [CinderDriver(location="TEST-1", cloud="demo") for _each in range(4)]
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda driver: driver.create_snapshots([(snapshot, volume)]), drivers))
        assert len({info.backend_ref for [info] in infos}) == 1
        target = VolumeRef(uuid=copy, name="copy", size_gb=1)
        refs = set(pool.map(lambda driver: driver.create_volume_from_snapshot(snapshot, target), drivers))
        assert len(refs) == 1
    store.driver.delete_snapshot(SnapshotRef(uuid=uuid4()))
    assert [item.id for item in created(store, snapshot.uuid) if item.status != "deleting"] == [infos[0][0].backend_ref]
    assert [item.id for item in created(store, copy) if item.status != "deleting"] == list(refs)


def test_renamed_objects_are_still_found(store: CinderStore) -> None:
    volume = new_volume(store, BEFORE)
    ref = SnapshotRef(uuid=uuid4())
    [info] = store.driver.create_snapshots([(ref, volume)])
    store.cinder.update_snapshot(info.backend_ref, name="my own name")
    assert store.driver.create_snapshots([(ref, volume)]) == [info]
    store.driver.delete_snapshot(ref)
    assert store.driver.find_snapshot(SnapshotRef(uuid=ref.uuid, backend_ref=info.backend_ref)) is None


def test_an_interruption_after_the_request_removes_what_it_made(store: CinderStore) -> None:
    """The heartbeat interrupts once Cinder has an object; the first of two disks is complete by then."""
    volumes = [new_volume(store, BEFORE), new_volume(store, AFTER)]
    refs = [SnapshotRef(uuid=uuid4()), SnapshotRef(uuid=uuid4())]

    def interrupt_at_the_second(bytes_done: int, bytes_total: int) -> None:
        if bytes_done and created(store, refs[1].uuid):
            interrupt(bytes_done, bytes_total)

    with pytest.raises(Interrupted):
        store.driver.create_snapshots(list(zip(refs, volumes, strict=True)), interrupt_at_the_second)
    assert [created(store, ref.uuid) for ref in refs] == [[], []]
    assert store.leftovers() == []


def test_an_interrupted_call_does_not_remove_an_adopted_object(store: CinderStore) -> None:
    volume, ref = new_volume(store, BEFORE), SnapshotRef(uuid=uuid4())
    other = CinderDriver(location="TEST-1", cloud="demo")
    items: list[Any] = []

    def lose(bytes_done: int, bytes_total: int) -> None:
        if created(store, ref.uuid):
            items.extend(other.create_snapshots([(ref, volume)]))
            interrupt(bytes_done, bytes_total)

    with pytest.raises(Interrupted):
        store.driver.create_snapshots([(ref, volume)], lose)
    assert [store.driver.find_snapshot(ref)] == items
    assert store.leftovers() == []


def test_lists_are_read_page_by_page(store: CinderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = new_volume(store, BEFORE)
    capture(store, *[volume] * 5)
    monkeypatch.setattr(client, "PAGE_SIZE", 2)
    items = list(client.Client(store.driver.cloud).items("snapshot", volume_id=volume.backend_ref))
    assert len({item["id"] for item in items}) == len(items) == 5


# A worker that is killed


def is_killed(call: Callable[[CinderDriver], object], request: int) -> bool:
    """Run the call in a process that dies before its n-th request. Returns False if it completed."""
    process = os.fork()
    if process == 0:
        requests = count(1)

        def trace(frame: FrameType, event: str, argument: Any) -> None:
            code = frame.f_code
            if code.co_filename == client.__file__ and code.co_name == "send" and next(requests) == request:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.settrace(trace)
            call(CinderDriver(location="TEST-1", cloud="demo"))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    assert status in (0, signal.SIGKILL), "the call failed"
    return status != 0


@pytest.mark.thorough
def test_a_killed_capture_is_finished_by_the_next_and_exists_once(store: CinderStore) -> None:
    volume = new_volume(store, BEFORE)
    outcomes = set()
    for request in count(1):
        ref = SnapshotRef(uuid=uuid4())
        killed = is_killed(lambda driver: driver.create_snapshots([(ref, volume)]), request)  # noqa: B023
        before = [item.id for item in created(store, ref.uuid)]
        [info] = store.driver.create_snapshots([(ref, volume)])
        assert [item.id for item in created(store, ref.uuid)] == [info.backend_ref]
        assert before in ([], [info.backend_ref])
        outcomes.add(bool(before))
        if not killed:
            break
    assert outcomes == {True, False}
    assert store.leftovers() == []


@pytest.mark.thorough
def test_a_killed_new_volume_is_finished_by_the_next_and_exists_once(store: CinderStore) -> None:
    [snapshot] = capture(store, new_volume(store, BEFORE))
    for request in count(1):
        copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1)
        killed = is_killed(lambda driver: driver.create_volume_from_snapshot(snapshot, copy), request)  # noqa: B023
        before = [item.id for item in created(store, copy.uuid)]
        ref = store.driver.create_volume_from_snapshot(snapshot, copy)
        assert [item.id for item in created(store, copy.uuid)] == [ref]
        assert before in ([], [ref])
        assert_holds(store, copy, BEFORE)
        if not killed:
            break
    assert store.leftovers() == []


@pytest.mark.thorough
def test_a_killed_revert_and_a_killed_deletion_are_finished_by_the_next(store: CinderStore) -> None:
    volume = new_volume(store, BEFORE)
    for request in count(1):
        [snapshot] = capture(store, volume)
        store.write(volume, AFTER)
        killed = is_killed(lambda driver: driver.revert_volume(volume, snapshot), request)  # noqa: B023
        store.driver.revert_volume(volume, snapshot)
        assert_holds(store, volume, BEFORE)
        killed |= is_killed(lambda driver: driver.delete_snapshot(snapshot), request)  # noqa: B023
        store.driver.delete_snapshot(snapshot)
        assert created(store, snapshot.uuid) == []
        if not killed:
            break
    assert store.leftovers() == []


@pytest.mark.thorough
def test_a_killed_creation_extension_and_deletion_of_a_volume_are_finished_by_the_next(store: CinderStore) -> None:
    for request in count(1):
        volume = VolumeRef(uuid=uuid4(), name="files", size_gb=1)
        killed = is_killed(lambda driver: driver.create_volume(volume), request)  # noqa: B023
        ref = store.driver.create_volume(volume)
        assert [item.id for item in created(store, volume.uuid)] == [ref]
        killed |= is_killed(lambda driver: driver.extend_volume(volume, 2), request)  # noqa: B023
        store.driver.extend_volume(volume, 2)
        assert store.size(volume) == 2 * GIB
        killed |= is_killed(lambda driver: driver.delete_volume(volume), request)  # noqa: B023
        store.driver.delete_volume(volume)
        assert created(store, volume.uuid) == []
        if not killed:
            break
    assert store.leftovers() == []
