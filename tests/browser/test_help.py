"""The guide in the portal: its pages, figures and links."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from playwright.sync_api import Page, expect

from snapshots.views.help import GUIDES, example
from tests.browser.looking import look_at
from tests.factories import ProjectFactory, UserFactory

PAGES = [f"/help/{guide.slug}/" for guide in GUIDES]


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/help/", *PAGES])
def test_every_page_opens_for_a_signed_in_user(client_for: Callable[..., Client], path: str) -> None:
    assert client_for(UserFactory(member_of=ProjectFactory())).get(path).status_code == 200
    assert Client().get(path).status_code == 302


@pytest.mark.django_db
def test_an_unknown_help_page_is_a_404(client_for: Callable[..., Client]) -> None:
    assert client_for(UserFactory(member_of=ProjectFactory())).get("/help/nothing/").status_code == 404


def test_the_worked_example_matches_the_platforms_guide() -> None:
    figures = example()
    assert (figures["hourly"], figures["hours"], figures["amount"]) == ("K 20.00", "3", "K 60.00")
    assert figures["line"] == "3 hours × 50 GB × K 0.4000 = K 60.00"
    assert figures["month"] == "K 14,640.00"


@pytest.mark.django_db
def test_an_empty_list_leads_to_the_guide(client_for: Callable[..., Client]) -> None:
    client = client_for(UserFactory(member_of=ProjectFactory()))
    assert 'href="/help/create-volume-snapshot/"' in client.get("/snapshots/").content.decode()
    assert 'href="/help/create-vm-snapshot/"' in client.get("/snapshots/vm/").content.decode()


@pytest.mark.django_db(transaction=True)
def test_every_page_is_accessible_fits_and_shows_its_pictures(page: Page, sign_in: Callable[..., Any]) -> None:
    sign_in(UserFactory(member_of=ProjectFactory()))
    look_at(page, ["/help/", *PAGES])
    page.set_viewport_size({"width": 1280, "height": 900})  # where the menu is not folded
    page.goto("/")
    page.get_by_role("navigation", name="Main menu").get_by_role("link", name="Help").click()
    page.get_by_role("link", name="Create a volume snapshot").click()
    for image in page.locator("main img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0
