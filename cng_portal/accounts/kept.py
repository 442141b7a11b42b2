"""Sums, of who has very much: each process keeps them for a minute, and forgets them when something of theirs changes.

To add up tens of thousands of rows for every page takes too long. What is kept depends on nothing but the clock, the prices
and what is changed under `lock_customer`, which moves `locked_at`. Who has little reads nothing that was kept, except the
sum in the top bar.
"""

from typing import Any

from django.core.cache import caches

from .models import Customer

SECONDS = 60
MANY_ROWS = 2_000  # what has fewer, and must be right to the second, is not kept


def recall(key: str, customer: Customer) -> Any:
    """None where nothing is kept. The customer is as it was read for this request."""
    return caches["process"].get(_key(key, customer))


def keep(key: str, customer: Customer, sums: Any) -> None:
    """`sums` were added up after the customer was read: so they are never older than its `locked_at`."""
    caches["process"].set(_key(key, customer), sums, SECONDS)


def _key(key: str, customer: Customer) -> str:
    return f"{key}-{customer.pk}-{customer.locked_at.timestamp()}"
