"""Walks through the customer guide sentence by sentence in a browser, and compares the bytes and the bill.

A storage's tests subclass `GuideContract` and define the fixtures `store`, `volume` (made by `store`, with `LOCATION`,
`NAME` and `SIZE_GB`), `worker` (a process), and `live`: whether the browser runs JavaScript.
"""

import random
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect

from billing.charges import cost_so_far
from billing.models import ServiceKind, UsageSegment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from cng_portal.support.models import SupportContact
from snapshots import services
from snapshots.models import Snapshot, volume_ref
from snapshots.storage.contract import GIB
from snapshots.storage.registry import get_driver
from tests.factories import MembershipFactory
from tests.snapshots.disks import run_active_operations, sell_everywhere
from tests.snapshots.storage.contract import Store

LOCATION, NAME, SIZE_GB = "1CNG-YGN-AZ01", "db-01-data", 50
PASSWORD = "a password of the tests"
SECONDS = 1000


def random_bytes(seed: int) -> bytes:
    return random.Random(seed).randbytes(3 * 1024**2)


def expect_heading(page: Page, text: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(text)


class GuideContract:
    patience = 30  # seconds that an operation may take

    @pytest.fixture
    def member(self) -> Membership:
        member = MembershipFactory(
            project__name="Default", project__customer__number=1039, user__email="aye@example.com"
        )
        customer = member.user.customer = member.project.customer
        member.user.set_password(PASSWORD)
        member.user.save()
        buy_credits(customer=customer, amount_micro=100_000 * 10**6, reason="bought", by=None, key="credits")
        return member

    def test_a_customer_follows_the_guide_from_sign_in_to_a_restored_disk(
        self, page: Page, store: Store, member: Membership, volume: Volume, worker: None, live: bool
    ) -> None:
        before, ruined = random_bytes(1), random_bytes(2)
        archive = MembershipFactory(
            user=member.user, project__customer=member.project.customer, project__name="Archive"
        ).project
        store.write(volume_ref(volume), {0: before})
        main = page.locator("main")

        def press(name: str) -> None:
            page.get_by_role("button", name=name).click()

        def settled(text: str, count: int = 1) -> None:
            """Wait for the text. With JavaScript the page updates itself; without it, reload."""
            wanted = main.get_by_text(text, exact=True)
            deadline = time.monotonic() + self.patience
            while not live and wanted.count() != count and time.monotonic() < deadline:
                page.reload()
            expect(wanted).to_have_count(count, timeout=self.patience * SECONDS)

        def create_volume(snapshot: Snapshot, name: str, size_gb: int = SIZE_GB) -> Volume:
            page.goto(f"/snapshots/{snapshot.pk}/new-volume/")
            page.get_by_label("Name").fill(name)
            page.get_by_label("Size").fill(str(size_gb))
            press("Create volume")
            expect_heading(page, name)
            settled("Available")
            created = Volume.objects.get(name=name)
            assert store.size(volume_ref(created)) == size_gb * GIB
            return created

        def bytes_of(volume: Volume) -> bytes:
            return store.read(volume_ref(volume), 0, len(before))

        page.goto("/")
        page.get_by_label("E-mail").fill("aye@example.com")
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Sign in", exact=True).click()

        # "From the left-hand menu, click on the Snapshots tab." "Go to the Volume Snapshot tab."
        page.get_by_role("navigation", name="Main").get_by_role("link", name="Snapshots").click()
        expect_heading(page, "Snapshots")
        page.get_by_role("link", name="Volume Snapshot").click()
        # "To create a snapshot, click on Take Snapshot or the plus (+) icon located on the right side of the page."
        expect(page.get_by_role("link", name="New snapshot").first).to_be_visible()
        page.get_by_role("link", name="Take Snapshot" if live else "New snapshot").first.click()

        # "Choose a Location": "Choose from the available locations listed."
        expect_heading(page, "Choose a Location")
        expect(page.get_by_text("Price Summary")).to_have_count(0)
        page.get_by_label(LOCATION).check()
        press("Continue")
        # "Assign the snapshot to one of your projects"
        expect_heading(page, "Assign to a Project")
        page.get_by_label("Archive").click()
        if not live:  # With JavaScript, the click submits the answer.
            press("Continue")
        # "From the Volumes list, select the volume for which you want to create a snapshot."
        expect_heading(page, "Choose Block Storage")
        page.get_by_role("group", name="Volumes").get_by_label(NAME).check()
        press("Continue")
        # "Provide a unique Snapshot Name"
        expect_heading(page, "Choose Snapshot Name")
        page.get_by_label("Snapshot Name").fill("before the update")
        if live:
            expect(page.get_by_text("This name is available.")).to_be_visible()
        press("Continue")
        # "Choose the desired Billing Cycle" "Verify all the configuration details and review the price summary."
        expect_heading(page, "Create Snapshot")
        expect(page.get_by_role("group", name="Billing Cycle").get_by_label("Hourly")).to_be_checked()
        expect(main.get_by_text("Every member of “Archive” has a role in “Default” too")).to_be_visible()
        for text in ("Fixed Prorata", "Price Summary", "50 GB × K 0.4000 = K 20.00 an hour", "before the update"):
            expect(main.get_by_text(text, exact=True).first).to_be_visible()
        expect(main.locator(".price-figure")).to_have_text("K 20.00 / Hour / 50 GB")
        assert page.url.endswith("/review/")
        # "Click on Take Snapshot to create the snapshot of the volume."
        press("Take Snapshot")
        expect_heading(page, "before the update")
        settled("Ready")
        snapshot = Snapshot.objects.get()
        assert (snapshot.project, snapshot.source.project) == (archive, member.project)
        expect(main.locator(".fact", has_text="Project").get_by_text("Archive")).to_be_visible()
        [segment] = UsageSegment.objects.filter(resource_id=snapshot.pk)
        assert (segment.project, segment.size_gb, segment.started_at) == (archive, 50, snapshot.ready_at)
        expect(main.get_by_text("1 hour × 50 GB × K 0.4000 = K 20.00")).to_be_visible()
        stored = snapshot.disks.get().ref
        info = store.driver.find_snapshot(stored)
        assert info and info.size_bytes == SIZE_GB * GIB
        assert store.read_snapshot(stored, 0, len(before)) == before

        # the disk's contents are lost, but the snapshot has them
        store.write(volume_ref(volume), {0: ruined})
        assert bytes_of(volume) == ruined
        assert store.read_snapshot(stored, 0, len(before)) == before

        # they are restored, byte for byte
        page.get_by_role("link", name="Restore").click()
        page.get_by_label("Type the volume's name").fill("db-01-dat")
        press("Restore volume")
        expect(page.get_by_role("alert")).to_contain_text("That is not its name.")
        page.get_by_label("Type the volume's name").fill(NAME)
        press("Restore volume")
        expect_heading(page, "before the update")
        settled("Done", count=2)
        assert bytes_of(volume) == before

        # the safety snapshot undoes it, or is made a volume where the storage can't write it back
        safety = Snapshot.objects.exclude(pk=snapshot.pk).get()
        if get_driver(volume.location).reverts_only_latest:
            expect(page.get_by_role("link", name="Undo restore")).to_have_count(0)
            page.goto(f"/snapshots/{safety.pk}/restore/")
            expect(main.get_by_text("cannot write it back. Make a new volume from it instead.")).to_be_visible()
            assert bytes_of(create_volume(safety, "what it was")) == ruined
            assert bytes_of(volume) == before
        else:
            page.get_by_role("link", name="Undo restore").click()
            page.get_by_label("Type the volume's name").fill(NAME)
            press("Restore volume")
            settled("Done", count=2)
            assert bytes_of(volume) == ruined

        # a new, larger volume from the first snapshot
        copy = create_volume(snapshot, "db-01-copy", 60)
        assert bytes_of(copy) == before

        # the snapshot is deleted, and the volume made from it stays
        page.goto(f"/snapshots/{snapshot.pk}/delete/")
        page.get_by_label("Type the snapshot's name").fill("before the update")
        press("Delete snapshot")
        settled("This snapshot is deleted")
        segment.refresh_from_db()
        snapshot.refresh_from_db()
        assert segment.ended_at == snapshot.delete_requested_at
        assert store.driver.find_snapshot(stored) is None
        assert bytes_of(copy) == before
        assert store.leftovers() == []

        # "For further assistance, refer to the 1CNG documentation or reach out to support." "See also"
        SupportContact.objects.create(email="support@example.com")
        page.get_by_role("link", name="Help").first.click()
        expect(main.get_by_role("link", name="support@example.com")).to_be_visible()
        page.goto("/help/create-volume-snapshot/")
        for name in ("Create Volume", "Create a VM snapshot"):
            expect(page.get_by_role("article").get_by_role("link", name=name, exact=True)).to_be_visible()

    def test_the_guide_leads_on_to_create_volume(
        self,
        page: Page,
        store: Store,
        member: Membership,
        volume: Volume,
        sign_in: Callable[..., None],
        live: bool,
    ) -> None:
        """ "See also: Create Volume": an empty one, and one with the bytes of a snapshot."""
        before = random_bytes(1)
        store.write(volume_ref(volume), {0: before})
        sell_everywhere(rate_micro=100_000, kind=ServiceKind.BLOCK_STORAGE)
        services.request_snapshot(source=volume, name="before the update", user=member.user)
        run_active_operations()
        main = page.locator("main")

        def choose(label: str) -> None:
            page.get_by_label(label).click()
            if not live:  # With JavaScript, the click submits the answer.
                page.get_by_role("button", name="Continue").click()

        def create(name: str, price: str) -> Volume:
            """Complete the wizard from the name on, and return the available volume."""
            expect_heading(page, "Choose Volume Name")
            page.get_by_label("Volume Name").fill(name)
            page.get_by_role("button", name="Continue").click()
            expect_heading(page, "Create Volume")
            expect(main.locator(".price-figure")).to_have_text(price)
            expect(main.get_by_text(name, exact=True).first).to_be_visible()
            page.get_by_role("button", name="Create Volume").click()
            expect_heading(page, name)
            run_active_operations()
            if not live:
                page.reload()
            expect(main.get_by_text("Available", exact=True).first).to_be_visible()
            expect(main.get_by_text("Next steps")).to_be_visible()
            return Volume.objects.get(name=name)

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
        expect_heading(page, "Create a volume")
        main.get_by_role("link", name="Volumes page").click()
        main.get_by_role("link", name="Create Volume").click()
        expect_heading(page, "Choose a Location")
        expect(page.get_by_text("Price Summary")).to_have_count(0)
        choose(LOCATION)
        expect_heading(page, "Assign to a Project")
        choose("Default")
        expect_heading(page, "Choose a Size")
        page.get_by_label("Size").fill("0")
        if live:
            expect(page.locator("#size-check")).to_contain_text("A volume has at least 1 GB.")
        page.get_by_label("Size").fill("20")
        if live:
            expect(main.locator(".price-figure")).to_have_text("K 2.00 / Hour / 20 GB")
        page.get_by_role("button", name="Continue").click()
        empty = create("uploads", "K 2.00 / Hour / 20 GB")
        assert store.size(volume_ref(empty)) == 20 * GIB and store.holds(volume_ref(empty), b"")
        assert hourly_micro(empty) == 2_000_000

        page.goto("/volumes/new/")
        choose(LOCATION)
        expect_heading(page, "Assign to a Project")
        choose("Default")
        expect_heading(page, "Choose a Size")
        page.get_by_role("link", name="Use a snapshot").click()
        expect_heading(page, "Choose a Source")
        page.get_by_role("searchbox", name="Search snapshots").fill("update")
        page.get_by_role("button", name="Search", exact=True).click()
        choose("before the update")
        expect_heading(page, "Choose a Size")
        expect(page.get_by_label("Size")).to_have_value("50")
        page.get_by_label("Size").fill("60")
        page.get_by_role("button", name="Continue").click()
        copy = create("uploads of before", "K 6.00 / Hour / 60 GB")
        assert store.size(volume_ref(copy)) == 60 * GIB and store.holds(volume_ref(copy), before)
        assert hourly_micro(copy) == 6_000_000
