from argparse import ArgumentParser
from types import FrameType
from typing import Any

from django_tasks_db.management.commands import db_worker

from cng_portal.hardening import refuse_unsafe_start
from cng_portal.watch import services as watch
from cng_portal.watch.models import Process
from snapshots import operations


class Worker(db_worker.Worker):
    def shutdown(self, signum: int, frame: FrameType | None) -> None:
        """A first signal hands the running operation back at its next heartbeat, or lets it end if that comes
        sooner.
        """
        operations.stopping.set()
        super().shutdown(signum, frame)


class Command(db_worker.Command):
    help = "Carry out what storage has to do. Any number may run side by side; SIGTERM hands the current work back."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.set_defaults(interval=0.5, reload=False)

    def handle(self, **options: Any) -> None:
        refuse_unsafe_start()
        db_worker.Worker = Worker  # type: ignore[misc]  # the library's command has no other way to be given one
        with watch.Heartbeat(Process.Kind.WORKER):
            super().handle(**options)
