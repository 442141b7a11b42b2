"""What the portal believes, compared with what storage holds and with what is charged, both ways.

It reads in pages of rows and in the engine's own listing, so it needs the same memory however much there is, and it runs
while the portal works. Nothing is locked: whatever looks wrong is looked at again before it is told, in the order in
which operations write, so that work which goes on meanwhile is no finding.

Each `Finding` has a code, which EXPLANATIONS explains. It has a `mend` only where nothing else can be right.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import Exists, F, Model, OuterRef, Q, QuerySet, Sum
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.usage import close_segment, running_usage
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Location, Volume

from .. import operations
from ..damage import record_damage, record_sound
from ..handlers import fail_capture, is_needed
from ..models import SERVICE_KINDS, BackupSchedule, DiskImage, Kind, Operation, Snapshot, State, volume_ref
from ..storage.contract import GIB, Busy, Corrupt, Driver, Held, InvalidImage, NotFound, SnapshotInfo, StorageError
from ..storage.registry import get_driver

PAGE = 500
# What is in storage longer than this without a row will not get one; an import makes the disk first.
SETTLED_AFTER = timedelta(minutes=1)
# The scheduler enqueues pending operations every minute, so one this old has no scheduler.
OVERDUE_AFTER = timedelta(minutes=5)

M = TypeVar("M", bound=Model)
T = TypeVar("T")


class Explanation(NamedTuple):
    title: str | Promise
    means: str | Promise
    remedy: str | Promise
    repair: str | Promise


NOT_MENDED = gettext_lazy("--repair leaves it as it is.")
EXPLANATIONS = {
    "unreachable": Explanation(
        gettext_lazy("The storage does not answer"),
        gettext_lazy(
            "This location could not be compared, or not to its end, so nothing is known about the rest of it."
        ),
        gettext_lazy(
            "Look whether the engine runs, its file system is mounted and its account is valid; the entry of STORAGE "
            "names it. Then run fsck again."
        ),
        NOT_MENDED,
    ),
    "lost": Explanation(
        gettext_lazy("A Ready snapshot without bytes"),
        gettext_lazy(
            "A customer sees this snapshot as Ready and pays for it, but storage does not have it: it cannot be restored. "
            "Somebody removed it past the portal, a file system is not mounted, or an older copy of the storage is in "
            "use."
        ),
        gettext_lazy(
            "First make sure that the right file system is mounted at the storage's root: then nothing is lost. Bring the "
            "folder back from a copy of the storage. If there is none, tell the customer, delete the snapshot in the "
            "portal, which ends its billing, and give back what was charged since it was lost."
        ),
        NOT_MENDED,
    ),
    "volume-lost": Explanation(
        gettext_lazy("A volume without a disk"),
        gettext_lazy("The portal offers this volume for snapshots, but storage does not have it: each one will fail."),
        gettext_lazy(
            "If it was deleted past the portal, say so in admin by setting its date of deletion; its snapshots stay. Else "
            "bring the disk back from a copy of the storage, or make a new volume from its latest snapshot."
        ),
        NOT_MENDED,
    ),
    "corrupt": Explanation(
        gettext_lazy("A damaged snapshot"),
        gettext_lazy(
            "Storage has it, but a part is missing, its description cannot be read, or its bytes are not those that were "
            "captured. A restore would be refused or bring back something else."
        ),
        gettext_lazy(
            "Bring its folder back from a copy of the storage. If there is none, check the medium, tell the customer, and "
            "take a new snapshot while the volume is still sound."
        ),
        gettext_lazy(
            "With --read, --repair marks the snapshot as damaged: that ends its billing and tells the customer. It removes "
            "nothing."
        ),
    ),
    "disagrees": Explanation(
        gettext_lazy("Storage and portal say different things of a snapshot"),
        gettext_lazy(
            "Size, checksum or instant of the bytes are others than those that the portal recorded when it became Ready. "
            "Either the database or the storage is an older copy, or somebody changed the manifest."
        ),
        gettext_lazy(
            "Do not restore from it before you know which side is right. Compare manifest.json with the disk image's row "
            "in admin, run fsck --read, and bring back the side that is wrong."
        ),
        NOT_MENDED,
    ),
    "damaged": Explanation(
        gettext_lazy("A disk with damage that is known already"),
        gettext_lazy(
            "A verification, a restore or a new volume read other bytes than were captured. The customer was told, sees "
            "it, and has paid nothing for the snapshot since."
        ),
        gettext_lazy(
            "Bring the disk back from a copy of the storage and let the snapshot be verified again, which clears the "
            "mark. Else agree with the customer that it is deleted."
        ),
        gettext_lazy(
            "--repair reads it again and clears the mark if its bytes match. The snapshot can then be used, is charged from "
            "that instant on, and its people are told."
        ),
    ),
    "unread": Explanation(
        gettext_lazy("A snapshot that was never read"),
        gettext_lazy(
            "It has no checksum and nothing is under way to make one, so nobody could tell damage from health."
        ),
        gettext_lazy("Let it be verified: on its page, or with --repair."),
        gettext_lazy("--repair asks for a verification, which reads it. Nothing is marked as healthy before that."),
    ),
    "orphan": Explanation(
        gettext_lazy("Something in storage that the portal does not know"),
        gettext_lazy(
            "No volume and no snapshot has this id. After a restore of an older database it is what was made since then, "
            "and may be the only copy."
        ),
        gettext_lazy(
            "Find out whose it is: manifest.json beside a snapshot's bytes names the volume and the time. A disk can be "
            "imported as a new volume with manage.py import_volume. Remove it by hand when nobody needs it."
        ),
        NOT_MENDED,
    ),
    "foreign": Explanation(
        gettext_lazy("A strange file in the storage's folder"),
        gettext_lazy("Its name is none that the portal gives. It takes room and is never cleaned up."),
        gettext_lazy("Find out who put it there, and move it elsewhere."),
        NOT_MENDED,
    ),
    "half-made": Explanation(
        gettext_lazy("A half-made or half-removed file"),
        gettext_lazy(
            "A process died while it wrote this, and no operation will come back to it. It is not part of any snapshot "
            "or volume; it only takes room."
        ),
        gettext_lazy(
            "Nothing: the scheduler removes it within the hour. If it stays, see whether the scheduler runs. Where what has "
            "this id is told as lost, it is kept and may be the only copy: take the dot and the ending off its name."
        ),
        gettext_lazy("--repair removes it, unless somebody works on it or a row needs it."),
    ),
    "left-over": Explanation(
        gettext_lazy("Bytes of a snapshot that is deleted or was never taken"),
        gettext_lazy(
            "The portal is done with it and nobody pays for it, but storage still holds it and it takes room."
        ),
        gettext_lazy(
            "Let --repair remove what is deleted. Delete a failed one in the portal, which removes its bytes; but not after "
            "a restore of an older database, when it may have become Ready since."
        ),
        gettext_lazy("--repair removes it where its deletion was accepted."),
    ),
    "volume-left-over": Explanation(
        gettext_lazy("The disk of a volume that is gone"),
        gettext_lazy("The portal shows this volume as deleted or failed, but storage still holds its disk."),
        gettext_lazy(
            "If it was meant to go, remove the disk by hand. If not, clear its date of deletion in admin and set it to "
            "available."
        ),
        NOT_MENDED,
    ),
    "volume-size": Explanation(
        gettext_lazy("A volume whose disk is not as large as the portal says"),
        gettext_lazy(
            "No snapshot of it can be taken or restored. The disk was resized or cut off, or a link, a pipe or a folder has "
            "taken its place."
        ),
        gettext_lazy(
            "Bring back a regular file of exactly the volume's size. To keep a disk of another size, import it as a new "
            "volume with manage.py import_volume."
        ),
        NOT_MENDED,
    ),
    "stuck": Explanation(
        gettext_lazy("Something that waits for ever"),
        gettext_lazy(
            "It is being taken, made or deleted, but no operation will carry that out: a person waits in vain. The "
            "portal never writes such rows; somebody changed the database by hand, or a deletion failed for good."
        ),
        gettext_lazy("Let --repair settle it. When a deletion fails again, its operation in admin says why."),
        gettext_lazy(
            "--repair asks for an accepted deletion once more, and fails what was waiting to be taken or made: that costs "
            "nothing, and can be tried again."
        ),
    ),
    "overdue": Explanation(
        gettext_lazy("An operation that nobody looks after"),
        gettext_lazy("It waits, or its worker died, and for minutes nobody woke it: no scheduler runs."),
        gettext_lazy("Start the scheduler, and see in its log why it stopped."),
        gettext_lazy("--repair enqueues it again for a worker."),
    ),
    "not-charged": Explanation(
        gettext_lazy("A Ready snapshot that nobody is charged for"),
        gettext_lazy("It is there and usable, but billing has no running usage of it, or one of another size."),
        gettext_lazy(
            "See in admin when its usage ended and who ended it. Whether the customer is charged from now on, or for the "
            "past as well, is a decision for people."
        ),
        NOT_MENDED,
    ),
    "charged": Explanation(
        gettext_lazy("A customer is charged for what is not there"),
        gettext_lazy(
            "Billing has running usage of a snapshot that is not Ready, or that is damaged. The sum grows with every hour."
        ),
        gettext_lazy("Let --repair end it where it can. Else end the usage in admin, and give back what was too much."),
        gettext_lazy(
            "--repair ends the usage at the instant at which the damage was found or the deletion accepted. Without such an "
            "instant it leaves it."
        ),
    ),
}


@dataclass(frozen=True)
class Finding:
    """`mend` makes it right and returns whether it could; None where that is not certain."""

    code: str
    location: str
    thing: str  # what it is about, for who has to find it
    detail: str = ""
    mend: Callable[[], bool] | None = None


def look(
    location: Location,
    *,
    read: bool = False,
    now: datetime | None = None,
    progress: Callable[[int], object] = lambda things: None,
) -> Iterator[Finding]:
    """Everything that does not fit in one location. `read` also reads every snapshot's bytes, which takes long."""
    now = now or timezone.now()
    yield from look_at_rows(location, now)
    yield from look_at_charges(location)
    try:
        driver = get_driver(location)
        yield from look_for_snapshots(location, driver, read=read, progress=progress)
        yield from look_for_volumes(location, driver, progress)
        for cloud_project in cloud_projects(location):
            yield from look_at_storage(location, driver, cloud_project, now, progress)
    except (StorageError, ImproperlyConfigured) as error:
        yield Finding("unreachable", location.pk, location.pk, str(error))


