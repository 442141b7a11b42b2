"""Locks: until an instant nobody deletes the snapshot, not even with SQL. The database's own clock decides.

A lock only moves ahead, and only a lock that may be lifted is lifted, with a reason. On SQLite the triggers before INSERT
keep REPLACE, which fires none before DELETE, from replacing what is locked.
"""

import uuid
from functools import partial
from typing import Any

import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models
from django.db.models import Q

from cng_portal.common.triggers import Guard, guards

LOCKED = (
    "EXISTS (SELECT 1 FROM snapshots_snapshotlock l WHERE l.snapshot_id = {id}"
    " AND l.lifted_at IS NULL AND l.until > {{now}})"
)


def changed(*columns: str) -> str:
    return "(" + " OR ".join(f"NEW.{column} {{differs}} OLD.{column}" for column in columns) + ")"


SNAPSHOT_CHANGED = changed(
    *("id", "kind", "customer_id", "project_id", "location_id", "volume_id", "vm_id", "size_gb", "state"),
    *("ready_at", "delete_requested_at", "deleted_at", "deletion_cause", "bin_until"),
)
DISK_CHANGED = changed(
    *("id", "snapshot_id", "volume_id", "position", "size_gb", "backend_ref", "captured_at", "allocated_bytes")
)
CHECKSUM_CHANGED = "(OLD.checksum <> '' AND NEW.checksum <> OLD.checksum)"
DISK_LOCKED = LOCKED.format(id="OLD.snapshot_id")

SNAPSHOT = "What is locked is neither deleted nor changed."
DISK = "A disk of what is locked is neither deleted nor changed."
GUARDS = [
    Guard(
        "locked_snapshot",
        "BEFORE UPDATE",
        "snapshots_snapshot",
        f"{SNAPSHOT_CHANGED} AND ({LOCKED.format(id='OLD.id')} OR {LOCKED.format(id='NEW.id')})",
        SNAPSHOT,
    ),
    Guard("locked_row", "BEFORE DELETE", "snapshots_snapshot", LOCKED.format(id="OLD.id"), SNAPSHOT),
    Guard("locked_replaced", "BEFORE INSERT", "snapshots_snapshot", LOCKED.format(id="NEW.id"), SNAPSHOT),
    Guard(
        "locked_disk",
        "BEFORE UPDATE",
        "snapshots_diskimage",
        f"({DISK_CHANGED} OR {CHECKSUM_CHANGED}) AND ({DISK_LOCKED} OR {LOCKED.format(id='NEW.snapshot_id')})",
        DISK,
    ),
    Guard("locked_disk_row", "BEFORE DELETE", "snapshots_diskimage", DISK_LOCKED, DISK),
    Guard(
        "locked_disk_replaced",
        "BEFORE INSERT",
        "snapshots_diskimage",
        f"{LOCKED.format(id='NEW.snapshot_id')} OR EXISTS (SELECT 1 FROM snapshots_diskimage d"
        f" WHERE d.id = NEW.id AND {LOCKED.format(id='d.snapshot_id')})",
        DISK,
    ),
    Guard(
        "erase_locked",
        "BEFORE INSERT OR UPDATE",
        "snapshots_operation",
        f"NEW.kind IN ('delete', 'clean_up') AND {LOCKED.format(id='NEW.snapshot_id')}",
        "What is locked is not erased.",
    ),
    Guard(
        "lock_placed",
        "BEFORE INSERT",
        "snapshots_snapshotlock",
        "NOT EXISTS (SELECT 1 FROM snapshots_snapshot s WHERE s.id = NEW.snapshot_id AND s.state = 'ready')"
        " OR EXISTS (SELECT 1 FROM snapshots_snapshotlock l WHERE l.id = NEW.id)",
        "Only what is Ready is locked.",
    ),
    Guard(
        "lock_changed",
        "BEFORE UPDATE",
        "snapshots_snapshotlock",
        f"{changed('id', 'snapshot_id', 'mode', 'final_at', 'locked_at')} OR NEW.until < OLD.until",
        "A lock is never shortened, and keeps what it was placed with.",
    ),
    Guard(
        "lock_lifted",
        "BEFORE UPDATE",
        "snapshots_snapshotlock",
        f"(OLD.lifted_at IS NOT NULL AND {changed('lifted_at', 'reason', 'until')})"
        " OR (OLD.lifted_at IS NULL AND NEW.lifted_at IS NOT NULL"
        " AND (TRIM(NEW.reason) = '' OR (OLD.mode = 'compliance' AND OLD.final_at <= {now})))",
        "A Compliance lock is not lifted after its cooling-off, nor any lock without a reason.",
    ),
    Guard("lock_row", "BEFORE DELETE", "snapshots_snapshotlock", "{always}", "A lock is never deleted."),
]
TRUNCATED = ("snapshots_snapshot", "snapshots_diskimage", "snapshots_snapshotlock")


