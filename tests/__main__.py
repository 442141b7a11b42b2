"""Run the tests. The Makefile calls this with the name of a command below.

On PostgreSQL run only the tests marked `both_databases`, those about locks and constraints, beside all tests on SQLite.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import chromium
from tests.postgres import find_server_programs, postgres

CLOCK = Path(__file__).parent / "clock"
CORES = os.cpu_count() or 1


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server below ends with this process
    # a shell that runs this in the background ignores SIGINT, which the processes that tests interrupt would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    [name] = sys.argv[1:] or ["all"]
    return COMMANDS[name]()


def test_all() -> int:
    """`make test`. Many tests wait for a browser or another process, so there are more workers than cores."""
    install_chromium()
    return test_on_both_databases(workers=CORES + 1)


def test_fast() -> int:
    """`make test-fast`: the tests that need no browser, child process or commit, on SQLite."""
    return run(pytest("-m", "not browser and not slow", "--ignore", "tests/lab/openstack"))


def fuzz() -> int:
    """`make fuzz`: random requests at length, new ones each time."""
    os.environ.setdefault("FUZZ_REQUESTS", "20000")
    return run(pytest("-rP", "tests/test_fuzz.py"))


def histories() -> int:
    """`make histories`: random billing histories at length, new ones each time."""
    os.environ.setdefault("HISTORIES", "1000")
    return test_on_both_databases(
        "tests/billing/test_histories.py",
        "tests/snapshots/test_recycle_bin.py::test_histories_with_the_bin_cost_what_the_oracle_says",
    )


COMMANDS = {"all": test_all, "fast": test_fast, "fuzz": fuzz, "histories": histories}


def test_on_both_databases(*paths: str, workers: int = CORES) -> int:
    """Run the tests on SQLite, and beside them those on PostgreSQL. Returns the status of the first that failed."""
    on_sqlite, on_postgresql = pytest(*paths, workers=workers), pytest("-m", "both_databases", *paths)
    with find_postgresql() as url, tempfile.TemporaryFile() as output:
        if not url:
            print("Skipping the tests on PostgreSQL, which isn't installed: apt-get install postgresql", flush=True)
            return run(on_sqlite)
        # Printed at the end, so that the output of the two doesn't mix.
        background = subprocess.Popen(
            on_postgresql, env=environment(url), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            status = run(on_sqlite)
            background.wait()
        finally:
            background.terminate()  # if the run on SQLite was interrupted
            background.wait()
        output.seek(0)
        print("On PostgreSQL:", output.read().decode(errors="replace"), sep="\n", end="", flush=True)
        return status or background.returncode


@contextmanager
def find_postgresql() -> Iterator[str]:
    """Yield the URL of the server in DATABASE_URL, else of one started for these tests, "" if that isn't possible."""
    url, programs = os.environ.get("DATABASE_URL", ""), find_server_programs()
    if url.startswith("postgres"):
        yield url
    elif programs:
        with postgres(programs) as url:
            yield url
    else:
        yield ""


def run(command: list[str]) -> int:
    """Run the command on SQLite, and return its status."""
    return subprocess.call(command, env=environment())


def pytest(*arguments: str, workers: int = CORES) -> list[str]:
    """Return the command. Stealing work keeps the workers busy to the end: one test takes a minute, most milliseconds."""
    return [sys.executable, "-m", "pytest", "--quiet", "-n", str(workers), "--dist", "worksteal", *arguments]


def environment(database_url: str = "") -> dict[str, str]:
    """Return the environment of a run. It keeps compiled modules, because compiling takes half of the collection's time.

    Under faketime, it also lets Python sleep and respect timeouts.
    """
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(sys.prefix, "pycache"))}
    clock = {"PYTHONPATH": str(CLOCK), "FAKETIME_FORCE_MONOTONIC_FIX": "0"} if "FAKETIME" in os.environ else {}
    return os.environ | {"DATABASE_URL": database_url} | compiled | clock


def install_chromium() -> None:
    """Install Debian's packages if that is allowed. tests/conftest.py says what is skipped without them."""
    missing = chromium.missing_packages()
    if not missing or not shutil.which("apt-get"):
        return
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and (not shutil.which("sudo") or subprocess.run([*sudo, "true"], capture_output=True).returncode):
        return
    print(f"Installing {' and '.join(missing)} for the browser tests…", flush=True)
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    subprocess.call([*apt, "update"], stdin=subprocess.DEVNULL)
    subprocess.call([*apt, "install", "-y", "--no-install-recommends", *missing], stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
