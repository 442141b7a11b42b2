"""Synchronize the portal's inventory with the clouds.

A sync starts at an instant `since` and sets `seen_at` of every row that the cloud lists to it. Rows whose `seen_at` is older
at the end no longer exist in the cloud. Every write filters by the older `seen_at`, so that of two concurrent syncs the one
that started later wins, and nothing happens twice. Lists are read and written page by page.

No row is ever deleted. Volumes and machines that no longer exist get `deleted_at`, and lose it if they are listed again. A
snapshot taken by the portal and deleted in the cloud gets `missing_since`. A snapshot created in the cloud is imported with
`made_outside`, and becomes Deleted here when it is deleted there. The location decides whether such snapshots are charged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.models import UsageSegment
from billing.pricing.prices import PriceList
from cng_portal.accounts.models import Project
from cng_portal.accounts.services import lock_customer
from cng_portal.common.batches import iterate_by_pk
from cng_portal.common.loops import for_each
from cng_portal.common.names import MAX_NAME_LENGTH, fold_name, to_name
from cng_portal.inventory.models import CloudProject, Location, VirtualMachine, Volume

from ..models import DeletionCause, DiskImage, DrilledDisk, Kind, Operation, Snapshot, State, costs_nothing, locked
from ..storage.contract import Consistency, Driver, StorageError
from ..storage.inventory import CloudProjectInfo, CloudServer, CloudSnapshot, CloudVolume, Inventory
from ..storage.registry import get_driver
from ..volumes.charges import settle_charges, sold_since, wrongly_free
from ..volumes.notices import notify_charged_volumes
from .notices import notify_charged

logger = structlog.stdlib.get_logger(__name__)


class NothingToSync(Exception):
    """Everything in the location's storage was created by the portal."""


@dataclass
class Report:
    """The changes of one sync of a location. `failed`: {cloud project: reason}."""

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
        """Return {counter: count} without zeros."""
        return {name: count for name, count in vars(self).items() if isinstance(count, int) and count}


@dataclass(frozen=True)
class ProjectSync:
    """One sync of a cloud project."""

    location: Location
    cloud_project: CloudProject
    since: datetime
    report: Report

    @property
    def scope(self) -> dict[str, Any]:
        """Return the fields that identify the cloud project's volumes and machines."""
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
        """Return the snapshots that are Ready in the portal, whether or not the cloud still has them."""
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
    """Sync all cloud projects of a location. One that fails doesn't stop the others.

    Raises NothingToSync, and StorageError if the cloud can't list its projects.
    """
    driver = get_driver(location)
    if not isinstance(driver, Inventory):
        raise NothingToSync(
            _("Everything in the storage of %(location)s was created by this portal, so there is nothing to sync.")
            % {"location": location.code}
        )
    since, report = now or timezone.now(), Report()
    driver.remove_orphans()
    listed = driver.list_projects()
    record_projects(location, listed, since)
    own = next((project.ref for project in listed if project.is_own), "")
    present = CloudProject.objects.filter(location=location, missing_since=None)
    for cloud_project in iterate_by_pk(present.select_related("project__customer")):
        sync = ProjectSync(location, cloud_project, since, report)
        try:
            sync_project(sync, driver, driver, is_own=cloud_project.external_id == own)
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


def record_projects(location: Location, listed: list[CloudProjectInfo], since: datetime) -> None:
    rows = [
        CloudProject(location=location, external_id=project.ref, name=to_name(project.name, default="", max_length=255))
        for project in sorted(listed, key=lambda project: project.ref)  # Concurrent syncs lock in the same order.
    ]
    CloudProject.objects.bulk_create(
        rows,
        batch_size=200,
        update_conflicts=True,
        unique_fields=["location", "external_id"],
        update_fields=["name", "missing_since"],
    )
    present = CloudProject.objects.filter(location=location, missing_since=None)
    gone = set(present.values_list("external_id", flat=True)) - {project.ref for project in listed}
    present.filter(external_id__in=gone).update(missing_since=since)


