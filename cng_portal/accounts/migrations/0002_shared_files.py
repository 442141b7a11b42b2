"""A project may let its viewers read the files in snapshots."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]
    operations = [
        migrations.AddField(
            model_name="project",
            name="files_shared_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="Since when viewers can read the files in snapshots. Empty: they can't.",
                null=True,
                verbose_name="files shared",
            ),
        ),
    ]
