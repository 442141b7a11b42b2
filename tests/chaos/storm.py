"""One storm on one database; tests/chaos/__main__.py prepares its folder and environment."""

import collections
import http.client
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import django

django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.management import CommandError, call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.utils import DatabaseError  # noqa: E402
from django.utils import timezone  # noqa: E402

from billing import services as billing  # noqa: E402
from billing.models import ServiceKind, UsageSegment  # noqa: E402
from cng_portal.accounts.models import User  # noqa: E402
from cng_portal.inventory.models import Volume  # noqa: E402
from snapshots.drivers.base import GIB  # noqa: E402
from snapshots.models import DiskImage, Operation, Snapshot, State  # noqa: E402
from tests.factories import (  # noqa: E402
    CustomerFactory,
    LocationFactory,
    ProjectFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)

SECONDS = float(os.environ.get("CHAOS_SECONDS", "120"))
CUSTOMERS = 8
CALM_SECONDS = 240.0
TURNED = Path(__file__).parent / "clock"
FOLDER = Path(os.environ["DATA_DIR"])
STORAGE = FOLDER / "storage"
CLOCK = FOLDER / "clock"
SMALL = os.environ["CHAOS_SMALL_STORAGE"] == "1"
POSTGRESQL = os.environ["CHAOS_POSTGRESQL"]
TOKEN = "c" * 32
CHUNK = 16 * 1024
PLACES = (0, 400 * 1024**2, GIB - CHUNK)  # of a disk that its machine writes to

chance = random.Random(os.environ["CHAOS_SEED"])
over = threading.Event()
counts: collections.Counter[str] = collections.Counter()
written: dict[str, set[bytes]] = collections.defaultdict(set)  # {volume: stamps that it ever had}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


# --- the portal --------------------------------------------------------------------------------------------------------


