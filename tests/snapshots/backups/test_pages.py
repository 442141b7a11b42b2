"""The pages of backups, their schedules and runs, and their actions."""

import re
from collections.abc import Callable
from datetime import time, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Project, Role, User
from cng_portal.inventory.models import VirtualMachine
from snapshots import checks
from snapshots.backups.automatic import NOTICE, switch_automatic_backups
from snapshots.backups.schedules import run_now
from snapshots.models import BackupRun, BackupSchedule, Operation, Snapshot, State
from tests.factories import (
    BackupFactory,
    BackupRunFactory,
    BackupScheduleFactory,
    ProjectFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, holds, put_volume, run_active_operations, sell_everywhere
from tests.snapshots.test_list import HTMX, names, part_of
from tests.snapshots.test_volumes import without_tokens

pytestmark = pytest.mark.django_db

BACKUPS, SCHEDULES = "/backups/", "/backups/schedules/"
ACTIONS = ("edit_schedule", "pause_schedule", "resume_schedule", "run_schedule", "delete_schedule")


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Software", customer__postpaid=True)


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(member_of=project)


@pytest.fixture
def client(owner: User, client_for: Callable[..., Client]) -> Client:
    return client_for(owner)


@pytest.fixture
def viewer(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))


@pytest.fixture
def stranger(client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=ProjectFactory()))


@pytest.fixture
def vm(storage_root: Path, project: Project) -> VirtualMachine:
    vm = VirtualMachineFactory(project=project, name="db-01", hourly_price_micro=24_000_000, stopped=True)
    for position, size_gb in enumerate([10, 50]):
        volume = VolumeFactory(
            project=project, location=vm.location, vm=vm, position=position, size_gb=size_gb, name=f"d{position}"
        )
        put_volume(storage_root, volume, content(b"%d" % position))
    sell_everywhere(kind=ServiceKind.VM_BACKUP, rate_micro=600_000)
    return vm


@pytest.fixture
def schedule(vm: VirtualMachine) -> BackupSchedule:
    return BackupScheduleFactory(vm=vm)


def url(schedule: BackupSchedule, name: str = "schedule") -> str:
    return reverse(f"snapshots:{name}", args=[schedule.pk])


def action_url(backup: Snapshot, name: str) -> str:
    return reverse(f"snapshots:{name}", args=[backup.pk])


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", " ", page[page.index("<main") :])).split())


def automatic_backup(vm: VirtualMachine, owner: User) -> Snapshot:
    """Return a ready automatic backup."""
    switch_automatic_backups(vm=vm, on=True, user=UserFactory(admin=True), now=timezone.now() - NOTICE)
    schedule = BackupSchedule.objects.get(origin="automatic")
    return BackupRunFactory(schedule=schedule, snapshot__size_gb=60).snapshot


def test_without_backups_the_page_invites_to_create_one(client: Client, viewer: Client) -> None:
    page = client.get(BACKUPS).text
    assert "Back up your first instance" in page and 'href="/backups/new/"' in page
    assert '<a class="side-item" href="/backups/" aria-current="page">' in page
    assert "Back up your first instance" in client.get(SCHEDULES).text
    page = viewer.get(BACKUPS).text
    assert "No backups yet" in page and 'class="btn btn-primary" href="/backups/new/"' not in page


def test_the_create_menu_offers_a_backup_except_to_viewers(client: Client, viewer: Client) -> None:
    assert re.search(r'<a class="menu-item" href="/backups/new/">.*?Backup</span>', client.get("/").text, re.DOTALL)
    assert "topbar-create" in client.get("/help/").text
    assert "topbar-create" not in viewer.get("/help/").text


def test_schedules_without_a_backup_are_mentioned(client: Client, schedule: BackupSchedule) -> None:
    assert "1 schedule is set up and hasn't taken its first backup." in unescape(client.get(BACKUPS).text)


def test_the_first_schedule_replaces_the_empty_state_at_once(client: Client, vm: VirtualMachine) -> None:
    with time_machine.travel(timezone.now(), tick=False):
        assert "Back up your first instance" in client.get(BACKUPS).text
        schedule = BackupScheduleFactory(vm=vm)
        page = client.get(BACKUPS).text
        assert "1 schedule is set up" in page and "Back up your first instance" not in page
        BackupSchedule.objects.filter(pk=schedule.pk).update(deleted_at=timezone.now(), next_run_at=None)
        assert "Back up your first instance" in client.get(BACKUPS).text
        assert "Back up your first instance" not in client.get(SCHEDULES).text


