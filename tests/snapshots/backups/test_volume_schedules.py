"""Schedules of volumes, which take volume snapshots and otherwise work like those of machines, and their project."""

import re
from collections.abc import Callable
from datetime import datetime, time, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer, Membership, Project, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Volume
from snapshots import services
from snapshots.backups.retention import pin_backup
from snapshots.backups.runs import settle_runs, start_due_runs
from snapshots.backups.schedules import (
    create_schedule,
    delete_schedule,
    edit_schedule,
    pause_schedule,
    resume_schedule,
    run_now,
)
from snapshots.backups.upkeep import maintain_schedules
from snapshots.errors import InvalidState, QuotaExceeded
from snapshots.models import BackupRun, BackupSchedule, DeletionCause, Draft, Kind, Snapshot, State
from snapshots.projects import archive_project
from snapshots.volumes import services as volume_services
from snapshots.wizard import wizard
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, flip_byte, put_volume, run_active_operations, sell_everywhere
from tests.snapshots.test_races import all_at_once

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]

DAY = timedelta(days=1)
NIGHTLY = {"interval": "daily", "at": time(2), "retention_count": 2}


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, project__name="Default")


@pytest.fixture
def client(client_for: Callable[..., Client], member: Membership) -> Client:
    return client_for(member.user)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, name="db-data", size_gb=10)
    put_volume(storage_root, volume, content(b"x"))
    sell_everywhere()
    return volume


@pytest.fixture
def schedule(volume: Volume) -> BackupSchedule:
    return BackupScheduleFactory(vm=None, volume=volume)


def due_at(schedule: BackupSchedule) -> datetime:
    schedule.refresh_from_db()
    assert schedule.next_run_at is not None
    return schedule.next_run_at


def run_once(schedule: BackupSchedule) -> Snapshot:
    """Take and verify the next snapshot."""
    now = due_at(schedule)
    assert start_due_runs(now) == 1
    run_active_operations()
    run_active_operations()
    settle_runs(now)
    run = schedule.runs.get(scheduled_at=now)
    assert run.state == BackupRun.State.DONE and run.snapshot
    return run.snapshot


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", " ", page[page.index("<main") :])).split())


def test_a_volumes_schedule_takes_verified_snapshots_that_are_charged_like_any_other(
    schedule: BackupSchedule, volume: Volume
) -> None:
    snapshot = run_once(schedule)
    assert (snapshot.kind, snapshot.volume, snapshot.vm, snapshot.state) == (Kind.VOLUME, volume, None, State.READY)
    assert snapshot.name.startswith("db-data-snapshot-20")
    assert Snapshot.objects.verified().filter(pk=snapshot.pk).exists()
    segment = UsageSegment.objects.get()
    assert (segment.kind, segment.size_gb, segment.resource_id) == (ServiceKind.BS_SNAPSHOT, 10, snapshot.pk)
    run = snapshot.run
    assert (run.number, run.vm, run.volume, run.schedule) == (1, None, volume, schedule)


def test_only_its_own_unpinned_snapshots_are_deleted(
    schedule: BackupSchedule, volume: Volume, member: Membership
) -> None:
    by_hand = SnapshotFactory(volume=volume)
    snapshots = [run_once(schedule)]
    pin_backup(snapshot=snapshots[0], user=member.user)
    snapshots += [run_once(schedule) for _night in range(3)]
    run_active_operations()
    states = [Snapshot.objects.get(pk=snapshot.pk).state for snapshot in (by_hand, *snapshots)]
    assert states == [State.READY, State.READY, State.DELETED, State.READY, State.READY]
    assert Snapshot.objects.get(pk=snapshots[1].pk).deletion_cause == DeletionCause.RETENTION
    assert list(schedule.runs.order_by("number").values_list("number", flat=True)) == [1, 2, 3, 4]