@dataclass
class Program:
    name: str
    command: list[str]
    process: subprocess.Popen | None = field(default=None, init=False)

    def start(self) -> None:
        environment = os.environ | {"PORT": str(PORT), "PYTHONPATH": str(TURNED), "CHAOS_CLOCK": str(CLOCK)}
        with open(FOLDER / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def kill(self, number: signal.Signals) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            self.process.wait()


def manage(name: str, *words: str) -> Program:
    return Program(name, [sys.executable, "manage.py", *words])


PROGRAMS = [
    Program("web", [sys.executable, "-m", "gunicorn", "--graceful-timeout", "2"]),
    manage("worker-1", "worker"),
    manage("worker-2", "worker"),
    manage("scheduler-1", "scheduler", "--interval", "1"),
    manage("scheduler-2", "scheduler", "--interval", "1"),
]


def furnish() -> list[User]:
    call_command("migrate", verbosity=0)
    call_command("createcachetable", verbosity=0)
    call_command("collectstatic", interactive=False, verbosity=0)
    location = LocationFactory(code="1CNG-CHAOS")
    for kind in ServiceKind.BS_SNAPSHOT, ServiceKind.VM_SNAPSHOT, ServiceKind.VM_BACKUP:
        billing.create_package(
            location=location, kind=kind, rate_micro=400_000, starts_at=timezone.now() - timedelta(days=2)
        )
    owners = []
    for number in range(CUSTOMERS):
        project = ProjectFactory(customer=CustomerFactory(postpaid=True, name=f"Customer {number}"), name="Default")
        owner = UserFactory(member_of=project)
        vm = VirtualMachineFactory(project=project, location=location, name="machine", stopped=True)
        for position, machine in enumerate((vm, vm, None)):
            volume = VolumeFactory(project=project, location=location, vm=machine, name=f"disk-{position}")
            path = image(volume)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.truncate(GIB)
            write(volume, 0)
        owners.append(owner)
    return owners


def image(volume: Volume) -> Path:
    return STORAGE / volume.location_id / "volumes" / f"{volume.pk}.img"


def write(volume: Volume, number: int) -> None:
    """What a machine does to its disk, as one transaction of a file system: nobody captures in the middle of it."""
    import fcntl

    stamp = f"{volume.pk} {number:>20} ".encode()
    with open(image(volume), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if os.fstat(file.fileno()).st_ino != image(volume).stat().st_ino:
            return  # restored just now
        written[str(volume.pk)].add(stamp)
        for place in PLACES:
            os.pwrite(file.fileno(), (stamp * (CHUNK // len(stamp) + 1))[:CHUNK], place)


# --- the customers -----------------------------------------------------------------------------------------------------


class Customer(threading.Thread):
    """Clicks on everything, one click after the other, and is not discouraged."""

    def __init__(self, owner: User, seed: int) -> None:
        super().__init__(name=owner.email, daemon=True)
        self.random = random.Random(seed)
        session = SessionStore()
        session[SESSION_KEY] = str(owner.pk)
        session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
        session[HASH_SESSION_KEY] = owner.get_session_auth_hash()
        session.set_expiry(86_400 * 365)
        session.save()
        self.cookie = f"{settings.SESSION_COOKIE_NAME}={session.session_key}; {settings.CSRF_COOKIE_NAME}={TOKEN}"
        self.volumes = list(Volume.objects.filter(project__members=owner))
        self.project = self.volumes[0].project_id
        self.vm = self.volumes[0].vm_id or self.volumes[1].vm_id or self.volumes[2].vm_id
        self.clicks = 0

    def run(self) -> None:
        acts = [self.take, self.take, self.take_machine, self.delete, self.delete, self.restore, self.new_volume]
        acts += [self.rename, self.verify, self.retry, self.look, self.look, self.write, self.write, self.write]
        while not over.is_set():
            act = self.random.choice(acts)
            try:
                act()
            except (OSError, http.client.HTTPException):
                counts["no answer"] += 1
                over.wait(0.3)

    def ask(self, path: str, data: dict[str, Any] | None = None) -> tuple[int, str, str]:
        """(status, where it leads, body)"""
        client = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
        try:
            headers = {"Cookie": self.cookie, "Host": f"localhost:{PORT}"}
            if data is None:
                client.request("GET", path, headers=headers)
            else:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
                client.request("POST", path, urlencode(data | {"csrfmiddlewaretoken": TOKEN}), headers)
            answer = client.getresponse()
            body = answer.read().decode(errors="replace")
        finally:
            client.close()
        counts["clicks"] += 1
        counts[f"answers {answer.status // 100}xx"] += 1
        return answer.status, urlsplit(answer.getheader("Location") or "").path, body

    def some_snapshot(self, path: str = "/snapshots/") -> str:
        found = re.findall(r'href="(/snapshots/[0-9a-f-]{36}/)"', self.ask(path)[2])
        return self.random.choice(found) if found else ""

    def named(self, page: str, path: str) -> str:
        """The name that a form wants to have typed."""
        found = re.search(r"Type the (?:snapshot|volume|machine)(?:&#x27;|')s name, ([^<,]+?), to confirm", page)
        return found[1].strip() if found else ""

    def take(self, path: str = "") -> None:
        path = path or f"/volumes/{self.random.choice(self.volumes).pk}/take-snapshot/"
        step = self.ask(path, {})[1]
        if not step:
            return
        self.clicks += 1
        review = self.ask(step, {"name": f"{self.name[:20]} {self.clicks}"})[1]
        shown = re.search(r'name="shown_hourly_micro" value="(\d+)"', self.ask(review)[2]) if review else None
        if shown:
            for _click in range(self.random.choice([1, 1, 2])):
                self.ask(review, {"billing_cycle": "hourly", "shown_hourly_micro": shown[1]})
            counts["asked for a snapshot"] += 1

    def take_machine(self) -> None:
        self.take(f"/instances/{self.vm}/take-snapshot/")

    def confirm(self, path: str, what: str) -> None:
        if name := self.named(self.ask(path)[2], path):
            counts[f"asked for a {what}"] += self.ask(path, {"confirmation": name})[0] == 302

    def delete(self) -> None:
        if found := self.some_snapshot(
            self.random.choice(["/snapshots/", "/snapshots/vm/", "/snapshots/?sort=oldest"])
        ):
            self.confirm(f"{found}delete/", "deletion")

    def restore(self) -> None:
        if found := self.some_snapshot(self.random.choice(["/snapshots/", "/snapshots/vm/"])):
            self.confirm(f"{found}restore/", "restore")

    def new_volume(self) -> None:
        if found := self.some_snapshot():
            data = {"name": f"copy {self.clicks}", "project": self.project, "size_gb": self.random.choice([1, 2])}
            counts["asked for a new volume"] += self.ask(f"{found}new-volume/", data)[0] == 302

    def rename(self) -> None:
        if found := self.some_snapshot():
            self.ask(f"{found}rename/", {"name": f"renamed {self.name[:20]} {self.random.randrange(30)}"})

    def verify(self) -> None:
        if found := self.some_snapshot():
            self.ask(f"{found}verify/", {})

    def retry(self) -> None:
        for path in re.findall(r'"(/operations/[0-9a-f-]{36}/retry/)"', self.ask("/")[2])[:3]:
            self.ask(path, {})

    def look(self) -> None:
        pages = [
            "/",
            "/snapshots/",
            "/snapshots/vm/",
            "/volumes/",
            "/instances/",
            "/billing/",
            "/billing/subscriptions/",
        ]
        pages += [
            "/billing/credits/",
            "/billing/transactions/",
            "/billing/statement/",
            "/billing/usage.csv",
            "/backups/",
        ]
        self.ask(self.random.choice(pages))

    def write(self) -> None:
        self.clicks += 1
        write(self.random.choice(self.volumes), self.clicks)
        over.wait(0.05)


# --- the storm ---------------------------------------------------------------------------------------------------------


def kill_program() -> None:
    program = chance.choice(PROGRAMS)
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    program.kill(number)
    counts[f"killed {program.name.partition('-')[0]}"] += 1
    over.wait(chance.uniform(0, 3))
    program.start()


def crash_database() -> None:
    """What a crash of the server leaves: nothing is flushed, every connection breaks, the log is replayed."""
    if not POSTGRESQL:
        return kill_program()
    data = Path(urlsplit(os.environ["DATABASE_URL"].replace("@/", "@localhost/")).path.lstrip("/")).parent
    control([*("-m", "immediate"), "stop"], Path("/", data, "data"))
    counts["killed database"] += 1
    over.wait(chance.uniform(0, 3))
    control(["--log", str(Path("/", data, "log")), "start"], Path("/", data, "data"))


def control(words: list[str], data: Path) -> None:
    owner = data.stat()
    options = (data / "postmaster.opts").read_text().split('"')[1::2]  # as it was started
    extra = ["--options", " ".join(f"'{word}'" for word in options if word not in ("-D", str(data)))]
    subprocess.run(
        [f"{POSTGRESQL}/pg_ctl", "--pgdata", data, "--wait", "--silent", *(extra if "start" in words else []), *words],
        check=True,
        cwd=data,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        **({"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}),
    )


def fill_storage() -> None:
    if not SMALL:
        return kill_program()
    hog = STORAGE / "hog"
    with suppress(OSError), open(hog, "wb", buffering=0) as file:
        while file.write(bytes(64 * 1024)):
            pass
    counts["filled storage"] += 1
    over.wait(chance.uniform(1, 5))
    hog.unlink()


def turn_clock() -> None:
    """All of the portal's processes see it jump, as when a machine's clock is set; the storage's files do not."""
    set_clock(chance.choice([0, 0, 45, 600, 7200, -600, -45]))
    counts["turned clock"] += 1


def set_clock(seconds: int) -> None:
    draft = CLOCK.with_suffix(".new")
    draft.write_text(str(seconds))
    draft.replace(CLOCK)


def wait_for_the_page() -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", PORT), timeout=1):
            return
        time.sleep(0.2)
    raise SystemExit(f"The web server does not start, see {FOLDER}/web.log")


def rage() -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        chance.choice([kill_program, kill_program, kill_program, crash_database, fill_storage, turn_clock])()
        over.wait(chance.uniform(0.2, 3))


def calm_down(customers: list[Customer]) -> None:
    """The clock is right again, everything runs, and customers try again what failed; until nothing is left to do."""
    set_clock(0)
    end = time.monotonic() + CALM_SECONDS
    while True:
        for program in PROGRAMS:
            if program.process is None or program.process.poll() is not None:
                program.start()
        time.sleep(1)
        with suppress(DatabaseError):
            if not Operation.objects.active().exists():
                stuck = Snapshot.objects.filter(state=State.DELETING)
                if not stuck.exists():
                    return
                for customer in customers:
                    with suppress(OSError, http.client.HTTPException):
                        customer.retry()
        if time.monotonic() > end:
            left = [f"{one}, {one.state}, not before {one.not_before}" for one in Operation.objects.active()[:5]]
            raise SystemExit(f"After {CALM_SECONDS:.0f} s of calm there is still something to do: {left}")


# --- afterwards --------------------------------------------------------------------------------------------------------


def differences() -> list[str]:
    found = []
    for command, options in (("fsck", {"read": True}), ("verify_billing", {})):
        try:
            call_command(command, **options)  # type: ignore[arg-type]
        except CommandError as error:
            found.append(f"{command}: {error}")
    for disk in DiskImage.objects.filter(snapshot__state=State.READY).select_related("snapshot"):
        path = STORAGE / disk.snapshot.location_id / "snapshots" / str(disk.pk) / "disk.img"
        with open(path, "rb") as file:
            parts = [os.pread(file.fileno(), CHUNK, place) for place in PLACES]
        counts["disks compared"] += 1
        stamp = parts[0][: len(f"{disk.volume_id} {0:>20} ")]
        if len(set(parts)) != 1 or stamp not in written[str(disk.volume_id)]:
            found.append(f"{disk.snapshot.name} has bytes that its volume never had together: {stamp!r}")
    segments = collections.defaultdict(list)
    for segment in UsageSegment.objects.all():
        segments[segment.resource_id].append(segment)
    for snapshot in Snapshot.objects.all():
        charged = segments.pop(snapshot.pk, [])
        if len(charged) != (snapshot.ready_at is not None):
            found.append(f"{snapshot.name}, {snapshot.state}, was charged {len(charged)} times")
        for segment in charged:
            ended = snapshot.delete_requested_at and max(snapshot.delete_requested_at, segment.started_at)
            if (segment.started_at, segment.ended_at) != (snapshot.ready_at, ended):
                found.append(f"{snapshot.name} was charged from {segment.started_at} to {segment.ended_at}")
    found += [f"{resource} was charged and never existed" for resource in segments]
    return found


def main() -> int:
    owners = furnish()
    set_clock(0)
    if not SMALL:
        print("  The storage stays large: only root can mount a small one.", flush=True)
    customers = [Customer(owner, chance.randrange(10**9)) for owner in owners]
    connection.close()
    for program in PROGRAMS:
        program.start()
    try:
        wait_for_the_page()
        for customer in customers:
            customer.start()
        rage()
        over.set()
        for customer in customers:
            customer.join()
        calm_down(customers)
    finally:
        over.set()
        for program in PROGRAMS:
            program.kill(signal.SIGKILL)
    found = differences()
    for state, count in sorted(collections.Counter(Snapshot.objects.values_list("state", flat=True)).items()):
        counts[f"snapshots {state}"] = count
    for state in "succeeded", "failed":
        counts[f"operations {state}"] = Operation.objects.filter(state=state).count()
    print("  " + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())), flush=True)
    if counts["asked for a snapshot"] < CUSTOMERS:
        found.append("The customers hardly got through, so this proves nothing.")
    for one in found:
        print(f"  {one}", flush=True)
    print(f"  {len(found)} differences.", flush=True)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
