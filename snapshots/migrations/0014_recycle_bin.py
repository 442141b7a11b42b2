"""Snapshots in the recycle bin: Deleted, but nothing erases their data until they have left it."""

from django.db import migrations, models

from cng_portal.common.triggers import Guard, guards

GUARDS = [
    Guard(
        "recycle_bin",
        "BEFORE UPDATE",
        "snapshots_snapshot",
        "NEW.bin_until IS NOT NULL AND NEW.state <> 'deleted'",
        "Only what was deleted is in the recycle bin.",
    ),
    Guard(
        "erase_from_bin",
        "BEFORE INSERT",
        "snapshots_operation",
        "NEW.kind IN ('delete', 'clean_up') AND EXISTS"
        " (SELECT 1 FROM snapshots_snapshot s WHERE s.id = NEW.snapshot_id AND s.bin_until IS NOT NULL)",
        "What is in the recycle bin is not erased.",
    ),
]


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_recycle_bin"),
        ("snapshots", "0013_catalogue_index"),
    ]
    operations = [
        migrations.AddField(
            model_name="snapshot",
            name="bin_until",
            field=models.DateTimeField(blank=True, editable=False, null=True, verbose_name="in the recycle bin until"),
        ),
        guards("snapshots", GUARDS),
    ]
