"""Menus of rows and filters: fetched when opened, usable by mouse and keyboard, and within the window."""

from collections.abc import Callable
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import Membership
from snapshots import services
from snapshots.models import Snapshot
from tests.factories import MembershipFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project, name="db-01-data", size_gb=50)
    for number in range(12):
        SnapshotFactory(volume=volume, name=f"nightly-{number}")
    sell_everywhere()
    return member


@pytest.mark.parametrize("view", ["table", "cards"])
def test_a_menu_is_fetched_each_time_it_opens_and_only_then(
    page: Page, member: Membership, sign_in: Callable[..., Any], view: str
) -> None:
    snapshot = Snapshot.objects.get(name="nightly-3")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url) if request.url.endswith("/menu/") else None)
    sign_in(member.user)
    page.goto(f"/snapshots/?view={view}")
    button = page.locator(f"#snapshot-{snapshot.pk} summary")

    button.click()
    expect(page.get_by_role("link", name="Rename")).to_be_visible()
    button.click()
    expect(page.get_by_role("link", name="Rename")).to_be_hidden()
    assert len(urls) == 1

    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    button.click()
    expect(page.get_by_text("No actions right now")).to_be_visible()


def test_a_menu_is_used_by_keyboard(page: Page, member: Membership, sign_in: Callable[..., Any]) -> None:
    snapshot = Snapshot.objects.get(name="nightly-3")
    sign_in(member.user)
    page.goto("/snapshots/")
    button = page.locator(f"#snapshot-{snapshot.pk} summary")

    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="New volume")).to_be_visible()
    expect(button).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="New volume")).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="New volume").wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="New volume")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Restore", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{reverse('snapshots:restore', args=[snapshot.pk])}")


def test_the_menu_of_the_last_row_opens_upwards(page: Page, member: Membership, sign_in: Callable[..., Any]) -> None:
    sign_in(member.user)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("/snapshots/")
    rows = page.locator("tr[id^=snapshot-]")
    for row, upwards in ((rows.last, True), (rows.first, False)):
        row.scroll_into_view_if_needed()
        row.locator("summary").click()
        row.get_by_role("link", name="Delete").wait_for()
        button, panel = row.locator("summary").bounding_box(), row.locator(".menu-panel").bounding_box()
        assert button and panel
        assert (panel["y"] < button["y"]) == upwards
        assert 0 <= panel["y"] and panel["y"] + panel["height"] <= 900


@pytest.mark.browser_context_args(java_script_enabled=False)
def test_without_javascript_the_name_leads_to_all_actions(
    page: Page, member: Membership, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    page.goto("/snapshots/")
    expect(page.locator(".row-menu").first).to_be_hidden()
    page.get_by_role("link", name="nightly-3").click()
    page.locator("summary", has_text="More").click()
    for action in ("New volume", "Restore", "Rename", "Verify", "Delete"):
        expect(page.get_by_role("link", name=action, exact=True)).to_be_visible()


def test_the_filters_are_fetched_once_and_narrow_the_list(
    page: Page, member: Membership, sign_in: Callable[..., Any]
) -> None:
    SnapshotFactory(volume__project=member.project, volume__name="web-01-root", name="another")
    sign_in(member.user)
    page.goto("/snapshots/")
    page.get_by_text("Filters").click()
    page.get_by_label("Volume", exact=True).select_option("web-01-root")
    expect(page.get_by_text("1 snapshot", exact=True)).to_be_visible()
    assert "volume=" in page.url and "filters" not in page.url
    page.get_by_text("Filters").click()
    page.get_by_text("Filters").click()
    expect(page.get_by_label("Volume", exact=True).locator("option:checked")).to_have_text("web-01-root")
    page.get_by_role("link", name="Clear").click()
    expect(page.get_by_text("13 snapshots")).to_be_visible()