def test_backups_are_listed_like_snapshots_and_apart_from_them(client: Client, vm: VirtualMachine) -> None:
    backup = BackupRunFactory(schedule__vm=vm, snapshot__name="nightly", snapshot__size_gb=60).snapshot

    response = client.get(BACKUPS)

    assert names(response) == ["nightly"]
    for text in ("1 backup", "db-01", "60 GB", "K 36.00", "Ready", "Software"):
        assert text in text_of(response.text), text
    menu = client.get(reverse("snapshots:menu", args=[backup.pk]), headers=HTMX)
    assert {action.name for action in menu.context["actions"]} == {
        "new_machine",
        "new_volume",
        "restore",
        "pin",
        "lock",
        "rename",
        "labels",
        "files",
        "verify",
        "request_drill",
        "delete",
    }
    assert names(client.get("/snapshots/vm/")) == []
    for query in ("q=nightly", "q=db-01", f"vm={vm.pk}", f"q={backup.pk}", "state=ready", "view=cards"):
        assert names(client.get(f"{BACKUPS}?{query}")) == ["nightly"], query
    assert names(client.get(f"{BACKUPS}?q=nothing")) == []


def test_a_failed_or_missed_last_run_is_shown_above_the_backups(client: Client, schedule: BackupSchedule) -> None:
    BackupRunFactory(schedule=schedule, failed=True)
    page = client.get(BACKUPS)
    assert "The last run of 1 schedule did not succeed" in page.text
    assert f"{SCHEDULES}?show=troubled" in page.text

    BackupRunFactory(schedule=schedule, scheduled_at=timezone.now())

    assert "did not succeed" not in client.get(BACKUPS).text


def test_an_automatic_backup_is_not_charged_by_itself(client: Client, vm: VirtualMachine, owner: User) -> None:
    backup = automatic_backup(vm, owner)

    assert client.get(BACKUPS).context["rows"][0].hourly == ""
    assert "Included" in text_of(client.get(BACKUPS).text)
    page = text_of(client.get(action_url(backup, "snapshot")).text)
    assert "20 % × K 24.0000 = K 4.80 an hour" in page
    assert "Price Summary" not in page
    assert "charged per GB" in text_of(client.get(action_url(backup, "pin")).text)


def test_the_page_of_a_backup_leads_back_to_the_list_and_to_its_schedule(
    client: Client, schedule: BackupSchedule
) -> None:
    backup = BackupRunFactory(schedule=schedule).snapshot

    page = client.get(action_url(backup, "snapshot")).text

    assert '<a class="side-item" href="/backups/" aria-current="page">' in page
    assert f'href="{url(schedule)}"' in page
    for name in ("rename", "delete", "restore", "verify", "new_machine", "pin"):
        assert f'<a href="{BACKUPS}">Backups</a>' in client.get(action_url(backup, name)).text, name


def test_a_backup_is_pinned_and_unpinned_again(client: Client, schedule: BackupSchedule) -> None:
    backup = BackupRunFactory(schedule=schedule).snapshot
    assert "until you delete it?" in client.get(action_url(backup, "pin")).text

    for _twice in range(2):
        page = client.post(action_url(backup, "pin"), {"pinned": "yes"}, follow=True).text
        assert "is pinned." in page
    backup.refresh_from_db()
    assert backup.is_pinned
    assert "Pinned" in client.get(BACKUPS).text

    assert "Unpin “" in client.get(action_url(backup, "pin")).text
    client.post(action_url(backup, "pin"), {"pinned": "no"})
    backup.refresh_from_db()
    assert not backup.is_pinned


def test_a_backup_that_is_being_deleted_cannot_be_pinned(
    client: Client, viewer: Client, stranger: Client, schedule: BackupSchedule
) -> None:
    backup = BackupRunFactory(schedule=schedule).snapshot
    assert stranger.post(action_url(backup, "pin"), {"pinned": "yes"}).status_code == 404
    assert viewer.post(action_url(backup, "pin"), {"pinned": "yes"}).status_code == 403
    Snapshot.objects.update(state=State.DELETING, delete_requested_at=timezone.now(), deletion_cause="user")
    assert "is being deleted, so it can" in client.post(action_url(backup, "pin"), {"pinned": "yes"}).text
    backup.refresh_from_db()
    assert not backup.is_pinned


