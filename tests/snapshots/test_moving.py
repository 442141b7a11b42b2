"""Moving a snapshot to another project, and what users with a role in only one of the projects see of it."""

from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import UsageSegment
from billing.summary import build_summary, spend_by_project
from cng_portal.accounts.models import Customer, Membership, Project, Role, User
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Volume
from snapshots import restores, services
from snapshots.assignment import move_snapshot
from snapshots.backups.retention import apply_retention, unpin_backup
from snapshots.errors import InvalidState, QuotaExceeded
from snapshots.models import Operation, Snapshot, State
from snapshots.usage_check import check_usage
from snapshots.volumes import new_volumes
from tests.factories import (
    BackupFactory,
    BackupRunFactory,
    BackupScheduleFactory,
    DiskImageFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

START = datetime(2026, 3, 10, 10, 17, 23, tzinfo=UTC)
HOUR = timedelta(hours=1)
RATE = 20_000_000  # of 50 GB for an hour


@pytest.fixture
def member() -> Membership:
    """The owner of “Web”, to which the volume belongs."""
    member = MembershipFactory(project__customer__postpaid=True, project__name="Web", user__name="Aye")
    member.user.customer = member.project.customer
    member.user.save()
    return member


@pytest.fixture
def archive(member: Membership) -> Project:
    """Another project of the customer, which the owner of “Web” owns, too."""
    return MembershipFactory(
        user=member.user, project__customer=member.project.customer, project__name="Archive"
    ).project


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, size_gb=50, name="db-01-data", attached=True, vm__name="db-01")
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


@pytest.fixture
def snapshot(volume: Volume) -> Snapshot:
    return SnapshotFactory(volume=volume, name="nightly", ready_at=START, created_at=START)


@pytest.fixture
def client(client_for: Any, member: Membership) -> Client:
    return client_for(member.user)


def viewer_of(*projects: Project, role: Role = Role.VIEWER) -> User:
    user = MembershipFactory(project=projects[0], role=role, user__customer=projects[0].customer).user
    for project in projects[1:]:
        MembershipFactory(project=project, user=user, role=role)
    return user


def url(name: str, target: Any) -> str:
    return reverse(f"snapshots:{name}", args=[target.pk])


def test_a_moved_snapshot_belongs_to_the_other_project(
    snapshot: Snapshot, member: Membership, archive: Project
) -> None:
    move_snapshot(snapshot=snapshot, user=member.user, project=archive)
    snapshot.refresh_from_db()
    assert (snapshot.project, snapshot.volume.project) == (archive, member.project)
    entries = Activity.objects.filter(action="snapshot.move").order_by("project__name")
    assert [(entry.project, entry.before, entry.after) for entry in entries] == [
        (archive, {}, {"project": "Archive"}),
        (member.project, {"project": "Web"}, {}),
    ]
    move_snapshot(snapshot=snapshot, user=member.user, project=archive)
    assert entries.count() == 2


@pytest.mark.parametrize("lacking", ["from", "to"])
def test_moving_needs_the_right_to_change_both_projects(
    snapshot: Snapshot, member: Membership, archive: Project, lacking: str
) -> None:
    Membership.objects.filter(project=member.project if lacking == "from" else archive).update(role=Role.VIEWER)
    with pytest.raises(PermissionDenied):
        move_snapshot(snapshot=snapshot, user=member.user, project=archive)


def test_a_snapshot_is_not_moved_to_an_archived_project_or_another_customer(
    snapshot: Snapshot, member: Membership, archive: Project
) -> None:
    foreign = MembershipFactory(user=member.user).project
    with pytest.raises(InvalidState, match="another account"):
        move_snapshot(snapshot=snapshot, user=member.user, project=foreign)
    Project.objects.filter(pk=archive.pk).update(archived_at=timezone.now())
    with pytest.raises(PermissionDenied):
        move_snapshot(snapshot=snapshot, user=member.user, project=archive)


def test_the_quota_of_the_new_project_is_checked_and_the_accounts_is_not(
    snapshot: Snapshot, member: Membership, archive: Project
) -> None:
    Customer.objects.filter(pk=archive.customer_id).update(snapshot_quota=0)
    Project.objects.filter(pk=archive.pk).update(snapshot_gb_quota=49)
    with pytest.raises(QuotaExceeded, match="0 of 49 GB of snapshots of the project"):
        move_snapshot(snapshot=snapshot, user=member.user, project=archive)
    Project.objects.filter(pk=archive.pk).update(snapshot_gb_quota=50)
    move_snapshot(snapshot=snapshot, user=member.user, project=archive)


