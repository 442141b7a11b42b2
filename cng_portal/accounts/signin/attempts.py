"""Counters of failed attempts, in the database cache that all processes share."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection


def delete_expired(*, now: datetime) -> int:
    """Delete expired counters, which Django's cache keeps until it is full. Returns how many."""
    config: Any = settings.CACHES["default"]
    table = connection.ops.quote_name(config["LOCATION"])
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table} WHERE expires < %s", [connection.ops.adapt_datetimefield_value(now)])
        return cursor.rowcount
