"""What failed, in the order of the list, of who has tens of thousands that are Ready."""

from django.db import migrations, models

from cng_portal.common.migrations import AddIndexMeanwhile


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("snapshots", "0006_quick_when_big")]
    operations = [
        AddIndexMeanwhile(
            "snapshot",
            models.Index(
                fields=["customer", "kind", "state", "-created_at", "-id"],
                condition=models.Q(deleted_at=None, state__in=["failed", "pending", "creating", "deleting"]),
                name="snapshot_not_ready",
            ),
        )
    ]
