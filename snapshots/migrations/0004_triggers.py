"""What the database holds about run numbers and deletions.

The newest verified backup of a schedule and every pinned backup are deleted only when a user asked for it. On SQLite
these rules are triggers with RAISE, on PostgreSQL functions.

SQLite drops the triggers of a table that Django rebuilds to alter it: a later migration that alters `snapshots_snapshot`
has to call `drop` before it and `create` after it. `test_backups.py` notices when one is missing.
"""

from django.db import migrations, models

VERIFIED = (
    "{row}.missing_since IS NULL AND {row}.damaged_at IS NULL"
    " AND EXISTS (SELECT 1 FROM snapshots_diskimage d WHERE d.snapshot_id = {row}.id)"
    " AND NOT EXISTS (SELECT 1 FROM snapshots_diskimage d"
    " WHERE d.snapshot_id = {row}.id AND (d.verified_at IS NULL OR d.damage <> ''))"
)
DELETED_AUTOMATICALLY = (
    "NEW.state IN ('deleting', 'deleted') AND OLD.state = 'ready'"
    " AND NEW.kind = 'backup' AND NEW.deletion_cause <> 'user'"
)
NEWEST_VERIFIED = (
    f"{DELETED_AUTOMATICALLY} AND {VERIFIED.format(row='OLD')}"
    " AND EXISTS (SELECT 1 FROM snapshots_backuprun run WHERE run.snapshot_id = OLD.id AND NOT EXISTS ("
    "SELECT 1 FROM snapshots_backuprun later JOIN snapshots_snapshot backup ON backup.id = later.snapshot_id"
    " WHERE later.schedule_id = run.schedule_id AND later.number > run.number"
    f" AND backup.state = 'ready' AND {VERIFIED.format(row='backup')}))"
)

# (name, condition, message)
GUARDS = [
    (
        "newest_backup",
        NEWEST_VERIFIED,
        "The newest verified backup of a schedule is never deleted automatically.",
    ),
    ("pinned_backup", f"{DELETED_AUTOMATICALLY} AND OLD.kept", "A pinned backup is never deleted automatically."),
]


def create(apps, schema_editor) -> None:
    create_guards(schema_editor, GUARDS)


def create_guards(schema_editor, guards) -> None:
    for name, condition, message in guards:
        trigger = f"CREATE TRIGGER snapshots_guard_{name} BEFORE UPDATE OF state ON snapshots_snapshot FOR EACH ROW"
        if schema_editor.connection.vendor == "sqlite":
            schema_editor.execute(
                f"{trigger} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END", params=None
            )
            continue
        schema_editor.execute(
            f"CREATE FUNCTION snapshots_guard_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF {condition} THEN RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; END IF;"
            " RETURN NEW; END $$",
            params=None,
        )
        schema_editor.execute(f"{trigger} EXECUTE FUNCTION snapshots_guard_{name}()", params=None)


def drop(apps, schema_editor) -> None:
    for name, _condition, _message in GUARDS:
        if schema_editor.connection.vendor == "sqlite":
            schema_editor.execute(f"DROP TRIGGER IF EXISTS snapshots_guard_{name}", params=None)
        else:
            schema_editor.execute(f"DROP FUNCTION IF EXISTS snapshots_guard_{name}() CASCADE", params=None)


class Migration(migrations.Migration):
    dependencies = [("snapshots", "0003_run_numbers")]
    operations = [
        migrations.AlterField("backuprun", "number", models.PositiveIntegerField("number")),
        migrations.AddConstraint(
            "backuprun", models.UniqueConstraint(fields=("schedule", "number"), name="run_number")
        ),
        migrations.AddConstraint(
            "snapshot",
            models.CheckConstraint(
                condition=models.Q(("state__in", ["deleting", "deleted"]), _negated=True)
                | models.Q(("deletion_cause", ""), _negated=True),
                name="snapshot_deletion_cause",
                violation_error_message="A deleted snapshot needs the cause of its deletion.",
            ),
        ),
        migrations.RunPython(create, drop),
    ]
