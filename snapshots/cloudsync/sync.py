"""The portal's inventory brought in line with the clouds: what came, what changed, what is gone, what came back.

A look at a cloud begins at an instant `since`. Whatever it finds is stamped with that instant (`seen_at`), and what has
an older stamp at its end was not found. Every write names the older stamp that it replaces, so that of two looks at once
the one that began later wins, and nothing happens twice. Lists are read and written page by page.

Nothing is ever deleted: volumes and machines that are gone get `deleted_at`, and lose it when they are found again. A
snapshot of the portal that was deleted in the cloud gets `missing_since`. One that was made in the cloud is imported with
`made_outside`; deleted there, it is deleted here. Whether such snapshots cost anything is a rule of their location.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Exists, Model, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.models import UsageSegment
from cng_portal.accounts.services import lock_customer
from cng_portal.common.loops import for_each
from cng_portal.common.names import MAX_NAME_LENGTH, fold_name, to_name
from cng_portal.inventory.models import CloudProject, Location, VirtualMachine, Volume

from ..models import DeletionCause, DiskImage, Kind, Operation, Snapshot, State, costs_nothing
from ..storage.contract import Consistency, Driver, StorageError
from ..storage.inventory import CloudProjectInfo, CloudServer, CloudSnapshot, CloudVolume, Inventory
from ..storage.registry import get_driver

M = TypeVar("M", bound=Model)

logger = structlog.stdlib.get_logger(__name__)


class NothingToSync(Exception):
    """The location's engine has nothing but what the portal makes: `str(error)` says so."""


@dataclass
class Report:
    """What a look at one location changed, and the cloud projects that it could not look into: {name: reason}."""

    volumes_new: int = 0
    volumes_changed: int = 0
    volumes_gone: int = 0
    machines_new: int = 0
    machines_gone: int = 0
    snapshots_new: int = 0
    snapshots_gone: int = 0
    snapshots_back: int = 0
    charges_changed: int = 0
    unmapped: list[CloudProject] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, int]:
        """{what: how many}, without the zeros."""
        return {name: count for name, count in vars(self).items() if isinstance(count, int) and count}


@dataclass(frozen=True)
class Look:
    """One look into one cloud project that is mapped to a project."""

    location: Location
    cloud_project: CloudProject
    since: datetime
    report: Report

    @property
    def place(self) -> dict[str, Any]:
        """What volumes and machines of it have in common."""
        return {"location": self.location, "backend_project": self.cloud_project.external_id}

    @property
    def unseen(self) -> Q:
        return Q(seen_at=None) | Q(seen_at__lt=self.since)

    @property
    def disks(self) -> QuerySet[DiskImage]:
        return DiskImage.objects.filter(
            volume__location=self.location, volume__backend_project=self.cloud_project.external_id
        )

    @property
    def snapshots(self) -> QuerySet[Snapshot]:
        """Those that are ready here, whether or not they are there."""
        return Snapshot.objects.filter(
            Exists(self.disks.filter(snapshot=OuterRef("pk"))), location=self.location, state=State.READY
        )


def sync_everywhere() -> None:
    """Sync every location. One that fails doesn't stop the others; an unexpected error is raised at the end."""
    for_each(Location.objects.order_by("code"), sync_and_log)


def sync_and_log(location: Location) -> None:
    try:
        report = sync_location(location)
    except NothingToSync:
        return
    except StorageError as error:
        logger.warning("cloudsync.location_failed", location=location.code, error=str(error))
        return
    for name, reason in report.failed.items():
        logger.warning("cloudsync.project_failed", cloud_project=name, location=location.code, error=reason)
    if report.changes:
        logger.info("cloudsync.changed", location=location.code, changes=report.changes)


def sync_location(location: Location, *, now: datetime | None = None) -> Report:
    """Look at everything behind a location once. What fails for one project leaves the others alone.

    Raises NothingToSync, and StorageError when the cloud as a whole cannot be asked.
    """
    driver = get_driver(location)
    if not isinstance(driver, Inventory):
        raise NothingToSync(
            _("The storage of %(location)s has only what this portal makes, so there is nothing to bring in.")
            % {"location": location.code}
        )
    since, report = now or timezone.now(), Report()
    driver.remove_orphans()
    found = driver.list_projects()
    record_projects(location, found, since)
    own = next((project.ref for project in found if project.is_own), "")
    known = CloudProject.objects.filter(location=location, missing_since=None)
    for cloud_project in one_by_one(known.select_related("project")):
        look = Look(location, cloud_project, since, report)
        try:
            sync_project(look, driver, driver, is_own=cloud_project.external_id == own)
            error = ""
        except StorageError as failure:
            error = report.failed[str(cloud_project)] = str(failure)
        except Exception:
            logger.exception(
                "cloudsync.project_crashed", cloud_project=cloud_project.external_id, location=location.code
            )
            error = report.failed[str(cloud_project)] = _("An unexpected error, which is in the scheduler's log.")
        CloudProject.objects.filter(pk=cloud_project.pk).exclude(error=error).update(error=error)
    return report


