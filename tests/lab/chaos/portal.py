"""The portal under test: its processes, database, storage and clock, and the disturbances."""

import collections
import email
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from urllib.parse import urlsplit

import psutil

FOLDER = Path(os.environ["DATA_DIR"])
STORAGE = FOLDER / "storage"
MAILS = FOLDER / "mails"
CLOCK = FOLDER / "clock"
TURNED = Path(__file__).parent / "clock"
SMALL = os.environ["CHAOS_SMALL_STORAGE"] == "1"
POSTGRESQL = os.environ["CHAOS_POSTGRESQL"]
# How long a restarted web server or database may take until it has to answer every request.
GRACE_SECONDS = 3.0
# Jumps are longer than any backoff, or shorter than the time until the next wake-up.
HOUR = 3600
OFFSETS = [0, 0, 45, -45, 2 * HOUR, 5 * HOUR, 26 * HOUR, -3 * HOUR, -7 * HOUR]

# What Django's file backend writes after each message.
END_OF_MESSAGE = b"-" * 79

chance = random.Random(os.environ["CHAOS_SEED"])
over = threading.Event()
done: collections.Counter[str] = collections.Counter()  # counts of disturbances


def mails() -> Iterator[EmailMessage]:
    """Yield the e-mails sent so far, in the order of their files, without one that is still being written."""
    for file in sorted(MAILS.glob("*.log")):
        for text in file.read_bytes().split(END_OF_MESSAGE)[:-1]:
            message = email.message_from_bytes(text.lstrip(), policy=default)
            assert isinstance(message, EmailMessage)
            yield message


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


_outages: list[list[float]] = []  # [from, to] on the monotonic clock, oldest first


@contextmanager
def outage() -> Iterator[None]:
    """Allow requests to fail within the block and for GRACE_SECONDS after it."""
    span = [time.monotonic(), float("inf")]
    _outages.append(span)
    try:
        yield
    finally:
        span[1] = time.monotonic() + GRACE_SECONDS


def needs_recovery() -> bool:
    """Return whether the time since the last outage is shorter than that outage was."""
    first, last = _outages[-1] if _outages else (0.0, 0.0)
    return time.monotonic() - last < last - first


def seconds_out() -> float:
    return sum(last - first for first, last in _outages)


def was_out(began: float, ended: float) -> bool:
    return any(first <= ended and began <= last for first, last in list(_outages))


@dataclass
class Program:
    """One of the portal's processes. The supervisor restarts it if it exits."""

    name: str
    command: list[str]
    process: subprocess.Popen | None = field(default=None, init=False)
    lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def start(self) -> None:
        environment = os.environ | {"PORT": str(PORT), "PYTHONPATH": str(TURNED), "CHAOS_CLOCK": str(CLOCK)}
        with open(FOLDER / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def send(self, number: signal.Signals) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self, number: signal.Signals) -> None:
        self.send(number)
        if self.process:
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                done[f"{self.kind} that did not end by itself"] += 1
                self.send(signal.SIGKILL)
                self.process.wait()

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None


def manage(name: str, *arguments: str) -> Program:
    return Program(name, [sys.executable, "manage.py", *arguments])


WEB = Program("web", [sys.executable, "-m", "gunicorn", "--graceful-timeout", "2"])
PROGRAMS = [
    WEB,
    manage("worker-1", "worker"),
    manage("worker-2", "worker"),
    manage("scheduler-1", "scheduler", "--interval", "1"),
    manage("scheduler-2", "scheduler", "--interval", "1"),
]
all_down = threading.Event()  # set while the supervisor must not start anything


def supervise() -> None:
    """Restart programs, as systemd does with Restart=always."""
    while True:
        for program in PROGRAMS:
            with program.lock:
                if not all_down.is_set() and program.has_ended:
                    done[f"started again a {program.kind} that had ended"] += 1
                    program.start()
        time.sleep(1)


def start_all() -> None:
    for program in PROGRAMS:
        program.start()
    wait_until_ready()
    all_down.clear()


def stop_all(number: signal.Signals) -> None:
    all_down.set()
    for program in PROGRAMS:
        with program.lock:
            program.kill(number)


def answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=10):
            return True
    except OSError:
        return False


def wait_until_ready(seconds: float = 400) -> None:
    """Wait until /readyz reports ready. On a busy machine, a web server took three minutes to start."""
    end = time.monotonic() + seconds
    answer = "nothing"
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=10) as response:
                answer = response.read().decode()
                if json.loads(answer)["status"] == "ready":
                    return
        except (OSError, ValueError) as error:
            answer = str(error)
        time.sleep(0.3)
    raise SystemExit(f"The portal is not ready after {seconds:.0f} s: {answer}. See {FOLDER}/*.log")


