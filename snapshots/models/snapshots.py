"""Snapshots, their disk images, and the wizard's drafts.

One `Snapshot` is one recovery point with one or more `DiskImage` rows. Volume snapshots, VM snapshots and VM backups differ
only in their kind.
"""

import uuid
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any, Self

from django.db import models
from django.db.models import Exists, Min, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.models import ServiceKind
from billing.usage import close_segment, open_segment
from cng_portal.accounts.models import Customer, Project, User
from cng_portal.common.names import MAX_NAME_KEY_LENGTH, MAX_NAME_LENGTH, NameField
from cng_portal.inventory.models import (
    MAX_NOTE_LENGTH,
    Interval,
    Location,
    OwnedQuerySet,
    Tag,
    VirtualMachine,
    Volume,
    Weekday,
)

from ..storage.contract import Consistency, SnapshotRef, VolumeRef


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


# SnapshotQuerySet.transition refuses anything else.
TRANSITIONS: dict[str, set[str]] = {
    State.PENDING: {State.CREATING, State.FAILED, State.DELETED},  # Deleted if cancelled.
    State.CREATING: {State.READY, State.FAILED, State.DELETED},
    State.READY: {State.DELETING, State.DELETED},  # Deleted if the cloud deleted it.
    State.FAILED: {State.PENDING, State.DELETING},
    State.DELETING: {State.DELETED},
    State.DELETED: {State.READY},  # Put back from the recycle bin.
}


class DeletionCause(models.TextChoices):
    """Why a snapshot was deleted. USER and CANCELLED are a user's decision; everything else is automatic."""

    USER = "user", _("Deleted by a user")
    CANCELLED = "cancelled", _("Cancelled while it was being taken")
    RETENTION = "retention", _("Deleted by the schedule's retention")
    DAMAGED = "damaged", _("Deleted because it was damaged")
    FAILED = "failed", _("Deleted because taking it failed")
    OUTSIDE = "outside", _("Deleted in the cloud")
    EXPIRED = "expired", _("Deleted when it expired")


TRANSIENT_STATES = (State.PENDING, State.CREATING, State.DELETING)
# These count towards quotas. A failed snapshot takes up no storage.
COUNTED_STATES = (State.PENDING, State.CREATING, State.READY)


class Draft(models.Model):
    """The answers given so far in the wizard. Everybody who sees the customer's snapshots may continue it."""

    CREATE_VOLUME = "create"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(
        max_length=8, choices=[*Kind.choices, (CREATE_VOLUME, _("New volume"))], default=Kind.VOLUME
    )
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
    # the answers for a new volume; it is copied from `disk`, or empty. The draft goes with its disk, because nobody who has
    # chosen one wants an empty volume.
    size_gb = models.PositiveIntegerField(null=True, blank=True)
    disk = models.ForeignKey(
        "DiskImage", on_delete=models.CASCADE, null=True, blank=True, related_name="+", db_index=False
    )
    # The result, if that is a volume. A snapshot or a schedule refers to its draft instead.
    created_volume = models.ForeignKey(
        Volume, on_delete=models.SET_NULL, null=True, related_name="+", db_index=False, editable=False
    )
    # Volume snapshots by a schedule instead of one. Machines have the kind BACKUP for that.
    is_scheduled = models.BooleanField(default=False, db_default=False)
    delete_after = models.DateField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    def __str__(self) -> str:
        return str(self.id)

    @property
    def source(self) -> Volume | VirtualMachine | None:
        return self.volume or self.vm

    @property
    def makes_schedule(self) -> bool:
        return self.kind == Kind.BACKUP or self.is_scheduled

    @property
    def creates_volume(self) -> bool:
        return self.kind == self.CREATE_VOLUME


def usable(path: str = "") -> Q:
    """Filter for snapshots that can be restored. `path` leads to the snapshot, such as `snapshot__`."""
    return Q(**{f"{path}state": State.READY, f"{path}missing_since": None, f"{path}damaged_at": None})


def in_storage(path: str = "") -> Q:
    """Filter for snapshots that the storage has: all but the deleted ones, with those in the recycle bin."""
    return Q(**{f"{path}deleted_at": None}) | Q(**{f"{path}bin_until__isnull": False})


def costs_nothing(path: str = "") -> Q:
    """Filter for snapshots that their location doesn't charge: `Snapshot.costs_nothing` for querysets."""
    free_outside = Q(**{f"{path}made_outside": True, f"{path}location__charges_outside": False})
    return free_outside | Q(**{f"{path}missing_since__isnull": False, f"{path}location__charges_missing": False})


