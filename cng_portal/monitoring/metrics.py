"""`/metrics` for Prometheus: request times of this machine's web processes, and what the database knows of the work.

Every label is bounded: view names, kinds, states, locations. The numbers of the work are the same on every web machine,
so rules take their maximum.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator

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
from snapshots import watching

logger = logging.getLogger(__name__)
GetResponse = Callable[[HttpRequest], HttpResponse]
PLAIN = "text/plain; charset=utf-8"

REQUEST_SECONDS = Histogram(
    "portal_request_seconds",
    "Time to answer a request, by view.",
    ["view", "method", "status"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=None,
)


def measure(get_response: GetResponse) -> GetResponse:
    """Middleware: how long each request took. Addresses that lead nowhere share one label."""

    def middleware(request: HttpRequest) -> HttpResponse:
        began = time.perf_counter()
        response = get_response(request)
        match = request.resolver_match
        REQUEST_SECONDS.labels(
            view=match.view_name if match else "none",
            method=request.method if request.method in ("GET", "POST") else "other",
            status=f"{response.status_code // 100}xx",
        ).observe(time.perf_counter() - began)
        return response

    return middleware


def metrics(request: HttpRequest) -> HttpResponse:
    """For who knows METRICS_TOKEN, as a bearer token; without that setting there is no such page."""
    if not settings.METRICS_TOKEN:
        return HttpResponseNotFound("There are no metrics: METRICS_TOKEN is not set.\n", content_type=PLAIN)
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not constant_time_compare(token.strip(), settings.METRICS_TOKEN):
        refused = HttpResponse("Give METRICS_TOKEN as a bearer token.\n", status=401, content_type=PLAIN)
        refused["WWW-Authenticate"] = 'Bearer realm="metrics"'
        return refused
    registry = CollectorRegistry()
    if folder := os.environ.get("METRICS_DIR"):  # of gunicorn.conf.py
        if os.path.isdir(folder):
            MultiProcessCollector(registry, folder)  # the sum of all web processes, whichever of them is asked
    else:
        registry.register(REQUEST_SECONDS)
        registry.register(BREACH_SERVICE_FAILURES)
    registry.register(WorkCollector())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class WorkCollector(Collector):
    """What the database knows, in watching.look's constant number of queries."""

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("portal_database_up", "1 when the database answers.")
        try:
            seen = watching.look(now=timezone.now())
            mails = mail.queue_status(now=timezone.now())
        except DatabaseError:
            logger.exception("The database cannot be measured")
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from self.of_operations(seen)
        yield from self.of_processes(seen)
        yield from self.of_storage(seen)
        yield from self.of_mails(mails)

    def of_operations(self, seen: watching.Look) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "portal_operations",
            "Unfinished operations; paused: after an error, until their next attempt; lost: their worker fell silent.",
            labels=["kind", "state"],
        )
        for (kind, state), count in seen.active.items():
            gauge.add_metric([kind, state], count)
        yield gauge
        gauge = GaugeMetricFamily(
            "portal_operations_ended_last_hour", "Operations that ended in the last hour.", labels=["kind", "state"]
        )
        for (kind, state), count in seen.ended.items():
            gauge.add_metric([kind, state], count)
        yield gauge
        yield GaugeMetricFamily(
            "portal_operation_oldest_wait_seconds",
            "How long the oldest operation that no worker has taken could have been taken.",
            value=seen.oldest_wait.total_seconds(),
        )
        yield GaugeMetricFamily("portal_queue_depth", "Tasks that wait for a worker.", value=seen.queue_depth)

    def of_processes(self, seen: watching.Look) -> Iterator[Metric]:
        alive = GaugeMetricFamily("portal_processes", "Processes that gave a sign of life lately.", labels=["kind"])
        silent = GaugeMetricFamily(
            "portal_processes_silent", "Processes that fell silent within a day without taking leave.", labels=["kind"]
        )
        for kind in seen.alive:
            alive.add_metric([kind], seen.alive[kind])
            silent.add_metric([kind], seen.silent[kind])
        yield alive
        yield silent
        yield GaugeMetricFamily(
            "portal_scheduler_lease_seconds",
            "How much longer the acting scheduler holds its lease; negative while none acts.",
            value=seen.lease_left.total_seconds(),
        )

    def of_storage(self, seen: watching.Look) -> Iterator[Metric]:
        up = GaugeMetricFamily("portal_storage_up", "1 when the storage answered when last asked.", labels=["location"])
        age = GaugeMetricFamily(
            "portal_storage_check_age_seconds", "How long ago the storage was asked.", labels=["location"]
        )
        free = GaugeMetricFamily("portal_storage_free_bytes", "Room for new data.", labels=["location"])
        used = GaugeMetricFamily("portal_storage_snapshot_bytes", "Taken up by snapshots.", labels=["location"])
        damaged = GaugeMetricFamily("portal_snapshots_damaged", "Damaged snapshots.", labels=["location"])
        unread = GaugeMetricFamily(
            "portal_oldest_read_age_seconds",
            "How long ago the snapshot that was read longest ago was captured or verified.",
            labels=["location"],
        )
        errors = CounterMetricFamily(
            "portal_storage_errors", "Checks and attempts that failed because of the storage.", labels=["location"]
        )
        for check in seen.storage:
            place = [check.location_id]
            errors.add_metric(place, check.errors)
            used.add_metric(place, check.snapshot_bytes)
            damaged.add_metric(place, check.damaged_count)
            unread.add_metric(place, watching.unread_for(check, seen.at).total_seconds())
            if check.checked_at is None:
                continue
            up.add_metric(place, 0 if check.reason else 1)
            age.add_metric(place, (seen.at - check.checked_at).total_seconds())
            if check.free_bytes is not None:
                free.add_metric(place, check.free_bytes)
        yield from (up, age, free, used, damaged, unread, errors)
        yield GaugeMetricFamily(
            "portal_scrub_seconds",
            "Within how long every snapshot is to be read again.",
            value=settings.SCRUB_DAYS * 86400,
        )

    def of_mails(self, status: mail.QueueStatus) -> Iterator[Metric]:
        yield GaugeMetricFamily("portal_mails_waiting", "E-mails that are not sent yet.", value=status.waiting)
        yield GaugeMetricFamily(
            "portal_mail_oldest_wait_seconds",
            "How long the oldest e-mail that is not sent yet has waited.",
            value=status.oldest_wait.total_seconds(),
        )
        failed = GaugeMetricFamily(
            "portal_mails_failed_last_hour", "E-mails that failed for good in the last hour.", labels=["kind"]
        )
        for kind, count in status.failed_recently.items():
            failed.add_metric([kind], count)
        yield failed
