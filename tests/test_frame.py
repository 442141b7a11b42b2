"""The frame, the components and the style sheet of every page."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import brotli
import pytest
from axe_playwright_python.sync_playwright import Axe
from django import forms
from django.conf import settings
from django.contrib.staticfiles import finders
from django.template import Context, Template
from django.template.loader import render_to_string
from django.test import Client
from django.utils import timezone, translation

from cng_portal.common.templatetags import portal
from cng_portal.inventory.models import Location
from tests.factories import ProjectFactory, UserFactory

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

    from cng_portal.accounts.models import User

TEMPLATES = settings.BASE_DIR / "templates"
GIB = 1024**3
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def component(name: str, /, **inputs: Any) -> str:
    return render_to_string(f"partials/{name}.html", inputs)


class SnapshotForm(forms.Form):
    name = forms.CharField(help_text="Up to 64 characters.")
    cycle = forms.ChoiceField(choices=[("hourly", "Hourly")], widget=forms.RadioSelect)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 KB"),
        (312 * 1024**2, "312 MB"),
        (50 * GIB, "50 GB"),
        (int(1.24 * GIB), "1.24 GB"),
        (int(12.46 * GIB), "12.5 GB"),
        (2048 * GIB, "2 TB"),
        (1500 * 1024 * GIB, "1500 TB"),
    ],
)
def test_bytes_are_formatted_in_binary_units(count: int | None, text: str) -> None:
    assert portal.format_bytes(count) == text


def test_a_calculation_wraps_only_before_an_operator() -> None:
    assert portal.unbroken("3 hours × 50 GB = K 60.00") == "3_hours ×_50_GB =_K_60.00".replace(
        "_", "\N{NO-BREAK SPACE}"
    )


@pytest.mark.parametrize(
    ("done", "total", "percent"), [(0, 0, 0), (999, 1000, 99), (1000, 1000, 100), (1200, 1000, 100)]
)
def test_only_finished_work_is_a_hundred_percent(done: int, total: int, percent: int) -> None:
    assert portal.percent(done, total) == percent


def test_a_time_is_relative_and_its_exact_instant_is_in_the_active_zone() -> None:
    instant = datetime(2026, 11, 22, 14, 19, 3, tzinfo=UTC)
    with timezone.override(ZoneInfo("Asia/Yangon")):
        assert portal.exact(instant) == "22 Nov 2026, 20:49:03 UTC+06:30"
    assert portal.relative(timezone.now() - timedelta(seconds=3)) == "just now"
    assert portal.relative(timezone.now() - timedelta(minutes=3)) == "3 minutes ago"
    assert portal.relative(timezone.now() + timedelta(hours=2)) == "in 2 hours"
    with translation.override("my"):
        assert "minutes" not in portal.relative(timezone.now() - timedelta(minutes=3))


@pytest.mark.parametrize(("who", "letters"), [("Aye Aye Mon", "AM"), ("zaw@example.com", "Z"), ("Hla", "H"), ("", "")])
def test_a_person_has_initials(who: str, letters: str) -> None:
    assert portal.initials(who) == letters


def test_a_flag_is_a_drawing_if_there_is_one_and_otherwise_an_emoji() -> None:
    assert 'src="/static/flags/mm.svg"' in portal.flag("MM", "🇲🇲")
    assert "🇯🇵" in portal.flag("JP", "🇯🇵")
    drawings = (settings.BASE_DIR / "static" / "flags").glob("*.svg")
    assert {path.stem.upper() for path in drawings} == portal.DRAWN_FLAGS


@pytest.mark.parametrize("colour", ["success", "info", "warning", "danger", "neutral"])
def test_a_state_has_an_icon_a_word_and_a_colour(colour: str) -> None:
    html = portal.badge("Ready", colour)
    assert "<svg" in html
    assert ">Ready<" in html
    assert f"badge-{colour}" in html


def test_an_error_stands_beside_its_field_and_is_tied_to_it() -> None:
    form = SnapshotForm({"name": ""})
    html = component("field", field=form["name"])
    assert 'aria-invalid="true"' in html
    assert 'aria-describedby="id_name_helptext id_name_error"' in html
    assert 'id="id_name_helptext"' in html
    assert 'id="id_name_error"' in html


def test_radio_buttons_are_a_group_with_a_legend_and_its_error() -> None:
    html = component("field", field=SnapshotForm({})["cycle"])
    assert '<fieldset class="field has-error" id="id_cycle" aria-describedby="id_cycle_error">' in html
    assert "<legend" in html


def test_the_summary_links_each_error_to_its_field() -> None:
    form = SnapshotForm({})
    form.add_error(None, "The wallet is empty.")
    html = component("error_summary", form=form)
    assert html.index("The wallet is empty.") < html.index('<a href="#id_name">')
    assert '<a href="#id_cycle">' in html
    assert component("error_summary", form=SnapshotForm()).strip() == ""


def test_a_disabled_choice_says_why() -> None:
    html = component("choice_card", name="location", value="X", title="X", disabled=True, reason="Not sold here.")
    assert re.search(r'<input[^>]* disabled aria-describedby="choice-location-X-reason">', html)
    assert 'id="choice-location-X-reason">Not sold here.' in html


def test_steps_that_are_done_are_links_and_the_current_one_is_marked() -> None:
    steps = [
        {"label": "Location", "state": "done", "url": "/1/", "answer": "1CNG-YGN-AZ01"},
        {"label": "Project", "state": "current", "url": "/2/"},
        {"label": "Name", "state": "upcoming", "url": "/3/"},
    ]
    html = component("step_list", steps=steps)
    assert re.findall(r'<a [^>]*href="([^"]+)"', html) == ["/1/"]
    assert html.count('aria-current="step"') == 1


def test_unknown_progress_shows_no_number() -> None:
    assert "value=" not in component("progress", label="Copying", done=0, total=0)
    html = component("progress", label="Copying", done=GIB, total=4 * GIB)
    assert 'value="25"' in html
    assert "1 GB of 4 GB · 25 %" in html


def test_only_facts_with_copy_text_have_a_copy_button() -> None:
    html = component(
        "facts", facts=[{"label": "Project", "value": "Default"}, {"label": "ID", "value": "7", "copy_text": "7"}]
    )
    assert re.findall(r'data-copy="([^"]*)"', html) == ["7"]


@pytest.mark.parametrize(
    ("inputs", "text"), [({"gb": 1024}, "1,024 GB"), ({"bytes": 312 * 1024**2}, "312 MB"), ({"bytes": None}, "–")]
)
def test_a_size_is_known_or_a_dash(inputs: dict[str, int | None], text: str) -> None:
    assert f'<span class="size">{text}</span>' in portal.size(**inputs)


def test_a_location_shows_flag_code_and_country() -> None:
    html = portal.location(Location(code="1CNG-YGN-AZ01", city="Yangon", country="MM"))
    assert "flags/mm.svg" in html
    assert "1CNG-YGN-AZ01" in html
    assert "Myanmar (Burma)" in html


def test_user_input_is_escaped_in_every_component() -> None:
    bad = "<b>&\"'"
    html = (
        portal.badge(bad, bad)
        + component("facts", facts=[{"label": bad, "value": bad, "copy_text": bad, "url": bad}])
        + component("choice_card", name=bad, value=bad, title=bad, text=bad, reason=bad)
        + component("empty_state", title=bad, text=bad, illustration="snapshot")
        + component("row_menu", label=bad, url=bad)
        + component("menu_items", actions=[{"label": bad, "url": bad, "icon": "trash"}])
        + component("step_list", steps=[{"label": bad, "answer": bad, "state": "done", "url": bad}])
        + component("tabs", label=bad, tabs=[{"label": bad, "url": bad, "count": bad}])
        + component("notice", title=bad, text=bad, action_url=bad, action_label=bad)
    )
    assert "<b>" not in html


@pytest.mark.parametrize(
    "path", sorted((TEMPLATES / "partials" / "illustrations").iterdir()), ids=lambda path: path.stem
)
def test_illustrations_are_decorative_and_take_their_colours_from_the_theme(path: Path) -> None:
    drawing = path.read_text()
    assert 'aria-hidden="true"' in drawing
    assert "#" not in drawing


@pytest.mark.parametrize("path", sorted(TEMPLATES.rglob("*.html")), ids=lambda path: str(path.relative_to(TEMPLATES)))
def test_nothing_in_a_template_breaks_the_content_security_policy(path: Path) -> None:
    source = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style\b|\sstyle=|\son[a-z]+=\"|hx-on|javascript:", source)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", source)


def colours(theme: int) -> dict[str, str]:
    """Return {token: hex} for the light (0) and the dark (1) theme. A colour that both share is declared once."""
    source = (settings.BASE_DIR / "static" / "tokens.css").read_text()
    both = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", source))
    pairs = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", source)
    return both | {name: values[theme] for name, *values in pairs}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


GROUNDS = ("ground", "surface", "raised", "sunken", "hover")
STATES = ("success", "info", "warning", "danger", "neutral")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_and_control_has_enough_contrast(theme: int) -> None:
    colour = colours(theme)
    texts = [(ink, ground) for ink in ("ink", "ink-soft", "brand-ink", "danger") for ground in GROUNDS]
    texts += [(ink, "brand-tint") for ink in ("ink", "ink-soft", "brand-ink")]
    texts += [(state, f"{state}-tint") for state in STATES] + [("ink", f"{state}-tint") for state in STATES]
    texts += [(ink, ground) for ink in ("side-ink", "side-soft") for ground in ("side", "side-deep", "side-hover")]
    too_weak = {pair for pair in texts if contrast(colour[pair[0]], colour[pair[1]]) < 4.5}
    solids = ("brand", "brand-hover", "danger-solid", "danger-solid-hover", "side-active")
    too_weak |= {("white", name) for name in solids if contrast("#ffffff", colour[name]) < 4.5}
    edges = [(edge, ground) for edge in ("line-strong", "focus") for ground in GROUNDS]
    too_weak |= {pair for pair in edges if contrast(colour[pair[0]], colour[pair[1]]) < 3}
    assert too_weak == set()


@pytest.mark.django_db
def test_the_first_page_sends_at_most_120_kb_and_nothing_from_elsewhere() -> None:
    page = Client().get("/accounts/login/")
    links = set(re.findall(r'(?:src|href)="(/static/[^"#]+)', page.content.decode()))
    assert {Path(link).name for link in links} >= {
        "bootstrap.min.css",
        "tokens.css",
        "portal.css",
        "portal.js",
        "theme.js",
    }
    files = [Path(str(finders.find(link.removeprefix("/static/")))).read_bytes() for link in links]
    assert sum(len(brotli.compress(body)) for body in [page.content, *files]) <= 120_000
    assert "default-src 'self'" in page["Content-Security-Policy"]


@pytest.fixture
def user(db: None) -> "User":
    return UserFactory(name="Aye Aye Mon", member_of=ProjectFactory(customer__number=1039))


def test_the_frame_shows_who_is_signed_in_and_where_they_are(user: "User", client_for: Callable[..., Client]) -> None:
    html = client_for(user).get("/").content.decode()
    assert "Aye Aye Mon" in html
    assert "CRN #001039" in html
    assert html.count("<h1") == 1
    assert re.search(r'<a class="side-item" href="/" aria-current="page">', html)
    assert '<a class="skip-link" href="#main">' in html
    assert "/admin/" not in html
    assert "/admin/" in client_for(UserFactory(is_staff=True)).get("/").content.decode()


def test_a_404_page_has_the_frame(user: "User", client_for: Callable[..., Client]) -> None:
    response = client_for(user).get("/nowhere/")
    assert response.status_code == 404
    assert "Page not found" in response.content.decode()
    assert 'id="menu"' in response.content.decode()


@pytest.mark.parametrize("name", ["400", "403_csrf", "500"])
def test_the_error_pages_of_a_broken_server_load_nothing_from_it(name: str) -> None:
    html = render_to_string(f"{name}.html")
    assert "<h1" in html
    assert 'href="/"' in html


def test_a_title_names_the_page_and_an_error_in_it(db: None) -> None:
    assert "<title>Sign in · 1CNG</title>" in Client().get("/accounts/login/").content.decode()
    assert "<title>Error: Sign in · 1CNG</title>" in Client().post("/accounts/login/", {}).content.decode()


def test_a_message_is_an_alert_only_when_something_went_wrong() -> None:
    from django.contrib.messages import constants
    from django.contrib.messages.storage.base import Message

    html = component("messages", messages=[Message(constants.SUCCESS, "Taken."), Message(constants.ERROR, "No room.")])
    assert re.search(r'notice-success" role="status".*Taken\..*notice-danger" role="alert".*No room\.', html, re.DOTALL)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/accounts/login/", "/accounts/password/reset/", "/accounts/password/reset/done/"])
def test_axe_finds_nothing_on_the_pages_of_a_signed_out_person(page: "Page", path: str, scheme: str, db: None) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(path)
    if page.locator("button[type=submit]").count():
        page.get_by_role("button").first.click()
        assert page.get_by_role("alert").evaluate("box => box === document.activeElement")
    assert Axe().run(page, options={"runOnly": WCAG}).response["violations"] == []


def test_the_theme_follows_the_system_until_the_person_chooses(
    page: "Page", user: "User", sign_in: Callable[..., None]
) -> None:
    sign_in(user)
    page.emulate_media(color_scheme="dark")
    page.goto("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    with page.expect_response("**/profile/theme/"):
        page.get_by_role("button", name="Dark theme", pressed=True).click()
    assert page.evaluate(ground) != dark
    page.reload()
    assert page.locator("html").get_attribute("data-bs-theme") == "light"
    assert page.evaluate(ground) != dark


def test_without_javascript_the_theme_follows_the_system_and_the_menus_open(
    browser: "Browser", base_url: str, user: "User", client_for: Callable[..., Client]
) -> None:
    cookie = client_for(user).cookies[settings.SESSION_COOKIE_NAME]
    colors = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(
            java_script_enabled=False, color_scheme=scheme, viewport={"width": 360, "height": 700}, base_url=base_url
        )
        context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": base_url}])
        page = context.new_page()
        page.goto("/")
        colors[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Open the menu").click()
        assert page.get_by_role("link", name="Volumes", exact=True).first.is_visible()
        page.keyboard.press("Escape")
        page.locator(".person > summary").click()
        assert page.get_by_role("button", name="Sign out").is_visible()
        assert not page.get_by_role("button", name="Dark theme").is_visible()
        if scheme == "dark":
            page.get_by_role("button", name="Sign out").click()
            page.goto("/")
            assert page.get_by_role("heading", name="Sign in").is_visible()
        context.close()
    assert colors["light"] != colors["dark"]


@pytest.mark.parametrize("width", [320, 360, 768, 1440])
def test_no_page_of_the_frame_is_wider_than_the_window(
    page: "Page", user: "User", sign_in: Callable[..., None], width: int
) -> None:
    sign_in(user)
    page.set_viewport_size({"width": width, "height": 800})
    for path in (
        "/",
        "/instances/",
        "/backups/",
        "/backups/schedules/",
        "/snapshots/",
        "/volumes/",
        "/accounts/password/change/",
        "/nowhere/",
    ):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path


def test_the_second_click_on_a_button_does_nothing(page: "Page", db: None) -> None:
    posts = []
    page.goto("/accounts/login/")

    def answer_nothing(route: "Route") -> None:
        posts.append(route.request.method)
        route.fulfill(status=204)  # the browser stays on the page

    page.route("**/accounts/login/", answer_nothing)
    with page.expect_response("**/accounts/login/"):
        button = page.get_by_role("button", name="Sign in", exact=True)
        button.evaluate("button => { button.click(); button.click(); button.click() }")
    assert posts == ["POST"]
    assert page.locator("form").filter(has=page.locator("[name=login]")).get_attribute("aria-busy") == "true"


def test_a_failed_request_is_announced_until_the_portal_answers(
    page: "Page", user: "User", sign_in: Callable[..., None]
) -> None:
    sign_in(user)
    page.goto("/")
    page.route("**/somewhere/", lambda route: route.abort())
    page.evaluate("htmx.ajax('GET', '/somewhere/', {target: '#main', swap: 'innerHTML'}).catch(() => {})")
    announcer = page.locator("#announcer")
    announcer.get_by_text("can't be reached").wait_for()
    page.unroute("**/somewhere/")
    page.route(
        "**/somewhere/",
        lambda route: route.fulfill(body='<div data-title="Found · 1CNG"><h1 data-focus>Found</h1></div>'),
    )
    page.evaluate("htmx.ajax('GET', '/somewhere/', {target: '#main', swap: 'innerHTML'})")
    page.get_by_role("heading", name="Found").wait_for()
    page.wait_for_function("document.getElementById('announcer').textContent === ''")
    assert page.get_by_role("heading", name="Found").evaluate("heading => heading === document.activeElement")
    assert page.title() == "Found · 1CNG"


def test_polling_does_not_take_the_focus_away(page: "Page", user: "User", sign_in: Callable[..., None]) -> None:
    sign_in(user)
    page.goto("/")
    page.route("**/poll/", lambda route: route.fulfill(body='<div id="live" data-quiet><h2 data-focus>News</h2></div>'))
    page.evaluate(
        """() => {
            const live = document.createElement("div");
            live.innerHTML = '<div id="live" data-quiet hx-get="/poll/" hx-trigger="now" hx-swap="outerHTML">Old</div>';
            document.getElementById("main").append(live);
            htmx.process(live);
            document.querySelector(".skip-link").focus();
            htmx.trigger("#live", "now");
        }"""
    )
    page.get_by_role("heading", name="News").wait_for()
    assert page.locator(".skip-link").evaluate("link => link === document.activeElement")


def test_slash_focuses_the_search_and_a_summary_link_its_field(page: "Page", db: None) -> None:
    page.goto("/accounts/login/")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.locator(".error-summary a").first.click()
    assert page.locator("[name=login]").evaluate("field => field === document.activeElement")
    page.evaluate(
        "html => document.getElementById('main').insertAdjacentHTML('beforeend', html)",
        Template('{% include "partials/search_box.html" with label="Search" %}').render(Context()),
    )
    page.locator("h1").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.get_by_role("searchbox", name="Search").evaluate("field => field === document.activeElement")
