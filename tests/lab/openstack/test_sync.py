"""Inventory sync with a real cloud: what is imported, marked as gone and restored, and what it costs."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import openstack
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.urls import reverse

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import CloudProject, Location, VirtualMachine, Volume
from snapshots import restores, services
from snapshots.cloudsync.sync import sync_location
from snapshots.errors import InvalidState
from snapshots.models import DiskImage, Operation, Snapshot, State
from snapshots.storage.cinder import client
from snapshots.storage.cinder.creation import name_of
from snapshots.storage.contract import SnapshotRef, VolumeRef
from snapshots.volumes import new_volumes, recycle_bin
from snapshots.volumes.services import request_volume_deletion
from tests.factories import LocationFactory, MembershipFactory, OperationFactory, UserFactory
from tests.lab.openstack.lab import Lab, wait_until
from tests.lab.openstack.pool import Pool
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.disks import run_active_operations, sell_everywhere
from tests.snapshots.storage.contract import BEFORE, assert_holds

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def location(settings: Any) -> Location:
    settings.STORAGE = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "portal"}}}
    return LocationFactory(driver="cinder")


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture(scope="session")
def other() -> Any:
    """The block storage service of the project `other`."""
    admin, other = openstack.connect(cloud="admin"), openstack.connect(cloud="other")
    admin.block_storage.update_quota_set(other.current_project_id, volumes=5000, snapshots=5000, gigabytes=20000)
    return other.block_storage


@pytest.fixture(autouse=True)
def empty(other: Any) -> Iterator[None]:
    """Empty the project `other` before and after the test."""
    yield
    for snapshot in other.snapshots():
        other.delete_snapshot(snapshot)
    assert wait_until(lambda: not list(other.snapshots()), seconds=60)
    for volume in other.volumes():
        other.delete_volume(volume)
    assert wait_until(lambda: not list(other.volumes()), seconds=60)


@pytest.fixture
def cloud_project(location: Location, member: Membership, other: Any) -> CloudProject:
    """The cloud project `other`, assigned to the member's project."""
    sync_location(location)
    linked = CloudProject.objects.get(name="other")
    linked.project = member.project
    linked.save()
    sell_everywhere()
    return linked


def make(other: Any, name: str | None = "data", size: int = 1) -> Any:
    return other.wait_for_status(other.create_volume(size=size, name=name), "available", interval=0.3, wait=60)


def snap(other: Any, volume: Any, name: str | None = "by hand") -> Any:
    created = other.create_snapshot(volume_id=volume.id, name=name)
    return other.wait_for_status(created, "available", interval=0.3, wait=60)


def unmake(other: Any, kind: str, item: Any) -> None:
    getattr(other, f"delete_{kind}")(item)
    assert wait_until(lambda: item.id not in [each.id for each in getattr(other, f"{kind}s")()], seconds=60)


def raise_the_dead(database: Any, kind: str, item: Any) -> None:
    """Undelete Cinder's rows, as when the cloud's administrator restores a database."""
    database.execute(
        f"UPDATE {kind}s SET deleted = false, deleted_at = NULL, status = 'available' WHERE id = %s", [item.id]
    )


def open_segments() -> int:
    return UsageSegment.objects.filter(ended_at=None).count()


def test_nothing_is_imported_from_an_unassigned_cloud_project(location: Location, other: Any) -> None:
    volume = make(other, size=2)
    snap(other, volume)
    out = StringIO()
    call_command("sync_inventory", location=location.pk, stdout=out)

    linked = CloudProject.objects.get(name="other")
    assert (linked.volume_count, linked.snapshot_count, linked.used_gb) == (1, 1, 4)
    assert (linked.volume_quota, linked.snapshot_quota, linked.gb_quota) == (5000, 5000, 20000)
    assert "other (" in out.getvalue() and "belongs to no project yet: 1 volumes, 1 snapshots." in out.getvalue()
    assert not Volume.objects.exists() and not Snapshot.objects.exists()


