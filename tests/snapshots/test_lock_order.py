"""An operation that ends during a customer's request takes the same locks in the same order."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from django.db import connection, connections, transaction

from cng_portal.accounts.models import Membership
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Volume
from snapshots import restores, services, tasks
from snapshots.models import Operation, Snapshot, State
from snapshots.operations import lifecycle
from snapshots.volumes import new_volumes
from tests.factories import MembershipFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, attached_stopped=True)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


def capture(member: Membership, volume: Volume) -> Operation:
    return services.request_snapshot(source=volume, name="nightly", user=member.user).operations.get()


def restore(member: Membership, volume: Volume) -> Operation:
    capture(member, volume)
    run_active_operations()
    return restores.request_restore(snapshot=Snapshot.objects.get(), user=member.user, confirmation=volume.name)


def new_volume(member: Membership, volume: Volume) -> Operation:
    capture(member, volume)
    run_active_operations()
    return new_volumes.request_new_volume(
        snapshot=Snapshot.objects.get(), user=member.user, project=member.project, name="copy", size_gb=1
    )


def succeed(operation: Operation) -> None:
    with lifecycle.Lease(operation) as lease:
        tasks.HANDLERS[Operation.Kind(operation.kind)].run(operation, lease)


def fail(operation: Operation) -> None:
    tasks.retry_or_fail(operation, "The storage is full.", retryable=False, cause="NoSpace")


@pytest.mark.parametrize(
    ("ask", "end"), [(capture, succeed), (capture, fail), (restore, succeed), (restore, fail), (new_volume, succeed)]
)
def test_work_ends_while_its_customer_is_locked_by_a_request_for_the_same_operation(
    member: Membership,
    volume: Volume,
    ask: Callable[[Membership, Volume], Operation],
    end: Callable[[Operation], None],
) -> None:
    operation = lifecycle.claim(ask(member, volume).pk)
    assert operation is not None
    locked = Event()

    def work() -> None:
        locked.wait(30)
        try:
            end(operation)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            lock_customer(member.project.customer_id)
            ending = pool.submit(work)
            locked.set()
            wait_until_blocked(ending)
            Operation.objects.filter(pk=operation.pk).update(request_id="touched")
        ending.result(30)

    operation.refresh_from_db()
    assert not operation.is_active and operation.request_id == "touched"
    assert not Snapshot.objects.filter(state__in=[State.PENDING, State.CREATING]).exists()


def wait_until_blocked(ending: Any) -> None:
    """Wait until the other thread waits for our lock. SQLite has only the lock of the database, released by our commit."""
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        waiting = 0
        while not waiting and not ending.done():
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            waiting = cursor.fetchone()[0]
