"""Every fragment that htmx swaps in equals the same part of a newly loaded page."""

import re
from collections.abc import Callable, Iterator
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test.signals import template_rendered
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page

from billing.models import ServiceKind
from cng_portal.accounts.models import Membership
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Volume
from snapshots.models import Draft, Kind, Snapshot
from snapshots.models.drills import create_drill
from snapshots.wizard import wizard
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    DraftFactory,
    MembershipFactory,
    NotificationFactory,
    OperationFactory,
    SnapshotFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)

TEMPLATES = settings.BASE_DIR / "templates"
ASKS = re.compile(r'\shx-(?:get|post)=|include "partials/poll\.html"')
# Each template that requests a fragment, with the IDs of the elements compared below.
FRAGMENTS: dict[str, set[str]] = {
    "dashboard.html": {"running"},
    "partials/frame/bell_work.html": {"bell-work"},
    "partials/pagination.html": {"snapshot-list", "machine-list", "volume-list", "schedule-list", "activity-list"},
    "partials/poll.html": {"running", "work"},
    # What a <details> fetches when it opens (a row's menu, a list's filters) is compared in tests/snapshots.
    "partials/row_menu.html": set(),
    "partials/step_list.html": {"wizard"},
    "partials/tabs.html": {"wizard"},
    "snapshots/drills/drill.html": {"progress"},
    "snapshots/machine.html": {"work"},
    "partials/filter_form.html": {"snapshot-list", "machine-list", "volume-list", "schedule-list"},
    "snapshots/partials/card.html": {"snapshot-row"},
    "snapshots/partials/list_toolbar.html": {"snapshot-list", "machine-list", "volume-list", "schedule-list"},
    "snapshots/partials/row.html": {"snapshot-row"},
    "snapshots/partials/schedule_fields.html": {"preview"},
    "snapshots/schedule.html": {"runs"},
    "snapshots/snapshot.html": {"work"},
    "snapshots/volume.html": {"work"},
    "snapshots/wizard/find.html": {"hits"},
    "snapshots/wizard/name.html": {"name-check"},  # a hint about typed text, which a new page doesn't have
    "search/form.html": {"search-results"},
    "snapshots/wizard/estimates.html": {"estimates"},
    "snapshots/wizard/volume_size.html": {"wizard"},
    "snapshots/wizard/step.html": {"wizard"},
}

# Fetches each fragment of the page, and each response of its forms to empty and to their current fields, as htmx and as a
# plain browser do. Returns [where, the fragment, the same part of the page] for each difference, and the IDs compared.
COMPARE = """async (withBell) => {
    const htmx = {"HX-Request": "true", "HX-Current-URL": location.href};
    const text = async (url, options) => (await fetch(url, options)).text();
    const root = (html, id) => {
        const box = document.createElement("template");
        box.innerHTML = html;
        return id ? box.content.getElementById(id) : [...box.content.children].find((one) => one.id);
    };
    const same = (part) => part.outerHTML.replace(/(csrfmiddlewaretoken" value=")[^"]*/g, "$1").replace(/\\s+/g, " ");
    const compared = [], different = [];
    const compare = (where, fragment, page, select) => {
        const part = root(fragment, select?.slice(1));
        const whole = part && root(page, part.id);
        compared.push(part ? part.id : where);
        if (!part || !whole || same(part) !== same(whole)) {
            different.push([where, part ? same(part) : fragment.slice(0, 300), whole ? same(whole) : "not on the page"]);
        }
    };
    const select = (element) => element.getAttribute("hx-select");
    for (const element of document.querySelectorAll("[hx-get]:not(input, details)")) {
        if (element.id === "bell-work" && !withBell) continue;
        let asked = element.getAttribute("hx-get");
        const held = element.matches("form") && new URLSearchParams(new FormData(element));
        if (held) asked += `${asked.includes("?") ? "&" : "?"}${held}`;
        const own = element.matches("[data-quiet]:not([hx-target], form)");
        compare(asked, await text(asked, {headers: htmx}), await text(own ? location.href : asked), select(element));
    }
    const token = document.querySelector("[name=csrfmiddlewaretoken]")?.value;
    for (const element of document.querySelectorAll("[hx-post]")) {
        const form = element.closest("form"), more = JSON.parse(element.getAttribute("hx-vals") || "{}");
        const nothing = () => new FormData();
        const held = () => new FormData(form);
        // the answer to a whole form is taken where nothing comes of it but the next step
        const bodies = element === form && /\\/(review|new)\\/$/.test(location.pathname) ? [nothing] : [nothing, held];
        for (const made of bodies) {
            const body = () => {
                const data = made();
                data.set("csrfmiddlewaretoken", token);
                for (const [name, value] of Object.entries(more)) data.set(name, value);
                return data;
            };
            const fragment = await text(form.action, {method: "POST", body: body(), headers: htmx});
            compare(form.action, fragment, await text(form.action, {method: "POST", body: body()}), select(element));
        }
    }
    return [different, compared];
}"""


def test_every_fragment_that_a_template_requests_is_compared() -> None:
    asking = {
        str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.html") if ASKS.search(code(path.read_text()))
    }
    assert asking == FRAGMENTS.keys()


def code(source: str) -> str:
    """Return the template without comments."""
    return re.sub(r"{% comment %}.*?{% endcomment %}", "", source, flags=re.DOTALL)


@pytest.fixture
def member() -> Membership:
    member = MembershipFactory(project__customer__postpaid=True)
    member.user.customer = member.project.customer
    member.user.save()
    return member


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, name="db-01-data", size_gb=50, attached=True)
    put_volume(storage_root, volume, content(b"bytes"))
    at = timezone.now() - timedelta(hours=2)
    for number in range(25):
        SnapshotFactory(volume=volume, name=f"nightly-{number}", created_at=at - timedelta(days=number), ready_at=at)
    for kind in (ServiceKind.BS_SNAPSHOT, ServiceKind.VM_SNAPSHOT, ServiceKind.VM_BACKUP):
        sell_everywhere(kind=kind)
    return volume