def test_assigning_a_cloud_project_imports_its_volumes_and_attachments(
    location: Location, member: Membership, other: Any, admin: Any, client_for: Callable
) -> None:
    root, data, nameless = make(other, "root"), make(other, "data", 2), make(other, None)
    machine = str(uuid4())
    attach_volume(admin, root, machine, "/dev/vda")
    attach_volume(admin, data, machine, "/dev/vdb")
    sync_location(location)
    support = client_for(UserFactory(admin=True))
    linked = CloudProject.objects.get(name="other")
    page = reverse("admin:inventory_cloudproject_change", args=[linked.pk])
    assert support.post(page, {"project": member.project_id}).status_code == 302

    report = sync_location(location)
    assert (report.volumes_new, report.machines_new, report.changes) == (
        3,
        1,
        {"volumes_new": 3, "machines_new": 1},
    )
    volumes = {volume.backend_ref: volume for volume in Volume.objects.all()}
    vm = VirtualMachine.objects.get()
    assert (vm.backend_ref, vm.project, vm.is_running) == (machine, member.project, True)
    described = [(volumes[item.id].name, volumes[item.id].size_gb, volumes[item.id].position) for item in (root, data)]
    assert described == [("root", 1, 0), ("data", 2, 1)]
    assert [volumes[item.id].vm for item in (root, data, nameless)] == [vm, vm, None]
    assert volumes[nameless.id].name == f"volume {nameless.id[:8]}"
    assert {volume.project for volume in volumes.values()} == {member.project}
    assert sync_location(location).changes == {}

    # what is assigned to a project now stays with it
    response = support.post(page, {"project": MembershipFactory().project_id})
    assert b"have been imported" in response.content

    detach_volume(admin, root)
    detach_volume(admin, data)
    other.extend_volume(data, 3)
    assert wait_until(lambda: other.get_volume(data.id).status == "available", seconds=30)
    report = sync_location(location)
    assert report.changes == {"volumes_changed": 2, "machines_gone": 1}
    volumes[data.id].refresh_from_db()
    assert (volumes[data.id].size_gb, volumes[data.id].vm) == (3, None)


def attach_volume(admin: Any, volume: Any, machine: str, device: str) -> None:
    body = {"os-attach": {"instance_uuid": machine, "mountpoint": device}}
    assert admin.block_storage.post(f"/volumes/{volume.id}/action", json=body).ok


def detach_volume(admin: Any, volume: Any) -> None:
    assert admin.block_storage.post(f"/volumes/{volume.id}/action", json={"os-detach": {}}).ok


def test_a_volume_that_vanishes_is_marked_and_comes_back(
    location: Location, cloud_project: CloudProject, other: Any, database: Any
) -> None:
    stays, goes = make(other, "stays"), make(other, "goes")
    sync_location(location)
    unmake(other, "volume", goes)
    assert sync_location(location).changes == {"volumes_gone": 1}
    gone = Volume.objects.get(name="goes")
    assert gone.deleted_at is not None and Volume.objects.get(name="stays").deleted_at is None
    assert sync_location(location).changes == {}

    raise_the_dead(database, "volume", goes)
    assert sync_location(location).changes == {"volumes_changed": 1}
    gone.refresh_from_db()
    assert gone.deleted_at is None
    database.execute("UPDATE volumes SET deleted = true WHERE id = %s", [goes.id])
    assert stays.id


