"""Run manage.py in a fork of the tests' process, which has imported everything: a new process takes two seconds for that."""

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from django.core.management import ManagementUtility
from django.db import connection, connections
from django.test import override_settings


def manage(*words: object, database: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `manage.py words` on another database of the tests' server, or in this file, with changed settings."""
    arguments = ["manage.py", *map(str, words)]

    def execute() -> None:
        connection.settings_dict["NAME"] = database
        override_settings(**settings).enable()
        ManagementUtility(arguments).execute()

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        status = run(execute, out.fileno(), errors.fileno())
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), errors.read())


def run(function: Callable[[], None], out: int, errors: int) -> int:
    """Run the function in a child process that writes to these files. Returns its exit status."""
    connections.close_all()
    if connection.vendor == "postgresql":
        connection.close_pool()  # its sockets must not be shared with the child
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        function()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