def test_a_row_shows_recurrence_last_outcome_and_retention(client: Client, vm: VirtualMachine) -> None:
    weekly = BackupScheduleFactory(vm=vm, weekly=True, weekday=6, at=time(23), retention_count=4)
    BackupRunFactory(schedule=weekly, missed=True)

    page = text_of(client.get(SCHEDULES).text)

    for text in (
        "1 schedule",
        "db-01",
        "Every Sunday at 23:00",
        "Asia/Yangon (UTC+06:30)",
        "Missed",
        "The portal could not start it at its time.",
        "Active",
    ):
        assert text in page, text


@pytest.mark.parametrize(
    ("traits", "description"),
    [
        ({}, "Every day at 02:00"),
        ({"weekly": True}, "Every Monday at 02:00"),
        ({"monthly": True}, "On day 31 of every month, or its last, at 02:00"),
        ({"monthly": True, "month_day": 5, "at": time(14, 30)}, "On day 5 of every month at 14:30"),
    ],
)
def test_a_recurrence_is_described_in_words(vm: VirtualMachine, traits: dict[str, Any], description: str) -> None:
    assert BackupScheduleFactory(vm=vm, **traits).when == description


def test_only_existing_schedules_of_the_users_projects_are_listed(client: Client, schedule: BackupSchedule) -> None:
    BackupScheduleFactory()
    BackupScheduleFactory(vm=schedule.vm, deleted=True)

    assert [row.schedule.pk for row in client.get(SCHEDULES).context["rows"]] == [schedule.pk]


def test_search_and_filters_narrow_the_schedules(client: Client, schedule: BackupSchedule, project: Project) -> None:
    other = BackupScheduleFactory(vm__project=project, vm__name="web-01", paused=True)
    automatic = BackupScheduleFactory(vm__project=project, vm__name="mail-01", automatic=True)
    BackupRunFactory(schedule=automatic, failed=True)
    expected = {
        "q=DB": {schedule},
        f"q={other.pk}": {other},
        f"vm={other.vm_id}": {other},
        f"location={schedule.vm.location_id}": {schedule},
        "show=paused": {other},
        "show=active": {schedule, automatic},
        "show=automatic": {automatic},
        "show=troubled": {automatic},
    }
    for query, schedules in expected.items():
        rows = client.get(f"{SCHEDULES}?{query}").context["rows"]
        assert {row.schedule for row in rows} == schedules, query
    response = client.get(f"{SCHEDULES}?show=bogus")
    assert len(response.context["rows"]) == 3 and "were ignored:" in response.text


def test_the_list_of_schedules_is_paginated(client: Client, vm: VirtualMachine) -> None:
    start = timezone.now()
    schedules = [BackupScheduleFactory(vm=vm, created_at=start - timedelta(minutes=n)) for n in range(25)]
    first = client.get(SCHEDULES)
    second = client.get(first.context["pages"]["next_url"])

    assert [row.schedule for page in (first, second) for row in page.context["rows"]] == schedules
    assert first.context["page"].total == 25


def test_the_fragment_of_schedules_is_the_same_as_in_the_page(client: Client, schedule: BackupSchedule) -> None:
    client.get(SCHEDULES)
    fragment, page = client.get(SCHEDULES, headers=HTMX).text, client.get(SCHEDULES).text

    assert without_tokens(fragment).strip() == without_tokens(part_of(page, "schedule-list"))


