"""Catalogues of snapshots' files."""

from django.db import migrations, models

from cng_portal.common.migrations import AddCheckMeanwhile


class Migration(migrations.Migration):
    dependencies = [("snapshots", "0011_plain_labels")]
    operations = [
        migrations.RemoveConstraint(model_name="operation", name="operation_target"),
        migrations.AddField(
            model_name="diskimage",
            name="file_count",
            field=models.BigIntegerField(
                blank=True,
                editable=False,
                help_text="In its catalogue. Empty: there is none.",
                null=True,
                verbose_name="files",
            ),
        ),
        migrations.AddField(
            model_name="snapshot",
            name="catalogued_at",
            field=models.DateTimeField(blank=True, editable=False, null=True, verbose_name="files listed"),
        ),
        migrations.AlterField(
            model_name="operation",
            name="kind",
            field=models.CharField(
                choices=[
                    ("capture", "Take snapshot"),
                    ("restore", "Restore"),
                    ("new_volume", "New volume"),
                    ("verify", "Verify"),
                    ("scrub", "Scheduled verification"),
                    ("catalogue", "List files"),
                    ("delete", "Delete"),
                    ("clean_up", "Clean up"),
                    ("create_volume", "Create volume"),
                    ("extend_volume", "Grow volume"),
                    ("delete_volume", "Delete volume"),
                ],
                max_length=16,
                verbose_name="kind",
            ),
        ),
        migrations.AddConstraint(
            model_name="operation",
            constraint=models.UniqueConstraint(
                condition=models.Q(("finished_at", None), ("kind", "catalogue")),
                fields=("snapshot",),
                name="operation_one_catalogue",
            ),
        ),
        AddCheckMeanwhile(
            model_name="operation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        models.Q(
                            models.Q(
                                ("disk", None), ("kind", "restore"), ("vm", None), ("volume__isnull", False)
                            ),
                            models.Q(
                                ("disk", None), ("kind", "restore"), ("vm__isnull", False), ("volume", None)
                            ),
                            models.Q(
                                ("disk__isnull", False),
                                ("kind", "new_volume"),
                                ("safety_snapshot", None),
                                ("vm", None),
                                ("volume__isnull", False),
                            ),
                            models.Q(
                                ("disk", None),
                                (
                                    "kind__in",
                                    ["capture", "verify", "scrub", "catalogue", "delete", "clean_up"],
                                ),
                                ("safety_snapshot", None),
                                ("vm", None),
                                ("volume", None),
                            ),
                            _connector="OR",
                        ),
                        ("new_size_gb", None),
                        ("snapshot__isnull", False),
                    ),
                    models.Q(
                        models.Q(
                            models.Q(("kind", "clean_up"), ("new_size_gb", None)),
                            models.Q(
                                ("kind__in", ["create_volume", "delete_volume"]),
                                ("new_size_gb", None),
                                ("snapshot", None),
                            ),
                            models.Q(
                                ("kind", "extend_volume"), ("new_size_gb__isnull", False), ("snapshot", None)
                            ),
                            _connector="OR",
                        ),
                        ("disk", None),
                        ("safety_snapshot", None),
                        ("vm", None),
                        ("volume__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="operation_target",
            ),
        ),
    ]
