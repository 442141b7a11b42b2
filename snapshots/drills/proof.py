"""When something was last proven restorable: by the newest drill that found nothing wrong."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Count, Max, QuerySet
from prometheus_client.core import GaugeMetricFamily, Metric

from ..models import Drill

DAY = timedelta(days=1)


def last_proven(snapshot_id: UUID) -> Drill | None:
    """Return the newest drill that proved this snapshot. One query."""
    return Drill.objects.proven().filter(snapshot=snapshot_id).order_by("-finished_at").first()


def last_proven_at(drills: QuerySet[Drill]) -> datetime | None:
    """Return when the newest of these drills proved something, such as of a volume, a machine or a user. One query."""
    return drills.filter(result=Drill.Result.PROVEN).order_by().aggregate(at=Max("finished_at"))["at"]


def collect_metrics(now: datetime) -> Iterator[Metric]:
    """Measure the drills of each location for Prometheus. Two queries; registered with `cng_portal.monitoring.metrics`."""
    ended = Drill.objects.ended().order_by()
    age = GaugeMetricFamily(
        "portal_proven_restorable_age_seconds",
        "Time since a snapshot of the location was last proven restorable. Absent: never.",
        labels=["location"],
    )
    proven = ended.filter(result=Drill.Result.PROVEN).values_list("snapshot__location")
    for location, at in proven.annotate(Max("finished_at")):
        age.add_metric([location], max(0, (now - at).total_seconds()))
    recent = GaugeMetricFamily(
        "portal_drills_ended_last_day", "Restore drills that ended in the last day.", labels=["result"]
    )
    counts = dict.fromkeys(Drill.Result.values, 0)
    counts |= dict(ended.filter(finished_at__gt=now - DAY).values_list("result").annotate(Count("pk")))
    for result, count in counts.items():
        recent.add_metric([result], count)
    yield from (age, recent)
