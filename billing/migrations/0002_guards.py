"""Triggers for what constraints cannot say: rows that are written once, and prices that do not reach into the past.

Each guard is one rule with its sentence. On SQLite it is a trigger with RAISE, on PostgreSQL a function of its own.

SQLite drops the triggers of a table that Django makes anew to alter it: a later migration that alters one of these tables
has to call `drop` before it and `create` after it. `test_guards.py` notices when one is missing.
"""

from django.db import migrations

SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
POSTGRES_NOW = "clock_timestamp()"

SEGMENT_FIXED = " OR ".join(
    f"NEW.{column} {{differs}} OLD.{column}"
    for column in (
        "id",
        "resource_id",
        "kind",
        "customer_id",
        "project_id",
        "location_id",
        "size_gb",
        "base_rate_micro",
        "started_at",
    )
)

# (name, when, table, condition, sentence)
GUARDS = [
    (
        "price_begun",
        "BEFORE UPDATE OR DELETE",
        "billing_priceversion",
        "OLD.starts_at <= {now}",
        "A price that has begun cannot be changed: plan the next one.",
    ),
    (
        "price_moved_back",
        "BEFORE UPDATE",
        "billing_priceversion",
        "NEW.starts_at <= {now} AND OLD.starts_at > {now}",
        "A price starts in the future: hours that have begun keep their price.",
    ),
    (
        # the first price of a kind in a location may start earlier: nothing can have been sold there before it
        "price_in_the_past",
        "BEFORE INSERT",
        "billing_priceversion",
        "NEW.starts_at <= {now} AND EXISTS (SELECT 1 FROM billing_priceversion v JOIN billing_package p"
        " ON p.id = v.package_id JOIN billing_package mine ON mine.kind = p.kind AND mine.location_id = p.location_id"
        " WHERE mine.id = NEW.package_id)",
        "A price starts in the future: hours that have begun keep their price.",
    ),
    (
        "package_moved",
        "BEFORE UPDATE",
        "billing_package",
        "(NEW.kind <> OLD.kind OR NEW.location_id <> OLD.location_id)"
        " AND EXISTS (SELECT 1 FROM billing_priceversion v WHERE v.package_id = OLD.id)",
        "A package with a price stays what it is and where it is: make another one.",
    ),
    (
        "usage_changed",
        "BEFORE UPDATE",
        "billing_usagesegment",
        "((" + SEGMENT_FIXED + ") AND EXISTS (SELECT 1 FROM billing_invoiceline l WHERE l.segment_id = OLD.id))"
        " OR (OLD.ended_at IS NOT NULL AND (NEW.ended_at {differs} OLD.ended_at OR NEW.resource_name <> OLD.resource_name)"
        " AND EXISTS (SELECT 1 FROM billing_invoiceline l WHERE l.segment_id = OLD.id))",
        "Usage that an invoice was made of cannot be changed.",
    ),
    (
        "usage_deleted",
        "BEFORE DELETE",
        "billing_usagesegment",
        "EXISTS (SELECT 1 FROM billing_invoiceline l WHERE l.segment_id = OLD.id)",
        "Usage that an invoice was made of cannot be deleted.",
    ),
    (
        "invoice",
        "BEFORE UPDATE OR DELETE",
        "billing_invoice",
        "{always}",
        "An invoice is never changed or deleted: what is wrong is corrected by a line of the next one.",
    ),
    (
        # the lines come first, so an invoice that is there is complete
        "invoice_sum",
        "AFTER INSERT",
        "billing_invoice",
        "(NEW.total_micro, NEW.line_count) <> (SELECT COALESCE(SUM(l.amount_micro), 0), COUNT(*)"
        " FROM billing_invoiceline l WHERE l.invoice_id = NEW.id)",
        "The lines of an invoice add up to its total.",
    ),
    (
        "line",
        "BEFORE UPDATE OR DELETE",
        "billing_invoiceline",
        "{always}",
        "A line of an invoice is never changed or deleted: another line corrects it.",
    ),
    (
        "wallet",
        "BEFORE UPDATE OR DELETE",
        "billing_wallettransaction",
        "{always}",
        "A wallet transaction is never changed or deleted: another one corrects it.",
    ),
]
LINE_TOO_LATE = "An invoice that is there takes no further lines."


def create(apps, schema_editor) -> None:
    if schema_editor.connection.vendor == "sqlite":
        for name, when, table, condition, sentence in GUARDS:
            condition = condition.format(now=SQLITE_NOW, always="1", differs="IS NOT")
            timing, *events = when.replace(" OR", "").split()
            for event in events:
                schema_editor.execute(
                    f"CREATE TRIGGER billing_guard_{name}_{event.lower()} {timing} {event} ON {table} FOR EACH ROW"
                    f" WHEN {condition} BEGIN SELECT RAISE(ABORT, '{sentence}'); END",
                    params=None,
                )
        schema_editor.execute(
            "CREATE TRIGGER billing_guard_line_late_insert BEFORE INSERT ON billing_invoiceline FOR EACH ROW"
            " WHEN EXISTS (SELECT 1 FROM billing_invoice i WHERE i.id = NEW.invoice_id)"
            f" BEGIN SELECT RAISE(ABORT, '{LINE_TOO_LATE}'); END",
            params=None,
        )
        return
    for name, when, table, condition, sentence in GUARDS:
        condition = condition.format(now=POSTGRES_NOW, always="TRUE", differs="IS DISTINCT FROM")
        schema_editor.execute(
            f"CREATE FUNCTION billing_guard_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF {condition} THEN RAISE EXCEPTION '{sentence}' USING ERRCODE = 'integrity_constraint_violation'; END IF;"
            " IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$",
            params=None,
        )
        schema_editor.execute(
            f"CREATE TRIGGER billing_guard_{name} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION billing_guard_{name}()",
            params=None,
        )
    # once for a statement: lines come by the million
    schema_editor.execute(
        "CREATE FUNCTION billing_guard_line_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT 1 FROM fresh JOIN billing_invoice i ON i.id = fresh.invoice_id) THEN"
        f" RAISE EXCEPTION '{LINE_TOO_LATE}' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN NULL; END $$",
        params=None,
    )
    schema_editor.execute(
        "CREATE TRIGGER billing_guard_line_late AFTER INSERT ON billing_invoiceline REFERENCING NEW TABLE AS fresh"
        " FOR EACH STATEMENT EXECUTE FUNCTION billing_guard_line_late()",
        params=None,
    )


def drop(apps, schema_editor) -> None:
    with schema_editor.connection.cursor() as cursor:
        if schema_editor.connection.vendor == "sqlite":
            cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'billing_guard_%'")
            for (name,) in cursor.fetchall():
                cursor.execute(f'DROP TRIGGER "{name}"')
        else:
            for name in [*(guard[0] for guard in GUARDS), "line_late"]:
                cursor.execute(f"DROP FUNCTION billing_guard_{name}() CASCADE")


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [migrations.RunPython(create, drop)]
