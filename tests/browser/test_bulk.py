"""Selecting and deleting many rows, with and without JavaScript."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import Membership
from snapshots.models import Snapshot, State
from tests.browser.looking import look_at
from tests.factories import MembershipFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project, name="db-01-data", size_gb=50)
    for number in range(3):
        SnapshotFactory(volume=volume, name=f"nightly-{number}")
    SnapshotFactory(volume=volume, name="being taken", creating=True)
    sell_everywhere()
    return member


def test_all_of_a_page_are_selected_and_deleted(page: Page, member: Membership, sign_in: Callable[..., Any]) -> None:
    sign_in(member.user)
    page.goto("/snapshots/")
    button = page.get_by_role("button", name="Delete selected")
    expect(button).to_be_disabled()
    page.get_by_label("Select nightly-0").check()
    expect(page.get_by_label("Select all on this page")).to_have_js_property("indeterminate", True)
    page.get_by_label("Select all on this page").check()
    expect(button).to_have_text("Delete selected3")

    # the selection survives a refresh of the list
    with page.expect_response("**/snapshots/"):
        page.get_by_role("link", name="Refresh").click()
    expect(page.get_by_label("Select nightly-2")).to_be_checked()
    button.click()
    page.get_by_label("Type “delete 3 snapshots” to confirm").fill("delete 3 snapshots")
    page.get_by_label("Delete the last restore point of “db-01-data”").check()
    page.get_by_role("button", name="Delete them all").click()
    expect(page.get_by_role("status").filter(has_text="3 snapshots are being deleted")).to_be_visible()
    assert Snapshot.objects.filter(state=State.DELETING).count() == 3


@pytest.mark.browser_context_args(java_script_enabled=False)
def test_without_javascript_boxes_and_button_do_the_same(
    page: Page, member: Membership, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    page.goto("/snapshots/?view=cards")
    expect(page.get_by_label("Select all on this page")).to_be_hidden()
    page.get_by_label("Select nightly-1").check()
    page.get_by_role("button", name="Delete selected").click()
    page.get_by_label("to confirm").fill("delete 1 snapshot")
    page.get_by_role("button", name="Delete them all").click()
    expect(page.get_by_text("Deletion accepted")).to_be_visible()
    assert Snapshot.objects.get(name="nightly-1").state == State.DELETING


def test_the_confirmation_and_its_error_are_accessible_and_fit(
    page: Page, member: Membership, sign_in: Callable[..., Any]
) -> None:
    sign_in(member.user)
    ids = "&".join(f"id={snapshot.pk}" for snapshot in Snapshot.objects.all())
    look_at(page, [f"/snapshots/delete/?{ids}"])
