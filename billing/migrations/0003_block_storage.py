"""Block Storage is a kind of package and of usage, and any usage can be voided.

The new checks allow more than the old ones, so no row and no insert of the previous version breaks them. SQLite rebuilds
the tables, which drops their triggers and refuses to while other triggers name them: all are created again afterwards.
"""

from importlib import import_module
from typing import Any

from django.db import migrations, models
from django.db.models import F, Q

from cng_portal.common.migrations import AddCheckMeanwhile
from cng_portal.common.triggers import Guard, create_guards, drop_guards, guards

triggers = import_module("billing.migrations.0002_triggers")

KINDS = [
    ("block_storage", "Block Storage"),
    ("bs_snapshot", "BS Snapshot"),
    ("vm_snapshot", "VM Snapshot"),
    ("vm_backup", "VM Backup"),
    ("vm_backup_auto", "Automatic VM Backup"),
]
PACKAGE_KINDS = KINDS[:-1]
ONLY_PACKAGE_KINDS = "Packages are for Block Storage, BS Snapshot, VM Snapshot and VM Backup."
ONE_PACKAGE = (
    "This location already has an active package for this kind and currency. Only one package per zone is supported for "
    "Block Storage, VM Snapshot, BS Snapshot, and VM Backup: plan a new price for the existing one, or deactivate it first."
)
GUARDS = [
    Guard(
        # Volumes that weren't charged meanwhile would be charged from the package's old prices on, without notice.
        "package_reactivated",
        "BEFORE UPDATE",
        "billing_package",
        "NEW.active AND NOT OLD.active AND NEW.kind = 'block_storage'"
        " AND EXISTS (SELECT 1 FROM billing_priceversion v WHERE v.package_id = NEW.id AND v.starts_at <= {now})",
        "A Block Storage package that was deactivated stays so: add another one.",
    ),
]


def on_sqlite(change: Any) -> Any:
    def change_guards(apps: Any, schema_editor: Any) -> None:
        if schema_editor.connection.vendor == "sqlite":
            change("billing", triggers.GUARDS, apps, schema_editor)

    return change_guards


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_triggers")]
    operations = [
        migrations.RunPython(on_sqlite(drop_guards), on_sqlite(create_guards)),
        migrations.RemoveConstraint("package", "billing_package_kind"),
        AddCheckMeanwhile(
            "package",
            models.CheckConstraint(
                condition=Q(kind__in=[kind for kind, _label in PACKAGE_KINDS]),
                name="billing_package_kind",
                violation_error_message=ONLY_PACKAGE_KINDS,
            ),
        ),
        migrations.AlterConstraint(
            "package",
            "billing_package_one_active",
            models.UniqueConstraint(
                fields=["location", "kind", "currency"],
                condition=Q(active=True),
                name="billing_package_one_active",
                violation_error_message=ONE_PACKAGE,
            ),
        ),
        migrations.AlterField(
            "package",
            "kind",
            models.CharField(
                "kind",
                max_length=16,
                choices=PACKAGE_KINDS,
                error_messages={"invalid_choice": ONLY_PACKAGE_KINDS},
            ),
        ),
        migrations.AlterField("usagesegment", "kind", models.CharField("kind", max_length=16, choices=KINDS)),
        migrations.AlterField("invoiceline", "kind", models.CharField("kind", max_length=16, choices=KINDS)),
        migrations.RemoveConstraint("usagesegment", "billing_usage_kind"),
        AddCheckMeanwhile(
            "usagesegment",
            models.CheckConstraint(
                condition=Q(kind__in=[kind for kind, _label in KINDS]),
                name="billing_usage_kind",
                violation_error_message="This kind of service does not exist.",
            ),
        ),
        migrations.RemoveConstraint("usagesegment", "billing_usage_voided"),
        AddCheckMeanwhile(
            "usagesegment",
            models.CheckConstraint(
                condition=Q(voided=False) | Q(ended_at__isnull=False, ended_at=F("started_at")),
                name="billing_usage_voided",
                violation_error_message="Usage that is ended before it begins ends at its start.",
            ),
        ),
        migrations.RunPython(on_sqlite(create_guards), on_sqlite(drop_guards)),
        guards("billing", GUARDS),
    ]