def kill_program() -> None:
    others = [program for program in PROGRAMS if program is not WEB]
    program = chance.choice(others if needs_recovery() else [WEB, *others, *others])
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    pause = chance.uniform(0, 3)
    with program.lock:
        if program is WEB:
            with outage():
                program.kill(number)
                over.wait(pause)
                program.start()
                while not answers() and not program.has_ended:
                    time.sleep(0.1)
        else:
            program.kill(number)
            over.wait(pause)
            program.start()
    done[f"killed {program.kind}"] += 1


def kill_web_process() -> None:
    """Kill a process that answers requests, as the kernel does when memory runs out; gunicorn replaces it."""
    if needs_recovery() or WEB.process is None:
        return kill_program()
    with outage(), suppress(psutil.NoSuchProcess):
        children = psutil.Process(WEB.process.pid).children()
        if children:
            chance.choice(children).kill()
            done["killed one web process"] += 1


def freeze_program() -> None:
    """Stop a process for longer than its lease, then let it continue."""
    program = chance.choice([other for other in PROGRAMS if other is not WEB])
    with program.lock:
        program.send(signal.SIGSTOP)
        over.wait(chance.uniform(1, 8))
        program.send(signal.SIGCONT)
    done[f"froze {program.kind}"] += 1


def crash_database() -> None:
    """Crash the server: nothing is flushed, every connection breaks, and the log is replayed."""
    if not POSTGRESQL or needs_recovery():
        return kill_program()
    data = Path("/", urlsplit(os.environ["DATABASE_URL"].replace("@/", "@localhost/")).path.lstrip("/")).parent / "data"
    with outage():
        control([*("-m", "immediate"), "stop"], data)
        over.wait(chance.uniform(0, 3))
        control(["--log", str(data.parent / "log"), "start"], data)
    done["killed database"] += 1


def control(arguments: list[str], data: Path) -> None:
    owner = data.stat()
    options = (data / "postmaster.opts").read_text().split('"')[1::2]  # those it was started with
    extra = ["--options", " ".join(f"'{word}'" for word in options if word not in ("-D", str(data)))]
    subprocess.run(
        [
            f"{POSTGRESQL}/pg_ctl",
            "--pgdata",
            data,
            "--wait",
            "--silent",
            *(extra if "start" in arguments else []),
            *arguments,
        ],
        check=True,
        cwd=data,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        **({"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}),
    )


def fill_storage() -> None:
    if (
        not SMALL or not STORAGE.is_mount()
    ):  # somebody may have unmounted it, and the machine's own disk must not fill up
        return kill_program()
    hog = STORAGE / "hog"
    with suppress(OSError), open(hog, "wb", buffering=0) as file:
        while file.write(bytes(64 * 1024)):
            pass
    over.wait(chance.uniform(1, 5))
    hog.unlink()
    done["filled storage"] += 1


def turn_clock() -> None:
    """Let the clock jump for the portal's processes, as when a machine's clock is set, but not for the storage's files."""
    set_clock(chance.choice(OFFSETS))
    done["turned clock"] += 1


def set_clock(seconds: int) -> None:
    draft = CLOCK.with_suffix(".new")
    draft.write_text(str(seconds))
    draft.replace(CLOCK)


def require_turning_clock() -> None:
    """Check that the processes see the clock, and otherwise run as in production."""
    set_clock(HOUR)
    command = "import sys, time; time.sleep(1); print(time.time(), 'pytest' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(TURNED), "CHAOS_CLOCK": str(CLOCK)}
    clock, testing = subprocess.check_output([sys.executable, "-c", command], env=environment, text=True).split()
    set_clock(0)
    if abs(float(clock) - time.time() - HOUR) > 60 or testing != "False":
        raise SystemExit(f"The clock of the portal's processes does not turn: {clock}, {testing}")


def portal_time() -> datetime:
    """Return the current time as the portal's processes see it."""
    return datetime.now(UTC) + timedelta(seconds=int(CLOCK.read_text()))


DISTURBANCES = [kill_program] * 4 + [kill_web_process, freeze_program, crash_database, crash_database]
DISTURBANCES += [fill_storage, turn_clock, turn_clock]


def inject_faults(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        chance.choice(DISTURBANCES)()
        over.wait(chance.uniform(0.2, 5))
