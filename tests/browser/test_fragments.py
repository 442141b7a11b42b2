"""Every fragment: what htmx swaps in equals what is there when the page is loaded afresh."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page

from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from snapshots import wizard
from tests.factories import MembershipFactory, OperationFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)

# Fetches each fragment that the page can ask for, and each answer of its forms to nothing at all, as htmx does and as a
# plain browser does; gives [where, the fragment, the same part of the page] for each that differs, and the ids compared.
COMPARE = """async () => {
    const htmx = {"HX-Request": "true", "HX-Current-URL": location.href};
    const text = async (url, options) => (await fetch(url, options)).text();
    const root = (html, id) => {
        const box = document.createElement("template");
        box.innerHTML = html;
        return id ? box.content.getElementById(id) : [...box.content.children].find((one) => one.id);
    };
    const same = (part) => part.outerHTML.replace(/(csrfmiddlewaretoken" value=")[^"]*/g, "$1").replace(/\\s+/g, " ");
    const compared = [], different = [];
    const compare = (where, fragment, page) => {
        const part = root(fragment);
        const whole = part && root(page, part.id);
        compared.push(part ? part.id : where);
        if (!part || !whole || same(part) !== same(whole)) {
            different.push([where, part ? same(part) : fragment.slice(0, 300), whole ? same(whole) : "not on the page"]);
        }
    };
    for (const element of document.querySelectorAll("[hx-get]:not(input)")) {
        const asked = element.getAttribute("hx-get");
        const own = element.matches("[data-quiet]:not([hx-target])");
        compare(asked, await text(asked, {headers: htmx}), await text(own ? location.href : asked));
    }
    for (const form of document.querySelectorAll("form[hx-post]")) {
        const body = () => {
            const data = new FormData();
            data.append("csrfmiddlewaretoken", form.elements.csrfmiddlewaretoken.value);
            return data;
        };
        const fragment = await text(form.action, {method: "POST", body: body(), headers: htmx});
        compare(form.action, fragment, await text(form.action, {method: "POST", body: body()}));
    }
    return [different, compared];
}"""


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
    sell_everywhere()
    return volume


def test_every_fragment_equals_its_page(
    page: Page, member: Membership, volume: Volume, sign_in: Callable[..., Any]
) -> None:
    at = timezone.now() - timedelta(hours=2)
    taken = SnapshotFactory(volume=volume, name="being taken", creating=True, created_at=at)
    OperationFactory(
        snapshot=taken,
        capture=True,
        running=True,
        bytes_done=5,
        bytes_total=10,
        attempt=2,
        created_at=at,
        started_at=at,
    )
    draft = wizard.start(member.user, source=volume)
    draft.name = "a name"
    draft.save()
    sign_in(member.user)
    paths = [
        "/",
        "/snapshots/?view=table",
        "/snapshots/?view=cards&q=nightly&sort=name",
        "/snapshots/?q=nothing-like-it",
        "/snapshots/vm/",
        "/volumes/",
        reverse("snapshots:machines"),
        reverse("snapshots:snapshot", args=[taken.pk]),
        reverse("snapshots:volume", args=[volume.pk]),
        reverse("snapshots:machine", args=[volume.vm_id]),
        "/snapshots/new/",
        *(wizard.url(draft, slug) for slug in wizard.slugs(draft)),
    ]
    compared = set()
    for path in paths:
        page.goto(path)
        different, ids = page.evaluate(COMPARE)
        assert different == [], path
        compared |= set(ids)
    assert compared >= {
        "snapshot-list",
        "volume-list",
        "machine-list",
        f"snapshot-{taken.pk}",
        "work",
        "running",
        "wizard",
    }