def test_a_volume_in_the_recycle_bin_that_a_listing_lacks_is_put_back_with_its_bytes(
    location: Location,
    cloud_project: CloudProject,
    member: Membership,
    other: Any,
    database: Any,
    pool: Pool,
    settings: Any,
) -> None:
    settings.RECYCLE_BIN_DAYS = 7
    item = make(other)
    pool.write(item.id, BEFORE)
    sync_location(location)
    volume = request_volume_deletion(volume=Volume.objects.get(), user=member.user, confirmation="data")
    assert volume.is_in_bin and other.get_volume(item.id).status == "available"
    until = volume.bin_until

    database.execute("UPDATE volumes SET deleted = true WHERE id = %s", [item.id])
    assert sync_location(location).changes == {}
    volume.refresh_from_db()
    assert (volume.is_in_bin, volume.bin_until) == (True, until)

    database.execute("UPDATE volumes SET deleted = false WHERE id = %s", [item.id])
    assert sync_location(location).changes == {}
    volume = recycle_bin.put_back(volume=volume, user=member.user)
    assert (volume.state, volume.deleted_at) == (Volume.State.AVAILABLE, None)
    assert sync_location(location).changes == {}
    services.request_snapshot(source=volume, name="after the bin", user=member.user)
    run_active_operations()
    [disk] = DiskImage.objects.all()
    for offset, data in BEFORE.items():
        assert pool.read_snapshot(item.id, disk.backend_ref, offset, len(data)) == data


def test_a_volume_that_the_cloud_deleted_while_it_was_in_the_recycle_bin_is_marked_once_it_is_put_back(
    location: Location, cloud_project: CloudProject, member: Membership, other: Any, settings: Any
) -> None:
    settings.RECYCLE_BIN_DAYS = 7
    item = make(other)
    sync_location(location)
    volume = request_volume_deletion(volume=Volume.objects.get(), user=member.user, confirmation="data")
    unmake(other, "volume", item)
    assert sync_location(location).changes == {}
    volume = recycle_bin.put_back(volume=volume, user=member.user)
    assert sync_location(location).changes == {"volumes_gone": 1}
    volume.refresh_from_db()
    assert volume.deleted_at and not volume.is_in_bin


@pytest.mark.parametrize("charged", [False, True], ids=["free", "charged"])
def test_a_snapshot_made_in_the_cloud_is_shown_and_costs_what_the_rule_says(
    location: Location, cloud_project: CloudProject, member: Membership, other: Any, client_for: Callable, charged: bool
) -> None:
    Location.objects.update(charges_outside=charged)
    volume = make(other)
    created, twin = snap(other, volume), snap(other, volume)
    sync_location(Location.objects.get())
    first, second = Snapshot.objects.order_by("created_at")
    assert {first.name, second.name} == {"by hand", f"by hand {created.id}"} or second.name == f"by hand {twin.id}"
    assert (first.made_outside, first.state, first.volume.backend_ref) == (True, State.READY, volume.id)
    assert open_segments() == (2 if charged else 0)
    page = client_for(member.user).get(reverse("snapshots:volume_snapshots")).content.decode()
    assert page.count("Created outside the portal") == 2
    assert page.count('<span class="amount">K 0.40</span>') == (2 if charged else 0)

    # the rule changes: the next sync applies it to existing snapshots
    Location.objects.update(charges_outside=not charged)
    assert sync_location(Location.objects.get()).changes == {"charges_changed": 2}
    assert open_segments() == (0 if charged else 2)

    # it works like any other
    new_volumes.request_new_volume(snapshot=first, user=member.user, project=member.project, name="copy", size_gb=1)
    run_active_operations()
    copy = Volume.objects.get(name="copy")
    assert (copy.state, copy.backend_project) == (Volume.State.AVAILABLE, cloud_project.external_id)
    assert other.get_volume(copy.backend_ref).snapshot_id == created.id

    # deleted in the cloud, it is deleted in the portal
    unmake(other, "snapshot", twin)
    sync_location(Location.objects.get())
    second.refresh_from_db()
    assert (second.state, open_segments()) == (State.DELETED, 0 if charged else 1)

    # deleted in the portal, it is deleted in the cloud
    services.request_deletion(snapshot=first, user=member.user, even_if_last=True)
    run_active_operations()
    assert not list(other.snapshots())
    assert sync_location(Location.objects.get()).snapshots_new == 0


