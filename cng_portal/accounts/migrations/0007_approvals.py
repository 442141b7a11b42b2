
import django.db.models.deletion
import uuid
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0006_credential_guards'),
    ]

    operations = [
        migrations.AddField(
            model_name='customer',
            name='needs_approval',
            field=models.BooleanField(db_default=False, default=False, help_text='Deleting past the recycle bin, lifting a lock and changing who is an owner wait until another owner approves them. Owners turn it on. Turn it off only if no second owner is left, and once you have verified who is asking.', verbose_name='needs a second owner'),
        ),
        migrations.CreateModel(
            name='Approval',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('action', models.CharField(max_length=30, verbose_name='action')),
                ('target_id', models.CharField(max_length=36, verbose_name='target')),
                ('target_name', models.CharField(max_length=254, verbose_name='name')),
                ('reason', models.CharField(blank=True, max_length=500, verbose_name='reason')),
                ('role', models.CharField(blank=True, choices=[('owner', 'Owner'), ('member', 'Member'), ('viewer', 'Viewer')], max_length=8, verbose_name='role')),
                ('requested_at', models.DateTimeField(verbose_name='requested')),
                ('expires_at', models.DateTimeField(verbose_name='expires')),
                ('decided_at', models.DateTimeField(blank=True, null=True, verbose_name='decided')),
                ('outcome', models.CharField(blank=True, choices=[('approve', 'Approved'), ('reject', 'Rejected'), ('withdraw', 'Withdrawn'), ('expire', 'Expired')], max_length=8, verbose_name='outcome')),
                ('customer', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='approvals', to='accounts.customer', verbose_name='customer')),
                ('decided_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='approvals_decided', to=settings.AUTH_USER_MODEL, verbose_name='decided by')),
                ('project', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='accounts.project', verbose_name='project')),
                ('requested_by', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='approvals_requested', to=settings.AUTH_USER_MODEL, verbose_name='requested by')),
            ],
            options={
                'verbose_name': 'approval',
                'verbose_name_plural': 'approvals',
                'ordering': ['-requested_at', '-id'],
                'constraints': [models.UniqueConstraint(condition=models.Q(('outcome', '')), fields=('action', 'target_id'), name='accounts_approval_open_once'), models.CheckConstraint(condition=models.Q(models.Q(('decided_at', None), ('decided_by', None), ('outcome', '')), models.Q(('decided_at__isnull', False), ('decided_by', None), ('outcome', 'expire')), models.Q(('decided_at__isnull', False), ('decided_by', models.F('requested_by')), ('outcome', 'withdraw')), models.Q(('decided_at__isnull', False), ('decided_by__isnull', False), ('outcome__in', ['approve', 'reject']), models.Q(('decided_by', models.F('requested_by')), _negated=True), ('decided_at__lt', models.F('expires_at'))), _connector='OR'), name='accounts_approval_decided', violation_error_message='Another owner decides, before the request expires.')],
            },
        ),
    ]
