"""Nothing automatic deletes the newest verified backup of a schedule, or a pinned backup."""

from django.db import migrations

from cng_portal.common.triggers import Guard, guards

VERIFIED = (
    "{row}.missing_since IS NULL AND {row}.damaged_at IS NULL"
    " AND EXISTS (SELECT 1 FROM snapshots_diskimage d WHERE d.snapshot_id = {row}.id)"
    " AND NOT EXISTS (SELECT 1 FROM snapshots_diskimage d"
    " WHERE d.snapshot_id = {row}.id AND (d.verified_at IS NULL OR d.damage <> ''))"
)
DELETED_AUTOMATICALLY = (
    "NEW.state IN ('deleting', 'deleted') AND OLD.state = 'ready'"
    " AND NEW.kind = 'backup' AND NEW.deletion_cause <> 'user'"
)
NEWEST_VERIFIED = (
    f"{DELETED_AUTOMATICALLY} AND {VERIFIED.format(row='OLD')}"
    " AND EXISTS (SELECT 1 FROM snapshots_backuprun run WHERE run.snapshot_id = OLD.id AND NOT EXISTS ("
    "SELECT 1 FROM snapshots_backuprun later JOIN snapshots_snapshot backup ON backup.id = later.snapshot_id"
    " WHERE later.schedule_id = run.schedule_id AND later.number > run.number"
    f" AND backup.state = 'ready' AND {VERIFIED.format(row='backup')}))"
)

GUARDS = [
    Guard(
        "newest_backup",
        "BEFORE UPDATE",
        "snapshots_snapshot",
        NEWEST_VERIFIED,
        "The newest verified backup of a schedule is never deleted automatically.",
    ),
    Guard(
        "pinned_backup",
        "BEFORE UPDATE",
        "snapshots_snapshot",
        f"{DELETED_AUTOMATICALLY} AND OLD.is_pinned",
        "A pinned backup is never deleted automatically.",
    ),
]


class Migration(migrations.Migration):
    dependencies = [("snapshots", "0001_initial")]
    operations = [guards("snapshots", GUARDS)]
