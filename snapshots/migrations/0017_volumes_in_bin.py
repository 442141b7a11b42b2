"""Nothing erases the data of a volume that is in the recycle bin."""

from django.db import migrations

from cng_portal.common.triggers import Guard, guards

GUARDS = [
    Guard(
        "erase_volume_from_bin",
        "BEFORE INSERT",
        "snapshots_operation",
        "NEW.kind IN ('delete_volume', 'clean_up') AND EXISTS"
        " (SELECT 1 FROM inventory_volume v WHERE v.id = NEW.volume_id AND v.bin_until IS NOT NULL)",
        "What is in the recycle bin is not erased.",
    ),
]


class Migration(migrations.Migration):
    dependencies = [
        ("inventory", "0007_recycle_bin"),
        ("snapshots", "0016_locks"),
    ]
    operations = [guards("snapshots", GUARDS)]
