"""Snapshots and drafts, the operations on them, and backup schedules."""

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
    "costs_nothing",
    "in_storage",
    "source_fields",
    "usable",
    "volume_ref",
]
