"""Prices that have begun, usage that was invoiced, invoices and wallet transactions never change."""

from typing import Any

from django.db import migrations

from cng_portal.common.triggers import Guard, guards

SEGMENT_CHANGED = " OR ".join(
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
SEGMENT_INVOICED = "EXISTS (SELECT 1 FROM billing_invoiceline l WHERE l.segment_id = OLD.id)"

GUARDS = [
    Guard(
        "price_begun",
        "BEFORE UPDATE OR DELETE",
        "billing_priceversion",
        "OLD.starts_at <= {now}",
        "A price that has begun cannot be changed: plan the next one.",
    ),
    Guard(
        "price_moved_back",
        "BEFORE UPDATE",
        "billing_priceversion",
        "NEW.starts_at <= {now} AND OLD.starts_at > {now}",
        "A price starts in the future: hours that have begun keep their price.",
    ),
    Guard(
        # The first price of a kind, location and currency may start earlier: nothing can have been sold before.
        "price_in_the_past",
        "BEFORE INSERT",
        "billing_priceversion",
        "NEW.corrects_id IS NULL AND NEW.starts_at <= {now} AND EXISTS (SELECT 1 FROM billing_priceversion v JOIN billing_package p"
        " ON p.id = v.package_id JOIN billing_package mine ON mine.kind = p.kind AND mine.location_id = p.location_id"
        " AND mine.currency = p.currency WHERE mine.id = NEW.package_id)",
        "A price starts in the future: hours that have begun keep their price.",
    ),
    Guard(
        "price_corrected",
        "BEFORE INSERT",
        "billing_priceversion",
        "NEW.corrects_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM billing_priceversion v WHERE v.id = NEW.corrects_id"
        " AND v.package_id = NEW.package_id AND v.starts_at = NEW.starts_at AND v.starts_at <= {now}"
        " AND v.rate_micro > NEW.rate_micro)",
        "A correction lowers a price that has begun, from its own start.",
    ),
    Guard(
        "price_of_inactive",
        "BEFORE INSERT",
        "billing_priceversion",
        "NEW.starts_at > {now} AND EXISTS (SELECT 1 FROM billing_package p WHERE p.id = NEW.package_id AND NOT p.active)",
        "An inactive package takes no new prices: activate it first.",
    ),
    Guard(
        # Else a planned price of a retired package would take over from the one that replaced it.
        "package_retired",
        "BEFORE UPDATE",
        "billing_package",
        "OLD.active AND NOT NEW.active AND EXISTS"
        " (SELECT 1 FROM billing_priceversion v WHERE v.package_id = OLD.id AND v.starts_at > {now})",
        "A package with planned prices stays active: delete them first.",
    ),
    Guard(
        "package_moved",
        "BEFORE UPDATE",
        "billing_package",
        "(NEW.kind <> OLD.kind OR NEW.location_id <> OLD.location_id OR NEW.currency <> OLD.currency)"
        " AND EXISTS (SELECT 1 FROM billing_priceversion v WHERE v.package_id = OLD.id)",
        "A package with a price keeps its kind, location and currency: create another one.",
    ),
    Guard(
        "usage_changed",
        "BEFORE UPDATE",
        "billing_usagesegment",
        f"(({SEGMENT_CHANGED}) AND {SEGMENT_INVOICED}) OR (OLD.ended_at IS NOT NULL AND (NEW.ended_at {{differs}} OLD.ended_at"
        f" OR NEW.resource_name <> OLD.resource_name OR NEW.voided <> OLD.voided) AND {SEGMENT_INVOICED})",
        "Usage that an invoice was made of cannot be changed.",
    ),
    Guard(
        "usage_deleted",
        "BEFORE DELETE",
        "billing_usagesegment",
        SEGMENT_INVOICED,
        "Usage that an invoice was made of cannot be deleted.",
    ),
    Guard(
        "invoice",
        "BEFORE UPDATE OR DELETE",
        "billing_invoice",
        "{always}",
        "An invoice is never changed or deleted: a line of the next one corrects it.",
    ),
    Guard(
        # The lines are inserted first, so an invoice that exists is complete.
        "invoice_sum",
        "AFTER INSERT",
        "billing_invoice",
        "(NEW.total_micro, NEW.line_count) <> (SELECT COALESCE(SUM(l.amount_micro), 0), COUNT(*)"
        " FROM billing_invoiceline l WHERE l.invoice_id = NEW.id)",
        "The lines of an invoice add up to its total.",
    ),
    Guard(
        "line",
        "BEFORE UPDATE OR DELETE",
        "billing_invoiceline",
        "{always}",
        "A line of an invoice is never changed or deleted: another line corrects it.",
    ),
    Guard(
        "wallet",
        "BEFORE UPDATE OR DELETE",
        "billing_wallettransaction",
        "{always}",
        "A wallet transaction is never changed or deleted: another one corrects it.",
    ),
    Guard("seal", "BEFORE UPDATE OR DELETE", "billing_seal", "{always}", "A seal is never changed or deleted."),
]
LATE_LINE = "An invoice that exists takes no further lines."


def create_late_line(_apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute(
            "CREATE TRIGGER billing_guard_line_late_insert BEFORE INSERT ON billing_invoiceline FOR EACH ROW"
            " WHEN EXISTS (SELECT 1 FROM billing_invoice i WHERE i.id = NEW.invoice_id)"
            f" BEGIN SELECT RAISE(ABORT, '{LATE_LINE}'); END",
            params=None,
        )
        return
    # Once for a statement instead of each row: lines are inserted by the million.
    schema_editor.execute(
        "CREATE FUNCTION billing_guard_line_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT 1 FROM fresh JOIN billing_invoice i ON i.id = fresh.invoice_id) THEN"
        f" RAISE EXCEPTION '{LATE_LINE}' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN NULL; END $$",
        params=None,
    )
    schema_editor.execute(
        "CREATE TRIGGER billing_guard_line_late AFTER INSERT ON billing_invoiceline REFERENCING NEW TABLE AS fresh"
        " FOR EACH STATEMENT EXECUTE FUNCTION billing_guard_line_late()",
        params=None,
    )


def drop_late_line(_apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute("DROP TRIGGER IF EXISTS billing_guard_line_late_insert", params=None)
    else:
        schema_editor.execute("DROP FUNCTION IF EXISTS billing_guard_line_late() CASCADE", params=None)


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [guards("billing", GUARDS), migrations.RunPython(create_late_line, drop_late_line)]
