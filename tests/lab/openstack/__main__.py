"""`make test-openstack`: start the lab without volumes, run this folder's tests on it, and stop it.

    python -m tests.lab.openstack [PYTEST OPTIONS]                run all tests
    python -m tests.lab.openstack --ci=SECONDS [PYTEST OPTIONS]   run the quick and stable ones, within that time

With --ci, a lab that can't be installed, doesn't start in time or breaks isn't a failure: one line says what was
skipped, and the exit code is 0. A test that fails on a working lab is a failure, unless it passes when retried, because
services on a busy machine are slow at times; both outcomes are then printed. Only one test is retried, once, and none
with the mark `race`. Nothing is left running in any case.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from tests.lab.openstack.lab import Lab, LeftOut, is_group_alive, wait_until

START_SECONDS = 8 * 60
PYTEST = [sys.executable, "-m", "pytest", "--quiet", "tests/lab/openstack"]
QUICK = ["-m", "not thorough", "--stepwise"]  # stops at the first failure, and continues there when called again


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab is stopped
    limits = [argument.removeprefix("--ci=") for argument in arguments if argument.startswith("--ci=")]
    try:
        if not limits:
            return test(arguments)
        arguments = [argument for argument in arguments if not argument.startswith("--ci=")]
        return test([*QUICK, *arguments], time.monotonic() + int(limits[0]))
    except LeftOut as reason:
        print(f"The tests on a real OpenStack were left out: {reason}", flush=True)
        return 0 if limits else 1
    except Exception:
        if not limits:
            raise
        traceback.print_exc()
        print("The tests on a real OpenStack were left out: the lab could not be prepared, as above.", flush=True)
        return 0  # only a test can show that the portal is wrong


def test(arguments: list[str], end: float | None = None) -> int:
    """Run the tests and return pytest's exit code. `end` is the deadline, if any. Raises LeftOut."""
    if missing := find_missing_requirement():
        raise LeftOut(missing)
    lab = Lab()
    with lab.alone():
        lab.clear()
        try:
            start(lab, end)
            environment = os.environ | {"OS_CLIENT_CONFIG_FILE": str(lab.clouds), "DATABASE_URL": ""}
            cache = lab.state / "pytest"
            command = [*PYTEST, *arguments, *(["-o", f"cache_dir={cache}"] if end else [])]
            code = call(command, environment, end and end - time.monotonic())
            if code is None:
                raise LeftOut("they did not finish in time. None had failed until then.")
            if code and end and not lab.is_whole():
                raise LeftOut(f"the lab broke while they ran, so their failures prove nothing (exit code {code}).")
            if code and end and may_be_repeated(cache, environment):
                return repeat(command, cache, environment, end)
            return code
        finally:
            lab.clear()


def may_be_repeated(cache: Path, environment: dict[str, str]) -> bool:
    if not (failed := last_failed(cache)):
        return False
    races = [*PYTEST[:-1], "--collect-only", "-m", "race", *failed]
    done = subprocess.run(races, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def repeat(command: list[str], cache: Path, environment: dict[str, str], end: float) -> int:
    """Retry the failed test, then run those after it. A further failure counts."""
    failed = last_failed(cache)
    print(f"Failed, and is repeated once: {', '.join(failed)}", flush=True)
    code = call(command, environment, end - time.monotonic())
    again = last_failed(cache)
    for test_id in failed:
        second = "was not done in time" if code is None else "failed again" if test_id in again else "passed"
        print(f"{test_id}: failed, then {second}.", flush=True)
    return 1 if code is None else code


def last_failed(cache: Path) -> list[str]:
    path = cache / "v" / "cache" / "lastfailed"
    return list(json.loads(path.read_text())) if path.exists() else []


def start(lab: Lab, end: float | None) -> None:
    if not end:
        return lab.start()
    seconds = min(START_SECONDS, end - time.monotonic())
    code = call([sys.executable, "-m", "tests.lab.openstack.lab", "start", str(lab.folder)], dict(os.environ), seconds)
    if code is None:
        raise LeftOut(f"the lab did not come up within {seconds // 60:.0f} minutes.")
    if code:
        raise LeftOut("the lab could not be started, for the reason above.")


def find_missing_requirement() -> str:
    """Return what the lab needs and this machine lacks, or an empty string."""
    if os.geteuid() != 0:
        return "the lab installs Debian's packages and needs root."
    if not shutil.which("apt-get"):
        return "the lab needs Debian's packages, and this is no Debian."
    if not Path("/usr/bin/python3").exists():
        return "the lab needs Debian's own Python."
    systems = subprocess.run(["/usr/bin/python3", "-V"], capture_output=True, text=True).stdout.split()[-1]
    if systems.rpartition(".")[0] != platform.python_version().rpartition(".")[0]:
        return f"Ceph's modules are for Debian's Python {systems}, and this is {platform.python_version()}."
    return ""


def call(arguments: list[str], environment: dict[str, str], seconds: float | None) -> int | None:
    """Return the exit code, or None after a timeout, when the process group is killed."""
    process = subprocess.Popen(arguments, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        stop_group(process)


def stop_group(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not is_group_alive(process.pid):
            break
        os.killpg(process.pid, number)
        wait_until(lambda: process.poll() is not None and not is_group_alive(process.pid), seconds=30)
    process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
