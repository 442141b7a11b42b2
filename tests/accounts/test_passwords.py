"""Breached passwords, with a server that implements the API of Have I Been Pwned:
https://haveibeenpwned.com/API/v3#PwnedPasswords
"""

import time
from collections.abc import Callable, Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.test import Client
from django.urls import reverse

from cng_portal.accounts import roles
from cng_portal.accounts.models import User
from cng_portal.accounts.signin import passwords
from cng_portal.accounts.signin.passwords import BreachedPasswordValidator
from tests.accounts.test_sign_in import PASSWORD, sign_in
from tests.factories import InvitationFactory, ProjectFactory, UserFactory
from tests.test_metrics import TOKEN, scrape

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

STOLEN, OWN = "a stolen horse 7", "nobody else has this one 7"


def sum_of(password: str) -> str:
    return sha1(password.encode()).hexdigest().upper()


class Service(ThreadingHTTPServer):
    """`breached` maps hashes to counts; `answers` replaces the normal response, if set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.breached = {sum_of(STOLEN): 52, sum_of("another of theirs"): 1}
        self.answers: Callable[[Answer], None] | None = None
        self.requests: list[tuple[str, str | None]] = []
        self.closes = Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/range/"


class Answer(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Add-Padding"]))
        if self.server.answers:
            self.server.answers(self)
        else:
            self.send_text(self.lines())

    def lines(self) -> str:
        start = self.path.removeprefix("/range/")
        breached = {digest[5:]: count for digest, count in self.server.breached.items() if digest.startswith(start)}
        padding = {sum_of(f"padding {number}")[5:]: 0 for number in range(800)}
        padding |= {sum_of(OWN)[5:]: 0}  # padding is random, so it may be anything
        return "\r\n".join(f"{rest}:{count}" for rest, count in sorted((padding | breached).items()))

    def send_text(self, text: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def service(settings: "SettingsWrapper", monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service that checks every new password."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Service() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        validator = "cng_portal.accounts.signin.passwords.BreachedPasswordValidator"
        own = {"NAME": validator, "OPTIONS": {"address": server.address}}
        settings.AUTH_PASSWORD_VALIDATORS = [*settings.AUTH_PASSWORD_VALIDATORS, own]
        yield server
        server.closes.set()
        server.shutdown()


def test_a_breached_password_is_refused_and_padding_is_not(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValidationError, match="has appeared in a data breach"):
        validate_password(STOLEN)
    validate_password(OWN)
    validate_password("not even its first characters are known 7")
    assert "Pwned" not in caplog.text


def test_only_five_characters_of_the_hash_leave_the_machine(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        validate_password(OWN)
    assert sum_of(OWN)[:5] not in caplog.text
    assert service.requests == [(f"/range/{sum_of(OWN)[:5]}", "true")]


def failures() -> float:
    [family] = passwords.FAILURES.collect()
    return next(sample.value for sample in family.samples if sample.name == "portal_breach_service_failures_total")


def hangs(answer: Answer) -> None:
    answer.server.closes.wait(30)


def to_elsewhere(answer: Answer) -> None:
    if answer.path.startswith("/range/"):
        answer.send_text("", status=302, Location=f"/elsewhere/{answer.path[-5:]}")
    else:
        answer.send_text(f"{sum_of(STOLEN)[5:]}:52")


SILENT: dict[str, Callable[[Answer], None]] = {
    "it fails": lambda answer: answer.send_text("", status=500),
    "it is asked too often": lambda answer: answer.send_text("", status=429),
    "it hangs": hangs,
    "it is a page of a hotel": lambda answer: answer.send_text("<html>Welcome. Please pay.</html>"),
    "it is cut off": lambda answer: answer.send_text(answer.lines()[:2000]),
    "it is no text": lambda answer: answer.wfile.write(b"\xff\xfe\x00" * 99),
    "it sends elsewhere": to_elsewhere,
}


@pytest.mark.parametrize("why", SILENT)
def test_a_service_that_does_not_answer_does_not_stop_password_changes(
    service: Service, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    service.answers = SILENT[why]
    before, began = failures(), time.monotonic()
    validate_password(STOLEN)
    assert time.monotonic() - began < 4
    assert failures() == before + 1
    assert "Pwned Passwords" in caplog.text
    assert len(service.requests) == 1, "nobody else is asked"
    assert STOLEN not in caplog.text and sum_of(STOLEN)[:5] not in caplog.text


def test_an_unreachable_service_does_not_stop_password_changes(service: Service) -> None:
    service.shutdown()
    service.server_close()
    validate_password(STOLEN)
    BreachedPasswordValidator("https://no-such-host.invalid/range/").validate(STOLEN)


@pytest.mark.django_db
def test_every_page_that_sets_a_password_checks_for_breaches(
    service: Service, client_for: Callable[..., Client]
) -> None:
    user = UserFactory(email="aye@example.com", password=PASSWORD, member_of=ProjectFactory())
    client = Client()
    sign_in(client, user.email)
    url = reverse("account_change_password")
    page = client.post(url, {"oldpassword": PASSWORD, "password1": STOLEN, "password2": STOLEN}).text
    assert "has appeared in a data breach" in page

    link = reverse("accounts:invitation", args=[roles.sign_token(InvitationFactory(email="new@example.com"))])
    assert "has appeared in a data breach" in Client().post(link, {"name": "Mya", "password": STOLEN}).text
    assert not User.objects.filter(email="new@example.com").exists()

    admin = client_for(UserFactory(admin=True))
    answers = {"usable_password": "true", "password1": STOLEN, "password2": STOLEN}
    page = admin.post(reverse("admin:auth_user_password_change", args=[user.pk]), answers).text
    assert "has appeared in a data breach" in page
    user.refresh_from_db()
    assert user.check_password(PASSWORD)


@pytest.mark.django_db
def test_failures_of_the_service_are_a_metric(service: Service, client: Client, settings: "SettingsWrapper") -> None:
    settings.METRICS_TOKEN = TOKEN
    before = scrape(client)["portal_breach_service_failures_total"]
    service.answers = SILENT["it fails"]
    validate_password(OWN)
    service.answers = None
    validate_password(OWN)
    assert scrape(client)["portal_breach_service_failures_total"] == before + 1
