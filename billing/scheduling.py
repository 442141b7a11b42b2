"""The scheduled work of billing. Every part can run twice, late, or beside another scheduler."""

from collections.abc import Callable
from datetime import datetime

import structlog

from . import closing
from .low_balance import warn_low_balances
from .pricing.notices import announce_prices
from .wallet import expire_credits

logger = structlog.stdlib.get_logger(__name__)


def run_due(*, at: datetime) -> None:
    """Announce planned prices, close the months that are over, record expired credits, warn of low balances."""
    duties: list[Callable[..., object]] = [announce_prices, closing.close_months, expire_credits, warn_low_balances]
    failed = []
    for duty in duties:
        try:
            result = duty(at=at)
        except Exception as error:  # The others still run; the scheduler learns of it afterwards.
            failed.append(error)
            logger.exception("billing.duty_failed", billing_duty=duty.__name__)
        else:
            logger.info("billing.duty_done", billing_duty=duty.__name__, result=str(result))
    if failed:
        raise failed[0]
