"""The state of the operations: how many wait, run and failed. Each count has an index, so millions of rows cost nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Case, Count, Min, Q, Value, When
from django.utils.translation import gettext as _
from django_tasks_db.models import DBTaskResult
from prometheus_client.core import GaugeMetricFamily, Metric

from ..models import Operation, OperationQuerySet
from ..operations.lifecycle import backed_off

WAITING, PAUSED, RUNNING, LOST = "waiting", "paused", "running", "lost"
ACTIVE_STATES = [WAITING, PAUSED, RUNNING, LOST]
FINAL_STATES = [Operation.State.SUCCEEDED.value, Operation.State.FAILED.value, Operation.State.CANCELLED.value]
RECENTLY = timedelta(hours=1)
WAITS_TOO_LONG = timedelta(minutes=10)


@dataclass(frozen=True)
class OperationStatus:
    """The state at the instant `at`."""

    at: datetime
    active: dict[tuple[str, str], int]  # by kind and one of ACTIVE_STATES; has every pair
    ended: dict[tuple[str, str], int]  # in the last hour, by kind and one of FINAL_STATES; has every pair
    oldest_wait: timedelta  # 0 when nothing waits
    queue_depth: int

    @property
    def waiting_since(self) -> datetime:
        return self.at - self.oldest_wait

    def table(self) -> list[dict[str, object]]:
        """Return a row for each kind of operation: its label, and its counts by state."""
        return [
            {
                "kind": label,
                "counts": [self.active[kind, state] for state in ACTIVE_STATES]
                + [self.ended[kind, state] for state in FINAL_STATES],
            }
            for kind, label in Operation.Kind.choices
        ]

    def warnings(self) -> list[str]:
        """Return what needs an operator now: one sentence each, with what to do."""
        warnings = []
        if self.oldest_wait > WAITS_TOO_LONG:
            warnings.append(
                _(
                    "An operation has waited %(minutes)s minutes for a worker. "
                    "Start more workers, or find out what blocks them."
                )
                % {"minutes": int(self.oldest_wait.total_seconds() // 60)}
            )
        if any(count for (_kind, state), count in self.active.items() if state == LOST):
            warnings.append(
                _(
                    "The worker of a running operation died. The scheduler retries the operation; check that one is running."
                )
            )
        return warnings


def load_operation_status(*, now: datetime) -> OperationStatus:
    """Three queries."""
    active = dict.fromkeys([(kind, state) for kind in Operation.Kind.values for state in ACTIVE_STATES], 0)
    waits = [timedelta()]  # Also the wait of operations whose requester's clock is ahead of ours.
    for row in active_operations(now).values("kind", "progress").annotate(count=Count("pk"), since=Min("not_before")):
        active[row["kind"], row["progress"]] = row["count"]
        if row["progress"] == WAITING and row["kind"] not in Operation.MAINTENANCE:
            waits.append(now - row["since"])
    ended = dict.fromkeys([(kind, state) for kind in Operation.Kind.values for state in FINAL_STATES], 0)
    recent = Operation.objects.filter(finished_at__gt=now - RECENTLY).order_by()
    for row in recent.values("kind", "state").annotate(count=Count("pk")):
        ended[row["kind"], row["state"]] = row["count"]
    return OperationStatus(
        at=now,
        active=active,
        ended=ended,
        oldest_wait=max(waits),
        queue_depth=DBTaskResult.objects.ready().order_by().count(),
    )


def active_operations(now: datetime) -> OperationQuerySet:
    """Return the unfinished operations, annotated with `progress`, one of ACTIVE_STATES."""
    running = Q(state=Operation.State.RUNNING)
    progress = Case(
        When(running & Q(lease_until__lt=now), then=Value(LOST)),
        When(running, then=Value(RUNNING)),
        When(backed_off(now), then=Value(PAUSED)),
        default=Value(WAITING),
    )
    return Operation.objects.active().annotate(progress=progress).order_by()


def collect_metrics(now: datetime) -> Iterator[Metric]:
    """Measure the operations for Prometheus; registered with `cng_portal.monitoring.metrics`."""
    status = load_operation_status(now=now)
    active = GaugeMetricFamily(
        "portal_operations",
        "Unfinished operations; paused: waiting for a retry after an error; lost: the worker died.",
        labels=["kind", "state"],
    )
    for labels, count in status.active.items():
        active.add_metric(labels, count)
    ended = GaugeMetricFamily(
        "portal_operations_ended_last_hour", "Operations that ended in the last hour.", labels=["kind", "state"]
    )
    for labels, count in status.ended.items():
        ended.add_metric(labels, count)
    yield from (active, ended)
    yield GaugeMetricFamily(
        "portal_operation_oldest_wait_seconds",
        "How long the oldest operation has waited for a worker.",
        value=status.oldest_wait.total_seconds(),
    )
    yield GaugeMetricFamily("portal_queue_depth", "Tasks waiting for a worker.", value=status.queue_depth)
