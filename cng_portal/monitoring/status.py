"""The state of the cluster: its processes, the acting scheduler, and the storage of each location."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.utils.translation import gettext as _

from .heartbeats import SILENT_AFTER
from .models import Lease, Process, StorageCheck


@dataclass(frozen=True)
class ClusterStatus:
    """The state at the instant `at`."""

    at: datetime
    alive: dict[str, int]  # processes by kind
    silent: dict[str, int]
    lease_remaining: timedelta  # of the acting scheduler; negative while none acts
    leader: str  # the acting scheduler's uuid; "" while none acts
    storage: list[StorageCheck]  # of the active locations, by code

    def warnings(self) -> list[str]:
        """Return what needs an operator now: one sentence each, with what to do."""
        warnings = []
        if not self.alive[Process.Kind.WORKER]:
            warnings.append(_("No worker is running, so no operation starts. Start one: manage.py worker."))
        if not self.leader:
            warnings.append(
                _(
                    "No scheduler is running: scheduled backups don't start, interrupted operations aren't retried and "
                    "months aren't closed. Start one: manage.py scheduler."
                )
            )
        for check in self.storage:
            location = {"location": check.location_id}
            if check.error:
                warnings.append(
                    _("The storage of %(location)s is failing: %(error)s Operations there wait and are retried.")
                    % (location | {"error": check.error})
                )
            age = self.oldest_read_age(check)
            if age > timedelta(days=settings.SCRUB_DAYS):
                warnings.append(
                    _(
                        "A snapshot in %(location)s has not been read for %(days)s days, so damage may go unnoticed. "
                        "Find out why scheduled verifications fail or wait; start more workers."
                    )
                    % (location | {"days": age.days})
                )
        return warnings

    def oldest_read_age(self, check: StorageCheck) -> timedelta:
        """Return the time since any snapshot's last read, the longest; 0 without snapshots or without access to bytes."""
        return self.at - check.oldest_read_at if check.oldest_read_at else timedelta()


def load_cluster_status(*, now: datetime) -> ClusterStatus:
    """Three queries."""
    processes = Counter(
        (kind, heartbeat_at > now - SILENT_AFTER)
        for kind, heartbeat_at in Process.objects.values_list("kind", "heartbeat_at")
    )
    lease = Lease.objects.filter(name="scheduler").first()
    return ClusterStatus(
        at=now,
        alive={kind: processes[kind, True] for kind in Process.Kind.values},
        silent={kind: processes[kind, False] for kind in Process.Kind.values},
        lease_remaining=lease.expires_at - now if lease else -timedelta(days=1),
        leader=lease.holder if lease and lease.expires_at > now else "",
        storage=list(StorageCheck.objects.filter(location__active=True).order_by("location_id")),
    )
