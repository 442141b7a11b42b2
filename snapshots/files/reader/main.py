"""The child's entry: read a request from standard input, enter the sandbox, answer on standard output.

The request is JSON: `image` (a descriptor), `command`, `cpu_seconds` and what the command needs. The answers are JSON lines;
the last one has `end` or `failed`. A download answers a line with its size, then that many bytes; a catalogue answers its
progress before.
"""

import json
import os
import sys
from typing import Any

from . import DAMAGED
from .commands import COMMANDS, DOWNLOADS, Refused
from .entries import Damaged
from .sandbox import SandboxUnavailable, enter_sandbox
from .walking import Missing

OUTPUT = 1


def main() -> int:
    request = json.load(sys.stdin)
    from . import tsk, xfs  # noqa: F401  # nothing can be imported in the sandbox

    image, command = request["image"], request["command"]
    if command == "archive":
        from . import archive  # noqa: F401
    elif command == "hash":
        import hashlib  # noqa: F401
    size = os.fstat(image).st_size
    try:
        enter_sandbox(cpu_seconds=request["cpu_seconds"])
    except (SandboxUnavailable, OSError, ValueError) as error:
        return fail("no_sandbox", str(error))
    answers = COMMANDS[command](image, size, request)
    try:
        answer(next(answers))
    except StopIteration:
        return end()
    except (Missing, Refused, Damaged, OSError) as error:
        return fail(reason_of(error), str(error))
    if command in DOWNLOADS:  # a reason would be taken for content
        try:
            for data in answers:
                answer(data) if isinstance(data, dict) else write(data)
        except (Damaged, OSError):
            return DAMAGED
        return 0
    try:
        for each in answers:
            answer(each)
    except (Missing, Refused, Damaged, OSError) as error:
        return fail(reason_of(error), str(error))
    return end()


def reason_of(error: Exception) -> str:
    if isinstance(error, Missing):
        return "missing"
    return str(error) if isinstance(error, Refused) else "damaged"


def end() -> int:
    answer({"end": True})
    return 0


def fail(reason: str, detail: str = "") -> int:
    answer({"failed": reason, "detail": detail[:300]})
    return 1


def answer(value: Any) -> None:
    write(json.dumps(value).encode() + b"\n")


def write(data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(OUTPUT, view) :]
