"""Empty the database after a test that commits, in a fraction of the time that Django's `flush` takes.

Content types and permissions stay, because they are the same for every test and `flush` would create them again. On
PostgreSQL truncating creates every table and index anew, although most are empty; deleting the few rows does not.
"""

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.core.management.color import Style
from django.core.management.commands import flush
from django.db import connection

ALWAYS_THERE = {"django_content_type": "contenttypes.ContentType", "auth_permission": "auth.Permission"}


def install() -> None:
    """Let `flush` empty the tables of this process's main connection so."""
    empty_tables, restore = connection.ops.sql_flush, flush.emit_post_migrate_signal  # type: ignore[attr-defined]

    def sql_flush(style: Style, tables: Sequence[str], **options: Any) -> list[str]:
        tables = [table for table in tables if table not in ALWAYS_THERE]
        if connection.vendor == "postgresql" and connection.connection.info.parameter_status("is_superuser") == "on":
            return [delete_rows(tables)]
        return empty_tables(style, tables, **options)

    def restore_if_missing(*arguments: Any) -> None:
        """Create content types and permissions only if the test emptied their tables: it looks for each of them."""
        if not all(apps.get_model(name).objects.exists() for name in ALWAYS_THERE.values()):
            restore(*arguments)

    connection.ops.sql_flush = sql_flush  # type: ignore[method-assign]
    flush.emit_post_migrate_signal = restore_if_missing  # type: ignore[attr-defined]


def delete_rows(tables: Sequence[str]) -> str:
    """As a replica, PostgreSQL checks no foreign keys and runs no triggers, which protect what must not be deleted."""
    deletions = " ".join(f"DELETE FROM {connection.ops.quote_name(table)};" for table in tables)
    return f"SET LOCAL session_replication_role = replica; {deletions}"
