"""Validate the checks of Block Storage, while others write."""

from django.db import migrations

from cng_portal.common.migrations import ValidateMeanwhile


class Migration(migrations.Migration):
    dependencies = [("billing", "0003_block_storage")]
    operations = [
        ValidateMeanwhile("package", "billing_package_kind"),
        ValidateMeanwhile("usagesegment", "billing_usage_kind"),
        ValidateMeanwhile("usagesegment", "billing_usage_voided"),
    ]
