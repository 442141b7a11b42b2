"""`make upgrade`: a new version's migrations run while the old version's processes serve, then both serve side by side.

The old version is the newest commit without one of today's migrations, or FROM. It runs from its own folder, with
today's packages, on its own PostgreSQL with the demo and many rows in the tables that grow. Simulated users click all
the while, and a second connection records who waits for which lock.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.cookiejar import CookieJar
from pathlib import Path

import psycopg

from tests.postgres import find_server_programs, postgres

HERE = Path(__file__).resolve().parents[2]
# The longest acceptable wait for a lock while the migrations run.
LONGEST_WAIT_SECONDS = 3.0
MIGRATIONS = "*/migrations/0*.py"
PAGES = [
    "/",
    "/snapshots/",
    "/snapshots/vm/",
    "/volumes/",
    "/instances/",
    "/backups/",
    "/billing/",
    "/profile/",
    "/profile/limits/",
]
PEOPLE = 200_000
MANY_PEOPLE = {
    "id": "gen_random_uuid()",
    "password": "'!'",
    "is_superuser": "false",
    "email": "'person' || n || '@example.com'",
    "name": "'Actor ' || n",
    "is_staff": "false",
    "is_active": "true",
    "date_joined": "now()",
}


def git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=HERE, text=True).strip()


def old_version() -> str:
    return os.environ.get("FROM") or git("log", "-1", "--format=%h", "--diff-filter=A", "--", MIGRATIONS) + "~1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def manage(code: Path, environment: dict[str, str], *arguments: str) -> None:
    subprocess.run([sys.executable, "manage.py", *arguments], cwd=code, env=environment, check=True)


@contextmanager
def running(code: Path, environment: dict[str, str], log: Path, *command: str) -> Iterator[subprocess.Popen]:
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=code, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


class Actor(threading.Thread):
    """A user who signs in, opens every page, and takes, renames and deletes snapshots repeatedly."""

    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.base, self.over = f"http://127.0.0.1:{port}", over
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.answers: Counter[int] = Counter()
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest = 0.0

    def ask(self, path: str, data: dict[str, str] | None = None) -> tuple[str, str]:
        """Send a request and follow redirects. Returns (final URL, body)."""
        began = time.monotonic()
        body = urllib.parse.urlencode(data).encode() if data is not None else None
        try:
            with self.opener.open(urllib.parse.urljoin(self.base, path), body, timeout=60) as response:
                status, where, text = response.status, response.url, response.read().decode()
        except urllib.error.HTTPError as error:
            status, where, text = error.code, error.url or path, error.read().decode(errors="replace")
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.answers[status] += 1
        if status >= 400:
            self.problems.append(f"{status} of {path}")
        return where, text

    def submit(self, page: tuple[str, str], path: str = "", **fields: str) -> tuple[str, str]:
        where, text = page
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', text)
        return self.ask(path or where, {"csrfmiddlewaretoken": token[1] if token else "", **fields})

    def run(self) -> None:
        entrance = self.ask("/accounts/login/")
        self.submit(entrance, login="customer@example.com", password="portal-demo")
        number = 0
        while not self.over.is_set():
            for path in PAGES:
                self.ask(path)
            number += 1
            self.click_through(f"upgrade {self.name} {number}")

    def click_through(self, name: str) -> None:
        _where, volumes = self.ask("/volumes/")
        volume = re.findall(r"/volumes/([0-9a-f-]{36})/", volumes)[0]
        page = self.submit(self.ask(f"/volumes/{volume}/"), f"/volumes/{volume}/take-snapshot/")
        review = self.submit(page, name=name)
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', review[1]))
        response_url, text = self.submit(review, **{**hidden, "billing_cycle": "hourly"})
        match = re.search(r"/snapshots/([0-9a-f-]{36})/$", urllib.parse.urlsplit(response_url).path)
        if not match:
            self.problems.append(f"no snapshot was made: {response_url}")
            return
        self.done["taken"] += 1
        path = f"/snapshots/{match[1]}/"
        self.submit(self.ask(f"{path}rename/"), name=f"{name} renamed")
        self.done["renamed"] += 1
        for _second in range(30):
            if "Ready" in self.ask(path)[1]:
                self.done["ready"] += 1
                self.submit(self.ask(f"{path}delete/"), confirmation=f"{name} renamed")
                self.done["deleted"] += 1
                return
            if self.over.wait(1):
                return


class Watcher(threading.Thread):
    """Records the longest wait for a lock."""

    def __init__(self, conninfo: str, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.conninfo, self.over, self.longest, self.what = conninfo, over, 0.0, ""

    def run(self) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            while not self.over.wait(0.05):
                row = connection.execute(
                    "SELECT extract(epoch FROM clock_timestamp() - l.waitstart)::float, a.query FROM pg_locks l"
                    " JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND l.waitstart IS NOT NULL"
                    " ORDER BY 1 DESC LIMIT 1"
                ).fetchone()
                if row and row[0] > self.longest:
                    self.longest, self.what = row


def fill(conninfo: str) -> None:
    """Insert so many rows that rewriting their table would be noticed."""
    with psycopg.connect(conninfo) as connection:
        columns = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'accounts_user' AND"
            " is_nullable = 'NO' AND column_default IS NULL"
        ).fetchall()
        answers = MANY_PEOPLE | {
            name: "false" if kind == "boolean" else "''" for name, kind in columns if name not in MANY_PEOPLE
        }
        insert = f"INSERT INTO accounts_user ({', '.join(answers)}) SELECT {', '.join(answers.values())}"
        connection.execute(f"{insert} FROM generate_series(1, {PEOPLE}) n".encode())


def wait_until_ready(port: int) -> None:
    for _try in range(240):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as response:
                if json.load(response)["status"] in ("ready", "degraded"):
                    return
        except (OSError, ValueError):
            pass
        time.sleep(0.5)
    raise SystemExit("The portal is not ready after two minutes.")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes started below end with this one
    programs = find_server_programs()
    if not programs:
        raise SystemExit("It needs PostgreSQL's server programs. On Debian: apt-get install postgresql")
    commit = old_version()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="portal-upgrade-")))
        url = stack.enter_context(postgres(programs))
        old = folder / "old"
        old.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=HERE, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=old, input=archive, check=True)
        common = os.environ | {"DATA_DIR": str(folder / "data"), "DATABASE_URL": url, "ENV_FILE": os.devnull}
        common |= {"WEB_WORKERS": "1", "WEB_THREADS": "4", "DATABASE_POOL": "4", "LOG_LEVEL": "WARNING"}
        ports = free_port(), free_port()
        before, now = (common | {"PORT": str(port)} for port in ports)
        for arguments in (["migrate", "-v0"], ["createcachetable"], ["demo"], ["collectstatic", "--no-input", "-v0"]):
            manage(old, before, *arguments)
        connection = f"host={url.split('@/')[1].rpartition('/')[0]} user=portal dbname=postgres"
        fill(connection)

        over = threading.Event()
        watcher = Watcher(connection, over)
        watcher.start()
        old_web = stack.enter_context(running(old, before, folder / "old-web.log", "-m", "gunicorn"))
        stack.enter_context(running(old, before, folder / "old-worker.log", "manage.py", "worker"))
        wait_until_ready(ports[0])
        threads = [Actor(ports[0], over) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(10)
        began = time.monotonic()
        slow = common | {"PGOPTIONS": "-c lock_timeout=5s"}  # as deploy/systemd/portal-migrate.service
        manage(HERE, slow | {"PORT": str(ports[1])}, "migrate", "--no-input")
        seconds = time.monotonic() - began
        time.sleep(10)
        manage(HERE, now, "collectstatic", "--no-input", "-v0")
        stack.enter_context(running(HERE, now, folder / "new-web.log", "-m", "gunicorn"))
        stack.enter_context(running(HERE, now, folder / "new-worker.log", "manage.py", "worker"))
        wait_until_ready(ports[1])
        newcomers = [Actor(ports[1], over) for _ in range(2)]
        for thread in newcomers:
            thread.start()
        time.sleep(20)
        over.set()
        for thread in [*threads, *newcomers]:
            thread.join(90)
        watcher.join(10)
        assert old_web.poll() is None, "the old version's web process ended"

        problems = [problem for thread in [*threads, *newcomers] for problem in thread.problems]
        for name, crowd in ("the old version", threads), ("the new version", newcomers):
            answers = sum((thread.answers for thread in crowd), Counter())
            done = sum((thread.done for thread in crowd), Counter())
            slowest = max(thread.slowest for thread in crowd)
            print(f"{name}: {dict(answers)} answers, {dict(done)}, the slowest took {slowest:.1f} s")
            if not done["deleted"]:
                problems.append(f"{name} did no work")
        print(f"{commit} to now: migrated in {seconds:.1f} s, the longest wait for a lock was {watcher.longest:.2f} s")
        if watcher.longest > LONGEST_WAIT_SECONDS:
            problems.append(f"somebody waited {watcher.longest:.1f} s for a lock: {watcher.what}")
        for log in folder.glob("*.log"):
            text = log.read_text(errors="replace")
            problems += [f"{log.name}: {line}" for line in text.splitlines() if "Traceback" in line or "Error:" in line]
        for problem in problems[:40]:
            print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
