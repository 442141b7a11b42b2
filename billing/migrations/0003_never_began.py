"""What an invoice has charged may turn out never to have begun. The table's triggers outlive its making anew on SQLite."""

from django.db import migrations, models

SENTENCE = "Usage that an invoice was made of cannot be changed."
CONDITION = (
    "NEW.never_began <> OLD.never_began AND OLD.ended_at IS NOT NULL"
    " AND EXISTS (SELECT 1 FROM billing_invoiceline l WHERE l.segment_id = OLD.id)"
)
kept: list[str] = []


def take_down(apps, schema_editor) -> None:
    """SQLite drops the triggers of a table that Django makes anew: they are kept as they are."""
    if schema_editor.connection.vendor == "sqlite":
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(
                "SELECT sql, name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'billing_usagesegment'"
            )
            triggers = cursor.fetchall()
            kept[:] = [sql for sql, _name in triggers]
            for _sql, name in triggers:
                cursor.execute(f'DROP TRIGGER "{name}"')


def put_up(apps, schema_editor) -> None:
    while kept:
        schema_editor.execute(kept.pop(), params=None)


def create(apps, schema_editor) -> None:
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute(
            "CREATE TRIGGER billing_guard_usage_never_began_update BEFORE UPDATE ON billing_usagesegment FOR EACH ROW"
            f" WHEN {CONDITION} BEGIN SELECT RAISE(ABORT, '{SENTENCE}'); END",
            params=None,
        )
        return
    schema_editor.execute(
        "CREATE FUNCTION billing_guard_usage_never_began() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {CONDITION} THEN RAISE EXCEPTION '{SENTENCE}' USING ERRCODE = 'integrity_constraint_violation'; END IF;"
        " RETURN NEW; END $$",
        params=None,
    )
    schema_editor.execute(
        "CREATE TRIGGER billing_guard_usage_never_began BEFORE UPDATE ON billing_usagesegment FOR EACH ROW"
        " EXECUTE FUNCTION billing_guard_usage_never_began()",
        params=None,
    )


def drop(apps, schema_editor) -> None:
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute("DROP TRIGGER billing_guard_usage_never_began_update", params=None)
    else:
        schema_editor.execute("DROP FUNCTION billing_guard_usage_never_began() CASCADE", params=None)


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_guards")]
    operations = [
        migrations.RunPython(take_down, put_up),
        migrations.AddField(
            model_name="usagesegment",
            name="never_began",
            field=models.BooleanField(default=False, verbose_name="never began"),
        ),
        migrations.AddConstraint(
            model_name="usagesegment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("never_began", False),
                    models.Q(
                        ("ended_at", models.F("started_at")), ("ended_at__isnull", False), ("kind", "vm_backup_auto")
                    ),
                    _connector="OR",
                ),
                name="billing_usage_never_began",
                violation_error_message=(
                    "Only automatic backups can be ended before they begin; they end at their start."
                ),
            ),
        ),
        migrations.RunPython(put_up, take_down),
        migrations.RunPython(create, drop),
    ]
