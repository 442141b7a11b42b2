"""Schedules of machines and volumes, and their runs. Their actions are in `snapshots.backups`.

A machine's schedule takes backups, `Snapshot` rows of kind BACKUP; a volume's takes volume snapshots. Either reaches its
schedule through its `run`.
"""

import uuid
from collections.abc import Iterable
from typing import Self
from zoneinfo import ZoneInfo

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Max, Q
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer, Project, User
from cng_portal.inventory.models import Interval, Location, VirtualMachine, Volume, Weekday

from ..backups.occurrences import Recurrence
from .snapshots import Draft, Kind, Snapshot, State

SHORTEST_MONTH = 28
HAS_ONE_SOURCE = Q(vm__isnull=False, volume=None) | Q(vm=None, volume__isnull=False)


class BackupScheduleQuerySet(models.QuerySet["BackupSchedule"]):
    def visible_to(self, user: User) -> Self:
        return self.in_projects(user.roles)

    def in_projects(self, project_ids: Iterable[uuid.UUID]) -> Self:
        ids = list(project_ids)
        # Schedules of the previous version belong to the machine's project until the scheduler has filled it in.
        return self.filter(Q(project__in=ids) | Q(project=None, vm__project__in=ids))

    def with_related(self) -> Self:
        """Select the rows that `source`, `home`, `location` and `zone` read."""
        return self.select_related(
            "project__customer",
            "vm__project__customer",
            "vm__location",
            "volume__project__customer",
            "volume__location",
        )

    def present(self) -> Self:
        return self.filter(deleted_at=None)


