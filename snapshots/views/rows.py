"""Rows of lists: a model instance with everything else that its template displays."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, OuterRef, Q, QuerySet, Subquery, UUIDField
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.pricing.prices import PriceList
from cng_portal.accounts.models import User
from cng_portal.common.money import format_price
from cng_portal.common.templatetags.portal import day as format_day
from cng_portal.common.templatetags.portal import length_of, poll_seconds
from cng_portal.inventory.models import Tag, Volume
from snapshots.assignment import is_outside_schedule
from snapshots.labels import tags_of
from snapshots.lists import LISTS
from snapshots.locks import can_lift, get_locks, why_not_lockable
from snapshots.models import Kind, Operation, Snapshot, SnapshotLock, SnapshotQuerySet, State, usable
from snapshots.restores import irreversible_reasons
from snapshots.services import can_be_erased
from snapshots.storage.registry import get_driver

from .common import price_of

LISTED_RELATED = ("project__customer", "location", "volume", "vm")
LISTED_FIELDS = (
    *("kind", "customer", "project", "location", "volume", "vm", "name", "name_key", "size_gb", "state", "error"),
    *("is_pinned", "made_outside", "missing_since", "damaged_at", "bin_until", "created_at", "ready_at", "expires_at"),
    *("unusual_at", "held_at"),
    *("project__name", "project__customer__currency", "project__customer__time_zone"),
    "project__customer__recycle_bin_days",
    "project__customer__needs_approval",
    *("location__country", "location__driver", "location__driver_options", "location__storage_seen_at"),
    *("location__charges_outside", "location__charges_missing"),
    *("volume__name", "volume__project", "volume__deleted_at", "volume__bin_until"),
    *("vm__name", "vm__project", "vm__deleted_at", "vm__backend_ref"),
)
DELETABLE_STATES = (State.READY, State.FAILED)


@dataclass(frozen=True)
class SnapshotRow:
    """`hourly` is its price ("K 20"), empty if it costs nothing. `operation` is the one that takes or deletes it now.

    `can_see_source` is whether the user sees the volume or machine, which may belong to another project.
    """

    snapshot: Snapshot
    hourly: str
    operation: Operation | None
    has_menu: bool
    can_see_source: bool
    lock: SnapshotLock | None = None
    tags: list[Tag] = field(default_factory=list)

    @property
    def list_url(self) -> str:
        return reverse(f"snapshots:{LISTS[Kind(self.snapshot.kind)]}")

    @property
    def is_selectable(self) -> bool:
        """Return whether it can be selected to be tagged or deleted; the page that deletes leaves out what is locked."""
        return self.has_menu and self.snapshot.state in DELETABLE_STATES

    @property
    def poll_seconds(self) -> int:
        return poll_seconds([self.operation])

    @property
    def time_left(self) -> str:
        return estimate_time_left(self.operation, timezone.now()) if self.operation else ""

    @property
    def notes(self) -> list[str]:
        snapshot, notes = self.snapshot, []
        if snapshot.is_missing:
            notes.append(_("Deleted outside the portal"))
        elif snapshot.made_outside:
            notes.append(_("Created outside the portal"))
        if snapshot.unusual_at:
            notes.append(_("Unusual change"))
        if snapshot.is_pinned:
            notes.append(_("Pinned"))
        if snapshot.held_at:
            notes.append(_("Kept: an unusual change followed"))
        if not snapshot.is_charged:
            notes.append(_("Automatic backup"))
        if day := snapshot.delete_after:
            notes.append(_("Deleted after %(day)s") % {"day": format_day(day)})
        return notes


def listed_snapshots() -> SnapshotQuerySet:
    """Select only the columns that rows display."""
    return Snapshot.objects.select_related(*LISTED_RELATED).only(*LISTED_FIELDS)


def listed_with_runs() -> SnapshotQuerySet:
    """Add backups' runs and schedules. Joining more tables would exceed PostgreSQL's join_collapse_limit."""
    return Snapshot.objects.select_related(*LISTED_RELATED, "run__schedule").only(
        *LISTED_FIELDS, "run__snapshot", "run__schedule__origin"
    )


def build_rows(snapshots: list[Snapshot], user: User, prices: PriceList | None = None) -> list[SnapshotRow]:
    """Build the rows of snapshots from `listed_snapshots`, or from `listed_with_runs` if there may be backups.

    `prices` are loaded unless they are given.
    """
    if not snapshots:
        return []
    operations = active_operations([snapshot.pk for snapshot in snapshots if snapshot.is_transient])
    prices = prices or PriceList.load({snapshot.location_id for snapshot in snapshots})
    ids = [snapshot.pk for snapshot in snapshots]
    tags, locks = tags_of(Snapshot, ids), get_locks(ids)
    rows = []
    for snapshot in snapshots:
        price = price_of(snapshot, prices)
        rows.append(
            SnapshotRow(
                snapshot,
                hourly=format_price(price.hourly_micro, price.currency) if price else "",
                operation=operations.get(snapshot.pk),
                has_menu=is_changeable(snapshot, user),
                tags=tags.get(snapshot.pk, []),
                lock=locks.get(snapshot.pk),
                can_see_source=snapshot.source.project_id in user.roles,
            )
        )
    return rows


def active_operations(snapshot_ids: list[UUID]) -> dict[UUID, Operation]:
    """Return {snapshot ID: the operation that takes or deletes it}. Constraints allow at most one."""
    if not snapshot_ids:
        return {}
    own = Q(snapshot__in=snapshot_ids, kind__in=[Operation.Kind.CAPTURE, Operation.Kind.DELETE])
    active = Operation.objects.active().filter(own | Q(safety_snapshot__in=snapshot_ids))
    return {operation.safety_snapshot_id or operation.snapshot_id: operation for operation in active}


def find_hidden(snapshots: SnapshotQuerySet, user: User) -> dict[str, Any]:
    """Return the `count` of the usable ones in projects that the user doesn't see, and when the newest was `ready_at`."""
    hidden = snapshots.filter(usable(), deleted_at=None).exclude(project__in=list(user.roles))
    return hidden.aggregate(count=Count("pk"), ready_at=Max("ready_at"))


