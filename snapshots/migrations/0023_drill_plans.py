"""Plans of restore drills."""

import django.db.models.deletion
import uuid
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('inventory', '0006_plain_labels'),
        ('snapshots', '0022_validate_drills'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='DrillPlan',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('interval', models.CharField(choices=[('weekly', 'Every week'), ('monthly', 'Every month')], max_length=7, verbose_name='interval')),
                ('random_days', models.PositiveSmallIntegerField(blank=True, help_text='Empty: the newest snapshot is drilled.', null=True, verbose_name='days')),
                ('next_at', models.DateTimeField(verbose_name='next drill')),
            ],
            options={
                'verbose_name': 'plan of restore drills',
                'verbose_name_plural': 'plans of restore drills',
            },
        ),
        migrations.AddIndex(
            model_name='drill',
            index=models.Index(fields=['finished_at'], name='drill_ended'),
        ),
        migrations.AddField(
            model_name='drillplan',
            name='schedule',
            field=models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='drill_plan', to='snapshots.backupschedule', verbose_name='schedule'),
        ),
        migrations.AddField(
            model_name='drillplan',
            name='vm',
            field=models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='drill_plan', to='inventory.virtualmachine', verbose_name='virtual machine'),
        ),
        migrations.AddField(
            model_name='drillplan',
            name='volume',
            field=models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='drill_plan', to='inventory.volume', verbose_name='volume'),
        ),
        migrations.AddIndex(
            model_name='drillplan',
            index=models.Index(fields=['next_at'], name='drill_plan_due'),
        ),
        migrations.AddConstraint(
            model_name='drillplan',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('schedule', None), ('vm', None), ('volume__isnull', False)), models.Q(('schedule', None), ('vm__isnull', False), ('volume', None)), models.Q(('schedule__isnull', False), ('vm', None), ('volume', None)), _connector='OR'), name='drill_plan_target'),
        ),
        migrations.AddConstraint(
            model_name='drillplan',
            constraint=models.CheckConstraint(condition=models.Q(('interval__in', ['weekly', 'monthly'])), name='drill_plan_interval'),
        ),
        migrations.AddConstraint(
            model_name='drillplan',
            constraint=models.CheckConstraint(condition=models.Q(('random_days', None), models.Q(('random_days__gte', 1), ('random_days__lte', 365)), _connector='OR'), name='drill_plan_days'),
        ),
    ]
