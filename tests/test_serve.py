"""What `make run` does after the installation: its processes on a free port, with their own data folder."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from django.conf import settings
from django.shortcuts import resolve_url

pytestmark = pytest.mark.slow

SERVE = [sys.executable, "manage.py", "serve"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        "DATA_DIR": str(tmp_path / "var"),
        "HOME": str(home),
        "PORT": str(port),
        "SECRET_KEY": "",
        "DATABASE_URL": "",
    }
    return os.environ | own


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """Yield a server that is ready, and its output so far."""
    process = subprocess.Popen(
        SERVE,
        cwd=settings.BASE_DIR,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops it" in line:
                break
        else:
            pytest.fail(f"It ended before it was ready:\n{''.join(lines)}")
        yield process, lines
    finally:
        if process.poll() is None:
            for straggler in [*psutil.Process(process.pid).children(recursive=True), process]:
                straggler.kill()
        process.communicate()


def get(port: str, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.status, answer.read().decode()


def test_serve_starts_all_processes_and_a_signal_stops_them_without_losing_data(
    environment: dict[str, str], tmp_path: Path
) -> None:
    for run, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        with serving(environment) as (process, lines):
            output = "".join(lines)
            assert f"The portal is ready: http://127.0.0.1:{environment['PORT']}/" in output
            assert (
                "Sign in as customer@example.com, other@example.com, admin@example.com with the password portal-demo"
                in output
            )
            assert ("Filling the empty database" in output) == (run == 0)
            status, page = get(environment["PORT"], resolve_url(settings.LOGIN_URL))
            assert status == 200
            assert "static/portal." in page  # with the hash of its content: DEBUG is off

            children = psutil.Process(process.pid).children(recursive=True)
            commands = " ".join(" ".join(child.cmdline()) for child in children)
            assert all(name in commands for name in ("gunicorn", "manage.py worker", "manage.py scheduler"))

            for child in children:
                if "scheduler" in child.cmdline():
                    assert child.environ()["PORT"] == environment["PORT"]  # Links in e-mails have it.

            process.send_signal(number)

            assert process.wait(timeout=20) == 0
            assert psutil.wait_procs(children, timeout=5)[1] == []
    assert list((tmp_path / "home").iterdir()) == []


def test_a_taken_port_stops_the_start_before_anything_else(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", int(environment["PORT"]))):
        result = subprocess.run(SERVE, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True)

    assert result.returncode == 1
    assert result.stderr.startswith(f"CommandError: PORT={environment['PORT']} is taken by another program.")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "var/portal.sqlite3").exists()


def test_a_bind_address_of_another_machine_stops_the_start(environment: dict[str, str]) -> None:
    environment["BIND"] = "192.0.2.1"  # reserved for documentation

    result = subprocess.run(SERVE, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True)

    assert result.returncode == 1
    assert "BIND=192.0.2.1 and PORT=" in result.stderr
    assert "Cannot assign requested address" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_database_that_does_not_answer_stops_the_start(environment: dict[str, str]) -> None:
    environment["DATABASE_URL"] = "postgres://portal:hunter2@127.0.0.1:1/portal"

    result = subprocess.run(SERVE, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True)

    assert result.returncode == 1
    assert "DATABASE_URL cannot be used: the database does not answer." in result.stderr
    assert "hunter2" not in result.stderr
    assert "Traceback" not in result.stderr
