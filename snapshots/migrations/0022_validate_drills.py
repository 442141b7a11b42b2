"""Validate the check of operations' targets, while others write."""

from django.db import migrations

from cng_portal.common.migrations import ValidateMeanwhile


class Migration(migrations.Migration):
    dependencies = [("snapshots", "0021_restore_drills")]
    operations = [ValidateMeanwhile("operation", "operation_target")]