@pytest.mark.parametrize("cause", [DeletionCause.RETENTION, DeletionCause.EXPIRED, DeletionCause.OUTSIDE])
def test_the_database_refuses_automatic_deletions_of_the_newest_and_of_pinned_backups(
    schedule: BackupSchedule, member: Membership, cause: DeletionCause
) -> None:
    pinned, newest = run_once(schedule), run_once(schedule)
    pin_backup(snapshot=pinned, user=member.user)
    gone = {"state": State.DELETING, "delete_requested_at": due_at(schedule), "deletion_cause": cause}
    for snapshot in (pinned, newest):
        with pytest.raises(IntegrityError), transaction.atomic():
            Snapshot.objects.filter(pk=snapshot.pk).update(**gone)
    assert Snapshot.objects.filter(pk=newest.pk).update(**(gone | {"deletion_cause": DeletionCause.USER})) == 1


def test_a_damaged_snapshot_is_retaken_and_failures_are_notified(
    schedule: BackupSchedule, storage_root: Path, member: Membership
) -> None:
    now = due_at(schedule)
    start_due_runs(now)
    run_active_operations()
    damaged = Snapshot.objects.get()
    flip_byte(storage_root / damaged.location_id / "snapshots" / str(damaged.pk) / "disk.img")
    run_active_operations()
    settle_runs(now)
    run = schedule.runs.get()
    assert run.state == BackupRun.State.WAITING and "found it damaged" in run.reason
    [notice] = member.user.notifications.all()
    assert notice.title == "The scheduled snapshot of db-data failed and will be retried"
    settle_runs(now + timedelta(minutes=6))
    run_active_operations()
    run_active_operations()
    settle_runs(now + timedelta(minutes=7))
    run.refresh_from_db()
    assert run.state == BackupRun.State.DONE and run.snapshot_id != damaged.pk


def test_missed_runs_are_recorded_and_notified(schedule: BackupSchedule, member: Membership) -> None:
    start_due_runs(due_at(schedule) + 2 * DAY)
    assert list(schedule.runs.order_by("number").values_list("state", flat=True)) == ["missed", "missed", "taking"]
    [notice] = member.user.notifications.all()
    assert notice.title == "Scheduled snapshots of db-data were missed"
    assert "2 snapshots were missed" in notice.text


def test_schedules_of_a_volume_wait_for_each_other_but_not_for_its_machine(
    schedule: BackupSchedule, volume: Volume, member: Membership
) -> None:
    machine = VirtualMachineFactory(project=member.project, location=volume.location)
    Volume.objects.filter(pk=volume.pk).update(vm=machine)
    sell_everywhere(kind=ServiceKind.VM_BACKUP)
    other = BackupScheduleFactory(vm=None, volume=volume, next_run_at=schedule.next_run_at)
    backup = BackupScheduleFactory(vm=machine, next_run_at=schedule.next_run_at)
    assert start_due_runs(due_at(schedule)) == 2
    unfinished = BackupRun.objects.unfinished()
    assert unfinished.filter(schedule__in=[schedule, other]).count() == 1
    assert unfinished.filter(schedule=backup).count() == 1
    with pytest.raises(InvalidState, match="already running"):
        run_now(schedule=other, user=member.user)
    with pytest.raises(IntegrityError), transaction.atomic():
        BackupRunFactory(schedule=other, taking=True, snapshot=SnapshotFactory(volume=volume))


def test_twenty_schedulers_take_one_snapshot(schedule: BackupSchedule) -> None:
    now = due_at(schedule)
    all_at_once(lambda _number: start_due_runs(now))
    assert (Snapshot.objects.count(), schedule.runs.count()) == (1, 1)


def test_a_retried_snapshot_continues_its_run_as_the_newest(
    schedule: BackupSchedule, volume: Volume, member: Membership
) -> None:
    failed = BackupRunFactory(schedule=schedule, failed=True, snapshot=SnapshotFactory(volume=volume, failed=True))
    operation = OperationFactory(snapshot=failed.snapshot, capture=True, failed=True)
    run_once(schedule)
    services.retry(operation=operation, user=member.user)
    run_active_operations()
    run_active_operations()
    settle_runs(due_at(schedule))
    failed.refresh_from_db()
    assert (failed.number, failed.state) == (3, BackupRun.State.DONE)


