"""Work in progress in the bell: the user's own, with progress, and hardly any cost without work."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, User
from tests.factories import NotificationFactory, OperationFactory, ProjectFactory, SnapshotFactory, UserFactory

pytestmark = pytest.mark.django_db

GIB = 1024**3


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer__postpaid=True)


@pytest.fixture
def user(project: Project) -> User:
    return UserFactory(member_of=project)


def taking(project: Project, name: str) -> None:
    OperationFactory(
        snapshot=SnapshotFactory(volume__project=project, name=name, creating=True),
        capture=True,
        running=True,
        bytes_done=5 * GIB,
        bytes_total=20 * GIB,
        started_at=timezone.now() - timedelta(minutes=1),
    )


def bell(html: str) -> str:
    return html[html.index('<details class="menu bell"') :].partition("</details>")[0]


def test_the_bell_of_every_page_shows_what_is_in_progress(
    project: Project, user: User, client_for: Callable[..., Client]
) -> None:
    taking(project, "nightly")
    taking(ProjectFactory(), "somebody else's")
    for path in ("/", "/billing/", "/help/", "/nowhere/"):
        bell_html = bell(client_for(user).get(path).text)
        assert "nightly" in bell_html and "5 GB of 20 GB · 25 %" in bell_html and " minutes left" in bell_html, path
        assert "somebody else" not in bell_html
        assert 'hx-trigger="every 4s, portal:seen from:document, portal:refresh"' in bell_html


def test_an_idle_bell_says_so_and_refreshes_only_when_opened(
    project: Project, user: User, client_for: Callable[..., Client]
) -> None:
    taking(ProjectFactory(), "somebody else's")
    client = client_for(user)
    bell_html = bell(client.get("/notices/").text)
    assert "Nothing in progress." in bell_html and 'hx-trigger="portal:refresh"' in bell_html
    taking(project, "mine")
    assert "mine" in bell(client.get("/notices/").text)


def test_a_poll_of_the_bell_is_one_small_response(
    project: Project, user: User, client_for: Callable[..., Client]
) -> None:
    client = client_for(user)
    client.get(reverse("snapshots:work"))
    for number in range(7):
        taking(project, f"nightly-{number}")
    answer = client.get(reverse("snapshots:work"), {"unread": "0"})
    assert answer.text.count("<li>") == 5
    assert "View all on the dashboard" in answer.text
    assert 'id="bell-count" hx-swap-oob="true"' in answer.text
    assert "announcer" not in answer.text


def test_a_failure_is_announced_on_the_current_page(user: User, client_for: Callable[..., Client]) -> None:
    NotificationFactory(user=user, title="The snapshot “<db>” could not be taken")
    answer = client_for(user).get(reverse("snapshots:work"), {"unread": "0"}).text
    assert '<div id="announcer" hx-swap-oob="innerHTML">The snapshot “&lt;db&gt;” could not be taken</div>' in answer
    assert "1 unread notification<" in answer
    assert "announcer" not in client_for(user).get(reverse("snapshots:work"), {"unread": "1"}).text
    assert "announcer" not in client_for(user).get(reverse("snapshots:work"), {"unread": "nonsense"}).text
