"""English is complete; Burmese is a preview of one flow, with its own words, dates, digits and amounts."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from django.utils import translation

from billing import services as billing
from billing.money import format_amount, format_price
from cng_portal.accounts.models import Membership, User
from cng_portal.inventory.models import Volume
from cng_portal.languages import compile_catalogues, digits
from snapshots.models import Snapshot
from tests.factories import CustomerFactory, LocationFactory, MembershipFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import carry_out_what_waits, content, put_volume, sell_everywhere

LATIN = re.compile(r"[A-Za-z][A-Za-z0-9-]+|[A-Za-z]")
DIGIT = re.compile(r"\S*[0-9]\S*")
# Names of products, packages, units and formats, which Burmese writes like this too.
UNTRANSLATED = set(
    "1CNG CNG Snapshot snapshot VM Backup backup Volume volume Block Storage block storage Infra credit Infra Credit".split()
    + "Fixed Prorata CRN GB MB KB B K UTC ID Checksum checksum blake3 blake IP e-mail E-mail Ctrl Esc Enter CSV".split()
)
# What people have typed, or the provider has named; also where it stands in a sentence.
NAMES = [
    "1CNG-YGN-AZ01",
    "Default",
    "db-data",
    "Aye Aye Mon",
    "aye@example.com",
    "Shwe Trading",
    "nightly",
    "before the update",
]
NAMES += ["Yangon", "nightly-2", "CRN #001039", "#001039"]
SAID_BY_ATTRIBUTES = re.compile(r' (?:aria-label|title|placeholder|alt|data-label|data-title)="([^"]*)"')


def readable(html: str) -> str:
    """What is read or read out on a page: title, texts and labels of the frame and of the main part, but no names, ids and
    copyable values.
    """
    body = html[html.index("<title>") :]
    body = re.sub(r"<(script|style|noscript|svg)\b.*?</\1>|<head.*?</head>", " ", body, flags=re.DOTALL)
    body = re.sub(
        r'<span class="(?:mono|person-badge)".*?</span>|<option.*?</option>|<kbd>.*?</kbd>', " ", body, flags=re.DOTALL
    )
    said = " ".join([re.sub(r"<[^>]+>", " ", body), *SAID_BY_ATTRIBUTES.findall(body)])
    said = unescape(said)
    for name in sorted(NAMES, key=len, reverse=True):
        said = said.replace(name, " ")
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", " ", said)


def words(html: str) -> set[str]:
    """The Latin words and digits that are to be read on a page."""
    said = readable(html)
    return {word for word in LATIN.findall(said) if word not in UNTRANSLATED} | {
        word for word in DIGIT.findall(said) if "1CNG" not in word and "blake3" not in word
    }


def test_the_catalogue_is_compiled_into_the_data_folder_and_only_when_it_is_older() -> None:
    compiled = settings.DATA_DIR / "locale" / "my" / "LC_MESSAGES" / "django.mo"
    compiled.unlink(missing_ok=True)
    compile_catalogues()
    first = compiled.stat()
    compile_catalogues()
    assert compiled.stat().st_ino == first.st_ino
    assert [path.name for path in compiled.parent.iterdir()] == ["django.mo"]


def test_amounts_and_digits_are_those_of_the_language() -> None:
    assert digits("99,455.79") == "99,455.79"
    with translation.override("my"):
        assert format_amount(99_455_790_000) == "K ၉၉,၄၅၅.၇၉"
        assert format_price(20_000_000) == "K ၂၀"


@pytest.fixture
def member() -> Membership:
    customer = CustomerFactory(name="Shwe Trading", number=1039, snapshot_quota=10, snapshot_gb_quota=500)
    member = MembershipFactory(
        project__name="Default",
        project__customer=customer,
        user__name="Aye Aye Mon",
        user__email="aye@example.com",
        user__customer=customer,
    )
    billing.buy_credits(customer=customer, amount_micro=10**11, reason="bought", by=None, key="1")
    return member


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(
        project=member.project, location=LocationFactory(code="1CNG-YGN-AZ01"), name="db-data", size_gb=50
    )
    put_volume(storage_root, volume, content(b"bytes"))
    sell_everywhere()
    return volume


@pytest.fixture
def burmese(member: Membership, client_for: Callable[..., Client]) -> Client:
    User.objects.update(language="my")
    return client_for(member.user)


@pytest.mark.django_db
def test_the_whole_flow_speaks_burmese(burmese: Client, member: Membership, volume: Volume) -> None:
    """From the empty list through the wizard, with its errors, to the page of what was taken and all that can be done."""
    foreign: dict[str, set[str]] = {}

    def read(what: str, response: Any) -> str:
        html: str = response.text.replace("\N{NO-BREAK SPACE}", " ")
        assert response.status_code == 200, what
        assert '<html lang="my"' in html, what
        if found := words(html):
            foreign[what] = found
        return html

    read("the empty list", burmese.get("/snapshots/"))
    SnapshotFactory(volume=volume, name="nightly", requested_by=member.user)
    read("the first step", burmese.get("/snapshots/new/"))
    said = read("the first step, not answered", burmese.post("/snapshots/new/", {}))
    assert "တည်နေရာတစ်ခု ရွေးပါ။" in said
    at = burmese.post("/snapshots/new/", {"location": volume.location_id})["Location"]
    for answer in ({"project": str(member.project_id)}, {"volume": str(volume.pk)}, {"name": "before the update"}):
        step = at.rstrip("/").rpartition("/")[2]
        read(step, burmese.get(at))
        read(f"{step}, not answered", burmese.post(at, {}))
        if "name" in answer:
            read("a name that is taken", burmese.post(at, {"name": "nightly"}))
            read("a name that is too long", burmese.post(at, {"name": "n" * 65}))
        at = burmese.post(at, answer)["Location"]
    review = read("review", burmese.get(at))
    for text in ("Snapshot ပြုလုပ်ပါ", "K ၂၀", "၅၀ GB × K ၀.၄၀၀၀ = တစ်နာရီ K ၂၀.၀၀", "K ၁၄,၆၄၀.၀၀"):
        assert text in review
    shown = re.search(r'name="shown_hourly_micro" value="(\d+)"', review)
    assert shown
    page = burmese.post(at, {"billing_cycle": "hourly", "shown_hourly_micro": shown[1]})["Location"]
    read("the page of what is being taken", burmese.get(page))
    for view in ("table", "cards"):
        read(f"the list as {view}, while it is taken", burmese.get(f"/snapshots/?view={view}"))
    carry_out_what_waits()
    read("the page of what is ready", burmese.get(page))
    for view in ("table", "cards"):
        read(f"the list as {view}", burmese.get(f"/snapshots/?view={view}"))
    read("the list, nothing matches", burmese.get("/snapshots/?q=၁၂၃"))
    ours = Snapshot.objects.get(name="before the update")
    for act, wrong in (("rename", {"name": ""}), ("delete", {"confirmation": "another"}), ("verify", None)):
        address = reverse(f"snapshots:{act}", args=[ours.pk])
        read(act, burmese.get(address))
        if wrong:
            read(f"{act}, not answered", burmese.post(address, wrong))
    read("renamed", burmese.post(reverse("snapshots:rename", args=[ours.pk]), {"name": "nightly"}))
    assert foreign == {}


@pytest.mark.django_db
def test_nobody_gets_a_preview_without_choosing_it(member: Membership, client_for: Callable[..., Client]) -> None:
    client = client_for(member.user)
    page = client.get("/snapshots/", headers={"Accept-Language": "my"})
    assert '<html lang="en" ' in page.content.decode()
    assert page["Content-Language"] == "en"
    assert "as a preview" in client.get("/help/").content.decode()


@pytest.mark.django_db
def test_the_choice_leads_back_and_nowhere_else(member: Membership, client_for: Callable[..., Client]) -> None:
    client = client_for(member.user)
    assert client.post("/language/", {"language": "my", "next": "/help/"})["Location"] == "/help/"
    away = client.post("/language/", {"language": "xx", "next": "https://example.com/"})
    assert away["Location"] == "/"
    for no_address in "25:61", "dashboard":  # names of an address are none
        assert client.post("/language/", {"language": "my", "next": no_address})["Location"] == no_address
    assert client.cookies[settings.LANGUAGE_COOKIE_NAME].value == "my"
