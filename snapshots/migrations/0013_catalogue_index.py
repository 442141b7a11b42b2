"""Find the next snapshot whose files are listed, and validate the check of operations' targets, while others write."""

from django.db import migrations, models
from django.db.models import Q

from cng_portal.common.migrations import AddIndexMeanwhile, ValidateMeanwhile


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("snapshots", "0012_catalogues")]
    operations = [
        AddIndexMeanwhile(
            "snapshot",
            models.Index(
                fields=["location", "-ready_at"],
                condition=Q(state="ready", missing_since=None, catalogued_at=None),
                name="snapshot_to_catalogue",
            ),
        ),
        ValidateMeanwhile("operation", "operation_target"),
    ]
