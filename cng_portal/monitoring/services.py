"""Signs of life, and the lease by which one of many processes acts."""

import logging
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from django.db import DatabaseError, connection
from django.db.models import F, Q
from django.db.models.functions import Now

from cng_portal.common.clock import database_now

from .models import Lease, Process, StorageCheck

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10
# A process that was silent for this long does not count as running any more.
SILENT_AFTER = timedelta(seconds=60)
FORGET_AFTER = timedelta(days=1)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Heartbeat:
    """Keeps the row of this process fresh, in a thread of its own because its work may be long and silent.

    Use as a context manager; `id` is the name of this process, a uuid as text. A database that cannot be reached is
    told in the log and tried again: it does not end the process.
    """

    def __init__(self, kind: Process.Kind) -> None:
        self.process = Process(kind=kind, host=socket.gethostname(), pid=os.getpid())
        self.id = str(self.process.pk)
        self.begun, self.done = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        """Returns once the row is there, or could not be written: from then on the process counts as running."""
        self.thread.start()
        self.begun.wait()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        try:
            self._write(self._begin)
        finally:
            self.begun.set()
        while not self.done.wait(BEAT_SECONDS):
            self._write(self._beat)
        self._write(self.process.delete)

    def _begin(self) -> None:
        Process.objects.filter(seen_at__lt=database_now() - FORGET_AFTER).delete()
        self._beat()

    def _beat(self) -> None:
        self.process.seen_at = database_now()
        self.process.save()

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except DatabaseError:
            logger.warning("The sign of life of process %s could not be written", self.id, exc_info=True)
        finally:
            connection.close()  # none is held between two beats


def count_workers(now: datetime) -> int:
    """How many workers run: those that gave a sign of life lately."""
    return Process.objects.filter(kind=Process.Kind.WORKER, seen_at__gt=now - SILENT_AFTER).count()


def hold_lease(name: str, *, holder: str, seconds: float) -> bool:
    """Take the lease, or renew one's own, for so many seconds from now; False while another one has it.

    One compare-and-set by the database's clock, so that the clocks of the machines need not agree. A holder that dies
    loses it after `seconds`. Whoever acts under it must still be safe when somebody else does too: one that hangs for
    longer than that goes on where it was.
    """
    free = Lease.objects.filter(name=name).filter(Q(holder=holder) | Q(until__lt=Now()))
    terms = {"holder": holder, "until": Now() + timedelta(seconds=seconds)}
    if free.update(**terms):
        return True
    if Lease.objects.filter(name=name).exists():
        return False
    Lease.objects.bulk_create([Lease(name=name, until=LONG_AGO)], ignore_conflicts=True)
    return free.update(**terms) == 1


def give_up_lease(name: str, *, holder: str) -> None:
    """Let another one have it at once."""
    Lease.objects.filter(name=name, holder=holder).update(until=LONG_AGO)


def count_storage_error(location_code: str) -> None:
    StorageCheck.objects.bulk_create([StorageCheck(location_id=location_code)], ignore_conflicts=True)
    StorageCheck.objects.filter(pk=location_code).update(errors=F("errors") + 1)