def test_the_page_shows_next_runs_and_outcomes_of_past_ones(client: Client, schedule: BackupSchedule) -> None:
    BackupRunFactory(schedule=schedule, scheduled_at=timezone.now() - timedelta(days=3), missed=True)
    BackupRunFactory(schedule=schedule, scheduled_at=timezone.now() - timedelta(days=2), failed=True)
    done = BackupRunFactory(schedule=schedule, scheduled_at=timezone.now() - timedelta(days=1))

    response = client.get(url(schedule))
    page = text_of(response.text)

    for text in (
        "Backup of db-01",
        "Every day at 02:00 · Asia/Yangon (UTC+06:30)",
        "the 2 newest backups · 1 so far",
        "2 backups cost K 72.00 an hour together",
        "The next five runs",
        done.snapshot.name,
        "Failed 4 tries",
        "The storage ran out of room.",
        "The portal could not start it at its time.",
    ):
        assert text in page, text
    assert page.index("Ready") < page.index("4 tries") < page.index("Missed")
    # the existing backup is deleted when the second of the next runs is verified
    assert [row.cells[0] for row in response.context["chart"].rows][:4] == ["kept", "kept", "deleted", ""]


def test_a_pinned_backup_is_not_counted(client: Client, schedule: BackupSchedule) -> None:
    BackupRunFactory(schedule=schedule, snapshot__is_pinned=True)

    response = client.get(url(schedule))

    assert response.context["backup_count"] == 0
    assert "Pinned" in text_of(response.text)


def test_the_runs_follow_each_other_page_by_page(client: Client, schedule: BackupSchedule) -> None:
    start = timezone.now()
    slots = [start - timedelta(days=days) for days in range(45, 0, -1)]
    runs = [BackupRunFactory(schedule=schedule, missed=True, scheduled_at=slot) for slot in slots][::-1]
    page_url, listed = url(schedule), []
    while page_url:
        response = client.get(page_url)
        listed += response.context["runs"]
        page_url = response.context["pages"]["next_url"]

    assert listed == runs


def test_the_page_polls_while_a_backup_is_taken(client: Client, schedule: BackupSchedule) -> None:
    run = BackupRunFactory(schedule=schedule, taking=True)
    response = client.get(url(schedule))
    version = response.context["version"]

    assert f"?seen={version}" in response.text
    assert 'id="schedule"' not in client.get(f"{url(schedule)}?seen={version}", headers=HTMX).text

    BackupRun.objects.filter(pk=run.pk).update(state=BackupRun.State.DONE, finished_at=timezone.now())
    news = client.get(f"{url(schedule)}?seen={version}", headers=HTMX).text
    assert 'id="schedule"' in news and "Backup of db-01: Ready" in news and "every 2s" not in news


def test_a_stranger_gets_404_and_a_viewer_is_read_only(
    stranger: Client, viewer: Client, schedule: BackupSchedule
) -> None:
    assert stranger.get(url(schedule)).status_code == 404
    assert "You have view-only access." in viewer.get(url(schedule)).text
    for name in ACTIONS:
        assert url(schedule, name) not in viewer.get(url(schedule)).text
        for method in ("get", "post"):
            assert getattr(stranger, method)(url(schedule, name)).status_code == 404, name
            assert getattr(viewer, method)(url(schedule, name)).status_code == 403, name
    schedule.refresh_from_db()
    assert schedule.paused_at is None and schedule.deleted_at is None


def test_the_menu_of_a_schedule_offers_what_its_page_does(
    client: Client, viewer: Client, schedule: BackupSchedule, client_for: Callable[..., Client]
) -> None:
    menu = client.get(url(schedule, "schedule_menu"), headers=HTMX)

    assert [action.name for action in menu.context["actions"]] == [
        "run_schedule",
        "edit_schedule",
        "pause_schedule",
        "lock_schedule",
        "delete_schedule",
    ]
    assert menu.context["actions"] == client.get(url(schedule)).context["actions"]
    assert client.get(url(schedule, "schedule_menu"))["Location"] == url(schedule)
    assert "No actions right now" in viewer.get(url(schedule, "schedule_menu"), headers=HTMX).text
    stranger = client_for(UserFactory(member_of=ProjectFactory()))
    assert stranger.get(url(schedule, "schedule_menu"), headers=HTMX).status_code == 404


def test_nothing_is_offered_or_done_with_automatic_backups(client: Client, vm: VirtualMachine) -> None:
    automatic = BackupScheduleFactory(vm=vm, automatic=True)
    page = client.get(url(automatic))

    assert page.context["actions"] == []
    assert "Only an administrator can enable, disable or schedule them." in page.text
    assert "20 % × K 24.0000 = K 4.80 an hour" in text_of(page.text)
    for name in ACTIONS:
        data = {"interval": "daily", "at": "03:00", "retention_count": 9}
        assert "Only your provider can change" in client.post(url(automatic, name), data).text, name
    automatic.refresh_from_db()
    assert (automatic.at, automatic.retention_count, automatic.deleted_at, automatic.paused_at) == (
        time(2),
        2,
        None,
        None,
    )


