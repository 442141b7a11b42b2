"""The search dialog (Ctrl-K), and its page without JavaScript."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import Membership
from tests.factories import MembershipFactory, SnapshotFactory, VolumeFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member(sign_in: Callable[..., Any]) -> Membership:
    member = MembershipFactory(project__name="Default", project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project, name="db-01-data")
    for name in ("nightly-1", "nightly-2", "before the update"):
        SnapshotFactory(volume=volume, name=name)
    sign_in(member.user)
    return member


def test_the_search_is_opened_used_and_left_by_keyboard(page: Page, member: Membership) -> None:
    page.goto("/volumes/")
    link = page.get_by_role("link", name="Refresh")
    link.focus()
    page.keyboard.press("Control+k")
    window, field = page.get_by_role("dialog"), page.get_by_role("searchbox", name="Search everything")
    expect(field).to_be_focused()
    page.keyboard.type("nightly")
    expect(window.get_by_role("status")).to_have_text("2 results")
    page.keyboard.press("ArrowDown")
    expect(window.get_by_role("link", name="nightly-1")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(window.get_by_role("link", name="nightly-2")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(field).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(window.get_by_role("link", name="nightly-2")).to_be_focused()
    page.keyboard.press("Escape")
    expect(window).to_be_hidden()
    expect(link).to_be_focused()
    page.keyboard.press("Control+k")
    expect(field).to_have_value("nightly")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("nightly-1")


def test_enter_opens_the_best_result_and_typing_on_a_result_continues_the_search(
    page: Page, member: Membership
) -> None:
    page.goto("/help/")
    page.keyboard.press("Meta+k")
    page.keyboard.type("night")
    page.get_by_role("dialog").get_by_role("link", name="nightly-1").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.type("ly-2")
    field = page.get_by_role("searchbox", name="Search everything")
    expect(field).to_be_focused()
    expect(field).to_have_value("nightly-2")
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("1 result")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("nightly-2")


def test_enter_before_any_result_opens_the_page_of_the_search(page: Page, member: Membership) -> None:
    page.goto("/help/")
    page.route(
        "**/search/?q=*", lambda route: route.abort() if "hx-request" in route.request.headers else route.continue_()
    )
    page.keyboard.press("Control+k")
    page.keyboard.type("update")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search/?q=update")
    expect(page.locator("main").get_by_role("link", name="before the update")).to_be_visible()


def test_the_link_opens_the_window_also_on_a_small_screen(page: Page, member: Membership) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    page.goto("/snapshots/")
    page.get_by_role("banner").get_by_role("link", name="Search").click()
    page.get_by_role("searchbox", name="Search everything").fill("take")
    page.get_by_role("dialog").get_by_role("link", name="Take Snapshot").click()
    page.wait_for_url("**/snapshots/new/**")


def test_the_shortcut_focuses_the_field_on_the_search_page(page: Page, member: Membership) -> None:
    page.goto("/search/?q=nightly")
    page.locator("main a").first.focus()
    page.keyboard.press("Control+k")
    field = page.get_by_role("searchbox")
    expect(field).to_be_focused()
    field.fill("update")
    page.wait_for_url("**/search/?q=update")
    expect(page.locator("main").get_by_role("link", name="before the update")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("before the update")


@pytest.mark.browser_context_args(java_script_enabled=False)
def test_without_javascript_the_link_leads_to_the_page(page: Page, member: Membership) -> None:
    page.goto("/snapshots/")
    page.get_by_role("banner").get_by_role("link", name="Search").click()
    page.get_by_role("searchbox", name="Search everything").fill("night")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("main").get_by_role("link", name="nightly")).to_have_count(2)
    page.get_by_role("link", name="nightly-2").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("nightly-2")
