"""Follows the customer guide sentence by sentence in a browser with a worker, and compares the bytes."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from billing.charges import cost_so_far
from billing.models import ServiceKind, UsageSegment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from cng_portal.support.models import SupportContact
from snapshots import services
from snapshots.models import Snapshot
from snapshots.storage.contract import GIB
from tests.factories import LocationFactory, MembershipFactory, VolumeFactory
from tests.snapshots.disks import holds, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "a password of the tests"
SECONDS = 1000


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def browser_context_args(browser_context_args: dict, request: pytest.FixtureRequest) -> dict:
    return browser_context_args | {"java_script_enabled": request.param}


@pytest.fixture
def worker(process_environment: dict[str, str]) -> Iterator[None]:
    """A worker process on this test's database and storage."""
    command = [sys.executable, "manage.py", "worker", "--interval", "0.2"]
    process = subprocess.Popen(command, env=process_environment)
    yield
    process.terminate()
    assert process.wait(30) == 0


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__name="Default", project__customer__number=1039, user__email="aye@example.com")
    member.user.customer = member.project.customer
    member.user.set_password(PASSWORD)
    member.user.save()
    buy_credits(customer=member.project.customer, amount_micro=100_000 * 10**6, reason="bought", by=None, key="credits")
    return member


@pytest.fixture
def volume(member: Membership) -> Volume:
    volume = VolumeFactory(
        project=member.project,
        location=LocationFactory(code="1CNG-YGN-AZ01"),
        name="db-01-data",
        size_gb=50,
    )
    sell_everywhere()
    return volume


def random_bytes(seed: int) -> bytes:
    return random.Random(seed).randbytes(3 * 1024**2)


