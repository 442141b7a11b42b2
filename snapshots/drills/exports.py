"""Drills as CSV and PDF, for an auditor."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.common.pdf import TableDocument

from ..models import Drill, DrillCheck

CHUNK = 500
COLUMNS = [
    *("drill_uuid", "snapshot_uuid", "snapshot", "source", "project", "location", "requested", "started", "finished"),
    *("seconds", "restored_bytes", "result", "disk", "check", "partition", "outcome", "found"),
]
WIDTHS = (42, 32, 28, 20, 155)


def rows(drills: QuerySet[Drill], user: User) -> Iterator[list[object]]:
    """Yield a line for each check, and one for a drill without checks. Times are in the user's time zone."""
    zone = timezone.get_current_timezone()  # Read here, because the rows are written after the request.
    related = drills.select_related("snapshot__volume", "snapshot__vm", "snapshot__project")
    prefetched = related.prefetch_related("disks__disk", "disks__checks")

    def cells() -> Iterator[list[object]]:
        for drill in prefetched.iterator(chunk_size=CHUNK):
            snapshot = drill.snapshot
            about = [
                drill.pk,
                snapshot.pk,
                snapshot.name,
                snapshot.source.name if snapshot.source.project_id in user.roles else "",
                snapshot.project.name,
                snapshot.location_id,
                *(iso(instant, zone) for instant in (drill.created_at, drill.started_at, drill.finished_at)),
                "" if drill.seconds is None else round(drill.seconds, 3),
                drill.restored_bytes,
                drill.result,
            ]
            checks = [(disk, check) for disk in drill.disks.all() for check in disk.checks.all()]
            for disk, check in checks:
                yield [*about, disk.disk.volume_name, check.kind, check.part, check.outcome, check.detail]
            if not checks:
                yield [*about, "", "", "", "", drill.reason]

    return cells()


def iso(instant: datetime | None, zone: Any) -> str:
    return instant.astimezone(zone).isoformat(timespec="seconds") if instant else ""


def drill_as_pdf(drill: Drill, user: User) -> bytes:
    """Return the evidence of one drill that has ended."""
    zone, snapshot = timezone.get_current_timezone(), drill.snapshot
    title = _("Restore drill of %(name)s") % {"name": snapshot.name}
    heading = [_("Disk"), _("Check"), _("Partition"), _("Result"), _("Found")]
    document = TableDocument(title, heading=heading, widths=WIDTHS)
    if drill.finished_at:
        document.set_creation_date(drill.finished_at)
    seconds = "" if drill.seconds is None else _("%(seconds).1f seconds") % {"seconds": drill.seconds}
    facts = [
        (_("Result"), f"{drill.get_result_display()}{f': {drill.reason}' if drill.reason else ''}"),
        (_("Snapshot"), f"{snapshot.name} ({snapshot.pk})"),
        (_("Source"), snapshot.source.name if snapshot.source.project_id in user.roles else "–"),
        (_("Project"), snapshot.project.name),
        (_("Location"), snapshot.location_id),
        (_("Snapshot taken"), iso(snapshot.created_at, zone)),
        (_("Started"), iso(drill.started_at, zone)),
        (_("Finished"), f"{iso(drill.finished_at, zone)} ({seconds})" if seconds else iso(drill.finished_at, zone)),
        (_("Bytes restored"), f"{drill.restored_bytes:,}"),
        (_("Drill ID"), str(drill.pk)),
    ]
    document.start(facts)
    checks = DrillCheck.objects.filter(drilled__drill=drill).select_related("drilled__disk")
    for check in checks.order_by("drilled__disk__position", "position"):
        cells = [check.drilled.disk.volume_name, check.get_kind_display(), check.part, check.get_outcome_display()]
        document.row([*cells, check.detail])
    document.ln(4)
    document.set_x(document.l_margin)
    text = _(
        "The snapshot was restored to a temporary volume, which was checked and removed. No operating system or application "
        "was started. What is marked as not checked is neither proven nor in doubt."
    )
    document.multi_cell(0, 5, document.readable(text), new_x="LMARGIN", new_y="NEXT", align="L")
    return bytes(document.output())
