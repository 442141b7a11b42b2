"""Budgets of pages: bytes and requests as Chromium counts them with the demo, and queries.

Contrast is checked by axe on every page (looking.py) and for each pair of colours in tests/test_frame.py.
"""

from collections.abc import Callable, Iterator
from datetime import time, timedelta
from pathlib import Path

import pytest
import time_machine
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page

from billing import closing
from billing.models import PACKAGE_KINDS
from billing.usage import open_segment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Project, User
from snapshots.models import Draft, Kind
from snapshots.wizard import wizard
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    DraftFactory,
    MembershipFactory,
    NotificationFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, sell_everywhere
from tests.test_serve import environment, serving

__all__ = ["environment"]  # the fixture

FIRST_BYTES, FONT_BYTES, LATER_BYTES = 120_000, 60_000, 15_000
FIRST_REQUESTS, LATER_REQUESTS = 12, 4  # later pages: the page, a flag or two, an illustration

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
    "/billing/prices/",
    "/notifications/",
    "/profile/",
    "/profile/limits/",
    "/profile/activity/",
    "/projects/",
    "/help/",
    "/help/keyboard/",
    "/search/?q=a",
    "/snapshots/new/",
    "/backups/new/",
    "/volumes/new/",
]
# Lists whose first link leads to a detail page.
DETAILS = ["/volumes/", "/instances/", "/backups/schedules/", "/projects/"]
FIRST_THING = """list => [...document.querySelectorAll("main a")].map((link) => link.pathname)
    .find((path) => path.startsWith(list) && path.length > list.length + 30)"""


@pytest.fixture
def address(environment: dict[str, str]) -> Iterator[str]:
    with serving(environment):
        yield f"http://127.0.0.1:{environment['PORT']}"


class Counter:
    """Counts bytes on the wire, including headers, and requests since the last call. Cached responses don't count."""

    def __init__(self, page: Page) -> None:
        self.page, self.bytes, self.urls = page, 0, []
        self.sizes: dict[str, int] = {}
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
            self.sizes[url] = int(event["encodedDataLength"])
            if event["encodedDataLength"]:
                self.urls.append(url)

    def open(self, url: str) -> tuple[int, list[str]]:
        self.bytes, self.urls = 0, []
        self.page.goto(url, wait_until="networkidle")
        return self.bytes, self.urls


def test_first_and_later_pages_stay_within_their_byte_budgets(browser: Browser, address: str) -> None:
    page = browser.new_page(base_url=address)
    counter = Counter(page)
    first, urls = counter.open("/accounts/login/")
    font = sum(size for url, size in counter.sizes.items() if url.endswith(".woff2"))
    assert 0 < font <= FONT_BYTES
    assert first - font <= FIRST_BYTES, (first, urls)
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
    assert {path: measured for path, measured in later.items() if measured[0] > LATER_BYTES} == {}
    assert {path: measured for path, measured in later.items() if len(measured[1]) > LATER_REQUESTS} == {}
    assert {url[: len(address)] for _bytes, urls in later.values() for url in urls} == {address}
    assert min(measured[0] for measured in later.values()) > 2_000  # counting works
    page.context.close()


MOST_QUERIES = 25


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer__snapshot_quota=1000)


@pytest.fixture
def user(project: Project) -> User:
    return UserFactory(member_of=project)