def is_changeable(snapshot: Snapshot, user: User) -> bool:
    return user.can_change(snapshot.project_id) and snapshot.state not in (State.DELETING, State.DELETED)


@dataclass(frozen=True)
class Action:
    """A link in a menu or on a page."""

    name: str
    label: str
    url: str
    icon: str
    danger: bool = False


def actions_for(snapshot: Snapshot, user: User, lock: SnapshotLock | None) -> list[Action]:
    """List what the user can do with the snapshot now. For viewers, at most reading its files."""
    ready = snapshot.state == State.READY and snapshot.missing_since is None
    if not is_changeable(snapshot, user):
        can_read = ready and user.can_read_files(snapshot.project_id)
        return (
            [Action("files", _("Files"), reverse("snapshots:files", args=[snapshot.pk]), "list-bullet")]
            if can_read
            else []
        )
    can_be_pinned = snapshot.kind == Kind.BACKUP or snapshot.is_scheduled
    is_writable = snapshot.source.deleted_at is None and user.can_change(snapshot.source.project_id)
    can_restore = ready and is_writable and not irreversible_reasons([snapshot])
    can_move = snapshot.is_charged and lock is None and len(user.changeable_project_ids) > 1
    can_lock = not why_not_lockable(snapshot)
    can_lift_it = lock is not None and can_lift(lock, user, snapshot, at=timezone.now())
    actions = [
        (ready and snapshot.kind != Kind.VOLUME, "new_machine", _("New instance"), "server"),
        (ready, "new_volume", _("New volume"), "circle-stack"),
        (can_restore, "restore", _("Restore"), "arrow-uturn-left"),
        (ready, "files", _("Files"), "list-bullet"),
        (can_be_pinned and not snapshot.is_pinned, "pin", _("Pin"), "bookmark"),
        (
            can_be_pinned and snapshot.is_pinned and not is_outside_schedule(snapshot),
            "pin",
            _("Unpin"),
            "bookmark-slash",
        ),
        (can_lock and lock is None, "lock", _("Lock"), "lock-closed"),
        (can_lock and lock is not None, "lock", _("Lengthen the lock"), "lock-closed"),
        (can_lift_it, "lift_lock", _("Lift the lock"), "lock-open"),
        (snapshot.state in (State.PENDING, State.CREATING), "cancel_snapshot", _("Cancel"), "x-mark"),
        (True, "rename", _("Rename"), "pencil-square"),
        (True, "labels", _("Tags and note"), "tag"),
        (not can_be_pinned, "expiry", _("Expiry date"), "clock"),
        (can_move, "move", _("Move to a project"), "folder"),
        (ready, "verify", _("Verify"), "shield-check"),
        (ready and not snapshot.is_damaged, "request_drill", _("Restore drill"), "lifebuoy"),
        (snapshot.state in DELETABLE_STATES and lock is None, "delete", _("Delete"), "trash"),
    ]
    return [
        Action(name, label, reverse(f"snapshots:{name}", args=[snapshot.pk]), icon, danger=name == "delete")
        for is_possible, name, label, icon in actions
        if is_possible
    ]


