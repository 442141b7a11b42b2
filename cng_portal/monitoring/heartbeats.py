"""Heartbeats: each worker and scheduler refreshes its Process row, so that a dead one can be told from a busy one."""

import os
import socket
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from django.db import DatabaseError, connection

from cng_portal.common.clock import database_now

from .models import Process

logger = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 10
# A process without a heartbeat for this long no longer counts as running.
SILENT_AFTER = timedelta(seconds=60)
FORGET_AFTER = timedelta(days=1)


class Heartbeat:
    """Keep this process's row fresh, from a thread, because the work itself may block for long.

    A context manager; `id` is the process's uuid as text. A database error is logged and retried at the next beat: it
    doesn't end the process.
    """

    def __init__(self, kind: Process.Kind) -> None:
        self.process = Process(kind=kind, host=socket.gethostname(), pid=os.getpid())
        self.id = str(self.process.pk)
        self.started, self.stopped = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        """Return once the first write was tried: from then on the process counts as running."""
        self.thread.start()
        self.started.wait()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stopped.set()
        self.thread.join()

    def _run(self) -> None:
        try:
            self._write(self._register)
        finally:
            self.started.set()
        while not self.stopped.wait(HEARTBEAT_SECONDS):
            self._write(self._beat)
        self._write(self.process.delete)

    def _register(self) -> None:
        Process.objects.filter(heartbeat_at__lt=database_now() - FORGET_AFTER).delete()
        self._beat()

    def _beat(self) -> None:
        self.process.heartbeat_at = database_now()
        self.process.save()

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except DatabaseError:
            logger.warning("heartbeat.failed", process_id=self.id, exc_info=True)
        finally:
            connection.close()  # none is held between two beats


def count_workers(now: datetime) -> int:
    """Return how many workers are running."""
    return Process.objects.filter(kind=Process.Kind.WORKER, heartbeat_at__gt=now - SILENT_AFTER).count()
