"""A worker is killed at every step of every operation on a real Cinder; the next one leaves every object exactly once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Location, Volume
from snapshots import restores, services
from snapshots.models import Operation, Snapshot, State
from snapshots.storage.cinder.creation import name_of
from snapshots.storage.contract import VolumeRef
from snapshots.tasks import run_waiting_operations
from snapshots.volumes import new_volumes
from tests.factories import LocationFactory, MembershipFactory, VolumeFactory
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.disks import run_active_operations, sell_everywhere
from tests.snapshots.storage.contract import AFTER, BEFORE, assert_holds, new_volume
from tests.snapshots.test_crashes import let_the_next_worker_do_it

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.thorough]

WRITES = ("INSERT", "UPDATE", "DELETE")
MOST_STEPS = 100


@pytest.fixture
def location(settings: Any) -> Location:
    settings.STORAGE = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "demo"}}}
    return LocationFactory(driver="cinder")


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, project__customer__volume_quota=-1)


@pytest.fixture
def volume(store: CinderStore, location: Location, member: Membership) -> Volume:
    ref = new_volume(store, BEFORE)
    volume = VolumeFactory(pk=ref.uuid, project=member.project, location=location, backend_ref=ref.backend_ref)
    sell_everywhere()
    return volume


def survives(operation: Operation, kill_at: int) -> bool:
    """Run the operation in a process that dies at its n-th step: a request to the cloud or a write to the database."""
    connections.close_all()
    pid = os.fork()
    if pid == 0:
        left = kill_at

        def step() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_event(event: str, _arguments: tuple) -> None:
            if event == "http.client.send":
                step()

        def on_statement(execute: Callable, sql: str, params: object, many: bool, context: dict) -> object:
            if sql.startswith(WRITES):
                step()
            return execute(sql, params, many, context)

        try:
            connection.ensure_connection()
            sys.addaudithook(on_event)
            with connection.execute_wrapper(on_statement):
                run_waiting_operations.func()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def deaths(ask: Callable[[int], Operation]) -> Iterator[Operation]:
    """Yield an operation for each step at which its worker can die, after the next worker has completed it."""
    for kill_at in range(1, MOST_STEPS):
        operation = ask(kill_at)
        survived = survives(operation, kill_at)
        let_the_next_worker_do_it()
        operation.refresh_from_db()
        assert operation.state == Operation.State.SUCCEEDED, (kill_at, operation.error)
        yield operation
        if survived:
            print(f"{operation.kind}: killed at each of {kill_at - 1} steps")
            assert kill_at > 8, "the steps were not counted"
            return
    raise AssertionError(f"still dying after {MOST_STEPS} steps")


def objects(store: CinderStore, pk: Any) -> list[str]:
    return [item.id for item in [*store.cinder.snapshots(name=name_of(pk)), *store.cinder.volumes(name=name_of(pk))]]


def ref_of(volume: Volume) -> VolumeRef:
    return VolumeRef(uuid=volume.pk, name=volume.name, size_gb=volume.size_gb, backend_ref=volume.backend_ref)


def test_captures_and_deletions_survive_the_death_of_their_worker(
    store: CinderStore, volume: Volume, member: Membership
) -> None:
    snapshots: list[Snapshot] = []

    def capture(number: int) -> Operation:
        snapshots.append(services.request_snapshot(source=volume, name=f"snapshot {number}", user=member.user))
        return snapshots[-1].operations.get()

    for operation in deaths(capture):
        snapshot = operation.snapshot
        assert (snapshot.state, objects(store, snapshot.pk)) == (State.READY, [snapshot.disks.get().backend_ref])
        assert UsageSegment.objects.filter(resource_id=snapshot.pk, ended_at=None).count() == 1
    assert len(list(store.cinder.snapshots(volume_id=volume.backend_ref))) == len(snapshots)

    def delete(number: int) -> Operation:
        snapshot = snapshots.pop()
        services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
        return snapshot.operations.get(kind=Operation.Kind.DELETE)

    for operation in deaths(delete):
        assert (operation.snapshot.state, objects(store, operation.snapshot_id)) == (State.DELETED, [])
    assert len(list(store.cinder.snapshots(volume_id=volume.backend_ref))) == len(snapshots)
    assert UsageSegment.objects.filter(ended_at=None).count() == len(snapshots)
    assert store.leftovers(of=volume.backend_ref) == []


def test_restores_survive_the_death_of_their_worker(store: CinderStore, volume: Volume, member: Membership) -> None:
    snapshot = services.request_snapshot(source=volume, name="first", user=member.user)
    run_active_operations()
    safeties = set()

    def restore(number: int) -> Operation:
        store.write(ref_of(volume), AFTER)
        return restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)

    for operation in deaths(restore):
        assert_holds(store, ref_of(volume), BEFORE)
        safety = operation.safety_snapshot
        assert safety and safety.state == State.READY
        [copy] = objects(store, safety.disks.get().pk)
        assert safety.disks.get().backend_ref == f"volume:{copy}"
        assert UsageSegment.objects.filter(resource_id=safety.pk, ended_at=None).count() == 1
        safeties.add(copy)
    assert store.leftovers(of=volume.backend_ref) == []


def test_new_volumes_survive_the_death_of_their_worker(store: CinderStore, volume: Volume, member: Membership) -> None:
    snapshot = services.request_snapshot(source=volume, name="first", user=member.user)
    run_active_operations()

    def make(number: int) -> Operation:
        return new_volumes.request_new_volume(
            snapshot=snapshot, user=member.user, project=member.project, name=f"copy {number}", size_gb=1
        )

    for operation in deaths(make):
        copy = operation.volume
        assert copy and copy.state == Volume.State.AVAILABLE
        assert objects(store, copy.pk) == [copy.backend_ref]
        assert_holds(store, ref_of(copy), BEFORE)
    assert store.leftovers(of=volume.backend_ref) == []
