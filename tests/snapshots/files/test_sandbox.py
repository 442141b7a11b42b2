"""In its sandbox, a reader can compute and use files that are already open, but nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection

from snapshots.files import children
from tests.snapshots.files.conftest import Images

PROBE = """
import sys, os, json, socket, ctypes, mmap
sys.path += sys.argv[1:]
from snapshots.files.reader import sandbox
def attempt(act):
    try:
        act()
        return "done"
    except BaseException as error:
        return type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
secret, folder, database, parent = json.load(sys.stdin)
image = os.open(secret, os.O_RDONLY)
sandbox.enter_sandbox(cpu_seconds=2)
acts = {
    "read an open file": lambda: os.pread(image, 1, 0),
    "write to the pipe": lambda: os.write(1, b""),
    "open a file": lambda: open(secret),
    "open the database": lambda: open(database, "r+b"),
    "create a file": lambda: open(folder + "/new", "w"),
    "remove a file": lambda: os.unlink(secret),
    "list a folder": lambda: os.listdir(folder),
    "see a file": lambda: os.stat(secret),
    "write to the image": lambda: os.pwrite(image, b"x", 0),
    "make the image longer": lambda: os.ftruncate(image, 10),
    "open a socket": lambda: socket.socket(socket.AF_INET),
    "open a socket of the machine": lambda: socket.socket(socket.AF_UNIX),
    "make a pair of sockets": lambda: socket.socketpair(),
    "fork": os.fork,
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "kill its parent": lambda: os.kill(parent, 9),
    "trace its parent": lambda: call(101, 16, parent, 0, 0),
    "read its parent's memory": lambda: call(310, parent, 0, 0, 0, 0, 0),
    "become root": lambda: os.setuid(0),
    "load its own filter": lambda: call(317, 0, 0, 0),
    "make a namespace": lambda: call(272, 0x10000000),
    "use io_uring": lambda: call(425, 1, 0),
    "use the second table of calls": lambda: call(0x40000000 + 2, secret.encode(), 0, 0),
    "take memory": lambda: bytearray(2 * 1024**3),
    "raise its limits": lambda: __import__("resource").setrlimit(9, (2**40, 2**40)),
}
os.write(1, json.dumps({name: attempt(act) for name, act in acts.items()}).encode() + b"\\n")
while True:
    pass
"""


@pytest.fixture
def probe(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Return the outcome of everything that a hostile reader would try. It ends by using up its CPU time."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    for path in (secret, *tmp_path.parents[:3], tmp_path):
        if os.geteuid() == 0:
            path.chmod(path.stat().st_mode | 0o055)  # so that only the sandbox protects it
    database = settings.DATABASES["default"]["NAME"] if connection.vendor == "sqlite" else str(secret)
    return subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", PROBE, str(settings.BASE_DIR)],
        input=json.dumps([str(secret), str(tmp_path), str(database), os.getpid()]),
        capture_output=True,
        text=True,
        env={},
    )


@pytest.mark.django_db
def test_a_reader_can_do_nothing_but_read_and_answer(probe: subprocess.CompletedProcess[str]) -> None:
    outcomes = json.loads(probe.stdout.splitlines()[0])
    done = {name for name, outcome in outcomes.items() if outcome == "done"}
    assert done == {"read an open file", "write to the pipe"}, outcomes
    assert outcomes.pop("take memory") == "MemoryError"
    assert outcomes.pop("write to the image") == outcomes.pop("make the image longer") == "PermissionError"


@pytest.mark.django_db
def test_a_reader_that_loops_is_killed(probe: subprocess.CompletedProcess[str]) -> None:
    assert probe.returncode == -9


def test_a_reader_of_the_portal_runs_in_the_sandbox(images: Images, tmp_path: Path) -> None:
    """/proc is read while it waits for a client to read a download."""
    image = os.open(images("ext4"), os.O_RDONLY)
    download = children.Download(image, {"command": "file", "part": 0, "path": ["Ymln"], "id": None})
    os.close(image)
    process = Path(f"/proc/{download.child.process.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    environment = (process / "environ").read_bytes() if os.geteuid() == 0 else b""
    command = (process / "cmdline").read_bytes()
    opened = {int(each.name) for each in (process / "fd").iterdir()} if os.geteuid() == 0 else set()
    download.close()
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert os.geteuid() != 0 or set(status["Uid"].split()) == set(status["Gid"].split()) == {"65533"}
    assert (environment, status["Groups"].strip() if os.geteuid() == 0 else "") == (b"", "")
    assert b"big" not in command
    assert len(opened - {0, 1, 2}) <= 1
    assert not process.exists()


def test_nothing_is_parsed_where_the_sandbox_is_incomplete(
    images: Images, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit that the child can't raise stands for a kernel that refuses."""
    start = children.START.replace(
        "sys.exit", "import snapshots.files.reader.sandbox as f; f.ALLOWED.clear(); sys.exit"
    )
    monkeypatch.setattr(children, "START", start)
    image = os.open(images("ext4"), os.O_RDONLY)
    with pytest.raises(children.ReaderFailed) as raised:
        children.ask(image, {"command": "parts"})
    os.close(image)
    assert raised.value.reason == "no_sandbox"
    [record] = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert record["event"] == "files.reader_failed" and "no system calls are listed" in record["detail"]


def test_the_readers_are_not_imported_by_the_portal() -> None:
    check = (
        "import django, sys; django.setup(); import snapshots.files.views; "
        "sys.exit(bool({'pytsk3', 'pyfsxfs'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], env=os.environ, cwd=settings.BASE_DIR).returncode == 0
