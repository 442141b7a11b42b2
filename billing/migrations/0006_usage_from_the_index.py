"""On PostgreSQL the index of a customer's usage has all that rating reads: tens of thousands of rows lie far apart in the table,
and looking them up took longer than all the arithmetic. On SQLite the index stays as it is.
"""

from typing import Any

from django.db import migrations

EVERYTHING = "INCLUDE (started_at, kind, location_id, size_gb, base_rate_micro, never_began)"


def exchange(schema_editor: Any, rest: str) -> None:
    if schema_editor.connection.vendor != "postgresql":
        return
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("DROP INDEX CONCURRENTLY IF EXISTS billing_usage_by_end_anew")  # of an attempt that was interrupted
        cursor.execute(
            "CREATE INDEX CONCURRENTLY billing_usage_by_end_anew ON billing_usagesegment (customer_id, ended_at) " + rest
        )
        cursor.execute("DROP INDEX CONCURRENTLY IF EXISTS billing_usage_by_end")
        cursor.execute("ALTER INDEX billing_usage_by_end_anew RENAME TO billing_usage_by_end")


def forwards(_apps: Any, schema_editor: Any) -> None:
    exchange(schema_editor, EVERYTHING)


def backwards(_apps: Any, schema_editor: Any) -> None:
    exchange(schema_editor, "")


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("billing", "0005_invoice_month_over")]
    operations = [migrations.RunPython(forwards, backwards)]
