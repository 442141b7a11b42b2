"""What deleting means, before it happens: what can still be restored, what was paid, and what else depends on it.

One preview for the deletion of one snapshot, of many, of a schedule and of a volume. It takes the same number of queries
however many snapshots there are.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Count, Exists, Max, Min, OuterRef, Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.charges import costs_so_far
from cng_portal.accounts.models import User
from cng_portal.common.money import format_amount
from cng_portal.common.templatetags.portal import format_bytes, length_of, minute
from cng_portal.inventory.models import Location, Volume

from .locks import get_locks
from .models import BackupSchedule, DiskImage, Operation, Snapshot, SnapshotLock, State, usable
from .storage.contract import StorageError
from .storage.registry import get_driver

NAMES_SHOWN, DISKS_SHOWN = 3, 10


@dataclass(frozen=True)
class DiskPreview:
    """What can be restored of a volume before, and what remains. A restore point is a usable snapshot or backup with it."""

    volume: Volume
    before: int
    remaining: int
    oldest_before: datetime | None
    newest_before: datetime | None
    oldest: datetime | None
    newest: datetime | None
    is_verified: bool  # Whether any that remains was ever verified.
    is_visible: bool  # Whether the user sees the volume's project.

    @property
    def loses_last(self) -> bool:
        return self.before > 0 and self.remaining == 0

    @property
    def history_lost(self) -> timedelta:
        """Return by how much shorter the history is: at its old end, and at its new end."""
        if self.oldest_before is None or self.newest_before is None:
            return timedelta()
        if self.oldest is None or self.newest is None:
            return self.newest_before - self.oldest_before
        return (self.oldest - self.oldest_before) + (self.newest_before - self.newest)


@dataclass(frozen=True)
class DeletionPreview:
    disks: list[DiskPreview]
    locked: list[tuple[Snapshot, SnapshotLock]]
    schedules: list[BackupSchedule]  # They lose their last copy.
    made: list[Volume]  # They were made from what is deleted, and stay.
    freed_bytes: int | None  # None where the storage doesn't say.
    is_upper_bound: bool
    paid_micro: Counter[str]  # So far, by currency.

    @property
    def last_of(self) -> list[Volume]:
        """Return the volumes of which no restore point remains."""
        return [disk.volume for disk in self.disks if disk.loses_last]


def preview_deletion(
    snapshots: Collection[Snapshot], *, volumes: Collection[Volume] = (), user: User, at: datetime
) -> DeletionPreview:
    """Return what deleting the snapshots means, or the volumes, whose restore points stay. At most ten queries.

    Locked ones aren't deleted, so they count as remaining. The snapshots must come with location, project with customer,
    and run with schedule. Volumes and schedules in projects that the user doesn't see aren't named.
    """
    locks = get_locks([snapshot.pk for snapshot in snapshots])
    deleted = [snapshot for snapshot in snapshots if snapshot.pk not in locks]
    ids = [snapshot.pk for snapshot in deleted]
    images = list(DiskImage.objects.filter(snapshot__in=ids).select_related("volume"))
    touched = {image.volume_id: image.volume for image in images} | {volume.pk: volume for volume in volumes}
    sizes = [image.allocated_bytes for image in images]
    locations = {snapshot.location for snapshot in deleted}
    paid: Counter[str] = Counter()
    for cost in costs_so_far(ids, at).values():
        paid[cost.currency] += cost.amount_micro
    return DeletionPreview(
        disks=preview_disks(touched, ids, user),
        locked=[(snapshot, locks[snapshot.pk]) for snapshot in snapshots if snapshot.pk in locks],
        schedules=find_emptied_schedules(ids, user),
        made=find_made(ids, user),
        freed_bytes=None if not sizes or None in sizes else sum(size or 0 for size in sizes),
        is_upper_bound=any(may_share_blocks(location) for location in locations),
        paid_micro=paid,
    )


def may_share_blocks(location: Location) -> bool:
    """Return whether snapshots may share blocks. A storage that doesn't answer, or is full, may."""
    try:
        return get_driver(location).shares_blocks
    except StorageError:
        return True


def preview_disks(volumes: dict[UUID, Volume], deleted: Collection[UUID], user: User) -> list[DiskPreview]:
    points = DiskImage.objects.filter(usable("snapshot__"), volume__in=volumes).order_by()
    remains = ~Q(snapshot__in=deleted)
    rows = points.values("volume").annotate(
        before=Count("snapshot", distinct=True),
        oldest_before=Min("snapshot__ready_at"),
        newest_before=Max("snapshot__ready_at"),
        remaining=Count("snapshot", distinct=True, filter=remains),
        oldest=Min("snapshot__ready_at", filter=remains),
        newest=Max("snapshot__ready_at", filter=remains),
        verified=Count("pk", filter=remains & Q(verified_at__isnull=False, damage="")),
    )
    by_volume = {row.pop("volume"): row for row in rows}
    nothing = dict.fromkeys(("oldest_before", "newest_before", "oldest", "newest")) | {"before": 0, "remaining": 0}
    disks = []
    for volume_id, volume in volumes.items():
        row = by_volume.get(volume_id, nothing | {"verified": 0})
        is_verified, is_visible = bool(row.pop("verified")), volume.project_id in user.roles
        disks.append(DiskPreview(volume=volume, is_verified=is_verified, is_visible=is_visible, **row))
    return sorted(disks, key=lambda disk: (not disk.loses_last, disk.remaining, disk.volume.name_key))


