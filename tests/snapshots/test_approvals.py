"""What another owner approves of snapshots and volumes: deleting past the recycle bin, and lifting a lock."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts import approvals
from cng_portal.accounts.models import Approval, Project, User
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Volume
from snapshots import locks, recycle_bin
from snapshots.backups.retention import apply_retention
from snapshots.expiry import ANNOUNCED_BEFORE, delete_expired
from snapshots.models import BackupSchedule, Operation, Snapshot, SnapshotLock
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    ProjectFactory,
    SnapshotFactory,
    SnapshotLockFactory,
    UserFactory,
    VolumeFactory,
)

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer__needs_approval=True, customer__postpaid=True)


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(member_of=project)


@pytest.fixture
def second(project: Project) -> User:
    return UserFactory(member_of=project)


def approve(by: User) -> None:
    approvals.decide(approval=Approval.objects.get(outcome=""), outcome="approve", by=by, at=timezone.now())


@pytest.mark.parametrize("model", [Snapshot, Volume])
def test_deleting_past_the_recycle_bin_waits_for_another_owner(
    model: Any, project: Project, owner: User, second: User, client_for: Callable[..., Client]
) -> None:
    binned: Any = (
        SnapshotFactory(volume__project=project, binned=True)
        if model is Snapshot
        else VolumeFactory(project=project, binned=True)
    )
    page = reverse("snapshots:erase" if model is Snapshot else "snapshots:erase_volume", args=[binned.pk])
    assert "Another owner has to approve it" in client_for(owner).get(page).text
    shown = client_for(owner).post(page, {"confirmation": binned.name}, follow=True).text
    assert "They have been notified" in shown and binned.name in shown
    binned.refresh_from_db()
    assert binned.is_in_bin and not Operation.objects.exists()
    approve(second)
    binned.refresh_from_db()
    assert not binned.is_in_bin
    assert Operation.objects.get().requested_by == owner


def test_what_was_put_back_meanwhile_is_not_deleted(project: Project, owner: User, second: User) -> None:
    snapshot = SnapshotFactory(volume__project=project, binned=True)
    recycle_bin.erase(binned=snapshot, user=owner, confirmation=snapshot.name)
    recycle_bin.put_back(snapshot=snapshot, user=second)
    with pytest.raises(approvals.ActionRefused, match="was put back"):
        approve(second)
    assert not Operation.objects.exists()


def test_lifting_a_lock_waits_for_another_owner(
    project: Project, owner: User, second: User, client_for: Callable[..., Client]
) -> None:
    lock = SnapshotLockFactory(snapshot__volume__project=project)
    page = reverse("snapshots:lift_lock", args=[lock.snapshot_id])
    assert "Another owner has to approve it" in client_for(owner).get(page).text
    client_for(owner).post(page, {"reason": "The contract ended."})
    assert locks.get_lock(lock.snapshot) is not None
    assert "The contract ended." in client_for(second).get(reverse("accounts:approvals")).text
    approve(second)
    lock.refresh_from_db()
    assert (lock.lifted_by, lock.reason) == (owner, "The contract ended.")
    assert Activity.objects.get(action="snapshot.lift_lock").actor == owner


def test_an_administrator_waits_for_an_owner_to_lift_a_lock(
    project: Project, owner: User, client_for: Callable[..., Client]
) -> None:
    lock = SnapshotLockFactory(snapshot__volume__project=project)
    administrator = UserFactory(admin=True)
    page = reverse("admin:snapshots_lift_lock", args=[lock.pk])
    shown = client_for(administrator).post(page, {"reason": "Asked by phone."}, follow=True).text
    assert "Another owner has to approve it" in shown
    assert locks.get_lock(lock.snapshot) is not None
    approve(owner)
    assert SnapshotLock.objects.get().lifted_by == administrator


def test_what_expires_is_not_deleted_past_the_recycle_bin(project: Project) -> None:
    now = timezone.now()
    snapshot = SnapshotFactory(
        volume__project=project, expires_at=now, expiry_announced_at=now - ANNOUNCED_BEFORE, ready_at=now - DAY
    )
    assert delete_expired(now=now) == 1
    snapshot.refresh_from_db()
    assert snapshot.is_in_bin and snapshot.deletion_cause == "expired"


def test_retention_does_not_delete_past_the_recycle_bin(project: Project, settings: Any) -> None:
    """Otherwise a schedule that keeps one would delete the others without a second owner."""
    settings.RECYCLE_BIN_DAYS = 0
    schedule = BackupScheduleFactory(of_volume=True, volume__project=project, retention_count=1)
    copies = [SnapshotFactory(volume=schedule.volume, disk__verified_at=timezone.now()) for _number in range(2)]
    for copy in copies:
        BackupRunFactory(schedule=schedule, snapshot=copy)
    apply_retention(BackupSchedule.objects.get(), timezone.now())
    copies[0].refresh_from_db()
    assert copies[0].is_in_bin
    assert (copies[0].bin_until - copies[0].deleted_at).days == recycle_bin.MIN_DAYS_WITH_APPROVAL
