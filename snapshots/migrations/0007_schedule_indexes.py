"""Indexes of the new columns, and the checks of 0006 for the rows before it, while others write."""

from django.db import migrations, models
from django.db.models import Q

from cng_portal.common.migrations import AddIndexMeanwhile, ValidateMeanwhile


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("snapshots", "0006_schedule_sources")]
    operations = [
        AddIndexMeanwhile(
            "backupschedule",
            models.Index(fields=["volume"], condition=Q(volume__isnull=False), name="schedule_of_volume"),
        ),
        AddIndexMeanwhile("backupschedule", models.Index(fields=["project"], name="schedule_of_project")),
        AddIndexMeanwhile(
            "backuprun",
            models.Index(fields=["volume"], condition=Q(volume__isnull=False), name="run_of_volume"),
        ),
        AddIndexMeanwhile(
            "snapshot",
            models.Index(
                fields=["expires_at"],
                condition=Q(expires_at__isnull=False, deleted_at=None),
                name="snapshot_expiring",
            ),
        ),
        ValidateMeanwhile("backupschedule", "schedule_source"),
        ValidateMeanwhile("backuprun", "run_source"),
        ValidateMeanwhile("snapshot", "snapshot_pinned"),
        ValidateMeanwhile("snapshot", "snapshot_expires"),
    ]
