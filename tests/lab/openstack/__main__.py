"""`make test-openstack`: start the lab with no volume in it, run the tests of this folder on it, stop it.

    python -m tests.lab.openstack [PYTEST OPTIONS]                all of them
    python -m tests.lab.openstack --ci=SECONDS [PYTEST OPTIONS]   the quick and steady ones, within so many seconds

With --ci a lab that cannot be had, does not come up in time or breaks is no failure: what was left out is said in one line,
and the exit code is 0. A test that fails on a lab that works is one, unless it passes when it is repeated, because services
that share a busy machine are late at times: then both outcomes are said. One test may be repeated, once; what only a race
shows (mark `race`) may not. Whatever happens, nothing is left running.
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
QUICK = ["-m", "not thorough", "--stepwise"]  # it stops at what fails, and goes on from there when it is called again


def main(words: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    limits = [word.removeprefix("--ci=") for word in words if word.startswith("--ci=")]
    try:
        if not limits:
            return test(words)
        words = [word for word in words if not word.startswith("--ci=")]
        return test([*QUICK, *words], time.monotonic() + int(limits[0]))
    except LeftOut as reason:
        print(f"The tests on a real OpenStack were left out: {reason}", flush=True)
        return 0 if limits else 1
    except Exception:
        if not limits:
            raise
        traceback.print_exc()
        print("The tests on a real OpenStack were left out: the lab could not be prepared, as above.", flush=True)
        return 0  # nothing but a test says that the portal is wrong


def test(words: list[str], end: float | None = None) -> int:
    """The exit code of pytest. Without an `end` there is no hurry. Raises LeftOut."""
    if missing := find_missing_requirement():
        raise LeftOut(missing)
    lab = Lab()
    with lab.alone():
        lab.clear()
        try:
            start(lab, end)
            environment = os.environ | {"OS_CLIENT_CONFIG_FILE": str(lab.clouds), "DATABASE_URL": ""}
            cache = lab.state / "pytest"
            command = [*PYTEST, *words, *(["-o", f"cache_dir={cache}"] if end else [])]
            code = call(command, environment, end and end - time.monotonic())
            if code is None:
                raise LeftOut("they did not end in time. None had failed until then.")
            if code and end and not lab.is_whole():
                raise LeftOut(f"the lab broke while they ran, so what failed says nothing (exit code {code}).")
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
    """Once more what failed, and then what comes after it. Whatever fails now is a failure."""
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
    """What the lab needs and cannot have here; "" when it can be tried."""
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


def call(words: list[str], environment: dict[str, str], seconds: float | None) -> int | None:
    """The exit code, or None when it took longer: then it is stopped with all that it started and did not detach."""
    process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
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
