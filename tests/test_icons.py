"""The icons: one sprite with exactly those that the pages use."""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import Client, override_settings
from PIL import Image

from cng_portal.common.icons import NAMES, SYMBOLS
from cng_portal.common.templatetags import portal
from tests.factories import ProjectFactory, UserFactory

if TYPE_CHECKING:
    from playwright.sync_api import Page

SVG = "{http://www.w3.org/2000/svg}"
APPS = ("billing", "cng_portal", "snapshots")
TEMPLATES = {path: path.read_text() for path in (settings.BASE_DIR / "templates").rglob("*.html")}
MODULES = [path for app in APPS for path in (settings.BASE_DIR / app).rglob("*.py") if path.name != "icons.py"]


def test_every_icon_that_a_template_names_is_in_the_sprite() -> None:
    tag = re.compile(r'\{% icon "([^"]+)" \d+(?: "(\w+)")?')
    used = {(style or "outline", name) for text in TEMPLATES.values() for name, style in tag.findall(text)}
    assert used - set(SYMBOLS) == set()


@pytest.mark.parametrize("name", sorted({name for names in NAMES.values() for name in names}))
def test_no_icon_is_in_the_sprite_that_nothing_uses(name: str) -> None:
    sources = [*TEMPLATES.values(), *(path.read_text() for path in MODULES)]
    assert any(f'"{name}"' in source for source in sources)


def test_an_icon_that_is_not_in_the_sprite_is_refused() -> None:
    with pytest.raises(KeyError):
        portal.draw_icon("academic-cap")


def test_the_sprite_has_a_drawing_for_each_symbol() -> None:
    sprite = ElementTree.parse(str(finders.find("icons.svg"))).getroot()
    symbols = {symbol.get("id"): symbol for symbol in sprite.findall(f"{SVG}symbol")}
    assert set(symbols) == set(SYMBOLS.values())
    assert all(symbol.get("viewBox") and len(symbol) for symbol in symbols.values())


@pytest.mark.slow  # compresses every static file
def test_the_collected_sprite_has_a_hash_in_its_name_and_pages_refer_to_it(tmp_path: Path) -> None:
    storages = settings.STORAGES | {
        "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"}
    }
    with override_settings(STATIC_ROOT=tmp_path, STORAGES=storages):
        call_command("collectstatic", interactive=False, verbosity=0)
        (collected,) = tmp_path.glob("icons.*.svg")
        assert re.fullmatch(r"icons\.[0-9a-f]{12}\.svg", collected.name)
        assert f'<use href="/static/{collected.name}#camera"/>' in portal.draw_icon.__wrapped__("camera")


@pytest.mark.django_db
def test_no_page_carries_the_paths_of_its_icons(client_for: Callable[..., Client]) -> None:
    page = client_for(UserFactory(member_of=ProjectFactory())).get("/snapshots/").text
    paths = set(re.findall(r' d="([^"]+)"', page))
    sprite = Path(str(finders.find("icons.svg"))).read_text()
    assert "icons.svg#camera" in page
    assert {path for path in paths if path in sprite} == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_icons_are_drawn_in_both_themes(
    page: "Page", sign_in: Callable[..., None], scheme: Literal["light", "dark"], db: None
) -> None:
    sign_in(UserFactory(member_of=ProjectFactory()))
    page.emulate_media(color_scheme=scheme)
    page.goto("/snapshots/")
    page.wait_for_load_state("networkidle")
    for icon in (".topbar .icon", ".side-item .icon", "main .icon"):
        picture = Image.open(BytesIO(page.locator(icon).locator("visible=true").first.screenshot()))
        assert len(picture.convert("L").getcolors() or []) > 2, icon
