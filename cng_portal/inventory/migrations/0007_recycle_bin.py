"""Volumes in the recycle bin: deleted, but nothing erases their data until they have left it."""

from django.db import migrations, models

from cng_portal.common.triggers import Guard, guards

GUARDS = [
    Guard(
        "recycle_bin",
        "BEFORE UPDATE",
        "inventory_volume",
        "NEW.bin_until IS NOT NULL AND (NEW.state <> 'deleting' OR NEW.deleted_at IS NULL)",
        "Only what was deleted is in the recycle bin.",
    ),
]


class Migration(migrations.Migration):
    dependencies = [("inventory", "0006_plain_labels")]
    operations = [
        migrations.AddField(
            model_name="volume",
            name="bin_until",
            field=models.DateTimeField(blank=True, editable=False, null=True, verbose_name="in the recycle bin until"),
        ),
        guards("inventory", GUARDS),
    ]