def sync_project(sync: ProjectSync, driver: Driver, inventory: Inventory, *, is_own: bool) -> None:
    cloud_project, ref = sync.cloud_project, sync.cloud_project.external_id
    usage = inventory.get_usage(ref)
    cloud_project.volume_count, cloud_project.volume_quota = usage.volumes, usage.volume_quota
    cloud_project.snapshot_count, cloud_project.snapshot_quota = usage.snapshots, usage.snapshot_quota
    cloud_project.used_gb, cloud_project.gb_quota = usage.gb, usage.gb_quota
    fields = ["volume_count", "volume_quota", "snapshot_count", "snapshot_quota", "used_gb", "gb_quota"]
    cloud_project.save(update_fields=fields)
    if cloud_project.project is None or cloud_project.project.archived_at:
        sync.report.unmapped.append(cloud_project)
        return
    if is_own:  # Volumes that the portal created before it knew the ID of its own project.
        unassigned = Volume.objects.filter(location=sync.location, backend_project="").exclude(backend_ref="")
        with customer_locked(sync):
            unassigned.update(backend_project=ref)
    servers = inventory.server_pages(ref)
    for machines in servers or ():
        with customer_locked(sync):
            save_machines(sync, machines)
    for volumes in inventory.volume_pages(ref):
        with customer_locked(sync):
            save_volumes(sync, volumes, machines_by_attachment=servers is None)
    for snapshots in inventory.snapshot_pages(ref):
        with customer_locked(sync):
            save_snapshots(sync, snapshots)
    mark_gone(sync)
    apply_charging_rules(sync)
    charge_volumes(sync)
    driver.remove_orphans(ref)
    finished = CloudProject.objects.filter(Q(synced_at=None) | Q(synced_at__lt=sync.since), pk=cloud_project.pk)
    finished.update(synced_at=sync.since)


@contextmanager
def customer_locked(sync: ProjectSync) -> Iterator[None]:
    """Hold the customer's lock while a page of rows is written.

    Otherwise, concurrent syncs that write the same rows in different orders would deadlock, and free names could be taken.
    """
    assert sync.cloud_project.project is not None  # `sync_project` skips unmapped ones.
    with transaction.atomic():
        lock_customer(sync.cloud_project.project.customer_id)
        if Project.objects.filter(pk=sync.cloud_project.project.pk, archived_at__isnull=False).exists():
            raise StorageError(_("The project was archived meanwhile, so nothing more is imported into it."))
        yield


def save_machines(sync: ProjectSync, servers: list[CloudServer]) -> None:
    by_ref = {server.ref: server for server in servers}
    rows = VirtualMachine.objects.filter(**sync.scope, backend_ref__in=by_ref)
    changed = []
    for row in rows.filter(sync.unseen):
        server = by_ref[row.backend_ref]
        if set_fields(row, describe_machine(server) | {"deleted_at": None}):
            row.name_key = fold_name(row.name)
            changed.append(row)
    fields = ["name", "name_key", "state", "vcpus", "memory_mb", "deleted_at"]
    VirtualMachine.objects.filter(sync.unseen).bulk_update(changed, fields, batch_size=100)
    existing_refs = set(rows.values_list("backend_ref", flat=True))
    add_machines(sync, [server for server in by_ref.values() if server.ref not in existing_refs])
    rows.filter(sync.unseen).update(seen_at=sync.since)


def describe_machine(server: CloudServer) -> dict[str, Any]:
    states = VirtualMachine.State
    return {
        "name": to_name(server.name, default=name_by_ref(_("server"), server.ref)),
        "state": states.RUNNING if server.is_running else states.STOPPED,
        "vcpus": server.vcpus,
        "memory_mb": server.memory_mb,
    }


def add_machines(sync: ProjectSync, servers: list[CloudServer]) -> None:
    rows = [
        VirtualMachine(
            **sync.scope,
            project=sync.cloud_project.project,
            backend_ref=server.ref,
            created_at=server.created_at,
            seen_at=sync.since,
            **describe_machine(server),
        )
        for server in servers
    ]
    VirtualMachine.objects.bulk_create(rows, ignore_conflicts=True)
    sync.report.machines_new += len(rows)


def save_attached_machines(sync: ProjectSync, refs: set[str]) -> None:
    """Save the machines that volumes are attached to, for clouds that don't list servers. Only their IDs are known.

    They count as running, because a machine may write to its attached volumes.
    """
    rows = VirtualMachine.objects.filter(**sync.scope, backend_ref__in=refs)
    rows.filter(sync.unseen).update(seen_at=sync.since, deleted_at=None)
    existing_refs = set(rows.values_list("backend_ref", flat=True))
    server = CloudServer(ref="", name="", is_running=True, vcpus=0, memory_mb=0, created_at=sync.since)
    add_machines(sync, [replace(server, ref=ref) for ref in sorted(refs - existing_refs)])


