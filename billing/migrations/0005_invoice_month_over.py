"""An invoice is made once its month is over. The triggers outlive the table's making anew on SQLite."""

from django.db import migrations, models

kept: list[str] = []


def take_down(apps, schema_editor) -> None:
    """SQLite drops the triggers of a table that Django makes anew, and stumbles over those that mention it."""
    if schema_editor.connection.vendor == "sqlite":
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SELECT sql, name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'billing_guard_%'")
            triggers = cursor.fetchall()
            kept[:] = [sql for sql, _name in triggers]
            for _sql, name in triggers:
                cursor.execute(f'DROP TRIGGER "{name}"')


def put_up(apps, schema_editor) -> None:
    while kept:
        schema_editor.execute(kept.pop(), params=None)


class Migration(migrations.Migration):
    dependencies = [("billing", "0004_line_by_invoice")]
    operations = [
        migrations.RunPython(take_down, put_up),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(("made_at__gte", models.F("ends_at"))),
                name="billing_invoice_month_over",
                violation_error_message="An invoice is made once its month is over.",
            ),
        ),
        migrations.RunPython(put_up, take_down),
    ]
