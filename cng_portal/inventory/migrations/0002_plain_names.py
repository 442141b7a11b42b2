"""Names of the glossary: `default_retention_count`."""

from django.core.validators import MinValueValidator
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("inventory", "0001_initial")]
    operations = [
        migrations.RemoveConstraint("location", "inventory_location_default_keep"),
        migrations.RenameField("location", "default_keep", "default_retention_count"),
        migrations.AlterField(
            model_name='location',
            name='default_retention_count',
            field=models.PositiveSmallIntegerField(default=2, validators=[MinValueValidator(1)], verbose_name='backups kept'),
        ),
        migrations.AddConstraint(
            model_name='location',
            constraint=models.CheckConstraint(condition=models.Q(('default_retention_count__gte', 1)), name='inventory_location_default_retention_count', violation_error_message='Keep at least one backup.'),
        ),
    ]
