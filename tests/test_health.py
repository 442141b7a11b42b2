"""/healthz and /readyz: their responses, which are cheap and reveal no secrets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from cng_portal.monitoring.models import StorageCheck
from snapshots.monitoring.storage import check_storage
from snapshots.storage.local import LocalDriver
from tests.factories import LocationFactory

# as machines do: by an address outside ALLOWED_HOSTS, without HTTPS
PROBE: dict[str, Any] = {"headers": {"Host": "10.1.2.3:8000"}}


@contextmanager
def database_away() -> Iterator[None]:
    def refuse(*_args: object) -> None:
        raise OperationalError('connection to server at "10.9.9.9" failed for user "portal"')

    with connection.execute_wrapper(refuse):
        yield


def parts(client: Client, status: int) -> dict[str, str]:
    answer = client.get("/readyz", **PROBE)
    assert answer.status_code == status, answer.content
    assert answer["Cache-Control"] == "no-store"
    return json.loads(answer.content)["parts"]


def status(client: Client) -> str:
    return json.loads(client.get("/readyz", **PROBE).content)["status"]


def test_the_process_answers_without_database_session_host_or_https(client: Client, settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    client.cookies[settings.SESSION_COOKIE_NAME] = "whatever"
    answer = client.get("/healthz", **PROBE)  # without the mark, pytest-django refuses every query
    assert (answer.status_code, answer.content) == (200, b"ok\n")
    assert not answer.cookies


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_nothing_can_be_sent_to_a_probe(client: Client, path: str) -> None:
    assert client.post(path, **PROBE).status_code == 405


@pytest.mark.django_db
def test_the_portal_is_ready_when_every_dependency_answers(client: Client) -> None:
    LocationFactory(code="1CNG-YGN-AZ01")
    check_storage()
    assert parts(client, 200) == {"database": "ok", "migrations": "ok", "cache": "ok", "storage 1CNG-YGN-AZ01": "ok"}
    assert status(client) == "ready"


@pytest.mark.django_db
def test_a_database_outage_is_named_without_details(client: Client) -> None:
    with database_away():
        answer = client.get("/readyz", **PROBE)
    assert answer.status_code == 503
    assert json.loads(answer.content) == {
        "status": "not ready",
        "parts": {
            "database": "does not answer",
            "migrations": "not checked, because of the above",
            "cache": "not checked, because of the above",
        },
    }


@pytest.mark.django_db
def test_a_database_of_an_older_version_is_not_ready_and_one_of_a_newer_is(client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('monitoring', '9999_next', '2026-11-22')"
        )
        parts(client, 200)
        cursor.execute("DELETE FROM django_migrations WHERE app = 'monitoring' AND name LIKE '0%%'", [])
    assert parts(client, 503)["migrations"] == "not migrated: run manage.py migrate"


@pytest.mark.django_db(transaction=True)
def test_a_cache_without_its_table_is_not_ready(client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE cache RENAME TO cache_away")
        try:
            assert parts(client, 503)["cache"] == "does not answer"
        finally:
            cursor.execute("ALTER TABLE cache_away RENAME TO cache")


@pytest.mark.django_db
def test_one_failing_storage_degrades_readiness(client: Client, storage_root: Path, settings: Settings) -> None:
    fine, broken, closed = LocationFactory(), LocationFactory(driver="away"), LocationFactory(closed=True)
    (storage_root.parent / "a-file").write_text("")
    settings.STORAGE = settings.STORAGE | {
        "away": {"driver": "snapshots.storage.local.LocalDriver", "options": {"root": f"{storage_root.parent}/a-file"}}
    }
    check_storage()
    states = parts(client, 200)
    assert (states[f"storage {fine.code}"], states[f"storage {broken.code}"]) == ("ok", "does not answer")
    assert f"storage {closed.code}" not in states
    assert status(client) == "degraded"
    check = StorageCheck.objects.get(pk=broken.pk)
    assert check.error
    assert check.error_count == 1
    check_storage()
    check.refresh_from_db()
    assert check.error_count == 2

    fine.active = False
    fine.save()
    assert parts(client, 503) == {"database": "ok", "migrations": "ok", "cache": "ok"} | {
        f"storage {broken.code}": "does not answer"
    }


@pytest.mark.django_db
def test_a_storage_without_a_recent_check_is_unknown(client: Client) -> None:
    location = LocationFactory()
    assert parts(client, 200)[f"storage {location.code}"] == "not checked lately: is a scheduler running?"
    check_storage()
    StorageCheck.objects.update(checked_at=timezone.now() - timedelta(minutes=6))
    assert parts(client, 200)[f"storage {location.code}"] == "not checked lately: is a scheduler running?"


class HangingDriver(LocalDriver):
    """A storage whose calls hang until they are released, like an unreachable network file system."""

    let_go = Event()
    calls = 0

    def check_health(self) -> None:
        type(self).calls += 1
        self.let_go.wait()


@pytest.mark.django_db
def test_a_hanging_storage_delays_nobody_and_is_checked_once(client: Client, settings: Settings) -> None:
    hanging, fine = LocationFactory(driver="hanging"), LocationFactory()
    options = settings.STORAGE["local"]["options"]
    settings.STORAGE = settings.STORAGE | {"hanging": {"driver": "tests.test_health.HangingDriver", "options": options}}
    try:
        for _time in range(2):
            check_storage(timeout_seconds=0.2)
            states = parts(client, 200)
            assert (states[f"storage {fine.code}"], states[f"storage {hanging.code}"]) == ("ok", "does not answer")
        from tests.test_health import HangingDriver as Asked  # the class that the portal imported by name

        assert Asked.calls == 1
    finally:
        Asked.let_go.set()