class SnapshotQuerySet(OwnedQuerySet):
    def visible_to(self, user: User) -> Self:
        # The project implies the customer, which lets the database use an index in the list's order.
        return self.filter(customer_id__in=user.customer_ids, project_id__in=list(user.roles))

    def counted(self) -> Self:
        return self.filter(state__in=COUNTED_STATES)

    def update_last_read(self) -> int:
        """Set `last_read_at` to that of the disk read longest ago, after disks were captured or verified."""
        disks = DiskImage.objects.filter(snapshot=OuterRef("pk")).order_by().values("snapshot")
        oldest = disks.annotate(oldest=Min(Coalesce("verified_at", "captured_at"))).values("oldest")
        return self.update(last_read_at=Subquery(oldest))

    def in_bin(self) -> Self:
        """Filter for snapshots in the recycle bin: deleted, still in storage, and can be put back."""
        return self.filter(bin_until__isnull=False)

    def in_storage(self) -> Self:
        """Filter for snapshots that the storage has, will have, or still has for a while."""
        return self.filter(in_storage())

    def verified(self) -> Self:
        """Filter for usable snapshots of which every disk was verified. The triggers repeat this rule."""
        disks = DiskImage.objects.filter(snapshot=OuterRef("pk"))
        unverified = disks.filter(Q(verified_at=None) | ~Q(damage=""))
        return self.filter(usable(), Exists(disks), ~Exists(unverified))

    def transition(self, pk: uuid.UUID, from_states: Iterable[str], to: str, **fields: Any) -> bool:
        """Compare and set the state of one row. Returns whether it was in one of `from_states`."""
        from_states = list(from_states)
        for state in from_states:
            if to not in TRANSITIONS[state]:
                raise ValueError(f"A snapshot never goes from {state} to {to}.")
        return self.filter(pk=pk, state__in=from_states).update(state=to, **fields) == 1


