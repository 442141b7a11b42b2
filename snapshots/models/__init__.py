"""The tables of this app: what a snapshot is, and the work on it, in snapshots.py; schedules of backups in schedules.py."""

from .schedules import BackupRun, BackupSchedule
from .snapshots import (
    COUNTED_STATES,
    SERVICE_KINDS,
    TRANSIENT_STATES,
    TRANSITIONS,
    DeletionCause,
    DiskImage,
    Draft,
    Kind,
    Operation,
    OperationQuerySet,
    Snapshot,
    SnapshotQuerySet,
    State,
    usable,
)

__all__ = [
    "COUNTED_STATES",
    "SERVICE_KINDS",
    "TRANSIENT_STATES",
    "TRANSITIONS",
    "BackupRun",
    "BackupSchedule",
    "DeletionCause",
    "DiskImage",
    "Draft",
    "Kind",
    "Operation",
    "OperationQuerySet",
    "Snapshot",
    "SnapshotQuerySet",
    "State",
    "usable",
]