def test_automatic_backups_unfinished_ones_and_what_is_being_deleted_stay(
    volume: Volume, member: Membership, archive: Project
) -> None:
    automatic = BackupRunFactory(schedule=BackupScheduleFactory(vm=volume.vm, automatic=True)).snapshot
    unverified = BackupRunFactory(schedule=BackupScheduleFactory(vm=volume.vm), taking=True).snapshot
    for snapshot in (automatic, unverified, SnapshotFactory(volume=volume, deleting=True)):
        with pytest.raises(InvalidState):
            move_snapshot(snapshot=snapshot, user=member.user, project=archive)


@pytest.mark.parametrize("of_volume", [False, True])
def test_what_a_schedule_took_is_pinned_where_it_is_moved_to(
    client: Client, client_for: Any, volume: Volume, member: Membership, archive: Project, of_volume: bool
) -> None:
    source = {"vm": None, "volume": volume} if of_volume else {"vm": volume.vm}
    schedule = BackupScheduleFactory(**source, retention_count=1)
    moved, older, newest = (
        BackupRunFactory(
            schedule=schedule,
            snapshot=SnapshotFactory(volume=volume) if of_volume else BackupFactory(vm=volume.vm),
        ).snapshot
        for _number in range(3)
    )
    for snapshot in (moved, older, newest):
        if not of_volume:
            DiskImageFactory(snapshot=snapshot, volume=volume, volume_name=volume.name)
        snapshot.disks.update(verified_at=START)
    moved.start_charging(moved.ready_at)
    page = client.get(url("move", moved), {"project": archive.pk}).text
    assert "Its schedule no longer counts or deletes it. It stays until you delete it." in page
    move_snapshot(snapshot=moved, user=member.user, project=archive)
    apply_retention(schedule, timezone.now())
    moved.refresh_from_db()
    older.refresh_from_db()
    assert (moved.project, moved.is_pinned, moved.state, older.state) == (archive, True, State.READY, State.DELETING)
    assert UsageSegment.objects.get(resource_id=moved.pk, ended_at=None).project == archive
    with pytest.raises(InvalidState, match="it stays pinned"):
        unpin_backup(snapshot=moved, user=member.user)
    assert url("pin", moved) not in client.get(url("snapshot", moved)).text

    only_here, only_there = client_for(viewer_of(member.project)), client_for(viewer_of(archive))
    page = only_here.get(url("schedule", schedule)).text
    assert "Moved to another project" in page and moved.name not in page
    page = only_there.get(url("snapshot", moved)).text
    assert url("schedule", schedule) not in page and schedule.when not in page

    move_snapshot(snapshot=moved, user=member.user, project=member.project)
    assert not unpin_backup(snapshot=moved, user=member.user).is_pinned


def test_a_snapshot_that_is_moved_while_it_is_taken_is_charged_to_its_new_project(
    volume: Volume, member: Membership, archive: Project
) -> None:
    snapshot = services.request_snapshot(source=volume, name="n", user=member.user)
    move_snapshot(snapshot=snapshot, user=member.user, project=archive)
    run_active_operations()
    assert UsageSegment.objects.get(resource_id=snapshot.pk).project == archive


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("minutes", "web_hours"),
    [([0], 1), ([59], 1), ([60], 1), ([90], 2), ([90, 95], 2), ([30, 200, 230], 4)],
    ids=str,
)
def test_a_move_splits_the_cost_without_changing_the_total(
    snapshot: Snapshot, member: Membership, archive: Project, minutes: list[int], web_hours: int
) -> None:
    snapshot.start_charging(START)
    at, customer = START + timedelta(hours=7, minutes=1), member.project.customer
    unmoved = spend_by_project(customer=customer, at=at)
    assert unmoved == {member.project_id: 8 * RATE}
    target = archive
    for minute in minutes:
        move_snapshot(snapshot=snapshot, user=member.user, project=target, at=START + timedelta(minutes=minute))
        target = member.project if target == archive else archive
    spend = spend_by_project(customer=customer, at=at)
    assert sum(spend.values()) == 8 * RATE == build_summary(customer=customer, at=at).this_month_micro
    if len(minutes) == 1:
        assert spend == {member.project_id: web_hours * RATE, archive.pk: (8 - web_hours) * RATE}
    assert list(check_usage(at)) == []


