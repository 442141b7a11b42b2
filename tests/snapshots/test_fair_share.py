"""Fair share: which operation runs next when several customers wait."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from cng_portal.accounts.models import Customer, Membership
from cng_portal.inventory.models import Volume
from cng_portal.monitoring.models import Process
from snapshots import services
from snapshots.models import Operation, Snapshot, State
from snapshots.operations import lifecycle
from tests import forked
from tests.factories import (
    CustomerFactory,
    MembershipFactory,
    OperationFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import put_volume, sell_everywhere, touch_every_chunk

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]


@pytest.fixture(autouse=True)
def start_from_nothing() -> None:
    lifecycle.stopping.clear()


def have_workers(count: int) -> None:
    Process.objects.all().delete()
    Process.objects.bulk_create(Process(kind="worker", host="a", pid=pid) for pid in range(1, count + 1))


def ask(customer: Customer, kind: str = "verify", *, minutes_ago: float = 0, by_portal: bool = False) -> Operation:
    """Create a waiting operation of the customer."""
    now = timezone.now() - timedelta(minutes=minutes_ago)
    return OperationFactory(
        kind=kind,
        snapshot=SnapshotFactory(volume__project__customer=customer),
        created_at=now,
        not_before=now,
        requested_by=None if by_portal else UserFactory(),
    )


def claimed() -> Operation:
    operation = lifecycle.claim_next()
    assert operation is not None
    return operation


def test_customers_take_turns_however_many_requests_one_has() -> None:
    have_workers(1)
    many, few = CustomerFactory(), CustomerFactory()
    first, second, third = (ask(many, minutes_ago=minutes) for minutes in (30, 20, 10))
    [other] = [ask(few, minutes_ago=1)]
    order = []
    while operation := lifecycle.claim_next():
        order.append(operation)
        lifecycle.finish(operation, Operation.State.SUCCEEDED, lambda now: None)
    assert order == [first, other, second, third]


def test_the_customer_with_fewer_running_operations_comes_first() -> None:
    have_workers(5)
    busy, idle = CustomerFactory(), CustomerFactory()
    for _operation in range(2):
        ask(busy)
        assert lifecycle.claim_next()
    ask(busy, minutes_ago=30)
    wanted = ask(idle)
    assert lifecycle.claim_next() == wanted


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_the_last_free_worker_is_reserved_for_customers_with_nothing_running(workers: int) -> None:
    have_workers(workers)
    busy, idle = CustomerFactory(), CustomerFactory()
    for _number in range(workers + 1):
        ask(busy, "capture")
    for _number in range(workers - 1):
        assert claimed().snapshot.customer == busy
    assert lifecycle.claim_next() is None
    ask(idle, "capture")
    assert claimed().snapshot.customer == idle


def test_short_operations_may_take_the_last_free_worker() -> None:
    have_workers(2)
    customer = CustomerFactory()
    ask(customer, "capture")
    assert lifecycle.claim_next()
    ask(customer, "capture")
    deletion = ask(customer, "delete")
    assert lifecycle.claim_next() == deletion


def test_a_worker_that_fell_silent_is_not_counted_and_its_operation_is_not_either() -> None:
    have_workers(3)
    customer = CustomerFactory()
    for _number in range(3):
        ask(customer, "capture")
    assert lifecycle.claim_next() and lifecycle.claim_next()
    assert lifecycle.claim_next() is None
    now = timezone.now() + timedelta(seconds=45)
    Process.objects.filter(pid=1).update(heartbeat_at=now - timedelta(minutes=2))
    Operation.objects.filter(state=Operation.State.RUNNING).update(lease_until=now - timedelta(seconds=1))
    assert lifecycle.claim_next(now=now)
    assert lifecycle.claim_next(now=now) is None, "two are alive, and one of them is to stay free"


def test_customers_operations_precede_scrubs_until_these_have_waited_long_enough() -> None:
    have_workers(1)
    customer = CustomerFactory()
    read = ask(customer, by_portal=True, minutes_ago=30)
    wanted = ask(CustomerFactory(), "capture")
    assert list(Operation.objects.background()) == [read]
    assert list(lifecycle.in_turn(timezone.now())) == [wanted, read]
    assert list(lifecycle.in_turn(timezone.now() + timedelta(minutes=31))) == [read, wanted]


def test_a_background_read_leaves_a_worker_free() -> None:
    have_workers(2)
    ask(CustomerFactory(), "capture")
    assert lifecycle.claim_next()
    read = ask(CustomerFactory(), by_portal=True, minutes_ago=30)
    assert lifecycle.claim_next() is None
    assert lifecycle.claim_next(now=timezone.now() + timedelta(seconds=20)) is None
    Operation.objects.exclude(pk=read.pk).update(state="succeeded", finished_at=timezone.now())
    assert lifecycle.claim_next() == read


def test_a_clock_set_back_delays_nobody() -> None:
    have_workers(1)
    ahead = CustomerFactory(last_served_at=timezone.now() + timedelta(days=1))
    wanted = ask(ahead, minutes_ago=5)
    ask(CustomerFactory())
    assert lifecycle.claim_next() == wanted


def test_twenty_workers_at_once_leave_one_free() -> None:
    have_workers(20)
    customer = CustomerFactory()
    for _number in range(30):
        ask(customer, "capture")
    barrier = Barrier(20)

    def claim(number: int) -> bool:
        try:
            barrier.wait()
            return lifecycle.claim_next() is not None
        finally:
            connections.close_all()

    with ThreadPoolExecutor(20) as pool:
        assert Counter(pool.map(claim, range(20))) == {True: 19, False: 1}
    assert Operation.objects.filter(state=Operation.State.RUNNING, attempt=1).count() == 19


@pytest.fixture
def start_worker() -> Iterator[Callable[[], forked.Process]]:
    started: list[forked.Process] = []
    # the frozen worker's operation isn't released

    def start() -> forked.Process:
        started.append(
            forked.Process("worker", "--interval", "0.1", "--no-startup-delay", OPERATION_LEASE_SECONDS=3600)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], Any]) -> None:
    give_up = timezone.now() + timedelta(seconds=60)
    while not condition():
        assert timezone.now() < give_up, list(Operation.objects.values("kind", "state", "attempt", "error"))


def test_ten_large_captures_of_a_customer_delay_nobody_and_all_finish(
    storage_root: Path, start_worker: Callable[[], forked.Process]
) -> None:
    busy, *others = (MembershipFactory(project__customer__postpaid=True) for _customer in range(3))
    large = VolumeFactory(project=busy.project, size_gb=20)
    small = [VolumeFactory(project=each.project) for each in others]
    sell_everywhere()
    for volume in small:
        put_volume(storage_root, volume, b"bytes")
    touch_every_chunk(put_volume(storage_root, large, b"bytes"))

    def capture(member: Membership, volume: Volume, name: str) -> Snapshot:
        return services.request_snapshot(source=volume, name=name, user=member.user)

    def is_ready(snapshot: Snapshot) -> bool:
        return Snapshot.objects.filter(pk=snapshot.pk, state=State.READY).exists()

    first_worker = start_worker()
    for number in range(10):
        capture(busy, large, f"large {number}")
    running = Operation.objects.filter(state=Operation.State.RUNNING)
    wait_until(running.exists)
    first_worker.send_signal(signal.SIGSTOP)  # until the end, it works on the first of the ten
    assert running.get().snapshot.name == "large 0"
    start_worker()
    wait_until(lambda: Process.objects.count() == 2)
    for member, volume in zip(others, small, strict=True):
        snapshot = capture(member, volume, "small")
        wait_until(lambda: is_ready(snapshot))  # noqa: B023
    assert running.get().snapshot.name == "large 0"
    assert Operation.objects.filter(state=Operation.State.PENDING, attempt=0).count() == 9

    # their tasks are gone by now; operations of dead workers and others are done all the same
    Volume.objects.filter(pk=large.pk).update(size_gb=1)
    put_volume(storage_root, Volume.objects.get(pk=large.pk), b"bytes")
    first_worker.kill()
    first_worker.wait()
    running.update(lease_until=timezone.now() - timedelta(seconds=1))
    lifecycle.reconcile()
    wait_until(lambda: Snapshot.objects.filter(state=State.READY).count() == 12)
