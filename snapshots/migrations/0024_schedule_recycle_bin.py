"""Schedules that use the recycle bin."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('snapshots', '0023_drill_plans'),
    ]

    operations = [
        migrations.AddField(
            model_name='backupschedule',
            name='uses_recycle_bin',
            field=models.BooleanField(db_default=False, default=False, help_text='What retention removes goes to the recycle bin. Otherwise it is erased at once.', verbose_name='uses the recycle bin'),
        ),
    ]
