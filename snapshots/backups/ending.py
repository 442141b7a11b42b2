"""How schedules end: a user deletes one, automatic backups are switched off, or the machine or
volume is deleted.

Backups stay when their schedule ends. The caller must hold the customer's lock unless a docstring says otherwise.
"""

from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import override

from billing.models import ServiceKind
from billing.usage import close_segment
from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import AutomaticBackupSwitch, VirtualMachine, Volume

from ..models import BackupRun, BackupSchedule, source_fields
from .notifications import notify_switched_off
from .planning import record_due_as_missed


def stop_runs(schedule: BackupSchedule, now: datetime, reason: str) -> None:
    """Stop starting and retrying runs. A backup that is being taken is completed. Doesn't save the schedule."""
    record_due_as_missed(schedule, now, reason)
    schedule.next_run_at = None
    schedule.runs.filter(state=BackupRun.State.WAITING).update(
        state=BackupRun.State.FAILED, next_try_at=None, finished_at=now, reason=reason
    )


def end_schedule(schedule: BackupSchedule, now: datetime, reason: str) -> None:
    stop_runs(schedule, now, reason)
    schedule.deleted_at = now
    schedule.save()


def switch_off(vm: VirtualMachine, user: User | None, now: datetime) -> None:
    """End automatic backups that are on, and their charge. Without a `user`, the portal did it."""
    schedule = BackupSchedule.objects.with_related().get(vm=vm, origin=BackupSchedule.Origin.AUTOMATIC, deleted_at=None)
    end_schedule(schedule, now, _("Automatic backups were switched off."))
    close_segment(resource_id=vm.pk, kind=ServiceKind.VM_BACKUP_AUTOMATIC, at=now)
    had_begun = vm.automatic_backups_since is not None and vm.automatic_backups_since <= now
    switch = record_switch(vm, user, now, on=False)
    if vm.deleted_at is None:
        notify_switched_off(switch, had_begun=had_begun)


def record_switch(
    vm: VirtualMachine, user: User | None, now: datetime, *, on: bool, starts_at: datetime | None = None
) -> AutomaticBackupSwitch:
    vm.automatic_backups_since = starts_at
    vm.save(update_fields=["automatic_backups_since"])
    switch = AutomaticBackupSwitch.objects.create(vm=vm, on=on, switched_by=user, switched_at=now, starts_at=starts_at)
    activity.record(action="backup.automatic", actor=user, target=vm, after={"on": on})
    return switch


def end_schedules_of(source: VirtualMachine | Volume, now: datetime, user: User | None = None) -> int:
    """End every schedule of a machine or volume that was deleted, as of that instant, or is about to be.

    Takes the customer's lock itself. `user` is the administrator who deleted it, if one did. Returns how many ended.
    """
    at = min(now, source.deleted_at or now)
    with transaction.atomic(), override("en"):
        lock_customer(source.project.customer_id)
        present = BackupSchedule.objects.with_related().present()
        schedules = list(present.filter(**source_fields(source)))
        for schedule in schedules:
            if schedule.vm and schedule.is_automatic:
                switch_off(schedule.vm, user, at)
            else:
                end_schedule(
                    schedule, at, _("The instance was deleted.") if schedule.vm else _("The volume was deleted.")
                )
    return len(schedules)
