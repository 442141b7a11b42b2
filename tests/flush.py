"""Empty the database after a test that commits, in a fraction of the time that Django's `flush` takes.

On PostgreSQL truncating creates every table and index anew, although most are empty; deleting the few rows does not. Content
types and permissions stay, because they are the same for every test and `flush` would create them again.
"""

from collections.abc import Sequence
from typing import Any

from django.core.management.color import Style
from django.core.management.commands import flush
from django.db import connection

ALWAYS_THERE = {"django_content_type", "auth_permission"}


def install() -> None:
    """Let `flush` empty the tables of this process's main connection so, if that is PostgreSQL's and may."""
    if connection.vendor != "postgresql":
        return
    empty_tables = connection.ops.sql_flush

    def sql_flush(style: Style, tables: Sequence[str], **options: Any) -> list[str]:
        tables = [table for table in tables if table not in ALWAYS_THERE]
        if connection.connection.info.parameter_status("is_superuser") == "on":
            return [delete_rows(tables)]
        return empty_tables(style, tables, **options)

    connection.ops.sql_flush = sql_flush  # type: ignore[method-assign]
    # It would look for each content type and permission.
    flush.emit_post_migrate_signal = lambda *arguments: None  # type: ignore[attr-defined]


def delete_rows(tables: Sequence[str]) -> str:
    """As a replica, PostgreSQL checks no foreign keys and runs no triggers, which protect what must not be deleted."""
    deletions = " ".join(f"DELETE FROM {connection.ops.quote_name(table)};" for table in tables)
    return f"SET LOCAL session_replication_role = replica; {deletions}"
