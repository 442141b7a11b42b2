"""Keyboard shortcuts, which work everywhere except while typing."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import Membership
from tests.factories import MembershipFactory, SnapshotFactory, VolumeFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member(sign_in: Callable[..., Any]) -> Membership:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project)
    for name in ("nightly-1", "nightly-2", "before the update"):
        SnapshotFactory(volume=volume, name=name)
    sign_in(member.user)
    return member


def test_slash_focuses_the_search_and_enter_opens_the_only_result(page: Page, member: Membership) -> None:
    page.goto("/snapshots/")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("nightly")
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 snapshots")).to_be_visible()
    assert page.url.endswith("?q=nightly")

    page.get_by_role("searchbox").fill("update")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("before the update")


def test_a_search_that_is_only_typed_opens_nothing(page: Page, member: Membership) -> None:
    page.goto("/snapshots/")
    page.get_by_role("searchbox").fill("update")
    expect(page.get_by_text("1 snapshot", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Snapshots")


def test_the_question_mark_shows_the_keys_and_escape_gives_the_focus_back(page: Page, member: Membership) -> None:
    page.goto("/snapshots/")
    link = page.get_by_role("link", name="Refresh")
    link.focus()
    page.keyboard.press("?")
    window = page.get_by_role("dialog", name="Keyboard")
    expect(window.get_by_text("Focus the search")).to_be_visible()
    page.keyboard.press("/")  # belongs to the page behind
    expect(window).to_be_visible()
    page.keyboard.press("Escape")
    expect(window).to_be_hidden()
    expect(link).to_be_focused()


def test_shortcuts_are_inactive_while_typing(page: Page, member: Membership) -> None:
    page.goto("/snapshots/")
    page.get_by_role("searchbox").press_sequentially("what/?")
    expect(page.get_by_role("searchbox")).to_have_value("what/?")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_shortcuts_can_be_turned_off_for_good(page: Page, member: Membership) -> None:
    page.goto("/help/keyboard/")
    switch = page.get_by_role("button", name="Turn off / and ?")
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "true")
    page.goto("/snapshots/")
    page.keyboard.press("/")
    page.keyboard.press("?")
    expect(page.get_by_role("searchbox")).not_to_be_focused()
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.browser_context_args(java_script_enabled=False)
def test_without_javascript_the_keys_are_on_a_page(page: Page, member: Membership) -> None:
    page.goto("/help/")
    page.get_by_role("link", name="Keyboard").click()
    expect(page.locator("main").get_by_text("Show keyboard shortcuts")).to_be_visible()
    expect(page.locator("main").get_by_role("button", name="Turn off")).to_be_hidden()


def test_names_ids_and_amounts_are_copied_with_a_click(page: Page, member: Membership) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/snapshots/?q=update")
    page.get_by_role("link", name="before the update", exact=True).click()
    for label, text in (("Copy name", "before the update"), ("Copy cost", "K 0.00")):
        page.get_by_role("button", name=label).click()
        expect(page.locator("#announcer")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == text
