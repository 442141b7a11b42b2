"""Check usage segments against what they were charged for: snapshots, volumes, and the switches of automatic backups.

Run by `verify_billing`. Billing can't import this app, so by itself it proves only that invoices follow from the usage.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID

from django.db.models import Min

from billing import verification
from billing.models import Package, ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer
from cng_portal.inventory.models import AutomaticBackupSwitch, VirtualMachine, Volume

from .models import Snapshot

AUTOMATIC = ServiceKind.VM_BACKUP_AUTOMATIC
Segments = list[UsageSegment]
STARTED_WITHIN = timedelta(days=1)


@verification.register
def check_usage(at: datetime) -> Iterator[str]:
    """Yield a sentence for each discrepancy."""
    sales = load_sales()
    for customer in Customer.objects.order_by("number").iterator(chunk_size=500):
        segments: dict[UUID, Segments] = {}
        volumes: dict[UUID, Segments] = {}
        automatic: dict[UUID, Segments] = {}
        by_kind = {AUTOMATIC.value: automatic, ServiceKind.BLOCK_STORAGE.value: volumes}
        # A voided one starts where the one that takes its place does.
        for segment in UsageSegment.objects.filter(customer=customer).order_by("started_at", "-voided"):
            by_kind.get(segment.kind, segments).setdefault(segment.resource_id, []).append(segment)
        for sentence in (
            *_check_snapshots(customer, segments),
            *_check_volumes(customer, volumes, sales, at),
            *_check_machines(customer, automatic),
        ):
            yield f"{customer.crn}: {sentence}"


def _check_snapshots(customer: Customer, segments: dict[UUID, Segments]) -> Iterator[str]:
    snapshots = Snapshot.objects.filter(customer=customer).select_related("location", "run__schedule")
    for snapshot in snapshots.iterator(chunk_size=2000):
        for sentence in _check_snapshot(snapshot, segments.pop(snapshot.pk, [])):
            yield f"“{snapshot.name}” ({snapshot.pk}): {sentence}"
    for resource_id, own in segments.items():
        yield f"“{own[0].resource_name}” ({resource_id}): charged, but there is no such snapshot"


def _check_snapshot(snapshot: Snapshot, segments: Segments) -> Iterator[str]:
    for segment in segments:
        if (segment.kind, segment.size_gb, segment.location_id) != (
            snapshot.service_kind,
            snapshot.size_gb,
            snapshot.location_id,
        ):
            yield f"charged as {segment.size_gb} GB of {segment.kind} in {segment.location_id}"
    if snapshot.made_outside or snapshot.missing_since:
        return  # The location's rules and the times of the syncs decide.
    if not snapshot.is_charged or snapshot.ready_at is None:
        if segments:
            yield "charged, though it costs nothing"
        return
    if not segments:
        yield f"not charged, though it was ready at {snapshot.ready_at}"
        return
    first, last = segments[0], segments[-1]
    if first.started_at != snapshot.ready_at:
        yield f"charged from {first.started_at}, ready at {snapshot.ready_at}"
    ended_at = snapshot.damaged_at or snapshot.delete_requested_at
    expected = max(ended_at, last.started_at) if ended_at else None
    if last.ended_at != expected:
        yield f"charged until {last.ended_at}, damaged or deleted at {ended_at}"
    if last.ended_at is None and last.project_id != snapshot.project_id:
        yield f"charged to project {last.project_id}, though it belongs to {snapshot.project_id}"
    yield from _check_pairs(segments)


def _check_pairs(segments: Segments) -> Iterator[str]:
    charged = [segment for segment in segments if not segment.voided]
    if any(before.paid_until is None or before.paid_until > after.started_at for before, after in pairwise(charged)):
        yield "an hour is charged twice"


@dataclass
class Sales:
    """When the packages of Block Storage in one location and currency began to sell it, and since when it is sold now."""

    starts: list[datetime] = field(default_factory=list)
    sold_since: datetime | None = None


def load_sales() -> dict[tuple[str, str], Sales]:
    """Return {(location, currency): sales of Block Storage}. One query."""
    sales: dict[tuple[str, str], Sales] = defaultdict(Sales)
    packages = Package.objects.filter(kind=ServiceKind.BLOCK_STORAGE).annotate(first=Min("versions__starts_at"))
    for package in packages.filter(first__isnull=False):
        location_sales = sales[package.location_id, package.currency]
        location_sales.starts.append(package.first)
        if package.active:
            location_sales.sold_since = package.first
    return sales


def _check_volumes(
    customer: Customer, segments: dict[UUID, Segments], sales: dict[tuple[str, str], Sales], at: datetime
) -> Iterator[str]:
    for volume in Volume.objects.filter(project__customer=customer).order_by("pk").iterator(chunk_size=2000):
        location_sales = sales.get((volume.location_id, customer.currency), Sales())
        for sentence in _check_volume(volume, segments.pop(volume.pk, []), location_sales, at):
            yield f"volume “{volume.name}” ({volume.pk}): {sentence}"
    for resource_id, own in segments.items():
        yield f"volume “{own[0].resource_name}” ({resource_id}): charged, but there is no such volume"


def _check_volume(volume: Volume, segments: Segments, sales: Sales, at: datetime) -> Iterator[str]:
    """A charge runs from the instant that it is available, or from a package's first price, until its deletion."""
    ended_at = volume.delete_requested_at or volume.deleted_at
    is_chargeable = not ended_at and (volume.available_at or volume.state == Volume.State.AVAILABLE)
    if not segments:
        # The scheduler opens missing segments every few minutes.
        if is_chargeable and sales.sold_since and sales.sold_since < at - STARTED_WITHIN:
            yield f"not charged, though Block Storage is sold since {sales.sold_since}"
        return
    first, last = segments[0], segments[-1]
    if any(segment.location_id != volume.location_id for segment in segments):
        yield "charged in another location"
    starts = sales.starts if volume.available_at is None else [volume.available_at, *sales.starts]
    is_late = volume.available_at is not None and first.started_at < volume.available_at
    was_sold = volume.available_at and sales.sold_since and sales.sold_since <= volume.available_at
    if is_late or first.started_at not in ([volume.available_at] if was_sold else starts):
        yield f"charged from {first.started_at}, available at {volume.available_at}"
    expected = max(ended_at, last.started_at) if ended_at else None
    if last.ended_at != expected and (ended_at or is_chargeable):
        yield f"charged until {last.ended_at}, deleted at {ended_at}"
    if last.ended_at is None and (last.size_gb, last.project_id) != (volume.size_gb, volume.project_id):
        yield f"charged as {last.size_gb} GB in project {last.project_id}"
    yield from _check_pairs(segments)
    charged = [segment for segment in segments if not segment.voided]
    for before, after in pairwise(charged):
        if after.size_gb < before.size_gb:
            yield f"charged as {before.size_gb} GB, then as {after.size_gb} GB: a volume never shrinks"
        # In the cloud, a volume may be gone and come back.
        if before.paid_until and after.started_at > before.paid_until and not volume.backend_project:
            yield f"not charged from {before.ended_at} to {after.started_at}"


