"""`manage.py serve`: start the portal on this machine; `make run` calls it."""

import errno
import hashlib
import http.client
import os
import signal
import socket
import sys
import time
from pathlib import Path
from threading import Thread

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.finders import get_finders
from django.core.management import BaseCommand, CommandError, call_command
from django.db import DatabaseError, connection, connections
from django.shortcuts import resolve_url
from honcho.environ import parse_procfile
from honcho.manager import Manager

from cng_portal.hardening import refuse_unsafe_start
from snapshots import system_checks  # noqa: F401  # A storage driver that can't be loaded stops the start.

from .demo import PASSWORD, SIGN_INS

STARTUP_SECONDS = 90
# Variants of Bootstrap that no page uses; compressing them would take most of collectstatic's time.
UNUSED_STATIC_FILES = ["bootstrap.css*", "bootstrap.js*", "bootstrap.min.js*", "bootstrap.bundle.js*"]
UNUSED_STATIC_FILES += ["bootstrap.esm*", "bootstrap-*", "bootstrap*rtl*"]


class Command(BaseCommand):
    help = "Migrate the database, load the demo data if it is empty, and run the processes of the Procfile."

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
        self.print("Preparing the database and the static files…")
        call_command("migrate", interactive=False, verbosity=0)
        call_command("createcachetable", verbosity=0)
        collect_static_files()
        if not settings.PRODUCTION:
            call_command("demo", stdout=self.stdout)
        self.welcome = welcome()
        connections.close_all()  # The processes must not inherit a connection.

    def run_processes(self) -> None:
        """Run the processes until a signal arrives or one of them ends; either stops all of them."""
        bin_folder = Path(sys.executable).parent
        path = os.pathsep.join([str(bin_folder), os.environ.get("PATH", os.defpath)])
        procfile = parse_procfile((settings.BASE_DIR / "Procfile").read_text())
        self.manager = Manager()
        for name, command in procfile.processes.items():
            environment = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"}
            self.manager.add_process(name, command, env=environment, cwd=str(settings.BASE_DIR))
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # The terminal was closed.
        Thread(target=self.wait_for_page, daemon=True).start()
        self.manager.loop()
        stopped_by_signal = self.manager.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        sys.exit(0 if stopped_by_signal else self.manager.returncode or 1)

    def wait_for_page(self) -> None:
        """Print the address once the sign-in page loads; stop everything when it doesn't within STARTUP_SECONDS."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            if page_loads():
                self.print(self.welcome)
                return
            time.sleep(0.2)
        self.stderr.write(f"The page didn't load within {STARTUP_SECONDS} seconds. The lines above say why.")
        self.manager.returncode = 1
        self.manager.terminate()

    def print(self, text: str) -> None:
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
    if probe.vendor == "postgresql":  # A plain connection reports the reason; the pool reports a timeout.
        del probe.settings_dict["OPTIONS"]["pool"]
        probe.settings_dict["OPTIONS"].setdefault("connect_timeout", 10)
    try:
        probe.ensure_connection()
    except DatabaseError as error:
        raise CommandError(f"DATABASE_URL cannot be used: the database does not answer. {error}".strip()) from None
    finally:
        probe.close()


def collect_static_files() -> None:
    """Collect and compress the static files if any has changed, because it takes seconds."""
    files = [storage.path(path) for finder in get_finders() for path, storage in finder.list([])]
    versions = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(versions).encode()).hexdigest()
    stamp = settings.DATA_DIR / "static.sha256"
    if stamp.exists() and stamp.read_text() == digest and Path(settings.STATIC_ROOT).exists():
        return
    call_command("collectstatic", interactive=False, clear=True, verbosity=0, ignore_patterns=UNUSED_STATIC_FILES)
    stamp.write_text(digest)


def local_host() -> str:
    """Return the address at which this machine reaches the page: 0.0.0.0 and :: can't be connected to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.BIND, settings.BIND)


def page_loads() -> bool:
    client = http.client.HTTPConnection(local_host(), settings.PORT, timeout=10)
    try:
        client.request("GET", resolve_url(settings.LOGIN_URL))
        # A 400 counts: ALLOWED_HOSTS may allow only the host of a proxy.
        return client.getresponse().status < 500
    except OSError:
        return False
    finally:
        client.close()


def welcome() -> str:
    host = f"[{local_host()}]" if ":" in local_host() else local_host()
    lines = ["", f"  The portal is ready: http://{host}:{settings.PORT}/"]
    users = get_user_model().objects.in_bulk(SIGN_INS, field_name="email")
    sign_ins = [email for email in SIGN_INS if email in users and users[email].check_password(PASSWORD)]
    if sign_ins:
        lines.append(f"  Sign in as {', '.join(sign_ins)} with the password {PASSWORD}")
    return "\n".join([*lines, "  Ctrl-C stops it.", ""])