def save_volumes(sync: ProjectSync, volumes: list[CloudVolume], *, machines_by_attachment: bool) -> None:
    by_ref = {volume.ref: volume for volume in volumes}
    server_refs = {volume.server_ref for volume in volumes if volume.server_ref}
    if machines_by_attachment and server_refs:
        save_attached_machines(sync, server_refs)
    attached = VirtualMachine.objects.filter(**sync.scope, backend_ref__in=server_refs)
    machines = dict(attached.values_list("backend_ref", "pk"))
    rows = Volume.objects.filter(**sync.scope, backend_ref__in=by_ref)
    # Those that may have grown after the cloud had listed them.
    written = set(rows.filter(written_since(sync)).values_list("pk", flat=True))
    changed = []
    # One whose deletion was requested here stays so, although the cloud still lists it.
    for row in rows.filter(sync.unseen, delete_requested_at=None).select_related("vm"):
        volume = by_ref[row.backend_ref]
        fields = describe_volume(volume, machines) | {"deleted_at": None}
        if row.available_at and volume.is_creating:
            del fields["state"]
        if row.pk in written:
            del fields["size_gb"]
        if volume.is_ready and not row.available_at and row.state != Volume.State.AVAILABLE:
            fields["available_at"] = sync.since
        if row.pk == volume.portal_uuid:  # Its name in the cloud derives from its ID.
            del fields["name"]
        if row.vm and not row.vm.backend_ref and not volume.server_ref:  # Its machine exists only in the portal.
            del fields["vm_id"], fields["position"]
        if set_fields(row, fields):
            row.name_key = fold_name(row.name)
            changed.append(row)
    names = ["name", "name_key", "size_gb", "state", "vm_id", "position", "available_at", "deleted_at"]
    fields_to_write = [name.removesuffix("_id") for name in names]
    Volume.objects.filter(sync.unseen).bulk_update(changed, fields_to_write, batch_size=100)
    sync.report.volumes_changed += len(changed)
    rows.filter(sync.unseen).update(seen_at=sync.since)
    existing_refs = set(rows.values_list("backend_ref", flat=True))
    unknown = adopt(sync, [volume for volume in by_ref.values() if volume.ref not in existing_refs])
    new = [
        Volume(
            **sync.scope,
            project=sync.cloud_project.project,
            backend_ref=volume.ref,
            created_at=volume.created_at,
            available_at=sync.since if volume.is_ready else None,
            seen_at=sync.since,
            **describe_volume(volume, machines),
        )
        for volume in unknown
    ]
    Volume.objects.bulk_create(new, ignore_conflicts=True)
    sync.report.volumes_new += len(new)


def written_since(sync: ProjectSync) -> Exists:
    """Match the volumes that an operation writes, or has written since the sync began: the cloud's list may be older."""
    return Exists(Operation.objects.filter(Q(finished_at=None) | Q(finished_at__gte=sync.since), volume=OuterRef("pk")))


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


def adopt(sync: ProjectSync, volumes: list[CloudVolume]) -> list[CloudVolume]:
    """Return the volumes that the portal didn't create, of volumes with unknown references. The others are

    - safety snapshots, which this storage keeps as volumes,
    - the temporary volumes of restore drills,
    - volumes that an operation is creating, which will record the reference itself,
    - volumes that appeared after their operation had failed: they become available.
    """
    uuids = [volume.portal_uuid for volume in volumes if volume.portal_uuid]
    safety = sync.disks.filter(pk__in=uuids)
    safety.filter(sync.unseen).update(seen_at=sync.since)
    safety_uuids = set(safety.values_list("pk", flat=True))
    own = Volume.objects.filter(Q(backend_project="") | Q(**sync.scope), location=sync.location, pk__in=uuids)
    own_uuids = set(own.values_list("pk", flat=True))
    failed = own.filter(state=Volume.State.ERROR, backend_ref="").exclude(
        Exists(Operation.objects.active().filter(volume=OuterRef("pk")))
    )
    for volume in volumes:
        if volume.portal_uuid in own_uuids and volume.is_ready:
            sync.report.volumes_new += failed.filter(pk=volume.portal_uuid).update(
                state=Volume.State.AVAILABLE,
                available_at=sync.since,
                deleted_at=None,
                backend_ref=volume.ref,
                backend_project=sync.cloud_project.external_id,
                seen_at=sync.since,
            )
    temporary = set(DrilledDisk.objects.filter(pk__in=uuids).values_list("pk", flat=True))
    return [volume for volume in volumes if volume.portal_uuid not in safety_uuids | own_uuids | temporary]


