"""/metrics: access, sums over processes, and cost."""

import http.client
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test import Client
from django.urls import get_resolver
from django.utils import timezone
from django_tasks_db.models import DBTaskResult
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import Settings

from cng_portal.monitoring.leases import acquire_lease
from cng_portal.monitoring.metrics import REQUEST_SECONDS
from cng_portal.monitoring.models import Process
from snapshots.models import Operation
from snapshots.monitoring.status import ACTIVE_STATES, load_operation_status
from snapshots.monitoring.storage import check_storage, measure_storage
from snapshots.operations import lifecycle
from tests.factories import LocationFactory, OperationFactory, SnapshotFactory, UserFactory
from tests.test_health import database_away

TOKEN = "a-token-for-prometheus"


@pytest.fixture(autouse=True)
def token(settings: Settings) -> None:
    settings.METRICS_TOKEN = TOKEN


def scrape(client: Client) -> dict[str, float]:
    """{`name{label="value",…}`: number}"""
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    return parse(answer.content.decode())


def parse(text: str) -> dict[str, float]:
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {TOKEN}"}],
)
def test_without_the_token_there_are_no_metrics_and_no_queries(client: Client, headers: dict[str, str]) -> None:
    answer = client.get("/metrics", headers=headers | {"Host": "10.1.2.3"})
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"].startswith("Bearer")
    assert b"portal_" not in answer.content


def test_metrics_need_the_token_even_in_an_administrators_session(client: Client) -> None:
    client.cookies[django_settings.SESSION_COOKIE_NAME] = "of-an-administrator"
    assert client.get("/metrics").status_code == 401


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}])
def test_without_the_setting_there_is_no_such_page(client: Client, settings: Settings, headers: dict[str, str]) -> None:
    settings.METRICS_TOKEN = ""
    assert client.get("/metrics", headers=headers).status_code == 404


@pytest.mark.django_db
def test_operations_are_counted_by_kind_and_state(client: Client) -> None:
    now = timezone.now()
    OperationFactory.create_batch(2, not_before=now - timedelta(minutes=7))
    OperationFactory(not_before=now + timedelta(minutes=7), error="The storage was busy.")
    OperationFactory(capture=True, running=True)
    OperationFactory(capture=True, running=True, lease_until=now - timedelta(seconds=1))
    OperationFactory.create_batch(3, succeeded=True)
    OperationFactory(failed=True)
    OperationFactory(failed=True, finished_at=now - timedelta(hours=2))

    samples = scrape(client)

    of_verify = {state: samples[f'portal_operations{{kind="verify",state="{state}"}}'] for state in ACTIVE_STATES}
    assert of_verify == {"waiting": 2, "paused": 1, "running": 0, "lost": 0}
    assert samples['portal_operations{kind="capture",state="running"}'] == 1
    assert samples['portal_operations{kind="capture",state="lost"}'] == 1
    assert samples['portal_operations{kind="restore",state="waiting"}'] == 0
    assert samples['portal_operations_ended_last_hour{kind="verify",state="succeeded"}'] == 3
    assert samples['portal_operations_ended_last_hour{kind="verify",state="failed"}'] == 1
    assert 420 <= samples["portal_operation_oldest_wait_seconds"] < 440


@pytest.mark.django_db
@pytest.mark.both_databases
def test_operations_from_a_clock_ahead_count_as_waiting_not_paused() -> None:
    now = timezone.now()
    requested_at = now + timedelta(milliseconds=300)  # by the web server's clock
    OperationFactory(created_at=requested_at, not_before=requested_at)
    OperationFactory(capture=True, not_before=now + timedelta(seconds=5), error="The storage was busy.")
    status = load_operation_status(now=now)
    assert {pair: count for pair, count in status.active.items() if count} == {
        ("verify", "waiting"): 1,
        ("capture", "paused"): 1,
    }
    assert status.oldest_wait == timedelta()


@pytest.mark.django_db
def test_the_depth_of_the_queue_counts_what_a_worker_could_take_now(client: Client) -> None:
    assert scrape(client)["portal_queue_depth"] == 0
    lifecycle.create_operation(kind="verify", snapshot=SnapshotFactory())
    lifecycle.enqueue_worker(at=timezone.now() + timedelta(minutes=5))
    assert DBTaskResult.objects.count() == 2
    samples = scrape(client)
    assert samples["portal_queue_depth"] == 1
    assert samples["portal_operation_oldest_wait_seconds"] < 5


