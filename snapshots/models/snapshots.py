"""Recovery points, the disk images they consist of, and the work that storage has to do for them.

One `Snapshot` row is one recovery point with one or more `DiskImage` rows; volume snapshots, VM snapshots and VM
backups differ in their kind, not in their tables. What storage has to do is an `Operation`, which is carried out by
the worker: see operations.py for its life and tasks.py for the work itself.
"""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, Min, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.models import ServiceKind
from cng_portal.accounts.models import Customer, Project, User
from cng_portal.common.names import MAX_NAME_KEY_LENGTH, MAX_NAME_LENGTH, NameField
from cng_portal.inventory.models import Interval, Location, OwnedQuerySet, VirtualMachine, Volume, Weekday

from ..storage.contract import Consistency


class Kind(models.TextChoices):
    VOLUME = "volume", _("Volume snapshot")
    VM = "vm", _("VM snapshot")
    BACKUP = "backup", _("VM backup")


SERVICE_KINDS = {
    Kind.VOLUME: ServiceKind.BS_SNAPSHOT,
    Kind.VM: ServiceKind.VM_SNAPSHOT,
    Kind.BACKUP: ServiceKind.VM_BACKUP,
}


class State(models.TextChoices):
    PENDING = "pending", _("Waiting")
    CREATING = "creating", _("Creating")
    READY = "ready", _("Ready")
    FAILED = "failed", _("Failed")
    DELETING = "deleting", _("Deleting")
    DELETED = "deleted", _("Deleted")


# Every possible change; anything else is refused by SnapshotQuerySet.transition.
TRANSITIONS: dict[str, set[str]] = {
    State.PENDING: {State.CREATING, State.FAILED, State.DELETED},  # Deleted at once: cancelled
    State.CREATING: {State.READY, State.FAILED, State.DELETED},
    State.READY: {State.DELETING, State.DELETED},  # at once when it was made and deleted outside the portal
    State.FAILED: {State.PENDING, State.DELETING},
    State.DELETING: {State.DELETED},
    State.DELETED: set(),
}


class DeletionCause(models.TextChoices):
    """Why a snapshot was deleted. USER and CANCELLED stand for a person's decision; everything else is automatic."""

    USER = "user", _("Deleted by a user")
    CANCELLED = "cancelled", _("Cancelled while it was being taken")
    RETENTION = "retention", _("Deleted by the schedule's retention")
    DAMAGED = "damaged", _("Deleted because it was damaged")
    FAILED = "failed", _("Deleted because taking it failed")
    OUTSIDE = "outside", _("Deleted in the cloud")


TRANSIENT_STATES = (State.PENDING, State.CREATING, State.DELETING)
# What takes up quota; a failed one holds no storage, and the deletion of a deleting one is accepted.
COUNTED_STATES = (State.PENDING, State.CREATING, State.READY)


