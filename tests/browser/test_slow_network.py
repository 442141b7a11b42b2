"""On a slow network, each click has an immediate effect, a second click does nothing, and polling pauses."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page, Request, expect

from cng_portal.accounts.models import Membership
from cng_portal.common.templatetags.portal import poll_seconds
from cng_portal.inventory.models import Volume
from snapshots.models import Operation, Snapshot
from snapshots.views.rows import estimate_time_left
from snapshots.wizard import wizard
from tests.factories import MembershipFactory, OperationFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)

LATENCY_MS = 1500


@pytest.fixture
def member(sign_in: Callable[..., Any]) -> Membership:
    member = MembershipFactory(project__customer__postpaid=True)
    sign_in(member.user)
    return member


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(project=member.project, name="db-01-data")
    put_volume(storage_root, volume, content(b"bytes"))
    sell_everywhere()
    return volume


@pytest.fixture
def posts(page: Page) -> list[Request]:
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request) if request.method == "POST" else None)
    return requests


def slow_down(page: Page) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    limits = {"offline": False, "latency": LATENCY_MS, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
    session.send("Network.emulateNetworkConditions", limits)


# The progress bar at the top of the page.
BAR = "getComputedStyle(document.body, '::before').animationName"


def test_a_step_responds_at_once_and_is_submitted_once(page: Page, volume: Volume, posts: list[Request]) -> None:
    page.goto("/snapshots/new/")
    page.get_by_label(volume.location_id).check()
    slow_down(page)
    page.get_by_role("button", name="Continue").evaluate("button => { button.click(); button.click(); button.click() }")
    expect(page.locator("form[hx-post]")).to_have_attribute("aria-busy", "true", timeout=LATENCY_MS / 2)
    assert page.evaluate(BAR) == "slide"
    expect(page.get_by_role("heading", level=1)).to_have_text("Assign to a Project", timeout=15_000)
    assert len(posts) == 1
    assert page.evaluate(BAR) == "none"


def test_a_plain_form_responds_at_once_and_is_submitted_once(page: Page, volume: Volume, posts: list[Request]) -> None:
    snapshot = SnapshotFactory(volume=volume, name="before")
    page.goto(reverse("snapshots:rename", args=[snapshot.pk]))
    page.get_by_label("Snapshot Name").fill("after")
    slow_down(page)
    button = page.locator("main").get_by_role("button", name="Rename")
    heard = button.evaluate("button => { button.click(); button.click(); return button.ariaBusy }")
    assert heard == "true"
    expect(page.get_by_role("heading", level=1)).to_have_text("after", timeout=15_000)
    assert len(posts) == 1


def test_the_last_click_takes_one_snapshot(
    page: Page, member: Membership, volume: Volume, posts: list[Request]
) -> None:
    draft = wizard.start(member.user, source=volume)
    draft.name = "only one"
    draft.save()
    page.goto(wizard.url(draft, wizard.REVIEW))
    slow_down(page)
    page.locator("main").get_by_role("button", name="Take Snapshot").dblclick()
    expect(page.get_by_role("heading", level=1)).to_have_text("only one", timeout=20_000)
    assert len(posts) == 1
    assert Snapshot.objects.count() == 1


def test_a_link_responds_at_once_and_a_restored_page_shows_no_progress(page: Page, volume: Volume) -> None:
    page.goto("/snapshots/")
    slow_down(page)
    link = page.get_by_role("link", name="Volumes")
    assert link.evaluate(f"link => {{ link.click(); return {BAR} }}") == "slide"
    expect(page.get_by_role("heading", level=1)).to_have_text("Volumes", timeout=20_000)
    page.go_back(timeout=30_000)
    assert page.evaluate(BAR) == "none"


def test_new_operations_are_polled_often_and_old_ones_rarely() -> None:
    now = timezone.now()

    def operations(*ages: float) -> list[Operation]:
        return [Operation(created_at=now - timedelta(seconds=age)) for age in ages]

    waits = [poll_seconds(operations(age)) for age in (0, 19, 60, 200, 3600)]
    assert waits == [2, 2, 6, 20, 30]
    assert poll_seconds(operations(3600, 1)) == 2
    assert poll_seconds([]) == 2


@pytest.mark.parametrize(
    ("spent", "done", "total", "attempt", "text"),
    [
        (60, 25, 100, 1, "About 3 minutes left"),
        (60, 99, 100, 1, "A few seconds left"),
        (2, 25, 100, 1, ""),
        (60, 0, 100, 1, ""),
        (60, 0, 0, 1, ""),
        (60, 25, 100, 2, ""),
    ],
)
def test_the_time_left_is_shown_only_when_it_can_be_estimated(
    spent: int, done: int, total: int, attempt: int, text: str
) -> None:
    now = timezone.now()
    operation = Operation(
        state=Operation.State.RUNNING,
        attempt=attempt,
        started_at=now - timedelta(seconds=spent),
        bytes_done=done,
        bytes_total=total,
    )
    assert estimate_time_left(operation, now) == text


def test_a_page_with_nothing_in_progress_does_not_poll(client_for: Callable[..., Any], volume: Volume) -> None:
    snapshot = SnapshotFactory(volume=volume)
    client = client_for(volume.project.memberships.get().user)
    for path in ("/", "/snapshots/", reverse("snapshots:snapshot", args=[snapshot.pk])):
        assert "portal:seen" not in client.get(path).content.decode()


def test_progress_in_the_list_shows_gb_percent_and_time_left(client_for: Callable[..., Any], volume: Volume) -> None:
    snapshot = SnapshotFactory(volume=volume, creating=True)
    OperationFactory(
        snapshot=snapshot,
        capture=True,
        running=True,
        bytes_done=5 * 1024**3,
        bytes_total=20 * 1024**3,
        started_at=timezone.now() - timedelta(minutes=1),
    )
    client = client_for(volume.project.memberships.get().user)
    for view in ("table", "cards"):
        page = client.get(f"/snapshots/?view={view}").content.decode()
        assert "5 GB of 20 GB · 25 %" in page
        assert "About 3 minutes left" in page


def test_a_hidden_page_stops_polling_and_polls_at_once_when_visible_again(page: Page, volume: Volume) -> None:
    snapshot = SnapshotFactory(volume=volume, creating=True)
    old = timezone.now() - timedelta(hours=1)
    OperationFactory(snapshot=snapshot, capture=True, running=True, created_at=old, started_at=old)
    page.goto("/snapshots/")
    page.get_by_role("link", name=snapshot.name).focus()
    urls = []
    page.on("request", lambda request: urls.append(request.url) if "/row/" in request.url else None)
    become = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    become += " document.dispatchEvent(new Event('visibilitychange')) }"
    page.evaluate(become, True)
    page.evaluate("document.dispatchEvent(new Event('portal:seen'))")  # polling is due, but the page is hidden
    assert urls == []
    with page.expect_response("**/row/**"):
        page.evaluate(become, False)
    # the swapped-in fragment has the same link, which keeps the focus
    expect(page.get_by_role("link", name=snapshot.name)).to_be_visible()
    assert len(urls) == 1
