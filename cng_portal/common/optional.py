"""Decorations: a balance, a badge or an estimate that a page can do without."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import structlog
from django.db import connection, transaction

logger = structlog.get_logger(__name__)
Value = TypeVar("Value")


def optional(name: str, compute: Callable[[], Value], default: Value) -> Value:
    """Return what `compute` returns, or `default` when it fails. The failure is logged under `name`."""
    try:
        # Only a savepoint keeps a failed query from failing every later one of the page's transaction.
        with transaction.atomic() if connection.in_atomic_block else nullcontext():
            return compute()
    except Exception:
        logger.exception("decoration.failed", decoration=name)
        return default