class Draft(models.Model):
    """The answers given so far on the way through the wizard. Whoever may see its customer's things may go on with
    it.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=8, choices=Kind.choices, default=Kind.VOLUME)
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="+")
    created_by = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    location = models.ForeignKey(Location, on_delete=models.SET_NULL, null=True, related_name="+")
    project = models.ForeignKey(Project, on_delete=models.SET_NULL, null=True, related_name="+")
    volume = models.ForeignKey(Volume, on_delete=models.SET_NULL, null=True, related_name="+")
    vm = models.ForeignKey(VirtualMachine, on_delete=models.SET_NULL, null=True, related_name="+")
    name = NameField(blank=True)
    # the answers of a backup's schedule step, named as in BackupSchedule; without an interval it is not answered yet
    interval = models.CharField(max_length=7, choices=Interval.choices, blank=True)
    weekday = models.PositiveSmallIntegerField(choices=Weekday.choices, null=True, blank=True)
    month_day = models.PositiveSmallIntegerField(null=True, blank=True)
    at = models.TimeField(null=True, blank=True)
    retention_count = models.PositiveSmallIntegerField(default=2)
    take_one_now = models.BooleanField(default=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    def __str__(self) -> str:
        return str(self.id)

    @property
    def source(self) -> Volume | VirtualMachine | None:
        return self.volume or self.vm


def usable(path: str = "") -> Q:
    """Ready, and neither damaged nor deleted outside the portal. `path` leads to the snapshot, such as `snapshot__`."""
    return Q(**{f"{path}state": State.READY, f"{path}missing_since": None, f"{path}damaged_at": None})


class SnapshotQuerySet(OwnedQuerySet):
    def visible_to(self, user: User) -> Self:
        # The customer is implied by the project; naming it lets the database walk an index in the list's order.
        return self.filter(customer_id__in=user.customer_ids, project_id__in=list(user.roles))

    def counted(self) -> Self:
        return self.filter(state__in=COUNTED_STATES)

    def update_last_read(self) -> int:
        """After its disks were captured or verified: `last_read_at` is that of the disk which was read longest ago."""
        disks = DiskImage.objects.filter(snapshot=OuterRef("pk")).order_by().values("snapshot")
        oldest = disks.annotate(oldest=Min(Coalesce("verified_at", "captured_at"))).values("oldest")
        return self.update(last_read_at=Subquery(oldest))

    def verified(self) -> Self:
        """Filter for usable snapshots of which every disk was verified. The triggers repeat this rule."""
        disks = DiskImage.objects.filter(snapshot=OuterRef("pk"))
        unverified = disks.filter(Q(verified_at=None) | ~Q(damage=""))
        return self.filter(usable(), Exists(disks), ~Exists(unverified))

    def transition(self, pk: uuid.UUID, from_states: Iterable[str], to: str, **fields: Any) -> bool:
        """Compare-and-set of one row's state; True when the row was in one of `from_states` and is now ours."""
        from_states = list(from_states)
        for state in from_states:
            if to not in TRANSITIONS[state]:
                raise ValueError(f"A snapshot never goes from {state} to {to}.")
        return self.filter(pk=pk, state__in=from_states).update(state=to, **fields) == 1