@pytest.mark.parametrize("charged", [False, True], ids=["stops", "goes on"])
def test_a_snapshot_deleted_in_the_cloud_is_shown_as_missing_and_comes_back(
    location: Location,
    cloud_project: CloudProject,
    member: Membership,
    other: Any,
    database: Any,
    client_for: Callable,
    charged: bool,
) -> None:
    Location.objects.update(charges_missing=charged)
    location = Location.objects.get()
    make(other)
    sync_location(location)
    snapshot = services.request_snapshot(source=Volume.objects.get(), name="nightly", user=member.user)
    run_active_operations()
    assert sync_location(location).changes == {}
    assert (Snapshot.objects.count(), open_segments()) == (1, 1)
    item = other.get_snapshot(snapshot.disks.get().backend_ref)

    unmake(other, "snapshot", item)
    assert sync_location(location).snapshots_gone == 1
    snapshot.refresh_from_db()
    assert snapshot.missing_since and (snapshot.state, open_segments()) == (State.READY, 1 if charged else 0)
    client = client_for(member.user)
    assert b"Deleted outside the portal" in client.get(reverse("snapshots:volume_snapshots")).content
    page = client.get(reverse("snapshots:snapshot", args=[snapshot.pk])).content.decode()
    assert "was deleted in the cloud, outside the portal" in page and "Restore</a>" not in page
    with pytest.raises(InvalidState, match="was deleted in the cloud"):
        restores.request_restore(snapshot=snapshot, user=member.user, confirmation="data")
    assert sync_location(location).changes == {}

    raise_the_dead(database, "snapshot", item)
    assert sync_location(location).snapshots_back == 1
    snapshot.refresh_from_db()
    assert (snapshot.missing_since, open_segments()) == (None, 1)
    database.execute("UPDATE snapshots SET deleted = true WHERE id = %s", [item.id])

    # missing again, it can be deleted here, which succeeds and ends its charge
    sync_location(location)
    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    run_active_operations()
    snapshot.refresh_from_db()
    assert (snapshot.state, open_segments()) == (State.DELETED, 0)


def test_the_portals_own_objects_are_not_imported(
    location: Location, cloud_project: CloudProject, member: Membership, other: Any
) -> None:
    make(other)
    sync_location(location)
    volume = Volume.objects.get()
    first = services.request_snapshot(source=volume, name="first", user=member.user)
    run_active_operations()
    restores.request_restore(snapshot=first, user=member.user, confirmation="data")
    new_volumes.request_new_volume(snapshot=first, user=member.user, project=member.project, name="copy", size_gb=1)
    run_active_operations()
    assert not Operation.objects.exclude(state=Operation.State.SUCCEEDED).exists()
    assert len(list(other.volumes())) == 3  # the volume, the copy from before the restore, the new volume
    rows = set(Volume.objects.values_list("pk")), set(Snapshot.objects.values_list("pk", "state"))

    assert sync_location(location).changes == {}
    assert rows == (set(Volume.objects.values_list("pk")), set(Snapshot.objects.values_list("pk", "state")))
    assert Volume.objects.get(pk__in=Volume.objects.exclude(pk=volume.pk)).name == "copy"
    assert not DiskImage.objects.filter(seen_at=None).exists()


