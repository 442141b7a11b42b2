"""The user's theme applies at once, and overrides an older one stored in the browser."""

from collections.abc import Callable
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from cng_portal.accounts.models import User
from tests.factories import ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db(transaction=True)

# The background of the page at every frame, from the first one that has any.
WATCH = """
    window.grounds = new Set();
    const look = () => {
        if (document.body) window.grounds.add(getComputedStyle(document.body).backgroundColor);
        requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
"""
GROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "light", "dark"


@pytest.fixture
def user(sign_in: Callable[..., Any]) -> User:
    user = UserFactory(member_of=ProjectFactory())
    sign_in(user)
    return user


@pytest.mark.parametrize(
    ("chosen", "system", "earlier", "theme"),
    [("", DARK, LIGHT, DARK), ("", LIGHT, DARK, LIGHT), (LIGHT, DARK, DARK, LIGHT), (DARK, LIGHT, LIGHT, DARK)],
)
def test_the_users_theme_applies_from_the_first_frame(
    page: Page, user: User, chosen: str, system: str, earlier: str, theme: str
) -> None:
    page.goto(reverse("help:index"))
    page.evaluate("theme => localStorage.setItem('theme', theme)", earlier)
    User.objects.update(theme=chosen)
    page.emulate_media(color_scheme=system)
    page.add_init_script(WATCH)
    page.goto("/")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("[...window.grounds]") == [page.evaluate(GROUND)]
    assert page.locator("html").get_attribute("data-bs-theme") == theme
    # and so are the pages before sign-in in this browser
    assert page.evaluate("localStorage.getItem('theme')") == (chosen or None)


def test_system_theme_reverts_the_switch(page: Page, user: User) -> None:
    page.emulate_media(color_scheme=LIGHT)
    page.goto(reverse("accounts:profile"))
    with page.expect_response("**/theme/"):
        page.get_by_role("button", name="Dark theme").click()
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-bs-theme", DARK)
    page.get_by_label("Same as the system").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Your profile was saved.")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-bs-theme", LIGHT)
    page.context.clear_cookies()
    page.goto("/accounts/login/")
    expect(page.locator("html")).to_have_attribute("data-bs-theme", LIGHT)


def test_a_choice_on_another_tab_is_followed(page: Page, user: User) -> None:
    page.emulate_media(color_scheme=LIGHT)
    page.goto("/")
    tab = page.context.new_page()
    tab.emulate_media(color_scheme=LIGHT)
    tab.goto("/notifications/")
    tab.get_by_role("button", name="Dark theme").click()
    expect(page.locator("html")).to_have_attribute("data-bs-theme", DARK)
