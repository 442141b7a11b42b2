"""The work of a drill, and the record of what it found.

The temporary volume goes whatever happens: when the work ends or fails, at the start of the next attempt, and, after the
death of a worker or a cancellation, by `services.remove_leftovers`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.activity import services as activity
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from ..models import Drill, DrillCheck, DrilledDisk, Operation
from ..operations import lifecycle
from ..operations.lifecycle import LeaseLost
from ..storage.contract import GIB, Corrupt, Driver, Heartbeat, NotFound, StorageError
from ..storage.registry import get_driver
from .file_systems import Check, Kind, Outcome, check_content

logger = structlog.stdlib.get_logger(__name__)


@dataclass
class DiskReport:
    """What the checks of one disk found. `damage` describes it if the snapshot itself was found damaged."""

    drilled: DrilledDisk
    checks: list[Check] = field(default_factory=list)
    restored_bytes: int = 0
    damage: str = ""

    @property
    def has_failed(self) -> bool:
        return any(check.outcome == Outcome.FAILED for check in self.checks)


def run_disks(drill: Drill, operation: Operation, heartbeat: Heartbeat) -> list[DiskReport]:
    """Restore and check each disk, one after the other. Raises StorageError, and what the heartbeat raises."""
    disks = drill.disks.select_related("disk__volume", "disk__snapshot__location")
    return [run_disk(drilled, operation, heartbeat) for drilled in disks]


def run_disk(drilled: DrilledDisk, operation: Operation, heartbeat: Heartbeat) -> DiskReport:
    report = DiskReport(drilled)
    driver = get_driver(drilled.disk.snapshot.location)
    # Before anything is created, so that whoever finds the row later looks for the volume.
    if not lifecycle.update(operation, bytes_done=0):
        raise LeaseLost
    DrilledDisk.objects.filter(pk=drilled.pk).update(removed_at=None)
    driver.delete_volume(drilled.volume_ref)  # of an attempt whose worker died
    try:
        report.checks.extend(check_disk(report, driver, heartbeat))
    finally:
        remove_volume(drilled)
    return report


def remove_volume(drilled: DrilledDisk) -> bool:
    """Remove the temporary volume. Returns False if the storage couldn't, so that it is tried again later."""
    try:
        get_driver(drilled.disk.snapshot.location).delete_volume(drilled.volume_ref)
    except StorageError as error:
        logger.warning("drill.volume_remains", volume=str(drilled.pk), error=str(error))
        return False
    DrilledDisk.objects.filter(pk=drilled.pk).update(removed_at=timezone.now())
    return True


def check_disk(report: DiskReport, driver: Driver, heartbeat: Heartbeat) -> Iterator[Check]:
    """Restore the disk to its temporary volume and yield what each check found."""
    disk, volume = report.drilled.disk, report.drilled.volume_ref
    try:
        # Unchecked, because the copy itself is compared with the checksum below, which reads every byte once.
        driver.create_volume_from_snapshot(disk.ref, volume, heartbeat, unchecked=bool(disk.checksum))
    except (Corrupt, NotFound) as error:
        report.damage = str(error) if isinstance(error, Corrupt) else ""
        yield Check(Kind.RESTORE, Outcome.FAILED, str(error))
        return
    report.restored_bytes = disk.size_gb * GIB
    yield Check(
        Kind.RESTORE, Outcome.PASSED, _("A temporary volume of %(size)s GB was created.") % {"size": disk.size_gb}
    )
    if not driver.reads_bytes:
        text = _("This storage gives the portal no access to the bytes of a disk. Only the restore itself is proven.")
        yield Check(Kind.CHECKSUM, Outcome.SKIPPED, text)
        return
    check = check_bytes(report, driver, heartbeat)
    yield check
    if check.outcome == Outcome.FAILED:
        return
    image = driver.open_volume(volume)
    try:
        if os.geteuid() == 0:
            os.fchmod(image, 0o644)  # see `run_tool`; the folder keeps other accounts out
        yield from check_content(image, disk, driver, heartbeat)
    finally:
        os.close(image)


def check_bytes(report: DiskReport, driver: Driver, heartbeat: Heartbeat) -> Check:
    """Compare every byte of the copy with the checksum. If they differ, find out whether the snapshot is damaged."""
    disk = report.drilled.disk
    info = None if disk.checksum else driver.find_snapshot(disk.ref)
    expected = disk.checksum or (info.checksum if info else "")
    if driver.checksum_volume(report.drilled.volume_ref, expected, heartbeat) == expected:
        return Check(
            Kind.CHECKSUM, Outcome.PASSED, _("Every byte is as captured: %(checksum)s") % {"checksum": expected}
        )
    try:
        driver.verify_snapshot(disk.ref, heartbeat)
    except Corrupt as error:
        report.damage = str(error)
        return Check(Kind.CHECKSUM, Outcome.FAILED, str(error))
    text = _("The restored copy differs from the snapshot, whose own bytes are as captured. Contact your provider.")
    return Check(Kind.CHECKSUM, Outcome.FAILED, text)


def record_reports(drill: Drill, reports: list[DiskReport], *, started_at: datetime, at: datetime) -> None:
    """Record what the drill found. Call it within `lifecycle.finish`."""
    DrillCheck.objects.bulk_create(
        DrillCheck(
            drilled=report.drilled,
            position=position,
            kind=check.kind,
            part=check.part,
            outcome=check.outcome,
            detail=check.detail,
        )
        for report in reports
        for position, check in enumerate(report.checks)
    )
    has_failed = any(report.has_failed for report in reports)
    result = Drill.Result.FAILED if has_failed else Drill.Result.PROVEN
    ended = Drill.objects.filter(pk=drill.pk, finished_at=None).update(
        result=result,
        started_at=started_at,
        finished_at=at,
        restored_bytes=sum(report.restored_bytes for report in reports),
    )
    if not ended:
        raise LeaseLost
    action = "failed.drill" if has_failed else "ready.drill"
    activity.record(action=action, actor=None, target=drill.snapshot, after={"drill": str(drill.pk)})


def end_unfinished(drill: Drill, reason: str, at: datetime) -> None:
    """Record that the drill found nothing out. No-op if it has ended."""
    Drill.objects.filter(pk=drill.pk, finished_at=None).update(
        result=Drill.Result.UNFINISHED, finished_at=at, reason=reason
    )


def notify_failed(drill: Drill, reports: list[DiskReport]) -> None:
    """Tell the members that the snapshot isn't proven restorable although its bytes are as captured."""
    snapshot = drill.snapshot
    snapshot.refresh_from_db(fields=["project"])  # It may have been moved meanwhile.

    def message() -> tuple[str, str]:
        found = [check.detail for report in reports for check in report.checks if check.outcome == Outcome.FAILED]
        title = _("“%(name)s” failed its restore drill") % {"name": snapshot.name}
        advice = _("Check “%(source)s”, then take a new snapshot of it.") % {"source": snapshot.source.name}
        return title, " ".join([*dict.fromkeys(found), advice])

    user = drill.requested_by
    notify(
        users={*project_members(snapshot.project), *([user] if user and user.is_active else [])},
        key=f"drill-{drill.pk}",
        level=Notification.Level.DANGER,
        message=message,
        url=reverse("snapshots:drill", args=[drill.pk]),
    )
