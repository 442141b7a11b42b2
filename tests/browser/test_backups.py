"""Backups in a browser with a worker and a scheduler, compared byte for byte."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page, expect

from billing.models import ServiceKind
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import VirtualMachine
from snapshots.checks import volumes_of
from snapshots.models import BackupSchedule, Snapshot
from tests.factories import LocationFactory, MembershipFactory, UserFactory, VirtualMachineFactory, VolumeFactory
from tests.snapshots.disks import holds, put_volume, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = 1000


@pytest.fixture
def live() -> bool:
    return True


@pytest.fixture
def browser_context_args(browser_context_args: dict, live: bool) -> dict:
    return browser_context_args | {"java_script_enabled": live}


@pytest.fixture
def processes(process_environment: dict[str, str]) -> Iterator[None]:
    """A worker and a scheduler process on this test's database and storage."""
    commands = [["worker", "--interval", "0.2"], ["scheduler", "--interval", "0.5"]]
    running = [
        subprocess.Popen([sys.executable, "manage.py", *command], env=process_environment) for command in commands
    ]
    yield
    for process in running:
        process.terminate()
    assert [process.wait(30) for process in running] == [0, 0]


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__name="Default", project__customer__postpaid=True)
    member.user.customer = member.project.customer
    member.user.save()
    return member


@pytest.fixture
def vm(member: Membership) -> VirtualMachine:
    vm = VirtualMachineFactory(
        project=member.project,
        location=LocationFactory(code="1CNG-YGN-AZ01"),
        name="db-01",
        hourly_price_micro=24_000_000,
        stopped=True,
    )
    for position, name in enumerate(["db-01-root", "db-01-data"]):
        VolumeFactory(project=member.project, location=vm.location, vm=vm, position=position, name=name, size_gb=5)
    sell_everywhere(kind=ServiceKind.VM_BACKUP, rate_micro=600_000)
    sell_everywhere(kind=ServiceKind.VM_SNAPSHOT)
    return vm


def write_disks(root: Path, vm: VirtualMachine, seed: int) -> list[bytes]:
    """Write different bytes to each disk of the machine and return them."""
    contents = [random.Random(f"{seed} {volume.pk}").randbytes(2 * 1024**2) for volume in volumes_of(vm)]
    for volume, data in zip(volumes_of(vm), contents, strict=True):
        put_volume(root, volume, data)
    return contents


def disks_hold(root: Path, vm: VirtualMachine, contents: list[bytes]) -> bool:
    folder = root / vm.location_id / "volumes"
    return all(holds(folder / f"{volume.pk}.img", data) for volume, data in zip(volumes_of(vm), contents, strict=True))


def settled(page: Page, text: str, *, live: bool = True, count: int = 1) -> None:
    """Wait for the text. With JavaScript the page updates itself; without it, reload."""
    wanted = page.locator("main").get_by_text(text, exact=True)
    deadline = time.monotonic() + 60
    while not live and wanted.count() != count and time.monotonic() < deadline:
        page.reload()
    expect(wanted).to_have_count(count, timeout=60 * SECONDS)


def tab_to(page: Page, selector: str) -> None:
    for _press in range(80):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached by keyboard")


def restore_from(page: Page, copy: Snapshot, *, live: bool = True) -> None:
    page.goto(reverse("snapshots:restore", args=[copy.pk]))
    page.get_by_label("Type the instance's name").fill("db-01")
    page.get_by_role("button", name="Restore instance").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(copy.name)
    settled(page, "Undo restore", live=live)


def test_a_schedule_is_created_by_keyboard_and_its_first_backup_brings_the_machine_back(
    page: Page,
    storage_root: Path,
    member: Membership,
    vm: VirtualMachine,
    sign_in: Callable[..., Any],
    processes: None,
) -> None:
    before = write_disks(storage_root, vm, 1)
    sign_in(member.user)
    page.goto("/backups/")
    tab_to(page, "a.btn-primary[href='/backups/new/']")
    page.keyboard.press("Enter")
    for heading, control in [
        ("Choose a Location", "input[name=location]"),
        ("Assign to a Project", "input[name=project]"),
        ("Choose an Instance", "input[name=vm]"),
    ]:
        page.get_by_role("heading", level=1, name=heading).wait_for()
        tab_to(page, control)
        page.keyboard.press("Space")
        page.keyboard.press("Enter")

    page.get_by_role("heading", level=1, name="Backup Schedule").wait_for()
    runs = page.get_by_role("table", name="The next five runs")
    expect(runs.get_by_role("row")).to_have_count(6)
    # the day is requested if the interval has one, and the next runs follow each answer
    expect(page.get_by_label("Day of the week")).to_be_hidden()
    tab_to(page, "input[name=interval]")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Day of the week")).to_be_visible()
    expect(page.get_by_label("Day of the month")).to_be_hidden()
    tab_to(page, "select[name=weekday]")
    page.keyboard.type("Sunday")
    expect(runs.get_by_role("rowheader").first).to_contain_text("Sun ")
    expect(runs.get_by_role("cell", name="deleted")).to_have_count(3)
    tab_to(page, "input[name=retention_count]")
    page.keyboard.press("Control+a")
    page.keyboard.type("4")
    expect(runs.get_by_role("cell", name="deleted")).to_have_count(1)
    assert page.evaluate("document.activeElement.name") == "retention_count"
    tab_to(page, "input[name=take_one_now]")
    page.keyboard.press("Space")
    expect(runs.get_by_role("rowheader").first).to_have_text("Now")
    page.keyboard.press("Enter")

    page.get_by_role("heading", level=1, name="Create Backup").wait_for()
    main = page.locator("main")
    expect(main.get_by_text("Every Sunday at 02:00, Asia/Yangon (UTC+06:30)")).to_be_visible()
    expect(main.locator(".price-figure")).to_have_text("K 6.00 / Hour / 10 GB")
    tab_to(page, "button[type=submit].btn-primary")
    page.keyboard.press("Enter")

    page.get_by_role("heading", level=1, name="Backup of db-01").wait_for()
    settled(page, "Ready")
    copy = Snapshot.objects.get()
    assert write_disks(storage_root, vm, 2) != before
    restore_from(page, copy)
    assert disks_hold(storage_root, vm, before)


