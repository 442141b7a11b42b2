"""How the files of disks change, and snapshots that are kept because an unusual change followed."""

import django.db.models.deletion
from django.db import migrations, models

from cng_portal.common.triggers import Guard, guards

GUARDS = [
    Guard(
        "held_snapshot",
        "BEFORE UPDATE",
        "snapshots_snapshot",
        "NEW.state IN ('deleting', 'deleted') AND OLD.state = 'ready' AND OLD.held_at IS NOT NULL"
        " AND NEW.deletion_cause IN ('retention', 'expired')",
        "The last snapshot before an unusual change is never deleted automatically.",
    ),
]


class Migration(migrations.Migration):
    dependencies = [
        ("snapshots", "0017_volumes_in_bin"),
    ]

    operations = [
        migrations.AddField(
            model_name="snapshot",
            name="held_at",
            field=models.DateTimeField(
                blank=True, editable=False, null=True, verbose_name="kept before an unusual change"
            ),
        ),
        migrations.AddField(
            model_name="snapshot",
            name="unusual_at",
            field=models.DateTimeField(blank=True, editable=False, null=True, verbose_name="unusual change found"),
        ),
        migrations.CreateModel(
            name="DiskChange",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("files_before", models.BigIntegerField(verbose_name="files before")),
                ("added", models.BigIntegerField(verbose_name="added")),
                ("changed", models.BigIntegerField(verbose_name="changed")),
                ("removed", models.BigIntegerField(verbose_name="removed")),
                ("renamed", models.BigIntegerField(verbose_name="renamed")),
                ("sampled", models.IntegerField(verbose_name="sampled")),
                ("unreadable", models.IntegerField(verbose_name="unreadable")),
                ("usual_share", models.FloatField(blank=True, null=True, verbose_name="usual share")),
                ("is_unusual", models.BooleanField(default=False, verbose_name="unusual")),
                ("accepted_at", models.DateTimeField(blank=True, null=True, verbose_name="accepted")),
                (
                    "disk",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, related_name="change", to="snapshots.diskimage"
                    ),
                ),
                (
                    "previous",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="next_changes",
                        to="snapshots.diskimage",
                    ),
                ),
            ],
            options={
                "verbose_name": "change of a disk",
                "verbose_name_plural": "changes of disks",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("added__gte", 0),
                            ("changed__gte", 0),
                            ("files_before__gt", 0),
                            ("removed__gte", 0),
                            ("renamed__gte", 0),
                            ("unreadable__gte", 0),
                            ("unreadable__lte", models.F("sampled")),
                        ),
                        name="disk_change_counts",
                    )
                ],
            },
        ),
        guards("snapshots", GUARDS),
    ]
