"""Runs of a schedule get numbers, and deleted snapshots say why they were deleted."""

import itertools

from django.db import migrations, models


def number_runs(apps, schema_editor) -> None:
    runs = apps.get_model("snapshots", "BackupRun").objects.order_by("schedule_id", "created_at", "slot", "pk")
    for _schedule, of_schedule in itertools.groupby(list(runs), key=lambda run: run.schedule_id):
        for number, run in enumerate(of_schedule, start=1):
            run.number = number
            run.save(update_fields=["number"])


def name_causes(apps, schema_editor) -> None:
    snapshots = apps.get_model("snapshots", "Snapshot").objects
    snapshots.filter(state__in=["deleting", "deleted"]).update(deletion_cause="user")


class Migration(migrations.Migration):
    dependencies = [("snapshots", "0002_search")]
    operations = [
        migrations.AddField("backuprun", "number", models.PositiveIntegerField(null=True)),
        migrations.AddField(
            "snapshot",
            "deletion_cause",
            models.CharField(
                "cause of deletion",
                blank=True,
                choices=[
                    ("user", "Deleted by a user"),
                    ("retention", "Deleted by the schedule's retention"),
                    ("damaged", "Deleted because it was damaged"),
                    ("failed", "Deleted because taking it failed"),
                    ("outside", "Deleted in the cloud"),
                ],
                default="",
                editable=False,
                max_length=9,
            ),
            preserve_default=False,
        ),
        migrations.RunPython(number_runs, migrations.RunPython.noop),
        migrations.RunPython(name_causes, migrations.RunPython.noop),
    ]
