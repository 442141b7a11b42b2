"""Fixtures for every test: a data folder of its own with the storage, signed-in clients, and Chromium."""

import gc
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import django
import pytest
from django.conf import settings as django_settings
from django.core.cache import cache
from django.db import connection
from django.test import Client

from tests import chromium, flush, migrated

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext
    from pytest_django import DjangoDbBlocker
    from pytest_django.fixtures import SettingsWrapper
    from pytest_django.live_server_helper import LiveServer

    from cng_portal.accounts.models import User

# The settings read all of this once: no test touches `var`, and no .env changes what a test sees. A worker of
# pytest-xdist inherits the folder that its parent made.
os.environ["DJANGO_SETTINGS_MODULE"] = "cng_portal.settings"
os.environ["ENV_FILE"] = os.devnull
os.environ["LOG_LEVEL"] = "WARNING"  # a line for each request would hide failures
os.environ["RECYCLE_BIN_DAYS"] = "0"  # what a test deletes is erased, unless it tests the recycle bin
os.environ["SECRET_KEY"] = "only the tests sign anything with this sentence"
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["DATA_DIR"] = tempfile.mkdtemp(prefix="portal-tests-")
    Path(os.environ["DATA_DIR"], "static").mkdir()  # WhiteNoise warns without it
# Queries that grow with the rows (N+1) fail the request that makes them.
django_settings.INSTALLED_APPS.append("zeal")
django_settings.MIDDLEWARE.insert(0, "tests.nplusone.middleware")
django.setup()  # pytest-django would do it too late for the conftest.py of a folder that imports models
flush.install()

# Tests that ask for one of these start child processes.
STARTS_PROCESSES = {"process_environment", "images", "capture", "lab"}
UUIDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NO_BROWSER = chromium.missing_packages()


# A list for the quick test that runs: the processes that it started.
running: list[list[str]] = []


def note_process(event: str, arguments: tuple[Any, ...]) -> None:
    if running and event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        running[-1].append(event)


sys.addaudithook(note_process)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["DATA_DIR"], ignore_errors=True)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Keep random UUIDs out of test names, because pytest-xdist requires the same names in all workers."""
    if not isinstance(val, str | UUID):
        return None
    name = UUIDS.sub("uuid", str(val))
    return name if name != str(val) else None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    browser_tests = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
    for item in browser_tests:
        item.add_marker("browser")
    for item in items:
        database = item.get_closest_marker("django_db")
        commits = database is not None and database.kwargs.get("transaction", False)
        starts_processes = hasattr(getattr(item, "module", None), "subprocess") or not STARTS_PROCESSES.isdisjoint(
            getattr(item, "fixturenames", ())
        )
        if commits or starts_processes:
            item.add_marker("slow")
    if browser_tests and NO_BROWSER:
        items[:] = [item for item in items if item not in browser_tests]
        config.hook.pytest_deselected(items=browser_tests)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays until the end: it would look through all modules again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NO_BROWSER:
        terminalreporter.write_line(
            f"The browser tests were left out. On Debian: apt-get install {' '.join(NO_BROWSER)}"
        )


@pytest.fixture(scope="session")
def django_db_keepdb(django_db_keepdb: bool) -> bool:
    """Let SQLite's file stay where `django_db_modify_db_settings` puts it. The data folder goes after the tests."""
    return django_db_keepdb or connection.vendor == "sqlite"


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> None:
    migrated.copy_if_there()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: "DjangoDbBlocker") -> None:
    with django_db_blocker.unblock():
        migrated.keep()


@pytest.fixture(autouse=True)
def no_child_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts a process without being marked as slow, so that `make test-fast` stays fast."""
    if {"slow", "browser"} & {marker.name for marker in request.node.iter_markers()}:
        yield
        return
    started: list[str] = []
    running.append(started)
    yield
    running.remove(started)
    assert not started, "This test starts processes: mark it as slow."


@pytest.fixture(autouse=True)
def storage_root(settings: "SettingsWrapper", tmp_path: Path) -> Path:
    """An empty folder for the files of the `local` engine."""
    root = tmp_path / "storage"
    settings.STORAGE = {"local": {"driver": "snapshots.storage.local.LocalDriver", "options": {"root": str(root)}}}
    return root


@pytest.fixture(autouse=True)
def empty_cache(request: pytest.FixtureRequest, django_db_blocker: "DjangoDbBlocker") -> Iterator[None]:
    """Empty the cache's table after a test that commits: it belongs to no model, so Django's flush leaves it alone."""
    yield
    database = request.node.get_closest_marker("django_db")
    if database is not None and database.kwargs.get("transaction", False):
        with django_db_blocker.unblock():
            cache.clear()


@pytest.fixture
def process_environment(storage_root: Path) -> dict[str, str]:
    """The environment of a `manage.py` process that uses this test's database and storage.

    The test must commit what the process reads: `@pytest.mark.django_db(transaction=True)`.
    """
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite":
        url = f"sqlite:///{name}"
    else:
        url = os.environ["DATABASE_URL"]
        base, _, query = url.partition("?")
        url = f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
    return os.environ | {"DATABASE_URL": url, "STORAGE": json.dumps(django_settings.STORAGE)}


@pytest.fixture
def client_for() -> Callable[..., Client]:
    """client_for(user) returns a test client in which the user is signed in."""

    def client_for(user: "User", **options: Any) -> Client:
        client = Client(**options)
        client.force_login(user)
        return client

    return client_for


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict) -> dict:
    # Playwright's event loop makes Django believe that it runs inside a coroutine from here on. Only a process that
    # starts the browser is affected.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    if os.geteuid() == 0:
        quiet.append("--no-sandbox")  # Chromium refuses to sandbox itself as root
    return browser_type_launch_args | {"executable_path": chromium.PROGRAM, "args": quiet}


@pytest.fixture(scope="session")
def base_url(live_server: "LiveServer") -> str:
    """Give every test that opens a page a live server: page.goto("/snapshots/") is enough."""
    return live_server.url


@pytest.fixture
def sign_in(context: "BrowserContext", base_url: str, client_for: Callable[..., Client]) -> Callable[..., None]:
    """sign_in(user) signs the user in to the pages of this test."""

    def sign_in(user: "User") -> None:
        cookie = client_for(user).cookies[django_settings.SESSION_COOKIE_NAME]
        context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": base_url}])

    return sign_in
