"""Locks by name, where there is no row to lock."""

from django.db import connection, transaction


def lock_name(name: str) -> None:
    """Wait until no other transaction holds the lock of this name, and hold it until this one ends.

    Nothing to do on SQLite, where transactions exclude each other from their start: see DATABASES in the settings. Take it
    before any customer's lock.
    """
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("lock_name needs a transaction")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