@pytest.fixture
def creating_snapshot(volume: Volume) -> Snapshot:
    at = timezone.now() - timedelta(hours=2)
    creating_snapshot = SnapshotFactory(volume=volume, name="being taken", creating=True, created_at=at)
    OperationFactory(
        snapshot=creating_snapshot,
        capture=True,
        running=True,
        bytes_done=5,
        bytes_total=10,
        attempt=2,
        created_at=at,
        started_at=at,
    )
    return creating_snapshot


@pytest.fixture
def rendered() -> Iterator[set[str]]:
    """Yield the names of the templates that the live server renders within the block."""
    names: set[str] = set()

    def note(sender: Any, template: Any, **kwargs: Any) -> None:
        names.add(str(template.name))

    template_rendered.connect(note)
    yield names
    template_rendered.disconnect(note)


def answered(member: Membership, kind: str, source: Any) -> Draft:
    draft = wizard.start(member.user, kind=kind, source=source)
    if kind == Kind.BACKUP:
        draft.interval, draft.at, draft.weekday, draft.retention_count = "weekly", time(2), 2, 2
    else:
        draft.name = "a name"
    draft.save()
    return draft


def test_every_fragment_equals_its_page(
    page: Page,
    member: Membership,
    volume: Volume,
    creating_snapshot: Snapshot,
    rendered: set[str],
    sign_in: Callable[..., Any],
) -> None:
    at = timezone.now() - timedelta(hours=2)
    vm, project = volume.vm, member.project
    for number in range(21):  # more than one page of each
        VolumeFactory(project=project, location=volume.location, name=f"disk-{number}", created_at=at)
        VirtualMachineFactory(project=project, location=volume.location, name=f"web-{number}", created_at=at)
        VMSnapshotFactory(vm=vm, created_at=at, ready_at=at)
        BackupScheduleFactory(vm=vm, created_at=at)
    schedule = BackupScheduleFactory(vm=vm, weekly=True, created_at=at)
    BackupRunFactory(schedule=schedule, scheduled_at=at, finished_at=at)
    BackupRunFactory(schedule=schedule, taking=True, scheduled_at=at + timedelta(minutes=5), created_at=at)
    NotificationFactory(user=member.user, created_at=at)
    drilled = SnapshotFactory(volume=volume, created_at=at)
    drilling = OperationFactory(snapshot=drilled, kind="drill", running=True, created_at=at)
    drill = create_drill(drilled, drilling, user=member.user, at=at)
    for number in range(51):
        Activity.objects.create(action="user.sign_in", actor=member.user, project=project, at=at, after={"n": number})
    drafts = [
        answered(member, kind, source) for kind, source in ((Kind.VOLUME, volume), (Kind.VM, vm), (Kind.BACKUP, vm))
    ]
    drafts.append(
        DraftFactory(
            kind=Draft.CREATE_VOLUME,
            created_by=member.user,
            customer=project.customer,
            location=volume.location,
            project=project,
            size_gb=60,
            name="a name",
        )
    )
    sign_in(member.user)
    paths = [
        "/notifications/",
        "/",
        "/snapshots/?view=table",
        "/snapshots/?view=cards&q=nightly&sort=name",
        "/snapshots/?q=nothing-like-it",
        "/snapshots/vm/",
        "/backups/",
        "/recycle-bin/",
        "/recycle-bin/volumes/",
        "/backups/schedules/",
        "/backups/schedules/?q=nothing-like-it",
        "/volumes/",
        reverse("snapshots:machines"),
        reverse("activity:log"),
        reverse("snapshots:snapshot", args=[creating_snapshot.pk]),
        reverse("snapshots:volume", args=[volume.pk]),
        reverse("snapshots:drill", args=[drill.pk]),
        reverse("snapshots:machine", args=[vm.pk]),
        reverse("snapshots:schedule", args=[schedule.pk]),
        reverse("snapshots:edit_schedule", args=[schedule.pk]),
        f"{reverse('snapshots:delete_many')}?id={Snapshot.objects.filter(state='ready').first().pk}",
        "/snapshots/new/",
        "/snapshots/vm/new/",
        "/backups/new/",
        "/volumes/new/",
        *(wizard.url(draft, slug) for draft in drafts for slug in wizard.slugs(draft)),
    ]
    compared = set()
    for path in paths:
        assert page.goto(path).status == 200, path
        if path != "/":
            assert page.evaluate("location.pathname") == path.partition("?")[0]  # and not redirected to another step
        different, ids = page.evaluate(COMPARE, path == "/notifications/")
        assert different == [], path
        compared |= set(ids)
    compared.add("snapshot-row" if f"snapshot-{creating_snapshot.pk}" in compared else "")
    assert set().union(*FRAGMENTS.values()) - compared == {"name-check"}
    assert FRAGMENTS.keys() - rendered == set()


def test_live_validation_of_a_name_equals_the_steps_own(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    draft = wizard.start(member.user, source=volume)
    sign_in(member.user)
    page.goto(wizard.url(draft, "name"))
    page.get_by_label("Snapshot Name").fill("nightly-3")
    hint = page.locator("#name-check").get_by_text("Another snapshot has the name “nightly-3”.")
    hint.wait_for()
    hint_text = hint.inner_text()
    page.get_by_role("button", name="Continue").click()
    assert page.locator(".error-summary").inner_text().find(hint_text) >= 0
