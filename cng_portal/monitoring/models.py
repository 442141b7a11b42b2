"""What the portal knows of its own running: its processes, who leads them, and how the storage answered last."""

import uuid

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.inventory.models import Location


class Process(models.Model):
    """A worker or a scheduler that runs. One that stops removes its row; one that dies leaves it and falls silent."""

    class Kind(models.TextChoices):
        WORKER = "worker", _("Worker")
        SCHEDULER = "scheduler", _("Scheduler")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=9, choices=Kind.choices)
    host = models.CharField(_("machine"), max_length=255)
    pid = models.PositiveIntegerField(_("process id"))
    started_at = models.DateTimeField(_("started"), default=timezone.now)
    seen_at = models.DateTimeField(_("last sign of life"), default=timezone.now)

    class Meta:
        verbose_name = _("process")
        verbose_name_plural = _("processes")
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=["worker", "scheduler"]), name="monitoring_process_kind")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} · {self.host} · {self.pid}"


class Lease(models.Model):
    """Who does alone what many could do, and until when: see services.hold_lease."""

    name = models.CharField(_("name"), max_length=32, primary_key=True)
    holder = models.CharField(_("holder"), max_length=36, blank=True)
    until = models.DateTimeField(_("until"))

    class Meta:
        verbose_name = _("lease")
        verbose_name_plural = _("leases")

    def __str__(self) -> str:
        return self.name


class StorageCheck(models.Model):
    """How the storage of a location answered when it was asked last. Pages and metrics read this and ask nobody."""

    location = models.OneToOneField(
        Location, verbose_name=_("location"), on_delete=models.CASCADE, primary_key=True, related_name="storage_check"
    )
    checked_at = models.DateTimeField(_("asked"), null=True)
    reason = models.TextField(_("reason"), blank=True, help_text=_("Empty when it answered."))
    free_bytes = models.BigIntegerField(_("free"), null=True)
    counted_at = models.DateTimeField(_("counted"), null=True)
    snapshot_count = models.PositiveIntegerField(_("snapshots"), default=0)
    snapshot_bytes = models.BigIntegerField(_("used by snapshots"), default=0)
    damaged_count = models.PositiveIntegerField(_("damaged snapshots"), default=0)
    oldest_read_at = models.DateTimeField(
        _("oldest read"), null=True, help_text=_("When the snapshot that was read longest ago was read.")
    )
    errors = models.PositiveBigIntegerField(
        _("errors"), default=0, help_text=_("How often a check or an operation failed here because of the storage.")
    )

    class Meta:
        verbose_name = _("storage check")
        verbose_name_plural = _("storage checks")

    def __str__(self) -> str:
        return self.location_id
