"""Backups of virtual machines: schedules, their runs, retention, and automatic backups.

A backup is a `Snapshot` of kind BACKUP that belongs to a run of a schedule. It is verified once the verify operation
that follows every capture has succeeded: an engine that can read bytes (local files) has read them all back and compared
them with the checksum of the capture; an engine that can't (Cinder) was asked again and still has the whole backup. Only
then is the run done, and only then does retention delete older backups.

The models are in `snapshots.models.schedules`. Imports go one way, from the bottom up:

    occurrences     when a schedule runs: pure arithmetic
    notifications   notifications about runs
    planning        the next run of a schedule, and runs that were missed
    ending          how schedules end
    retention       which backups are deleted, and pinned backups
    runs            start, settle, retry
    schedules       create, edit, pause, resume, delete
    automatic       the administrator's switch and its price
    upkeep          what the scheduler repairs
"""
