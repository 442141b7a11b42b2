"""The child's entry for a program that checks a file system: read the request, enter the sandbox, become the program.

The request is JSON: `image` (a descriptor), `arguments` (the program's path first) and `cpu_seconds`. Exits with
NOT_SANDBOXED if there is no sandbox.
"""

import json
import sys

from . import NOT_SANDBOXED
from .sandbox import SandboxUnavailable, run_tool


def main() -> int:
    request = json.load(sys.stdin)
    try:
        run_tool(request["arguments"], request["image"], cpu_seconds=request["cpu_seconds"])
    except (SandboxUnavailable, OSError, ValueError) as error:
        print(error)
        return NOT_SANDBOXED
