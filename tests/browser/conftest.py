"""The account for screenshots and for the tests of every page."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from billing.models import ServiceKind
from billing.pricing.packages import create_package
from billing.usage import open_segment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership, Role
from cng_portal.inventory.models import Region, Volume
from snapshots.models import Snapshot
from tests.factories import (
    DiskImageFactory,
    LocationFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume

GIB = 1024**3
RATES = {ServiceKind.BS_SNAPSHOT: 400_000, ServiceKind.VM_SNAPSHOT: 500_000, ServiceKind.VM_BACKUP: 600_000}


@pytest.fixture
def full_account(storage_root: Path) -> Membership:
    """An owner with machines, disks, snapshots in each state, and work in progress."""
    member = MembershipFactory(
        project__name="Default",
        project__customer__number=1039,
        project__customer__name="A.Z.H Trading",
        user__name="Aung Zaw Htet",
        user__email="customer@example.com",
        role=Role.OWNER,
    )
    member.user.customer = customer = member.project.customer
    member.user.save()
    for name in ("Software", "Test"):
        MembershipFactory(user=member.user, project=ProjectFactory(customer=customer, name=name), role=Role.OWNER)
    buy_credits(customer=customer, amount_micro=99_455_790_000, reason="First purchase", by=None, key="first")
    yangon = LocationFactory(code="1CNG-YGN-AZ01", encryption="LUKS on every disk")
    mandalay = LocationFactory(code="1CNG-MDY-AZ01", city="Mandalay")
    LocationFactory(code="1CNG-SIN-AZ01", city="Singapore", country="SG", region=Region.SOUTHEAST_ASIA)
    now = timezone.now()
    shared: dict[str, Any] = {"project": member.project, "location": yangon, "created_at": now - timedelta(days=110)}
    database = VirtualMachineFactory(name="db-01", stopped=True, vcpus=4, memory_mb=16384, **shared)
    web = VirtualMachineFactory(name="web-01", vcpus=2, memory_mb=4096, **shared)
    VolumeFactory(name="db-01-root", size_gb=10, vm=database, **shared)
    data = VolumeFactory(name="db-01-data", size_gb=50, vm=database, position=1, **shared)
    VolumeFactory(name="web-01-root", size_gb=20, vm=web, **shared)
    office = VolumeFactory(name="office-files", size_gb=30, **shared)
    VolumeFactory(name="archive-2025", size_gb=5, **(shared | {"location": mandalay}))
    gone = VolumeFactory(name="old-shop-data", size_gb=40, gone=True, **shared)
    for kind, rate_micro in RATES.items():
        for location in (yangon, mandalay):
            create_package(location=location, kind=kind, rate_micro=rate_micro, starts_at=now - timedelta(days=200))

    def take(volume: Volume, name: str, hours: float, **fields: Any) -> Snapshot:
        at = now - timedelta(hours=hours)
        if not {"creating", "failed", "pending"} & set(fields):
            fields["ready_at"] = at + timedelta(minutes=1)
        return SnapshotFactory(volume=volume, name=name, created_at=at, requested_by=member.user, **fields)

    for number, hours in enumerate((30, 54, 78, 150, 270, 400), start=1):
        take(data, f"db-01-data-nightly-{number}", hours)
    ready = take(data, "before the update", 3.2)
    OperationFactory(snapshot=ready, capture=True, succeeded=True, requested_by=member.user)
    ready.disks.update(allocated_bytes=int(12.4 * GIB), checksum="5f0c1d9ae44f7c1b" * 4, captured_at=ready.ready_at)
    failed = take(office, "office-files-2026-11-21", 26, failed=True)
    OperationFactory(snapshot=failed, capture=True, failed=True)
    running = take(office, "office-files-2026-11-22", 0.05, creating=True)
    OperationFactory(
        snapshot=running,
        capture=True,
        running=True,
        requested_by=member.user,
        bytes_done=int(11.2 * GIB),
        bytes_total=30 * GIB,
        started_at=now - timedelta(minutes=2),
        created_at=now - timedelta(minutes=2),
    )
    take(gone, "old-shop-data-last", 900)
    machine = VMSnapshotFactory(
        vm=database,
        name="db-01 before the migration",
        size_gb=60,
        vm_config={"name": "db-01", "vcpus": 4, "memory_mb": 16384, "hourly_price_micro": 118_750_000, "volumes": []},
        consistency="instant",
        requested_by=member.user,
    )
    for position, volume in enumerate(database.volumes.order_by("position")):
        DiskImageFactory(
            id=None, snapshot=machine, volume=volume, volume_name=volume.name, position=position, size_gb=volume.size_gb
        )
    for volume in Volume.objects.present():
        put_volume(storage_root, volume, content(b"bytes"))
    for snapshot in Snapshot.objects.filter(ready_at__isnull=False):
        open_segment(
            resource_id=snapshot.pk,
            kind=snapshot.service_kind,
            name=snapshot.name,
            project=snapshot.project,
            location=snapshot.location,
            size_gb=snapshot.size_gb,
            at=snapshot.ready_at,
        )
    return member
