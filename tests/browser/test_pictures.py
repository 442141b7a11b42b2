"""Pictures: of the guide, which are part of the portal, and of every page in every look, for people to look at.

They are taken only when asked for: `make pictures` and `make screenshots`.
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
from billing.packages import create_package
from billing.usage import open_segment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership, Role
from cng_portal.common.templatetags.portal import picture_size
from cng_portal.inventory.models import Region, Volume
from snapshots import wizard
from snapshots.models import Kind, Snapshot
from tests.browser import screens
from tests.factories import (
    DiskImageFactory,
    LocationFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.permissions import TABLE
from tests.snapshots.disks import content, put_volume

HELP = settings.BASE_DIR / "static" / "help"
TEMPLATES = settings.BASE_DIR / "templates" / "help"
SCREENSHOTS = settings.BASE_DIR / "tests" / "screenshots"
MOST_BYTES = 40_000
GIB = 1024**3
RATES = {ServiceKind.BS_SNAPSHOT: 400_000, ServiceKind.VM_SNAPSHOT: 500_000, ServiceKind.VM_BACKUP: 600_000}


def referenced() -> set[str]:
    return set(re.findall(r'{% picture "([a-z-]+)"', "".join(path.read_text() for path in TEMPLATES.glob("*.html"))))


def test_each_picture_of_the_guide_is_there_and_small() -> None:
    files = {path.stem: path for path in HELP.glob("*.webp")}
    assert set(files) == referenced()
    assert {name for name, path in files.items() if path.stat().st_size > MOST_BYTES} == set()
    for name in files:
        assert picture_size(f"help/{name}.webp")[0] >= 700


# --- what is on them -----------------------------------------------------------------------------------------------------


@pytest.fixture
def member(storage_root: Path) -> Membership:
    """An account in which everything is: machines, disks, snapshots in each state, work that goes on."""
    member = MembershipFactory(
        project__name="Default",
        project__customer__number=1039,
        project__customer__name="A.Z.H Trading",
        user__name="Aung Zaw Htet",
        user__email="customer@example.com",
        role=Role.OWNER,
    )
    member.user.customer = customer = member.project.customer
    member.user.save()
    for name in ("Software", "Test"):
        MembershipFactory(user=member.user, project=ProjectFactory(customer=customer, name=name), role=Role.OWNER)
    buy_credits(customer=customer, amount_micro=99_455_790_000, reason="First purchase", by=None, key="first")
    yangon = LocationFactory(code="1CNG-YGN-AZ01")
    mandalay = LocationFactory(code="1CNG-MDY-AZ01", city="Mandalay")
    LocationFactory(code="1CNG-SIN-AZ01", city="Singapore", country="SG", region=Region.SOUTHEAST_ASIA)
    now = timezone.now()
    place: dict[str, Any] = {"project": member.project, "location": yangon, "created_at": now - timedelta(days=110)}
    database = VirtualMachineFactory(name="db-01", stopped=True, vcpus=4, memory_mb=16384, **place)
    web = VirtualMachineFactory(name="web-01", vcpus=2, memory_mb=4096, **place)
    VolumeFactory(name="db-01-root", size_gb=10, vm=database, **place)
    data = VolumeFactory(name="db-01-data", size_gb=50, vm=database, position=1, **place)
    VolumeFactory(name="web-01-root", size_gb=20, vm=web, **place)
    office = VolumeFactory(name="office-files", size_gb=30, **place)
    VolumeFactory(name="archive-2025", size_gb=5, **(place | {"location": mandalay}))
    gone = VolumeFactory(name="old-shop-data", size_gb=40, gone=True, **place)
    for kind, rate_micro in RATES.items():
        for location in (yangon, mandalay):
            create_package(location=location, kind=kind, rate_micro=rate_micro, starts_at=now - timedelta(days=200))

    def taken(volume: Volume, name: str, hours: float, **fields: Any) -> Snapshot:
        at = now - timedelta(hours=hours)
        if not {"creating", "failed", "pending"} & set(fields):
            fields["ready_at"] = at + timedelta(minutes=1)
        return SnapshotFactory(volume=volume, name=name, created_at=at, requested_by=member.user, **fields)

    for number, hours in enumerate((30, 54, 78, 150, 270, 400), start=1):
        taken(data, f"db-01-data-nightly-{number}", hours)
    ready = taken(data, "before the update", 3.2)
    OperationFactory(snapshot=ready, capture=True, succeeded=True, requested_by=member.user)
    ready.disks.update(allocated_bytes=int(12.4 * GIB), checksum="5f0c1d9ae44f7c1b" * 4, captured_at=ready.ready_at)
    failed = taken(office, "office-files-2026-11-21", 26, failed=True)
    OperationFactory(snapshot=failed, capture=True, failed=True)
    running = taken(office, "office-files-2026-11-22", 0.05, creating=True)
    OperationFactory(
        snapshot=running,
        capture=True,
        running=True,
        requested_by=member.user,
        bytes_done=int(11.2 * GIB),
        bytes_total=30 * GIB,
        started_at=now - timedelta(minutes=2),
        created_at=now - timedelta(minutes=2),
    )
    taken(gone, "old-shop-data-last", 900)
    machine = VMSnapshotFactory(
        vm=database,
        name="db-01 before the migration",
        size_gb=60,
        vm_config={"name": "db-01", "vcpus": 4, "memory_mb": 16384, "hourly_price_micro": 118_750_000, "volumes": []},
        consistency="instant",
        requested_by=member.user,
    )
    for position, volume in enumerate(database.volumes.order_by("position")):
        DiskImageFactory(
            id=None, snapshot=machine, volume=volume, volume_name=volume.name, position=position, size_gb=volume.size_gb
        )
    for volume in Volume.objects.present():
        put_volume(storage_root, volume, content(b"bytes"))
    for snapshot in Snapshot.objects.filter(ready_at__isnull=False):
        open_segment(
            resource_id=snapshot.pk,
            kind=snapshot.service_kind,
            name=snapshot.name,
            project=snapshot.project,
            location=snapshot.location,
            size_gb=snapshot.size_gb,
            at=snapshot.ready_at,
        )
    return member


def steps(member: Membership, source: Any, kind: Kind = Kind.VOLUME) -> dict[str, str]:
    """{slug: address} of the wizard with every answer given."""
    draft = wizard.start(member.user, source=source, kind=kind)
    draft.name = f"{source.name}-2026-11-22"
    draft.save()
    return {slug: wizard.url(draft, slug) for slug in wizard.slugs(draft)}


# --- the guide -----------------------------------------------------------------------------------------------------------


def keep(page: Page, name: str, part: Locator | None = None) -> None:
    """The part of the page from its top, at most so high, as small as a picture of text can be."""
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
    browser: Browser, base_url: str, member: Membership, client_for: Callable[..., Any]
) -> None:
    cookie = client_for(member.user).cookies[settings.SESSION_COOKIE_NAME]
    context = browser.new_context(viewport={"width": 1200, "height": 1400}, base_url=base_url, color_scheme="light")
    context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": base_url}])
    page = context.new_page()
    page.set_viewport_size({"width": 1300, "height": 1400})  # where the list is a table
    page.goto("/snapshots/")
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
    for act in ("restore", "new_volume"):
        page.goto(reverse(f"snapshots:{act}", args=[ready.pk]))
        keep(page, act.replace("_", "-"), page.locator("form.confirm"))
    context.close()


# --- every page ----------------------------------------------------------------------------------------------------------

LOOKS = [(scheme, width) for scheme in ("light", "dark") for width in (1440, 768, 360)]


@pytest.fixture
def seen(member: Membership, storage_root: Path) -> dict[str, screens.Account]:
    screens.fill(member, storage_root)
    return screens.accounts(member)


@pytest.mark.django_db(transaction=True)
def test_every_address_that_is_seen_has_its_picture(seen: dict[str, screens.Account]) -> None:
    """And each is there to be taken: what is answered at its address is a page."""
    shown, wrong = set(), []
    for who, (client, found) in seen.items():
        for name, screen in found.items():
            response = client.get(screen.address)
            if response.status_code != screen.status:
                wrong.append((who, name, response.status_code, response.get("Location")))
            if screen.status != 404:
                shown.add(resolve(urlsplit(screen.address).path).view_name)
    assert wrong == [], wrong
    to_see = {row.name for rows in TABLE.values() for row in rows if row.takes("GET")}
    missing = to_see - shown - screens.UNSEEN.keys()
    assert not missing, f"Add a picture of these to tests/browser/screens.py, or say why nobody sees them: {missing}"
    assert not screens.UNSEEN.keys() & shown


@pytest.mark.skipif(os.environ.get("PICTURES") != "pages", reason="make screenshots")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_every_page_in_every_look(
    browser: Browser, base_url: str, seen: dict[str, screens.Account], scheme: str, width: int
) -> None:
    """`NAMES`, a regular expression, takes only some of them."""
    SCREENSHOTS.mkdir(exist_ok=True)
    wanted = re.compile(os.environ.get("NAMES", ""))
    too_wide = {}
    for client, found in seen.values():
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, base_url=base_url, reduced_motion="reduce"
        )
        context.add_cookies(
            [{"name": name, "value": cookie.value, "url": base_url} for name, cookie in client.cookies.items()]
        )
        page = context.new_page()
        for name, screen in found.items():
            if not wanted.search(name):
                continue
            page.goto(screen.address)
            if screen.act:
                screen.act(page)
            page.evaluate("scrollTo(0, 0)")  # or what sticks to the window's edge would stand in the middle of the page
            page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{width}.png", full_page=not screen.menu)
            if not name.startswith("admin"):
                wide = page.evaluate("document.documentElement.scrollWidth")
                too_wide |= {name: wide} if wide > width else {}
        context.close()
    assert too_wide == {}