@pytest.fixture
def pages(project: Project, user: User, storage_root: Path) -> list[str]:
    """URLs of an account that is prepaid and has a quota, an invoice, an operation in progress and a failed one."""
    volume = VolumeFactory(project=project, attached_stopped=True)
    put_volume(storage_root, volume, content(b"bytes"))
    for kind in PACKAGE_KINDS:
        sell_everywhere(kind=kind)
    now = timezone.now()
    buy_credits(customer=project.customer, amount_micro=10**12, reason="a lot", by=None, key="a lot")
    snapshots = [SnapshotFactory(volume=volume) for _number in range(25)]
    for snapshot in snapshots:
        open_segment(
            resource_id=snapshot.pk,
            kind=snapshot.service_kind,
            name=snapshot.name,
            project=project,
            location=snapshot.location,
            size_gb=1,
            at=now - timedelta(days=40),
        )
    closing.close_months(at=now)
    creating, failed = SnapshotFactory(volume=volume, creating=True), SnapshotFactory(volume=volume, failed=True)
    OperationFactory(snapshot=creating, capture=True, running=True)
    OperationFactory(snapshot=failed, capture=True, failed=True)
    OperationFactory(snapshot=snapshots[0], restore=True, succeeded=True)
    schedule = BackupScheduleFactory(vm=volume.vm)
    copy = BackupRunFactory(schedule=schedule).snapshot
    BackupRunFactory(schedule=schedule, failed=True)
    BackupRunFactory(schedule=BackupScheduleFactory(vm=volume.vm, automatic=True))
    NotificationFactory(user=user)
    other = MembershipFactory(project=project, role="viewer")
    drafts = [wizard.start(user, source=volume), wizard.start(user, kind=Kind.VM, source=volume.vm)]
    drafts[0].name, drafts[1].name = "free", snapshots[0].name
    backup = wizard.start(user, kind=Kind.BACKUP, source=volume.vm)
    backup.interval, backup.at = "daily", time(23, 30)
    copy_of = DraftFactory(
        kind=Draft.CREATE_VOLUME,
        created_by=user,
        customer=project.customer,
        location=volume.location,
        project=project,
        size_gb=volume.size_gb,
        disk=snapshots[0].disks.first(),
        name="copy",
    )
    for draft in (*drafts, backup):
        draft.save()
    actions = ["rename", "labels", "move", "delete", "restore", "new_volume", "verify"]
    return [
        *PAGES,
        "/snapshots/?q=nothing-like-it",
        *(reverse(f"accounts:{name}") for name in ("security", "sessions", "sign_ins", "approvals")),
        reverse("activity:log"),
        reverse("accounts:invite", args=[project.pk]),
        *(reverse(f"accounts:{name}", args=[other.pk]) for name in ("role", "remove")),
        *(reverse("snapshots:snapshot", args=[snapshot.pk]) for snapshot in (snapshots[0], creating, failed, copy)),
        *(reverse(f"snapshots:{name}", args=[snapshots[0].pk]) for name in actions),
        *(reverse(f"snapshots:{name}", args=[copy.pk]) for name in ("pin", "restore", "delete", "new_machine")),
        f"{reverse('snapshots:delete_many')}?id={snapshots[0].pk}&id={snapshots[1].pk}",
        reverse("snapshots:volume", args=[volume.pk]),
        reverse("snapshots:machine", args=[volume.vm_id]),
        reverse("snapshots:schedule", args=[schedule.pk]),
        *(
            reverse(f"snapshots:{action}_schedule", args=[schedule.pk])
            for action in ("edit", "pause", "resume", "run", "delete")
        ),
        *(wizard.url(draft, slug) for draft in (drafts[0], backup) for slug in wizard.slugs(draft)),
        *(wizard.url(drafts[1], slug) for slug in wizard.slugs(drafts[1])[:-1]),  # whose name is taken
        *(wizard.url(copy_of, slug) for slug in (*wizard.slugs(copy_of), "source")),
        reverse("billing:invoice", args=[project.customer.invoices.first().pk]),
    ]


@pytest.mark.both_databases
@pytest.mark.django_db
def test_every_page_stays_within_its_query_budget(
    pages: list[str], user: User, client_for: Callable[..., Client]
) -> None:
    client = client_for(user)
    query_counts = {}
    with time_machine.travel(timezone.now(), tick=False):  # so that the balance stays cached
        client.get("/help/")
        for path in pages:
            with CaptureQueriesContext(connection) as queries:
                assert client.get(path).status_code == 200, path
            query_counts[path] = sum("SAVEPOINT" not in query["sql"] for query in queries)
    assert {path: count for path, count in query_counts.items() if count > MOST_QUERIES} == {}
