"""What billing does by itself. Every part may run twice, late, or beside another scheduler."""

import logging
from datetime import datetime

from . import closing, services

logger = logging.getLogger(__name__)


def run_due(*, at: datetime) -> None:
    """Invoice the months that are over, record the free credits that have expired, warn of low balances."""
    report = closing.close_months(at=at)
    if report.invoices:
        logger.info("Made %s invoices with %s lines", report.invoices, report.lines)
    if expired := services.expire_credits(at=at):
        logger.info("Recorded %s grants of free credits that expired", expired)
    if warned := services.warn_low_balances(at=at):
        logger.info("Warned %s customers of a low balance", warned)
