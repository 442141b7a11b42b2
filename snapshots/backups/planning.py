"""The next run of a schedule, and the occurrences that were missed.

The caller of every function that writes must hold the customer's lock.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import QuerySet
from django.utils.functional import Promise

from cng_portal.activity import services as activity
from cng_portal.inventory.models import Interval

from ..models import BackupRun, BackupSchedule, source_fields
from .occurrences import Recurrence, next_occurrence, occurrences_between

# The longest time between two occurrences, plus what a change to or from daylight saving time can add.
MAX_STEPS = {
    Interval.DAILY: timedelta(days=1, hours=2),
    Interval.WEEKLY: timedelta(days=7, hours=2),
    Interval.MONTHLY: timedelta(days=31, hours=2),
}


def set_next_run(schedule: BackupSchedule, now: datetime) -> None:
    """Set, but don't save, the first occurrence after `now` in the customer's time zone.

    Automatic backups don't run before their charge begins.
    """
    starts_at = schedule.vm.automatic_backups_since if schedule.vm and schedule.is_automatic else None
    schedule.time_zone = schedule.customer.time_zone
    schedule.next_run_at = next_occurrence(schedule.recurrence, schedule.zone, max(now, starts_at or now))


def set_next_runs(schedules: QuerySet[BackupSchedule], recurrence: Recurrence, zone: str, now: datetime) -> int:
    """Plan schedules that share a recurrence and a time zone in one query. Returns how many."""
    next_run_at = next_occurrence(recurrence, ZoneInfo(zone), now)
    return schedules.update(next_run_at=next_run_at, time_zone=zone)


def due_occurrences(schedule: BackupSchedule, now: datetime) -> list[datetime]:
    """Return the occurrences that have passed and have no run yet, oldest first."""
    first = schedule.next_run_at
    assert first is not None
    passed = [first, *occurrences_between(schedule.recurrence, schedule.zone, first, now)]
    # Where clocks differ, an edit may have planned an occurrence again that has just run.
    recorded = set(schedule.runs.filter(scheduled_at__gte=first).values_list("scheduled_at", flat=True))
    return [occurrence for occurrence in passed if occurrence not in recorded]


def record_due_as_missed(schedule: BackupSchedule, now: datetime, reason: str) -> None:
    """Record due runs that won't be started, so that every occurrence has a run."""
    if schedule.next_run_at and schedule.next_run_at <= now:
        record_missed(schedule, due_occurrences(schedule, now), now, reason)


def record_missed(schedule: BackupSchedule, missed: Sequence[datetime], now: datetime, reason: str | Promise) -> None:
    if not missed:
        return
    BackupRun.objects.bulk_create(
        BackupRun(
            schedule=schedule,
            **source_fields(schedule.source),
            number=number,
            scheduled_at=occurrence,
            state=BackupRun.State.MISSED,
            reason=str(reason),
            created_at=now,
            finished_at=now,
        )
        for number, occurrence in enumerate(missed, start=schedule.next_run_number())
    )
    after: dict[str, Any] = {"runs": len(missed), "last": missed[-1], "reason": reason}
    activity.record(action="backup.missed", actor=None, target=schedule.source, project=schedule.home, after=after)
