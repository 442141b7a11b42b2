"""Every page in every relevant state: no findings by axe, nothing cut off, no messages on the console."""

from collections.abc import Callable
from datetime import time
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Page
from pytest_django import Settings

from billing.models import ServiceKind
from cng_portal.accounts import roles
from cng_portal.accounts.models import Membership
from cng_portal.activity import services as activity
from cng_portal.inventory.models import Volume
from snapshots.backups.automatic import switch_automatic_backups
from snapshots.models import BackupSchedule, Draft, Kind
from snapshots.wizard import wizard
from tests.browser.filling import put_files
from tests.browser.looking import look_at
from tests.factories import (
    ApprovalFactory,
    BackupRunFactory,
    BackupScheduleFactory,
    InvitationFactory,
    MembershipFactory,
    NotificationFactory,
    OperationFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, sell_everywhere
from tests.snapshots.files.images import need

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__name="Default", project__customer__postpaid=True)
    member.user.customer = member.project.customer
    member.user.save()
    return member


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, name="db-01-data", size_gb=50, attached_stopped=True)
    VolumeFactory(project=member.project, location=volume.location, name="a-volume-with-a-really-long-name" * 3)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


def draft(member: Membership, volume: Volume, name: str = "") -> Draft:
    draft = wizard.start(member.user, source=volume)
    draft.name = name
    draft.save()
    return draft


