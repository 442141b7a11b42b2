"""Locks: until an instant nobody deletes the snapshot. What can be done with them is in locks.py of the app.

The triggers of migration 0016 hold every rule of a lock by the database's clock, so querysets ask it too.
"""

import uuid
from typing import Self

from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import User

from .snapshots import Snapshot

MAX_REASON_LENGTH = 500


class LockMode(models.TextChoices):
    GOVERNANCE = "governance", _("Governance")
    COMPLIANCE = "compliance", _("Compliance")


class SnapshotLockQuerySet(models.QuerySet["SnapshotLock"]):
    def active(self) -> Self:
        """Filter for the locks that hold now, by the database's clock."""
        return self.filter(lifted_at=None, until__gt=Now())


class SnapshotLock(models.Model):
    """Nobody deletes the snapshot before `until`, which only moves ahead.

    An owner or an administrator can lift a Governance lock, and a Compliance lock until `final_at`. Rows are never deleted:
    they are the record of who locked what, and who lifted it and why.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    snapshot = models.ForeignKey(
        Snapshot, verbose_name=_("snapshot"), on_delete=models.PROTECT, related_name="locks", editable=False
    )
    mode = models.CharField(_("mode"), max_length=10, choices=LockMode.choices, editable=False)
    until = models.DateTimeField(_("locked until"), editable=False)
    final_at = models.DateTimeField(
        _("can be lifted until"), null=True, editable=False, help_text=_("The end of the cooling-off, for Compliance.")
    )
    locked_at = models.DateTimeField(_("locked"), default=timezone.now, editable=False)
    locked_by = models.ForeignKey(
        User,
        verbose_name=_("locked by"),
        on_delete=models.SET_NULL,
        null=True,
        related_name="+",
        editable=False,
        help_text=_("Empty: a schedule."),
    )
    lifted_at = models.DateTimeField(_("lifted"), null=True, editable=False)
    lifted_by = models.ForeignKey(
        User, verbose_name=_("lifted by"), on_delete=models.SET_NULL, null=True, related_name="+", editable=False
    )
    reason = models.CharField(_("reason for lifting it"), max_length=MAX_REASON_LENGTH, blank=True, editable=False)

    objects = SnapshotLockQuerySet.as_manager()

    class Meta:
        verbose_name = _("lock")
        verbose_name_plural = _("locks")
        ordering = ["-locked_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(mode=LockMode.GOVERNANCE, final_at=None)
                | Q(mode=LockMode.COMPLIANCE, final_at__isnull=False),
                name="lock_final_at",
                violation_error_message=_("Only a Compliance lock has a cooling-off."),
            ),
            models.CheckConstraint(
                condition=Q(lifted_at=None, reason="") | (Q(lifted_at__isnull=False) & ~Q(reason="")),
                name="lock_lifted",
                violation_error_message=_("Lifting a lock needs a reason."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.snapshot} · {self.get_mode_display()}"

    @property
    def is_compliance(self) -> bool:
        return self.mode == LockMode.COMPLIANCE


def locked(path: str = "pk") -> Exists:
    """Condition for snapshots that are locked. `path` leads to the snapshot's ID."""
    return Exists(SnapshotLock.objects.active().filter(snapshot=OuterRef(path)))
