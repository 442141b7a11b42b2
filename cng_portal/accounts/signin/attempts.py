"""The counters of who tried what, and how often: they are in the cache that all processes share, and leave it here."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection


def forget_expired(*, now: datetime) -> int:
    """Remove what has run out; Django's table keeps it until there is too much of it. Returns how many there were."""
    used: Any = settings.CACHES["default"]
    table = connection.ops.quote_name(used["LOCATION"])
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table} WHERE expires < %s", [connection.ops.adapt_datetimefield_value(now)])
        return cursor.rowcount
