"""What the scheduler repairs every few minutes: schedules of deleted machines, and plans by another clock or time zone."""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q

from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Interval, VirtualMachine

from ..models import BackupRun, BackupSchedule
from .ending import end_schedules_of
from .planning import MAX_STEPS, schedules_with_machine, set_next_run


def maintain_schedules(now: datetime) -> int:
    """End the schedules of deleted machines, and replan what no longer fits. Returns how many schedules changed.

    A plan no longer fits when the customer moved to another time zone, or when it was made by a clock that was ahead.
    """
    changed = 0
    present = BackupSchedule.objects.present().filter(vm=OuterRef("pk"))
    deleted = VirtualMachine.objects.filter(Exists(present), deleted_at__isnull=False)
    for vm in deleted.select_related("project__customer"):
        changed += end_schedules_of(vm, now)
    planned = BackupSchedule.objects.filter(next_run_at__gt=now)
    in_other_zone = ~Q(time_zone=F("vm__project__customer__time_zone"))
    too_far = Q()
    for interval, max_step in MAX_STEPS.items():
        too_far |= Q(interval=interval, next_run_at__gt=now + max_step)
    for schedule in schedules_with_machine().filter(in_other_zone | too_far, next_run_at__gt=now):
        before = schedule.next_run_at
        set_next_run(schedule, now)
        changed += planned.filter(pk=schedule.pk, next_run_at=before).update(
            next_run_at=schedule.next_run_at, time_zone=schedule.time_zone
        )
        correct_future_runs(schedule, now)
    return changed


def correct_future_runs(schedule: BackupSchedule, now: datetime) -> None:
    """Undo what a clock that was far ahead recorded for coming occurrences, which would otherwise never run."""
    with transaction.atomic():
        lock_customer(schedule.vm.project.customer_id)
        future = schedule.runs.filter(scheduled_at__gt=now + MAX_STEPS[Interval(schedule.interval)])
        future.filter(state=BackupRun.State.MISSED).delete()
        for position, run in enumerate(future.order_by("-number")):
            run.scheduled_at = now - timedelta(microseconds=position)  # It ran before now; nobody knows when exactly.
            run.save(update_fields=["scheduled_at"])
