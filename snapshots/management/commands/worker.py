import time
from argparse import ArgumentParser
from types import FrameType
from typing import Any

import structlog
from django.db import DatabaseError, connections
from django_tasks_db.management.commands import db_worker

from cng_portal.hardening import refuse_unsafe_start
from cng_portal.monitoring.heartbeats import Heartbeat
from cng_portal.monitoring.models import Process
from snapshots.operations import lifecycle

logger = structlog.stdlib.get_logger("snapshots.worker")
PAUSE_SECONDS = 1


class Worker(db_worker.Worker):
    def run(self) -> None:
        """Survive an outage of the database. The operation that was running is released and enqueued again."""
        while self.running:
            try:
                return super().run()
            except DatabaseError:
                logger.exception("worker.database_down")
                connections.close_all()
                time.sleep(PAUSE_SECONDS)

    def shutdown(self, signum: int, frame: FrameType | None) -> None:
        """The first signal releases the running operation at its next heartbeat, unless it finishes sooner."""
        lifecycle.stopping.set()
        super().shutdown(signum, frame)


class Command(db_worker.Command):
    help = (
        "Run what storage has to do. Any number may run side by side. Start at least two: the last free one is kept for "
        "customers who have nothing running. SIGTERM hands the current work back."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.set_defaults(interval=0.5, reload=False)

    def handle(self, **options: Any) -> None:
        refuse_unsafe_start()
        db_worker.Worker = Worker  # type: ignore[misc]  # the library's command has no other way to be given one
        with Heartbeat(Process.Kind.WORKER):
            try:
                super().handle(**options)
            finally:
                # The signal may arrive between the start of a transaction and the code that ends it. On SQLite, this
                # would keep the database's lock, for which even this process's last heartbeat waits.
                connections.close_all()