@pytest.mark.django_db
def test_silent_processes_are_distinguished_from_running_ones(client: Client) -> None:
    assert scrape(client)["portal_scheduler_lease_seconds"] < 0
    Process.objects.create(kind="worker", host="a", pid=1)
    Process.objects.create(kind="worker", host="a", pid=2, heartbeat_at=timezone.now() - timedelta(minutes=2))
    Process.objects.create(kind="scheduler", host="b", pid=3)
    acquire_lease("scheduler", holder="x", seconds=30)
    samples = scrape(client)
    assert (samples['portal_processes{kind="worker"}'], samples['portal_processes_silent{kind="worker"}']) == (1, 1)
    assert (samples['portal_processes{kind="scheduler"}'], samples['portal_processes_silent{kind="scheduler"}']) == (
        1,
        0,
    )
    assert 20 < samples["portal_scheduler_lease_seconds"] <= 30


@pytest.mark.django_db
def test_storage_metrics_are_by_location(client: Client, storage_root: Path) -> None:
    location, broken = LocationFactory(code="1CNG-YGN-AZ01"), LocationFactory(code="1CNG-MDY-AZ01", driver="none")
    snapshot = SnapshotFactory(volume__location=location)
    snapshot.disks.update(allocated_bytes=4096, captured_at=timezone.now())
    SnapshotFactory(volume__location=location, deleted=True).disks.update(allocated_bytes=1, captured_at=timezone.now())
    check_storage()
    measure_storage()
    samples = scrape(client)
    assert samples['portal_storage_up{location="1CNG-YGN-AZ01"}'] == 1
    assert samples['portal_storage_free_bytes{location="1CNG-YGN-AZ01"}'] > 0
    assert samples['portal_storage_snapshot_bytes{location="1CNG-YGN-AZ01"}'] == 4096
    assert samples['portal_storage_errors_total{location="1CNG-YGN-AZ01"}'] == 0
    assert samples['portal_storage_up{location="1CNG-MDY-AZ01"}'] == 0
    assert samples['portal_storage_errors_total{location="1CNG-MDY-AZ01"}'] == 1
    assert 0 <= samples['portal_storage_check_age_seconds{location="1CNG-MDY-AZ01"}'] < 30
    assert broken.code


@pytest.mark.django_db(transaction=True)
def test_an_attempt_that_fails_because_of_the_storage_is_an_error_of_its_location(
    client: Client, storage_root: Path
) -> None:
    from tests.snapshots.disks import run_active_operations

    snapshot = SnapshotFactory(volume__location__code="1CNG-YGN-AZ01")  # whose file isn't in the storage
    lifecycle.create_operation(kind="verify", snapshot=snapshot)
    run_active_operations()
    assert scrape(client)['portal_storage_errors_total{location="1CNG-YGN-AZ01"}'] == 1


@pytest.mark.django_db
def test_request_times_are_by_view_and_labels_are_bounded(client: Client, client_for: Callable[..., Client]) -> None:
    user = UserFactory()
    snapshot = SnapshotFactory(volume__project__name="Default")
    before = scrape(client)
    signed_in = client_for(user)
    for path in ("/", f"/snapshots/{snapshot.pk}/", "/no-such-page-1/", "/no-such-page-2/"):
        signed_in.get(path)
    signed_in.generic("INVENTED", "/no-such-page-3/")
    after = scrape(client)

    def rise(labels: str) -> float:
        name = f"portal_request_seconds_count{{{labels}}}"
        return after.get(name, 0) - before.get(name, 0)

    assert rise('method="GET",status="2xx",view="dashboard"') == 1
    assert rise('method="GET",status="4xx",view="snapshots:snapshot"') == 1
    assert rise('method="GET",status="4xx",view="none"') == 2
    assert rise('method="other",status="4xx",view="none"') == 1
    assert not [name for name in after if "no-such" in name or str(snapshot.pk) in name or "INVENTED" in name]


