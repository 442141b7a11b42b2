"""Triggers that keep the activity log as it was written: no row is changed or deleted, whoever asks.

SQLite drops the triggers of a table that Django makes anew to alter it: a later migration that alters `accounts_activity`
has to call `drop` before it and `create` after it. `test_activity.py` notices when one is missing.
"""

from django.db import migrations

SENTENCE = "An entry of the activity log is never changed or deleted."


def create(apps, schema_editor) -> None:
    if schema_editor.connection.vendor == "sqlite":
        for event in ("update", "delete"):
            schema_editor.execute(
                f"CREATE TRIGGER accounts_guard_activity_{event} BEFORE {event.upper()} ON accounts_activity FOR EACH ROW"
                f" BEGIN SELECT RAISE(ABORT, '{SENTENCE}'); END",
                params=None,
            )
        return
    schema_editor.execute(
        "CREATE FUNCTION accounts_guard_activity() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION '{SENTENCE}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        params=None,
    )
    schema_editor.execute(
        "CREATE TRIGGER accounts_guard_activity BEFORE UPDATE OR DELETE ON accounts_activity"
        " FOR EACH ROW EXECUTE FUNCTION accounts_guard_activity()",
        params=None,
    )


def drop(apps, schema_editor) -> None:
    if schema_editor.connection.vendor == "sqlite":
        for event in ("update", "delete"):
            schema_editor.execute(f"DROP TRIGGER IF EXISTS accounts_guard_activity_{event}", params=None)
    else:
        schema_editor.execute("DROP FUNCTION IF EXISTS accounts_guard_activity() CASCADE", params=None)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_profile_invitations_activity")]
    operations = [migrations.RunPython(create, drop)]