def bytes_of(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def test_a_customer_follows_the_guide_from_sign_in_to_a_restored_disk(
    page: Page, storage_root: Path, member: Membership, volume: Volume, worker: None, request: pytest.FixtureRequest
) -> None:
    live = "without" not in request.node.callspec.id
    before, ruined = random_bytes(1), random_bytes(2)
    archive = MembershipFactory(
        user=member.user, project__customer=member.project.customer, project__name="Archive"
    ).project
    disk = put_volume(storage_root, volume, before)

    def settled(text: str, count: int = 1) -> None:
        """Wait for the text. With JavaScript the page updates itself; without it, reload."""
        wanted = page.locator("main").get_by_text(text, exact=True)
        deadline = time.monotonic() + 30
        while not live and wanted.count() != count and time.monotonic() < deadline:
            page.reload()
        expect(wanted).to_have_count(count, timeout=30 * SECONDS)

    page.goto("/")
    page.get_by_label("E-mail").fill("aye@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()

    # "From the left-hand menu, click on the Snapshots tab." "Go to the Volume Snapshot tab."
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Snapshots").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Snapshots")
    page.get_by_role("link", name="Volume Snapshot").click()
    # "To create a snapshot, click on Take Snapshot or the plus (+) icon located on the right side of the page."
    expect(page.get_by_role("link", name="New snapshot").first).to_be_visible()
    page.get_by_role("link", name="Take Snapshot" if live else "New snapshot").first.click()

    # "Choose a Location": "Choose from the available locations listed."
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose a Location")
    expect(page.get_by_text("Price Summary")).to_have_count(0)
    page.get_by_label("1CNG-YGN-AZ01").check()
    page.get_by_role("button", name="Continue").click()
    # "Assign the snapshot to one of your projects"
    expect(page.get_by_role("heading", level=1)).to_have_text("Assign to a Project")
    page.get_by_label("Archive").click()
    if not live:  # With JavaScript, the click submits the answer.
        page.get_by_role("button", name="Continue").click()
    # "From the Volumes list, select the volume for which you want to create a snapshot."
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose Block Storage")
    page.get_by_role("group", name="Volumes").get_by_label("db-01-data").check()
    page.get_by_role("button", name="Continue").click()
    # "Provide a unique Snapshot Name"
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose Snapshot Name")
    page.get_by_label("Snapshot Name").fill("before the update")
    if live:
        expect(page.get_by_text("This name is available.")).to_be_visible()
    page.get_by_role("button", name="Continue").click()
    # "Choose the desired Billing Cycle" "Verify all the configuration details and review the price summary."
    expect(page.get_by_role("heading", level=1)).to_have_text("Create Snapshot")
    expect(page.get_by_role("group", name="Billing Cycle").get_by_label("Hourly")).to_be_checked()
    main = page.locator("main")
    expect(main.get_by_text("Every member of “Archive” has a role in “Default” too")).to_be_visible()
    for text in ("Fixed Prorata", "Price Summary", "50 GB × K 0.4000 = K 20.00 an hour", "before the update"):
        expect(main.get_by_text(text, exact=True).first).to_be_visible()
    expect(main.locator(".price-figure")).to_have_text("K 20.00 / Hour / 50 GB")
    assert page.url.endswith("/review/")
    # "Click on Take Snapshot to create the snapshot of the volume."
    page.get_by_role("button", name="Take Snapshot").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("before the update")
    settled("Ready")
    snapshot = Snapshot.objects.get()
    assert (snapshot.project, snapshot.source.project) == (archive, member.project)
    expect(main.locator(".fact", has_text="Project").get_by_text("Archive")).to_be_visible()
    [segment] = UsageSegment.objects.filter(resource_id=snapshot.pk)
    assert (segment.project, segment.size_gb, segment.started_at) == (archive, 50, snapshot.ready_at)
    expect(main.get_by_text("1 hour × 50 GB × K 0.4000 = K 20.00")).to_be_visible()
    stored_disk = storage_root / "1CNG-YGN-AZ01" / "snapshots" / str(snapshot.pk) / "disk.img"
    assert bytes_of(stored_disk, len(before)) == before and stored_disk.stat().st_size == disk.stat().st_size

    # the disk's contents are lost
    put_volume(storage_root, volume, ruined)
    assert bytes_of(disk, len(before)) == ruined

    # they are restored, byte for byte
    page.get_by_role("link", name="Restore").click()
    page.get_by_label("Type the volume's name").fill("db-01-dat")
    page.get_by_role("button", name="Restore volume").click()
    expect(page.get_by_role("alert")).to_contain_text("That is not its name.")
    page.get_by_label("Type the volume's name").fill("db-01-data")
    page.get_by_role("button", name="Restore volume").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("before the update")
    settled("Undo restore")
    assert bytes_of(disk, len(before)) == before

    # the safety snapshot undoes it
    page.get_by_role("link", name="Undo restore").click()
    page.get_by_label("Type the volume's name").fill("db-01-data")
    page.get_by_role("button", name="Restore volume").click()
    settled("Done", count=2)
    assert bytes_of(disk, len(ruined)) == ruined

    # a new, larger volume from the first snapshot
    page.goto(f"/snapshots/{snapshot.pk}/new-volume/")
    page.get_by_label("Name").fill("db-01-copy")
    page.get_by_label("Size").fill("60")
    page.get_by_role("button", name="Create volume").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("db-01-copy")
    settled("Available")
    copy = Volume.objects.get(name="db-01-copy")
    image = storage_root / "1CNG-YGN-AZ01" / "volumes" / f"{copy.pk}.img"
    assert bytes_of(image, len(before)) == before and image.stat().st_size == 60 * 1024**3

    # the snapshot is deleted, and the volume made from it stays
    page.goto(f"/snapshots/{snapshot.pk}/delete/")
    page.get_by_label("Type the snapshot's name").fill("before the update")
    page.get_by_role("button", name="Delete snapshot").click()
    settled("This snapshot is deleted")
    assert not stored_disk.exists()
    assert bytes_of(image, len(before)) == before

    # "For further assistance, refer to the 1CNG documentation or reach out to support." "See also"
    SupportContact.objects.create(email="support@example.com")
    page.get_by_role("link", name="Help").first.click()
    expect(main.get_by_role("link", name="support@example.com")).to_be_visible()
    page.goto("/help/create-volume-snapshot/")
    for name in ("Create Volume", "Create a VM snapshot"):
        expect(page.get_by_role("article").get_by_role("link", name=name, exact=True)).to_be_visible()


def test_the_guide_leads_on_to_create_volume(
    page: Page, storage_root: Path, member: Membership, volume: Volume, sign_in, request: pytest.FixtureRequest
) -> None:
    """ "See also: Create Volume": an empty one, and one with the bytes of a snapshot."""
    live = "without" not in request.node.callspec.id
    before = random_bytes(1)
    put_volume(storage_root, volume, before)
    sell_everywhere(rate_micro=100_000, kind=ServiceKind.BLOCK_STORAGE)
    services.request_snapshot(source=volume, name="before the update", user=member.user)
    run_active_operations()
    main = page.locator("main")

    def is_at(heading: str) -> None:
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)

    def choose(label: str) -> None:
        page.get_by_label(label).click()
        if not live:  # With JavaScript, the click submits the answer.
            page.get_by_role("button", name="Continue").click()

    def create(name: str, price: str) -> tuple[Volume, Path]:
        """Complete the wizard from the name on, and return the available volume and its file."""
        is_at("Choose Volume Name")
        page.get_by_label("Volume Name").fill(name)
        page.get_by_role("button", name="Continue").click()
        is_at("Create Volume")
        expect(main.locator(".price-figure")).to_have_text(price)
        expect(main.get_by_text(name, exact=True).first).to_be_visible()
        page.get_by_role("button", name="Create Volume").click()
        is_at(name)
        run_active_operations()
        if not live:
            page.reload()
        expect(main.get_by_text("Available", exact=True).first).to_be_visible()
        expect(main.get_by_text("Next steps")).to_be_visible()
        created = Volume.objects.get(name=name)
        return created, storage_root / "1CNG-YGN-AZ01" / "volumes" / f"{created.pk}.img"

    def hourly_micro(created: Volume) -> int:
        """Return the hourly charge since the volume became available."""
        segment = UsageSegment.objects.get(resource_id=created.pk)
        assert segment.started_at == created.available_at
        charge = cost_so_far(resource_id=created.pk, at=segment.started_at + timedelta(minutes=15))
        assert charge
        return charge.amount_micro

    sign_in(member.user)
    page.goto("/help/create-volume-snapshot/")
    main.get_by_role("link", name="Create Volume", exact=True).click()
    is_at("Create a volume")
    main.get_by_role("link", name="Volumes page").click()
    main.get_by_role("link", name="Create Volume").click()
    is_at("Choose a Location")
    expect(page.get_by_text("Price Summary")).to_have_count(0)
    choose("1CNG-YGN-AZ01")
    is_at("Assign to a Project")
    choose("Default")
    is_at("Choose a Size")
    page.get_by_label("Size").fill("0")
    if live:
        expect(page.locator("#size-check")).to_contain_text("A volume has at least 1 GB.")
    page.get_by_label("Size").fill("20")
    if live:
        expect(main.locator(".price-figure")).to_have_text("K 2.00 / Hour / 20 GB")
    page.get_by_role("button", name="Continue").click()
    empty, image = create("uploads", "K 2.00 / Hour / 20 GB")
    assert image.stat().st_size == 20 * GIB and holds(image, b"")
    assert hourly_micro(empty) == 2_000_000

    page.goto("/volumes/new/")
    choose("1CNG-YGN-AZ01")
    is_at("Assign to a Project")
    choose("Default")
    is_at("Choose a Size")
    page.get_by_role("link", name="Use a snapshot").click()
    is_at("Choose a Source")
    page.get_by_role("searchbox", name="Search snapshots").fill("update")
    page.get_by_role("button", name="Search", exact=True).click()
    choose("before the update")
    is_at("Choose a Size")
    expect(page.get_by_label("Size")).to_have_value("50")
    page.get_by_label("Size").fill("60")
    page.get_by_role("button", name="Continue").click()
    copy, image = create("uploads of before", "K 6.00 / Hour / 60 GB")
    assert image.stat().st_size == 60 * GIB and holds(image, before)
    assert hourly_micro(copy) == 6_000_000


def test_back_refresh_and_a_second_tab_keep_their_answers(
    page: Page, member: Membership, volume: Volume, sign_in
) -> None:
    sign_in(member.user)
    page.goto("/snapshots/new/")
    page.get_by_label("1CNG-YGN-AZ01").check()
    page.get_by_role("button", name="Continue").click()
    page.get_by_label("Default").check()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose Block Storage")

    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Assign to a Project")
    expect(page.get_by_label("Default")).to_be_checked()
    page.reload()
    expect(page.get_by_label("Default")).to_be_checked()
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose a Location")
    page.go_forward()
    expect(page.get_by_role("heading", level=1)).to_have_text("Assign to a Project")

    tab = page.context.new_page()
    tab.goto("/snapshots/new/")
    expect(tab.get_by_role("heading", level=1)).to_have_text("Choose a Location")
    tab.goto(page.url)
    expect(tab.get_by_label("Default")).to_be_checked()