OPERATION_RELATED = ("snapshot", "volume", "vm", "safety_snapshot__location", "requested_by")
OPERATION_FIELDS = (
    *(field.name for field in Operation._meta.concrete_fields),
    *("snapshot__name", "snapshot__state", "snapshot__damaged_at", "snapshot__bin_until"),
    *("snapshot__project", "snapshot__volume", "snapshot__vm"),
    *("safety_snapshot__name", "safety_snapshot__state", "safety_snapshot__project"),
    *("safety_snapshot__location__driver", "safety_snapshot__location__driver_options"),
    "safety_snapshot__location__storage_seen_at",
    *("vm__name", "vm__project"),
    *(
        "volume__name",
        "volume__project",
        "volume__state",
        "volume__deleted_at",
        "volume__bin_until",
        "volume__available_at",
    ),
    *("requested_by__name", "requested_by__email"),
)
# The state of the snapshot in which a failed operation can be retried. A restore needs a new confirmation instead.
RETRYABLE_IN = {
    Operation.Kind.CAPTURE: State.FAILED,
    Operation.Kind.NEW_VOLUME: State.READY,
    Operation.Kind.VERIFY: State.READY,
}
# The same for operations on a volume alone.
VOLUME_RETRYABLE_IN = {
    Operation.Kind.CREATE_VOLUME: Volume.State.ERROR,
    Operation.Kind.DELETE_VOLUME: Volume.State.DELETING,
}
# Earlier, the speed is a guess. Less is "a few seconds".
MIN_ESTIMATED = timedelta(seconds=5)
MAX_ESTIMATED = timedelta(days=30)


@dataclass(frozen=True)
class OperationRow:
    """An operation with what the user sees of it and can do about it.

    Its snapshot, the volume or machine that it writes, and its safety snapshot may belong to projects that the user doesn't
    see.
    """

    operation: Operation
    can_see_snapshot: bool = True
    can_see_target: bool = True
    can_see_safety: bool = True
    can_cancel: bool = False
    can_retry: bool = False
    can_restore_again: bool = False
    can_undo: bool = False

    @property
    def time_left(self) -> str:
        return estimate_time_left(self.operation, timezone.now())


