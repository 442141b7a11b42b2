"""Schedules of machines and volumes: create, edit, pause, resume, delete, and *Run now*.

Each function validates, writes in one transaction that holds the customer's lock, and returns the object; or raises a
`ActionRefused` with nothing written. `now` defaults to the current time.
"""

from datetime import datetime, time
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import Interval

from ..checks import (
    Source,
    check_deliverable,
    check_shown_price,
    check_space,
    reload_project,
    reload_source,
    require_change,
)
from ..errors import ActionRefused, InvalidState
from ..models import BackupRun, BackupSchedule, Draft, source_fields
from .ending import end_schedule, stop_runs
from .planning import record_due_as_missed, set_next_run
from .runs import start_requested_run

# When a schedule runs, and how many backups it keeps.
SCHEDULE_FIELDS = ("interval", "weekday", "month_day", "at", "retention_count")
MAX_RETENTION_COUNT = 365
MAX_SCHEDULES_PER_SOURCE = 20


class InvalidSchedule(ActionRefused):
    """An answer is missing or invalid; `field` is one of SCHEDULE_FIELDS."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def clean_schedule_fields(
    *, interval: str, weekday: int | None, month_day: int | None, at: time, retention_count: int
) -> dict[str, Any]:
    """Validate SCHEDULE_FIELDS, and clear those that the interval doesn't use. Raises InvalidSchedule."""
    if interval not in Interval.values:
        raise InvalidSchedule(_("Choose how often: daily, weekly or monthly."), "interval")
    if interval == Interval.WEEKLY and weekday not in range(7):
        raise InvalidSchedule(_("Choose the day of the week."), "weekday")
    if interval == Interval.MONTHLY and month_day not in range(1, 32):
        raise InvalidSchedule(_("Choose a day of the month, from 1 to 31."), "month_day")
    if not 1 <= retention_count <= MAX_RETENTION_COUNT:
        raise InvalidSchedule(_("Choose a number from 1 to %(max)s.") % {"max": MAX_RETENTION_COUNT}, "retention_count")
    return {
        "interval": interval,
        "weekday": weekday if interval == Interval.WEEKLY else None,
        "month_day": month_day if interval == Interval.MONTHLY else None,
        "at": at,
        "retention_count": retention_count,
    }


def create_schedule(
    *,
    source: Source,
    interval: str,
    weekday: int | None = None,
    month_day: int | None = None,
    at: time,
    retention_count: int = 2,
    take_one_now: bool = False,
    project: Project | None = None,
    user: User,
    shown_hourly_micro: int | None = None,
    draft: Draft | None = None,
    now: datetime | None = None,
) -> BackupSchedule:
    """Back up a machine or take snapshots of a volume regularly and, with `take_one_now`, immediately as well.

    What it takes belongs to `project`, of the same customer, by default the source's. A draft makes one schedule: the second
    call with it returns that one. `shown_hourly_micro` is the price of one backup or
    snapshot that the user saw; PriceChanged is raised if it has changed. Raises every ActionRefused of a capture.
    """
    now = now or timezone.now()
    check_space(source)
    with transaction.atomic():
        lock_customer(source.project.customer_id)
        if draft and (existing := BackupSchedule.objects.filter(draft=draft).first()):
            return existing
        source = reload_source(source)
        project = reload_project(project or source.project, source.project.customer_id)
        user = User.objects.get(pk=user.pk)
        require_change(user, source.project_id)
        require_change(user, project.pk)
        fields = clean_schedule_fields(
            interval=interval, weekday=weekday, month_day=month_day, at=at, retention_count=retention_count
        )
        schedule = BackupSchedule(
            **source_fields(source), project=project, created_by=user, draft=draft, created_at=now, **fields
        )
        check_shown_price(check_deliverable(source, now, project=project, kind=schedule.kind), shown_hourly_micro)
        if BackupSchedule.objects.present().filter(**source_fields(source)).count() >= MAX_SCHEDULES_PER_SOURCE:
            raise InvalidState(
                _("“%(name)s” already has %(max)s schedules, which is the limit. Edit or delete one of them.")
                % {"name": source.name, "max": MAX_SCHEDULES_PER_SOURCE}
            )
        set_next_run(schedule, now)
        schedule.save(force_insert=True)
        record_action("schedule", schedule, user, after=fields)
        if take_one_now:
            start_requested_run(schedule, user, now)
    return schedule


