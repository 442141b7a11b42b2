"""The portal that the storm is on: its processes, its database, its storage and its clock, and what is done to them."""

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
# A web server or a database that is there again is given so long until it is expected to answer every request.
GRACE_SECONDS = 3.0
# Steps are longer than anything is ever put off by itself, or so short that waiting is quicker than being woken.
HOUR = 3600
OFFSETS = [0, 0, 45, -45, 2 * HOUR, 5 * HOUR, 26 * HOUR, -3 * HOUR, -7 * HOUR]

# What Django's backend for files writes after each message.
END_OF_MESSAGE = b"-" * 79

chance = random.Random(os.environ["CHAOS_SEED"])
over = threading.Event()
done: collections.Counter[str] = collections.Counter()  # what was done to the portal


def mails() -> Iterator[EmailMessage]:
    """Every e-mail that was sent so far, in the order of its files. One that is being written is left out."""
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


# --- when an answer may fail -------------------------------------------------------------------------------------------

_outages: list[list[float]] = []  # [from, to] on the monotonic clock, oldest first


@contextmanager
def outage() -> Iterator[None]:
    """While the block runs, and GRACE_SECONDS longer, nobody is promised an answer."""
    span = [time.monotonic(), float("inf")]
    _outages.append(span)
    try:
        yield
    finally:
        span[1] = time.monotonic() + GRACE_SECONDS


def need_a_rest() -> bool:
    """Whether people have not had answers again for at least as long as they had none."""
    first, last = _outages[-1] if _outages else (0.0, 0.0)
    return time.monotonic() - last < last - first


def seconds_out() -> float:
    return sum(last - first for first, last in _outages)


def was_out(began: float, ended: float) -> bool:
    return any(first <= ended and began <= last for first, last in list(_outages))


# --- processes ---------------------------------------------------------------------------------------------------------


@dataclass
class Program:
    """One of the portal's processes, which a supervisor starts again when it ends by itself."""

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


def manage(name: str, *words: str) -> Program:
    return Program(name, [sys.executable, "manage.py", *words])


WEB = Program("web", [sys.executable, "-m", "gunicorn", "--graceful-timeout", "2"])
PROGRAMS = [
    WEB,
    manage("worker-1", "worker"),
    manage("worker-2", "worker"),
    manage("scheduler-1", "scheduler", "--interval", "1"),
    manage("scheduler-2", "scheduler", "--interval", "1"),
]
all_down = threading.Event()  # the supervisor starts nothing


def supervise() -> None:
    """As systemd does with Restart=always."""
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
    """Until /readyz says that everything works. A web server took three minutes to start on a busy machine."""
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


# --- what is done to it ------------------------------------------------------------------------------------------------


def kill_program() -> None:
    others = [program for program in PROGRAMS if program is not WEB]
    program = chance.choice(others if need_a_rest() else [WEB, *others, *others])
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
    """One of those that answer, as when it runs out of memory; gunicorn replaces it."""
    if need_a_rest() or WEB.process is None:
        return kill_program()
    with outage(), suppress(psutil.NoSuchProcess):
        children = psutil.Process(WEB.process.pid).children()
        if children:
            chance.choice(children).kill()
            done["killed one web process"] += 1


def freeze_program() -> None:
    """It hangs for longer than its lease, and then goes on where it was."""
    program = chance.choice([one for one in PROGRAMS if one is not WEB])
    with program.lock:
        program.send(signal.SIGSTOP)
        over.wait(chance.uniform(1, 8))
        program.send(signal.SIGCONT)
    done[f"froze {program.kind}"] += 1


def crash_database() -> None:
    """What a crash of the server leaves: nothing is flushed, every connection breaks, the log is replayed."""
    if not POSTGRESQL or need_a_rest():
        return kill_program()
    data = Path("/", urlsplit(os.environ["DATABASE_URL"].replace("@/", "@localhost/")).path.lstrip("/")).parent / "data"
    with outage():
        control([*("-m", "immediate"), "stop"], data)
        over.wait(chance.uniform(0, 3))
        control(["--log", str(data.parent / "log"), "start"], data)
    done["killed database"] += 1


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
    over.wait(chance.uniform(1, 5))
    hog.unlink()
    done["filled storage"] += 1


def turn_clock() -> None:
    """All of the portal's processes see it jump, as when a machine's clock is set; the storage's files do not."""
    set_clock(chance.choice(OFFSETS))
    done["turned clock"] += 1


def set_clock(seconds: int) -> None:
    draft = CLOCK.with_suffix(".new")
    draft.write_text(str(seconds))
    draft.replace(CLOCK)


def require_turning_clock() -> None:
    """The processes see the clock that is set, and nothing else about them is other than in production."""
    set_clock(HOUR)
    command = "import sys, time; time.sleep(1); print(time.time(), 'pytest' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(TURNED), "CHAOS_CLOCK": str(CLOCK)}
    seen, testing = subprocess.check_output([sys.executable, "-c", command], env=environment, text=True).split()
    set_clock(0)
    if abs(float(seen) - time.time() - HOUR) > 60 or testing != "False":
        raise SystemExit(f"The clock of the portal's processes does not turn: {seen}, {testing}")


def portal_time() -> datetime:
    """What the portal's processes take for now."""
    return datetime.now(UTC) + timedelta(seconds=int(CLOCK.read_text()))


DISTURBANCES = [kill_program] * 4 + [kill_web_process, freeze_program, crash_database, crash_database]
DISTURBANCES += [fill_storage, turn_clock, turn_clock]


def rage(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        chance.choice(DISTURBANCES)()
        over.wait(chance.uniform(0.2, 5))
