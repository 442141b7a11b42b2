"""Sign-in, and the redirect to the requested page."""

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import User
from tests.factories import UserFactory
from tests.smtp import sent_mails

pytestmark = pytest.mark.django_db

PASSWORD = "a password of the tests"


def sign_in(client: Client, email: str, password: str = PASSWORD, **data: str):
    return client.post(reverse("account_login"), {"login": email, "password": password, **data})


def test_a_user_signs_in_by_e_mail_in_any_case_and_continues(client: Client) -> None:
    UserFactory(email="aye@example.com", password=PASSWORD)
    response = client.get("/volumes/")
    assert response["Location"] == "/accounts/login/?next=/volumes/"
    assert sign_in(client, "Aye@Example.com", next="/volumes/")["Location"] == "/volumes/"


def test_a_wrong_password_does_not_reveal_whether_the_account_exists(client: Client) -> None:
    UserFactory(email="aye@example.com", password=PASSWORD)
    known = sign_in(client, "aye@example.com", "wrong").text
    unknown = sign_in(client, "nobody@example.com", "wrong").text
    for page in (known, unknown):
        assert "Wrong e-mail or password. Check both, or reset your password." in page


def test_nobody_signs_up_by_themselves(client: Client) -> None:
    client.post(reverse("account_signup"), {"email": "new@example.com", "password1": PASSWORD, "password2": PASSWORD})
    assert not User.objects.exists()


def test_administrators_sign_in_on_the_same_page_and_others_cannot_open_admin(client: Client) -> None:
    admin = UserFactory(admin=True, email="admin@example.com", password=PASSWORD)
    assert client.get("/admin/", follow=True).redirect_chain[-1][0].startswith(reverse("account_login"))
    sign_in(client, admin.email)
    assert client.get("/admin/").status_code == 200
    other = Client()
    other.force_login(UserFactory())
    assert other.get("/admin/", follow=True).status_code == 403


def test_the_next_url_never_leaves_the_portal(client: Client) -> None:
    UserFactory(email="aye@example.com", password=PASSWORD)
    assert sign_in(client, "aye@example.com", next="https://evil.example/")["Location"] == "/"


def test_a_mail_server_outage_fails_no_page_and_only_delays_the_link(settings: Any) -> None:
    user = UserFactory(email="aye@example.com", password=PASSWORD)
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1  # nothing listens there
    assert Client().post(reverse("account_reset_password"), {"email": user.email}).status_code == 302
    assert sent_mails() == []
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    with time_machine.travel(timezone.now() + timedelta(minutes=1)):
        assert [message.to for message in sent_mails()] == [[user.email]]


def test_a_link_for_a_new_password_opens_for_an_hour() -> None:
    user = UserFactory(email="aye@example.com", password=PASSWORD)
    Client().post(reverse("account_reset_password"), {"email": user.email})
    link = next(word for word in sent_mails()[-1].body.split() if "/reset/key/" in word)
    for minutes, opens in ((59, True), (61, False)):
        with time_machine.travel(timezone.now() + timedelta(minutes=minutes)):
            page = Client().get(link, follow=True)
        assert ("password1" in page.text) == opens


@pytest.mark.parametrize("email", ["aye@example.com", "nobody@example.com"])
def test_links_in_e_mails_ignore_the_host_header(email: str, settings: Any) -> None:
    settings.PORTAL_URL = "https://portal.example.com"
    UserFactory(email="aye@example.com", password=PASSWORD)
    Client(HTTP_HOST="localhost:6666").post(reverse("account_reset_password"), {"email": email})
    (message,) = sent_mails()
    links = [word for word in message.body.split() if "://" in word]
    assert links and all(link.startswith("https://portal.example.com/accounts/") for link in links)
    assert "localhost" not in message.body + message.subject and "6666" not in message.body
