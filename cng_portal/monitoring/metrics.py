"""`/metrics` for Prometheus: request times of this machine's web processes, and metrics read from the database.

Apps register what they measure with `register_collector`. Every label has a bounded set of values: view names, kinds,
states, locations. Metrics from the database are the same on every web machine, so alert rules take their maximum.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

import structlog
from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from cng_portal.accounts.signin.passwords import FAILURES as BREACH_SERVICE_FAILURES
from cng_portal.mail import services as mail

from .status import ClusterStatus, load_cluster_status

logger = structlog.get_logger(__name__)
GetResponse = Callable[[HttpRequest], HttpResponse]
Collect = Callable[[datetime], Iterable[Metric]]
PLAIN = "text/plain; charset=utf-8"

REQUEST_SECONDS = Histogram(
    "portal_request_seconds",
    "Time to answer a request, by view.",
    ["view", "method", "status"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=None,
)


def measure(get_response: GetResponse) -> GetResponse:
    """Middleware: measure each request's time. URLs without a view share one label."""

    def middleware(request: HttpRequest) -> HttpResponse:
        started = time.perf_counter()
        response = get_response(request)
        match = request.resolver_match
        REQUEST_SECONDS.labels(
            view=match.view_name if match else "none",
            method=request.method if request.method in ("GET", "POST") else "other",
            status=f"{response.status_code // 100}xx",
        ).observe(time.perf_counter() - started)
        return response

    return middleware


def metrics(request: HttpRequest) -> HttpResponse:
    """Return the metrics to a client with METRICS_TOKEN as its bearer token; 404 when the setting is empty."""
    if not settings.METRICS_TOKEN:
        return HttpResponseNotFound("Metrics are off: METRICS_TOKEN is not set.\n", content_type=PLAIN)
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not constant_time_compare(token.strip(), settings.METRICS_TOKEN):
        refused = HttpResponse("Send METRICS_TOKEN as a bearer token.\n", status=401, content_type=PLAIN)
        refused["WWW-Authenticate"] = 'Bearer realm="metrics"'
        return refused
    registry = CollectorRegistry()
    if folder := os.environ.get("METRICS_DIR"):  # set in gunicorn.conf.py
        if os.path.isdir(folder):
            MultiProcessCollector(registry, folder)  # sums over all web processes of this machine
    else:
        for collector in COUNTED_HERE:
            registry.register(collector)
    registry.register(DatabaseCollector())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class DatabaseCollector(Collector):
    """Everything that is measured with queries; only `portal_database_up 0` when the database is down."""

    def collect(self) -> Iterator[Metric]:
        now = timezone.now()
        try:
            metrics = [metric for collect in COLLECTORS for metric in collect(now)]
        except DatabaseError:
            logger.exception("metrics.database_down")
            metrics, up = [], 0
        else:
            up = 1
        yield GaugeMetricFamily("portal_database_up", "1 when the database answers.", value=up)
        yield from metrics


def collect_processes(now: datetime) -> Iterator[Metric]:
    status = load_cluster_status(now=now)
    alive = GaugeMetricFamily("portal_processes", "Processes with a recent heartbeat.", labels=["kind"])
    silent = GaugeMetricFamily(
        "portal_processes_silent", "Processes that stopped sending heartbeats within a day.", labels=["kind"]
    )
    for kind in status.alive:
        alive.add_metric([kind], status.alive[kind])
        silent.add_metric([kind], status.silent[kind])
    yield from (alive, silent)
    yield GaugeMetricFamily(
        "portal_scheduler_lease_seconds",
        "Time left on the acting scheduler's lease; negative while none acts.",
        value=status.lease_remaining.total_seconds(),
    )
    yield from storage_metrics(status)


def storage_metrics(status: ClusterStatus) -> Iterator[Metric]:
    labels = ["location"]
    up = GaugeMetricFamily("portal_storage_up", "1 when the last check of the storage passed.", labels=labels)
    age = GaugeMetricFamily("portal_storage_check_age_seconds", "Time since the last check.", labels=labels)
    free = GaugeMetricFamily("portal_storage_free_bytes", "Free space.", labels=labels)
    used = GaugeMetricFamily("portal_storage_snapshot_bytes", "Space used by snapshots.", labels=labels)
    damaged = GaugeMetricFamily("portal_snapshots_damaged", "Damaged snapshots.", labels=labels)
    oldest_read = GaugeMetricFamily(
        "portal_oldest_read_age_seconds", "Longest time since any snapshot was captured or verified.", labels=labels
    )
    errors = CounterMetricFamily(
        "portal_storage_errors", "Checks and attempts that failed because of the storage.", labels=labels
    )
    for check in status.storage:
        location = [check.location_id]
        errors.add_metric(location, check.error_count)
        used.add_metric(location, check.snapshot_bytes)
        damaged.add_metric(location, check.damaged_count)
        oldest_read.add_metric(location, status.oldest_read_age(check).total_seconds())
        if check.checked_at is None:
            continue
        up.add_metric(location, 0 if check.error else 1)
        age.add_metric(location, (status.at - check.checked_at).total_seconds())
        if check.free_bytes is not None:
            free.add_metric(location, check.free_bytes)
    yield from (up, age, free, used, damaged, oldest_read, errors)
    yield GaugeMetricFamily(
        "portal_scrub_seconds", "Interval within which every snapshot is read.", value=settings.SCRUB_DAYS * 86400
    )


def collect_mails(now: datetime) -> Iterator[Metric]:
    status = mail.queue_status(now=now)
    yield GaugeMetricFamily("portal_mails_waiting", "E-mails not sent yet.", value=status.waiting)
    yield GaugeMetricFamily(
        "portal_mail_oldest_wait_seconds",
        "How long the oldest unsent e-mail has waited.",
        value=status.oldest_wait.total_seconds(),
    )
    failed = GaugeMetricFamily(
        "portal_mails_failed_last_hour", "E-mails that failed for good in the last hour.", labels=["kind"]
    )
    for kind, count in status.failed_recently.items():
        failed.add_metric([kind], count)
    yield failed


COLLECTORS: list[Collect] = [collect_processes, collect_mails]
# Counters of this process. With several processes, prometheus_client reads all of them from its files.
COUNTED_HERE: list[Collector] = [REQUEST_SECONDS, BREACH_SERVICE_FAILURES]


def register_collector(collect: Collect) -> None:
    """Add the metrics of an app above this one. Call it from AppConfig.ready; `collect` gets the current instant."""
    COLLECTORS.append(collect)


def register_counter(counter: Collector) -> None:
    """Add a counter of an app above this one. Call it from AppConfig.ready."""
    COUNTED_HERE.append(counter)