def listed_operations(operations: QuerySet[Operation]) -> QuerySet[Operation]:
    """Select only the columns that rows display, newest first."""
    # Not joined: more tables would exceed PostgreSQL's join_collapse_limit.
    sources = Snapshot.objects.filter(pk=OuterRef("snapshot")).values_list(Coalesce("volume__project", "vm__project"))
    annotated = operations.annotate(source_project_id=Subquery(sources[:1], output_field=UUIDField()))
    return annotated.select_related(*OPERATION_RELATED).only(*OPERATION_FIELDS).order_by("-created_at", "-id")


def newest_operations(*querysets: QuerySet[Operation], limit: int) -> list[Operation]:
    """Return the newest of all. One query each, because no index covers both sides of an OR."""
    newest = {operation.pk: operation for queryset in querysets for operation in listed_operations(queryset)[:limit]}
    return sorted(newest.values(), key=lambda operation: (operation.created_at, operation.pk), reverse=True)[:limit]


def build_operation_rows(operations: Iterable[Operation], user: User) -> list[OperationRow]:
    """Build the rows of operations from `listed_operations`. Only the newest of its kind and volume can be retried."""
    rows, seen = [], set()
    for operation in operations:
        snapshot, kind = operation.snapshot, Operation.Kind(operation.kind)
        key = (operation.snapshot_id, kind, operation.volume_id)
        target, safety = operation.volume or operation.vm, operation.safety_snapshot
        changed = {resource.project_id for resource in (operation.subject, target, safety) if resource}
        if kind == Operation.Kind.CAPTURE and operation.state == Operation.State.FAILED:
            # Retrying it reads the source again.
            changed.add(operation.source_project_id)  # type: ignore[attr-defined]  # of listed_operations
        can_change = all(user.can_change(project_id) for project_id in changed)
        is_newest_failure = can_change and operation.state == Operation.State.FAILED and key not in seen
        seen.add(key)
        if snapshot is None:
            can_retry = is_newest_failure and operation.subject.state == VOLUME_RETRYABLE_IN.get(kind)
            rows.append(
                OperationRow(operation, can_cancel=can_change and operation.can_be_cancelled, can_retry=can_retry)
            )
            continue
        is_usable = kind != Operation.Kind.NEW_VOLUME or operation.unchecked or not snapshot.is_damaged
        undo = safety if can_change and operation.can_be_undone else None
        rows.append(
            OperationRow(
                operation,
                can_see_snapshot=snapshot.project_id in user.roles,
                can_see_target=target is None or target.project_id in user.roles,
                can_see_safety=safety is None or safety.project_id in user.roles,
                can_cancel=can_change and operation.can_be_cancelled,
                can_retry=is_newest_failure and is_usable and is_retryable(snapshot, kind),
                can_restore_again=is_newest_failure
                and kind == Operation.Kind.RESTORE
                and snapshot.state == State.READY,
                can_undo=undo is not None and not get_driver(undo.location).reverts_only_latest,
            )
        )
    return rows


def is_retryable(snapshot: Snapshot, kind: Operation.Kind) -> bool:
    """Return whether the snapshot is in the state in which a failed operation of this kind can be retried."""
    if kind == Operation.Kind.DELETE:
        return can_be_erased(snapshot)
    return snapshot.state == RETRYABLE_IN.get(kind)


def estimate_time_left(operation: Operation, now: datetime) -> str:
    """Return a sentence such as `About 4 minutes left`, or an empty string if unknown, as for retries."""
    if operation.state != Operation.State.RUNNING or operation.attempt != 1 or operation.started_at is None:
        return ""
    spent = now - operation.started_at
    if spent < MIN_ESTIMATED or not 0 < operation.bytes_done <= operation.bytes_total:
        return ""
    # The ratio comes first, because a timedelta multiplied by a number of bytes overflows.
    ratio = (operation.bytes_total - operation.bytes_done) / operation.bytes_done
    if ratio > MAX_ESTIMATED / spent:
        return _("More than 30 days left")
    left = spent * ratio
    if left < MIN_ESTIMATED:
        return _("A few seconds left")
    return _("About %(time)s left") % {"time": length_of(left, threshold=1.5)}
