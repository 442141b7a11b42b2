"""Schedules of volumes, the project of what a schedule takes, and snapshots that expire.

The checks allow every row and insert of the previous version, which leaves the new columns out. SQLite rebuilds tables,
which drops their triggers: all are created again afterwards. They now guard what a volume's schedule takes as well.
"""

from dataclasses import replace
from functools import partial
from importlib import import_module

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Q

from cng_portal.common.migrations import AddCheckMeanwhile
from cng_portal.common.triggers import create_guards, drop_guards

GUARDED_BACKUPS = import_module("snapshots.migrations.0002_triggers").GUARDS
GUARDS = [replace(guard, condition=guard.condition.replace(" AND NEW.kind = 'backup'", "")) for guard in GUARDED_BACKUPS]

DELETION_CAUSES = [
    ("user", "Deleted by a user"),
    ("cancelled", "Cancelled while it was being taken"),
    ("retention", "Deleted by the schedule's retention"),
    ("damaged", "Deleted because it was damaged"),
    ("failed", "Deleted because taking it failed"),
    ("outside", "Deleted in the cloud"),
    ("expired", "Deleted because its time was over"),
]
HAS_ONE_SOURCE = Q(vm__isnull=False, volume=None) | Q(vm=None, volume__isnull=False)


def nullable(to: str, related_name: str, verbose_name: str, **options: bool) -> models.ForeignKey:
    return models.ForeignKey(
        blank=True,
        null=True,
        on_delete=django.db.models.deletion.PROTECT,
        related_name=related_name,
        to=to,
        verbose_name=verbose_name,
        **options,
    )


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("inventory", "0001_initial"),
        ("snapshots", "0005_validate_checks"),
    ]
    operations = [
        migrations.RunPython(
            partial(drop_guards, "snapshots", GUARDED_BACKUPS), partial(create_guards, "snapshots", GUARDED_BACKUPS)
        ),
        migrations.AddField(
            "backupschedule", "volume", nullable("inventory.volume", "schedules", "volume", db_index=False)
        ),
        migrations.AddField(
            "backupschedule", "project", nullable("accounts.project", "schedules", "project", db_index=False)
        ),
        migrations.AlterField(
            "backupschedule", "vm", nullable("inventory.virtualmachine", "backup_schedules", "virtual machine")
        ),
        AddCheckMeanwhile(
            "backupschedule",
            models.CheckConstraint(
                condition=HAS_ONE_SOURCE,
                name="schedule_source",
                violation_error_message="A schedule has a machine or a volume.",
            ),
        ),
        migrations.AddField("backuprun", "volume", nullable("inventory.volume", "runs", "volume", db_index=False)),
        migrations.AlterField(
            "backuprun", "vm", nullable("inventory.virtualmachine", "backup_runs", "virtual machine")
        ),
        AddCheckMeanwhile(
            "backuprun",
            models.CheckConstraint(
                condition=HAS_ONE_SOURCE,
                name="run_source",
                violation_error_message="A run has a machine or a volume.",
            ),
        ),
        migrations.AddConstraint(
            "backuprun",
            models.UniqueConstraint(
                fields=["volume"],
                condition=Q(state__in=["waiting", "taking"]),
                name="run_one_unfinished_per_volume",
                violation_error_message="A scheduled snapshot of this volume is already running.",
            ),
        ),
        migrations.AddField("draft", "is_scheduled", models.BooleanField(db_default=False, default=False)),
        migrations.AddField("draft", "delete_after", models.DateField(blank=True, null=True)),
        migrations.AddField(
            "snapshot",
            "expires_at",
            models.DateTimeField(
                blank=True,
                help_text="When the portal deletes it. Empty: never.",
                null=True,
                verbose_name="expires",
            ),
        ),
        migrations.AddField(
            "snapshot", "expiry_announced_at", models.DateTimeField(blank=True, editable=False, null=True)
        ),
        migrations.AlterField(
            "snapshot",
            "deletion_cause",
            models.CharField(
                blank=True,
                choices=DELETION_CAUSES,
                editable=False,
                max_length=9,
                verbose_name="cause of deletion",
            ),
        ),
        migrations.RemoveConstraint("snapshot", "snapshot_pinned"),
        AddCheckMeanwhile(
            "snapshot",
            models.CheckConstraint(
                condition=Q(is_pinned=False) | Q(kind__in=["backup", "volume"]),
                name="snapshot_pinned",
                violation_error_message="Only backups and scheduled snapshots can be pinned.",
            ),
        ),
        AddCheckMeanwhile(
            "snapshot",
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(is_pinned=False, kind__in=["volume", "vm"]),
                name="snapshot_expires",
                violation_error_message="Only snapshots that aren't pinned can expire.",
            ),
        ),
        migrations.RunPython(partial(create_guards, "snapshots", GUARDS), partial(drop_guards, "snapshots", GUARDS)),
    ]