class Snapshot(models.Model):
    """One recovery point of a volume or machine.

    `created_at` is when it was requested, `ready_at` when it became usable and billing began, `delete_requested_at` when its
    deletion was accepted and billing ended, `deleted_at` when the storage had deleted it or it was put in the recycle bin.

    A snapshot in the recycle bin is Deleted, and has `bin_until`: until then its data is in storage, and it can be put back.
    See recycle_bin.py.

    Damage isn't a state: a damaged snapshot stays Ready, can be deleted like any other, and may pass a later verification.
    `damaged_at` is when the damage was found and billing ended; `DiskImage.damage` says what was found. See damage.py.
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
        _("VM configuration"),
        default=dict,
        blank=True,
        help_text=_("Name, size, hourly price and volumes of the instance at the time."),
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
    expires_at = models.DateTimeField(
        _("expires"), null=True, blank=True, help_text=_("When the portal deletes it. Empty: never.")
    )
    # Members were notified that it is about to expire.
    expiry_announced_at = models.DateTimeField(null=True, blank=True, editable=False)
    requested_by = models.ForeignKey(
        User, verbose_name=_("requested by"), on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
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
    damaged_at = models.DateTimeField(_("damage found"), null=True, blank=True, editable=False)
    # When its files were listed, or listing them failed. See files/cataloguing.py.
    catalogued_at = models.DateTimeField(_("files listed"), null=True, blank=True, editable=False)
    # When an unusual share of its files was found to differ from the previous snapshot. See files/unusual.py.
    unusual_at = models.DateTimeField(_("unusual change found"), null=True, blank=True, editable=False)
    # When that was found of a snapshot that followed. Nothing automatic deletes it until a member lets it.
    held_at = models.DateTimeField(_("kept before an unusual change"), null=True, blank=True, editable=False)
    # For scrub.py: the oldest of its disks' captured_at or verified_at. NULL if the engine doesn't read bytes.
    last_read_at = models.DateTimeField(_("last read"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("taken"), default=timezone.now, editable=False)
    ready_at = models.DateTimeField(_("ready"), null=True, blank=True, editable=False)
    delete_requested_at = models.DateTimeField(_("deletion accepted"), null=True, blank=True, editable=False)
    deletion_cause = models.CharField(
        _("deletion cause"), max_length=9, choices=DeletionCause.choices, blank=True, editable=False
    )
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True, editable=False)
    bin_until = models.DateTimeField(_("in the recycle bin until"), null=True, blank=True, editable=False)

    tags = models.ManyToManyField(Tag, verbose_name=_("tags"), blank=True, related_name="snapshots")
    # Nullable, so that SQLite adds the column without rebuilding the table, which would drop its triggers.
    note = models.CharField(_("note"), max_length=MAX_NOTE_LENGTH, null=True, blank=True)  # noqa: DJ001
    # Properties of the API, texts by name. See snapshots/api/metadata.py.
    metadata = models.JSONField(_("properties"), null=True, blank=True, editable=False)

    objects = SnapshotQuerySet.as_manager()

    class Meta:
        verbose_name = _("snapshot")
        verbose_name_plural = _("snapshots")
        indexes = [
            # One for each order of the list. `id` makes the key unique, so that pages neither skip nor repeat rows. They are
            # partial because PostgreSQL doesn't recognize that `deleted_at IS NULL` keeps the order.
            models.Index(
                fields=["customer", "kind", "-created_at", "-id"], condition=Q(deleted_at=None), name="snapshot_by_age"
            ),
            models.Index(
                fields=["customer", "kind", "name_key", "id"], condition=Q(deleted_at=None), name="snapshot_by_name"
            ),
            models.Index(
                fields=["customer", "kind", "-size_gb", "-id"], condition=Q(deleted_at=None), name="snapshot_by_size"
            ),
            # Covers counts and quotas. SQLite needs every column for an index-only scan.
            models.Index(
                fields=["customer", "kind", "deleted_at", "project", "state", "location", "size_gb", "damaged_at"],
                name="snapshot_counts",
            ),
            models.Index(fields=["volume", "deleted_at", "-created_at", "-id"], name="snapshot_of_volume"),
            models.Index(fields=["volume", "-ready_at"], condition=Q(deleted_at=None), name="snapshot_last_of_volume"),
            # For the filter by state: few of tens of thousands aren't Ready.
            models.Index(
                fields=["customer", "kind", "state", "-created_at", "-id"],
                condition=Q(
                    deleted_at=None, state__in=[State.FAILED.value, *(state.value for state in TRANSIENT_STATES)]
                ),
                name="snapshot_not_ready",
            ),
            # The admin's list, of all customers.
            models.Index(fields=["-created_at", "-id"], name="snapshot_newest"),
            # The next snapshot to scrub.
            models.Index(
                fields=["location", "last_read_at"],
                condition=Q(state=State.READY.value, missing_since=None, damaged_at=None),
                name="snapshot_read_longest_ago",
            ),
            # The next snapshot whose files are listed.
            models.Index(
                fields=["location", "-ready_at"],
                condition=Q(state=State.READY.value, missing_since=None, catalogued_at=None),
                name="snapshot_to_catalogue",
            ),
            # The next snapshots that the scheduler deletes.
            models.Index(
                fields=["expires_at"],
                condition=Q(expires_at__isnull=False, deleted_at=None),
                name="snapshot_expiring",
            ),
            # The list of the recycle bin, and the GB that count towards quotas.
            models.Index(
                fields=["customer", "bin_until", "id"],
                condition=Q(bin_until__isnull=False),
                name="snapshot_in_bin",
            ),
            # The next snapshots that the scheduler erases.
            models.Index(fields=["bin_until"], condition=Q(bin_until__isnull=False), name="snapshot_bin_due"),
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
                violation_error_message=_("A volume snapshot needs a volume, any other an instance."),
            ),
            models.CheckConstraint(
                condition=Q(state__in=State.values)
                & (~Q(state=State.READY) | Q(ready_at__isnull=False))
                & (~Q(state__in=[State.DELETING, State.DELETED]) | Q(delete_requested_at__isnull=False))
                & (Q(state=State.DELETED, deleted_at__isnull=False) | (~Q(state=State.DELETED) & Q(deleted_at=None))),
                name="snapshot_state_instants",
                violation_error_message=_("The state doesn't match the times of this snapshot."),
            ),
            models.CheckConstraint(
                condition=Q(damaged_at=None) | Q(state__in=[State.READY, State.DELETING, State.DELETED]),
                name="snapshot_damaged",
                violation_error_message=_("Only a Ready snapshot can be damaged."),
            ),
            models.CheckConstraint(
                condition=~Q(state__in=[State.DELETING, State.DELETED]) | ~Q(deletion_cause=""),
                name="snapshot_deletion_cause",
                violation_error_message=_("A deleted snapshot needs the cause of its deletion."),
            ),
            models.CheckConstraint(condition=Q(size_gb__gte=1), name="snapshot_size"),
            models.CheckConstraint(
                condition=Q(is_pinned=False) | Q(kind__in=[Kind.BACKUP.value, Kind.VOLUME.value]),
                name="snapshot_pinned",
                violation_error_message=_("Only backups and scheduled snapshots can be pinned."),
            ),
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(kind__in=[Kind.VOLUME.value, Kind.VM.value], is_pinned=False),
                name="snapshot_expires",
                violation_error_message=_("Only snapshots that aren't pinned can expire."),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_state_display(self) -> str:  # type: ignore[no-redef]  # of the mypy plugin
        # Django's own builds a dictionary of all choices for every row of a list.
        return str(State(self.state).label)

    @property
    def service_kind(self) -> ServiceKind:
        return SERVICE_KINDS[Kind(self.kind)]

    @property
    def is_charged(self) -> bool:
        """Return whether it is charged per GB. For automatic backups the machine is charged instead."""
        run = getattr(self, "run", None) if self.kind == Kind.BACKUP else None
        return run is None or not run.schedule.is_automatic

    @property
    def delete_after(self) -> date | None:
        """Return the day, in the customer's time zone, at whose end it expires."""
        if self.expires_at is None:
            return None
        return (self.expires_at - timedelta(microseconds=1)).astimezone(self.project.customer.zone).date()

    @property
    def is_scheduled(self) -> bool:
        """Return whether a schedule took it, which retains and deletes it. Reads its run."""
        return getattr(self, "run", None) is not None

    @property
    def is_transient(self) -> bool:
        return self.state in TRANSIENT_STATES

    @property
    def is_cancelled(self) -> bool:
        """Return whether a user cancelled it while it was being taken."""
        return self.state == State.DELETED and self.deletion_cause == DeletionCause.CANCELLED

    @property
    def is_in_bin(self) -> bool:
        """Return whether it is in the recycle bin."""
        return self.bin_until is not None

    @property
    def is_missing(self) -> bool:
        """Return whether it is Ready here but deleted in the cloud."""
        return self.missing_since is not None and self.state == State.READY

    @property
    def is_damaged(self) -> bool:
        """Return whether it is Ready but its bytes are no longer those that were captured."""
        return self.damaged_at is not None and self.state == State.READY

    @property
    def shown_state(self) -> str:
        if self.is_in_bin:
            return "in_bin"
        if self.is_cancelled:
            return "cancelled"
        return "missing" if self.is_missing else "damaged" if self.is_damaged else self.state

    @property
    def shown_state_label(self) -> str:
        if self.is_in_bin:
            return str(_("In the recycle bin"))
        if self.is_cancelled:
            return str(_("Cancelled"))
        if self.is_missing:
            return str(_("Missing"))
        return str(_("Damaged")) if self.is_damaged else self.get_state_display()

    @property
    def costs_nothing(self) -> bool:
        """Return whether the location doesn't charge it, because it was created or deleted outside the portal."""
        free_outside = self.made_outside and not self.location.charges_outside
        return free_outside or (self.missing_since is not None and not self.location.charges_missing)

    @property
    def source(self) -> Volume | VirtualMachine:
        source = self.volume or self.vm
        assert source is not None  # held by the constraint snapshot_source
        return source

    def start_charging(self, at: datetime) -> None:
        """Open its usage segment, unless one is open. The caller must hold the customer's lock."""
        open_segment(
            resource_id=self.pk,
            kind=self.service_kind,
            name=self.name,
            project=Project.objects.get(snapshots=self),  # It may have been moved since the row was read.
            location=self.location,
            size_gb=self.size_gb,
            at=at,
        )

    def stop_charging(self, at: datetime) -> bool:
        """Close its usage segment. Returns False if none was open. The caller must hold the customer's lock."""
        return close_segment(resource_id=self.pk, kind=self.service_kind, at=at)