def test_a_volumes_schedule_is_created_edited_paused_and_resumed(volume: Volume, member: Membership) -> None:
    user = member.user
    schedule = create_schedule(source=volume, user=user, take_one_now=True, **NIGHTLY)
    assert (schedule.vm, schedule.volume, schedule.project, schedule.kind) == (
        None,
        volume,
        member.project,
        Kind.VOLUME,
    )
    assert Snapshot.objects.get().kind == Kind.VOLUME
    edit_schedule(schedule=schedule, user=user, interval="weekly", weekday=3, at=time(5), retention_count=9)
    assert pause_schedule(schedule=schedule, user=user).next_run_at is None
    assert resume_schedule(schedule=schedule, user=user).next_run_at
    entries = Activity.objects.filter(action__startswith="backup.")
    assert {(entry.target_name, entry.project) for entry in entries} == {("db-data", member.project)}


def test_a_schedule_has_either_a_volume_or_a_machine(volume: Volume) -> None:
    for source in ({"vm": VirtualMachineFactory(), "volume": volume}, {"vm": None, "volume": None}):
        with pytest.raises(IntegrityError), transaction.atomic():
            BackupScheduleFactory(project=volume.project, **source)


def test_a_deleted_volume_ends_its_schedule_and_its_snapshots_stay(
    schedule: BackupSchedule, volume: Volume, member: Membership
) -> None:
    snapshot = run_once(schedule)
    volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="db-data")
    schedule.refresh_from_db()
    assert schedule.deleted_at and schedule.next_run_at is None
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY


def test_a_volume_deleted_in_the_cloud_ends_its_schedule(schedule: BackupSchedule, volume: Volume) -> None:
    at = due_at(schedule)
    Volume.objects.update(deleted_at=at - timedelta(hours=1))
    assert maintain_schedules(at) == 1
    schedule.refresh_from_db()
    assert schedule.deleted_at == at - timedelta(hours=1)


def test_one_schedule_that_cannot_be_planned_does_not_stop_the_others(schedule: BackupSchedule) -> None:
    broken = BackupScheduleFactory()  # listed first, as the newest
    Customer.objects.update(time_zone="Europe/Berlin")
    Customer.objects.filter(pk=broken.customer.pk).update(time_zone="Nowhere/Berlin")
    with pytest.raises(ExceptionGroup):
        maintain_schedules(due_at(schedule) - 2 * DAY)
    schedule.refresh_from_db()
    assert schedule.time_zone == "Europe/Berlin"


@pytest.fixture
def archive(member: Membership) -> Project:
    """Another project of the same customer, which the member owns too."""
    project = ProjectFactory(customer=member.project.customer, name="Archive")
    MembershipFactory(project=project, user=member.user)
    return project


def test_scheduled_snapshots_belong_to_the_schedules_project(
    volume: Volume, member: Membership, archive: Project
) -> None:
    schedule = create_schedule(source=volume, project=archive, user=member.user, **NIGHTLY)
    snapshot = run_once(schedule)
    assert (schedule.project, snapshot.project) == (archive, archive)
    assert UsageSegment.objects.get().project == archive
    keeper = UserFactory(member_of=archive, member_of__role=Role.MEMBER)
    sitter = UserFactory(member_of=volume.project, member_of__role=Role.MEMBER)
    assert BackupSchedule.objects.visible_to(keeper).get() == schedule
    assert BackupRun.objects.visible_to(keeper).get() == snapshot.run
    assert not BackupSchedule.objects.visible_to(sitter).exists()
    for user in (keeper, sitter):  # Changing it needs a role in both.
        with pytest.raises(PermissionDenied):
            pause_schedule(schedule=schedule, user=user)
    pause_schedule(schedule=schedule, user=member.user)


