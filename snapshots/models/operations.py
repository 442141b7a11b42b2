"""Operations: the work that the storage has to do. operations.py has their life cycle, handlers.py the work itself."""

import uuid
from datetime import datetime
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer, User
from cng_portal.activity.registry import ACTIONS
from cng_portal.inventory.models import VirtualMachine, Volume

from .snapshots import DiskImage, Snapshot, State

# The customer of an operation, for queries: its snapshot's, or its volume's if it has no snapshot.
CUSTOMER = Coalesce("snapshot__customer", "volume__project__customer")


class OperationQuerySet(models.QuerySet["Operation"]):
    def visible_to(self, user: User) -> Self:
        roles = list(user.roles)
        return self.filter(
            Q(snapshot__customer_id__in=user.customer_ids, snapshot__project_id__in=roles)
            | Q(snapshot=None, volume__project_id__in=roles)
        )

    def of_customer(self, customer_id: uuid.UUID) -> Self:
        return self.filter(Q(snapshot__customer=customer_id) | Q(snapshot=None, volume__project__customer=customer_id))

    def active(self) -> Self:
        return self.filter(finished_at=None)

    def background(self) -> Self:
        return self.filter(Operation.BACKGROUND)

    def foreground(self) -> Self:
        """Exclude operations that no user waits for."""
        return self.exclude(kind__in=Operation.MAINTENANCE)