class BackupSchedule(models.Model):
    """How often a machine is backed up or a snapshot of a volume is taken, and how many of them are kept.

    The backups or snapshots belong to `project`, whose members see the schedule.

    `at`, `weekday` and `month_day` are meant in the customer's time zone; `time_zone` is the one that `next_run_at` was
    computed with. `next_run_at` is the next occurrence without a run, None while paused and once deleted.
    """

    class Origin(models.TextChoices):
        CUSTOMER = "customer", _("Customer")
        AUTOMATIC = "automatic", _("Automatic")  # the administrator's switch

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    vm = models.ForeignKey(
        VirtualMachine,
        verbose_name=_("virtual machine"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="backup_schedules",
    )
    volume = models.ForeignKey(
        Volume,
        verbose_name=_("volume"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="schedules",
        db_index=False,
    )
    project = models.ForeignKey(
        Project,
        verbose_name=_("project"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="schedules",
        db_index=False,
    )
    origin = models.CharField(_("origin"), max_length=9, choices=Origin.choices, default=Origin.CUSTOMER)
    interval = models.CharField(_("interval"), max_length=7, choices=Interval.choices)
    weekday = models.PositiveSmallIntegerField(_("weekday"), choices=Weekday.choices, null=True, blank=True)
    month_day = models.PositiveSmallIntegerField(
        _("day of the month"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(31)],
        help_text=_("The last one where the month is shorter."),
    )
    at = models.TimeField(_("time of day"), help_text=_("In the customer's time zone."))
    retention_count = models.PositiveSmallIntegerField(_("backups kept"), default=2, validators=[MinValueValidator(1)])
    lock_days = models.PositiveSmallIntegerField(
        _("days locked"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("How long each backup is locked from when it was verified. Empty: not at all."),
    )
    uses_recycle_bin = models.BooleanField(
        _("uses the recycle bin"),
        default=False,
        db_default=False,
        help_text=_("What retention removes goes to the recycle bin. Otherwise it is erased at once."),
    )
    time_zone = models.CharField(_("time zone"), max_length=64, editable=False)
    paused_at = models.DateTimeField(_("paused"), null=True, blank=True)
    next_run_at = models.DateTimeField(_("next run"), null=True, blank=True)
    created_by = models.ForeignKey(
        User, verbose_name=_("created by"), on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    draft = models.OneToOneField(Draft, on_delete=models.SET_NULL, null=True, blank=True, related_name="schedule")
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True)

    objects = BackupScheduleQuerySet.as_manager()

    class Meta:
        verbose_name = _("backup schedule")
        verbose_name_plural = _("backup schedules")
        ordering = ["-created_at", "-id"]
        indexes = [
            # finds due schedules, however many there are
            models.Index(fields=["next_run_at", "id"], condition=Q(next_run_at__isnull=False), name="schedule_due"),
            models.Index(fields=["volume"], condition=Q(volume__isnull=False), name="schedule_of_volume"),
            models.Index(fields=["project"], name="schedule_of_project"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(interval=Interval.DAILY, weekday=None, month_day=None)
                | Q(interval=Interval.WEEKLY, weekday__isnull=False, weekday__lte=6, month_day=None)
                | Q(interval=Interval.MONTHLY, weekday=None, month_day__isnull=False, month_day__range=(1, 31)),
                name="schedule_interval",
                violation_error_message=_(
                    "A weekly schedule has a weekday, a monthly one a day of the month, a daily one neither."
                ),
            ),
            models.CheckConstraint(
                condition=Q(retention_count__gte=1),
                name="schedule_retention_count",
                violation_error_message=_("Keep at least one backup."),
            ),
            models.CheckConstraint(
                condition=Q(paused_at=None, deleted_at=None, next_run_at__isnull=False)
                | Q(Q(paused_at__isnull=False) | Q(deleted_at__isnull=False), next_run_at=None),
                name="schedule_next_run",
                violation_error_message=_("A schedule runs next unless it is paused or deleted."),
            ),
            models.UniqueConstraint(
                fields=["vm"],
                condition=Q(origin="automatic", deleted_at=None),
                name="schedule_one_automatic",
                violation_error_message=_("The instance has automatic backups already."),
            ),
            models.CheckConstraint(
                condition=HAS_ONE_SOURCE,
                name="schedule_source",
                violation_error_message=_("A schedule has an instance or a volume."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source} · {self.get_interval_display()}"

    @property
    def source(self) -> VirtualMachine | Volume:
        source = self.vm or self.volume
        assert source is not None  # held by the constraint schedule_source
        return source

    @property
    def kind(self) -> Kind:
        """The kind of its snapshots."""
        return Kind.BACKUP if self.vm_id else Kind.VOLUME

    @property
    def home(self) -> Project:
        """The project of its snapshots."""
        return self.project or self.source.project

    @property
    def location(self) -> Location:
        return self.source.location

    @property
    def customer(self) -> Customer:
        return self.source.project.customer

    @property
    def zone(self) -> ZoneInfo:
        return self.customer.zone

    @property
    def recurrence(self) -> Recurrence:
        return Recurrence(interval=self.interval, at=self.at, weekday=self.weekday, month_day=self.month_day)

    @property
    def when(self) -> str:
        """`Every Monday at 02:00`, on the customer's clock and in the reader's language."""
        values = {"at": f"{self.at:%H:%M}", "weekday": self.get_weekday_display(), "day": self.month_day}
        if self.interval == Interval.DAILY:
            return gettext("Every day at %(at)s") % values
        if self.interval == Interval.WEEKLY:
            return gettext("Every %(weekday)s at %(at)s") % values
        if (self.month_day or 0) > SHORTEST_MONTH:
            return gettext("On day %(day)s of every month, or its last, at %(at)s") % values
        return gettext("On day %(day)s of every month at %(at)s") % values

    @property
    def is_automatic(self) -> bool:
        return self.origin == self.Origin.AUTOMATIC

    def next_run_number(self) -> int:
        """Return the number of its next run. The caller must hold the customer's lock."""
        last: int | None = self.runs.aggregate(last=Max("number"))["last"]
        return (last or 0) + 1


class BackupRunQuerySet(models.QuerySet["BackupRun"]):
    def visible_to(self, user: User) -> Self:
        ids = list(user.roles)
        return self.filter(Q(schedule__project__in=ids) | Q(schedule__project=None, schedule__vm__project__in=ids))

    def of_source(self, source: VirtualMachine | Volume) -> Self:
        return self.filter(**source_fields(source))

    def unfinished(self) -> Self:
        return self.filter(state__in=UNFINISHED)


class BackupRun(models.Model):
    """One occurrence of a schedule and its outcome. *Run now* makes a run too, scheduled at the time of the request.

    `number` orders the runs of a schedule: 1, 2, 3 … in the order in which they were started. It is assigned under the
    customer's lock. Clocks can jump and differ between machines, so nothing is ordered by `scheduled_at` or `created_at`. A
    run that a user retries gets a new number, because its backup is then the newest one.

    `tries` includes the first one; a waiting run is tried again at `next_try_at`. `reason` is why the last try failed, or
    why nothing was tried. A run is done when its backup is Ready and verified.
    """

    class State(models.TextChoices):
        WAITING = "waiting", _("Waiting to be tried again")
        TAKING = "taking", _("Taking")
        DONE = "done", _("Done")
        FAILED = "failed", _("Failed")
        MISSED = "missed", _("Missed")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    schedule = models.ForeignKey(
        BackupSchedule, verbose_name=_("schedule"), on_delete=models.PROTECT, related_name="runs", db_index=False
    )
    vm = models.ForeignKey(
        VirtualMachine,
        verbose_name=_("virtual machine"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="backup_runs",
    )
    volume = models.ForeignKey(
        Volume,
        verbose_name=_("volume"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="runs",
        db_index=False,
    )
    number = models.PositiveIntegerField(_("number"))
    scheduled_at = models.DateTimeField(_("scheduled"))
    state = models.CharField(_("state"), max_length=7, choices=State.choices)
    snapshot = models.OneToOneField(
        Snapshot, verbose_name=_("backup"), on_delete=models.PROTECT, null=True, blank=True, related_name="run"
    )
    tries = models.PositiveSmallIntegerField(_("tries"), default=0)
    next_try_at = models.DateTimeField(_("next try"), null=True, blank=True)
    reason = models.TextField(_("reason"), blank=True)
    requested_by = models.ForeignKey(
        User, verbose_name=_("requested by"), on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(_("recorded"), default=timezone.now, editable=False)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    objects = BackupRunQuerySet.as_manager()

    class Meta:
        verbose_name = _("backup run")
        verbose_name_plural = _("backup runs")
        ordering = ["-scheduled_at", "-id"]
        indexes = [
            models.Index(fields=["state", "next_try_at"], condition=Q(finished_at=None), name="run_unfinished"),
            # Of volumes only: most runs are of machines.
            models.Index(fields=["volume"], condition=Q(volume__isnull=False), name="run_of_volume"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["schedule", "scheduled_at"], name="run_once_per_occurrence"),
            # Its index also serves the runs of a schedule, newest first.
            models.UniqueConstraint(fields=["schedule", "number"], name="run_number"),
            models.UniqueConstraint(
                fields=["vm"],
                condition=Q(state__in=["waiting", "taking"]),
                name="run_one_unfinished_per_vm",
                violation_error_message=_("A backup of this instance is already running."),
            ),
            models.UniqueConstraint(
                fields=["volume"],
                condition=Q(state__in=["waiting", "taking"]),
                name="run_one_unfinished_per_volume",
                violation_error_message=_("A scheduled snapshot of this volume is already running."),
            ),
            models.CheckConstraint(
                condition=HAS_ONE_SOURCE,
                name="run_source",
                violation_error_message=_("A run has an instance or a volume."),
            ),
            models.CheckConstraint(
                condition=Q(state="waiting", finished_at=None, next_try_at__isnull=False)
                | Q(state="taking", finished_at=None, next_try_at=None, snapshot__isnull=False)
                | Q(state="done", finished_at__isnull=False, next_try_at=None, snapshot__isnull=False)
                | Q(state__in=["failed", "missed"], finished_at__isnull=False, next_try_at=None),
                name="run_state",
                violation_error_message=_("The state doesn't match the times of this run."),
            ),
            models.CheckConstraint(
                condition=~Q(state__in=["failed", "missed"]) | ~Q(reason=""),
                name="run_reason",
                violation_error_message=_("A failed or missed run needs a reason."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source} · {self.scheduled_at:%Y-%m-%d %H:%M} UTC"

    @property
    def source(self) -> VirtualMachine | Volume:
        source = self.vm or self.volume
        assert source is not None  # held by the constraint run_source
        return source

    @property
    def shown_state(self) -> tuple[str, str]:
        """Return (value, label) of the one state to display: the run's, or what has become of its backup since."""
        if self.snapshot and self.state == self.State.TAKING and self.snapshot.state == State.READY:
            return self.state, gettext("Verifying")
        if self.snapshot and self.state == self.State.DONE:
            return self.snapshot.shown_state, self.snapshot.shown_state_label
        return self.state, str(self.State(self.state).label)

    @property
    def is_unfinished(self) -> bool:
        return self.state in UNFINISHED


def source_fields(source: VirtualMachine | Volume) -> dict[str, VirtualMachine | Volume]:
    """Return the field of a schedule or run that holds the source."""
    return {"vm" if isinstance(source, VirtualMachine) else "volume": source}


UNFINISHED = (BackupRun.State.WAITING, BackupRun.State.TAKING)