def one_by_one(rows: QuerySet[M], size: int = 500) -> Iterator[M]:
    """Each row, in the order of ids, read so many at a time. Between them nothing is open: SQLite lets nobody write who has
    not read to the end what others change.
    """
    page = list(rows.order_by("pk")[:size])
    while page:
        yield from page
        page = list(rows.filter(pk__gt=page[-1].pk).order_by("pk")[:size])


def record_projects(location: Location, found: list[CloudProjectInfo], since: datetime) -> None:
    rows = [
        CloudProject(location=location, external_id=project.ref, name=to_name(project.name, default="", max_length=255))
        for project in sorted(found, key=lambda project: project.ref)  # two looks wait in the same order
    ]
    CloudProject.objects.bulk_create(
        rows,
        batch_size=200,
        update_conflicts=True,
        unique_fields=["location", "external_id"],
        update_fields=["name", "missing_since"],
    )
    known = CloudProject.objects.filter(location=location, missing_since=None)
    gone = set(known.values_list("external_id", flat=True)) - {project.ref for project in found}
    known.filter(external_id__in=gone).update(missing_since=since)


def sync_project(look: Look, driver: Driver, inventory: Inventory, *, is_own: bool) -> None:
    cloud_project, ref = look.cloud_project, look.cloud_project.external_id
    use = inventory.get_usage(ref)
    cloud_project.volume_count, cloud_project.volume_quota = use.volumes, use.volume_quota
    cloud_project.snapshot_count, cloud_project.snapshot_quota = use.snapshots, use.snapshot_quota
    cloud_project.used_gb, cloud_project.gb_quota = use.gb, use.gb_quota
    fields = ["volume_count", "volume_quota", "snapshot_count", "snapshot_quota", "used_gb", "gb_quota"]
    cloud_project.save(update_fields=fields)
    if cloud_project.project is None:
        look.report.unmapped.append(cloud_project)
        return
    if is_own:  # what the portal made here before it knew the name of its own project
        nameless = Volume.objects.filter(location=look.location, backend_project="").exclude(backend_ref="")
        with turn_of(look):
            nameless.update(backend_project=ref)
    servers = inventory.server_pages(ref)
    for machines in servers or ():
        with turn_of(look):
            save_machines(look, machines)
    for volumes in inventory.volume_pages(ref):
        with turn_of(look):
            save_volumes(look, volumes, machines_by_attachment=servers is None)
    for snapshots in inventory.snapshot_pages(ref):
        with turn_of(look):
            save_snapshots(look, snapshots)
    mark_gone(look)
    charge_by_rule(look)
    driver.remove_orphans(ref)
    finished = CloudProject.objects.filter(Q(synced_at=None) | Q(synced_at__lt=look.since), pk=cloud_project.pk)
    finished.update(synced_at=look.since)


@contextmanager
def turn_of(look: Look) -> Iterator[None]:
    """The customer's lock for a page of rows: two looks that write the same rows in different orders would wait for each
    other for ever, and a name that is free stays so until it is taken.
    """
    assert look.cloud_project.project is not None  # nothing of an unmapped one is read
    with transaction.atomic():
        lock_customer(look.cloud_project.project.customer_id)
        yield


# --- machines --------------------------------------------------------------------------------------------------------


def save_machines(look: Look, found: list[CloudServer]) -> None:
    by_ref = {server.ref: server for server in found}
    rows = VirtualMachine.objects.filter(**look.place, backend_ref__in=by_ref)
    changed = []
    for row in rows.filter(look.unseen):
        server = by_ref[row.backend_ref]
        if set_fields(row, describe_machine(server) | {"deleted_at": None}):
            row.name_key = fold_name(row.name)
            changed.append(row)
    fields = ["name", "name_key", "state", "vcpus", "memory_mb", "deleted_at"]
    VirtualMachine.objects.filter(look.unseen).bulk_update(changed, fields, batch_size=100)
    known = set(rows.values_list("backend_ref", flat=True))
    add_machines(look, [server for server in by_ref.values() if server.ref not in known])
    rows.filter(look.unseen).update(seen_at=look.since)


