"""Find what is in the recycle bin, while others write."""

from django.db import migrations, models
from django.db.models import Q

from cng_portal.common.migrations import AddIndexMeanwhile


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("snapshots", "0014_recycle_bin")]
    operations = [
        AddIndexMeanwhile(
            "snapshot",
            models.Index(
                fields=["customer", "bin_until", "id"], condition=Q(bin_until__isnull=False), name="snapshot_in_bin"
            ),
        ),
        AddIndexMeanwhile(
            "snapshot",
            models.Index(fields=["bin_until"], condition=Q(bin_until__isnull=False), name="snapshot_bin_due"),
        ),
    ]
