"""The page of components: for staff only, complete and accessible."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import Page, expect

from tests.browser.looking import look_at
from tests.factories import ProjectFactory, UserFactory

PATH = "/components/"
TEMPLATES = settings.BASE_DIR / "templates"


@pytest.mark.django_db
def test_only_staff_see_the_components(client_for: Callable[..., Client]) -> None:
    assert client_for(UserFactory(is_staff=True)).get(PATH).status_code == 200
    assert client_for(UserFactory(member_of=ProjectFactory())).get(PATH).status_code == 404
    assert Client().get(PATH).status_code == 302


def test_every_component_is_on_the_page() -> None:
    page = "".join(
        (TEMPLATES / name).read_text() for name in ("components.html", "base.html", "partials/frame/keys_window.html")
    )
    included = set(re.findall(r"partials/([a-z_]+)\.html", page)) | {
        "messages",
        "poll",
        "left_out",
    }  # the first is in the base template, the second is invisible, and the third is a notice
    assert {path.stem for path in (TEMPLATES / "partials").glob("*.html")} <= included
    assert {"list_toolbar", "retry", "operations", "card", "table"} <= included
    assert all(name in page for name in ("card-form", "list-even", "toolbar-fields"))


@pytest.mark.django_db(transaction=True)
def test_every_component_is_accessible_and_fits(page: Page, sign_in: Callable[..., Any]) -> None:
    sign_in(UserFactory(is_staff=True))
    look_at(page, [PATH])
    page.get_by_role("button", name="Delete snapshot").click()
    expect(page.get_by_role("heading", level=1, name="Components")).to_be_visible()