class Operation(models.Model):
    """Work for the storage. This row is the source of truth; a task in the queue only starts a worker.

    Every claim increments `attempt`, and every write of a worker names its attempt, which fences off earlier workers.
    `interruptions` are attempts that don't count towards settings.OPERATION_MAX_ATTEMPTS, such as a worker's restart or a
    disk that was busy.
    """

    # Of the lowest priority: never before what users wait for.
    MAINTENANCE = ("scrub", "catalogue", "drill")
    # Started by the portal itself. Customers' work goes first.
    BACKGROUND = Q(kind="verify", requested_by=None) | Q(kind__in=MAINTENANCE)
    # These only read their snapshot. It can be deleted while they run.
    READING = ("verify", *MAINTENANCE)

    class Kind(models.TextChoices):
        CAPTURE = "capture", _("Take Snapshot")
        RESTORE = "restore", _("Restore")
        NEW_VOLUME = "new_volume", _("New volume")
        VERIFY = "verify", _("Verify")
        SCRUB = "scrub", _("Scheduled verification")
        CATALOGUE = "catalogue", _("List files")
        DRILL = "drill", _("Restore drill")
        DELETE = "delete", _("Delete")
        CLEAN_UP = "clean_up", _("Clean up")
        CREATE_VOLUME = "create_volume", _("Create Volume")
        EXTEND_VOLUME = "extend_volume", _("Grow volume")
        DELETE_VOLUME = "delete_volume", _("Delete volume")

    class State(models.TextChoices):
        PENDING = "pending", _("Waiting")
        RUNNING = "running", _("Running")
        SUCCEEDED = "succeeded", _("Done")
        FAILED = "failed", _("Failed")
        CANCELLED = "cancelled", _("Cancelled")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=16, choices=Kind.choices)
    snapshot = models.ForeignKey(
        Snapshot,
        verbose_name=_("snapshot"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="operations",
        help_text=_("None for an operation on a volume alone."),
    )
    volume = models.ForeignKey(
        Volume,
        verbose_name=_("volume"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="operations",
        help_text=_("The volume that is restored, created, grown or deleted, or removed after a cancellation."),
    )
    vm = models.ForeignKey(
        VirtualMachine,
        verbose_name=_("virtual machine"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="operations",
        help_text=_("The instance whose disks are restored."),
    )
    disk = models.ForeignKey(
        DiskImage,
        verbose_name=_("disk image"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text=_("The disk that a new volume is created from."),
    )
    safety_snapshot = models.ForeignKey(
        Snapshot,
        verbose_name=_("safety snapshot"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="protects",
        help_text=_("Taken by a restore before it overwrites anything."),
    )
    new_size_gb = models.PositiveIntegerField(
        _("new size, GB"), null=True, blank=True, help_text=_("The size that the volume grows to.")
    )
    state = models.CharField(_("state"), max_length=9, choices=State.choices, default=State.PENDING)
    attempt = models.PositiveIntegerField(_("attempt"), default=0)
    interruptions = models.PositiveIntegerField(_("interruptions"), default=0)
    lease_until = models.DateTimeField(_("lease until"), null=True, blank=True)
    not_before = models.DateTimeField(_("not before"), default=timezone.now)
    bytes_done = models.BigIntegerField(_("bytes done"), default=0)
    bytes_total = models.BigIntegerField(_("total bytes"), default=0)
    unchecked = models.BooleanField(
        _("unchecked"),
        default=False,
        db_default=False,
        help_text=_("The snapshot is used without being verified first."),
    )
    error = models.TextField(_("reason"), blank=True)
    # storage/contract.py has advice for the operator by cause.
    cause = models.CharField(_("cause"), max_length=20, blank=True, default="", db_default="", editable=False)
    requested_by = models.ForeignKey(
        User, verbose_name=_("requested by"), on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Of the HTTP request, so that logs can be correlated. `db_default` serves the previous version during an upgrade.
    request_id = models.CharField(_("request"), max_length=36, blank=True, default="", db_default="", editable=False)
    created_at = models.DateTimeField(_("requested"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    objects = OperationQuerySet.as_manager()

    now_override: datetime | None = None  # Replaces the clock, for a worker that runs at a given time.

    class Meta:
        verbose_name = _("operation")
        verbose_name_plural = _("operations")
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["not_before"], condition=Q(finished_at=None), name="operation_active"),
            models.Index(fields=["finished_at"], condition=Q(state="failed"), name="operation_failed"),
            models.Index(fields=["snapshot", "-created_at"], name="operation_of_snapshot"),
            # The admin's list, and rate limits.
            models.Index(fields=["-created_at", "-id"], name="operation_newest"),
            # Covers the counts of recent outcomes.
            models.Index(fields=["finished_at", "kind", "state"], name="operation_ended"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["snapshot", "kind"],
                condition=Q(
                    finished_at=None, volume=None, kind__in=["capture", "verify", "scrub", "delete", "clean_up"]
                ),
                name="operation_once_per_snapshot",
            ),
            models.UniqueConstraint(
                fields=["snapshot"],
                condition=Q(finished_at=None, kind="catalogue"),
                name="operation_one_catalogue",
            ),
            models.UniqueConstraint(
                fields=["volume"], condition=Q(finished_at=None), name="operation_one_writer_per_volume"
            ),
            models.UniqueConstraint(fields=["vm"], condition=Q(finished_at=None), name="operation_one_writer_per_vm"),
            models.CheckConstraint(
                condition=Q(state__in=["pending", "running"], finished_at=None)
                | Q(state__in=["succeeded", "failed", "cancelled"], finished_at__isnull=False),
                name="operation_finished",
            ),
            models.CheckConstraint(
                condition=~Q(state="running") | Q(lease_until__isnull=False, started_at__isnull=False),
                name="operation_lease",
            ),
            models.CheckConstraint(
                condition=Q(unchecked=False) | Q(kind__in=["restore", "new_volume"]), name="operation_unchecked"
            ),
            models.CheckConstraint(
                condition=Q(
                    Q(kind="restore", volume__isnull=False, vm=None, disk=None)
                    | Q(kind="restore", volume=None, vm__isnull=False, disk=None)
                    | Q(kind="new_volume", volume__isnull=False, vm=None, disk__isnull=False, safety_snapshot=None)
                    | Q(
                        kind__in=["capture", "verify", "scrub", "catalogue", "drill", "delete", "clean_up"],
                        volume=None,
                        vm=None,
                        disk=None,
                        safety_snapshot=None,
                    ),
                    snapshot__isnull=False,
                    new_size_gb=None,
                )
                | Q(
                    Q(kind="clean_up", new_size_gb=None)  # With the snapshot that the volume was created from, if any.
                    | Q(kind__in=["create_volume", "delete_volume"], snapshot=None, new_size_gb=None)
                    | Q(kind="extend_volume", snapshot=None, new_size_gb__isnull=False),
                    volume__isnull=False,
                    vm=None,
                    disk=None,
                    safety_snapshot=None,
                ),
                name="operation_target",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} · {self.snapshot_id or self.volume_id}"

    @property
    def subject(self) -> Snapshot | Volume:
        """Return its snapshot, else its volume: the row that has its project, customer and location."""
        subject = self.snapshot or self.volume
        assert subject is not None  # held by the constraint operation_target
        return subject

    @property
    def customer_id(self) -> uuid.UUID:
        return self.subject.customer_id

    @property
    def customer(self) -> Customer:
        return self.snapshot.customer if self.snapshot else self.subject.project.customer

    @property
    def is_active(self) -> bool:
        return self.finished_at is None

    @property
    def outcome(self) -> str:
        """Return how it ended, such as “Snapshot ready”, in the words of the activity log, which has no entry for scrubs."""
        prefix = "ready" if self.state == self.State.SUCCEEDED else "failed"
        return str(ACTIONS.get(f"{prefix}.{self.kind}", self.get_kind_display()))

    @property
    def failures(self) -> int:
        """Return the number of failed attempts before this one."""
        return max(0, self.attempt - 1 - self.interruptions)

    @property
    def may_fail_for_good(self) -> bool:
        """Return False for clean-ups, which are retried until the storage has nothing left."""
        return self.kind != self.Kind.CLEAN_UP

    @property
    def is_last_attempt(self) -> bool:
        return self.may_fail_for_good and self.failures + 1 >= settings.OPERATION_MAX_ATTEMPTS

    @property
    def can_be_cancelled(self) -> bool:
        """Return whether a user can cancel it. A restore only until it overwrites something; *Undo* helps afterwards."""
        if not self.is_active:
            return False
        if self.kind == self.Kind.RESTORE:
            safety = self.safety_snapshot
            return self.state == self.State.PENDING or (
                safety is not None and safety.state in (State.PENDING, State.CREATING)
            )
        if self.kind == self.Kind.EXTEND_VOLUME:  # Once a worker has begun, the storage may have grown it.
            return self.attempt == 0
        return self.kind in (self.Kind.CAPTURE, self.Kind.NEW_VOLUME, self.Kind.CREATE_VOLUME, self.Kind.DRILL) or (
            self.kind == self.Kind.VERIFY and self.requested_by_id is not None
        )

    @property
    def can_be_undone(self) -> bool:
        """Return whether it is a restore that overwrote something and whose safety snapshot still exists."""
        safety = self.safety_snapshot
        ended_early = self.state in (self.State.FAILED, self.State.CANCELLED) and self.vm_id is not None
        wrote = self.state == self.State.SUCCEEDED or ended_early
        return wrote and safety is not None and safety.state == State.READY
