"""The log of a click, from the request to the worker, and what is never logged."""

import io
import json
import logging
import logging.config
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.test import Client, RequestFactory
from django.utils import timezone

from cng_portal import logs
from cng_portal.accounts import roles
from cng_portal.common.log_context import bind_fields, get_request_id
from snapshots.models import Operation
from tests.factories import (
    InvitationFactory,
    MembershipFactory,
    OperationFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.smtp import sent_mails
from tests.snapshots.disks import content, put_volume, sell_everywhere

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

DATABASE_PASSWORD = "correct-horse-of-the-database"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Capture everything that this process logs, at every level, with LOG_FORMAT=JSON or the test's parameter."""
    as_json = getattr(request, "param", "JSON") == "JSON"
    config = logs.configuration(level="DEBUG", as_json=as_json, secrets=[settings.SECRET_KEY, DATABASE_PASSWORD])
    logging.config.dictConfig({"version": 1, "incremental": False, "disable_existing_loggers": False} | config)
    stream = io.StringIO()
    root = logging.getLogger()
    handler = next(each for each in root.handlers if isinstance(each, logging.StreamHandler))
    handler.stream = stream  # type: ignore[attr-defined]
    yield stream
    logging.config.dictConfig(settings.LOGGING)


@pytest.fixture
def lines(log: io.StringIO) -> Lines:
    return lambda: [json.loads(line) for line in log.getvalue().splitlines()]


def of(lines: list[dict[str, Any]], text: str) -> dict[str, Any]:
    return next(line for line in lines if str(line["event"]).startswith(text))


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
def test_one_request_id_links_the_click_to_every_line_of_the_worker(
    lines: Lines, storage_root: Path, client_for: Callable[..., Client], process_environment: dict[str, str]
) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    snapshot = SnapshotFactory(volume=VolumeFactory(project=member.project))
    put_volume(storage_root, snapshot.volume, content(b"bytes"))
    sell_everywhere()

    answer = client_for(member.user).post(f"/snapshots/{snapshot.pk}/verify/")

    operation = Operation.objects.get()
    request_id = answer["X-Request-ID"]
    assert re.fullmatch(r"[0-9a-f-]{36}", request_id)
    assert operation.request_id == request_id
    requested = of(lines(), "operation.requested")
    assert (requested["request_id"], requested["operation_id"]) == (request_id, str(operation.pk))
    finished = of(lines(), "request_finished")
    assert (finished["request_id"], finished["code"]) == (request_id, 302)
    assert finished["request"] == f"POST /snapshots/{snapshot.pk}/verify/"
    assert finished["user_id"] == str(member.user.pk)

    worker = subprocess.run(
        [sys.executable, "manage.py", "worker", "--batch", "--no-startup-delay"],
        env=process_environment | {"LOG_FORMAT": "JSON", "LOG_LEVEL": "INFO"},
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    entries = [json.loads(line) for line in worker.stderr.splitlines()]
    ours = [line for line in entries if line["logger"].startswith("snapshots.")]
    assert [(line["event"], line["kind"], line["attempt"]) for line in ours] == [
        ("operation.started", "verify", 1),
        ("operation.finished", "verify", 1),
    ]
    assert all((line["request_id"], line["operation_id"]) == (request_id, str(operation.pk)) for line in ours)


@pytest.mark.django_db(transaction=True)
def test_the_scheduler_names_its_duty_and_the_operation_that_it_releases(process_environment: dict[str, str]) -> None:
    operation = OperationFactory(
        running=True, lease_until=timezone.now() - timedelta(seconds=1), request_id="of-the-click"
    )
    scheduler = subprocess.run(
        [sys.executable, "manage.py", "scheduler", "--once"],
        env=process_environment | {"LOG_FORMAT": "JSON", "LOG_LEVEL": "INFO"},
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    released = of([json.loads(line) for line in scheduler.stderr.splitlines()], "operation.abandoned")
    assert released["duty"] == "reconcile_operations"
    assert (released["operation_id"], released["request_id"]) == (str(operation.pk), "of-the-click")
    assert released["level"] == "warning"


def test_log_lines_are_readable_without_a_tool() -> None:
    program = "import logging; logging.getLogger('x').warning('%s left', 3)"
    shell = [sys.executable, "manage.py", "shell", "--no-imports", "-c", program]
    line = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=True, cwd=settings.BASE_DIR).stderr
    assert re.fullmatch(r"20\S+Z +\[warning *\] 3 left +\[x\]\n", line)


@pytest.mark.django_db
def test_request_ids_are_unique_and_cannot_be_chosen(client: Client) -> None:
    first, second = (client.get("/accounts/login/", headers={"X-Request-ID": "chosen"}) for _ in range(2))
    assert len({first["X-Request-ID"], second["X-Request-ID"], "chosen"}) == 3
    assert get_request_id() == ""


@pytest.mark.django_db
def test_signing_in_leaves_neither_password_nor_session_nor_token_in_the_log(log: io.StringIO) -> None:
    user = UserFactory(email="aye@example.com")
    user.set_password("my secret horse 9")
    user.save()
    client = Client(enforce_csrf_checks=True)
    client.get("/accounts/login/")
    token = client.cookies["csrftoken"].value
    answers = {"login": "aye@example.com", "csrfmiddlewaretoken": token}
    client.post("/accounts/login/", answers | {"password": "a wrong horse 7"})
    client.post("/accounts/login/", answers | {"password": "my secret horse 9"})
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    client.post("/accounts/logout/", {"csrfmiddlewaretoken": "of-someone-else"})
    client.get("/?password=my+secret+horse+9")

    output = log.getvalue()
    assert "POST /accounts/login/" in output
    for secret in (token, session, "wrong horse", "secret horse", "secret+horse"):
        assert secret not in output


@pytest.mark.django_db
def test_the_link_for_a_new_password_opens_nothing_from_the_log(log: io.StringIO, client: Client) -> None:
    user = UserFactory(email="aye@example.com")
    user.set_password("my secret horse 9")
    user.save()
    client.post("/accounts/password/reset/", {"email": "aye@example.com"})
    link = re.search(r"https?://[^/]+(/accounts/password/reset/key/(\S+)/)", sent_mails()[0].body)
    assert link is not None
    client.get(link[1])

    output = log.getvalue()
    assert "GET /accounts/password/reset/key/***" in output
    assert link[2].partition("-")[2] not in output


@pytest.mark.django_db
def test_a_link_that_is_followed_without_cookies_opens_nothing_from_the_log(log: io.StringIO) -> None:
    token = roles.sign_token(InvitationFactory(email="mya@example.com"))
    for path in (
        f"/invitations/{token}/",
        "/accounts/password/reset/key/3f-d1-abc/",
        "/accounts/confirm-email/MQ:abc/",
    ):
        assert Client(enforce_csrf_checks=True).post(path, {"name": "Mya"}).status_code == 403
    output = log.getvalue()
    assert output.count("Forbidden (CSRF cookie not set.): /") == 3
    assert token not in output and "abc" not in output


@pytest.mark.parametrize(
    ("message", "hidden"),
    [
        (f"cannot connect to postgres://portal:{DATABASE_PASSWORD}@db/portal", DATABASE_PASSWORD),
        ("cannot connect to postgres://portal:pw@db/portal", ":pw@"),
        (f"password authentication failed with '{DATABASE_PASSWORD}'", DATABASE_PASSWORD),
        ("Authorization: Bearer abc.def.ghi", "abc.def.ghi"),
        ("{'X-Auth-Token': 'gAAAAAB123', 'x': 1}", "gAAAAAB123"),
        ("Cookie: sessionid=0123abcd; csrftoken=xyz987", "0123abcd"),
        ("os_password=hunter2&x=1", "hunter2"),
        (f"SECRET_KEY={settings.SECRET_KEY}", settings.SECRET_KEY),
    ],
)
def test_a_secret_is_taken_out_of_messages_and_of_tracebacks(
    log: io.StringIO, lines: Lines, message: str, hidden: str
) -> None:
    logger = logging.getLogger("somewhere")
    logger.warning("It said: %s", message)
    try:
        raise RuntimeError(message)
    except RuntimeError:
        logger.exception("It broke")

    assert hidden not in log.getvalue()
    assert len(lines()) == 2
    assert "test_logs.py" in lines()[1]["exception"]


FORGED = "x\n2026-11-22T10:00:00Z [info     ] credits granted\r\x1b[2J\u2028y"


@pytest.mark.parametrize("log", ["JSON", "CONSOLE"], indirect=True)
def test_user_input_cannot_start_a_log_line(log: io.StringIO) -> None:
    logger = logging.getLogger("somewhere")
    logger.warning("Renamed: %s", FORGED)
    logger.warning("Renamed", extra={"name_of_it": FORGED})
    with bind_fields(operation_id=FORGED):
        try:
            raise RuntimeError(FORGED)
        except RuntimeError:
            logger.exception("It broke")

    output = log.getvalue()
    lines = output.split("\n")
    ours = [line for line in lines if re.match(r"(\{|20\d\d-)", line)]
    assert len(ours) == 3 and "credits granted" in ours[0] and "credits granted" in ours[2]
    assert all(line.startswith("    ") for line in lines if line and line not in ours)
    assert not re.search("[\r\x1b\u2028]", output) or output.startswith("{")
    assert "RuntimeError" in output


def test_ordinary_words_are_not_redacted(lines: Lines) -> None:
    message = "The secretary changed the password of 3 tokens; https://portal.example.com/x@y stays, key = value too"
    logging.getLogger("somewhere").warning(message)
    assert lines()[0]["event"] == message


@pytest.mark.django_db(transaction=True)
def test_an_error_is_logged_once_with_its_request_and_without_variables(
    log: io.StringIO, lines: Lines, client_for: Callable[..., Client], storage_root: Path
) -> None:
    """A page reaches a broken engine: its location names a missing driver."""
    snapshot = SnapshotFactory()
    user = UserFactory(member_of=snapshot.project)
    snapshot.location.driver = "not there"
    snapshot.location.save()
    client = client_for(user, raise_request_exception=False)

    answer = client.post(f"/snapshots/{snapshot.pk}/restore/", {"confirmation": snapshot.volume.name})

    assert answer.status_code == 500
    failed = [line for line in lines() if line["level"] == "error"]
    assert [line["event"] for line in failed] == ["request_failed"]
    assert failed[0]["request_id"] == answer["X-Request-ID"]
    assert "ImproperlyConfigured" in failed[0]["exception"]
    assert client.cookies[settings.SESSION_COOKIE_NAME].value not in log.getvalue()


@pytest.mark.parametrize(
    ("proxies", "address"), [(0, "127.0.0.1"), (1, "10.0.0.1"), (2, "203.0.113.7"), (9, "127.0.0.1")]
)
def test_a_line_has_the_client_address_from_our_own_proxies(
    proxies: int, address: str, rf: RequestFactory, settings: "SettingsWrapper"
) -> None:
    settings.ALLAUTH_TRUSTED_PROXY_COUNT = proxies
    request = rf.get("/", headers={"X-Forwarded-For": "192.0.2.1, 203.0.113.7, 10.0.0.1"})
    assert logs.client_address(request) == address


def test_every_event_is_documented() -> None:
    sources = [
        path for app in ("billing", "snapshots", "cng_portal") for path in (settings.BASE_DIR / app).rglob("*.py")
    ]
    calls = (re.findall(r'\blogger\.\w+\(\s*(f?".*?")', path.read_text()) for path in sources)
    logged = {name.strip('"') for names in calls for name in names}
    rows = re.findall(r"^\| (`.*?`) \|", (settings.BASE_DIR / "docs/log-events.md").read_text(), re.MULTILINE)
    assert logged == {name.strip("`") for row in rows for name in row.split(", ")}