class DiskImage(models.Model):
    """One captured disk. Storage knows it by its ID, which for a volume snapshot equals the snapshot's."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, related_name="disks")
    volume = models.ForeignKey(Volume, on_delete=models.PROTECT, related_name="disk_images")
    volume_name = models.CharField(_("volume"), max_length=MAX_NAME_LENGTH)
    position = models.PositiveSmallIntegerField(_("position"), default=0)
    size_gb = models.PositiveIntegerField(_("size, GB"))
    backend_ref = models.CharField(_("backend reference"), max_length=255, blank=True)
    allocated_bytes = models.BigIntegerField(_("bytes used"), null=True, blank=True)
    checksum = models.CharField(_("checksum"), max_length=80, blank=True)  # see storage/checksums.py
    captured_at = models.DateTimeField(_("captured"), null=True, blank=True)
    verified_at = models.DateTimeField(_("last verified"), null=True, blank=True)
    damage = models.TextField(_("damage found"), blank=True)
    file_count = models.BigIntegerField(
        _("files"), null=True, blank=True, editable=False, help_text=_("In its catalogue. Empty: there is none.")
    )
    seen_at = models.DateTimeField(_("last seen in the cloud"), null=True, blank=True)

    class Meta:
        verbose_name = _("disk image")
        verbose_name_plural = _("disk images")
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["snapshot", "position"], name="disk_image_position")]

    def __str__(self) -> str:
        return self.volume_name

    @property
    def ref(self) -> SnapshotRef:
        """Return the driver's reference to it."""
        return SnapshotRef(
            uuid=self.pk,
            backend_ref=self.backend_ref,
            backend_project=self.volume.backend_project,
            checksum=self.checksum,
        )


def volume_ref(volume: Volume) -> VolumeRef:
    """Return the driver's reference to the volume."""
    return VolumeRef(
        uuid=volume.pk,
        name=volume.name,
        size_gb=volume.size_gb,
        backend_ref=volume.backend_ref,
        backend_project=volume.backend_project,
    )
