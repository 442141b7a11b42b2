"""Run a program that checks a file system, in the sandbox of files/reader/sandbox.py.

It gets the image's descriptor and nothing else, and its output is limited like its time and its memory.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import structlog
from django.conf import settings

from ..files.reader import NOT_SANDBOXED

logger = structlog.stdlib.get_logger(__name__)

START = "import sys; sys.path.append(sys.argv[1]); from snapshots.files.reader.checking import main; sys.exit(main())"
# Not every account has them in its PATH.
FOLDERS = os.pathsep.join(["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"])
MAX_SECONDS = 3600
CPU_SECONDS = 1800
MAX_OUTPUT = 64 * 1024  # a damaged file system may have a line for each block
BEAT_SECONDS = 0.5


@dataclass(frozen=True)
class ToolResult:
    """`exit_code` is negative for a signal; None if it was stopped, or couldn't be sandboxed."""

    exit_code: int | None
    output: bytes
    problem: str = ""


def find_tool(name: str) -> str | None:
    return shutil.which(name, path=FOLDERS)


def run_tool(image: int, arguments: list[str], beat: Callable[[], None]) -> ToolResult:
    """Run it on the image, which `{image}` in its arguments stands for. Raises what `beat` raises.

    The image has to be readable for everybody where the portal runs as root, because the program opens it again under an
    account of its own.
    """
    words = [argument.format(image=f"/proc/self/fd/{image}") for argument in arguments]
    request = json.dumps({"image": image, "arguments": words, "cpu_seconds": CPU_SECONDS}).encode()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", START, str(settings.BASE_DIR)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[image],
        env={},
        cwd="/",
        start_new_session=True,
        bufsize=0,
    )
    try:
        return wait_for(process, request, beat)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in process.stdin, process.stdout:
            if pipe:
                pipe.close()


def wait_for(process: "subprocess.Popen[bytes]", request: bytes, beat: Callable[[], None]) -> ToolResult:
    assert process.stdin and process.stdout
    with suppress(BrokenPipeError):
        process.stdin.write(request)
        process.stdin.close()
    output, until = b"", monotonic() + MAX_SECONDS
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while True:
        beat()
        if monotonic() > until:
            return ToolResult(None, output, "slow")
        if not poll.poll(BEAT_SECONDS * 1000):
            continue
        data = os.read(process.stdout.fileno(), MAX_OUTPUT)
        if not data:
            break
        output = (output + data)[-MAX_OUTPUT:]
    exit_code = process.wait()
    if exit_code == NOT_SANDBOXED:
        logger.error("drill.no_sandbox", detail=output.decode(errors="replace"))
        return ToolResult(None, output, "no_sandbox")
    return ToolResult(exit_code, output)
