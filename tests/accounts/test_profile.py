"""The user's own pages: what they change, and that nobody else can see or change it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import TYPE_CHECKING

import pytest
from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import DateFormat, Role, User
from cng_portal.accounts.signin import confirmation, sessions
from cng_portal.activity.models import Activity
from tests.accounts.test_sign_in import PASSWORD, sign_in
from tests.factories import ProjectFactory, SnapshotFactory, UserFactory

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper
    from time_machine import TimeMachineFixture

pytestmark = pytest.mark.django_db

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Version/18.0 Mobile Safari/604.1"


@pytest.fixture
def user() -> User:
    return UserFactory(
        email="aye@example.com", password=PASSWORD, member_of=ProjectFactory(customer__time_zone="Asia/Yangon")
    )


def details(**answers: str) -> dict[str, str]:
    own = {"name": "Aye", "time_zone": "", "date_format": DateFormat.WORDS, "theme": ""}
    return own | answers


def test_times_and_dates_follow_the_users_preferences(user: User, client_for: Callable[..., Client]) -> None:
    client = client_for(user)
    SnapshotFactory(volume__project=user.projects.get(), created_at=datetime(2026, 3, 4, 20, tzinfo=UTC))
    assert "5 Mar 2026, 02:30:00 UTC+06:30" in client.get("/snapshots/").text
    client.post(reverse("accounts:profile"), details(time_zone="America/New_York", date_format=DateFormat.ISO))
    assert "2026-03-04, 15:00:00 UTC-05:00" in client.get("/snapshots/").text


def test_the_theme_is_in_the_page_and_is_stored(user: User, client_for: Callable[..., Client]) -> None:
    client = client_for(user)
    page = client.get("/").text
    assert "data-bs-theme" not in page
    assert '<html lang="en" data-theme="system">' in page
    assert client.post(reverse("accounts:choose_theme"), {"theme": "dark"}).status_code == 204
    assert '<html lang="en" data-bs-theme="dark" data-theme="dark">' in client_for(user).get("/").text
    assert client.post(reverse("accounts:choose_theme"), {"theme": "pink"}).status_code == 400


def test_invalid_input_is_explained_and_the_rest_of_the_form_stays(
    user: User, client_for: Callable[..., Client]
) -> None:
    client = client_for(user)
    response = client.post(reverse("accounts:profile"), details(name="Aye Aye", time_zone="Mars/Olympus"))
    assert response.context["form"].errors["time_zone"]
    assert 'value="Aye Aye"' in response.text
    user.refresh_from_db()
    assert (user.name, user.time_zone) == ("", "")


@pytest.mark.parametrize("name", ["Aye\nZaw", "\u202eeyA", "A\u2060ye", "\u200b", "\u3164", "\u200d", "Aye\u2066"])
def test_a_name_with_invisible_characters_is_refused(name: str, user: User, client_for: Callable[..., Client]) -> None:
    page = client_for(user).post(reverse("accounts:profile"), details(name=name))
    assert "This contains a character that can't be displayed" in unescape(page.text)
    user.refresh_from_db()
    assert user.name == ""
    assert (
        client_for(user).post(reverse("accounts:profile"), details(name="ကျော်\u200cဇော 👩\u200d💻")).status_code == 302
    )


def test_a_change_of_the_details_is_in_the_log(user: User, client_for: Callable[..., Client]) -> None:
    client_for(user).post(reverse("accounts:profile"), details(name="Aye Aye Mon"))
    entry = Activity.objects.get(action="user.change")
    assert (entry.before, entry.after) == ({"name": ""}, {"name": "Aye Aye Mon"})


@pytest.mark.parametrize(
    ("user_agent", "device"),
    [
        (FIREFOX, "Firefox on Linux"),
        (PHONE, "Safari on iPhone"),
        ("curl/8.5", "Unknown device"),
        ("", "Unknown device"),
    ],
)
def test_a_device_is_named_after_its_user_agent(user_agent: str, device: str) -> None:
    assert sessions.describe_device(user_agent) == device


def test_sessions_are_listed_and_ended_one_by_one_or_all_others(user: User) -> None:
    current, phone, laptop = (Client(headers={"User-Agent": agent}) for agent in (FIREFOX, PHONE, "Edg/1 Windows"))
    for client in (current, phone, laptop):
        sign_in(client, user.email)
    page = current.get(reverse("accounts:sessions")).text
    assert page.count("Firefox on Linux") == 1
    assert page.count("This one") == 1
    other = UserSession.objects.get(user_agent=PHONE)
    current.post(reverse("accounts:end_session", args=[other.pk]))
    assert phone.get("/").status_code == 302
    assert laptop.get("/").status_code == 200
    current.post(reverse("accounts:end_other_sessions"))
    assert laptop.get("/").status_code == 302
    assert current.get("/").status_code == 200
    assert Activity.objects.filter(action="user.end_session").count() == 2


def test_ending_another_session_needs_a_confirmation(user: User) -> None:
    current, other_browser = Client(), Client()
    for client in (current, other_browser):
        sign_in(client, user.email)
    session = current.session
    session[confirmation.CONFIRMED_AT] = time.time() - confirmation.VALID_SECONDS - 1
    session.save()
    other = UserSession.objects.get(session_key=other_browser.session.session_key)
    for url in (reverse("accounts:end_session", args=[other.pk]), reverse("accounts:end_other_sessions")):
        confirmation_url = current.post(url)["Location"]
        assert confirmation_url.startswith(reverse("account_reauthenticate"))
        assert other_browser.get("/").status_code == 200
    current.post(confirmation_url, {"password": PASSWORD, "next": url})
    assert other_browser.get("/").status_code == 302
    assert current.get("/").status_code == 200


def test_an_idle_session_ends_and_a_used_one_stays(
    user: User, time_machine: "TimeMachineFixture", settings: "SettingsWrapper"
) -> None:
    used, idle = (Client(headers={"User-Agent": agent}) for agent in (FIREFOX, PHONE))
    began = timezone.now()
    for client in (used, idle):
        sign_in(client, user.email)
    for hours in (6, 11, 13):
        time_machine.move_to(began + timedelta(hours=hours))
        assert used.get("/").status_code == 200
    page = used.get(reverse("accounts:sessions")).text
    assert "Sessions end after 12 hours of inactivity." in page
    assert "Firefox on Linux" in page and "iPhone" not in page
    response = idle.post(reverse("accounts:profile"), details(name="Not I"))
    assert response["Location"].startswith(reverse("account_login"))
    user.refresh_from_db()
    assert user.name != "Not I"
    assert not UserSession.objects.filter(user_agent=PHONE).exists()
    ended = Activity.objects.get(action="user.end_session")
    assert (ended.actor, ended.target_id) == (None, str(user.pk)) and "iPhone" in ended.before["device"]

    settings.SESSION_IDLE_HOURS = 0
    time_machine.move_to(began + timedelta(days=3))
    assert used.get("/").status_code == 200


def test_polling_does_not_keep_a_session_alive(user: User, time_machine: "TimeMachineFixture") -> None:
    client, began = Client(), timezone.now()
    sign_in(client, user.email)
    snapshot = SnapshotFactory(volume__project=user.memberships.get().project)
    row = reverse("snapshots:row", args=[snapshot.pk])
    for hours in (6, 11):
        time_machine.move_to(began + timedelta(hours=hours))
        for url in ("/?seen=1", reverse("snapshots:work"), row):
            assert client.get(url, headers={"HX-Request": "true"}).status_code == 200
    time_machine.move_to(began + timedelta(hours=13))
    assert client.get(row, headers={"HX-Request": "true"})["HX-Redirect"].startswith(reverse("account_login"))


def test_a_session_in_daily_use_ends_at_its_maximum_age(user: User, time_machine: "TimeMachineFixture") -> None:
    client, began = Client(headers={"User-Agent": FIREFOX}), timezone.now()
    sign_in(client, user.email)
    for hours in range(10, 336, 10):
        time_machine.move_to(began + timedelta(hours=hours))
        assert client.get("/").status_code == 200
    time_machine.move_to(began + timedelta(hours=337))
    assert client.get("/")["Location"].startswith(reverse("account_login"))
    assert not UserSession.objects.exists()


def test_device_and_address_of_an_ended_session_are_deleted(user: User) -> None:
    used, over = (Client(headers={"User-Agent": agent}) for agent in (FIREFOX, PHONE))
    for client in (used, over):
        sign_in(client, user.email)
    Session.objects.filter(session_key=over.session.session_key).update(expire_date=timezone.now())
    later = timezone.now() + timedelta(hours=2)
    assert sessions.delete_ended(now=later) == 1
    assert [session.user_agent for session in UserSession.objects.all()] == [FIREFOX]


def test_only_the_users_own_other_sessions_can_be_ended(user: User, client_for: Callable[..., Client]) -> None:
    client = Client(headers={"User-Agent": FIREFOX})
    sign_in(client, user.email)
    mine = UserSession.objects.get()
    assert client_for(UserFactory()).post(reverse("accounts:end_session", args=[mine.pk])).status_code == 404
    assert client.post(reverse("accounts:end_session", args=[mine.pk])).status_code == 404
    assert client.get("/").status_code == 200


def test_the_limits_count_existing_resources(user: User, client_for: Callable[..., Client]) -> None:
    project = user.projects.get()
    type(project.customer).objects.update(snapshot_quota=10)
    SnapshotFactory(volume__project=project, volume__size_gb=7)
    SnapshotFactory(volume__project=project, deleted=True)
    SnapshotFactory()
    page = client_for(user).get(reverse("snapshots:limits")).text
    assert "1 of 10" in page
    assert "7, unlimited" in page
    assert page.count('class="limit"') == 8


def test_a_person_without_a_customer_has_a_profile(client_for: Callable[..., Client]) -> None:
    client = client_for(UserFactory(admin=True))
    for name in ("profile", "security", "sessions", "sign_ins"):
        assert client.get(reverse(f"accounts:{name}")).status_code == 200
    for name in ("activity:log", "projects"):
        assert client.get(reverse(name)).status_code == 200


def test_a_viewer_sees_the_limits_of_visible_projects(client_for: Callable[..., Client]) -> None:
    project = ProjectFactory(name="Shared")
    ProjectFactory(customer=project.customer, name="Hidden")
    page = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER)).get(reverse("snapshots:limits")).text
    assert "Shared" in page
    assert "Hidden" not in page