def test_backups_of_a_machine_belong_to_the_schedules_project_too(
    storage_root: Path, member: Membership, archive: Project
) -> None:
    vm = VirtualMachineFactory(project=member.project)
    put_volume(storage_root, VolumeFactory(project=vm.project, location=vm.location, vm=vm), content(b"x"))
    sell_everywhere(kind=ServiceKind.VM_BACKUP)
    schedule = create_schedule(source=vm, project=archive, user=member.user, take_one_now=True, **NIGHTLY)
    assert schedule.kind == Kind.BACKUP and Snapshot.objects.get().project == archive


def test_quota_and_notifications_are_those_of_the_schedules_project(
    volume: Volume, member: Membership, archive: Project
) -> None:
    keeper = UserFactory(member_of=archive)
    schedule = create_schedule(source=volume, project=archive, user=member.user, **NIGHTLY)
    Project.objects.filter(pk=archive.pk).update(snapshot_quota=0)
    with pytest.raises(QuotaExceeded):
        run_now(schedule=schedule, user=member.user)
    start_due_runs(due_at(schedule))
    assert keeper.notifications.get().title.startswith("The scheduled snapshot of db-data failed")


def test_a_project_with_a_schedule_is_not_empty(
    client: Client, schedule: BackupSchedule, member: Membership, archive: Project
) -> None:
    BackupSchedule.objects.filter(pk=schedule.pk).update(project=archive)
    with pytest.raises(InvalidState, match="isn't empty"):
        archive_project(project=archive, by=member.user, at=due_at(schedule))
    page = text_of(client.get(reverse("archive_project", args=[archive.pk])).content.decode())
    assert "Only an empty project can be archived" in page and "Schedules" in page
    schedule.refresh_from_db()
    delete_schedule(schedule=schedule, user=member.user)
    assert archive_project(project=archive, by=member.user, at=schedule.created_at)


def test_another_customers_project_is_refused(volume: Volume, member: Membership) -> None:
    elsewhere = MembershipFactory(user=member.user).project
    with pytest.raises(InvalidState, match="another account"):
        create_schedule(source=volume, project=elsewhere, user=member.user, **NIGHTLY)


def test_schedules_of_the_previous_version_belong_to_the_machines_project(member: Membership) -> None:
    old = BackupScheduleFactory(vm__project=member.project)
    BackupSchedule.objects.update(project=None)
    assert BackupSchedule.objects.visible_to(member.user).get() == old
    assert BackupSchedule.objects.get().home == member.project
    maintain_schedules(due_at(old) - DAY)
    assert BackupSchedule.objects.get().project == member.project


def test_a_volumes_page_leads_to_its_first_scheduled_snapshot(client: Client, volume: Volume, archive: Project) -> None:
    page = client.get(reverse("snapshots:volume", args=[volume.pk])).text
    start = reverse("snapshots:schedule_snapshots", args=[volume.pk])
    assert start in page
    step_url = client.post(start)["Location"]
    draft = Draft.objects.get()
    assert step_url == wizard.url(draft, "schedule") and draft.is_scheduled
    page = text_of(client.get(step_url).text)
    assert "Snapshot Schedule" in page and "Snapshots to keep" in page
    assert "2 snapshots cost K 8.00 an hour together" in page and "backup" not in page.split("Help")[0].lower()
    client.post(wizard.url(draft, "project"), {"project": archive.pk})
    answers = {"interval": "daily", "at": "03:30", "retention_count": "7", "take_one_now": "on"}
    step_url = client.post(step_url, answers)["Location"]
    page = text_of(client.get(step_url).text)
    for text in ("Schedule Snapshots", "Every day at 03:30", "7 snapshots", "Archive", "K 4.00 / Hour / 10 GB"):
        assert text in page, text
    response = client.post(step_url, {"billing_cycle": "hourly", "shown_hourly_micro": 4_000_000})
    schedule = BackupSchedule.objects.get()
    assert response["Location"] == reverse("snapshots:schedule", args=[schedule.pk]) + "#heading"
    assert (schedule.volume, schedule.project, schedule.retention_count) == (volume, archive, 7)
    page = text_of(client.get(response["Location"]).text)
    assert "Snapshots of db-data" in page and "the 7 newest snapshots" in page
    assert client.post(wizard.url(draft, "review"), {}).status_code == 302
    assert BackupSchedule.objects.count() == 1


