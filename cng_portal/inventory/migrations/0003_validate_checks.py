"""Validate the check of volumes' states, while others write."""

from django.db import migrations

from cng_portal.common.migrations import ValidateMeanwhile


class Migration(migrations.Migration):
    dependencies = [("inventory", "0002_volume_life")]
    operations = [ValidateMeanwhile("volume", "inventory_volume_state_instants")]