# --- rows, and what should be in storage -----------------------------------------------------------------------------


def look_for_snapshots(
    location: Location, driver: Driver, *, read: bool, progress: Callable[[int], object]
) -> Iterator[Finding]:
    disks = DiskImage.objects.filter(snapshot__location=location, snapshot__state=State.READY)
    for disk in in_pages(disks.select_related("snapshot", "volume")):
        progress(1)
        problem = problem_with(disk, driver, read=read)
        # its deletion is accepted before anything is removed, so this order tells a loss from a deletion
        if problem and disks.filter(pk=disk.pk).exists():
            code, detail = problem
            is_news = code == "corrupt" and read and not disk.snapshot.is_damaged
            yield Finding(
                code, location.pk, describe_disk(disk), detail, partial(mark_damaged, disk, detail) if is_news else None
            )
        elif not problem and disk.damage:
            yield Finding("damaged", location.pk, describe_disk(disk), disk.damage, partial(read_again, disk, driver))
        elif not problem and driver.reads_bytes and not disk.checksum and not is_being_verified(disk):
            yield Finding("unread", location.pk, describe_disk(disk), mend=partial(request_reading, disk.snapshot_id))


def problem_with(disk: DiskImage, driver: Driver, *, read: bool) -> tuple[str, str] | None:
    try:
        info = driver.find_snapshot(disk.ref)
        if info is None:
            return "lost", _("Storage has nothing of this id.")
        if read:
            try:
                # without the portal's own checksum, which is compared below and is another finding
                info = driver.verify_snapshot(replace(disk.ref, checksum=""))
            except Busy:  # it is being verified, or deleted
                pass
    except Corrupt as error:
        return "corrupt", str(error)
    except NotFound as error:
        return "lost", str(error)
    differences = list(differences_between(disk, info))
    return ("disagrees", "; ".join(differences)) if differences else None


