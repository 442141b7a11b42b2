"""Find the volumes that have to leave the recycle bin, while others write."""

from django.db import migrations, models
from django.db.models import Q

from cng_portal.common.migrations import AddIndexMeanwhile


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("inventory", "0007_recycle_bin")]
    operations = [
        AddIndexMeanwhile(
            "volume",
            models.Index(
                fields=["bin_until"], condition=Q(bin_until__isnull=False), name="inventory_volume_bin_due"
            ),
        ),
    ]