@pytest.mark.parametrize("live", [False])
def test_without_javascript_a_button_previews_runs_and_a_backup_restores_the_machine(
    page: Page,
    storage_root: Path,
    member: Membership,
    vm: VirtualMachine,
    sign_in: Callable[..., Any],
    processes: None,
    live: bool,
) -> None:
    before = write_disks(storage_root, vm, 1)
    sign_in(member.user)
    page.goto("/backups/")
    page.get_by_role("link", name="Create Backup").first.click()
    for label in ("1CNG-YGN-AZ01", "Default", "db-01"):
        page.get_by_role("radio", name=label).check()
        page.get_by_role("button", name="Continue").click()
    page.get_by_role("radio", name="Monthly").check()
    page.get_by_label("Day of the month").select_option("31")
    page.get_by_label("Time of day").fill("23:30")
    page.get_by_label("Backups to keep").fill("1")
    page.get_by_label("Take one immediately").check()
    page.get_by_role("button", name="Show the next runs").click()
    runs = page.get_by_role("table", name="The next five runs")
    expect(runs.get_by_role("cell", name="deleted")).to_have_count(5)
    expect(page.get_by_label("Backups to keep")).to_have_value("1")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Create Backup").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Backup of db-01")
    settled(page, "Ready", live=live)

    copy = Snapshot.objects.get()
    assert write_disks(storage_root, vm, 2) != before
    restore_from(page, copy, live=live)
    assert disks_hold(storage_root, vm, before)


@pytest.mark.parametrize("live", [False])
def test_without_javascript_snapshots_of_a_volume_are_scheduled_and_the_first_one_is_taken(
    page: Page,
    storage_root: Path,
    member: Membership,
    vm: VirtualMachine,
    sign_in: Callable[..., Any],
    processes: None,
    live: bool,
) -> None:
    write_disks(storage_root, vm, 1)
    sell_everywhere()
    sign_in(member.user)
    page.goto("/volumes/")
    page.get_by_role("link", name="db-01-data", exact=True).click()
    page.get_by_role("button", name="Schedule snapshots", exact=True).click()
    page.get_by_role("radio", name="Weekly").check()
    page.get_by_label("Day of the week").select_option("Friday")
    page.get_by_label("Snapshots to keep").fill("3")
    page.get_by_label("Take one immediately").check()
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("main")).to_contain_text("Every Friday at 02:00, Asia/Yangon (UTC+06:30)")
    page.get_by_role("button", name="Schedule Snapshots").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Snapshots of db-01-data")
    settled(page, "Ready", live=live)
    assert Snapshot.objects.get().volume.name == "db-01-data"


def test_automatic_backups_are_switched_on_and_one_restores_the_machine(
    page: Page,
    storage_root: Path,
    member: Membership,
    vm: VirtualMachine,
    sign_in: Callable[..., Any],
    processes: None,
) -> None:
    before = write_disks(storage_root, vm, 1)
    machine = reverse("snapshots:machine", args=[vm.pk])
    sentence = "Automatic VM backups cost 20 % of the virtual machine price: 20 % × K 24.0000 = K 4.80 an hour"
    sign_in(member.user)
    page.goto(machine)
    card = page.get_by_role("region", name="Automatic backups")
    expect(card).to_contain_text("Off")

    sign_in(UserFactory(admin=True))
    page.goto(reverse("admin:inventory_virtualmachine_changelist"))
    page.get_by_role("button", name="Switch on automatic backups of db-01").click()
    expect(page.locator("#content")).to_contain_text("In total, this costs K 4.80 an hour, K 3,513.60 for 732 hours")
    page.get_by_role("button", name="Switch automatic backups on").click()
    expect(page.get_by_role("button", name="Switch off automatic backups of db-01")).to_be_visible()

    sign_in(member.user)
    page.goto(machine)
    expect(card).to_contain_text("Backups and their charge start at")
    expect(card).to_contain_text(sentence)
    page.goto("/backups/schedules/")
    expect(page.get_by_role("row", name="db-01")).to_contain_text("Automatic backups")
    page.goto("/billing/subscriptions/")
    expect(page.get_by_role("row", name="db-01")).to_contain_text("20 % of K 24.0000 = K 4.80 an hour")

    # it becomes due
    schedule = BackupSchedule.objects.get()
    BackupSchedule.objects.update(next_run_at=timezone.now())
    page.goto(reverse("snapshots:schedule", args=[schedule.pk]))
    expect(page.locator("main")).to_contain_text(sentence)
    settled(page, "Ready", live=False)
    copy = Snapshot.objects.get()
    page.goto("/backups/")
    expect(page.get_by_role("row", name=copy.name)).to_contain_text("Included")

    assert write_disks(storage_root, vm, 2) != before
    restore_from(page, copy)
    assert disks_hold(storage_root, vm, before)