def test_the_pages_of_the_recycle_bin_are_accessible_and_fit(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    binned = SnapshotFactory(volume=volume, name="before-the-update", binned=True)
    SnapshotFactory(volume=volume, name="nightly-with-a-really-long-name" * 3, binned=True)
    SnapshotFactory(volume=volume, name="before-the-update")
    sign_in(member.user)
    actions = [reverse(f"snapshots:{name}", args=[binned.pk]) for name in ("snapshot", "put_back", "erase")]
    look_at(page, ["/recycle-bin/", "/recycle-bin/?q=nothing", *actions])


def test_the_pages_of_an_empty_account_are_accessible_and_fit(
    page: Page, member: Membership, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    paths = [
        "/",
        "/snapshots/",
        "/instances/",
        "/backups/",
        "/backups/schedules/",
        "/snapshots/vm/",
        "/volumes/",
        "/snapshots/new/",
        "/billing/",
    ]
    look_at(page, [*paths, "/notifications/"])


def test_the_pages_of_a_full_account_are_accessible_and_fit(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    ready = SnapshotFactory(volume=volume, name="ready")
    failed = SnapshotFactory(volume=volume, name="failed", failed=True)
    creating = SnapshotFactory(volume=volume, name="being taken", creating=True)
    gone = SnapshotFactory(volume=volume, name="gone", deleted=True)
    OperationFactory(snapshot=failed, capture=True, failed=True)
    OperationFactory(snapshot=creating, capture=True, running=True, bytes_done=5, bytes_total=10)
    OperationFactory(snapshot=ready, restore=True, succeeded=True)
    NotificationFactory(user=member.user, url=reverse("snapshots:snapshot", args=[failed.pk]))
    NotificationFactory(user=member.user, read=True)
    sign_in(member.user)
    actions = [
        reverse(f"snapshots:{name}", args=[ready.pk])
        for name in ("rename", "labels", "move", "delete", "restore", "new_volume", "verify")
    ]
    look_at(
        page,
        [
            "/",
            "/snapshots/?view=table",
            "/snapshots/?view=cards",
            "/snapshots/?q=nothing-like-it",
            "/instances/",
            "/volumes/",
            "/search/",
            "/search/?q=a",
            "/search/?q=nothing-like-it",
            *(reverse("snapshots:snapshot", args=[snapshot.pk]) for snapshot in (ready, failed, creating, gone)),
            *actions,
            f"/snapshots/tags/?id={ready.pk}&id={failed.pk}",
            reverse("snapshots:volume", args=[volume.pk]),
            reverse("snapshots:machine", args=[volume.vm_id]),
            "/notifications/",
            *(
                f"/billing/{name}"
                for name in ("", "subscriptions/", "credits/", "transactions/", "statement/", "prices/")
            ),
        ],
    )


def test_every_step_of_the_wizard_is_accessible_and_fits_with_and_without_errors(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    SnapshotFactory(volume=volume, name="taken")
    sign_in(member.user)
    fine, wrong = draft(member, volume, "free"), draft(member, volume, "taken")
    look_at(page, [wizard.url(fine, slug) for slug in wizard.slugs(fine)] + [wizard.url(wrong, "name")])


def test_every_step_of_create_volume_and_every_action_of_a_volume_is_accessible_and_fits(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    SnapshotFactory(volume=volume, name="a-snapshot-with-a-really-long-name" * 3)
    free = VolumeFactory(project=member.project, location=volume.location, name="uploads")
    answered = wizard.start(member.user, kind=Draft.CREATE_VOLUME)
    answered.location, answered.project, answered.size_gb, answered.name = volume.location, member.project, 100, "new"
    answered.save()
    sign_in(member.user)
    actions = [
        reverse(f"snapshots:{action}_volume", args=[item.pk])
        for action in ("rename", "grow", "attach", "detach", "delete")
        for item in (volume, free)
    ]
    grown = reverse("snapshots:grow_volume", args=[free.pk], query={"size_gb": 150})
    steps = [wizard.url(answered, slug) for slug in (*wizard.slugs(answered), "source")]
    look_at(page, [reverse("snapshots:create_volume"), *steps, *actions, grown])


def test_the_pages_of_files_are_accessible_and_fit(
    page: Page, member: Membership, storage_root: Path, sign_in: Callable[..., Any]
) -> None:
    need("mke2fs")
    snapshot = SnapshotFactory(volume__project=member.project, volume__size_gb=1)
    put_files(snapshot, storage_root)
    disk = snapshot.disks.get()
    folder = reverse("snapshots:folder", args=[snapshot.pk, disk.pk, 0])
    sign_in(member.user)
    look_at(
        page,
        [
            reverse("snapshots:files", args=[snapshot.pk]),
            *(f"{folder}{query}" for query in ("", "?q=random", "?q=nothing", "?path=/nowhere")),
            reverse("snapshots:file_history", args=[snapshot.pk, disk.pk, 0], query={"path": "/plain.txt"}),
            reverse("snapshots:compare_files", args=[snapshot.pk, disk.pk]),
        ],
    )


def test_the_pages_of_backups_and_of_their_wizard_are_accessible_and_fit(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    vm = volume.vm
    sell_everywhere(kind=ServiceKind.VM_BACKUP)
    schedule = BackupScheduleFactory(vm=vm, retention_count=1)
    copy = BackupRunFactory(schedule=schedule, snapshot__is_pinned=True).snapshot
    BackupRunFactory(schedule=schedule)
    BackupRunFactory(schedule=schedule, failed=True)
    BackupRunFactory(schedule=schedule, waiting=True)
    paused = BackupScheduleFactory(vm=vm, monthly=True, paused=True)
    BackupRunFactory(schedule=paused, missed=True)
    switch_automatic_backups(vm=vm, on=True, user=UserFactory(admin=True))
    automatic = BackupSchedule.objects.get(origin="automatic")
    covered = BackupRunFactory(schedule=automatic).snapshot
    fresh = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    answered = wizard.start(member.user, kind=Kind.BACKUP, source=vm)
    answered.interval, answered.at, answered.take_one_now = "weekly", time(23, 30), True
    answered.weekday = 6
    answered.save()
    sign_in(member.user)
    actions = ("edit_schedule", "pause_schedule", "resume_schedule", "run_schedule", "delete_schedule")
    look_at(
        page,
        [
            "/backups/",
            "/backups/?view=cards",
            "/backups/schedules/",
            "/backups/schedules/?q=nothing-like-it",
            *(reverse("snapshots:schedule", args=[item.pk]) for item in (schedule, paused, automatic)),
            *(reverse(f"snapshots:{name}", args=[schedule.pk]) for name in actions),
            *(reverse("snapshots:snapshot", args=[snapshot.pk]) for snapshot in (copy, covered)),
            *(reverse(f"snapshots:{name}", args=[copy.pk]) for name in ("pin", "restore", "delete", "new_machine")),
            reverse("snapshots:machine", args=[vm.pk]),
            "/billing/subscriptions/",
            "/backups/new/",
            wizard.url(fresh, "schedule"),
            *(wizard.url(answered, slug) for slug in wizard.slugs(answered)),
        ],
    )


def test_the_whole_wizard_by_keyboard(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    page.goto("/snapshots/new/")

    def tab_to(selector: str) -> None:
        for _press in range(60):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} cannot be reached by keyboard")

    for heading, control in [
        ("Choose a Location", "input[name=location]"),
        ("Assign to a Project", "input[name=project]"),
        ("Choose Block Storage", "input[name=volume]"),
        ("Choose Snapshot Name", "input[name=name]"),
        ("Create Snapshot", "button[type=submit].btn-primary"),
    ]:
        page.get_by_role("heading", level=1, name=heading).wait_for()
        tab_to(control)
        if "radio" in (page.evaluate("document.activeElement.type") or ""):
            page.keyboard.press("ArrowDown" if "volume" in control else "Space")
            while "volume" in control and not page.get_by_label("db-01-data").is_checked():
                page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name="db-01-data").wait_for()


def test_the_pages_of_the_profile_are_accessible_and_fit(
    page: Page, member: Membership, sign_in: Callable[..., Any], settings: Settings
) -> None:
    invitation = InvitationFactory(project=member.project, email="a-guest-with-a-long-address@example.com")
    other = MembershipFactory(project=member.project, role="viewer")
    activity.record(
        action="role.change", actor=member.user, target=other.user, project=member.project, after={"role": "x"}
    )
    sign_in(member.user)
    ApprovalFactory(project=member.project, reason="The contract ended.")
    names = ("profile", "security", "sessions", "sign_ins", "approvals")
    paths = [reverse(f"accounts:{name}") for name in names]
    paths += [
        reverse("activity:log"),
        reverse("snapshots:limits"),
        reverse("projects"),
        reverse("new_project"),
        *(reverse(name, args=[member.project_id]) for name in ("project", "rename_project", "archive_project")),
        reverse("accounts:invite", args=[member.project_id]),
    ]
    paths += [reverse(f"accounts:{name}", args=[other.pk]) for name in ("role", "remove")]
    look_at(page, [*paths, reverse("accounts:invitation", args=[roles.sign_token(invitation)])])
    settings.MFA_REQUIRED = "everyone"
    look_at(page, [reverse("accounts:security")])
    assert page.get_by_text("Add a second factor to continue").is_visible()
