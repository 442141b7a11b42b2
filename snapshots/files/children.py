"""Start a child that reads one disk image, and take its answers within limits. See reader/.

The child gets the image's descriptor, a pipe with the request and a pipe for its answers: no environment, no path, no other
descriptor. It is dead when the context or the download ends.
"""

import fcntl
import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import structlog
from django.conf import settings
from prometheus_client import Counter

from .reader import DAMAGED

logger = structlog.stdlib.get_logger(__name__)

READERS = ("pytsk3", "pyfsxfs")
START = "import sys; sys.path += sys.argv[1:]; from snapshots.files.reader.main import main; sys.exit(main())"
# For an answer, and for the next bytes of a download. With the wait for a slot, a page takes at most 15 seconds.
ANSWER_SECONDS, STREAM_SECONDS = 10, 15
CPU_SECONDS = 9
# For all of a catalogue's progress.
PROGRESS_SECONDS = 900
# More CPU time for a download: the slowest reader needs a fraction of this.
CPU_SECONDS_PER_GB = 50
MAX_ANSWER, MAX_ANSWERS = 32 * 1024**2, 1000  # bytes and lines of all answers to one request
PIPE_BYTES = 1024**2  # where an unprivileged process may have as much
PIECE = 256 * 1024  # bytes of a download that are sent at once
# Reasons that a reader may give: the disk's or the request's fault, not its own.
EXPECTED = ("missing", "damaged", "too_large", "archive_too_large", "archive_too_many")
PATH_ROOM = 60_000  # bytes that a pipe buffers before it is read

FAILURES = Counter(
    "portal_file_reader_failures",
    "Requests for files whose reader crashed, hung or broke a limit.",
    ["reason"],
    registry=None,
)
for each in ("crashed", "slow", "no_sandbox"):
    FAILURES.labels(reason=each)  # an alert can't see the rise from nothing to one


class ReaderFailed(Exception):
    """`reason` is a key of services.REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def find_libraries() -> list[str] | None:
    """Return the folders of the reader packages; None if one isn't installed. Imports none of them."""
    specs = [importlib.util.find_spec(name) for name in READERS]
    if not all(spec and spec.origin for spec in specs):
        return None
    return sorted({str(Path(spec.origin).parent) for spec in specs if spec and spec.origin})


