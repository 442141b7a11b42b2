"""A snapshot is locked, can't be deleted, and its lock is lifted with a reason; with and without JavaScript."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page, expect

from tests.factories import MembershipFactory, SnapshotFactory
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def browser_context_args(browser_context_args: dict, request: pytest.FixtureRequest) -> dict:
    return browser_context_args | {"java_script_enabled": request.param}


def test_a_locked_snapshot_is_kept_until_an_owner_lifts_the_lock(page: Page, sign_in: Callable[..., Any]) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    snapshot = SnapshotFactory(volume__project=member.project, volume__size_gb=50, name="before-update")
    sell_everywhere()
    snapshot.start_charging(snapshot.ready_at)
    sign_in(member.user)
    page.goto(reverse("snapshots:snapshot", args=[snapshot.pk]))
    page.get_by_text("More", exact=True).click()
    page.get_by_role("link", name="Lock", exact=True).click()
    page.get_by_label("Lock until the end of").fill((timezone.now() + timedelta(days=30)).date().isoformat())
    page.get_by_role("button", name="Show what it costs").click()
    expect(page.get_by_text("until then, at today's and announced prices")).to_be_visible()
    page.get_by_role("button", name="Lock", exact=True).click()
    expect(page.get_by_text("Locked (Governance)")).to_be_visible()
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_role("link", name="Delete", exact=True)).to_have_count(0)
    page.goto("/snapshots/?view=table")
    expect(page.get_by_role("row").filter(has_text="before-update")).to_contain_text("Locked")
    page.goto(reverse("snapshots:delete", args=[snapshot.pk]))
    expect(page.get_by_text("nobody can delete it before")).to_be_visible()

    page.goto(reverse("snapshots:lift_lock", args=[snapshot.pk]))
    page.get_by_label("Reason").fill("The update went well.")
    page.get_by_role("button", name="Lift the lock").click()
    expect(page.get_by_text("no longer locked")).to_be_visible()
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_role("link", name="Delete", exact=True)).to_be_visible()
