"""`make test`: run every test on SQLite, and those about locks and constraints on PostgreSQL too, if a server is installed.

The full run comes last, so that pytest's own summary is the last line. `make test-fast` passes the argument "fast".
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests import chromium
from tests.postgres import find_server_programs, postgres

CLOCK = Path(__file__).parent / "clock"
# Work stealing keeps both cores busy to the end, although one test takes a minute and most take a hundredth of a second.
PYTEST = [sys.executable, "-m", "pytest", "--quiet", "-n", "2", "--dist", "worksteal"]
FAST = ["-m", "not browser and not slow", "--ignore", "tests/lab/openstack"]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server below ends with this process
    # a shell that runs this in the background ignores SIGINT, which the processes that tests interrupt would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1:] == ["fast"]:
        return subprocess.call([*PYTEST, *FAST], env=environment())
    bring_chromium()
    results = [test_on_postgresql(), subprocess.call(PYTEST, env=environment())]
    return max(results)


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


def test_on_postgresql() -> int:
    command = [*PYTEST, "-m", "both_databases"]
    server_url = os.environ.get("DATABASE_URL", "")
    if server_url.startswith("postgres"):
        print("PostgreSQL, the server that DATABASE_URL names:", flush=True)
        return subprocess.call(command, env=environment(server_url))
    programs = find_server_programs()
    if not programs:
        print(
            "The tests on PostgreSQL were left out, because there is no server. On Debian: apt-get install postgresql"
        )
        return 0
    with postgres(programs) as url:
        print(f"PostgreSQL, a server of {programs.parent} for these tests alone:", flush=True)
        return subprocess.call(command, env=environment(url))


if __name__ == "__main__":
    sys.exit(main())
