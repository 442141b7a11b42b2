"""Run OpenStack's own clients, in their environment: `client.py < commands.json`, a list of lists of arguments.

Prints a list with what each command of `openstack` printed, from JSON where that is possible. Two commands aren't its own:
`wait volume NAME` and `wait snapshot NAME` wait for the status `available` with openstacksdk, `gone` until it is deleted.
"""

import contextlib
import io
import json
import sys
from typing import Any

import openstack
from openstackclient.shell import main

SECONDS = 120
PRINTS = {"list", "show", "create"}
cloud = openstack.connect()


def run(arguments: list[str]) -> Any:
    if arguments[0] in ("wait", "gone"):
        return wait(*arguments)
    output, errors = io.StringIO(), io.StringIO()
    is_json = not PRINTS.isdisjoint(arguments)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main([*arguments, "--format", "json"] if is_json else arguments)
    if status:
        return {"error": errors.getvalue() or output.getvalue()}
    return json.loads(output.getvalue()) if is_json else output.getvalue()


def wait(how: str, kind: str, name: str) -> str:
    storage = cloud.block_storage
    found = getattr(storage, f"find_{kind}")(name, ignore_missing=how == "gone")
    if how == "gone":
        return "gone" if found is None else storage.wait_for_delete(found, interval=0.2, wait=SECONDS) and "gone"
    return str(storage.wait_for_status(found, failures=["error"], interval=0.2, wait=SECONDS).status)


def try_run(arguments: list[str]) -> Any:
    try:
        return run(arguments)
    except (Exception, SystemExit) as error:
        return {"error": repr(error)}


sys.stdout.write(json.dumps([try_run(arguments) for arguments in json.load(sys.stdin)]))