@pytest.mark.parametrize("minutes", [100, 119, 121, 300])
def test_a_snapshot_that_is_deleted_after_a_move_verifies(
    snapshot: Snapshot, member: Membership, archive: Project, minutes: int
) -> None:
    snapshot.start_charging(START)
    move_snapshot(snapshot=snapshot, user=member.user, project=archive, at=START + timedelta(minutes=90))
    snapshot.refresh_from_db()
    services.accept_deletion(snapshot, at=START + timedelta(minutes=minutes), cause="user")
    assert list(check_usage(START + 9 * HOUR)) == []
    spend = spend_by_project(customer=member.project.customer, at=START + 9 * HOUR)
    assert sum(spend.values()) == -(-minutes // 60) * RATE


def test_a_charge_to_another_project_is_reported(snapshot: Snapshot, archive: Project) -> None:
    snapshot.start_charging(START)
    Snapshot.objects.filter(pk=snapshot.pk).update(project=archive)
    [sentence] = check_usage(START + HOUR)
    assert f"though it belongs to {archive.pk}" in sentence


def test_the_page_asks_for_the_project_names_new_readers_and_moves(
    client: Client, snapshot: Snapshot, member: Membership, archive: Project
) -> None:
    MembershipFactory(project=archive, user__name="Ba", role=Role.VIEWER)
    assert url("move", snapshot) in client.get(url("menu", snapshot), headers={"HX-Request": "true"}).text
    page = client.get(url("move", snapshot)).text
    assert "“nightly” belongs to “Web”." in page and ">Archive</option>" in page and ">Web</option>" not in page
    page = client.get(url("move", snapshot), {"project": archive.pk}).text
    assert "Move “nightly” to “Archive”?" in page
    assert "This member of “Archive” has no role in “Web”, but will be able to read the data: Ba." in page
    assert "The hour that has begun is still charged to “Web”" in page
    page = client.post(url("move", snapshot), {"project": archive.pk}, follow=True).text
    assert "“nightly” now belongs to “Archive”." in page


def test_a_refusal_is_explained_and_nothing_is_lost(
    client: Client, snapshot: Snapshot, member: Membership, archive: Project
) -> None:
    Project.objects.filter(pk=archive.pk).update(snapshot_quota=0)
    page = client.post(url("move", snapshot), {"project": archive.pk}).text
    assert "Quota full: 0 of 0 snapshots of the project" in page
    for wrong in ("", "no-uuid", ProjectFactory().pk, member.project_id):
        assert "Choose" in client.post(url("move", snapshot), {"project": wrong}).text
    snapshot.refresh_from_db()
    assert snapshot.project == member.project


def test_strangers_and_viewers_move_nothing(
    client_for: Any, snapshot: Snapshot, member: Membership, archive: Project
) -> None:
    assert client_for(viewer_of(archive)).get(url("move", snapshot)).status_code == 404
    assert client_for(viewer_of(member.project)).post(url("move", snapshot)).status_code == 403
    assert url("move", snapshot) not in client_for(viewer_of(member.project)).get(url("snapshot", snapshot)).text


def test_an_automatic_backup_and_an_only_project_have_no_move(
    client: Client, client_for: Any, volume: Volume, snapshot: Snapshot, archive: Project
) -> None:
    backup = BackupRunFactory(schedule=BackupScheduleFactory(vm=volume.vm, automatic=True)).snapshot
    assert url("move", backup) not in client.get(url("snapshot", backup)).text
    for page in ("move", "snapshot"):
        assert "Automatic backups are paid for with their instance" in client.get(url(page, backup)).text
    only = client_for(viewer_of(volume.project, role=Role.MEMBER))
    assert url("move", snapshot) not in only.get(url("snapshot", snapshot)).text
    assert "You aren't a member or owner of any other project" in unescape(only.get(url("move", snapshot)).text)


@pytest.fixture
def assigned(snapshot: Snapshot, archive: Project) -> Snapshot:
    """A snapshot in “Archive” of the volume in “Web”, which was restored once."""
    Snapshot.objects.filter(pk=snapshot.pk).update(project=archive)
    snapshot.refresh_from_db()
    OperationFactory(snapshot=snapshot, restore=True, succeeded=True, safety_snapshot__name="before-restore")
    return snapshot


PAGES = [
    "/",
    "/snapshots/",
    "/snapshots/?view=cards",
    "/snapshots/?q=db-01",
    "/volumes/",
    "/instances/",
    "/snapshots/vm/",
]


def test_a_user_with_only_the_snapshots_project_sees_just_the_name_of_the_volume(
    client_for: Any, assigned: Snapshot, volume: Volume, archive: Project
) -> None:
    own = VolumeFactory(project=volume.project, location=volume.location, name="secret-copy", state="creating")
    OperationFactory(snapshot=assigned, kind="new_volume", volume=own, disk=assigned.disks.first(), running=True)
    client = client_for(viewer_of(archive))
    pages = [
        *PAGES,
        url("snapshot", assigned),
        url("row", assigned),
        reverse("snapshots:work"),
        "/search/?q=db-01",
        reverse("activity:log"),
    ]
    responses = [
        client.get(page, headers={"HX-Request": "true"} if page == url("row", assigned) else {}) for page in pages
    ]
    for page, response in zip(pages, responses, strict=True):
        for secret in (url("volume", volume), url("machine", volume.vm), own.name, "before-restore", f"{volume.pk}"):
            assert secret not in response.text, (page, secret)
    assert "db-01-data" in responses[1].text
    assert "In a project that you can't see" in client.get(url("snapshot", assigned)).text
    for hidden in (url("volume", volume), url("machine", volume.vm)):
        assert client.get(hidden).status_code == 404


def test_a_user_with_only_the_volumes_project_sees_that_a_snapshot_exists_but_not_which(
    client_for: Any, assigned: Snapshot, volume: Volume, member: Membership
) -> None:
    client = client_for(viewer_of(member.project))
    safety = Snapshot.objects.get(name="before-restore")
    for page in [
        *PAGES,
        url("volume", volume),
        url("machine", volume.vm),
        url("snapshot", safety),
        "/search/?q=nightly",
    ]:
        text = client.get(page).text
        assert url("snapshot", assigned) not in text and ">nightly<" not in text, page
    assert "1 snapshot belongs to a project that you can't see." in client.get(url("volume", volume)).text
    assert client.get(url("snapshot", assigned)).status_code == 404


def test_restoring_in_place_needs_the_right_in_both_projects(
    client_for: Any, assigned: Snapshot, volume: Volume, archive: Project
) -> None:
    user = viewer_of(archive, role=Role.MEMBER)
    client = client_for(user)
    with pytest.raises(PermissionDenied, match="Restoring overwrites “db-01-data”"):
        restores.request_restore(snapshot=assigned, user=user, confirmation=volume.name)
    page = client.get(url("snapshot", assigned)).text
    assert url("restore", assigned) not in page and "Undo restore" not in page
    assert "Make a new volume from it instead." in page
    response = client.get(url("restore", assigned))
    assert response.status_code == 403 and "you need to be a member or owner of its project" in response.text
    MembershipFactory(user=user, project=volume.project, role=Role.MEMBER)
    page = client.get(url("snapshot", assigned)).text
    assert url("restore", assigned) in page and "Undo restore" in page


def test_the_safety_snapshot_stays_in_the_volumes_project(member: Membership, volume: Volume, archive: Project) -> None:
    snapshot = services.request_snapshot(source=volume, name="n", user=member.user, project=archive)
    run_active_operations()
    type(volume.vm).objects.update(state="stopped")
    operation = restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    assert operation.safety_snapshot and operation.safety_snapshot.project == volume.project


def test_a_new_volume_needs_the_right_in_the_snapshots_project_and_in_its_own(
    assigned: Snapshot, volume: Volume, archive: Project
) -> None:
    user = viewer_of(archive, role=Role.MEMBER)
    with pytest.raises(PermissionDenied):
        new_volumes.request_new_volume(snapshot=assigned, user=user, project=volume.project, name="n", size_gb=50)
    assert new_volumes.request_new_volume(snapshot=assigned, user=user, project=archive, name="n", size_gb=50)
    other = viewer_of(volume.project, role=Role.MEMBER)
    with pytest.raises(PermissionDenied):
        new_volumes.request_new_volume(snapshot=assigned, user=other, project=volume.project, name="n", size_gb=50)


def test_retrying_a_capture_needs_the_right_in_the_volumes_project(
    client_for: Any, volume: Volume, archive: Project
) -> None:
    failed = SnapshotFactory(volume=volume, project=archive, failed=True)
    operation = OperationFactory(snapshot=failed, capture=True, failed=True)
    user = viewer_of(archive, role=Role.MEMBER)
    assert url("retry", operation) not in client_for(user).get(url("snapshot", failed)).text
    with pytest.raises(PermissionDenied):
        services.retry(operation=operation, user=user)
    MembershipFactory(user=user, project=volume.project, role=Role.MEMBER)
    assert url("retry", operation) in client_for(user).get(url("snapshot", failed)).text


def test_a_user_with_only_the_snapshots_project_does_not_see_the_machine(
    client_for: Any, volume: Volume, archive: Project
) -> None:
    snapshot = VMSnapshotFactory(vm=volume.vm, project=archive, vm_config={"name": "db-01", "vcpus": 1, "memory_mb": 1})
    client = client_for(viewer_of(archive))
    for page in (url("snapshot", snapshot), "/snapshots/vm/", "/snapshots/vm/?view=cards"):
        text = client.get(page).text
        assert url("machine", volume.vm) not in text and "db-01" in text
    assert Operation.objects.count() == 0 and snapshot.state == State.READY