@pytest.mark.thorough
def test_a_volume_that_appears_after_its_operation_failed_becomes_available(
    location: Location, cloud_project: CloudProject, member: Membership, other: Any
) -> None:
    source = make(other)
    sync_location(location)
    snapshot = services.request_snapshot(source=Volume.objects.get(), name="first", user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    row = Volume.objects.create(
        project=member.project,
        location=location,
        name="late",
        size_gb=1,
        state=Volume.State.ERROR,
        deleted_at=snapshot.ready_at,
        backend_project=cloud_project.external_id,
    )
    OperationFactory(new_volume=True, failed=True, snapshot=snapshot, volume=row)
    item = other.create_volume(
        size=1, name=name_of(row.pk), volume_id=None, snapshot_id=snapshot.disks.get().backend_ref
    )
    other.wait_for_status(item, "available", interval=0.3, wait=60)

    assert sync_location(location).changes == {"volumes_new": 1}
    row.refresh_from_db()
    assert (row.state, row.deleted_at, row.backend_ref) == (Volume.State.AVAILABLE, None, item.id)
    assert source.id


def test_the_portal_works_in_the_project_that_a_volume_is_in(
    location: Location, cloud_project: CloudProject, other: Any, pool: Any, store: CinderStore
) -> None:
    from snapshots.storage.registry import get_driver

    driver, project = get_driver(location), cloud_project.external_id
    item = make(other)
    volume = VolumeRef(uuid=uuid4(), name="data", size_gb=1, backend_ref=item.id, backend_project=project)
    pool.write(item.id, BEFORE)
    ref = SnapshotRef(uuid=uuid4(), backend_project=project)
    [info] = driver.create_snapshots([(ref, volume)])
    assert [each.id for each in other.snapshots()] == [info.backend_ref]
    [copied] = driver.create_safety_snapshots([(SnapshotRef(uuid=uuid4(), backend_project=project), volume)])
    pool.write(item.id, {0: b"ruined" * 1000})
    driver.revert_volume(volume, ref)
    assert_holds(store, volume, BEFORE)
    copy = VolumeRef(uuid=uuid4(), name="copy", size_gb=1, backend_project=project)
    backend_ref = driver.create_volume_from_snapshot(ref, copy)
    assert backend_ref in {each.id for each in other.volumes()}
    assert driver.bytes_needed([volume]) == 0
    for each in (
        SnapshotRef(uuid=ref.uuid, backend_project=project),
        SnapshotRef(uuid=copied.uuid, backend_project=project),
    ):
        driver.delete_snapshot(each)
    assert not list(other.snapshots()) and len(list(other.volumes())) == 2
    # and nowhere else
    assert not list(store.cinder.snapshots(name=name_of(ref.uuid)))


@pytest.mark.thorough
def test_two_concurrent_syncs_do_nothing_twice(
    location: Location, cloud_project: CloudProject, other: Any, database: Any
) -> None:
    Location.objects.update(charges_outside=True)
    volume = make(other)
    snap(other, volume)
    with many(database, other, volumes=300, snapshots=300, like=volume):
        with ThreadPoolExecutor(3) as pool:
            syncs = [pool.submit(sync_in_a_thread) for _each in range(3)]
            for sync in syncs:
                sync.result()
        assert (Volume.objects.count(), Snapshot.objects.count(), open_segments()) == (301, 301, 301)
        assert not Volume.objects.exclude(deleted_at=None).exists()
        assert not Snapshot.objects.exclude(missing_since=None, state=State.READY).exists()
        assert sync_location(Location.objects.get()).changes == {}


def sync_in_a_thread() -> None:
    try:
        sync_location(Location.objects.get())
    finally:
        connection.close()


@contextmanager
def many(database: Any, other: Any, *, volumes: int, snapshots: int, like: Any) -> Iterator[None]:
    """Insert rows into Cinder's database, which its API then lists, because creating as many objects would take hours."""
    [snapshot] = list(other.snapshots())
    for table, count, item in (("volumes", volumes, like), ("snapshots", snapshots, snapshot)):
        columns = [
            row[0]
            for row in database.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
            )
        ]
        new = {"id": "gen_random_uuid()::text", "display_name": "'many ' || number"}
        values = ", ".join(new.get(column, f'"{column}"') for column in columns)
        names = ", ".join(f'"{column}"' for column in columns)
        database.execute(
            f"INSERT INTO {table} ({names}) SELECT {values} FROM {table}, generate_series(1, {count}) AS number "
            "WHERE id = %s",
            [item.id],
        )
    try:
        yield
    finally:
        for table in "snapshots", "volumes":
            database.execute(f"DELETE FROM {table} WHERE display_name LIKE 'many %'")


