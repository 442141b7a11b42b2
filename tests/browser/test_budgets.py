"""What a page may cost: bytes and requests as Chromium counts them on the real server with its demo, and queries.

The budget of contrast is kept by axe on every page (looking.py) and pair by pair in tests/test_frame.py.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page

from billing import services as billing
from billing.models import ServiceKind
from cng_portal.accounts.models import Project, User
from snapshots import wizard
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    NoticeFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, sell_everywhere
from tests.test_serve import environment, serving

__all__ = ["environment"]  # the fixture

FIRST_BYTES, LATER_BYTES = 120_000, 15_000
FIRST_REQUESTS, LATER_REQUESTS = 12, 4  # later ones: the page, a flag or two, an illustration

PAGES = [
    "/",
    "/instances/",
    "/snapshots/?view=table",
    "/snapshots/?view=cards",
    "/snapshots/vm/",
    "/backups/",
    "/backups/schedules/",
    "/volumes/",
    "/billing/",
    "/billing/subscriptions/",
    "/billing/credits/",
    "/billing/transactions/",
    "/billing/statement/",
    "/notices/",
    "/profile/",
    "/profile/limits/",
    "/profile/activity/",
    "/people/",
    "/help/",
    "/help/keyboard/",
    "/snapshots/new/",
    "/backups/new/",
]
# The lists whose first link to something of theirs leads to a page of one thing.
DETAILS = ["/volumes/", "/instances/", "/backups/schedules/"]
FIRST_THING = """list => [...document.querySelectorAll("main a")].map((link) => link.pathname)
    .find((path) => path.startsWith(list) && path.length > list.length + 30)"""


@pytest.fixture
def address(environment: dict[str, str]) -> Iterator[str]:
    with serving(environment):
        yield f"http://127.0.0.1:{environment['PORT']}"


class Counter:
    """Bytes on the wire, headers and all, and requests since it was asked the last time; what the cache gave is nothing."""

    def __init__(self, page: Page) -> None:
        self.page, self.bytes, self.urls = page, 0, []
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.responseReceived", self.received)
        session.on("Network.loadingFinished", self.finished)
        self.on_the_wire: dict[str, str] = {}

    def received(self, event: dict) -> None:
        if not event["response"].get("fromDiskCache"):
            self.on_the_wire[event["requestId"]] = event["response"]["url"]

    def finished(self, event: dict) -> None:
        if url := self.on_the_wire.pop(event["requestId"], ""):
            self.bytes += int(event["encodedDataLength"])
            if event["encodedDataLength"]:
                self.urls.append(url)

    def open(self, url: str) -> tuple[int, list[str]]:
        self.bytes, self.urls = 0, []
        self.page.goto(url, wait_until="networkidle")
        return self.bytes, self.urls


def test_the_first_page_and_every_later_one_are_small(browser: Browser, address: str) -> None:
    page = browser.new_page(base_url=address)
    counter = Counter(page)
    first, urls = counter.open("/accounts/login/")
    assert first <= FIRST_BYTES, (first, urls)
    assert len(urls) <= FIRST_REQUESTS, urls
    assert {url[: len(address)] for url in urls} == {address}  # nothing leaves the site
    page.get_by_label("E-mail").fill("customer@example.com")
    page.get_by_label("Password", exact=True).fill("portal-demo")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("heading", level=1, name="Dashboard").wait_for()
    paths = list(PAGES)
    for path in DETAILS:
        page.goto(path)
        paths.append(page.evaluate(FIRST_THING, path))
    later = {path: counter.open(path) for path in paths}
    assert {path: seen for path, seen in later.items() if seen[0] > LATER_BYTES} == {}
    assert {path: seen for path, seen in later.items() if len(seen[1]) > LATER_REQUESTS} == {}
    assert {url[: len(address)] for _bytes, urls in later.values() for url in urls} == {address}
    assert min(seen[0] for seen in later.values()) > 2_000  # it counts
    page.context.close()


# --- queries --------------------------------------------------------------------------------------------------------------

# a list; any other page; what adds up everything, or checks all answers again. The wallet is two of them, once a minute.
LIST, PAGE, HEAVY = 7, 10, 16


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer__postpaid=True)


@pytest.fixture
def person(project: Project) -> User:
    return UserFactory(member_of=project)


@pytest.mark.django_db
def test_no_page_asks_the_database_more_than_it_may(
    project: Project, person: User, client_for: Callable[..., Client], storage_root: Path
) -> None:
    volume = VolumeFactory(project=project, attached=True)
    put_volume(storage_root, volume, content(b"bytes"))
    sell_everywhere()
    sell_everywhere(kind=ServiceKind.VM_BACKUP)
    snapshot = SnapshotFactory(volume=volume)
    billing.open_segment(
        resource_id=snapshot.pk,
        kind=snapshot.service_kind,
        name=snapshot.name,
        project=project,
        location=snapshot.location,
        size_gb=1,
        at=timezone.now() - timedelta(days=1),
    )
    schedule = BackupScheduleFactory(vm=volume.vm)
    BackupRunFactory(schedule=schedule)
    NoticeFactory(user=person)
    draft = wizard.start(person, source=volume)
    draft.name = "a name"
    draft.save()
    most = dict.fromkeys(PAGES, PAGE)
    most |= dict.fromkeys([path for path in PAGES if path.startswith("/snapshots/") and "new" not in path], LIST)
    most |= {"/volumes/": LIST, "/billing/": 8, "/billing/statement/": HEAVY}
    most |= {reverse("snapshots:snapshot", args=[snapshot.pk]): PAGE}
    most |= {reverse("snapshots:volume", args=[volume.pk]): PAGE}
    most |= {reverse("snapshots:machine", args=[volume.vm_id]): HEAVY}
    most |= {reverse("snapshots:schedule", args=[schedule.pk]): PAGE}
    most |= {wizard.url(draft, slug): HEAVY for slug in wizard.slugs(draft)}
    client = client_for(person)
    client.get("/")
    asked = {}
    for path in most:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(path).status_code == 200, path
        asked[path] = len(queries)
    assert {path: count for path, count in asked.items() if count > most[path]} == {}
