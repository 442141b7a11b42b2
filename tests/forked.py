"""Run manage.py in a fork of the tests' process: a new process takes a second or two to import Django and the rest."""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from django.conf import empty
from django.conf import settings as django_settings
from django.core.management import ManagementUtility, get_commands
from django.db import connection, connections
from django.test import override_settings


def manage(*words: object, database: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `manage.py words` on another database of the tests' server, or in this file, with changed settings."""
    arguments = ["manage.py", *map(str, words)]

    def execute() -> None:
        connection.settings_dict["NAME"] = database
        override_settings(**settings).enable()
        ManagementUtility(arguments).execute()

    return run(execute, arguments)


def start(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `manage.py words` until the settings, which it reads anew from this environment, stop it."""
    arguments = ["manage.py", *words]

    def execute() -> None:
        os.environ.update(environment)
        sys.argv = arguments
        for name in [name for name in sys.modules if name == "pytest" or name.partition(".")[0] == "cng_portal"]:
            del sys.modules[name]
        django_settings._wrapped = empty  # type: ignore[attr-defined]
        get_commands.cache_clear()
        runpy.run_path(str(Path(__file__).parents[1] / "manage.py"), run_name="__main__")

    return run(execute, arguments)


def run(function: Callable[[], None], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Call the function in a child process."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = fork(function, out.fileno(), errors.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), errors.read())


class Process:
    """`manage.py words` as a process that goes on beside the tests, with changed settings. As subprocess.Popen has it."""

    def __init__(self, *words: str, **settings: Any) -> None:
        def execute() -> None:
            override_settings(**settings).enable()
            ManagementUtility(["manage.py", *words]).execute()

        self.returncode: int | None = None
        self.pid = fork(execute)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, seconds: float = 60) -> int:
        give_up = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired("manage.py", seconds)
            Event().wait(0.01)
        return status


def fork(function: Callable[[], None], out: int = 1, errors: int = 2) -> int:
    """Call the function in a child process that writes to these files. Returns its PID."""
    connections.close_all()
    if connection.vendor == "postgresql":
        connection.close_pool()  # its sockets must not be shared with the child
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        function()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
