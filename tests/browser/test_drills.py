"""A restore drill in a real browser: from a volume's page to the evidence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from snapshots import tasks
from snapshots.models import Drill, DrillPlan, volume_ref
from snapshots.storage.registry import get_driver
from tests.factories import MembershipFactory, SnapshotFactory
from tests.snapshots.disks import content, put_volume

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def browser_context_args(browser_context_args: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    return browser_context_args | {"java_script_enabled": request.param}


def test_a_volume_is_drilled_every_week_and_at_once(
    page: Page, sign_in: Callable[..., Any], storage_root: Path, browser_context_args: dict[str, Any]
) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    snapshot = SnapshotFactory(volume__project=member.project)
    disk = snapshot.disks.get()
    put_volume(storage_root, disk.volume, content(b"bytes"))
    get_driver(snapshot.location).create_snapshots([(disk.ref, volume_ref(disk.volume))])
    sign_in(member.user)
    page.goto(reverse("snapshots:volume", args=[snapshot.volume_id]))
    page.get_by_role("link", name="Restore drills", exact=True).click()
    page.get_by_label("Every week").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The plan of restore drills is saved.")).to_be_visible()
    assert DrillPlan.objects.get().interval == "weekly"
    page.get_by_role("button", name="Start restore drill").click()
    expect(page.get_by_role("heading", name="Restore drill", exact=True)).to_be_visible()
    expect(page.get_by_text("Waiting until no other work waits.")).to_be_visible()
    operation_id = Drill.objects.get().operation_id
    assert operation_id
    tasks.run_operation(operation_id)
    if not browser_context_args["java_script_enabled"]:
        page.reload()
    expect(page.locator(".title-line")).to_contain_text("Proven restorable", timeout=30_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="PDF").click()
    assert download.value.suggested_filename.startswith("restore-drill-")
