"""English is complete; Burmese is a preview of one flow, with its own words, dates, digits and amounts."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.utils import translation

from billing import services as billing
from billing.money import format_amount, format_price
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from cng_portal.languages import compile_catalogues, digits
from snapshots import wizard
from tests.factories import LocationFactory, MembershipFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, sell_everywhere

LATIN = re.compile(r"[A-Za-z][A-Za-z-]+")
# names of products and units, which Burmese writes like this too, and what a person has typed
UNTRANSLATED = set("Snapshot snapshot Volume volume VM CNG GB Block Storage Fixed Prorata Infra credit CRN".split())
UNTRANSLATED |= set("Checksum blake ID UTC CNG-YGN-AZ Default db-data Yangon".split())


def words(html: str) -> set[str]:
    """The Latin words that are to be read in the main part of a page."""
    main = html[html.index("<main") : html.index("</main>")]
    main = re.sub(
        r"<(script|svg|noscript)\b.*?</\1>|<span class=\"mono\">.*?</span>|<option.*?</option>",
        " ",
        main,
        flags=re.DOTALL,
    )
    return set(LATIN.findall(unescape(re.sub(r"<[^>]+>", " ", main))))


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
    member = MembershipFactory(project__name="Default", project__customer__name="1", user__name="1")
    member.user.customer = member.project.customer
    member.user.save()
    billing.buy_credits(customer=member.project.customer, amount_micro=10**11, reason="1", by=None, key="1")
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
    client = client_for(member.user)
    client.post("/language/", {"language": "my"})
    return client


@pytest.mark.django_db
def test_the_whole_flow_speaks_burmese(burmese: Client, member: Membership, volume: Volume) -> None:
    ready = SnapshotFactory(volume=volume, name="1", requested_by=member.user)
    draft = wizard.start(member.user, source=volume)
    draft.name = "2"
    draft.save()
    pages = ["/snapshots/", "/snapshots/new/", *(wizard.url(draft, slug) for slug in wizard.slugs(draft))]
    for path in [*pages, f"/snapshots/{ready.pk}/"]:
        html = burmese.get(path).content.decode()
        assert '<html lang="my" ' in html
        assert words(html) - UNTRANSLATED == set(), path
    review = burmese.get(pages[-1]).text.replace("\N{NO-BREAK SPACE}", " ")
    for text in ("Snapshot ပြုလုပ်ပါ", "K ၂၀", "၅၀ GB × K ၀.၄၀၀၀ = တစ်နာရီ K ၂၀.၀၀", "K ၁၄,၆၄၀.၀၀"):
        assert text in review


@pytest.mark.django_db
def test_an_error_of_the_flow_is_said_in_burmese(burmese: Client, volume: Volume) -> None:
    html = burmese.post("/snapshots/new/", {}).content.decode()
    assert "တည်နေရာတစ်ခု ရွေးပါ။" in html
    assert words(html) - UNTRANSLATED == set()


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