def test_a_deleted_schedule_is_a_read_only_record(client: Client, vm: VirtualMachine) -> None:
    deleted = BackupScheduleFactory(vm=vm, deleted=True)

    page = client.get(url(deleted))
    assert "This schedule is deleted" in page.text and page.context["actions"] == []
    for name in ACTIONS:
        assert client.post(url(deleted, name)).status_code == 404, name


def test_a_schedule_is_edited(client: Client, schedule: BackupSchedule) -> None:
    page = client.get(url(schedule, "edit_schedule")).text
    assert 'value="02:00"' in page and re.search(r'value="daily" checked', page)

    data = {"interval": "monthly", "month_day": 15, "at": "04:45", "retention_count": 6}
    page = client.post(url(schedule, "edit_schedule"), data, follow=True).text

    assert "is now backed up like this: On day 15 of every month at 04:45." in unescape(page)
    schedule.refresh_from_db()
    assert (schedule.interval, schedule.month_day, schedule.at, schedule.retention_count) == (
        "monthly",
        15,
        time(4, 45),
        6,
    )
    local = schedule.next_run_at.astimezone(schedule.vm.project.customer.zone)
    assert (local.day, local.hour, local.minute) == (15, 4, 45)


def test_editing_shows_what_would_be_kept_before_it_is_saved(client: Client, schedule: BackupSchedule) -> None:
    for days in (3, 2, 1):
        BackupRunFactory(schedule=schedule, scheduled_at=timezone.now() - timedelta(days=days))
    data = {"interval": "daily", "at": "02:00", "retention_count": 1, "preview": "1"}

    response = client.post(url(schedule, "edit_schedule"), data)

    # all three are deleted after the first new one
    assert [row.cells[:4] for row in response.context["chart"].rows][:2] == [
        ["kept", "kept", "kept", ""],
        ["deleted", "deleted", "deleted", "taken"],
    ]
    schedule.refresh_from_db()
    assert schedule.retention_count == 2


def test_editing_decides_whether_deleted_backups_go_to_the_recycle_bin(
    client: Client, schedule: BackupSchedule, settings: Any
) -> None:
    settings.RECYCLE_BIN_DAYS = 7
    page = client.get(url(schedule, "edit_schedule")).text
    assert "in the recycle bin for 7 days" in page
    assert f"counts towards your quota with its {checks.size_of(schedule.vm)} GB" in page

    data = {"interval": "daily", "at": "02:00", "retention_count": 2}
    page = client.post(url(schedule, "edit_schedule"), data | {"uses_recycle_bin": "on"}, follow=True).text
    assert "older ones to the recycle bin" in page
    schedule.refresh_from_db()
    assert schedule.uses_recycle_bin

    refused = client.post(url(schedule, "edit_schedule"), data | {"at": "noon", "uses_recycle_bin": "on"}).text
    assert re.search(r'name="uses_recycle_bin"[^>]* checked', refused), "an error loses nothing"
    client.post(url(schedule, "edit_schedule"), data)
    schedule.refresh_from_db()
    assert not schedule.uses_recycle_bin


def test_editing_says_when_the_recycle_bin_is_off(client: Client, schedule: BackupSchedule, settings: Any) -> None:
    settings.RECYCLE_BIN_DAYS = 0
    assert "Your provider has turned your recycle bin off" in client.get(url(schedule, "edit_schedule")).text


def test_invalid_times_are_explained_and_change_nothing(client: Client, schedule: BackupSchedule) -> None:
    page = client.post(url(schedule, "edit_schedule"), {"interval": "weekly", "at": "noon", "retention_count": 0}).text

    for text in ("Choose the day of the week.", "Enter a time of day, such as"):
        assert text in page
    assert re.search(r'value="weekly" checked', page)
    schedule.refresh_from_db()
    assert (schedule.interval, schedule.retention_count) == ("daily", 2)


