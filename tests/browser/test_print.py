"""Printing: screen-only elements are hidden, tables stay tables, and times are exact."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.factories import MembershipFactory, SnapshotFactory, VolumeFactory

pytestmark = pytest.mark.django_db(transaction=True)

PAPER = {"width": 700, "height": 990}
LEFT_EDGES = """row => [...row.children]
    .filter((cell) => cell.offsetParent)
    .map((cell) => Math.round(cell.getBoundingClientRect().left))"""


def test_a_list_is_printed_as_a_table(page: Page, sign_in: Callable[..., Any]) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    SnapshotFactory(volume=VolumeFactory(project=member.project), name="before the update")
    sign_in(member.user)
    page.set_viewport_size(PAPER)
    page.goto("/snapshots/")
    page.emulate_media(media="print", color_scheme="dark")

    for gone in (page.locator(".side"), page.locator(".topbar"), page.get_by_role("link", name="Take Snapshot").first):
        expect(gone).to_be_hidden()
    expect(page.get_by_text("UTC+").first).to_be_visible()
    head = page.locator("thead tr").evaluate(LEFT_EDGES)
    row = page.locator("tbody tr").evaluate(LEFT_EDGES)
    assert head == row and len(row) == 7
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
