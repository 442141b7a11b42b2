"""A public portal doesn't start with unsafe settings, sends security headers, and limits expensive actions."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from cng_portal.accounts.models import Membership, User
from cng_portal.hardening import is_production, refuse_unsafe_start
from cng_portal.inventory.models import Volume
from snapshots import limits, restores, services
from snapshots.errors import RateLimited
from snapshots.management.commands.demo import PASSWORD
from snapshots.models import Draft, Operation, Snapshot
from snapshots.views.snapshot_list import VIEW_COOKIE
from snapshots.volumes import new_volumes
from tests import forked
from tests.factories import MembershipFactory, OperationFactory, SnapshotFactory, UserFactory, VolumeFactory
from tests.log_events import log_events
from tests.snapshots.disks import content, put_volume, sell_everywhere

SAFE = {
    "ALLOWED_HOSTS": "portal.example.com",
    "HTTPS": "true",
    "DEBUG": "",
    "SECRET_KEY": "correct horse battery staple, and as long as it has to be",
    "EMAIL_URL": "smtp+tls://portal:hunter2hunter2@mail.example.com:587",
}


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=django_settings.BASE_DIR,
        # which the browser tests set for their own process
        env={name: os.environ[name] for name in os.environ if name != "DJANGO_ALLOW_ASYNC_UNSAFE"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("hosts", "https", "production"),
    [
        (["localhost", "127.0.0.1", "[::1]"], False, False),
        (["192.168.7.20", "10.0.0.3", "portal.localhost"], False, False),
        (["localhost"], True, True),
        (["localhost", "portal.example.com"], False, True),
        (["203.0.113.9"], False, False),  # an address reserved for documentation
        (["8.8.8.8"], False, True),
        (["*"], False, True),
        ([".example.com"], False, True),
    ],
)
def test_a_portal_is_in_production_once_others_reach_it(hosts: list[str], https: bool, production: bool) -> None:
    assert is_production(https=https, allowed_hosts=hosts) is production


def test_the_settings_of_production_pass_djangos_own_check() -> None:
    result = manage("check", "--deploy", "--fail-level=WARNING", **SAFE)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("unsafe", "sentence"),
    [
        ({"DEBUG": "true"}, "DEBUG=true cannot be used here"),
        ({"ALLOWED_HOSTS": "*"}, "ALLOWED_HOSTS=* cannot be used"),
        ({"ALLOWED_HOSTS": "localhost,.example.com"}, "ALLOWED_HOSTS=.example.com cannot be used"),
        ({"HTTPS": "false"}, "HTTPS=false cannot be used here"),
        ({"SECRET_KEY": "short, but longer than 32 characters"}, "SECRET_KEY cannot be used here"),
        ({"SECRET_KEY": "ab" * 30}, "SECRET_KEY cannot be used here"),
        ({"SECRET_KEY": "django-insecure-" + SAFE["SECRET_KEY"]}, "SECRET_KEY cannot be used here"),
        ({"EMAIL_URL": ""}, "EMAIL_URL cannot be left out here"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("command", ["serve", "worker", "scheduler"])
def test_an_unsafe_setting_stops_the_start_with_one_sentence(
    unsafe: dict[str, str], sentence: str, command: str
) -> None:
    result = forked.start(command, **SAFE | unsafe)
    assert result.returncode == 1
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert unsafe.get("SECRET_KEY", "no key") not in result.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", ["worker", "scheduler", "gunicorn"])
def test_the_demos_sign_ins_stop_the_start_until_their_password_is_another(
    process_environment: dict[str, str], command: str, tmp_path: Path
) -> None:
    # as processes store it; the tests themselves use a quicker hash
    user = UserFactory(email="admin@example.com", admin=True)
    User.objects.update(password=PBKDF2PasswordHasher().encode(PASSWORD, "0123456789abcdefghij12", iterations=1000))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = process_environment | SAFE | {"DATA_DIR": str(tmp_path), "PORT": str(port)}
    program = ["-m", "gunicorn"] if command == "gunicorn" else ["manage.py", command]

    result = subprocess.run(
        [sys.executable, *program],
        cwd=django_settings.BASE_DIR,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode != 0
    assert "The demo's sign-in admin@example.com is still in this database" in result.stderr
    assert "manage.py changepassword admin@example.com" in result.stderr
    assert "Traceback" not in result.stderr
    assert PASSWORD not in result.stderr

    user.set_password("another horse 9")
    user.save()
    once = {"worker": ["--batch", "--no-startup-delay"], "scheduler": ["--once"], "gunicorn": []}[command]
    process = subprocess.Popen(
        [sys.executable, *program, *once],
        cwd=django_settings.BASE_DIR,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    if command == "gunicorn":
        assert process.stderr is not None
        assert any("Booting worker" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.django_db
def test_a_deactivated_demo_user_does_not_stop_the_start(settings: Settings) -> None:
    settings.PRODUCTION, settings.DEBUG = True, False
    settings.SECRET_KEY = SAFE["SECRET_KEY"]
    settings.SECURE_SSL_REDIRECT = settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = True
    settings.SECURE_HSTS_SECONDS, settings.ALLOWED_HOSTS = 31_536_000, ["portal.example.com"]
    settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = settings.SECURE_HSTS_PRELOAD = True
    user = UserFactory(email="customer@example.com")
    user.set_password(PASSWORD)
    user.save()
    with pytest.raises(ImproperlyConfigured, match=r"customer@example\.com"):
        refuse_unsafe_start()
    User.objects.update(is_active=False)
    refuse_unsafe_start()
    settings.SECURE_HSTS_SECONDS = 0
    with pytest.raises(ImproperlyConfigured, match=r"security\.W004"):
        refuse_unsafe_start()


@pytest.mark.django_db
def test_the_demo_refuses_a_portal_that_others_can_reach() -> None:
    result = manage("demo", **SAFE)
    assert result.returncode == 1
    assert "The demo's passwords are public" in result.stderr


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", Path(django_settings.BASE_DIR, "SECURITY.md").read_text())
    missing = [
        f"{path}::{name}"
        for path, name in named
        if f"def {name}(" not in Path(django_settings.BASE_DIR, path).read_text()
    ]
    assert len(named) > 30
    assert missing == []


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/asvs.md", "docs/rules.md", "docs/permissions.md"])
def test_every_file_and_constraint_that_is_named_is_there(name: str) -> None:
    text = Path(django_settings.BASE_DIR, name).read_text()
    files = re.findall(r"`((?:cng_portal|billing|snapshots|tests|deploy)/[\w./@-]+\.\w+)", text)
    assert [file for file in files if not Path(django_settings.BASE_DIR, file).exists()] == []
    constraints = {constraint.name for model in apps.get_models() for constraint in model._meta.constraints}
    assert set(re.findall(r"constraint `(\w+)`", text)) <= constraints


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-test.txt", "requirements-openstack.txt", "tests/audit.txt"]
)
def test_every_package_is_pinned_with_hashes(name: str) -> None:
    text = re.sub(r"\\\n\s*", " ", Path(django_settings.BASE_DIR, name).read_text())
    packages = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "--"))]
    assert len(packages) > 20
    assert [line for line in packages if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path",
    ["/accounts/login/", "/snapshots/", "/no-such-page/", "/static/portal.css", "/healthz", "/readyz", "/metrics"],
)
def test_every_answer_carries_the_headers_that_keep_others_out(client: Client, path: str) -> None:
    answer = client.get(path)
    if "html" in answer["Content-Type"]:  # which only applies to documents
        assert answer["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert "charset=utf-8" in answer["Content-Type"] or answer["Content-Type"] == "application/json"
    assert "camera=()" in answer["Permissions-Policy"]
    assert "publickey-credentials-get=(self)" in answer["Permissions-Policy"]
    assert not answer.has_header("Access-Control-Allow-Origin")
    policy = answer["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.django_db
def test_pages_are_not_cached(client_for: Callable[..., Client]) -> None:
    client = client_for(UserFactory())
    for page in (client.get("/"), Client().get("/accounts/login/"), Client().get("/no-such-page/")):
        assert "no-store" in page["Cache-Control"]
    export = client.get(reverse("activity:csv"))
    assert export["Content-Type"].startswith("text/csv")
    assert "no-store" in export["Cache-Control"]


@pytest.mark.django_db
@pytest.mark.both_databases
def test_a_session_cookie_with_a_nul_is_ignored(client: Client) -> None:
    """Quoted, a cookie may hold any character as an octal number."""
    answer = client.get(
        "/accounts/login/", headers={"Cookie": f'{django_settings.SESSION_COOKIE_NAME}="\\000{"a" * 31}"'}
    )
    assert answer.status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("charset", ["rot13", "idna", "undefined", "utf-16", "utf-7"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_requests_are_decoded_as_utf_8_whatever_encoding_they_claim(kind: str, charset: str) -> None:
    from cng_portal.wsgi import application

    def ask(method: str, query: str) -> tuple[str, str]:
        environ: dict[str, Any] = {"HTTP_HOST": "testserver", "PATH_INFO": "/accounts/login/", "QUERY_STRING": query}
        setup_testing_defaults(environ)
        environ |= {"REQUEST_METHOD": method, "CONTENT_TYPE": f"{kind}; charset={charset}"}
        answered: list[str] = []
        body = application(environ, lambda status, headers: answered.append(status))
        return answered[0], b"".join(body).decode()

    status, page = ask("GET", "next=/snapshots/")
    assert (status, 'name="next" value="/snapshots/"' in page) == ("200 OK", True)
    status, page = ask("POST", "")
    assert (status, "<h1" in page) == ("403 Forbidden", True)  # it has no token


def test_with_https_every_cookie_is_of_this_host_alone() -> None:
    program = """