def describe_machine(server: CloudServer) -> dict[str, Any]:
    states = VirtualMachine.State
    return {
        "name": to_name(server.name, default=name_by_ref(_("server"), server.ref)),
        "state": states.RUNNING if server.is_running else states.STOPPED,
        "vcpus": server.vcpus,
        "memory_mb": server.memory_mb,
    }


def add_machines(look: Look, servers: list[CloudServer]) -> None:
    rows = [
        VirtualMachine(
            **look.place,
            project=look.cloud_project.project,
            backend_ref=server.ref,
            created_at=server.created_at,
            seen_at=look.since,
            **describe_machine(server),
        )
        for server in servers
    ]
    VirtualMachine.objects.bulk_create(rows, ignore_conflicts=True)
    look.report.machines_new += len(rows)


def save_attached_machines(look: Look, refs: set[str]) -> None:
    """Where no service tells of servers: the machines that volumes are attached to, of which no more is known.

    They count as running, because whoever has a volume attached may write to it.
    """
    rows = VirtualMachine.objects.filter(**look.place, backend_ref__in=refs)
    rows.filter(look.unseen).update(seen_at=look.since, deleted_at=None)
    known = set(rows.values_list("backend_ref", flat=True))
    nothing_known = CloudServer(ref="", name="", is_running=True, vcpus=0, memory_mb=0, created_at=look.since)
    add_machines(look, [replace(nothing_known, ref=ref) for ref in sorted(refs - known)])


# --- volumes ---------------------------------------------------------------------------------------------------------


def save_volumes(look: Look, found: list[CloudVolume], *, machines_by_attachment: bool) -> None:
    by_ref = {volume.ref: volume for volume in found}
    server_refs = {volume.server_ref for volume in found if volume.server_ref}
    if machines_by_attachment and server_refs:
        save_attached_machines(look, server_refs)
    here = VirtualMachine.objects.filter(**look.place, backend_ref__in=server_refs)
    machines = dict(here.values_list("backend_ref", "pk"))
    rows = Volume.objects.filter(**look.place, backend_ref__in=by_ref)
    changed = []
    for row in rows.filter(look.unseen).select_related("vm"):
        volume = by_ref[row.backend_ref]
        fields = describe_volume(volume, machines) | {"deleted_at": None}
        if row.pk == volume.portal_uuid:  # in the cloud it has a name for machines to read
            del fields["name"]
        if row.vm and not row.vm.backend_ref and not volume.server_ref:  # of a machine that is in the portal only
            del fields["vm_id"], fields["position"]
        if set_fields(row, fields):
            row.name_key = fold_name(row.name)
            changed.append(row)
    names = ["name", "name_key", "size_gb", "state", "vm_id", "position", "deleted_at"]
    fields_to_write = [name.removesuffix("_id") for name in names]
    Volume.objects.filter(look.unseen).bulk_update(changed, fields_to_write, batch_size=100)
    look.report.volumes_changed += len(changed)
    rows.filter(look.unseen).update(seen_at=look.since)
    known = set(rows.values_list("backend_ref", flat=True))
    strange = take_in_own(look, [volume for volume in by_ref.values() if volume.ref not in known])
    new = [
        Volume(
            **look.place,
            project=look.cloud_project.project,
            backend_ref=volume.ref,
            created_at=volume.created_at,
            seen_at=look.since,
            **describe_volume(volume, machines),
        )
        for volume in strange
    ]
    Volume.objects.bulk_create(new, ignore_conflicts=True)
    look.report.volumes_new += len(new)


def describe_volume(volume: CloudVolume, machines: dict[str, UUID]) -> dict[str, Any]:
    states = Volume.State
    state = states.CREATING if volume.is_creating else states.AVAILABLE if volume.is_ready else states.ERROR
    return {
        "name": to_name(volume.name, default=name_by_ref(_("volume"), volume.ref)),
        "size_gb": volume.size_gb,
        "state": state,
        "vm_id": machines.get(volume.server_ref),
        "position": volume.position,
    }


