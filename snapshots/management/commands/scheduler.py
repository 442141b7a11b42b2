import logging
import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import OperationalError, close_old_connections

from snapshots import operations

logger = logging.getLogger("snapshots.scheduler")


class Command(BaseCommand):
    help = "Do what is due: wake forgotten operations. Any number may run side by side."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--interval", type=float, default=5, help="Seconds between two looks (default: %(default)s)."
        )
        parser.add_argument("--once", action="store_true", help="Look once and end.")

    def handle(self, *, interval: float, once: bool, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.is_set():
            close_old_connections()
            try:
                if woken := operations.reconcile():
                    logger.warning("Woke %s forgotten operations", woken)
            except OperationalError:
                if once:
                    raise
                logger.exception("The database did not answer; the next look follows")
            if once:
                break
            stop.wait(interval)
