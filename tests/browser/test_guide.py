"""The customer guide on local storage, with JavaScript and without, and the wizard with Back, Refresh and a second tab."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from snapshots.models import volume_ref
from tests.browser.guide import LOCATION, NAME, SIZE_GB, GuideContract
from tests.factories import LocationFactory, VolumeFactory
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.storage.stores import LocalStore

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def live(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def browser_context_args(browser_context_args: dict, live: bool) -> dict:
    return browser_context_args | {"java_script_enabled": live}


@pytest.fixture
def worker(process_environment: dict[str, str]) -> Iterator[None]:
    """A worker process on this test's database and storage."""
    command = [sys.executable, "manage.py", "worker", "--interval", "0.2"]
    process = subprocess.Popen(command, env=process_environment)
    yield
    process.terminate()
    assert process.wait(30) == 0


@pytest.fixture
def store(storage_root: Path) -> LocalStore:
    return LocalStore(storage_root, location=LOCATION)


@pytest.fixture
def volume(store: LocalStore, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, location=LocationFactory(code=LOCATION), name=NAME, size_gb=SIZE_GB)
    store.driver.create_volume(volume_ref(volume))
    sell_everywhere()
    return volume


class TestGuide(GuideContract):
    def test_back_refresh_and_a_second_tab_keep_their_answers(
        self, page: Page, member: Membership, volume: Volume, sign_in
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