def take_in_own(look: Look, found: list[CloudVolume]) -> list[CloudVolume]:
    """Of volumes with an unknown reference those that the portal did not make. The others are

    - copies that were made before a restore, which are snapshots here,
    - volumes that an operation makes at this moment: it will write the reference down itself,
    - volumes whose operation gave up before they appeared, which whoever asked for them gets after all.
    """
    uuids = [volume.portal_uuid for volume in found if volume.portal_uuid]
    copies = look.disks.filter(pk__in=uuids)
    copies.filter(look.unseen).update(seen_at=look.since)
    copy_uuids = set(copies.values_list("pk", flat=True))
    own = Volume.objects.filter(Q(backend_project="") | Q(**look.place), location=look.location, pk__in=uuids)
    own_uuids = set(own.values_list("pk", flat=True))
    given_up = own.filter(state=Volume.State.ERROR, backend_ref="").exclude(
        Exists(Operation.objects.active().filter(volume=OuterRef("pk")))
    )
    for volume in found:
        if volume.portal_uuid in own_uuids and volume.is_ready:
            look.report.volumes_new += given_up.filter(pk=volume.portal_uuid).update(
                state=Volume.State.AVAILABLE,
                deleted_at=None,
                backend_ref=volume.ref,
                backend_project=look.cloud_project.external_id,
                seen_at=look.since,
            )
    return [volume for volume in found if volume.portal_uuid not in copy_uuids | own_uuids]


# --- snapshots -------------------------------------------------------------------------------------------------------


def save_snapshots(look: Look, found: list[CloudSnapshot]) -> None:
    by_ref = {snapshot.ref: snapshot for snapshot in found}
    new = list(strangers(look, by_ref).values())
    volumes = {
        volume.backend_ref: volume
        for volume in Volume.objects.filter(
            **look.place, backend_ref__in={snapshot.volume_ref for snapshot in new}, deleted_at=None
        )
    }
    new = [one for one in new if one.volume_ref in volumes]
    if not new:
        return
    assert look.cloud_project.project is not None
    customer_id = look.cloud_project.project.customer_id
    names = free_names(customer_id, new)
    snapshots = [
        Snapshot(
            kind=Kind.VOLUME,
            customer_id=customer_id,
            project_id=volumes[one.volume_ref].project_id,
            location=look.location,
            volume=volumes[one.volume_ref],
            name=names[one.ref],
            name_key=fold_name(names[one.ref]),
            consistency=Consistency.PER_DISK.value,
            size_gb=one.size_gb,
            state=State.READY,
            made_outside=True,
            created_at=one.created_at,
            ready_at=one.created_at,
        )
        for one in new
    ]
    Snapshot.objects.bulk_create(snapshots)
    DiskImage.objects.bulk_create(
        DiskImage(
            id=snapshot.pk,
            snapshot=snapshot,
            volume=volumes[one.volume_ref],
            volume_name=volumes[one.volume_ref].name,
            size_gb=one.size_gb,
            backend_ref=one.ref,
            captured_at=one.created_at,
            seen_at=look.since,
        )
        for one, snapshot in zip(new, snapshots, strict=True)
    )
    look.report.snapshots_new += len(new)


def strangers(look: Look, by_ref: dict[str, CloudSnapshot]) -> dict[str, CloudSnapshot]:
    """Those that the portal does not know yet; the others are stamped."""
    uuids = [snapshot.portal_uuid for snapshot in by_ref.values() if snapshot.portal_uuid]
    # what was deleted outside and came back is a new one here
    ended = Q(snapshot__made_outside=True, snapshot__deleted_at__lt=look.since)
    known = look.disks.filter(Q(backend_ref__in=by_ref) | Q(pk__in=uuids)).exclude(ended)
    rows = list(known.values_list("pk", "backend_ref"))
    known.filter(look.unseen).update(seen_at=look.since)
    pks, refs = {pk for pk, _ref in rows}, {ref for _pk, ref in rows}
    return {ref: snapshot for ref, snapshot in by_ref.items() if ref not in refs and snapshot.portal_uuid not in pks}


def free_names(customer_id: UUID, found: list[CloudSnapshot]) -> dict[str, str]:
    """{reference: a name that no snapshot of the customer has}. One query; the caller holds the customer's lock."""
    short = {one.ref: to_name(one.name, default=name_by_ref(_("snapshot"), one.ref)) for one in found}
    long = {ref: f"{name[: MAX_NAME_LENGTH - 37].strip()} {ref}" for ref, name in short.items()}
    keys = {fold_name(name) for name in [*short.values(), *long.values()]}
    same = Snapshot.objects.filter(customer_id=customer_id, deleted_at=None, name_key__in=keys)
    taken = set(same.values_list("name_key", flat=True))
    names = {}
    for ref, name in short.items():
        names[ref] = name if fold_name(name) not in taken else long[ref]
        taken.add(fold_name(names[ref]))
    return names


