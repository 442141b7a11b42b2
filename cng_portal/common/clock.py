"""The clock by which processes on several machines agree."""

from datetime import datetime

from django.db import connection
from django.utils import timezone


def database_now() -> datetime:
    """Return the time of the database server. SQLite runs inside this process, so its time is the process's own.

    Use it where instants written by different processes are compared, such as leases: their machines' clocks may differ.
    """
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now
