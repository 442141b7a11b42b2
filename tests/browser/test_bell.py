"""The bell updates itself while work is in progress, stops when it ends or the page is hidden, and never takes the focus."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import User
from snapshots.models import Operation
from tests.factories import NotificationFactory, OperationFactory, ProjectFactory, SnapshotFactory, UserFactory

pytestmark = pytest.mark.django_db(transaction=True)

GIB = 1024**3
WORK = reverse("snapshots:work")


@pytest.fixture
def user(sign_in: Callable[..., Any]) -> User:
    user = UserFactory(member_of=ProjectFactory(customer__postpaid=True))
    sign_in(user)
    return user


@pytest.fixture
def operation(user: User) -> Operation:
    snapshot = SnapshotFactory(volume__project=user.projects.get(), name="nightly", creating=True)
    return OperationFactory(
        snapshot=snapshot, capture=True, running=True, bytes_done=GIB, bytes_total=4 * GIB, started_at=timezone.now()
    )


def record_requests(page: Page) -> list[str]:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url) if WORK in request.url else None)
    return urls


def test_progress_moves_in_the_open_bell_and_ends_with_the_news(page: Page, user: User, operation: Operation) -> None:
    page.goto("/notifications/")
    urls = record_requests(page)
    bell = page.locator(".bell > summary")
    bell.focus()
    page.keyboard.press("Enter")
    work = page.locator("#bell-work")
    expect(work.get_by_text("1 GB of 4 GB · 25 %")).to_be_visible()
    page.keyboard.press("Tab")
    expect(work.get_by_role("link", name="nightly")).to_be_focused()

    Operation.objects.update(bytes_done=3 * GIB)
    expect(work.get_by_text("3 GB of 4 GB · 75 %")).to_be_visible(timeout=15_000)
    expect(work.get_by_role("link", name="nightly")).to_be_focused()  # the new element in place of the old
    expect(page.locator("details.bell")).to_have_attribute("open", "")

    Operation.objects.update(state=Operation.State.FAILED, finished_at=timezone.now(), error="No room.")
    NotificationFactory(user=user, title="The snapshot “nightly” could not be taken")
    expect(page.locator("#announcer")).to_have_text("The snapshot “nightly” could not be taken", timeout=15_000)
    expect(work.get_by_text("Nothing in progress.")).to_be_visible()
    expect(bell.locator(".bell-count")).to_have_text("1")
    page.keyboard.press("Escape")
    expect(bell).to_be_focused()
    urls.clear()
    page.clock.install()
    page.clock.run_for(60_000)
    assert urls == []


def test_a_closed_bell_moves_only_while_something_runs(page: Page, user: User, operation: Operation) -> None:
    page.goto("/notifications/")
    expect(page.locator(".bell-runs")).to_be_visible()
    Operation.objects.update(state=Operation.State.SUCCEEDED, finished_at=timezone.now())
    expect(page.locator(".bell-runs")).to_have_count(0, timeout=15_000)
    assert page.locator("#bell-work").get_attribute("hx-trigger") == "portal:refresh"


def test_a_hidden_page_does_not_poll(page: Page, user: User, operation: Operation) -> None:
    Operation.objects.update(created_at=timezone.now() - timedelta(hours=1))
    page.goto("/notifications/")
    urls = record_requests(page)
    become = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    become += " document.dispatchEvent(new Event('visibilitychange')) }"
    page.evaluate(become, True)
    page.evaluate("htmx.trigger('#bell-work', 'portal:refresh')")
    page.locator("details.bell").evaluate("bell => { bell.open = true }")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert urls == []
    with page.expect_response(f"**{WORK}**"):
        page.evaluate(become, False)


def test_an_open_bell_shows_work_started_elsewhere(page: Page, user: User) -> None:
    page.clock.install()
    page.goto("/notifications/")
    with page.expect_response(f"**{WORK}**"):
        page.locator(".bell > summary").click()
    snapshot = SnapshotFactory(volume__project=user.projects.get(), name="from another tab", creating=True)
    OperationFactory(snapshot=snapshot, capture=True)
    with page.expect_response(f"**{WORK}**"):
        page.clock.run_for(10_000)
    expect(page.locator("#bell-work").get_by_role("link", name="from another tab")).to_be_visible()


@pytest.mark.browser_context_args(java_script_enabled=False)
def test_without_javascript_the_bell_opens_and_leads_to_the_notifications(
    page: Page, user: User, operation: Operation
) -> None:
    page.goto("/")
    page.locator(".bell > summary").click()
    expect(page.locator("#bell-work").get_by_role("link", name="nightly")).to_be_visible()
    page.get_by_role("link", name="All notifications").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Notifications")
