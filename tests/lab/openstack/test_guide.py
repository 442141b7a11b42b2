"""Follows the customer guide in a browser with a worker on a real Cinder: the data through librbd, and the bill."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from billing.models import ServiceKind, UsageSegment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from snapshots.models import Snapshot
from tests.factories import LocationFactory, MembershipFactory, VolumeFactory
from tests.lab.openstack.pool import Pool
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.storage.contract import new_volume

pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = 1000
SIZE = 3 * 1024**2
STORAGE = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "demo"}}}


@pytest.fixture
def cinder_storage(settings: Any, storage_root: Any) -> None:
    settings.STORAGE = STORAGE


@pytest.fixture
def worker(cinder_storage: None, process_environment: dict[str, str]) -> Iterator[None]:
    environment = process_environment | {"STORAGE": json.dumps(STORAGE)}
    process = subprocess.Popen([sys.executable, "manage.py", "worker", "--interval", "0.2"], env=environment)
    yield
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__name="Default")
    buy_credits(customer=member.project.customer, amount_micro=100_000 * 10**6, reason="bought", by=None, key="credits")
    return member


@pytest.fixture
def volume(store: CinderStore, cinder_storage: None, member: Membership) -> Volume:
    ref = new_volume(store)
    location = LocationFactory(code="1CNG-YGN-AZ01", driver="cinder")
    sell_everywhere()
    return VolumeFactory(
        pk=ref.uuid, project=member.project, location=location, backend_ref=ref.backend_ref, name="db-01-data"
    )


def random_bytes(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


def test_the_guide_on_cinder_from_the_menu_to_a_clone_that_outlives_its_snapshot(
    page: Page, pool: Pool, store: CinderStore, member: Membership, volume: Volume, worker: None, sign_in: Any
) -> None:
    before, ruined = random_bytes(1), random_bytes(2)
    customer = member.project.customer
    archive = MembershipFactory(user=member.user, project__customer=customer, project__name="Archive").project
    main = page.locator("main")

    def is_at(heading: str) -> None:
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)

    def settled(text: str, count: int = 1) -> None:
        expect(main.get_by_text(text, exact=True)).to_have_count(count, timeout=120 * SECONDS)

    def press(name: str) -> None:
        page.get_by_role("button", name=name).click()

    pool.write(volume.backend_ref, {0: before})
    page.set_default_timeout(60 * SECONDS)
    sign_in(member.user)
    page.goto("/")
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Snapshots").click()
    page.get_by_role("link", name="Volume Snapshot").click()
    page.get_by_role("link", name="Take Snapshot").first.click()
    is_at("Choose a Location")
    page.get_by_label("1CNG-YGN-AZ01").check()
    press("Continue")
    is_at("Assign to a Project")
    page.get_by_label("Archive").click()
    is_at("Choose Block Storage")
    page.get_by_role("group", name="Volumes").get_by_label("db-01-data").check()
    press("Continue")
    is_at("Choose Snapshot Name")
    page.get_by_label("Snapshot Name").fill("before the update")
    press("Continue")
    is_at("Create Snapshot")
    expect(page.get_by_role("group", name="Billing Cycle").get_by_label("Hourly")).to_be_checked()
    for text in ("Fixed Prorata", "Price Summary", "before the update"):
        expect(main.get_by_text(text, exact=True).first).to_be_visible()
    expect(main.get_by_text("Every member of “Archive” has a role in “Default” too")).to_be_visible()
    expect(main.locator(".price-figure")).to_have_text("K 0.40 / Hour / 1 GB")
    press("Take Snapshot")
    settled("Ready")
    snapshot = Snapshot.objects.get()
    assert (snapshot.project, snapshot.source.project) == (archive, member.project)
    [segment] = UsageSegment.objects.filter(resource_id=snapshot.pk)
    assert (segment.project, segment.size_gb, segment.started_at) == (archive, 1, snapshot.ready_at)
    backend_ref = snapshot.disks.get().backend_ref
    assert pool.read_snapshot(volume.backend_ref, backend_ref, 0, SIZE) == before

    # the disk's contents are lost, but the snapshot has them
    pool.write(volume.backend_ref, {0: ruined})
    assert pool.read(volume.backend_ref, 0, SIZE) == ruined
    assert pool.read_snapshot(volume.backend_ref, backend_ref, 0, SIZE) == before

    # they are restored, byte for byte
    page.get_by_role("link", name="Restore").click()
    page.get_by_label("Type the volume's name").fill("db-01-data")
    press("Restore volume")
    expect(page.get_by_role("heading", level=1)).to_have_text("before the update")
    settled("Done", count=2)
    assert pool.read(volume.backend_ref, 0, SIZE) == before

    # the state before the restore is kept as a snapshot, and becomes a volume
    safety = Snapshot.objects.exclude(pk=snapshot.pk).get()
    page.goto(f"/snapshots/{safety.pk}/new-volume/")
    page.get_by_label("Name").fill("what it was")
    press("Create volume")
    expect(page.get_by_role("heading", level=1)).to_have_text("what it was")
    settled("Available")
    assert pool.read(Volume.objects.get(name="what it was").backend_ref, 0, SIZE) == ruined

    # a new, larger volume from the first snapshot
    page.goto(f"/snapshots/{snapshot.pk}/new-volume/")
    page.get_by_label("Name").fill("db-01-copy")
    page.get_by_label("Size").fill("2")
    press("Create volume")
    expect(page.get_by_role("heading", level=1)).to_have_text("db-01-copy")
    settled("Available")
    copy = Volume.objects.get(name="db-01-copy")
    assert pool.read(copy.backend_ref, 0, SIZE) == before
    assert pool.size(copy.backend_ref) == 2 * 1024**3

    # the snapshot is deleted, and the volume made from it stays
    page.goto(f"/snapshots/{snapshot.pk}/delete/")
    page.get_by_label("Type the snapshot's name").fill("before the update")
    press("Delete snapshot")
    settled("This snapshot is deleted")
    segment.refresh_from_db()
    snapshot.refresh_from_db()
    assert segment.ended_at == snapshot.delete_requested_at
    assert backend_ref not in [item.id for item in store.cinder.snapshots()]
    assert pool.read(copy.backend_ref, 0, SIZE) == before
    assert not [name for name in store.leftovers() if copy.backend_ref in name]


def test_a_volume_is_created_on_cinder(
    page: Page, pool: Pool, store: CinderStore, member: Membership, volume: Volume, worker: None, sign_in: Any
) -> None:
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    main = page.locator("main")
    page.set_default_timeout(60 * SECONDS)
    sign_in(member.user)
    page.goto("/volumes/new/")
    for heading in ("Choose a Location", "Assign to a Project"):  # each has one choice, already selected
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        page.get_by_role("button", name="Continue").click()
    page.get_by_label("Size").fill("2")
    page.get_by_role("button", name="Continue").click()
    page.get_by_label("Volume Name").fill("uploads")
    page.get_by_role("button", name="Continue").click()
    expect(main.locator(".price-figure")).to_have_text("K 0.80 / Hour / 2 GB")
    page.get_by_role("button", name="Create Volume").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("uploads")
    expect(main.get_by_text("Available", exact=True)).to_have_count(1, timeout=120 * SECONDS)
    created = Volume.objects.get(name="uploads")
    [segment] = UsageSegment.objects.filter(resource_id=created.pk)
    assert (segment.project, segment.size_gb, segment.started_at) == (member.project, 2, created.available_at)
    assert pool.size(created.backend_ref) == 2 * 1024**3
    assert pool.read(created.backend_ref, 0, SIZE) == bytes(SIZE)
