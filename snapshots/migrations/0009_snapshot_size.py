"""A snapshot is never larger than what usage can charge."""

from django.db import migrations

from cng_portal.common.triggers import Guard, guards

GUARDS = [
    Guard(
        "too_large",
        "BEFORE INSERT",
        "snapshots_snapshot",
        "NEW.size_gb > 5000000",
        "A snapshot has at most 5,000,000 GB: its usage could not be charged.",
    )
]


class Migration(migrations.Migration):
    dependencies = [("snapshots", "0008_tags")]
    operations = [guards("snapshots", GUARDS)]