def test_a_schedule_is_paused_and_resumed(client: Client, schedule: BackupSchedule) -> None:
    assert "No more backups are taken until you resume it." in client.get(url(schedule, "pause_schedule")).text
    page = client.post(url(schedule, "pause_schedule"), follow=True).text
    assert "is paused." in page and url(schedule, "resume_schedule") in page
    schedule.refresh_from_db()
    assert schedule.paused_at and schedule.next_run_at is None
    assert "none while it is paused" in page and "The next five runs" not in page

    assert "The next backup is taken on" in client.get(url(schedule, "resume_schedule")).text
    assert "is active again." in client.post(url(schedule, "resume_schedule"), follow=True).text
    schedule.refresh_from_db()
    assert schedule.paused_at is None and schedule.next_run_at


def test_a_backup_is_taken_at_once_and_only_one_at_a_time(client: Client, schedule: BackupSchedule) -> None:
    assert "2 backups cost K 72.00" in text_of(client.get(url(schedule, "run_schedule")).text)
    page = client.post(url(schedule, "run_schedule"), follow=True).text
    assert "is being taken." in page and "Taking" in page

    again = client.post(url(schedule, "run_schedule"))
    assert "A backup of this instance is already running." in again.text
    assert BackupRun.objects.count() == 1
    run_active_operations()
    assert Snapshot.objects.get().state == State.READY


def test_a_schedule_is_deleted_and_its_backups_stay(client: Client, schedule: BackupSchedule) -> None:
    backup = BackupRunFactory(schedule=schedule).snapshot
    assert "Its 1 backup stays and is charged until you delete it." in client.get(url(schedule, "delete_schedule")).text

    page = client.post(url(schedule, "delete_schedule"), follow=True).text

    assert "Its backups stay." in page
    schedule.refresh_from_db()
    backup.refresh_from_db()
    assert schedule.deleted_at and backup.state == State.READY
    assert names(client.get(BACKUPS)) == [backup.name]


def test_a_backup_brings_the_machine_back_and_this_is_undone(
    storage_root: Path, client: Client, schedule: BackupSchedule, owner: User
) -> None:
    sell_everywhere(kind=ServiceKind.VM_SNAPSHOT)
    disks = [
        storage_root / schedule.vm.location_id / "volumes" / f"{volume.pk}.img"
        for volume in checks.volumes_of(schedule.vm)
    ]
    run_now(schedule=schedule, user=owner)
    run_active_operations()
    backup = Snapshot.objects.get()
    for volume in checks.volumes_of(schedule.vm):
        put_volume(storage_root, volume, content(b"ruined"))
    page = text_of(client.get(action_url(backup, "restore")).text)
    assert "Overwrite the disks of “db-01”?" in page and "d0, d1" in page

    client.post(action_url(backup, "restore"), {"confirmation": "db-01"})
    run_active_operations()

    assert all(holds(disk, content(b"%d" % position)) for position, disk in enumerate(disks))
    restore = Operation.objects.get(kind=Operation.Kind.RESTORE)
    assert restore.state == Operation.State.SUCCEEDED and restore.can_be_undone
    client.post(action_url(restore.safety_snapshot, "restore"), {"confirmation": "db-01"})
    run_active_operations()
    assert all(holds(disk, content(b"ruined")) for disk in disks)


def test_a_backup_becomes_a_new_machine_and_a_new_volume(
    storage_root: Path, client: Client, schedule: BackupSchedule, owner: User
) -> None:
    run_now(schedule=schedule, user=owner)
    run_active_operations()
    backup = Snapshot.objects.get()

    client.post(action_url(backup, "new_machine"), {"name": "db-02", "project": schedule.vm.project_id})
    client.post(
        action_url(backup, "new_volume"),
        {"disk": backup.disks.last().pk, "name": "alone", "size_gb": 50, "project": schedule.vm.project_id},
    )
    run_active_operations()

    folder = storage_root / schedule.vm.location_id / "volumes"
    machine = VirtualMachine.objects.get(name="db-02")
    alone = Operation.objects.get(volume__name="alone").volume
    volumes = [*checks.volumes_of(machine), alone]
    for volume, data in zip(volumes, [content(b"0"), content(b"1"), content(b"1")], strict=True):
        assert holds(folder / f"{volume.pk}.img", data)


