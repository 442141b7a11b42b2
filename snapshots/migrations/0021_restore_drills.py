"""Restore drills. What a drill found never changes."""

import django.db.models.deletion
import django.utils.timezone
import uuid
from functools import partial
from importlib import import_module
from django.conf import settings
from django.db import migrations, models

from cng_portal.common.migrations import AddCheckMeanwhile
from cng_portal.common.triggers import Guard, create_guards, drop_guards, guards

# SQLite rebuilds the table of operations, which drops its triggers.
OF_OPERATIONS = [
    guard
    for name in ("0014_recycle_bin", "0016_locks", "0017_volumes_in_bin")
    for guard in import_module(f"snapshots.migrations.{name}").GUARDS
    if guard.table == "snapshots_operation"
]
CHANGED = " OR ".join(
    f"NEW.{column} {{differs}} OLD.{column}"
    for column in ("snapshot_id", "created_at", "started_at", "finished_at", "result", "reason", "restored_bytes")
)
GUARDS = [
    Guard(
        "ended_drill",
        "BEFORE UPDATE",
        "snapshots_drill",
        f"OLD.finished_at IS NOT NULL AND ({CHANGED})",
        "What a drill found never changes.",
    ),
    Guard("drill_check", "BEFORE UPDATE", "snapshots_drillcheck", "{always}", "What a drill found never changes."),
    Guard(
        "late_drill_check",
        "BEFORE INSERT",
        "snapshots_drillcheck",
        "EXISTS (SELECT 1 FROM snapshots_drill d JOIN snapshots_drilleddisk k ON k.drill_id = d.id"
        " WHERE k.id = NEW.drilled_id AND d.finished_at IS NOT NULL)",
        "What a drill found never changes.",
    ),
]


