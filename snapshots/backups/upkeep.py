"""Repairs by the scheduler every few minutes: schedules of deleted sources, and runs planned in another time zone or by a
wrong clock."""

from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Interval, VirtualMachine, Volume

from ..models import BackupRun, BackupSchedule
from .ending import end_schedules_of
from .planning import MAX_STEPS, set_next_run

BATCH_SIZE = 500


def maintain_schedules(now: datetime) -> int:
    """End the schedules of deleted machines and volumes, and replan what no longer fits. Returns how many changed.

    A plan no longer fits when the customer moved to another time zone, or when it was made by a clock that was ahead.
    """
    fill_projects()
    changed = 0
    sources: list[tuple[str, QuerySet[Any]]] = [("vm", VirtualMachine.objects.all()), ("volume", Volume.objects.all())]
    for field, rows in sources:
        present = BackupSchedule.objects.present().filter(**{field: OuterRef("pk")})
        for source in rows.filter(Exists(present), deleted_at__isnull=False).select_related("project__customer"):
            changed += end_schedules_of(source, now)
    planned = BackupSchedule.objects.filter(next_run_at__gt=now)
    zone = Coalesce("vm__project__customer__time_zone", "volume__project__customer__time_zone")
    in_other_zone = ~Q(time_zone=zone)
    too_far = Q()
    for interval, max_step in MAX_STEPS.items():
        too_far |= Q(interval=interval, next_run_at__gt=now + max_step)
    for schedule in BackupSchedule.objects.with_related().filter(in_other_zone | too_far, next_run_at__gt=now):
        before = schedule.next_run_at
        set_next_run(schedule, now)
        changed += planned.filter(pk=schedule.pk, next_run_at=before).update(
            next_run_at=schedule.next_run_at, time_zone=schedule.time_zone
        )
        correct_future_runs(schedule, now)
    return changed


def fill_projects() -> None:
    """Give schedules of the previous version, which had no project, the project of their machine."""
    own = VirtualMachine.objects.filter(pk=OuterRef("vm")).values("project")
    without = BackupSchedule.objects.filter(project=None).values_list("pk", flat=True)
    while batch := list(without[:BATCH_SIZE]):
        BackupSchedule.objects.filter(pk__in=batch, project=None).update(project=Subquery(own))


def correct_future_runs(schedule: BackupSchedule, now: datetime) -> None:
    """Undo what a clock that was far ahead recorded for coming occurrences, which would otherwise never run."""
    with transaction.atomic():
        lock_customer(schedule.customer.pk)
        future = schedule.runs.filter(scheduled_at__gt=now + MAX_STEPS[Interval(schedule.interval)])
        future.filter(state=BackupRun.State.MISSED).delete()
        for position, run in enumerate(future.order_by("-number")):
            run.scheduled_at = now - timedelta(microseconds=position)  # It ran before now; nobody knows when exactly.
            run.save(update_fields=["scheduled_at"])
