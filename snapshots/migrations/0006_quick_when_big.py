"""What the pages of who has tens of thousands of snapshots need. All of it while everybody goes on working."""

from typing import Any

from django.db import migrations, models

from cng_portal.common.migrations import AddIndexMeanwhile

# Who may make them: they are trusted, so the owner of the database, where the server has them.
EXTENSIONS = ["pg_trgm", "btree_gin"]
CAN_HAVE_EXTENSIONS = """
    SELECT COUNT(DISTINCT name) = 2 FROM pg_available_extension_versions
    WHERE name = ANY (%s) AND (
        installed OR (trusted AND has_database_privilege(current_database(), 'CREATE'))
        OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    )
"""


def plan_well(_apps: Any, schema_editor: Any) -> None:
    """Tell PostgreSQL that a project implies its customer, or it takes a customer's snapshots for a few; and let it find what
    is typed anywhere in the names of one customer. Without the extensions a search looks at all of the customer's names.
    """
    if schema_editor.connection.vendor != "postgresql":
        return
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(
            "CREATE STATISTICS IF NOT EXISTS snapshot_of_whom (dependencies) ON customer_id, project_id FROM snapshots_snapshot"
        )
        cursor.execute(CAN_HAVE_EXTENSIONS, [EXTENSIONS])
        if cursor.fetchone()[0]:
            for name in EXTENSIONS:
                cursor.execute(f"CREATE EXTENSION IF NOT EXISTS {name}")
            cursor.execute(
                "CREATE INDEX CONCURRENTLY IF NOT EXISTS snapshot_by_part_of_name ON snapshots_snapshot "
                "USING gin (customer_id, name_key gin_trgm_ops) WHERE deleted_at IS NULL"
            )
        cursor.execute("ANALYZE snapshots_snapshot")


def undo(_apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("DROP INDEX IF EXISTS snapshot_by_part_of_name")
            cursor.execute("DROP STATISTICS IF EXISTS snapshot_of_whom")


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("snapshots", "0005_cause")]
    operations = [
        AddIndexMeanwhile(
            "snapshot",
            models.Index(
                fields=["volume", "-ready_at"], condition=models.Q(deleted_at=None), name="snapshot_last_of_volume"
            ),
        ),
        migrations.RunPython(plan_well, undo),
    ]