@pytest.mark.django_db
def test_a_database_outage_is_a_metric(client: Client) -> None:
    assert scrape(client)["portal_database_up"] == 1
    with database_away():
        samples = scrape(client)
    assert samples["portal_database_up"] == 0


@pytest.mark.django_db
@pytest.mark.both_databases
def test_no_query_walks_through_the_finished_operations() -> None:
    """With the statistics of many finished operations, each plan finds the few others by index."""
    snapshot = SnapshotFactory()
    long_ago = timezone.now() - timedelta(days=9)
    Operation.objects.bulk_create(
        Operation(kind="verify", snapshot=snapshot, state="succeeded", attempt=1, finished_at=long_ago)
        for _ in range(5000)
    )
    OperationFactory()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    statements: list[tuple[str, object]] = []

    def note(execute: Callable, sql: str, params: object, many: bool, context: dict) -> object:
        statements.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        load_operation_status(now=timezone.now())
    plans = []
    for sql, params in statements:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{sql}", params)
            plans.append(" ".join(str(row) for row in cursor.fetchall()))
    of_operations = [plan for plan in plans if "snapshots_operation" in plan or "operation_" in plan]
    assert len(of_operations) == 2
    assert not [plan for plan in of_operations if re.search(r"Seq Scan|SCAN snapshots_operation(?! USING)", plan)]


@pytest.fixture
def gunicorn(process_environment: dict[str, str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """Start the web server with three processes, as in production. Yields (process, port)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"PORT": str(port), "WEB_WORKERS": "3", "METRICS_TOKEN": TOKEN, "DATA_DIR": str(tmp_path / "var")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--graceful-timeout", "3"],
        cwd=django_settings.BASE_DIR,
        env=process_environment | own,
    )
    pause, tries = Event(), 300
    while not answers(port):
        tries -= 1
        assert tries and process.poll() is None, "the web server does not answer"
        pause.wait(0.1)
    yield process, port
    process.terminate()
    assert process.wait(30) == 0


def answers(port: int) -> bool:
    try:
        return fetch(port, "/healthz") == "ok\n"
    except OSError:
        return False


def fetch(port: int, path: str, **headers: str) -> str:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        client.request("GET", path, headers=headers)
        return client.getresponse().read().decode()
    finally:
        client.close()


@pytest.mark.django_db(transaction=True)
def test_every_process_reports_the_metrics_of_all_even_killed_ones(
    gunicorn: tuple[subprocess.Popen, int],
) -> None:
    process, port = gunicorn

    def count() -> float:
        samples = parse(fetch(port, "/metrics", Authorization=f"Bearer {TOKEN}"))
        assert samples["portal_database_up"] == 1
        return sum(value for name, value in samples.items() if name.startswith("portal_request_seconds_count"))

    before = count()
    for _ in range(40):
        assert fetch(port, "/volumes/") == ""  # to the sign-in page
    assert {count() for _ in range(12)} == {before + 40}

    victim = psutil.Process(process.pid).children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    psutil.wait_procs([victim], timeout=10)
    assert {count() for _ in range(12)} == {before + 40}


def test_preallocated_metric_files_fit_every_label() -> None:
    """Files that grow could exceed the free space of the disk."""

    def names(resolver: Any) -> Iterator[str]:
        for pattern in resolver.url_patterns:
            if hasattr(pattern, "url_patterns"):
                yield from (f"{pattern.namespace or ''}:{name}" for name in names(pattern))
            else:
                yield str(pattern.name)

    conf = runpy.run_path(str(django_settings.BASE_DIR / "gunicorn.conf.py"))
    buckets = [*REQUEST_SECONDS._upper_bounds, "sum"]
    needed = 8
    for name in [*names(get_resolver()), "none"]:
        labels = [name, "other", "5xx", "0.025"]
        key = mmap_key(
            "portal_request_seconds",
            "portal_request_seconds_bucket",
            ["view", "method", "status", "le"],
            labels,
            REQUEST_SECONDS._documentation,
        )
        needed += (len(key) + 32) * len(buckets) * len(["GET", "POST", "other"]) * len(["2xx", "3xx", "4xx", "5xx"])
    assert needed < conf["METRICS_BYTES"]["histogram"]