def differences_between(disk: DiskImage, info: SnapshotInfo) -> Iterator[str]:
    pairs = [
        (_("size in bytes"), disk.size_gb * GIB, info.size_bytes),
        (_("checksum"), disk.checksum, disk.checksum and info.checksum),
        (_("instant"), disk.captured_at, disk.captured_at and info.captured_at),
        (_("backend reference"), disk.backend_ref, disk.backend_ref and info.backend_ref),
    ]
    for what, portal, storage in pairs:
        if portal != storage:
            yield _("%(what)s: %(portal)s in the portal, %(storage)s in storage") % {
                "what": what,
                "portal": portal,
                "storage": storage,
            }


def look_for_volumes(location: Location, driver: Driver, progress: Callable[[int], object]) -> Iterator[Finding]:
    volumes = Volume.objects.present().filter(location=location, state=Volume.State.AVAILABLE)
    for volume in in_pages(volumes):
        progress(1)
        try:
            driver.bytes_needed([volume_ref(volume)])
        except NotFound as error:
            if volumes.filter(pk=volume.pk).exists():
                yield Finding("volume-lost", location.pk, describe_volume(volume), str(error))
        except InvalidImage:
            pass  # reported as "volume-size", when what storage holds is compared


# --- storage, and what it should not hold ----------------------------------------------------------------------------