@pytest.mark.thorough
def test_thousands_of_volumes_need_no_more_memory_than_a_page_of_them(
    location: Location, cloud_project: CloudProject, other: Any, database: Any, process_environment: dict[str, str]
) -> None:
    volume = make(other)
    snap(other, volume)
    peaks: dict[tuple[int, str], float] = {}
    for count in (500, 5000):
        with many(database, other, volumes=count, snapshots=count, like=volume):
            for sync in ("first", "next"):
                seconds, peaks[count, sync] = sync_in_a_process(process_environment)
                print(f"{count} volumes and snapshots, {sync} look: {seconds:.1f} s, {peaks[count, sync]:.0f} MiB")
            assert Volume.objects.present().count() == count + 1
            assert Snapshot.objects.filter(deleted_at=None).count() == count + 1
        print("all gone: {:.1f} s, {:.0f} MiB".format(*sync_in_a_process(process_environment)))
        assert Volume.objects.present().count() == Snapshot.objects.filter(deleted_at=None).count() == 1
    assert peaks[5000, "first"] < peaks[500, "first"] + 16
    assert peaks[5000, "next"] < peaks[500, "next"] + 16


def sync_in_a_process(environment: dict[str, str]) -> tuple[float, float]:
    """Run `manage.py sync_inventory` and return (seconds, peak MiB)."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "manage.py", "sync_inventory"], env=environment, stdout=subprocess.DEVNULL
    )
    _pid, status, use = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - begin, use.ru_maxrss / 1024


@pytest.mark.thorough
def test_a_list_continues_after_the_last_row_of_a_page_was_deleted(
    location: Location, cloud_project: CloudProject, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snapshots.storage.registry import get_driver

    monkeypatch.setattr(client, "PAGE_SIZE", 2)
    volumes = [make(other, f"volume {number}") for number in range(5)]
    pages = get_driver(location).volume_pages(cloud_project.external_id)
    first = next(pages)
    unmake(other, "volume", next(each for each in volumes if each.id == first[-1].ref))
    rest = [volume.ref for page in pages for volume in page]
    assert {volume.ref for volume in first} | set(rest) == {volume.id for volume in volumes}


def test_a_project_that_the_account_lost_is_marked_and_keeps_its_volumes(
    lab: Lab, location: Location, cloud_project: CloudProject, other: Any, admin: Any
) -> None:
    make(other)
    sync_location(location)
    keystone = admin.identity
    rights = keystone.find_project("other"), keystone.find_user("portal"), keystone.find_role("member")
    keystone.unassign_project_role_from_user(*rights)
    try:
        sync_location(location)
        cloud_project.refresh_from_db()
        assert cloud_project.missing_since is not None
        assert Volume.objects.present().count() == 1
    finally:
        keystone.assign_project_role_to_user(*rights)
    sync_location(location)
    cloud_project.refresh_from_db()
    assert (cloud_project.missing_since, Volume.objects.present().count()) == (None, 1)


@pytest.mark.thorough
def test_a_cloud_that_does_not_answer_changes_nothing_and_says_so(
    lab: Lab, location: Location, cloud_project: CloudProject, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(other)
    sync_location(location)
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 1.0)
    err = StringIO()
    with lab.stopped("cinder-api"), pytest.raises(CommandError, match="be synced. The next sync"):
        call_command("sync_inventory", stdout=StringIO(), stderr=err)
    assert "does not answer" in err.getvalue()
    assert Volume.objects.present().count() == 1
    assert sync_location(location).changes == {}


def test_an_application_credential_has_its_own_project_only(
    lab: Lab, member: Membership, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portal = openstack.connect(cloud="portal")
    credential = portal.identity.create_application_credential(user=portal.current_user_id, name=str(uuid4()))
    auth = {"application_credential_id": credential.id, "application_credential_secret": credential.secret}
    cloud = {"auth_type": "v3applicationcredential", "auth": auth | {"auth_url": lab.keystone_url}}
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": {"limited": cloud | {"region_name": "RegionOne"}}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    settings.STORAGE = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "limited"}}}
    report = sync_location(LocationFactory(driver="cinder"))
    assert [each.external_id for each in report.unmapped] == [portal.current_project_id]
    assert not report.failed
    portal.identity.delete_application_credential(portal.current_user_id, credential)


# Nova isn't in the lab, so a small server gives its documented answers. Everything else is real.

SERVERS = [
    {"id": str(uuid4()), "name": "db-01", "status": "ACTIVE", "flavor": {"vcpus": 4, "ram": 8192}},
    {"id": str(uuid4()), "name": "db-02", "status": "SHUTOFF", "flavor": {"vcpus": 2, "ram": 4096}},
    {"id": str(uuid4()), "name": "web", "status": "ACTIVE", "flavor": {"vcpus": 1, "ram": 512}},
]


class Nova(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/v2.1/servers/detail":
            self_link = {"rel": "self", "href": f"http://{self.headers['Host']}/v2.1/"}
            version = {"id": "v2.1", "status": "CURRENT", "version": "2.96", "min_version": "2.1", "links": [self_link]}
            return self.answer({"version": version} if url.path.startswith("/v2.1") else {"versions": [version]})
        if self.headers["X-OpenStack-Nova-API-Version"] != "2.47":
            return self.answer({"computeFault": {"message": "flavors are links only"}}, 400)
        query = parse_qs(url.query)
        ids = [server["id"] for server in SERVERS]
        start = ids.index(query["marker"][0]) + 1 if "marker" in query else 0
        page = [
            server | {"created": "2026-11-01T10:00:00Z"} for server in SERVERS[start : start + int(query["limit"][0])]
        ]
        more = {"servers_links": [{"rel": "next", "href": ""}]} if start + len(page) < len(SERVERS) else {}
        self.answer({"servers": page} | more)

    def answer(self, body: Any, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def nova(admin: Any) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nova)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    keystone, url = admin.identity, f"http://127.0.0.1:{server.server_port}/v2.1"
    service = keystone.create_service(name="nova", type="compute")
    keystone.create_endpoint(service_id=service.id, interface="public", region_id="RegionOne", url=url)
    yield
    keystone.delete_service(service)
    server.shutdown()


def test_servers_are_imported_with_names_sizes_and_states(
    location: Location, member: Membership, other: Any, admin: Any, nova: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE_SIZE", 2)
    volume = make(other)
    attach_volume(admin, volume, SERVERS[1]["id"], "/dev/vdb")
    sync_location(location)
    CloudProject.objects.filter(name="other").update(project=member.project)
    sync_location(location)
    machines = VirtualMachine.objects.order_by("name")
    assert [(vm.name, vm.is_running, vm.vcpus, vm.memory_mb) for vm in machines] == [
        ("db-01", True, 4, 8192),
        ("db-02", False, 2, 4096),
        ("web", True, 1, 512),
    ]
    assert (Volume.objects.get().vm, Volume.objects.get().position) == (machines[1], 1)

    removed = SERVERS.pop()
    SERVERS[0]["status"] = "SHUTOFF"
    try:
        sync_location(location)
        assert [(vm.name, vm.is_running, bool(vm.deleted_at)) for vm in machines.all()] == [
            ("db-01", False, False),
            ("db-02", False, False),
            ("web", True, True),
        ]
    finally:
        SERVERS.append(removed)
        SERVERS[0]["status"] = "ACTIVE"
    sync_location(location)
    assert not VirtualMachine.objects.exclude(deleted_at=None).exists()
    detach_volume(admin, volume)
