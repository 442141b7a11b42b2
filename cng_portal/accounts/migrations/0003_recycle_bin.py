import django.core.validators
from django.db import migrations, models
from django.db.models import Q

from cng_portal.common.migrations import AddCheckMeanwhile


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_shared_files")]
    operations = [
        migrations.AddField(
            model_name="customer",
            name="recycle_bin_days",
            field=models.PositiveSmallIntegerField(
                blank=True,
                help_text="How long deleted snapshots and backups can be put back, at most 365 days; 0: not at all. Empty: the default. A longer time counts at once, a shorter one only for what is deleted later.",
                null=True,
                validators=[django.core.validators.MaxValueValidator(365)],
                verbose_name="days in the recycle bin",
            ),
        ),
        AddCheckMeanwhile(
            model_name="customer",
            constraint=models.CheckConstraint(
                condition=Q(recycle_bin_days__isnull=True) | Q(recycle_bin_days__lte=365),
                name="accounts_customer_recycle_bin_days",
                violation_error_message="At most 365 days.",
            ),
        ),
    ]
