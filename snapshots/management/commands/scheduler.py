import logging
import signal
import threading
import time
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser
from django.db import OperationalError, close_old_connections

from snapshots import operations

logger = logging.getLogger("snapshots.scheduler")

HOUSEKEEPING_EVERY_SECONDS = 3600


class Command(BaseCommand):
    help = "Do what is due: wake forgotten operations, once an hour tidy up. Any number may run side by side."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--interval", type=float, default=5, help="Seconds between two looks (default: %(default)s)."
        )
        parser.add_argument("--once", action="store_true", help="Do everything once and end.")

    def handle(self, *, interval: float, once: bool, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        tidied = -float(HOUSEKEEPING_EVERY_SECONDS)
        while not stop.is_set():
            close_old_connections()
            try:
                if woken := operations.reconcile():
                    logger.warning("Woke %s forgotten operations", woken)
                if time.monotonic() - tidied >= HOUSEKEEPING_EVERY_SECONDS:
                    tidied = time.monotonic()
                    tidy_up()
            except OperationalError:
                if once:
                    raise
                logger.exception("The database did not answer; the next look follows")
            if once:
                break
            stop.wait(interval)


def tidy_up() -> None:
    """Remove what nobody will ask for again: wake-up calls that were heard, sessions that ended, drafts left behind."""
    call_command("prune_db_task_results", min_age_days=1, verbosity=0)
    call_command("clearsessions")
    operations.forget_old_drafts()
