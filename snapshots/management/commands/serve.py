"""`manage.py serve`: what `make run` does once the packages are there."""

import errno
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.finders import get_finders
from django.core.management import BaseCommand, CommandError, call_command
from django.db import DatabaseError, connection
from django.shortcuts import resolve_url

from cng_portal.hardening import refuse_unsafe_start
from snapshots import checks  # noqa: F401  the start stops at a storage engine that cannot be loaded

from .demo import PASSWORD, SIGN_INS

SECONDS_TO_ANSWER = 90
# Bootstrap's variants that no page asks for are most of what there would be to compress.
UNUSED_STATIC_FILES = ["bootstrap.css*", "bootstrap.js*", "bootstrap.min.js*", "bootstrap.bundle.js*"]
UNUSED_STATIC_FILES += ["bootstrap.esm*", "bootstrap-*", "bootstrap*rtl*"]


class Command(BaseCommand):
    help = (
        "Prepare the database, fill it with the demo when it is empty and nobody else reaches it, and run the processes of "
        "the Procfile."
    )

    def handle(self, **options: object) -> None:
        refuse_taken_port()
        refuse_unreachable_database()
        try:
            self.prepare()
            refuse_unsafe_start()
        except KeyboardInterrupt:
            sys.exit(130)
        self.run_processes()

    def prepare(self) -> None:
        self.say("Preparing the database and the static files…")
        call_command("migrate", interactive=False, verbosity=0)
        call_command("createcachetable", verbosity=0)
        collect_static_files()
        if not settings.PRODUCTION:
            call_command("demo", stdout=self.stdout)

    def run_processes(self) -> None:
        """Run honcho until a signal comes or one process ends, either of which stops them all."""
        honcho = subprocess.Popen(
            # No --env: the settings read it. With a session of its own, Ctrl-C reaches honcho once, through `stop`.
            [sys.executable, "-m", "honcho", "--env", os.devnull, "--app-root", str(settings.BASE_DIR), "start"],
            env=os.environ
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
                "PYTHONUNBUFFERED": "1",
                # honcho gives each process a PORT of its own, and the default would name it in links
                "PORTAL_URL": settings.PORTAL_URL,
            },
            start_new_session=True,
        )
        stopped = False

        def stop(signum: int, frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            honcho.terminate()

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, stop)
        if page_answers(honcho):
            self.say(welcome())
        elif honcho.poll() is None and not stopped:
            self.stderr.write(f"The page did not answer within {SECONDS_TO_ANSWER} seconds. The lines above say why.")
            honcho.terminate()
        result = honcho.wait()
        if not stopped:
            sys.exit(result or 1)

    def say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def refuse_taken_port() -> None:
    family = socket.AF_INET6 if ":" in settings.BIND else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn does
        try:
            probe.bind((settings.BIND, settings.PORT))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CommandError(
                    f"PORT={settings.PORT} is taken by another program. Stop that one, or choose another port: "
                    f"PORT={settings.PORT + 1 if settings.PORT < 65535 else 8000} make run"
                ) from None
            raise CommandError(
                f"BIND={settings.BIND} and PORT={settings.PORT} cannot be used: {error.strerror}."
            ) from None


def refuse_unreachable_database() -> None:
    probe = connection.copy()
    if probe.vendor == "postgresql":  # one plain connection says what is wrong, the pool only that it waited
        del probe.settings_dict["OPTIONS"]["pool"]
        probe.settings_dict["OPTIONS"].setdefault("connect_timeout", 10)
    try:
        probe.ensure_connection()
    except DatabaseError as error:
        raise CommandError(f"DATABASE_URL cannot be used: the database does not answer. {error}".strip()) from None
    finally:
        probe.close()


def collect_static_files() -> None:
    """Compressing them takes seconds, so only when one of them is another than last time."""
    files = [storage.path(path) for finder in get_finders() for path, storage in finder.list([])]
    stats = [(path, os.stat(path)) for path in files]
    now = hashlib.sha256(repr([(path, one.st_size, one.st_mtime_ns) for path, one in stats]).encode()).hexdigest()
    stamp = settings.DATA_DIR / "static.sha256"
    if stamp.exists() and stamp.read_text() == now and Path(settings.STATIC_ROOT).exists():
        return
    call_command("collectstatic", interactive=False, clear=True, verbosity=0, ignore_patterns=UNUSED_STATIC_FILES)
    stamp.write_text(now)


def local_host() -> str:
    """Where this machine finds the page: 0.0.0.0 and :: listen everywhere but are no destination."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.BIND, settings.BIND)


def page_answers(honcho: subprocess.Popen) -> bool:
    """Wait until the sign-in page answers; False when honcho ended first, or after SECONDS_TO_ANSWER."""
    deadline = time.monotonic() + SECONDS_TO_ANSWER
    while honcho.poll() is None and time.monotonic() < deadline:
        client = http.client.HTTPConnection(local_host(), settings.PORT, timeout=10)
        try:
            client.request("GET", resolve_url(settings.LOGIN_URL))
            # even a refusal answers: ALLOWED_HOSTS may name only the host of a proxy in front
            return client.getresponse().status < 500
        except OSError:
            time.sleep(0.2)
        finally:
            client.close()
    return False


def welcome() -> str:
    host = f"[{local_host()}]" if ":" in local_host() else local_host()
    lines = ["", f"  The portal is ready: http://{host}:{settings.PORT}/"]
    people = get_user_model().objects.in_bulk(SIGN_INS, field_name="email")
    # only as long as the demo's password still opens the door
    sign_ins = [email for email in SIGN_INS if email in people and people[email].check_password(PASSWORD)]
    if sign_ins:
        lines.append(f"  Sign in as {', '.join(sign_ins)} with the password {PASSWORD}")
    return "\n".join([*lines, "  Ctrl-C stops it.", ""])