from django.conf import settings
from cng_portal.common.cookies import MessageCookie
from cng_portal.accounts.known_browsers import KNOWN_BROWSER_COOKIE
from snapshots.views.snapshot_list import VIEW_COOKIE
names = [settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME]
print(*names, MessageCookie.cookie_name, KNOWN_BROWSER_COOKIE, VIEW_COOKIE)
"""
    names = manage("shell", "--no-imports", "-c", program, **SAFE).stdout.split()
    assert len(names) == 5
    assert [name for name in names if not name.startswith("__Host-")] == []


@pytest.mark.parametrize("name", ["cng_portal", "billing", "snapshots"])
def test_no_other_cookie_is_set(name: str) -> None:
    sources = Path(django_settings.BASE_DIR, name).rglob("*.py")
    set_there = re.findall(r"set_cookie\(\s*([\w.]+)", "".join(path.read_text() for path in sources))
    assert set(set_there) <= {"KNOWN_BROWSER_COOKIE", "VIEW_COOKIE"}


def test_with_https_cookies_and_browsers_stay_with_it() -> None:
    names = ["SECURE_HSTS_SECONDS", "SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME", "SESSION_COOKIE_SECURE"]
    names += ["CSRF_COOKIE_SECURE", "SECURE_SSL_REDIRECT", "SESSION_COOKIE_HTTPONLY", "SESSION_COOKIE_SAMESITE"]
    program = f"from django.conf import settings; print([getattr(settings, name) for name in {names}])"
    result = manage("shell", "--no-imports", "-c", program, **SAFE)
    expected = [31_536_000, "__Host-sessionid", "__Host-csrftoken", True, True, True, True, "Lax"]
    assert result.stdout.strip() == str(expected)


def test_with_https_everybody_needs_a_second_factor_unless_the_settings_say_otherwise() -> None:
    program = "from django.conf import settings; print(settings.MFA_REQUIRED, settings.ADMIN_MFA_REQUIRED)"
    show = ["shell", "--no-imports", "-c", program]
    assert manage(*show, **SAFE).stdout == "everyone True\n"
    assert manage(*show, **SAFE | {"MFA_REQUIRED": "owners"}).stdout == "owners True\n"
    assert manage(*show).stdout == "nobody False\n"


def test_with_https_new_passwords_are_checked_unless_the_setting_is_empty(tmp_path: Path) -> None:
    program = "from django.conf import settings; print(settings.AUTH_PASSWORD_VALIDATORS[3:])"
    show = ["shell", "--no-imports", "-c", program]
    validator = "cng_portal.accounts.signin.passwords.BreachedPasswordValidator"

    def asks(address: str) -> str:
        return f"{[{'NAME': validator, 'OPTIONS': {'address': address}}]}\n"

    assert manage(*show, **SAFE).stdout == asks("https://api.pwnedpasswords.com/range/")
    own = {"BREACHED_PASSWORDS": "https://breaches.example.com/range"}
    assert manage(*show, **SAFE | own).stdout == asks("https://breaches.example.com/range/")
    assert manage(*show, **SAFE | {"BREACHED_PASSWORDS": ""}).stdout == "[]\n"
    file = tmp_path / "env"
    file.write_text("BREACHED_PASSWORDS=\n")
    assert manage(*show, **SAFE | {"ENV_FILE": str(file)}).stdout == "[]\n"
    assert manage(*show).stdout == "[]\n"


@pytest.mark.django_db
def test_scripts_cannot_read_the_cookies(client: Client) -> None:
    user = UserFactory(email="aye@example.com")
    user.set_password("my secret horse 9")
    user.save()
    client.get("/accounts/login/")
    client.post("/accounts/login/", {"login": "aye@example.com", "password": "my secret horse 9"})
    client.get("/snapshots/?view=cards")
    assert client.cookies[VIEW_COOKIE]["httponly"]
    for name in (django_settings.SESSION_COOKIE_NAME, django_settings.CSRF_COOKIE_NAME):
        assert client.cookies[name]["httponly"]
        assert client.cookies[name]["samesite"] == "Lax"


@pytest.mark.django_db
def test_a_request_for_another_host_is_refused_with_a_page(client_for: Callable[..., Client]) -> None:
    answer = client_for(UserFactory(), raise_request_exception=False).get("/", headers={"Host": "other.example.com"})
    assert answer.status_code == 400
    assert "<h1" in answer.content.decode()


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, attached_stopped=True)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


def action(kind: str, member: Membership, snapshot: Snapshot) -> object:
    if kind == "capture":
        name = f"snapshot {Snapshot.objects.count()}"
        return services.request_snapshot(source=snapshot.volume, name=name, user=member.user)
    if kind == "restore":
        return restores.request_restore(snapshot=snapshot, user=member.user, confirmation=snapshot.volume.name)
    if kind == "new_volume":
        return new_volumes.request_new_volume(
            snapshot=snapshot, user=member.user, project=member.project, name="new", size_gb=1
        )
    return services.request_verification(snapshot=snapshot, user=member.user)


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
@pytest.mark.parametrize("kind", ["capture", "restore", "new_volume", "verify"])
def test_requests_beyond_the_rate_limit_are_refused_until_the_first_is_an_hour_old(
    kind: str, member: Membership, volume: Volume, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.ACTIONS_PER_HOUR = {kind: 3}
    snapshot = SnapshotFactory(volume=volume)
    now = timezone.now()
    fields = {"kind": "verify", "snapshot": snapshot, "succeeded": True}
    times = [now - timedelta(minutes=minutes) for minutes in (59, 20, 10)]
    for at in times:
        OperationFactory(**fields, created_at=at, requested_by=member.user)
        OperationFactory(**fields, created_at=at)  # requested by the portal itself
        OperationFactory(succeeded=True, created_at=at, requested_by=UserFactory())  # another customer's
    if kind != "verify":  # the same requests, of the limited kind
        limited = Operation.objects.filter(requested_by=member.user)
        target = {"volume": volume, "safety_snapshot": SnapshotFactory(volume=volume)} if kind == "restore" else {}
        if kind == "new_volume":
            target = {"volume": volume, "disk": snapshot.disks.get()}
        limited.update(kind=kind, **target)

    before = Operation.objects.count(), Snapshot.objects.count(), Volume.objects.count()
    with pytest.raises(RateLimited) as refused:
        action(kind, member, snapshot)
    assert "operation.rate_limited" in log_events(caplog)

    with timezone.override(member.project.customer.zone):
        with pytest.raises(RateLimited) as in_their_zone:
            action(kind, member, snapshot)
        again = timezone.localtime(times[0] + timedelta(hours=1, seconds=59))
        assert f"Try again at {again:%H:%M}, or ask your provider for a higher limit." in str(in_their_zone.value)
    assert "limit of 3 “" in str(refused.value)
    assert (Operation.objects.count(), Snapshot.objects.count(), Volume.objects.count()) == before

    Operation.objects.filter(created_at=times[0]).update(created_at=now - timedelta(minutes=61))
    assert action(kind, member, snapshot)


@pytest.mark.django_db(transaction=True)
def test_a_refusal_is_one_sentence_and_input_is_kept(
    member: Membership, volume: Volume, settings: Settings, client_for: Callable[..., Client]
) -> None:
    settings.ACTIONS_PER_HOUR = {"new_volume": 1}
    snapshot = SnapshotFactory(volume=volume)
    client = client_for(member.user)
    answers = {"name": "first", "project": member.project.pk, "size_gb": 1}
    path = f"/snapshots/{snapshot.pk}/new-volume/"
    assert client.post(path, answers).status_code == 302

    page = client.post(path, answers | {"name": "second one"})

    assert page.status_code == 200
    html = page.content.decode()
    assert "Your account has reached its limit of 1 “New volume” requests an hour" in html
    assert 'value="second one"' in html


@pytest.mark.django_db(transaction=True)
def test_the_wizard_shows_the_remaining_requests_first(
    member: Membership, volume: Volume, settings: Settings, client_for: Callable[..., Client]
) -> None:
    settings.ACTIONS_PER_HOUR = {"capture": 10}
    client = client_for(member.user)
    client.post(f"/volumes/{volume.pk}/take-snapshot/")
    draft = Draft.objects.get()

    def text_of(path: str) -> str:
        return unescape(client.get(path).content.decode())

    pages = ["/snapshots/new/", f"/snapshots/new/{draft.pk}/name/"]
    for page in pages:
        assert "Your account" not in text_of(page)
    for _number in range(9):
        OperationFactory(capture=True, snapshot__volume=volume, requested_by=member.user)
    for page in pages:
        assert "Your account can request “Take Snapshot” 1 more time this hour." in text_of(page)
    OperationFactory(capture=True, snapshot__volume=volume, requested_by=member.user)
    for page in pages:
        assert "Your account has reached its limit of 10 “Take Snapshot” requests an hour" in text_of(page)
        assert "Try again at" in text_of(page)


@pytest.mark.django_db
def test_a_rate_limit_of_zero_is_unlimited(member: Membership, settings: Settings) -> None:

    settings.ACTIONS_PER_HOUR = {"verify": 0}
    assert limits.next_allowed(member.project.customer_id, "verify", now=timezone.now()) is None


@pytest.mark.django_db
@pytest.mark.parametrize(("more", "minutes"), [(1, None), (2, 20), (3, 50), (9, 50)])
def test_several_requests_at_once_need_as_many_free_places(more: int, minutes: int | None, settings: Settings) -> None:

    settings.ACTIONS_PER_HOUR = {"verify": 3}
    snapshot, user, now = SnapshotFactory(), UserFactory(), timezone.now()
    for age in (40, 10):
        OperationFactory(succeeded=True, snapshot=snapshot, requested_by=user, created_at=now - timedelta(minutes=age))
    expected = now + timedelta(minutes=minutes) if minutes else None
    assert limits.next_allowed(snapshot.customer_id, "verify", now=now, more=more) == expected