class Snapshot(models.Model):
    """One recovery point: what it is of, whose it is, and how far it is.

    `created_at` is when it was asked for, `ready_at` when it became usable and its billing began, `delete_requested_at`
    when its deletion was accepted and its billing ended, `deleted_at` when storage confirmed that it is gone.

    Damage is no state: a damaged snapshot stays Ready, can be deleted like any other, and may be found sound again.
    `damaged_at` is when the damage was found and its billing ended; `DiskImage.damage` says what was found. See damage.py.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=8, choices=Kind.choices, default=Kind.VOLUME)
    customer = models.ForeignKey(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, related_name="snapshots", db_index=False
    )
    project = models.ForeignKey(Project, verbose_name=_("project"), on_delete=models.PROTECT, related_name="snapshots")
    location = models.ForeignKey(
        Location, verbose_name=_("location"), on_delete=models.PROTECT, related_name="snapshots"
    )
    volume = models.ForeignKey(
        Volume, verbose_name=_("volume"), on_delete=models.PROTECT, null=True, blank=True, related_name="snapshots"
    )
    vm = models.ForeignKey(
        VirtualMachine,
        verbose_name=_("virtual machine"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="snapshots",
    )
    name = NameField(_("name"))
    name_key = models.CharField(max_length=MAX_NAME_KEY_LENGTH, editable=False)
    vm_config = models.JSONField(
        _("machine's configuration"),
        default=dict,
        blank=True,
        help_text=_("Name, size, hourly price and volumes of the machine at the time."),
    )
    consistency = models.CharField(
        _("consistency"),
        max_length=8,
        blank=True,
        choices=[
            (Consistency.INSTANT.value, _("One instant for all disks")),
            (Consistency.PER_DISK.value, _("Crash-consistent per disk")),
        ],
    )
    size_gb = models.PositiveIntegerField(_("size, GB"), help_text=_("Of all disks together."))
    state = models.CharField(_("state"), max_length=8, choices=State.choices, default=State.PENDING)
    error = models.TextField(_("reason"), blank=True)
    is_pinned = models.BooleanField(_("pinned"), default=False, help_text=_("Retention neither counts nor deletes it."))
    requested_by = models.ForeignKey(
        User, verbose_name=_("asked for by"), on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    draft = models.OneToOneField(Draft, on_delete=models.SET_NULL, null=True, blank=True, related_name="snapshot")
    made_outside = models.BooleanField(
        _("made outside"), default=False, editable=False, help_text=_("In the cloud, and not by the portal.")
    )
    missing_since = models.DateTimeField(
        _("deleted outside"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When the cloud did not have it any more."),
    )
    damaged_at = models.DateTimeField(_("found damaged"), null=True, blank=True, editable=False)
    # What scrub.py goes by: the oldest of its disks' captured_at or verified_at. NULL where the engine shows no bytes.
    last_read_at = models.DateTimeField(_("last read"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("taken"), default=timezone.now, editable=False)
    ready_at = models.DateTimeField(_("ready"), null=True, blank=True, editable=False)
    delete_requested_at = models.DateTimeField(_("deletion accepted"), null=True, blank=True, editable=False)
    deletion_cause = models.CharField(
        _("cause of deletion"), max_length=9, choices=DeletionCause.choices, blank=True, editable=False
    )
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True, editable=False)

    objects = SnapshotQuerySet.as_manager()

    class Meta:
        verbose_name = _("snapshot")
        verbose_name_plural = _("snapshots")
        indexes = [
            # One for each order of the list; `id` makes the key unique, so that pages neither skip nor repeat. They are
            # partial because PostgreSQL does not see that `deleted_at IS NULL` leaves the order as it is.
            models.Index(
                fields=["customer", "kind", "-created_at", "-id"], condition=Q(deleted_at=None), name="snapshot_by_age"
            ),
            models.Index(
                fields=["customer", "kind", "name_key", "id"], condition=Q(deleted_at=None), name="snapshot_by_name"
            ),
            models.Index(
                fields=["customer", "kind", "-size_gb", "-id"], condition=Q(deleted_at=None), name="snapshot_by_size"
            ),
            # counts and quotas are answered from the index alone, which SQLite can only when every column is in it
            models.Index(
                fields=["customer", "kind", "deleted_at", "project", "state", "location", "size_gb", "damaged_at"],
                name="snapshot_counts",
            ),
            models.Index(fields=["volume", "deleted_at", "-created_at", "-id"], name="snapshot_of_volume"),
            models.Index(fields=["volume", "-ready_at"], condition=Q(deleted_at=None), name="snapshot_last_of_volume"),
            # the list of what failed, which among tens of thousands that are Ready is seldom
            models.Index(
                fields=["customer", "kind", "state", "-created_at", "-id"],
                condition=Q(
                    deleted_at=None, state__in=[State.FAILED.value, *(state.value for state in TRANSIENT_STATES)]
                ),
                name="snapshot_not_ready",
            ),
            # the support desk's list, of all customers
            models.Index(fields=["-created_at", "-id"], name="snapshot_newest"),
            # the next one to scrub
            models.Index(
                fields=["location", "last_read_at"],
                condition=Q(state=State.READY.value, missing_since=None, damaged_at=None),
                name="snapshot_read_longest_ago",
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["customer", "name_key"],
                condition=Q(deleted_at=None),
                name="snapshot_name_unique",
                violation_error_message=_("The customer already has a snapshot of this name."),
            ),
            models.CheckConstraint(
                condition=~Q(name="") & ~Q(name_key=""),
                name="snapshot_name_given",
                violation_error_message=_("A snapshot needs a name."),
            ),
            models.CheckConstraint(
                condition=Q(kind=Kind.VOLUME, volume__isnull=False, vm=None)
                | Q(kind__in=[Kind.VM, Kind.BACKUP], volume=None, vm__isnull=False),
                name="snapshot_source",
                violation_error_message=_("A volume snapshot is of a volume, any other of a virtual machine."),
            ),
            models.CheckConstraint(
                condition=Q(state__in=State.values)
                & (~Q(state=State.READY) | Q(ready_at__isnull=False))
                & (~Q(state__in=[State.DELETING, State.DELETED]) | Q(delete_requested_at__isnull=False))
                & (Q(state=State.DELETED, deleted_at__isnull=False) | (~Q(state=State.DELETED) & Q(deleted_at=None))),
                name="snapshot_state_instants",
                violation_error_message=_("The state does not fit the instants of this snapshot."),
            ),
            models.CheckConstraint(
                condition=Q(damaged_at=None) | Q(state__in=[State.READY, State.DELETING, State.DELETED]),
                name="snapshot_damaged",
                violation_error_message=_("Only a snapshot that was taken can be damaged."),
            ),
            models.CheckConstraint(
                condition=~Q(state__in=[State.DELETING, State.DELETED]) | ~Q(deletion_cause=""),
                name="snapshot_deletion_cause",
                violation_error_message=_("A deleted snapshot needs the cause of its deletion."),
            ),
            models.CheckConstraint(condition=Q(size_gb__gte=1), name="snapshot_size"),
            models.CheckConstraint(
                condition=Q(is_pinned=False) | Q(kind=Kind.BACKUP),
                name="snapshot_pinned",
                violation_error_message=_("Only backups can be pinned."),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_state_display(self) -> str:  # type: ignore[no-redef]  # of the mypy plugin
        # Django's own puts all choices into a new dictionary for every row of a list
        return str(State(self.state).label)

    @property
    def service_kind(self) -> ServiceKind:
        return SERVICE_KINDS[Kind(self.kind)]

    @property
    def is_charged(self) -> bool:
        """Whether it is charged per GB. Automatic backups aren't: their switch is."""
        run = getattr(self, "run", None) if self.kind == Kind.BACKUP else None
        return run is None or not run.schedule.is_automatic

    @property
    def is_transient(self) -> bool:
        return self.state in TRANSIENT_STATES

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody cancelled it while it was being taken."""
        return self.state == State.DELETED and self.deletion_cause == DeletionCause.CANCELLED

    @property
    def is_missing(self) -> bool:
        """Ready here, and deleted in the cloud."""
        return self.missing_since is not None and self.state == State.READY

    @property
    def is_damaged(self) -> bool:
        """Ready, and its bytes are known not to be the ones that were captured."""
        return self.damaged_at is not None and self.state == State.READY

    @property
    def shown_state(self) -> str:
        if self.is_cancelled:
            return "cancelled"
        return "missing" if self.is_missing else "damaged" if self.is_damaged else self.state

    @property
    def shown_state_label(self) -> str:
        if self.is_cancelled:
            return str(_("Cancelled"))
        if self.is_missing:
            return str(_("Missing"))
        return str(_("Damaged")) if self.is_damaged else self.get_state_display()

    @property
    def costs_nothing(self) -> bool:
        """By the location's rule for what was made or deleted outside the portal."""
        free_outside = self.made_outside and not self.location.charges_outside
        return free_outside or (self.missing_since is not None and not self.location.charges_missing)

    @property
    def source(self) -> Volume | VirtualMachine:
        source = self.volume or self.vm
        assert source is not None  # held by the constraint snapshot_source
        return source


