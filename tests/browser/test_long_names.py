"""With names of maximum length and without spaces, nothing is wider than the window."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone
from playwright.sync_api import Browser, Page

from cng_portal.accounts.models import Customer, Membership, Project, User
from cng_portal.common.names import MAX_NAME_LENGTH, fold_name
from cng_portal.inventory.models import VirtualMachine, Volume
from cng_portal.notifications.models import Notification
from snapshots.models import DiskImage, Draft, Snapshot
from tests.browser import filling, screens
from tests.factories import SnapshotFactory, VolumeFactory

pytestmark = pytest.mark.django_db(transaction=True)

WIDTHS = (320, 768, 1280)
NAMED = {
    Customer: "name",
    User: "name",
    Project: "name",
    VirtualMachine: "name",
    Volume: "name",
    Snapshot: "name",
    Draft: "name",
    DiskImage: "volume_name",
    Notification: "title",
}
# The elements that extend beyond the right edge of the window, outermost first.
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    return [...document.querySelectorAll("body *")]
        .filter((element) => element.getBoundingClientRect().right > width + 1)
        .slice(0, 3).map((element) => element.outerHTML.slice(0, 160));
}"""


def unbroken(number: int) -> str:
    return (f"{number:03}" + "productionpostgresqlprimarydatavolume" * 4)[:MAX_NAME_LENGTH]


@pytest.fixture
def accounts(full_account: Membership, storage_root: Path) -> dict[str, screens.Account]:
    """Every page, in accounts with names of maximum length."""
    update = Snapshot.objects.get(name="before the update")
    volume = VolumeFactory(
        name=unbroken(900), size_gb=10, attached=True, project=update.project, location=update.location
    )
    at = timezone.now() - timedelta(days=70)
    SnapshotFactory(volume=volume, name=unbroken(901), created_at=at, ready_at=at)  # invoices keep copies of the names
    filling.fill(full_account, storage_root)
    accounts = screens.accounts(full_account)
    for model, field in NAMED.items():
        for number, pk in enumerate(model.objects.values_list("pk", flat=True)):
            name = unbroken(number)
            key = {"name_key": fold_name(name)} if model is Snapshot else {}
            model.objects.filter(pk=pk).update(**{field: name}, **key)
    return accounts


def test_no_page_scrolls_sideways(browser: Browser, base_url: str, accounts: dict[str, screens.Account]) -> None:
    overflowing = {}
    for client, pages in accounts.values():
        context = browser.new_context(base_url=base_url, reduced_motion="reduce")
        context.add_cookies(
            [{"name": name, "value": cookie.value, "url": base_url} for name, cookie in client.cookies.items()]
        )
        page = context.new_page()
        for address in dict.fromkeys(screen.address for screen in pages.values()):
            page.goto(address)
            for width in WIDTHS:
                if too_wide := parts_too_wide(page, width):
                    overflowing[address, width] = too_wide
        context.close()
    assert overflowing == {}


def test_no_menu_or_message_scrolls_sideways(
    browser: Browser, base_url: str, accounts: dict[str, screens.Account]
) -> None:
    client, pages = accounts["owner"]
    context = browser.new_context(base_url=base_url, reduced_motion="reduce")
    context.add_cookies(
        [{"name": name, "value": cookie.value, "url": base_url} for name, cookie in client.cookies.items()]
    )
    page = context.new_page()
    overflowing = {}
    for name, screen in pages.items():
        if not screen.menu:
            continue
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(screen.address)
            assert screen.action
            screen.action(page)
            if too_wide := parts_too_wide(page, width):
                overflowing[name, width] = too_wide
    page.goto("/")
    page.evaluate("name => { document.getElementById('announcer').textContent = name }", unbroken(1))
    for width in WIDTHS:
        if too_wide := parts_too_wide(page, width):
            overflowing["announcer", width] = too_wide
    context.close()
    assert overflowing == {}


def parts_too_wide(page: Page, width: int) -> list[str]:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    parts: list[str] = page.evaluate(TOO_WIDE)
    return parts
