"""The wizard by mouse: few clicks, a search that answers three steps at once, and focus on the next step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from snapshots.models import Snapshot, State
from tests.factories import LocationFactory, MembershipFactory, ProjectFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__name="Default", project__customer__postpaid=True)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    """One of several volumes, so that none is selected by default."""
    volume = VolumeFactory(project=member.project, name="db-01-data", size_gb=50)
    VolumeFactory(project=member.project, location=volume.location, name="web-01-root")
    VolumeFactory(project=member.project, location=LocationFactory(), name="archive")
    other = ProjectFactory(customer=member.project.customer, name="Software")
    MembershipFactory(project=other, user=member.user)
    VolumeFactory(project=other, location=volume.location, name="build-cache")
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


def is_at(page: Page, heading: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)


def becomes_ready(page: Page, volume: Volume) -> None:
    """Let a worker take the snapshot, and wait until the page shows that it is ready, without a click."""
    expect(page.locator("#heading")).to_be_focused()
    run_active_operations()
    expect(page.locator(".title-line").get_by_text("Ready", exact=True)).to_be_visible()
    assert Snapshot.objects.get(volume=volume).state == State.READY


def test_six_clicks_lead_from_the_dashboard_to_a_snapshot_that_is_ready(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    page.goto("/")
    page.get_by_role("link", name="Take Snapshot").click()
    is_at(page, "Choose a Location")
    page.get_by_text(volume.location_id, exact=True).click()
    is_at(page, "Assign to a Project")
    page.get_by_text("Default", exact=True).last.click()
    is_at(page, "Choose Block Storage")
    page.get_by_text("db-01-data", exact=True).click()
    is_at(page, "Choose Snapshot Name")
    expect(page.get_by_text("Price Summary")).to_be_visible()
    page.get_by_role("button", name="Continue").click()
    is_at(page, "Create Snapshot")
    page.get_by_role("button", name="Take Snapshot").click()
    becomes_ready(page, volume)
    assert page.url.endswith("#heading")


def test_three_clicks_lead_from_a_volumes_row_to_a_snapshot_that_is_ready(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    page.goto("/volumes/")
    page.get_by_role("button", name="Take Snapshot of db-01-data").click()
    is_at(page, "Choose Snapshot Name")
    page.get_by_role("button", name="Continue").click()
    is_at(page, "Create Snapshot")
    page.get_by_role("button", name="Take Snapshot").click()
    becomes_ready(page, volume)


def test_choosing_a_search_result_answers_the_first_three_steps(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    page.goto("/snapshots/new/")
    page.get_by_role("searchbox").fill("db-01")
    page.get_by_role("button", name="db-01-data").click()
    is_at(page, "Choose Snapshot Name")
    page.goto("/snapshots/new/")
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("No results for “nothing like it”.")).to_be_visible()


def test_arrow_keys_choose_without_advancing(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    page.goto("/snapshots/new/")
    page.get_by_role("radio").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.wait_for_load_state("networkidle")
    is_at(page, "Choose a Location")
    page.keyboard.press("Enter")
    is_at(page, "Assign to a Project")
