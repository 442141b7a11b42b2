"""Pictures of the guide, which are part of the portal, and screenshots of every page for review.

They are only taken by `make pictures` and `make screenshots`.
"""

import io
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.urls import resolve, reverse
from django.utils import timezone
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from billing.models import ServiceKind
from billing.pricing.packages import create_package
from cng_portal.accounts.models import Membership
from cng_portal.common.templatetags.portal import picture_size
from cng_portal.inventory.models import Volume
from snapshots.models import Kind, Snapshot
from snapshots.wizard import wizard
from tests.browser import filling, screens
from tests.permissions import TABLE

HELP = settings.BASE_DIR / "static" / "help"
TEMPLATES = settings.BASE_DIR / "templates" / "help"
SCREENSHOTS = settings.BASE_DIR / "tests" / "screenshots"
MOST_BYTES = 40_000


def referenced() -> set[str]:
    return set(re.findall(r'{% picture "([a-z-]+)"', "".join(path.read_text() for path in TEMPLATES.glob("*.html"))))


def test_each_picture_of_the_guide_exists_and_is_small() -> None:
    files = {path.stem: path for path in HELP.glob("*.webp")}
    assert set(files) == referenced()
    assert {name for name, path in files.items() if path.stat().st_size > MOST_BYTES} == set()
    for name in files:
        assert picture_size(f"help/{name}.webp")[0] >= 700


def steps(member: Membership, source: Any, kind: Kind = Kind.VOLUME) -> dict[str, str]:
    """Return {slug: URL} of the wizard with every answer given."""
    draft = wizard.start(member.user, source=source, kind=kind)
    draft.name = f"{source.name}-2026-11-22"
    draft.save()
    return {slug: wizard.url(draft, slug) for slug in wizard.slugs(draft)}


def keep(page: Page, name: str, part: Locator | None = None) -> None:
    """Save the top of the page, up to `height` pixels, compressed for text."""
    page.evaluate("document.activeElement.blur()")
    box = part.bounding_box() if part else {"x": 0, "y": 0, "width": 1300, "height": 720}
    assert box
    margin = 20 if part else 0
    clip = {
        "x": box["x"] - margin,
        "y": box["y"] - margin,
        "width": box["width"] + 2 * margin,
        "height": min(box["height"] + 2 * margin, 900),
    }
    shot = page.screenshot(clip=clip, full_page=True, animations="disabled")
    Image.open(io.BytesIO(shot)).convert("RGB").save(HELP / f"{name}.webp", quality=62, method=6)


@pytest.mark.skipif(os.environ.get("PICTURES") != "guide", reason="make pictures")
@pytest.mark.django_db(transaction=True)
def test_the_pictures_of_the_guide(
    browser: Browser, base_url: str, full_account: Membership, client_for: Callable[..., Any]
) -> None:
    member = full_account
    cookie = client_for(member.user).cookies[settings.SESSION_COOKIE_NAME]
    context = browser.new_context(viewport={"width": 1200, "height": 1400}, base_url=base_url, color_scheme="light")
    context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": base_url}])
    page = context.new_page()
    page.set_viewport_size({"width": 1300, "height": 1400})  # wide enough for a table
    page.goto("/snapshots/")
    page.evaluate("document.fonts.load('1rem Geist')")  # a page painted before it has arrived shows the system's
    page.reload()
    keep(page, "volume-list")
    page.set_viewport_size({"width": 1200, "height": 1400})
    data = Volume.objects.get(name="db-01-data")
    for slug, address in steps(member, data).items():
        page.goto(address)
        keep(page, slug, page.locator("#wizard"))
    page.goto(steps(member, data.vm)["instance"])
    keep(page, "instance", page.locator("#wizard"))
    page.goto(steps(member, data.vm, Kind.BACKUP)["schedule"])
    keep(page, "schedule", page.locator("#wizard"))
    ready = Snapshot.objects.get(name="before the update")
    page.goto(reverse("snapshots:snapshot", args=[ready.pk]))
    keep(page, "ready", page.locator("#snapshot"))
    for action in ("restore", "new_volume"):
        page.goto(reverse(f"snapshots:{action}", args=[ready.pk]))
        keep(page, action.replace("_", "-"), page.locator("form.confirm"))
    create_package(
        location=data.location,
        kind=ServiceKind.BLOCK_STORAGE,
        rate_micro=250_000,
        starts_at=timezone.now() - timedelta(hours=1),
    )
    created = screens.new_volume(member)
    for slug in ("size", "review"):
        page.goto(created[slug])
        keep(page, f"volume-{slug}", page.locator("#wizard"))
    context.close()


APPEARANCES = [(scheme, width) for scheme in ("light", "dark") for width in (1440, 768, 390, 320)]


@pytest.fixture
def accounts(full_account: Membership, storage_root: Path) -> dict[str, screens.Account]:
    filling.fill(full_account, storage_root)
    return screens.accounts(full_account)


@pytest.mark.django_db(transaction=True)
def test_every_url_with_a_page_has_its_picture(accounts: dict[str, screens.Account]) -> None:
    """Each screen's URL responds with a page."""
    covered, wrong = set(), []
    for who, (client, pages) in accounts.items():
        for name, screen in pages.items():
            response = client.get(screen.address)
            if response.status_code != screen.status:
                wrong.append((who, name, response.status_code, response.get("Location")))
            if screen.status != 404:
                covered.add(resolve(urlsplit(screen.address).path).view_name)
    assert wrong == [], wrong
    to_see = {row.name for rows in TABLE.values() for row in rows if row.takes("GET")}
    missing = to_see - covered - screens.UNSEEN.keys()
    assert not missing, f"Add a picture of these to tests/browser/screens.py, or say why nobody sees them: {missing}"
    assert not screens.UNSEEN.keys() & covered


@pytest.mark.skipif(os.environ.get("PICTURES") != "pages", reason="make screenshots")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("scheme", "width"), APPEARANCES)
def test_every_page_in_every_appearance(
    browser: Browser, base_url: str, accounts: dict[str, screens.Account], scheme: str, width: int
) -> None:
    """The regular expression `NAMES` selects some of them."""
    SCREENSHOTS.mkdir(exist_ok=True)
    wanted = re.compile(os.environ.get("NAMES", ""))
    too_wide = {}
    for client, pages in accounts.values():
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, base_url=base_url, reduced_motion="reduce"
        )
        context.add_cookies(
            [{"name": name, "value": cookie.value, "url": base_url} for name, cookie in client.cookies.items()]
        )
        page = context.new_page()
        for name, screen in pages.items():
            if not wanted.search(name):
                continue
            page.goto(screen.address)
            if screen.action:
                screen.action(page)
            page.evaluate("scrollTo(0, 0)")  # otherwise sticky elements would appear in the middle of the page
            page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{width}.png", full_page=not screen.menu)
            if not name.startswith("admin"):
                wide = page.evaluate("document.documentElement.scrollWidth")
                too_wide |= {name: wide} if wide > width else {}
        context.close()
    assert too_wide == {}