def save_snapshots(sync: ProjectSync, listed: list[CloudSnapshot]) -> None:
    by_ref = {snapshot.ref: snapshot for snapshot in listed}
    new = list(touch_known(sync, by_ref).values())
    volumes = {
        volume.backend_ref: volume
        for volume in Volume.objects.filter(
            **sync.scope, backend_ref__in={snapshot.volume_ref for snapshot in new}, deleted_at=None
        )
    }
    new = [info for info in new if info.volume_ref in volumes]
    if not new:
        return
    assert sync.cloud_project.project is not None
    customer_id = sync.cloud_project.project.customer_id
    names = free_names(customer_id, new)
    snapshots = [
        Snapshot(
            kind=Kind.VOLUME,
            customer_id=customer_id,
            project_id=volumes[info.volume_ref].project_id,
            location=sync.location,
            volume=volumes[info.volume_ref],
            name=names[info.ref],
            name_key=fold_name(names[info.ref]),
            consistency=Consistency.PER_DISK.value,
            size_gb=info.size_gb,
            state=State.READY,
            made_outside=True,
            created_at=info.created_at,
            ready_at=info.created_at,
        )
        for info in new
    ]
    Snapshot.objects.bulk_create(snapshots)
    DiskImage.objects.bulk_create(
        DiskImage(
            id=snapshot.pk,
            snapshot=snapshot,
            volume=volumes[info.volume_ref],
            volume_name=volumes[info.volume_ref].name,
            size_gb=info.size_gb,
            backend_ref=info.ref,
            captured_at=info.created_at,
            seen_at=sync.since,
        )
        for info, snapshot in zip(new, snapshots, strict=True)
    )
    sync.report.snapshots_new += len(new)


def touch_known(sync: ProjectSync, by_ref: dict[str, CloudSnapshot]) -> dict[str, CloudSnapshot]:
    """Set `seen_at` of the snapshots that the portal knows, and return the others."""
    uuids = [snapshot.portal_uuid for snapshot in by_ref.values() if snapshot.portal_uuid]
    # An outside snapshot that reappears after its deletion is imported as a new one.
    being_erased = Exists(Operation.objects.active().filter(snapshot=OuterRef("snapshot")))
    ended = Q(snapshot__made_outside=True, snapshot__deleted_at__lt=sync.since, snapshot__bin_until=None)
    matching = sync.disks.filter(Q(backend_ref__in=by_ref) | Q(pk__in=uuids)).exclude(ended & ~Q(being_erased))
    rows = list(matching.values_list("pk", "backend_ref"))
    matching.filter(sync.unseen).update(seen_at=sync.since)
    pks, refs = {pk for pk, _ref in rows}, {ref for _pk, ref in rows}
    return {ref: snapshot for ref, snapshot in by_ref.items() if ref not in refs and snapshot.portal_uuid not in pks}


def free_names(customer_id: UUID, infos: list[CloudSnapshot]) -> dict[str, str]:
    """Return {reference: unique name}. One query. The caller must hold the customer's lock."""
    short = {info.ref: to_name(info.name, default=name_by_ref(_("snapshot"), info.ref)) for info in infos}
    long = {ref: f"{name[: MAX_NAME_LENGTH - 37].strip()} {ref}" for ref, name in short.items()}
    keys = {fold_name(name) for name in [*short.values(), *long.values()]}
    same = Snapshot.objects.filter(customer_id=customer_id, deleted_at=None, name_key__in=keys)
    taken = set(same.values_list("name_key", flat=True))
    names = {}
    for ref, name in short.items():
        names[ref] = name if fold_name(name) not in taken else long[ref]
        taken.add(fold_name(names[ref]))
    return names


def mark_gone(sync: ProjectSync) -> None:
    """Mark rows that the cloud no longer lists. Volumes that an operation has just written are left to the next sync."""
    old = Q(**sync.scope, created_at__lt=sync.since, deleted_at=None) & ~Q(backend_ref="") & sync.unseen
    with customer_locked(sync):
        present = Volume.objects.filter(old).exclude(written_since(sync))
        sync.report.volumes_gone += present.update(deleted_at=sync.since)
        sync.report.machines_gone += VirtualMachine.objects.filter(old).update(deleted_at=sync.since)

    absent = Exists(sync.disks.filter(sync.unseen, snapshot=OuterRef("pk")))
    gone = sync.snapshots.filter(absent, ready_at__lt=sync.since)
    sync.report.snapshots_gone += close_external(sync, gone.filter(made_outside=True).exclude(locked()))
    missing = gone.filter(Q(made_outside=False) | Q(locked()), missing_since=None)
    with customer_locked(sync):
        sync.report.snapshots_gone += missing.update(missing_since=sync.since)
    back = sync.snapshots.filter(~absent, missing_since__lt=sync.since)
    for snapshot in iterate_by_pk(back.select_related("location", "project")):
        sync.report.snapshots_back += restore_missing(snapshot, back, sync.since)


