"""Running processes, leases, and the health of each location's storage."""

import uuid

from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.inventory.models import Location


class Process(models.Model):
    """A running worker or scheduler. A clean stop deletes the row; a crash leaves it without heartbeats."""

    class Kind(models.TextChoices):
        WORKER = "worker", _("Worker")
        SCHEDULER = "scheduler", _("Scheduler")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=9, choices=Kind.choices)
    host = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process ID"))
    started_at = models.DateTimeField(_("started"), default=timezone.now)
    heartbeat_at = models.DateTimeField(_("last heartbeat"), default=timezone.now)

    class Meta:
        verbose_name = _("process")
        verbose_name_plural = _("processes")
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=["worker", "scheduler"]), name="monitoring_process_kind")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} · {self.host} · {self.pid}"


class Lease(models.Model):
    """The process that may act under a name, and until when: see leases.acquire_lease."""

    name = models.CharField(_("name"), max_length=32, primary_key=True)
    holder = models.CharField(_("holder"), max_length=36, blank=True)
    expires_at = models.DateTimeField(_("expires"))

    class Meta:
        verbose_name = _("lease")
        verbose_name_plural = _("leases")

    def __str__(self) -> str:
        return self.name


class StorageCheckQuerySet(models.QuerySet["StorageCheck"]):
    def record_error(self, location_code: str) -> None:
        """Count an error of the location's storage, whether or not it has been checked yet."""
        self.bulk_create([self.model(location_id=location_code)], ignore_conflicts=True)
        self.filter(pk=location_code).update(error_count=F("error_count") + 1)


class StorageCheck(models.Model):
    """The latest health check of a location's storage. Pages and metrics read this row and never call the storage."""

    location = models.OneToOneField(
        Location, verbose_name=_("location"), on_delete=models.CASCADE, primary_key=True, related_name="storage_check"
    )
    checked_at = models.DateTimeField(_("checked"), null=True)
    error = models.TextField(_("error"), blank=True, help_text=_("Empty when the check passed."))
    free_bytes = models.BigIntegerField(_("free bytes"), null=True)
    counted_at = models.DateTimeField(_("counted"), null=True)
    snapshot_count = models.PositiveIntegerField(_("snapshots"), default=0)
    snapshot_bytes = models.BigIntegerField(_("used by snapshots"), default=0)
    damaged_count = models.PositiveIntegerField(_("damaged snapshots"), default=0)
    oldest_read_at = models.DateTimeField(
        _("oldest read"),
        null=True,
        help_text=_("When the snapshot that has gone longest without being read was last read."),
    )
    error_count = models.PositiveBigIntegerField(
        _("errors"), default=0, help_text=_("Checks and operations that failed because of the storage.")
    )

    objects = StorageCheckQuerySet.as_manager()

    class Meta:
        verbose_name = _("storage check")
        verbose_name_plural = _("storage checks")

    def __str__(self) -> str:
        return self.location_id