def cloud_projects(location: Location) -> list[str]:
    """The engine's own projects that anything of ours is in; "" is the one that the portal itself signs in to."""
    named = Volume.objects.filter(location=location).exclude(backend_project="")
    return ["", *named.order_by("backend_project").values_list("backend_project", flat=True).distinct()]


def look_at_storage(
    location: Location, driver: Driver, cloud_project: str, now: datetime, progress: Callable[[int], object]
) -> Iterator[Finding]:
    for things in batches(driver.held(cloud_project), PAGE):
        progress(len(things))
        uuids = [thing.uuid for thing in things if thing.uuid]
        disks = DiskImage.objects.select_related("snapshot", "volume").in_bulk(uuids)
        volumes = Volume.objects.in_bulk(uuids)
        for thing in things:
            finding = judge(thing, disks, volumes, location, driver, cloud_project, now)
            if finding and thing.still_there():
                yield finding


def judge(
    thing: Held,
    disks: dict[UUID, DiskImage],
    volumes: dict[UUID, Volume],
    location: Location,
    driver: Driver,
    cloud_project: str,
    now: datetime,
) -> Finding | None:
    if thing.half_made:
        if thing.uuid and is_being_worked_on(thing.uuid):
            return None
        return Finding(
            "half-made", location.pk, thing.name, mend=partial(remove_half_made, driver, cloud_project, thing)
        )
    if thing.uuid is None:
        return Finding("foreign", location.pk, thing.name)
    if disk := disks.get(thing.uuid):
        state = disk.snapshot.state
        if state not in (State.FAILED, State.DELETED) or is_being_worked_on(disk.pk):
            return None
        return Finding(
            "left-over",
            location.pk,
            describe_disk(disk),
            _("In storage as %(name)s; the snapshot is %(state)s.")
            % {"name": thing.name, "state": disk.snapshot.get_state_display()},
            partial(remove_left_over, driver, disk) if state == State.DELETED else None,
        )
    if volume := volumes.get(thing.uuid):
        if volume.state == Volume.State.ERROR or volume.deleted_at:
            if is_being_worked_on(volume.pk):
                return None
            return Finding("volume-left-over", location.pk, describe_volume(volume), thing.name)
        if volume.state == Volume.State.AVAILABLE and thing.size_bytes not in (None, volume.size_gb * GIB):
            detail = _("%(portal)s bytes in the portal, %(storage)s in storage") % {
                "portal": volume.size_gb * GIB,
                "storage": thing.size_bytes,
            }
            return Finding("volume-size", location.pk, describe_volume(volume), detail)
        return None
    if thing.changed_at and now - SETTLED_AFTER < thing.changed_at <= now + SETTLED_AFTER:
        return None
    return Finding("orphan", location.pk, thing.name)


# --- rows by themselves ----------------------------------------------------------------------------------------------


