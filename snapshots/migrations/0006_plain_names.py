"""Names of the glossary: `retention_count`, `is_pinned` and `scheduled_at`."""

from importlib import import_module

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

triggers = import_module("snapshots.migrations.0004_triggers")
# On SQLite, altering the table drops its triggers. On PostgreSQL, the functions name the renamed column.
GUARDS = [(name, condition.replace("OLD.kept", "OLD.is_pinned"), message) for name, condition, message in triggers.GUARDS]


def create(apps, schema_editor) -> None:
    triggers.create_guards(schema_editor, GUARDS)


class Migration(migrations.Migration):
    dependencies = [("inventory", "0002_plain_names"), ("snapshots", "0005_cancelled")]
    operations = [
        migrations.RunPython(triggers.drop, triggers.create),
        migrations.RemoveConstraint("backuprun", "run_once_per_slot"),
        migrations.RemoveConstraint("backupschedule", "schedule_keep"),
        migrations.RemoveConstraint("snapshot", "snapshot_kept"),
        migrations.RenameField("draft", "keep", "retention_count"),
        migrations.RenameField("backupschedule", "keep", "retention_count"),
        migrations.RenameField("snapshot", "kept", "is_pinned"),
        migrations.RenameField("backuprun", "slot", "scheduled_at"),
        migrations.AlterModelOptions(
            name='backuprun',
            options={'ordering': ['-scheduled_at', '-id'], 'verbose_name': 'backup run', 'verbose_name_plural': 'backup runs'},
        ),
        migrations.AlterField(
            model_name='backuprun',
            name='scheduled_at',
            field=models.DateTimeField(verbose_name='scheduled'),
        ),
        migrations.AlterField(
            model_name='backuprun',
            name='snapshot',
            field=models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='run', to='snapshots.snapshot', verbose_name='backup'),
        ),
        migrations.AlterField(
            model_name='backupschedule',
            name='retention_count',
            field=models.PositiveSmallIntegerField(default=2, validators=[django.core.validators.MinValueValidator(1)], verbose_name='backups kept'),
        ),
        migrations.AlterField(
            model_name='snapshot',
            name='is_pinned',
            field=models.BooleanField(default=False, help_text='Retention neither counts nor deletes it.', verbose_name='pinned'),
        ),
        migrations.AddConstraint(
            model_name='backuprun',
            constraint=models.UniqueConstraint(fields=('schedule', 'scheduled_at'), name='run_once_per_occurrence'),
        ),
        migrations.AddConstraint(
            model_name='backupschedule',
            constraint=models.CheckConstraint(condition=models.Q(('retention_count__gte', 1)), name='schedule_retention_count', violation_error_message='Keep at least one backup.'),
        ),
        migrations.AddConstraint(
            model_name='snapshot',
            constraint=models.CheckConstraint(condition=models.Q(('is_pinned', False), ('kind', 'backup'), _connector='OR'), name='snapshot_pinned', violation_error_message='Only backups can be pinned.'),
        ),
        migrations.AlterConstraint(
            model_name='backuprun',
            name='run_one_unfinished_per_vm',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ['waiting', 'taking'])), fields=('vm',), name='run_one_unfinished_per_vm', violation_error_message='A backup of this machine is already running.'),
        ),
        migrations.AlterConstraint(
            model_name='backuprun',
            name='run_state',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('finished_at', None), ('next_try_at__isnull', False), ('state', 'waiting')), models.Q(('finished_at', None), ('next_try_at', None), ('snapshot__isnull', False), ('state', 'taking')), models.Q(('finished_at__isnull', False), ('next_try_at', None), ('snapshot__isnull', False), ('state', 'done')), models.Q(('finished_at__isnull', False), ('next_try_at', None), ('state__in', ['failed', 'missed'])), _connector='OR'), name='run_state', violation_error_message="The state doesn't match the times of this run."),
        ),
        migrations.AlterConstraint(
            model_name='backuprun',
            name='run_reason',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('state__in', ['failed', 'missed']), _negated=True), models.Q(('reason', ''), _negated=True), _connector='OR'), name='run_reason', violation_error_message='A failed or missed run needs a reason.'),
        ),
        migrations.RunPython(create, triggers.drop),
    ]
