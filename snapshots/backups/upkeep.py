"""Repairs by the scheduler every few minutes: schedules of deleted sources, and runs planned in another time zone or by a
wrong clock."""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from cng_portal.accounts.services import lock_customer
from cng_portal.common.loops import for_each
from cng_portal.inventory.models import Interval, VirtualMachine, Volume

from ..checks import Source
from ..models import BackupRun, BackupSchedule
from .ending import end_schedules_of
from .planning import MAX_STEPS, set_next_run

BATCH_SIZE = 500


def maintain_schedules(now: datetime) -> int:
    """End the schedules of deleted machines and volumes, and replan others where needed. Returns how many changed.

    A schedule is replanned when the customer moved to another time zone, or when its clock was ahead. A
    schedule's failure doesn't stop the others: raises an ExceptionGroup at the end.
    """
    changed = 0

    def end(source: Source) -> None:
        nonlocal changed
        changed += end_schedules_of(source, now)

    def replan(schedule: BackupSchedule) -> None:
        nonlocal changed
        before = schedule.next_run_at
        set_next_run(schedule, now)
        planned = BackupSchedule.objects.filter(pk=schedule.pk, next_run_at=before)
        changed += planned.update(next_run_at=schedule.next_run_at, time_zone=schedule.time_zone)
        correct_future_runs(schedule, now)

    for_each(
        [
            fill_projects,
            lambda: for_each(deleted_sources(), end),
            lambda: for_each(misplanned_schedules(now), replan),
        ],
        lambda step: step(),
    )
    return changed


def deleted_sources() -> list[Source]:
    """Return the deleted machines and volumes that still have schedules."""
    sources: list[Source] = []
    for field, model in (("vm", VirtualMachine), ("volume", Volume)):
        present = BackupSchedule.objects.present().filter(**{field: OuterRef("pk")})
        deleted = model.objects.filter(Exists(present), deleted_at__isnull=False)
        sources += deleted.select_related("project__customer")
    return sources


def misplanned_schedules(now: datetime) -> QuerySet[BackupSchedule]:
    zone = Coalesce("vm__project__customer__time_zone", "volume__project__customer__time_zone")
    in_other_zone = ~Q(time_zone=zone)
    too_far = Q()
    for interval, max_step in MAX_STEPS.items():
        too_far |= Q(interval=interval, next_run_at__gt=now + max_step)
    announced = Q(origin=BackupSchedule.Origin.AUTOMATIC, vm__automatic_backups_since__gt=now)
    return BackupSchedule.objects.with_related().filter(in_other_zone | too_far & ~announced, next_run_at__gt=now)


def fill_projects() -> None:
    """Give schedules of the previous version, which had no project, the project of their machine."""
    own = VirtualMachine.objects.filter(pk=OuterRef("vm")).values("project")
    without = BackupSchedule.objects.filter(project=None, vm__isnull=False).values_list("pk", flat=True)
    while batch := list(without[:BATCH_SIZE]):
        BackupSchedule.objects.filter(pk__in=batch, project=None).update(project=Subquery(own))


def correct_future_runs(schedule: BackupSchedule, now: datetime) -> None:
    """Undo runs that a clock far ahead recorded for coming occurrences, which would otherwise never run."""
    with transaction.atomic():
        lock_customer(schedule.customer.pk)
        future = schedule.runs.filter(scheduled_at__gt=now + MAX_STEPS[Interval(schedule.interval)])
        future.filter(state=BackupRun.State.MISSED).delete()
        for position, run in enumerate(future.order_by("-number")):
            run.scheduled_at = now - timedelta(microseconds=position)  # It ran before now; nobody knows when exactly.
            run.save(update_fields=["scheduled_at"])