def find_emptied_schedules(deleted: Collection[UUID], user: User) -> list[BackupSchedule]:
    """Return the present schedules whose copies are all deleted."""
    copies = Snapshot.objects.filter(run__schedule=OuterRef("pk"), state=State.READY)
    schedules = BackupSchedule.objects.visible_to(user).present().filter(runs__snapshot__in=deleted)
    emptied = schedules.exclude(Exists(copies.exclude(pk__in=deleted)))
    return list(emptied.with_related().order_by("pk").distinct()[: NAMES_SHOWN + 1])


def find_made(deleted: Collection[UUID], user: User) -> list[Volume]:
    makers = Operation.objects.filter(
        kind=Operation.Kind.NEW_VOLUME, state=Operation.State.SUCCEEDED, snapshot__in=deleted, volume=OuterRef("pk")
    )
    return list(Volume.objects.visible_to(user).present().filter(Exists(makers)).order_by("name_key", "pk"))


def describe_restore(snapshot: Snapshot, disks: Iterable[DiskImage], *, captured_at: datetime) -> str:
    """Return what can still be got of what was written since the snapshot was taken. One query."""
    volumes = [disk.volume_id for disk in disks]
    points = DiskImage.objects.filter(usable("snapshot__"), volume__in=volumes, snapshot__ready_at__gt=captured_at)
    others = points.exclude(snapshot=snapshot)
    newer = others.aggregate(count=Count("snapshot", distinct=True), newest=Max("snapshot__ready_at"))
    if not newer["count"]:
        return _("There is no newer restore point.")
    return ngettext(
        "%(count)s newer restore point stays, of %(newest)s. It has the data written until then.",
        "%(count)s newer restore points stay, the newest of %(newest)s. They have the data written until then.",
        newer["count"],
    ) % {"count": newer["count"], "newest": minute(newer["newest"])}


def describe_disk(disk: DiskPreview) -> str:
    """Return what remains of a volume's restore points."""
    values = {"name": disk.volume.name, "count": disk.remaining}
    if not disk.remaining:
        if disk.loses_last:
            return _("“%(name)s”: no restore point remains. This deletes the last one.") % values
        return _("“%(name)s” has no restore point.") % values
    assert disk.newest is not None
    text = ngettext(
        "“%(name)s”: %(count)s restore point remains, of %(newest)s.",
        "“%(name)s”: %(count)s restore points remain, the newest of %(newest)s.",
        disk.remaining,
    ) % (values | {"newest": minute(disk.newest)})
    lost = disk.history_lost
    if lost >= timedelta(hours=1):
        text += " " + _("Its history gets %(lost)s shorter.") % {"lost": length_of(lost, threshold=1.5)}
    if not disk.is_verified:
        text += " " + ngettext("It was never verified.", "None of them was ever verified.", disk.remaining)
    return text


def describe(preview: DeletionPreview, *, is_binned: bool = False) -> list[str]:
    """Return the preview in sentences. `is_binned`: they go to the recycle bin first."""
    disks = [disk for disk in preview.disks if disk.is_visible or disk.loses_last]
    lines = [describe_disk(disk) for disk in disks[:DISKS_SHOWN]]
    hidden = [disk.remaining for disk in disks[DISKS_SHOWN:]]
    if hidden:
        lines.append(
            ngettext(
                "Of %(count)s more volume, %(least)s or more restore points remain.",
                "Of each of %(count)s more volumes, %(least)s or more restore points remain.",
                len(hidden),
            )
            % {"count": len(hidden), "least": min(hidden)}
        )
    for snapshot, lock in preview.locked:
        lines.append(
            _("“%(name)s” is locked until %(time)s and isn't deleted.")
            % {"name": snapshot.name, "time": minute(lock.until)}
        )
    for schedule in preview.schedules:
        lines.append(_("The schedule “%(name)s” loses its last copy.") % {"name": schedule})
    if preview.made:
        lines.append(
            ngettext(
                "The volume made from it stays: %(names)s.",
                "The volumes made from it stay: %(names)s.",
                len(preview.made),
            )
            % {"names": join_names(volume.name for volume in preview.made)}
        )
    if preview.paid_micro:
        lines.append(_("You have been charged %(paid)s so far.") % {"paid": format_sums(preview.paid_micro)})
    if preview.freed_bytes is not None:
        lines.append(explain_freed(preview, is_binned=is_binned) % {"size": format_bytes(preview.freed_bytes)})
    return lines


def explain_freed(preview: DeletionPreview, *, is_binned: bool) -> str:
    if preview.is_upper_bound and is_binned:
        return _("At most %(size)s of storage becomes free after the recycle bin: blocks that others share stay.")
    if preview.is_upper_bound:
        return _("At most %(size)s of storage becomes free: blocks that others share stay.")
    if is_binned:
        return _("%(size)s of storage becomes free after the recycle bin.")
    return _("%(size)s of storage becomes free.")


def format_sums(sums: Counter[str]) -> str:
    return "; ".join(format_amount(micro, currency) for currency, micro in sorted(sums.items()))


def join_names(names: Iterable[str]) -> str:
    """Return the first names in quotation marks, and how many more there are."""
    names = list(names)
    shown = ", ".join(f"“{name}”" for name in names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return _("%(names)s and %(count)s more") % {"names": shown, "count": more} if more > 0 else shown