def look_at_rows(location: Location, now: datetime) -> Iterator[Finding]:
    """Rows that no operation carries forward, and operations that nobody carries forward.

    A row and its operation are written in one transaction, and each query sees both or neither.
    """
    ready = Snapshot.objects.filter(location=location, state=State.READY)
    incomplete = ready.alias(known=Sum("disks__size_gb", default=0)).exclude(known=F("size_gb"))
    for found in in_pages(incomplete):
        detail = _("Its disks together do not have its %(size)s GB: a row of one is gone or another's.")
        yield Finding("disagrees", location.pk, describe(found), detail % {"size": found.size_gb})
    active = Operation.objects.active()
    own = active.filter(snapshot=OuterRef("pk"))
    waiting = Snapshot.objects.filter(location=location, state__in=[State.PENDING, State.CREATING])
    taken = own.filter(kind=Operation.Kind.CAPTURE), active.filter(safety_snapshot=OuterRef("pk"))
    for snapshot in in_pages(waiting.exclude(Exists(taken[0])).exclude(Exists(taken[1]))):
        detail = snapshot.get_state_display()
        yield Finding("stuck", location.pk, describe(snapshot), detail, partial(fail, snapshot.pk))
    deleting = Snapshot.objects.filter(location=location, state=State.DELETING)
    for snapshot in in_pages(deleting.exclude(Exists(own.filter(kind=Operation.Kind.DELETE)))):
        detail = snapshot.get_state_display()
        yield Finding("stuck", location.pk, describe(snapshot), detail, partial(request_removal, snapshot.pk))
    making = Volume.objects.filter(location=location, state=Volume.State.CREATING)
    for volume in in_pages(making.exclude(Exists(active.filter(volume=OuterRef("pk"))))):
        detail = volume.get_state_display()
        yield Finding("stuck", location.pk, describe_volume(volume), detail, partial(fail_volume, volume.pk))
    silent = now - OVERDUE_AFTER
    lost = active.filter(state=Operation.State.RUNNING, lease_until__lt=silent)
    unattended = operations.in_turn(now).filter(state=Operation.State.PENDING, not_before__lt=silent)
    overdue = lost | unattended if operations.lacks_queued_task(now) else lost
    for operation in in_pages(overdue.filter(snapshot__location=location)):
        yield Finding("overdue", location.pk, f"{operation} · {operation.pk}", mend=partial(enqueue, now))


def look_at_charges(location: Location) -> Iterator[Finding]:
    """Ready snapshots and running usage, both ways: becoming Ready starts it and accepting a deletion ends it, each in
    one transaction.
    """
    usage = running_usage(location_code=location.pk, kinds=SERVICE_KINDS.values())
    ready = charged_snapshots(location)
    for snapshots in batches(in_pages(ready), PAGE):
        charged = sizes(usage, snapshots)
        for snapshot in snapshots:
            if charged.get((snapshot.pk, snapshot.service_kind)) == snapshot.size_gb:
                continue
            if ready.filter(pk=snapshot.pk).exists():
                size = charged.get((snapshot.pk, snapshot.service_kind))
                detail = _("charged as %(size)s GB, it has %(real)s") % {"size": size, "real": snapshot.size_gb}
                yield Finding("not-charged", location.pk, describe(snapshot), detail if size else "")
    for segments in batches(in_pages(usage), PAGE):
        found = Snapshot.objects.in_bulk([segment.resource_id for segment in segments])
        for segment in segments:
            charged_for = found.get(segment.resource_id)
            if charged_for and charged_for.state == State.READY and not charged_for.is_damaged:
                continue
            if usage.filter(pk=segment.pk).exists():
                thing = f"{segment.resource_name} ({segment.resource_id})"
                state = charged_for.shown_state_label if charged_for else _("not known to the portal")
                ended_at = charged_for and (charged_for.damaged_at or charged_for.delete_requested_at)
                mend = partial(end_usage, charged_for, ended_at) if charged_for and ended_at else None
                yield Finding("charged", location.pk, thing, state, mend)


def charged_snapshots(location: Location) -> QuerySet[Snapshot]:
    """Those that have to have running usage."""
    ready = Snapshot.objects.filter(location=location, state=State.READY)
    automatic = Q(kind=Kind.BACKUP, run__schedule__origin=BackupSchedule.Origin.AUTOMATIC)
    # what was made or deleted in the cloud is charged by rules of the location, which every look at the cloud applies
    return ready.exclude(automatic).filter(made_outside=False, missing_since=None, damaged_at=None)


def sizes(usage: QuerySet[Any], snapshots: Iterable[Snapshot]) -> dict[tuple[UUID, str], int]:
    found = usage.filter(resource_id__in=[snapshot.pk for snapshot in snapshots])
    return {(one.resource_id, one.kind): one.size_gb for one in found}


# --- mending -----------------------------------------------------------------------------------------------------------


def mark_damaged(disk: DiskImage, damage: str) -> bool:
    with transaction.atomic():
        return record_damage(disk.snapshot, {disk: damage}, timezone.now())


