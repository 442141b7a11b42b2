"""Restore drills: what was restored to a temporary volume, when, and what each check of it found."""

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Self

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import User
from cng_portal.inventory.models import VirtualMachine, Volume

from ..storage.contract import VolumeRef
from .operations import Operation
from .schedules import BackupSchedule
from .snapshots import DiskImage, Snapshot


class DrillQuerySet(models.QuerySet["Drill"]):
    def visible_to(self, user: User) -> Self:
        return self.filter(snapshot__customer_id__in=user.customer_ids, snapshot__project_id__in=list(user.roles))

    def ended(self) -> Self:
        return self.exclude(result="")

    def proven(self) -> Self:
        """Filter for the proof that a snapshot could be restored: the one definition of it."""
        return self.filter(result=Drill.Result.PROVEN)


class Drill(models.Model):
    """A restore drill of one snapshot. What it found never changes afterwards, which triggers hold.

    `started_at` is the start of the attempt that ended it, `restored_bytes` the size of the disks that it restored.
    """

    class Result(models.TextChoices):
        PROVEN = "proven", _("Proven restorable")
        FAILED = "failed", _("Failed")
        UNFINISHED = "unfinished", _("Not finished")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    snapshot = models.ForeignKey(
        Snapshot, verbose_name=_("snapshot"), on_delete=models.PROTECT, related_name="drills", db_index=False
    )
    operation = models.OneToOneField(Operation, on_delete=models.SET_NULL, null=True, blank=True, related_name="drill")
    requested_by = models.ForeignKey(
        User, verbose_name=_("requested by"), on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(_("requested"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started"), null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True, editable=False)
    result = models.CharField(_("result"), max_length=10, choices=Result.choices, blank=True, editable=False)
    reason = models.TextField(_("reason"), blank=True, editable=False, help_text=_("Why it didn't finish."))
    restored_bytes = models.BigIntegerField(_("bytes restored"), default=0, editable=False)

    objects = DrillQuerySet.as_manager()

    class Meta:
        verbose_name = _("restore drill")
        verbose_name_plural = _("restore drills")
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["snapshot", "-created_at"], name="drill_of_snapshot"),
            models.Index(fields=["-created_at", "-id"], name="drill_newest"),
            models.Index(fields=["finished_at"], name="drill_ended"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["snapshot"], condition=Q(finished_at=None), name="drill_one_at_a_time"),
            models.CheckConstraint(
                condition=Q(result="", finished_at=None)
                | Q(result__in=["proven", "failed"], finished_at__isnull=False, started_at__isnull=False)
                | Q(Q(result="unfinished", finished_at__isnull=False) & ~Q(reason="")),
                name="drill_result",
            ),
            models.CheckConstraint(condition=Q(restored_bytes__gte=0), name="drill_bytes"),
        ]

    def __str__(self) -> str:
        return f"{self.get_result_display() or _('Restore drill')} · {self.snapshot_id}"

    @property
    def is_active(self) -> bool:
        return self.finished_at is None

    @property
    def seconds(self) -> float | None:
        """Return how long the attempt took that ended it."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(timedelta(), self.finished_at - self.started_at).total_seconds()


class DrilledDisk(models.Model):
    """A disk of a drill. Its ID is that of the temporary volume in storage, which no user sees.

    `removed_at` is when that volume was removed, empty while storage may have it.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    drill = models.ForeignKey(Drill, on_delete=models.CASCADE, related_name="disks")
    disk = models.ForeignKey(DiskImage, on_delete=models.PROTECT, related_name="drilled")
    removed_at = models.DateTimeField(_("temporary volume removed"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("disk of a drill")
        verbose_name_plural = _("disks of a drill")
        ordering = ["disk__position"]
        indexes = [models.Index(fields=["drill"], condition=Q(removed_at=None), name="drilled_disk_to_remove")]
        constraints = [models.UniqueConstraint(fields=["drill", "disk"], name="drilled_disk_once")]

    def __str__(self) -> str:
        return self.disk.volume_name

    @property
    def volume_ref(self) -> VolumeRef:
        """Return what the storage driver needs to create and find the temporary volume."""
        return VolumeRef(
            uuid=self.pk,
            name=self.disk.volume_name,
            size_gb=self.disk.size_gb,
            backend_project=self.disk.volume.backend_project,
        )


class DrillCheck(models.Model):
    """What one check of a restored disk, or of one of its partitions, found."""

    class Kind(models.TextChoices):
        RESTORE = "restore", _("Restore")
        CHECKSUM = "checksum", _("Checksum")
        FILES = "files", _("Files")
        FILE_SYSTEM = "file_system", _("File system")

    class Outcome(models.TextChoices):
        PASSED = "passed", _("Passed")
        FAILED = "failed", _("Failed")
        SKIPPED = "skipped", _("Not checked")

    drilled = models.ForeignKey(DrilledDisk, on_delete=models.CASCADE, related_name="checks")
    position = models.PositiveSmallIntegerField(_("position"))
    kind = models.CharField(_("check"), max_length=11, choices=Kind.choices)
    part = models.CharField(_("partition"), max_length=100, blank=True)
    outcome = models.CharField(_("outcome"), max_length=7, choices=Outcome.choices)
    detail = models.TextField(_("detail"))

    class Meta:
        verbose_name = _("check of a drill")
        verbose_name_plural = _("checks of a drill")
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["drilled", "position"], name="drill_check_position"),
            models.CheckConstraint(condition=~Q(detail=""), name="drill_check_detail"),
            models.CheckConstraint(
                condition=Q(outcome__in=["passed", "failed", "skipped"])
                & Q(kind__in=["restore", "checksum", "files", "file_system"]),
                name="drill_check_choices",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.get_outcome_display()}"


class DrillPlan(models.Model):
    """When a volume, a machine or a schedule is drilled. Without one it isn't, which is the default.

    The newest usable snapshot is drilled, or a random one of the last `random_days` days. Snapshots that were moved to
    another project are left out.
    """

    class Interval(models.TextChoices):
        WEEKLY = "weekly", _("Every week")
        MONTHLY = "monthly", _("Every month")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    volume = models.OneToOneField(
        Volume, on_delete=models.CASCADE, null=True, blank=True, related_name="drill_plan", verbose_name=_("volume")
    )
    vm = models.OneToOneField(
        VirtualMachine,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="drill_plan",
        verbose_name=_("virtual machine"),
    )
    schedule = models.OneToOneField(
        BackupSchedule,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="drill_plan",
        verbose_name=_("schedule"),
    )
    interval = models.CharField(_("interval"), max_length=7, choices=Interval.choices)
    random_days = models.PositiveSmallIntegerField(
        _("days"), null=True, blank=True, help_text=_("Empty: the newest snapshot is drilled.")
    )
    next_at = models.DateTimeField(_("next drill"))

    class Meta:
        verbose_name = _("plan of restore drills")
        verbose_name_plural = _("plans of restore drills")
        indexes = [models.Index(fields=["next_at"], name="drill_plan_due")]
        constraints = [
            models.CheckConstraint(
                condition=Q(volume__isnull=False, vm=None, schedule=None)
                | Q(volume=None, vm__isnull=False, schedule=None)
                | Q(volume=None, vm=None, schedule__isnull=False),
                name="drill_plan_target",
            ),
            models.CheckConstraint(condition=Q(interval__in=["weekly", "monthly"]), name="drill_plan_interval"),
            models.CheckConstraint(
                condition=Q(random_days=None) | Q(random_days__gte=1, random_days__lte=365), name="drill_plan_days"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_interval_display()} · {self.target}"

    @property
    def target(self) -> Volume | VirtualMachine | BackupSchedule:
        target = self.volume or self.vm or self.schedule
        assert target is not None  # held by the constraint drill_plan_target
        return target


def create_drill(snapshot: Snapshot, operation: Operation, *, user: User | None, at: datetime) -> Drill:
    drill = Drill.objects.create(snapshot=snapshot, operation=operation, requested_by=user, created_at=at)
    disks: Iterable[DiskImage] = snapshot.disks.all()
    DrilledDisk.objects.bulk_create([DrilledDisk(drill=drill, disk=disk) for disk in disks])
    return drill
