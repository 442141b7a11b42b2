"""Validate the check of the days in the recycle bin, while others write."""

from django.db import migrations

from cng_portal.common.migrations import ValidateMeanwhile


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_recycle_bin")]
    operations = [ValidateMeanwhile("customer", "accounts_customer_recycle_bin_days")]
