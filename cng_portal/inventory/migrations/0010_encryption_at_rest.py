"""What a location says about encryption at rest."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('inventory', '0009_properties'),
    ]

    operations = [
        migrations.AddField(
            model_name='location',
            name='encryption',
            field=models.CharField(blank=True, db_default='', default='', help_text="What encrypts the data in this location's storage, such as “LUKS on every disk”. Customers read it on the pages of their volumes and snapshots. Empty: the pages say nothing.", max_length=200, verbose_name='encryption at rest'),
        ),
    ]
