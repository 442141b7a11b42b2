"""Layout stability: content stays in place while the rest of the page loads, and a wizard's step appears at once."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from tests.browser.looking import MOST, SHIFT
from tests.factories import MembershipFactory, OperationFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("width", [1440, 360])
def test_no_page_moves_while_it_loads(page: Page, sign_in: Callable[..., Any], width: int) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project, size_gb=50, attached=True)
    ready = SnapshotFactory(volume=volume)
    creating = SnapshotFactory(volume=volume, creating=True)
    OperationFactory(snapshot=creating, capture=True, running=True, bytes_done=5, bytes_total=10)
    sell_everywhere()
    page.set_viewport_size({"width": width, "height": 900})
    moved = {}
    for path in [
        "/accounts/login/",
        "/",
        "/snapshots/?view=table",
        "/snapshots/?view=cards",
        reverse("snapshots:snapshot", args=[ready.pk]),
        reverse("snapshots:volume", args=[volume.pk]),
        reverse("snapshots:machines"),
        "/snapshots/new/",
        "/help/create-volume-snapshot/",
    ]:
        if path == "/":
            sign_in(member.user)
        page.goto(path)
        for image in page.locator("main img").all():
            image.scroll_into_view_if_needed()
        moved[path] = page.evaluate(SHIFT)
    assert {path: shift for path, shift in moved.items() if shift > MOST} == {}


def test_swapping_a_step_shifts_no_layout(page: Page, sign_in: Callable[..., Any]) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project, size_gb=50)
    sell_everywhere()
    sign_in(member.user)
    page.goto("/snapshots/new/")
    page.get_by_label(volume.location_id).check()
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("heading", level=1, name="Assign to a Project").wait_for()
    assert page.evaluate(SHIFT) <= MOST


# The state of the page at every frame that differs from the one before.
RECORD = """() => {
    window.portalFrames = [];
    const look = () => {
        const steps = [...document.querySelectorAll("[aria-current=step]")].map((step) => step.textContent.trim());
        const headings = [...document.querySelectorAll("h1")].map((heading) => heading.textContent.trim());
        const now = JSON.stringify([headings, steps, document.querySelectorAll("main form[novalidate]").length]);
        if (window.portalFrames.at(-1) !== now) window.portalFrames.push(now);
        requestAnimationFrame(look);
    };
    look();
}"""


def test_a_step_is_swapped_within_one_frame(page: Page, sign_in: Callable[..., Any]) -> None:
    volume = VolumeFactory(project__customer__postpaid=True)
    sign_in(MembershipFactory(project=volume.project).user)
    sell_everywhere()
    page.goto("/snapshots/new/")
    page.get_by_label(volume.location_id).check()
    page.evaluate(RECORD)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Assign to a Project")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    frames = [json.loads(frame) for frame in page.evaluate("portalFrames")]
    assert [headings for headings, *_rest in frames] == [["Choose a Location"], ["Assign to a Project"]]
    assert [(len(steps), forms) for _headings, steps, forms in frames] == [(1, 1), (1, 1)]