class Migration(migrations.Migration):

    dependencies = [
        ('inventory', '0006_plain_labels'),
        ('snapshots', '0020_operation_labels'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RunPython(
            partial(drop_guards, "snapshots", OF_OPERATIONS), partial(create_guards, "snapshots", OF_OPERATIONS)
        ),
        migrations.CreateModel(
            name='Drill',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='requested')),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='started')),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='finished')),
                ('result', models.CharField(blank=True, choices=[('proven', 'Proven restorable'), ('failed', 'Failed'), ('unfinished', 'Not finished')], editable=False, max_length=10, verbose_name='result')),
                ('reason', models.TextField(blank=True, editable=False, help_text="Why it didn't finish.", verbose_name='reason')),
                ('restored_bytes', models.BigIntegerField(default=0, editable=False, verbose_name='bytes restored')),
            ],
            options={
                'verbose_name': 'restore drill',
                'verbose_name_plural': 'restore drills',
                'ordering': ['-created_at', '-id'],
            },
        ),
        migrations.CreateModel(
            name='DrillCheck',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('position', models.PositiveSmallIntegerField(verbose_name='position')),
                ('kind', models.CharField(choices=[('restore', 'Restore'), ('checksum', 'Checksum'), ('files', 'Files'), ('file_system', 'File system')], max_length=11, verbose_name='check')),
                ('part', models.CharField(blank=True, max_length=100, verbose_name='partition')),
                ('outcome', models.CharField(choices=[('passed', 'Passed'), ('failed', 'Failed'), ('skipped', 'Not checked')], max_length=7, verbose_name='outcome')),
                ('detail', models.TextField(verbose_name='detail')),
            ],
            options={
                'verbose_name': 'check of a drill',
                'verbose_name_plural': 'checks of a drill',
                'ordering': ['position'],
            },
        ),
        migrations.CreateModel(
            name='DrilledDisk',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('removed_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='temporary volume removed')),
            ],
            options={
                'verbose_name': 'disk of a drill',
                'verbose_name_plural': 'disks of a drill',
                'ordering': ['disk__position'],
            },
        ),
        migrations.RemoveConstraint(
            model_name='operation',
            name='operation_target',
        ),
        migrations.AlterField(
            model_name='operation',
            name='kind',
            field=models.CharField(choices=[('capture', 'Take Snapshot'), ('restore', 'Restore'), ('new_volume', 'New volume'), ('verify', 'Verify'), ('scrub', 'Scheduled verification'), ('catalogue', 'List files'), ('drill', 'Restore drill'), ('delete', 'Delete'), ('clean_up', 'Clean up'), ('create_volume', 'Create Volume'), ('extend_volume', 'Grow volume'), ('delete_volume', 'Delete volume')], max_length=16, verbose_name='kind'),
        ),
        AddCheckMeanwhile(
            model_name='operation',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(models.Q(models.Q(('disk', None), ('kind', 'restore'), ('vm', None), ('volume__isnull', False)), models.Q(('disk', None), ('kind', 'restore'), ('vm__isnull', False), ('volume', None)), models.Q(('disk__isnull', False), ('kind', 'new_volume'), ('safety_snapshot', None), ('vm', None), ('volume__isnull', False)), models.Q(('disk', None), ('kind__in', ['capture', 'verify', 'scrub', 'catalogue', 'drill', 'delete', 'clean_up']), ('safety_snapshot', None), ('vm', None), ('volume', None)), _connector='OR'), ('new_size_gb', None), ('snapshot__isnull', False)), models.Q(models.Q(models.Q(('kind', 'clean_up'), ('new_size_gb', None)), models.Q(('kind__in', ['create_volume', 'delete_volume']), ('new_size_gb', None), ('snapshot', None)), models.Q(('kind', 'extend_volume'), ('new_size_gb__isnull', False), ('snapshot', None)), _connector='OR'), ('disk', None), ('safety_snapshot', None), ('vm', None), ('volume__isnull', False)), _connector='OR'), name='operation_target'),
        ),
        migrations.AddField(
            model_name='drill',
            name='operation',
            field=models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='drill', to='snapshots.operation'),
        ),
        migrations.AddField(
            model_name='drill',
            name='requested_by',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL, verbose_name='requested by'),
        ),
        migrations.AddField(
            model_name='drill',
            name='snapshot',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='drills', to='snapshots.snapshot', verbose_name='snapshot'),
        ),
        migrations.AddField(
            model_name='drilleddisk',
            name='disk',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='drilled', to='snapshots.diskimage'),
        ),
        migrations.AddField(
            model_name='drilleddisk',
            name='drill',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='disks', to='snapshots.drill'),
        ),
        migrations.AddField(
            model_name='drillcheck',
            name='drilled',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='checks', to='snapshots.drilleddisk'),
        ),
        migrations.AddIndex(
            model_name='drill',
            index=models.Index(fields=['snapshot', '-created_at'], name='drill_of_snapshot'),
        ),
        migrations.AddIndex(
            model_name='drill',
            index=models.Index(fields=['-created_at', '-id'], name='drill_newest'),
        ),
        migrations.AddConstraint(
            model_name='drill',
            constraint=models.UniqueConstraint(condition=models.Q(('finished_at', None)), fields=('snapshot',), name='drill_one_at_a_time'),
        ),
        migrations.AddConstraint(
            model_name='drill',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('finished_at', None), ('result', '')), models.Q(('finished_at__isnull', False), ('result__in', ['proven', 'failed']), ('started_at__isnull', False)), models.Q(('finished_at__isnull', False), ('result', 'unfinished'), models.Q(('reason', ''), _negated=True)), _connector='OR'), name='drill_result'),
        ),
        migrations.AddConstraint(
            model_name='drill',
            constraint=models.CheckConstraint(condition=models.Q(('restored_bytes__gte', 0)), name='drill_bytes'),
        ),
        migrations.AddIndex(
            model_name='drilleddisk',
            index=models.Index(condition=models.Q(('removed_at', None)), fields=['drill'], name='drilled_disk_to_remove'),
        ),
        migrations.AddConstraint(
            model_name='drilleddisk',
            constraint=models.UniqueConstraint(fields=('drill', 'disk'), name='drilled_disk_once'),
        ),
        migrations.AddConstraint(
            model_name='drillcheck',
            constraint=models.UniqueConstraint(fields=('drilled', 'position'), name='drill_check_position'),
        ),
        migrations.AddConstraint(
            model_name='drillcheck',
            constraint=models.CheckConstraint(condition=models.Q(('detail', ''), _negated=True), name='drill_check_detail'),
        ),
        migrations.AddConstraint(
            model_name='drillcheck',
            constraint=models.CheckConstraint(condition=models.Q(('outcome__in', ['passed', 'failed', 'skipped']), ('kind__in', ['restore', 'checksum', 'files', 'file_system'])), name='drill_check_choices'),
        ),
        migrations.RunPython(
            partial(create_guards, "snapshots", OF_OPERATIONS), partial(drop_guards, "snapshots", OF_OPERATIONS)
        ),
        guards("snapshots", GUARDS),
    ]