# --- what is gone, and what it costs ---------------------------------------------------------------------------------


def mark_gone(look: Look) -> None:
    """What was there when the look began and was not found. What an operation has just written is left to the next."""
    old = Q(**look.place, created_at__lt=look.since, deleted_at=None) & ~Q(backend_ref="") & look.unseen
    written = Operation.objects.filter(Q(finished_at=None) | Q(finished_at__gte=look.since), volume=OuterRef("pk"))
    with turn_of(look):
        look.report.volumes_gone += Volume.objects.filter(old).exclude(Exists(written)).update(deleted_at=look.since)
        look.report.machines_gone += VirtualMachine.objects.filter(old).update(deleted_at=look.since)

    absent = Exists(look.disks.filter(look.unseen, snapshot=OuterRef("pk")))
    gone = look.snapshots.filter(absent, ready_at__lt=look.since)
    look.report.snapshots_gone += end_outside(look, gone.filter(made_outside=True))
    missing = gone.filter(made_outside=False, missing_since=None)
    with turn_of(look):
        look.report.snapshots_gone += missing.update(missing_since=look.since)
    back = look.snapshots.filter(~absent, missing_since__lt=look.since)
    for snapshot in one_by_one(back.select_related("location", "project")):
        look.report.snapshots_back += bring_back(snapshot, back, look.since)


def end_outside(look: Look, gone: QuerySet[Snapshot]) -> int:
    """What was made and deleted there is deleted here as well, and charged until now."""
    ended = {
        "state": State.DELETED,
        "delete_requested_at": look.since,
        "deletion_cause": DeletionCause.OUTSIDE,
        "deleted_at": look.since,
    }
    charged = gone.filter(Exists(open_segments()))
    count = 0
    for snapshot in one_by_one(charged):
        with transaction.atomic():
            lock_customer(snapshot.customer_id)
            snapshot.stop_charging(look.since)
            count += gone.filter(pk=snapshot.pk).update(**ended)
    with turn_of(look):  # so that nobody begins to charge them
        return count + gone.exclude(Exists(open_segments())).update(**ended)


def open_segments() -> QuerySet[UsageSegment]:
    return UsageSegment.objects.filter(resource_id=OuterRef("pk"), ended_at=None)


def bring_back(snapshot: Snapshot, back: QuerySet[Snapshot], at: datetime) -> int:
    """Charged again if it was when it vanished."""
    since = snapshot.missing_since
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        returned = back.filter(pk=snapshot.pk, missing_since=since).update(missing_since=None)
        if returned and was_charged(snapshot.pk, since):
            snapshot.start_charging(at)
    return returned


def was_charged(snapshot_id: UUID, until: datetime | None) -> bool:
    return UsageSegment.objects.filter(resource_id=snapshot_id, ended_at__gte=until).exists()


def charge_by_rule(look: Look) -> None:
    """Open and close segments so that they agree with the location's rules for what was made or deleted outside."""
    outside = look.snapshots.filter(Q(made_outside=True) | Q(missing_since__isnull=False))
    free = costs_nothing() | Q(damaged_at__isnull=False)
    charged = Exists(open_segments())
    charged_before = Exists(
        UsageSegment.objects.filter(resource_id=OuterRef("pk"), ended_at__gte=OuterRef("missing_since"))
    )
    stop = outside.filter(free, charged)
    start = outside.exclude(free).exclude(charged).filter(Q(missing_since=None) | charged_before)
    for rows, act in ((stop, Snapshot.stop_charging), (start, Snapshot.start_charging)):
        for snapshot in one_by_one(rows.select_related("location", "project")):
            look.report.charges_changed += change_charge(snapshot, rows, act, look.since)


def change_charge(
    snapshot: Snapshot, rows: QuerySet[Snapshot], act: Callable[[Snapshot, datetime], object], at: datetime
) -> int:
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        if not rows.filter(pk=snapshot.pk).exists():  # deleted or charged by somebody else meanwhile
            return 0
        act(snapshot, at)
    return 1


# --- words -----------------------------------------------------------------------------------------------------------


def set_fields(row: Volume | VirtualMachine, fields: dict[str, Any]) -> bool:
    """True when one of them was another before."""
    differ = {name: value for name, value in fields.items() if getattr(row, name) != value}
    for name, value in differ.items():
        setattr(row, name, value)
    return bool(differ)


def name_by_ref(what: str, ref: str) -> str:
    return f"{what} {ref[:8]}"
