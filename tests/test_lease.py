"""Several schedulers, one of which acts, and several workers, as processes that are killed."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from threading import Barrier, Event
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone

from cng_portal.monitoring.heartbeats import Heartbeat
from cng_portal.monitoring.leases import acquire_lease, release_lease
from cng_portal.monitoring.models import Lease, Process
from snapshots.models import Operation
from snapshots.operations import lifecycle
from snapshots.operations.lifecycle import enqueue_worker
from tests import forked
from tests.factories import OperationFactory

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

LEASE_SECONDS = 5
Start = Callable[..., forked.Process]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    give_up = timezone.now() + timedelta(seconds=seconds)
    pause = Event()
    while not condition():
        assert timezone.now() < give_up, what
        pause.wait(0.05)


@pytest.fixture
def start() -> Iterator[Start]:
    """start("worker") starts a process of manage.py; all of them are killed at the end."""
    started: list[forked.Process] = []

    def start(*command: str) -> forked.Process:
        started.append(forked.Process(*command, SCHEDULER_LEASE_SECONDS=LEASE_SECONDS))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def leader() -> Process | None:
    """Return the scheduler that holds the lease."""
    lease = Lease.objects.filter(name="scheduler", expires_at__gt=timezone.now()).first()
    return Process.objects.filter(pk=lease.holder).first() if lease else None


def forgotten_operation() -> Operation:
    return OperationFactory(running=True, lease_until=timezone.now() - timedelta(seconds=1))


def is_enqueued(operation: Operation) -> bool:
    operation.refresh_from_db()
    return operation.state == Operation.State.PENDING


def test_a_lease_is_held_until_released_or_expired() -> None:
    assert acquire_lease("scheduler", holder="a", seconds=30)
    assert acquire_lease("scheduler", holder="a", seconds=30)
    assert not acquire_lease("scheduler", holder="b", seconds=30)
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert acquire_lease("scheduler", holder="b", seconds=30)
    assert not acquire_lease("scheduler", holder="a", seconds=30)
    release_lease("scheduler", holder="a")  # no longer its own
    assert not acquire_lease("scheduler", holder="a", seconds=30)
    release_lease("scheduler", holder="b")
    assert acquire_lease("scheduler", holder="a", seconds=30)


@pytest.mark.parametrize("is_new", [True, False])
def test_twenty_concurrent_requests_give_one_lease(is_new: bool) -> None:
    if not is_new:
        Lease.objects.create(name="scheduler", holder="dead", expires_at=timezone.now() - timedelta(seconds=1))
    barrier = Barrier(20)

    def ask(number: int) -> bool:
        try:
            barrier.wait()
            return acquire_lease("scheduler", holder=str(number), seconds=30)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(ask, range(20))) == 1


def test_when_the_acting_scheduler_is_killed_another_one_acts_within_the_lease(start: Start) -> None:
    processes = {process.pid: process for process in (start("scheduler", "--interval", "0.2") for _ in range(3))}
    wait_until(lambda: Process.objects.filter(kind="scheduler").count() == 3 and leader(), "nobody leads")
    first = leader()
    assert first is not None
    operation = forgotten_operation()
    wait_until(lambda: is_enqueued(operation), "the leader does not act")

    processes[first.pid].kill()
    processes[first.pid].wait()
    killed_at = timezone.now()
    operation = forgotten_operation()
    wait_until(lambda: is_enqueued(operation), "nobody took over")

    assert timezone.now() - killed_at < timedelta(seconds=LEASE_SECONDS + 5)  # the machine may be busy
    second = leader()
    assert second is not None and second.pk != first.pk
    assert Process.objects.filter(pk=first.pk).exists()  # a dead one is noticed when its heartbeat stops

    processes[second.pid].terminate()  # one that exits releases the lease at once, and deletes its row
    assert processes[second.pid].wait(30) == 0
    wait_until(lambda: (third := leader()) and third.pk != second.pk, "nobody took over", seconds=LEASE_SECONDS)
    assert not Process.objects.filter(pk=second.pk).exists()


def test_a_scheduler_that_hangs_loses_the_lease_and_continues_as_standby(start: Start) -> None:
    first = start("scheduler", "--interval", "0.2")
    wait_until(leader, "nobody leads")
    other = start("scheduler", "--interval", "0.2")
    wait_until(lambda: Process.objects.filter(kind="scheduler").count() == 2, "the second one does not start")
    os.kill(first.pid, signal.SIGSTOP)
    wait_until(lambda: (now := leader()) and now.pid == other.pid, "nobody took over")

    os.kill(first.pid, signal.SIGCONT)
    operation = forgotten_operation()
    wait_until(lambda: is_enqueued(operation), "nobody acts")
    assert (now := leader()) and now.pid == other.pid


def test_workers_send_heartbeats_and_deregister(start: Start) -> None:
    workers = [start("worker", "--interval", "0.1") for _ in range(3)]
    wait_until(lambda: Process.objects.filter(kind="worker").count() == 3, "the workers do not show")
    assert {process.pid for process in Process.objects.all()} == {worker.pid for worker in workers}
    workers[0].kill()
    workers[0].wait()
    for worker in workers[1:]:
        worker.terminate()
        assert worker.wait(30) == 0
    assert [process.pid for process in Process.objects.all()] == [workers[0].pid]


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    lifecycle.stopping.clear()


def test_a_worker_stopped_while_it_claims_releases_the_lock(signals_as_before: None) -> None:
    """A signal is handled once the database has answered: here the transaction that claims work has just begun."""

    def stop_in_transaction(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if begins := sql.startswith("BEGIN"):
            wait_until(lambda: Process.objects.exists(), "no sign of life")
        answer = execute(sql, *rest)
        if begins or connection.in_atomic_block:  # psycopg sends BEGIN with the first statement
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    with connection.execute_wrapper(stop_in_transaction), pytest.raises(SystemExit):
        call_command("worker", startup_delay=False)
    assert not Process.objects.exists(), "the heartbeat could not take its leave"


def test_a_stale_process_row_is_deleted_after_a_day() -> None:
    old = Process.objects.create(kind="worker", host="a", pid=1, heartbeat_at=timezone.now() - timedelta(days=2))
    new = Process.objects.create(kind="worker", host="a", pid=2)
    with Heartbeat(Process.Kind.WORKER) as heartbeat:
        wait_until(lambda: Process.objects.filter(pk=heartbeat.id).exists(), "no sign of life")
    assert list(Process.objects.all()) == [new]
    assert old.pk != new.pk


def test_a_worker_outlives_a_restart_of_its_database(start: Start) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite is a file and never away")
    worker = start("worker")
    wait_until(lambda: Process.objects.filter(kind=Process.Kind.WORKER).exists(), "the worker did not start")
    where = connection.settings_dict
    server = psycopg.connect(host=where["HOST"], port=where["PORT"] or None, user=where["USER"], dbname="postgres")
    with closing(server), connection.cursor() as cursor:
        server.autocommit = True
        server.execute(f'ALTER DATABASE "{where["NAME"]}" ALLOW_CONNECTIONS false')
        try:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            # it polls twice a second, and waits ten seconds for a connection
            assert not Event().wait(13) and worker.poll() is None
        finally:
            server.execute(f'ALTER DATABASE "{where["NAME"]}" ALLOW_CONNECTIONS true')
    # the tests' own pool lost its connections too, and would retry slowly
    connection.close()
    connection.close_pool()
    operation = OperationFactory()
    enqueue_worker()
    wait_until(lambda: Operation.objects.get(pk=operation.pk).finished_at, "nothing is done any more")
    assert worker.poll() is None
