"""Snapshots and drafts, the operations on them, and backup schedules."""

from .changes import DiskChange, DiskChangeQuerySet
from .drills import Drill, DrillCheck, DrilledDisk, DrillPlan, DrillQuerySet
from .locks import MAX_REASON_LENGTH, LockMode, SnapshotLock, SnapshotLockQuerySet, locked
from .operations import CUSTOMER, Operation, OperationQuerySet
from .schedules import BackupRun, BackupSchedule, source_fields
from .snapshots import (
    COUNTED_STATES,
    SERVICE_KINDS,
    TRANSIENT_STATES,
    TRANSITIONS,
    DeletionCause,
    DiskImage,
    Draft,
    Kind,
    Snapshot,
    SnapshotQuerySet,
    State,
    costs_nothing,
    in_storage,
    usable,
    volume_ref,
)

__all__ = [
    "COUNTED_STATES",
    "CUSTOMER",
    "MAX_REASON_LENGTH",
    "SERVICE_KINDS",
    "TRANSIENT_STATES",
    "TRANSITIONS",
    "BackupRun",
    "BackupSchedule",
    "DeletionCause",
    "DiskChange",
    "DiskChangeQuerySet",
    "DiskImage",
    "Draft",
    "Drill",
    "DrillCheck",
    "DrillPlan",
    "DrillQuerySet",
    "DrilledDisk",
    "Kind",
    "LockMode",
    "Operation",
    "OperationQuerySet",
    "Snapshot",
    "SnapshotLock",
    "SnapshotLockQuerySet",
    "SnapshotQuerySet",
    "State",
    "costs_nothing",
    "in_storage",
    "locked",
    "source_fields",
    "usable",
    "volume_ref",
]