def create_truncate_guards(_apps: Any, schema_editor: Any) -> None:
    """PostgreSQL's TRUNCATE fires no trigger for each row."""
    if schema_editor.connection.vendor != "postgresql":
        return
    schema_editor.execute(
        "CREATE FUNCTION snapshots_guard_locked_truncate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT 1 FROM snapshots_snapshotlock l WHERE l.lifted_at IS NULL AND l.until > clock_timestamp()) THEN"
        f" RAISE EXCEPTION '{SNAPSHOT}' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN NULL; END $$",
        params=None,
    )
    for table in TRUNCATED:
        schema_editor.execute(
            f"CREATE TRIGGER snapshots_guard_locked_truncate BEFORE TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION snapshots_guard_locked_truncate()",
            params=None,
        )


def drop_truncate_guards(_apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP FUNCTION IF EXISTS snapshots_guard_locked_truncate() CASCADE", params=None)


user = partial(
    models.ForeignKey,
    settings.AUTH_USER_MODEL,
    on_delete=django.db.models.deletion.SET_NULL,
    null=True,
    related_name="+",
    editable=False,
)


class Migration(migrations.Migration):
    dependencies = [
        ("snapshots", "0015_recycle_bin_indexes"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.AddField(
            "backupschedule",
            "lock_days",
            models.PositiveSmallIntegerField(
                blank=True,
                null=True,
                help_text="How long each backup is locked from when it was verified. Empty: not at all.",
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="days locked",
            ),
        ),
        migrations.CreateModel(
            "SnapshotLock",
            [
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "mode",
                    models.CharField(
                        choices=[("governance", "Governance"), ("compliance", "Compliance")],
                        editable=False,
                        max_length=10,
                        verbose_name="mode",
                    ),
                ),
                ("until", models.DateTimeField(editable=False, verbose_name="locked until")),
                (
                    "final_at",
                    models.DateTimeField(
                        editable=False,
                        null=True,
                        help_text="The end of the cooling-off, for Compliance.",
                        verbose_name="can be lifted until",
                    ),
                ),
                (
                    "locked_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name="locked"),
                ),
                ("lifted_at", models.DateTimeField(editable=False, null=True, verbose_name="lifted")),
                (
                    "reason",
                    models.CharField(
                        blank=True, editable=False, max_length=500, verbose_name="reason for lifting it"
                    ),
                ),
                ("lifted_by", user(verbose_name="lifted by")),
                ("locked_by", user(help_text="Empty: a schedule.", verbose_name="locked by")),
                (
                    "snapshot",
                    models.ForeignKey(
                        editable=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="locks",
                        to="snapshots.snapshot",
                        verbose_name="snapshot",
                    ),
                ),
            ],
            {
                "verbose_name": "lock",
                "verbose_name_plural": "locks",
                "ordering": ["-locked_at", "-id"],
                "constraints": [
                    models.CheckConstraint(
                        condition=Q(mode="governance", final_at=None) | Q(mode="compliance", final_at__isnull=False),
                        name="lock_final_at",
                        violation_error_message="Only a Compliance lock has a cooling-off.",
                    ),
                    models.CheckConstraint(
                        condition=Q(lifted_at=None, reason="") | (Q(lifted_at__isnull=False) & ~Q(reason="")),
                        name="lock_lifted",
                        violation_error_message="Lifting a lock needs a reason.",
                    ),
                ],
            },
        ),
        guards("snapshots", GUARDS),
        migrations.RunPython(create_truncate_guards, drop_truncate_guards),
    ]