def edit_schedule(
    *,
    schedule: BackupSchedule,
    interval: str,
    weekday: int | None = None,
    month_day: int | None = None,
    at: time,
    retention_count: int,
    uses_recycle_bin: bool | None = None,
    user: User,
    now: datetime | None = None,
) -> BackupSchedule:
    """Change when the schedule runs, from now on. A lower retention count applies after the next verified backup.

    `uses_recycle_bin` sends what retention deletes to the recycle bin; None leaves the setting as it is. Raises
    InvalidSchedule and InvalidState.
    """
    now = now or timezone.now()
    fields = clean_schedule_fields(
        interval=interval, weekday=weekday, month_day=month_day, at=at, retention_count=retention_count
    )
    if uses_recycle_bin is not None:
        fields["uses_recycle_bin"] = uses_recycle_bin
    with transaction.atomic():
        schedule = lock_schedule(schedule, user)
        before = {name: getattr(schedule, name) for name in fields}
        record_action("change", schedule, user, before=before, after=fields)
        record_due_as_missed(schedule, now, _("The schedule was changed before this run could be started."))
        for name, value in fields.items():
            setattr(schedule, name, value)
        if schedule.paused_at is None:
            set_next_run(schedule, now)
        schedule.save()
    return schedule


def set_lock_days(*, schedule: BackupSchedule, user: User, lock_days: int | None) -> BackupSchedule:
    """Lock each future backup or snapshot for `lock_days` from when it is verified, or not at all. Raises InvalidState."""
    with transaction.atomic():
        schedule = lock_schedule(schedule, user)
        before, schedule.lock_days = schedule.lock_days, lock_days
        schedule.save(update_fields=["lock_days"])
        record_action("change", schedule, user, before={"lock_days": before}, after={"lock_days": lock_days})
    return schedule


def pause_schedule(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupSchedule:
    """Stop runs and retries until the schedule is resumed. No-op if it is paused. Raises InvalidState."""
    now = now or timezone.now()
    with transaction.atomic():
        schedule = lock_schedule(schedule, user)
        if schedule.paused_at is None:
            stop_runs(schedule, now, _("The schedule was paused."))
            schedule.paused_at = now
            schedule.save()
            record_action("pause", schedule, user)
    return schedule


def resume_schedule(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupSchedule:
    """Run again from the next occurrence on. No-op if it isn't paused. Raises InvalidState."""
    now = now or timezone.now()
    with transaction.atomic():
        schedule = lock_schedule(schedule, user)
        if schedule.paused_at is not None:
            schedule.paused_at = None
            set_next_run(schedule, now)
            schedule.save()
            record_action("resume", schedule, user)
    return schedule


def delete_schedule(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupSchedule:
    """Stop the schedule for good. Its backups stay, and are charged until they are deleted. No-op if it is deleted.

    Raises InvalidState for the schedule of automatic backups.
    """
    now = now or timezone.now()
    with transaction.atomic():
        schedule = lock_schedule(schedule, user, allow_deleted=True)
        if schedule.deleted_at is None:
            end_schedule(schedule, now, _("The schedule was deleted."))
            record_action("delete", schedule, user)
    return schedule


def run_now(*, schedule: BackupSchedule, user: User, now: datetime | None = None) -> BackupRun:
    """Take a backup or snapshot immediately, even if the schedule is paused.

    Raises InvalidState while another run of the machine or volume is unfinished, and every ActionRefused of a capture.
    """
    now = now or timezone.now()
    check_space(schedule.source)
    with transaction.atomic():
        return start_requested_run(lock_schedule(schedule, user), user, now)


def record_action(name: str, schedule: BackupSchedule, user: User, **changes: dict[str, Any]) -> None:
    activity.record(action=f"backup.{name}", actor=user, target=schedule.source, project=schedule.home, **changes)


def lock_schedule(schedule: BackupSchedule, user: User, *, allow_deleted: bool = False) -> BackupSchedule:
    """Take the customer's lock, then read the schedule again and check that the user may change it.

    Raises InvalidState for the schedule of automatic backups, and for a deleted one unless `allow_deleted`.
    """
    lock_customer(schedule.customer.pk)
    schedule = BackupSchedule.objects.with_related().get(pk=schedule.pk)
    user = User.objects.get(pk=user.pk)
    for project in {schedule.home, schedule.source.project}:
        require_change(user, project.pk)
    if schedule.is_automatic:
        raise InvalidState(_("Only your provider can change automatic backups. Create your own backup instead."))
    if schedule.deleted_at is not None and not allow_deleted:
        raise InvalidState(_("The schedule has been deleted. Create a new one."))
    return schedule
