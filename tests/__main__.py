"""`make test`: run every test on SQLite, and beside it those about locks and constraints on PostgreSQL, if it is installed.

Many tests wait for a browser or another process, so there are more workers than cores. `make test-fast` passes the
argument "fast"; `make fuzz` and `make histories` pass theirs: the random tests at length, new ones each time.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import chromium
from tests.postgres import find_server_programs, postgres

CLOCK = Path(__file__).parent / "clock"
CORES = os.cpu_count() or 1
FAST = ["-m", "not browser and not slow", "--ignore", "tests/lab/openstack"]
FUZZ = ["-rP", "tests/test_fuzz.py"]
HISTORIES = [
    "tests/billing/test_histories.py",
    "tests/snapshots/test_recycle_bin.py::test_histories_with_the_bin_cost_what_the_oracle_says",
]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server below ends with this process
    # a shell that runs this in the background ignores SIGINT, which the processes that tests interrupt would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1:] == ["fast"]:
        return subprocess.call(pytest(CORES, *FAST), env=environment())
    if sys.argv[1:] == ["fuzz"]:
        os.environ.setdefault("FUZZ_REQUESTS", "20000")
        return subprocess.call(pytest(CORES, *FUZZ), env=environment())
    if sys.argv[1:] == ["histories"]:
        os.environ.setdefault("HISTORIES", "1000")
        with testing_on_postgresql(*HISTORIES) as finish:
            return max(subprocess.call(pytest(CORES, *HISTORIES), env=environment()), finish())
    bring_chromium()
    with testing_on_postgresql() as finish:
        return max(subprocess.call(pytest(CORES + 1), env=environment()), finish())


def pytest(workers: int, *arguments: str) -> list[str]:
    """Return the command. Stealing work keeps the workers busy to the end: one test takes a minute, most milliseconds."""
    return [sys.executable, "-m", "pytest", "--quiet", "-n", str(workers), "--dist", "worksteal", *arguments]


def environment(database_url: str = "") -> dict[str, str]:
    """Return the environment. It keeps compiled modules, because compiling takes half of the time to collect tests.

    Under faketime, it also lets Python sleep and respect timeouts.
    """
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(sys.prefix, "pycache"))}
    clock = {"PYTHONPATH": str(CLOCK), "FAKETIME_FORCE_MONOTONIC_FIX": "0"} if "FAKETIME" in os.environ else {}
    return os.environ | {"DATABASE_URL": database_url} | compiled | clock


def bring_chromium() -> None:
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


@contextmanager
def testing_on_postgresql(*paths: str) -> Iterator[Callable[[], int]]:
    """Start the tests on PostgreSQL. Yields a function that waits for them, prints their output and returns their status."""
    command = pytest(CORES, "-m", "both_databases", *paths)
    server_url = os.environ.get("DATABASE_URL", "")
    programs = find_server_programs()
    if server_url.startswith("postgres"):
        with beside(command, server_url, "PostgreSQL, the server that DATABASE_URL names:") as finish:
            yield finish
    elif programs:
        with (
            postgres(programs) as url,
            beside(command, url, f"PostgreSQL, a server of {programs.parent} for these tests alone:") as finish,
        ):
            yield finish
    else:
        print(
            "The tests on PostgreSQL were left out, because there is no server. On Debian: apt-get install postgresql",
            flush=True,
        )
        yield lambda: 0


@contextmanager
def beside(command: list[str], database_url: str, title: str) -> Iterator[Callable[[], int]]:
    """Run the command in the background. Its output is kept until the end, so that it doesn't mix with another's."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=environment(database_url), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

        def finish() -> int:
            status = process.wait()
            output.seek(0)
            print(title, output.read().decode(errors="replace"), sep="\n", end="", flush=True)
            return status

        try:
            yield finish
        finally:
            process.terminate()  # if the other run was interrupted
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