class DiskImage(models.Model):
    """One captured disk. Storage knows it by this row's id, which for a volume snapshot equals the snapshot's id."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, related_name="disks")
    volume = models.ForeignKey(Volume, on_delete=models.PROTECT, related_name="disk_images")
    volume_name = models.CharField(_("volume"), max_length=MAX_NAME_LENGTH)
    position = models.PositiveSmallIntegerField(_("position"), default=0)
    size_gb = models.PositiveIntegerField(_("size, GB"))
    backend_ref = models.CharField(_("backend reference"), max_length=255, blank=True)
    allocated_bytes = models.BigIntegerField(_("bytes used"), null=True, blank=True)
    checksum = models.CharField(_("checksum"), max_length=80, blank=True)  # see drivers/checksums.py
    captured_at = models.DateTimeField(_("captured"), null=True, blank=True)
    verified_at = models.DateTimeField(_("last verified"), null=True, blank=True)
    damage = models.TextField(_("damage found"), blank=True)
    seen_at = models.DateTimeField(_("last seen in the cloud"), null=True, blank=True)

    class Meta:
        verbose_name = _("disk image")
        verbose_name_plural = _("disk images")
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["snapshot", "position"], name="disk_image_position")]

    def __str__(self) -> str:
        return self.volume_name


class OperationQuerySet(models.QuerySet["Operation"]):
    def visible_to(self, user: User) -> Self:
        return self.filter(snapshot__customer_id__in=user.customer_ids, snapshot__project_id__in=list(user.roles))

    def active(self) -> Self:
        return self.filter(finished_at=None)

    def background(self) -> Self:
        return self.filter(Operation.BACKGROUND)

    def foreground(self) -> Self:
        """Without scrubs, which nobody asked for and nobody waits for."""
        return self.exclude(kind=Operation.Kind.SCRUB)


class Operation(models.Model):
    """A piece of work for the storage. This row is the truth about it; a task in the queue only starts a worker.

    `attempt` counts up with every worker that takes it and shuts the one before out: each later write names its
    attempt. `interruptions` are attempts that ended through no fault of the work, such as a worker's restart or a disk
    that something else held; they do not count towards settings.OPERATION_MAX_ATTEMPTS.
    """

    # Reads that the portal started by itself, to see that what it keeps is still whole. Customers' work goes first.
    BACKGROUND = Q(kind="verify", requested_by=None) | Q(kind="scrub")

    class Kind(models.TextChoices):
        CAPTURE = "capture", _("Take snapshot")
        RESTORE = "restore", _("Restore")
        NEW_VOLUME = "new_volume", _("New volume")
        VERIFY = "verify", _("Verify")
        SCRUB = "scrub", _("Scheduled verification")
        DELETE = "delete", _("Delete")
        CLEAN_UP = "clean_up", _("Clean up")

    class State(models.TextChoices):
        PENDING = "pending", _("Waiting")
        RUNNING = "running", _("Running")
        SUCCEEDED = "succeeded", _("Done")
        FAILED = "failed", _("Failed")
        CANCELLED = "cancelled", _("Cancelled")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=10, choices=Kind.choices)
    snapshot = models.ForeignKey(
        Snapshot, verbose_name=_("snapshot"), on_delete=models.PROTECT, related_name="operations"
    )
    volume = models.ForeignKey(
        Volume,
        verbose_name=_("volume"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="operations",
        help_text=_("The volume that is written: restored, made anew, or removed after a cancellation."),
    )
    vm = models.ForeignKey(
        VirtualMachine,
        verbose_name=_("virtual machine"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="operations",
        help_text=_("The machine whose disks are restored."),
    )
    disk = models.ForeignKey(
        DiskImage,
        verbose_name=_("disk image"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text=_("What a new volume is made from."),
    )
    safety_snapshot = models.ForeignKey(
        Snapshot,
        verbose_name=_("safety snapshot"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="protects",
        help_text=_("What a restore takes of the volume before it writes to it."),
    )
    state = models.CharField(_("state"), max_length=9, choices=State.choices, default=State.PENDING)
    attempt = models.PositiveIntegerField(_("attempt"), default=0)
    interruptions = models.PositiveIntegerField(_("interruptions"), default=0)
    lease_until = models.DateTimeField(_("lease until"), null=True, blank=True)
    not_before = models.DateTimeField(_("not before"), default=timezone.now)
    bytes_done = models.BigIntegerField(_("bytes done"), default=0)
    bytes_total = models.BigIntegerField(_("bytes in all"), default=0)
    unchecked = models.BooleanField(
        _("unchecked"),
        default=False,
        db_default=False,
        help_text=_("The snapshot's bytes are used without being compared first."),
    )
    error = models.TextField(_("reason"), blank=True)
    # by which drivers.base has advice for the operator
    cause = models.CharField(_("cause"), max_length=20, blank=True, default="", db_default="", editable=False)
    requested_by = models.ForeignKey(
        User, verbose_name=_("asked for by"), on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # of the click that asked for it, so that the log tells its whole story; the database's own default is for the version
    # before this one, which may still write while this one starts
    request_id = models.CharField(_("request"), max_length=36, blank=True, default="", db_default="", editable=False)
    created_at = models.DateTimeField(_("asked for"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    objects = OperationQuerySet.as_manager()

    now_override: datetime | None = None  # what time it is, where the worker was told; else the clock says

    class Meta:
        verbose_name = _("operation")
        verbose_name_plural = _("operations")
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["not_before"], condition=Q(finished_at=None), name="operation_active"),
            models.Index(fields=["finished_at"], condition=Q(state="failed"), name="operation_failed"),
            models.Index(fields=["snapshot", "-created_at"], name="operation_of_snapshot"),
            # the support desk's list, and what was asked for lately
            models.Index(fields=["-created_at", "-id"], name="operation_newest"),
            # how many ended lately, and how, from the index alone
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
                condition=Q(kind="restore", volume__isnull=False, vm=None, disk=None)
                | Q(kind="restore", volume=None, vm__isnull=False, disk=None)
                | Q(kind="new_volume", volume__isnull=False, vm=None, disk__isnull=False, safety_snapshot=None)
                | Q(kind="clean_up", volume__isnull=False, vm=None, disk=None, safety_snapshot=None)
                | Q(
                    kind__in=["capture", "verify", "scrub", "delete", "clean_up"],
                    volume=None,
                    vm=None,
                    disk=None,
                    safety_snapshot=None,
                ),
                name="operation_target",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} · {self.snapshot_id}"

    @property
    def is_active(self) -> bool:
        return self.finished_at is None

    @property
    def failures(self) -> int:
        """Attempts that began and did not succeed, this one excluded."""
        return max(0, self.attempt - 1 - self.interruptions)

    @property
    def may_fail_for_good(self) -> bool:
        """All but a clean-up: what storage still has must not be forgotten."""
        return self.kind != self.Kind.CLEAN_UP

    @property
    def is_last_attempt(self) -> bool:
        return self.may_fail_for_good and self.failures + 1 >= settings.OPERATION_MAX_ATTEMPTS

    @property
    def can_be_cancelled(self) -> bool:
        """Until it ends. A restore only while it has not begun to write: afterwards *Undo* is what helps.

        Neither deletions nor clean-ups, nor reads that the portal started by itself.
        """
        if not self.is_active:
            return False
        if self.kind == self.Kind.RESTORE:
            safety = self.safety_snapshot
            return self.state == self.State.PENDING or (
                safety is not None and safety.state in (State.PENDING, State.CREATING)
            )
        return self.kind in (self.Kind.CAPTURE, self.Kind.NEW_VOLUME) or (
            self.kind == self.Kind.VERIFY and self.requested_by_id is not None
        )

    @property
    def can_be_undone(self) -> bool:
        """A restore whose safety snapshot is still there; of a machine also one that ended after the first disk."""
        safety = self.safety_snapshot
        ended_early = self.state in (self.State.FAILED, self.State.CANCELLED) and self.vm_id is not None
        wrote = self.state == self.State.SUCCEEDED or ended_early
        return wrote and safety is not None and safety.state == State.READY