class Child:
    """One reader of an open image, which the caller closes. A context manager that kills it at the end."""

    def __init__(self, image: int, request: dict[str, Any], *, cpu_seconds: int) -> None:
        """Raises ReaderFailed."""
        libraries = find_libraries()
        if libraries is None:
            raise ReaderFailed("not_installed")
        data = json.dumps(request | {"image": image, "cpu_seconds": cpu_seconds}).encode()
        if len(data) > PATH_ROOM:
            raise ReaderFailed("missing")
        compiled = f"pycache_prefix={sys.pycache_prefix or settings.DATA_DIR / 'pycache'}"
        try:
            self.process = subprocess.Popen(
                # -I: nothing from the environment or the current folder; -S: no .pth files. Compiled modules are kept
                # outside of the source: compiling the reader takes longer than listing a folder.
                [sys.executable, "-I", "-S", "-X", compiled, "-c", START, *libraries, str(settings.BASE_DIR)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[image],
                env={},
                cwd="/",
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:  # no memory or no process left
            FAILURES.labels(reason="crashed").inc()
            logger.error("files.reader_failed", reason="crashed", exit_code=None, detail=str(error))
            raise ReaderFailed("crashed") from error
        assert self.process.stdin and self.process.stdout
        self.output = self.process.stdout.fileno()
        with suppress(OSError):
            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.rest, self.received = b"", 0
        try:
            self.process.stdin.write(data)
            self.process.stdin.close()
        except BrokenPipeError:
            self.kill()
            raise self.failure("crashed") from None

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it if it runs, and wait for its end. A second call does nothing."""
        self.process.kill()
        self.process.wait()
        for pipe in self.process.stdin, self.process.stdout:
            if pipe:
                pipe.close()

    def exit_code(self) -> int | None:
        """Return its exit code once its output has ended, None if it is still running."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=1)
        return None

    def failure(self, reason: str, detail: str = "") -> ReaderFailed:
        """Log and count a failure that isn't the customer's, and return the error."""
        self.process.kill()
        FAILURES.labels(reason=reason).inc()
        logger.error("files.reader_failed", reason=reason, exit_code=self.process.wait(), detail=detail)
        return ReaderFailed(reason)

    def read(self, seconds: float) -> bytes:
        """Return the next bytes of its output, empty at its end. Raises ReaderFailed after `seconds` without output."""
        poll = select.poll()
        poll.register(self.output, select.POLLIN)
        if not poll.poll(max(0, seconds) * 1000):
            raise self.failure("slow")
        return os.read(self.output, PIECE)

    def read_line(self, until: float) -> dict[str, Any]:
        """Return the next answer. Raises ReaderFailed, also for an answer that reports a failure."""
        while b"\n" not in self.rest:
            data = self.read(until - monotonic())
            if not data:
                raise self.failure("crashed")
            self.rest += data
            self.received += len(data)
            if self.received > MAX_ANSWER:
                raise self.failure("crashed", "its answers are too long")
        line, self.rest = self.rest.split(b"\n", 1)
        try:
            answer: dict[str, Any] = json.loads(line)
            reason = answer.get("failed")
        except (ValueError, AttributeError, RecursionError):
            raise self.failure("crashed", "its answer is no JSON") from None
        if reason == "no_sandbox":
            raise self.failure(reason, str(answer.get("detail")))
        if reason:
            raise ReaderFailed(reason if reason in EXPECTED else "damaged")
        return answer


def ask(image: int, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answers without the last one. Raises ReaderFailed."""
    until = monotonic() + ANSWER_SECONDS
    answers = []
    with Child(image, request, cpu_seconds=CPU_SECONDS) as child:
        while not (answer := child.read_line(until)).get("end"):
            answers.append(answer)
            if len(answers) > MAX_ANSWERS:
                raise child.failure("crashed", "its answers are too many")
    return answers


class Download:
    """The bytes of a file or archive, as an iterator that raises ReaderFailed when they end too early.

    `answer` tells its name and size. Closing it kills the child, as does its end.
    """

    def __init__(
        self, image: int, request: dict[str, Any], *, on_progress: Callable[[int], None] = lambda entries: None
    ) -> None:
        """Raises ReaderFailed, and what `on_progress` raises. The image may be closed afterwards."""
        gigabytes = -(-os.fstat(image).st_size // 1024**3)
        self.child = Child(image, request, cpu_seconds=2 * CPU_SECONDS + CPU_SECONDS_PER_GB * gigabytes)
        try:
            until = monotonic() + PROGRESS_SECONDS
            while "entries" in (answer := self.child.read_line(min(until, monotonic() + ANSWER_SECONDS))):
                on_progress(int(answer["entries"]))
            self.answer = answer
            size = self.answer.get("size")
            if not isinstance(size, int) or size < 0:
                raise self.child.failure("crashed", "its answer has no size")
        except BaseException:
            self.child.kill()
            raise
        self.size = size
        self.chunks = self._read()

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def __next__(self) -> bytes:
        return next(self.chunks)

    def _read(self) -> Iterator[bytes]:
        left, data = self.size, self.child.rest
        while left:
            data = data or self.child.read(STREAM_SECONDS)
            if not data and self.child.exit_code() == DAMAGED:
                raise ReaderFailed("damaged")
            if not data or len(data) > left:
                raise self.child.failure("crashed", f"{left} bytes of a download are missing")
            left -= len(data)
            yield data
            data = b""

    def close(self) -> None:
        self.child.kill()
