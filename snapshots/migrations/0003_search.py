"""What PostgreSQL needs to search the names of a customer with tens of thousands of snapshots, and to plan for one."""

from typing import Any

from django.db import migrations

# They come with Debian's server. Who owns the database may create them, because they are trusted.
EXTENSIONS = ["pg_trgm", "btree_gin"]
CAN_HAVE_EXTENSIONS = """
    SELECT COUNT(DISTINCT name) = 2 FROM pg_available_extension_versions
    WHERE name = ANY (%s) AND (
        installed OR (trusted AND has_database_privilege(current_database(), 'CREATE'))
        OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    )
"""


def create(_apps: Any, schema_editor: Any) -> None:
    """Without the extensions, a search reads all of the customer's names."""
    if schema_editor.connection.vendor != "postgresql":
        return
    with schema_editor.connection.cursor() as cursor:
        # A project implies its customer; PostgreSQL would otherwise underestimate a customer's snapshots.
        cursor.execute(
            "CREATE STATISTICS snapshot_of_whom (dependencies) ON customer_id, project_id FROM snapshots_snapshot"
        )
        cursor.execute(CAN_HAVE_EXTENSIONS, [EXTENSIONS])
        if cursor.fetchone()[0]:
            for name in EXTENSIONS:
                cursor.execute(f"CREATE EXTENSION IF NOT EXISTS {name}")
            cursor.execute(
                "CREATE INDEX snapshot_by_part_of_name ON snapshots_snapshot "
                "USING gin (customer_id, name_key gin_trgm_ops) WHERE deleted_at IS NULL"
            )


def drop(_apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("DROP INDEX IF EXISTS snapshot_by_part_of_name")
            cursor.execute("DROP STATISTICS IF EXISTS snapshot_of_whom")


class Migration(migrations.Migration):
    dependencies = [("snapshots", "0002_triggers")]
    operations = [migrations.RunPython(create, drop)]
