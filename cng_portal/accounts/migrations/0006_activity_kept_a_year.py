"""Entries of the activity log that are older than a year can be deleted: who keeps addresses for good needs a reason.

As before, no entry is ever changed, so none is made older. On PostgreSQL the trigger of 0004 stays and its function says
something else, so no lock is taken.

SQLite drops the triggers of a table that Django makes anew to alter it: a later migration that alters `accounts_activity`
has to call `guard` after it. `test_activity.py` notices when one is missing.
"""

from importlib import import_module

from django.db import migrations

before = import_module("cng_portal.accounts.migrations.0004_activity_guard")

SENTENCE = "An entry of the activity log is never changed, and not deleted before it is a year old."
SQLITE_YEAR_AGO = "strftime('%Y-%m-%d %H:%M:%f', 'now', '-365 days')"
POSTGRES_YEAR_AGO = "clock_timestamp() - interval '8760 hours'"  # days are not equally long where clocks are changed


def guard(apps, schema_editor) -> None:
    if schema_editor.connection.vendor == "sqlite":
        before.drop(apps, schema_editor)
        for event, when in (("update", ""), ("delete", f" WHEN OLD.at > {SQLITE_YEAR_AGO}")):
            schema_editor.execute(
                f"CREATE TRIGGER accounts_guard_activity_{event} BEFORE {event.upper()} ON accounts_activity FOR EACH ROW"
                f"{when} BEGIN SELECT RAISE(ABORT, '{SENTENCE}'); END",
                params=None,
            )
        return
    schema_editor.execute(
        "CREATE OR REPLACE FUNCTION accounts_guard_activity() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP = 'DELETE' AND OLD.at <= {POSTGRES_YEAR_AGO} THEN RETURN OLD; END IF;"
        f" RAISE EXCEPTION '{SENTENCE}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        params=None,
    )


def back(apps, schema_editor) -> None:
    before.drop(apps, schema_editor)
    before.create(apps, schema_editor)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0005_language")]
    operations = [migrations.RunPython(guard, back)]