def _check_machines(customer: Customer, segments: dict[UUID, Segments]) -> Iterator[str]:
    switches: dict[UUID, list[AutomaticBackupSwitch]] = {}
    for switch in AutomaticBackupSwitch.objects.filter(vm__project__customer=customer).order_by("switched_at", "pk"):
        switches.setdefault(switch.vm_id, []).append(switch)
    machines = VirtualMachine.objects.in_bulk({*segments, *switches})
    for vm_id in switches.keys() | segments.keys():
        own = segments.get(vm_id, [])
        name = own[0].resource_name if own else machines[vm_id].name
        if not own:
            yield f"automatic backups of “{name}” ({vm_id}): not charged, though they were switched on"
        charged = [segment for segment in own if not segment.voided]
        for sentence in _check_machine(machines.get(vm_id), charged, switches.get(vm_id, [])):
            yield f"automatic backups of “{name}” ({vm_id}): {sentence}"


def _check_machine(
    vm: VirtualMachine | None, segments: Segments, switches: list[AutomaticBackupSwitch]
) -> Iterator[str]:
    """A segment starts and ends at a switch, or at a change of the machine's price, where the next segment follows."""
    switched_on = {switch.starts_at or switch.switched_at for switch in switches if switch.on}
    switched_off = {switch.switched_at for switch in switches if not switch.on}
    hour = timedelta(hours=1)
    for before, segment, after in zip([None, *segments], segments, [*segments[1:], None], strict=False):
        ended_before, paid_until = (before.ended_at, before.paid_until) if before else (None, None)
        resumes = ended_before and paid_until and ended_before <= segment.started_at <= paid_until
        if segment.started_at not in switched_on and not resumes:
            yield f"charged from {segment.started_at}, when they were not switched on"
        ended_at = segment.ended_at
        continues = after and ended_at and ended_at <= after.started_at <= ended_at + hour
        if ended_at and not continues and ended_at not in switched_off and ended_at != segment.started_at:
            yield f"charged until {ended_at}, when they were not switched off"
    is_on = bool(vm and vm.automatic_backups_since)
    is_charged = bool(segments and segments[-1].ended_at is None)
    if is_on != is_charged:
        yield "charged, though they are off" if is_charged else "not charged, though they are on"
    if vm and is_charged and segments[-1].base_rate_micro != vm.hourly_price_micro:
        yield f"charged at {segments[-1].base_rate_micro} millionths, but the machine's price is {vm.hourly_price_micro}"
