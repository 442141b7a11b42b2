"""A list of 20 rows is at most 60 kB of HTML, before compression."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from billing.models import ServiceKind
from billing.usage import open_segment
from cng_portal.accounts.models import User
from cng_portal.common.pages import PAGE_SIZE
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    CustomerFactory,
    LocationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere

MAX_BYTES = 60_000

LISTS = [
    "/snapshots/?view=table",
    "/snapshots/?view=cards",
    "/snapshots/vm/?view=table",
    "/backups/?view=table",
    "/backups/?view=cards",
    "/backups/schedules/",
    "/volumes/",
    "/instances/",
    "/billing/statement/",
]


@pytest.fixture
def owner(db: None) -> User:
    """An owner of three projects in three locations, with more than a page of everything, all charged."""
    customer = CustomerFactory(postpaid=True)
    projects = [ProjectFactory(customer=customer, name=name) for name in ("Default", "Software", "Accounting")]
    owner = UserFactory(member_of=projects[0], customer=customer)
    for project in projects[1:]:
        project.memberships.create(user=owner, role="owner")
    locations = [LocationFactory(code=f"1CNG-YGN-AZ{number:02d}") for number in range(1, 4)]
    now = timezone.now()
    for number in range(PAGE_SIZE + 5):
        shared = {"project": projects[number % 3], "location": locations[number % 3]}
        times = {"created_at": now - timedelta(hours=number), "ready_at": now - timedelta(hours=number)}
        vm = VirtualMachineFactory(name=f"web-server-{number:02d}", **shared)
        volume = VolumeFactory(name=f"web-server-{number:02d}-data", vm=vm, size_gb=50 + number, **shared)
        run = BackupRunFactory(schedule=BackupScheduleFactory(vm=vm), scheduled_at=times["created_at"], snapshot__vm=vm)
        for kind, snapshot in (
            (ServiceKind.BS_SNAPSHOT, SnapshotFactory(volume=volume, name=f"{number:02d}-before-update", **times)),
            (ServiceKind.VM_SNAPSHOT, VMSnapshotFactory(vm=vm, name=f"{number:02d}-before-move", **times)),
            (ServiceKind.VM_BACKUP, run.snapshot),
        ):
            open_segment(
                resource_id=snapshot.pk,
                kind=kind,
                name=snapshot.name,
                size_gb=snapshot.size_gb,
                at=times["created_at"],
                **shared,
            )
    for kind in (ServiceKind.BS_SNAPSHOT, ServiceKind.VM_SNAPSHOT, ServiceKind.VM_BACKUP):
        sell_everywhere(kind=kind)
    return owner


def test_a_list_of_20_rows_is_a_small_page(owner: User, client_for: Callable[..., Client]) -> None:
    client = client_for(owner)
    pages = {path: client.get(path) for path in LISTS}
    rows = {path: page.text.count('class="resource"') or page.text.count("<tr") - 1 for path, page in pages.items()}
    assert {path: count for path, count in rows.items() if count < PAGE_SIZE} == {}
    sizes = {path: len(page.content) for path, page in pages.items()}
    assert {path: size for path, size in sizes.items() if size > MAX_BYTES} == {}
