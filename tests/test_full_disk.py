"""A full data folder: pages can be read, and say why nothing can be changed. Only root can mount one."""

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import psutil
import pytest
from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.db import connection
from django.test import Client

from cng_portal.accounts.models import User
from cng_portal.accounts.signin import sessions
from tests.factories import NotificationFactory, ProjectFactory, UserFactory

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]


@pytest.fixture
def data_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "var"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def prepare(folder: Path) -> None:
    """Copy this test's database there, and the manifest of static files, which pages need."""
    with closing(sqlite3.connect(connection.settings_dict["NAME"])) as source:
        with closing(sqlite3.connect(folder / "portal.sqlite3")) as target:
            source.backup(target)
    names = [path for finder in get_finders() for path, _storage in finder.list([])]
    (folder / "static").mkdir()
    manifest = {"paths": dict(zip(names, names, strict=True)), "version": "1.1", "hash": ""}
    (folder / "static/staticfiles.json").write_text(json.dumps(manifest))


def fill(folder: Path) -> Path:
    path = folder / "everything-else"
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return path


@contextmanager
def another_process(folder: Path) -> Iterator[None]:
    """Another process that opened the database before the disk was full, as the scheduler does."""
    with closing(sqlite3.connect(folder / "portal.sqlite3")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("SELECT count(*) FROM django_migrations").fetchall()
        yield


@contextmanager
def serving(folder: Path, port: int) -> Iterator[psutil.Process]:
    environment = os.environ | {"DATA_DIR": str(folder), "DATABASE_URL": "", "PORT": str(port), "WEB_WORKERS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--graceful-timeout", "3"],
        cwd=settings.BASE_DIR,
        env=environment | {"METRICS_TOKEN": "a-token-for-prometheus"},
    )
    try:
        wait_until_it_answers(port)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


class Browser:
    """A signed-in HTTP client that keeps cookies."""

    def __init__(self, port: int, session: str) -> None:
        self.port, self.cookies = port, {settings.SESSION_COOKIE_NAME: session}

    def open(self, path: str, data: bytes | None = None) -> tuple[int, str]:
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Cookie": cookies, "X-CSRFToken": self.cookies.get(settings.CSRF_COOKIE_NAME, "")}
        client.request("POST" if data else "GET", path, body=data, headers=headers | FORM)
        answer = client.getresponse()
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        text = answer.read().decode()
        client.close()
        return answer.status, text


BANNER = "You can read every page, but nothing can be changed until there is room again."
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PAGES = (
    "/",
    "/snapshots/",
    "/backups/",
    "/volumes/",
    "/billing/",
    "/notifications/",
    "/profile/",
    "/help/",
    "/snapshots/new/",
)


def wait_until_it_answers(port: int) -> None:
    pause = Event()
    for _try in range(300):
        try:
            if Browser(port, "").open("/healthz") == (200, "ok\n"):
                return
        except OSError:
            pause.wait(0.1)
    pytest.fail("the web server does not answer")


@pytest.fixture
def session(client_for: Callable[..., Client]) -> str:
    """Return the key of a session whose last use the next page must record."""
    client = client_for(UserFactory(member_of=ProjectFactory()))
    session = client.session
    session[sessions.SEEN] = time.time() - 2 * sessions.SEEN_EVERY_SECONDS
    session.save()
    return str(session.session_key)


def test_pages_read_and_say_why_nothing_can_be_changed(data_folder: Path, session: str, port: int) -> None:
    notification = NotificationFactory(user=User.objects.get(), url="/volumes/")
    prepare(data_folder)
    with serving(data_folder, port) as server, another_process(data_folder):
        browser = Browser(port, session)
        (worker,) = server.children()
        filler = fill(data_folder)
        for path in PAGES:
            status, page = browser.open(path)
            assert (status, BANNER in page) == (200, True), path
        assert browser.open(f"/notifications/{notification.pk}/")[0] == 302
        assert browser.open("/healthz") == (200, "ok\n")
        status, parts = browser.open("/readyz")
        assert (status, json.loads(parts)["parts"]["disk"]) == (200, "full: pages load, but nothing can be changed")
        status, page = browser.open("/profile/theme/", b"theme=dark")
        assert status == 507 and "Nothing was changed. You can still read every page." in page
        assert server.children() == [worker]

        filler.unlink()
        assert browser.open("/profile/theme/", b"theme=dark")[0] == 204
        assert BANNER not in browser.open("/")[1]


def test_a_worker_that_starts_on_a_full_disk_answers(data_folder: Path, session: str, port: int) -> None:
    prepare(data_folder)
    with serving(data_folder, port) as server, another_process(data_folder):
        browser = Browser(port, session)
        (worker,) = server.children()
        fill(data_folder)
        worker.kill()
        psutil.wait_procs([worker], timeout=10)
        wait_until_it_answers(port)
        assert [browser.open(path)[0] for path in PAGES] == [200] * len(PAGES)
        (successor,) = server.children()
        assert successor != worker