def test_a_backup_is_deleted_and_stops_costing(client: Client, schedule: BackupSchedule, owner: User) -> None:
    run_now(schedule=schedule, user=owner)
    run_active_operations()
    backup = Snapshot.objects.get()
    assert "You stop paying K 36.00 an hour" in text_of(client.get(action_url(backup, "delete")).text)

    client.post(action_url(backup, "delete"), {"confirmation": backup.name, "is_last": "on"})
    run_active_operations()

    backup.refresh_from_db()
    assert backup.state == State.DELETED
    assert UsageSegment.objects.get(resource_id=backup.pk).ended_at


def test_the_page_of_a_machine_shows_its_schedules_its_backups_and_the_switch(
    client: Client, schedule: BackupSchedule, owner: User
) -> None:
    vm = schedule.vm
    BackupRunFactory(schedule=schedule, snapshot__name="last night")
    page = text_of(client.get(reverse("snapshots:machine", args=[vm.pk])).text)
    for text in (
        "Every day at 02:00",
        "last night",
        "Automatic backups Off",
        "Automatic VM backups cost 20 % of the virtual machine price: 20 % × K 24.0000 = K 4.80 an hour",
        "Only an administrator can enable or disable them",
    ):
        assert text in page, text

    admin, now = UserFactory(admin=True), timezone.now()
    switch_automatic_backups(vm=vm, on=True, user=admin, now=now)

    page = text_of(client.get(reverse("snapshots:machine", args=[vm.pk])).text)
    assert "Automatic backups Starting" in page and "Backups and their charge start at" in page

    switch_automatic_backups(vm=vm, on=False, user=admin, now=now)
    switch_automatic_backups(vm=vm, on=True, user=admin, now=now - NOTICE)

    page = text_of(client.get(reverse("snapshots:machine", args=[vm.pk])).text)
    assert "Automatic backups On" in page and "On since just now" in page
    rows = client.get("/instances/")
    assert "Automatic backups" in text_of(rows.text) and "2 schedules" in text_of(rows.text)


def test_where_backups_are_not_sold_the_machine_says_so(client: Client, project: Project) -> None:
    vm = VirtualMachineFactory(project=project)

    assert "is not sold in" in client.get(reverse("snapshots:machine", args=[vm.pk])).text


def test_the_dashboard_counts_backups_and_the_20_percent(client: Client, vm: VirtualMachine, owner: User) -> None:
    BackupRunFactory(schedule__vm=vm, snapshot__size_gb=60)
    totals = client.get("/").context["totals"]
    assert (totals["count"], totals["size"], totals["hourly"]) == ("1", "60 GB", "K 36.00")

    automatic_backup(vm, owner)

    totals = client.get("/").context["totals"]
    assert (totals["count"], totals["size"], totals["hourly"]) == ("2", "120 GB", "K 40.80")


def test_a_volume_in_a_backup_of_its_machine_is_not_listed_as_unprotected(
    client: Client, schedule: BackupSchedule, owner: User
) -> None:
    assert client.get("/").context["unprotected_count"] == 2

    run_now(schedule=schedule, user=owner)
    run_active_operations()

    assert client.get("/").context["unprotected_count"] == 0


def test_deleting_an_automatic_backup_promises_no_savings(client: Client, vm: VirtualMachine, owner: User) -> None:
    backup = automatic_backup(vm, owner)
    assert "It saves nothing" in client.get(action_url(backup, "delete")).text

    page = client.post(action_url(backup, "delete"), {"confirmation": backup.name}, follow=True).text

    assert "is being deleted." in page and "You no longer pay" not in page


def test_subscriptions_show_automatic_backups_with_the_sentence(client: Client, vm: VirtualMachine) -> None:
    switch_automatic_backups(vm=vm, on=True, user=UserFactory(admin=True))

    page = text_of(client.get("/billing/subscriptions/").text)

    assert "db-01 Automatic VM Backup" in page
    assert "20 % of K 24.0000 = K 4.80 an hour" in page


def test_the_backups_of_many_machines_are_listed(client: Client, project: Project) -> None:
    for _number in range(20):
        BackupRunFactory(schedule__vm__project=project)
    BackupFactory(vm__project=project)
    assert len(client.get(BACKUPS).context["rows"]) == 20