def test_the_wizard_begins_without_a_volume_and_says_what_is_wrong(client: Client, volume: Volume) -> None:
    step_url = reverse("snapshots:new_schedule")
    assert "Schedule volume snapshots" in client.get(step_url).text
    for answer in ({"location": volume.location_id}, {"project": volume.project_id}, {"volume": volume.pk}):
        step_url = client.post(step_url, answer)["Location"]
    page = client.post(step_url, {"interval": "weekly", "at": "25:00", "retention_count": "0", "weekday": "2"}).text
    assert "Enter a time of day" in page and "checked" in page
    assert not BackupSchedule.objects.exists()


def test_strangers_and_viewers_schedule_nothing(client_for: Callable[..., Client], volume: Volume) -> None:
    url = reverse("snapshots:schedule_snapshots", args=[volume.pk])
    assert client_for(UserFactory(member_of=ProjectFactory())).post(url).status_code == 404
    viewer = client_for(UserFactory(member_of=volume.project, member_of__role=Role.VIEWER))
    assert viewer.post(url).status_code == 403
    page = viewer.get(reverse("snapshots:volume", args=[volume.pk])).text
    assert url not in page


def test_the_pages_of_a_volumes_schedule_say_snapshots_instead_of_backups(
    client: Client, schedule: BackupSchedule, volume: Volume
) -> None:
    snapshot = run_once(schedule)
    run_once(schedule)
    pages: dict[str, Any] = {
        name: text_of(client.get(reverse(f"snapshots:{name}", args=[schedule.pk])).text)
        for name in ("schedule", "edit_schedule", "pause_schedule", "run_schedule", "delete_schedule")
    }
    assert "Snapshots of db-data" in pages["schedule"] and snapshot.name in pages["schedule"]
    assert "Pause the snapshots of “db-data”?" in pages["pause_schedule"]
    assert "Take a snapshot of “db-data” now?" in pages["run_schedule"]
    assert "Its 2 snapshots stay" in pages["delete_schedule"]
    for name, page in pages.items():
        assert "backup" not in page.replace("Backups", "").lower(), name
    assert "db-data" in client.get(reverse("snapshots:schedules") + "?show=snapshots").text
    assert f"schedule-{schedule.pk}" not in client.get(reverse("snapshots:schedules") + "?show=backups").text
    listed = text_of(client.get(reverse("snapshots:schedules") + f"?q=data&project={volume.project_id}").text)
    assert "db-data" in listed and "Volume snapshots" in listed
    assert "Snapshot schedules" in client.get(reverse("snapshots:volume", args=[volume.pk])).text
    assert "db-data" in text_of(client.get("/").text)
    page = client.get(reverse("snapshots:snapshot", args=[snapshot.pk])).text
    assert (
        reverse("snapshots:schedule", args=[schedule.pk]) in page
        and reverse("snapshots:pin", args=[snapshot.pk]) in page
    )
    assert client.post(reverse("snapshots:pin", args=[snapshot.pk]), {"pinned": "yes"}).status_code == 302
    assert Snapshot.objects.get(pk=snapshot.pk).is_pinned


def test_only_backups_and_scheduled_snapshots_can_be_pinned(client: Client, volume: Volume) -> None:
    by_hand = SnapshotFactory(volume=volume)
    url = reverse("snapshots:pin", args=[by_hand.pk])
    assert client.post(url, {"pinned": "yes"}).status_code == 404
    assert url not in client.get(reverse("snapshots:snapshot", args=[by_hand.pk])).text