def read_again(disk: DiskImage, driver: Driver) -> bool:
    """Clear the mark of a damaged disk whose bytes match again. Its snapshot is sound once all of its disks are."""
    try:
        driver.verify_snapshot(disk.ref)
    except StorageError:
        return False
    with transaction.atomic():
        snapshot = locked(disk.snapshot_id)
        DiskImage.objects.filter(pk=disk.pk).update(damage="")
        if snapshot.disks.exclude(damage="").exists():
            return True
        return record_sound(snapshot, timezone.now())


def request_reading(snapshot_id: UUID) -> bool:
    with transaction.atomic():
        snapshot = locked(snapshot_id)
        verifying = Operation.objects.active().filter(snapshot=snapshot, kind=Operation.Kind.VERIFY)
        if snapshot.state == State.READY and not verifying.exists():
            operations.create_operation(kind=Operation.Kind.VERIFY, snapshot=snapshot)
    return True


def request_removal(snapshot_id: UUID) -> bool:
    with transaction.atomic():
        snapshot = locked(snapshot_id)
        deleting = Operation.objects.active().filter(snapshot=snapshot, kind=Operation.Kind.DELETE)
        if snapshot.state == State.DELETING and not deleting.exists():
            operations.create_operation(kind=Operation.Kind.DELETE, snapshot=snapshot)
    return True


def fail(snapshot_id: UUID) -> bool:
    with transaction.atomic():
        snapshot = locked(snapshot_id)
        reason = _("Nothing was under way to take it, so it was given up. Nothing was charged. Try again.")
        fail_capture(snapshot, reason)
    return True


def fail_volume(volume_id: UUID) -> bool:
    making = Volume.objects.filter(pk=volume_id, state=Volume.State.CREATING)
    return making.update(state=Volume.State.ERROR, deleted_at=timezone.now()) == 1


def enqueue(now: datetime) -> bool:
    operations.reconcile(now=now)
    return True


def end_usage(snapshot: Snapshot, at: datetime) -> bool:
    return close_segment(resource_id=snapshot.pk, kind=snapshot.service_kind, at=at)


def remove_half_made(driver: Driver, cloud_project: str, thing: Held) -> bool:
    """What a row needs stays: after a restore of an older database, what was being removed may be the only copy."""
    try:
        driver.remove_leftovers(cloud_project, is_needed)
    except StorageError:
        return False
    return not thing.still_there()


def remove_left_over(driver: Driver, disk: DiskImage) -> bool:
    """Nobody leaves the state Deleted, so nobody can want it again meanwhile."""
    try:
        driver.delete_snapshot(disk.ref)
    except StorageError:
        return False
    return True


# --- helpers -----------------------------------------------------------------------------------------------------------


def locked(snapshot_id: UUID) -> Snapshot:
    lock_customer(Snapshot.objects.values_list("customer_id", flat=True).get(pk=snapshot_id))
    return Snapshot.objects.get(pk=snapshot_id)


def is_being_worked_on(uuid: UUID) -> bool:
    """Whether an operation that is not finished reads or writes the disk image or the volume of this id."""
    of_disk = Q(snapshot__disks=uuid) | Q(safety_snapshot__disks=uuid)
    return Operation.objects.active().filter(of_disk | Q(volume=uuid) | Q(snapshot__disks__volume=uuid)).exists()


def is_being_verified(disk: DiskImage) -> bool:
    """Or has got its checksum, or has left the state in which it needs one."""
    verifying = Operation.objects.active().filter(snapshot=disk.snapshot_id, kind=Operation.Kind.VERIFY)
    unread = DiskImage.objects.filter(pk=disk.pk, checksum="", snapshot__state=State.READY)
    return verifying.exists() or not unread.exists()


def describe(snapshot: Snapshot) -> str:
    return f"{snapshot.get_kind_display()} “{snapshot.name}” ({snapshot.pk})"


def describe_disk(disk: DiskImage) -> str:
    return f"{describe(disk.snapshot)}, {disk.volume_name} ({disk.pk})"


def describe_volume(volume: Volume) -> str:
    return _("Volume “%(name)s” (%(uuid)s)") % {"name": volume.name, "uuid": volume.pk}


def in_pages(rows: QuerySet[M]) -> Iterator[M]:
    """All rows by their key, a page at a time: no cursor stays open while storage is asked."""
    page = list(rows.order_by("pk")[:PAGE])
    while page:
        yield from page
        page = list(rows.filter(pk__gt=page[-1].pk).order_by("pk")[:PAGE])


def batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(things)
    while batch := list(islice(iterator, size)):
        yield batch