def close_external(sync: ProjectSync, gone: QuerySet[Snapshot]) -> int:
    """Mark snapshots that were created and deleted in the cloud as Deleted, and stop charging them."""
    deleted = {
        "state": State.DELETED,
        "delete_requested_at": sync.since,
        "deletion_cause": DeletionCause.OUTSIDE,
        "deleted_at": sync.since,
    }
    charged = gone.filter(Exists(open_segments()))
    count = 0
    for snapshot in iterate_by_pk(charged):
        with transaction.atomic():
            lock_customer(snapshot.customer_id)
            snapshot.stop_charging(sync.since)
            count += gone.filter(pk=snapshot.pk).update(**deleted)
    with customer_locked(sync):  # The lock keeps others from starting a charge meanwhile.
        return count + gone.exclude(Exists(open_segments())).update(**deleted)


def open_segments() -> QuerySet[UsageSegment]:
    return UsageSegment.objects.filter(resource_id=OuterRef("pk"), ended_at=None)


def restore_missing(snapshot: Snapshot, back: QuerySet[Snapshot], at: datetime) -> int:
    """Clear `missing_since`, and charge the snapshot again if it was charged when it went missing and isn't damaged."""
    since = snapshot.missing_since
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        returned = back.filter(pk=snapshot.pk, missing_since=since).update(missing_since=None)
        snapshot.refresh_from_db(fields=["damaged_at"])
        if returned and not snapshot.is_damaged and was_charged(snapshot.pk, since):
            snapshot.start_charging(at)
    return returned


def was_charged(snapshot_id: UUID, until: datetime | None) -> bool:
    return UsageSegment.objects.filter(resource_id=snapshot_id, ended_at__gte=until).exists()


def apply_charging_rules(sync: ProjectSync) -> None:
    """Open and close usage segments according to the location's rules for snapshots created or deleted outside.

    Members are notified before the first hour is charged.
    """
    outside = sync.snapshots.filter(Q(made_outside=True) | Q(missing_since__isnull=False))
    free = costs_nothing() | Q(damaged_at__isnull=False)
    charged = Exists(open_segments())
    charged_before = Exists(
        UsageSegment.objects.filter(resource_id=OuterRef("pk"), ended_at__gte=OuterRef("missing_since"))
    )
    stop = outside.filter(free, charged)
    start = outside.exclude(free).exclude(charged).filter(Q(missing_since=None) | charged_before)
    notify_charged(sync.location, start, sync.since)
    for rows, change in ((stop, Snapshot.stop_charging), (start, Snapshot.start_charging)):
        for snapshot in iterate_by_pk(rows.select_related("location", "project")):
            sync.report.charges_changed += change_charge(snapshot, rows, change, sync.since)


def charge_volumes(sync: ProjectSync) -> None:
    """Charge volumes that were imported, changed, deleted or found again. Members are notified of new charges before."""
    assert sync.cloud_project.project is not None  # sync_project skips unmapped ones.
    volumes = Volume.objects.filter(**sync.scope)
    sales = sold_since(PriceList.load([sync.location.pk]), sync.since)
    if sale := sales.get((sync.location.pk, sync.cloud_project.project.customer.currency)):
        # The owners of older volumes were notified when the location's first price was planned.
        imported = volumes.filter(wrongly_free(sync.since), available_at__gt=sale)
        notify_charged_volumes(imported, sync.since)
    settle_charges(volumes, at=sync.since)


def change_charge(
    snapshot: Snapshot, rows: QuerySet[Snapshot], change: Callable[[Snapshot, datetime], object], at: datetime
) -> int:
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        if not rows.filter(pk=snapshot.pk).exists():  # Deleted or charged meanwhile.
            return 0
        change(snapshot, at)
    return 1


def set_fields(row: Volume | VirtualMachine, fields: dict[str, Any]) -> bool:
    """Set the fields and return whether any value changed."""
    changes = {name: value for name, value in fields.items() if getattr(row, name) != value}
    for name, value in changes.items():
        setattr(row, name, value)
    return bool(changes)


def name_by_ref(label: str, ref: str) -> str:
    return f"{label} {ref[:8]}"
