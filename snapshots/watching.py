"""How the work goes, for who runs the portal: read by `/metrics` and by the page *Operations* in admin.

Looking is cheap with millions of rows: what is unfinished, what failed and what ended lately each have an index.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Thread

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Case, Count, Min, Q, Sum, Value, When
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django_tasks_db.models import DBTaskResult

from cng_portal.inventory.models import Location
from cng_portal.monitoring.models import Lease, Process, StorageCheck
from cng_portal.monitoring.services import SILENT_AFTER, count_storage_error

from .models import DiskImage, Operation, OperationQuerySet, Snapshot, State, usable
from .operations import backed_off
from .storage.contract import StorageError, advice_for
from .storage.registry import get_driver

logger = logging.getLogger(__name__)

WAITING, PAUSED, RUNNING, LOST = "waiting", "paused", "running", "lost"
PROGRESS = [WAITING, PAUSED, RUNNING, LOST]
ENDED = [Operation.State.SUCCEEDED.value, Operation.State.FAILED.value, Operation.State.CANCELLED.value]
LATELY = timedelta(hours=1)
# The other duties of the scheduler wait meanwhile, and for a customer a storage that takes longer is as good as silent.
PATIENCE_SECONDS = 15


@dataclass(frozen=True)
class Look:
    """What was seen at the instant `at`."""

    at: datetime
    active: dict[tuple[str, str], int]  # by kind and one of PROGRESS; every pair is there
    ended: dict[tuple[str, str], int]  # within the hour before, by kind and one of ENDED; every pair is there
    oldest_wait: timedelta  # 0 when nothing waits
    queue_depth: int
    alive: dict[str, int]  # processes by kind
    silent: dict[str, int]
    lease_left: timedelta  # negative while no scheduler acts
    leader: str  # the uuid of the scheduler that acts; "" when none does
    storage: list[StorageCheck]  # of the active locations, by code

    @property
    def waits_since(self) -> datetime:
        return self.at - self.oldest_wait


def look(*, now: datetime) -> Look:
    """Six queries."""
    active = dict.fromkeys([(kind, state) for kind in Operation.Kind.values for state in PROGRESS], 0)
    waits = [timedelta()]  # also of what was asked for by a clock that is ahead of ours
    for row in active_operations(now).values("kind", "progress").annotate(count=Count("pk"), since=Min("not_before")):
        active[row["kind"], row["progress"]] = row["count"]
        if row["progress"] == WAITING and row["kind"] != Operation.Kind.SCRUB:
            waits.append(now - row["since"])
    ended = dict.fromkeys([(kind, state) for kind in Operation.Kind.values for state in ENDED], 0)
    lately = Operation.objects.filter(finished_at__gt=now - LATELY).order_by()
    for row in lately.values("kind", "state").annotate(count=Count("pk")):
        ended[row["kind"], row["state"]] = row["count"]
    processes = Counter(
        (kind, seen_at > now - SILENT_AFTER) for kind, seen_at in Process.objects.values_list("kind", "seen_at")
    )
    lease = Lease.objects.filter(name="scheduler").first()
    return Look(
        at=now,
        active=active,
        ended=ended,
        oldest_wait=max(waits),
        queue_depth=DBTaskResult.objects.ready().order_by().count(),
        alive={kind: processes[kind, True] for kind in Process.Kind.values},
        silent={kind: processes[kind, False] for kind in Process.Kind.values},
        lease_left=lease.until - now if lease else -timedelta(days=1),
        leader=lease.holder if lease and lease.until > now else "",
        storage=list(StorageCheck.objects.filter(location__active=True).order_by("location_id")),
    )


def active_operations(now: datetime) -> OperationQuerySet:
    """The unfinished ones, each with its `progress`, one of PROGRESS."""
    running = Q(state=Operation.State.RUNNING)
    progress = Case(
        When(running & Q(lease_until__lt=now), then=Value(LOST)),
        When(running, then=Value(RUNNING)),
        When(backed_off(now), then=Value(PAUSED)),
        default=Value(WAITING),
    )
    return Operation.objects.active().annotate(progress=progress).order_by()


# --- for the support desk ---------------------------------------------------------------------------------------------

FAILURES_OF = timedelta(days=7)
FAILURES_SHOWN = 100
WAITED_TOO_LONG = timedelta(minutes=10)

# What a failure of each kind left behind; what mends its cause is said by the driver's errors.
ADVICE = {
    Operation.Kind.CAPTURE: _lazy(
        "Nothing was kept and nothing is charged. The customer sees the reason on the snapshot's page and can try again "
        "there once it is gone: a full storage, a silent one, a quota."
    ),
    Operation.Kind.RESTORE: _lazy(
        "A volume has its old bytes. Of a machine, disks may have been written before the one that failed: the safety "
        "snapshot holds them all as they were, and “Undo” on the snapshot's page brings them back. Talk to the customer "
        "before the machine is started."
    ),
    Operation.Kind.NEW_VOLUME: _lazy(
        "No volume was made and the snapshot is untouched. The customer tries again on the snapshot's page. A quota or a "
        "full storage has to be mended first."
    ),
    Operation.Kind.VERIFY: _lazy(
        "Where the reason speaks of damage: ask the customer to take a new snapshot now, look at the disks below the "
        "storage, and keep the damaged one until the new one is verified. Otherwise the bytes could only not be read: "
        "verify again from the snapshot's page once the storage answers."
    ),
    Operation.Kind.SCRUB: _lazy(
        "Where the reason speaks of damage: the customer was told and the snapshot is free from then on; look at the disks "
        "below the storage. Otherwise the bytes could not be read; it is tried again tomorrow."
    ),
    Operation.Kind.DELETE: _lazy(
        "Billing has ended already; the bytes are still there. Mend the reason, then choose “Try again” on the snapshot's "
        "page as one of the project's people, or let them do it."
    ),
    Operation.Kind.CLEAN_UP: _lazy(
        "What a failed snapshot left in the storage could not be removed; nothing is charged for it. Mend the reason, then "
        "see what manage.py fsck finds there."
    ),
}


@dataclass(frozen=True)
class Failure:
    """Failures of one kind for one reason; `operations` are the newest few of `count`."""

    kind: str
    reason: str
    mend: str
    advice: str
    count: int
    operations: list[Operation]


def failures(*, now: datetime) -> list[Failure]:
    """The newest failures, those of the same kind and reason together, with what to do. One query."""
    failed = Operation.objects.filter(state=Operation.State.FAILED, finished_at__gt=now - FAILURES_OF)
    newest = failed.select_related("snapshot__customer").order_by("-finished_at")[:FAILURES_SHOWN]
    groups: dict[tuple[str, str, str], list[Operation]] = {}
    for operation in newest:
        groups.setdefault((operation.kind, operation.error, operation.cause), []).append(operation)
    return [
        Failure(
            kind=operations[0].get_kind_display(),
            reason=reason,
            mend=str(advice_for(cause)),
            advice=str(ADVICE[Operation.Kind(kind)]),
            count=len(operations),
            operations=operations[:5],
        )
        for (kind, reason, cause), operations in groups.items()
    ]


def table(seen: Look) -> list[dict[str, object]]:
    """A row for each kind of operation: its label and its numbers by state."""
    return [
        {
            "kind": label,
            "numbers": [seen.active[kind, state] for state in PROGRESS] + [seen.ended[kind, state] for state in ENDED],
        }
        for kind, label in Operation.Kind.choices
    ]


def warnings(seen: Look) -> list[str]:
    """What is wrong now with the running of the portal: each a sentence, and what to do."""
    found = []
    if not seen.alive[Process.Kind.WORKER]:
        found.append(_("No worker is running, so nothing that is asked for is done. Start one: manage.py worker."))
    if seen.lease_left < timedelta():
        found.append(
            _(
                "No scheduler acts: backups do not start, forgotten operations are not resumed and months are not closed. "
                "Start one: manage.py scheduler."
            )
        )
    if seen.oldest_wait > WAITED_TOO_LONG:
        found.append(
            _(
                "An operation has waited for a worker for %(minutes)s minutes. Start more workers, or see what keeps them."
            )
            % {"minutes": int(seen.oldest_wait.total_seconds() // 60)}
        )
    if any(count for (_kind, state), count in seen.active.items() if state == LOST):
        found.append(
            _("The worker of an operation fell silent. A scheduler gives it to another one; when none does, start one.")
        )
    for check in seen.storage:
        if check.reason:
            found.append(
                _("The storage of %(location)s does not work: %(reason)s What it has to do waits and is tried again.")
                % {"location": check.location_id, "reason": check.reason}
            )
        if unread_for(check, seen.at) > timedelta(days=settings.SCRUB_DAYS):
            found.append(
                _(
                    "A snapshot in %(location)s has not been read for %(days)s days, and damage may go unnoticed. See why "
                    "scheduled verifications fail or wait; start more workers."
                )
                % {"location": check.location_id, "days": unread_for(check, seen.at).days}
            )
    return found


def unread_for(check: StorageCheck, now: datetime) -> timedelta:
    """How long ago the snapshot that was read longest ago was read; 0 where there is none, or the engine shows no bytes."""
    return now - check.oldest_read_at if check.oldest_read_at else timedelta()


# --- what the scheduler does for it -----------------------------------------------------------------------------------

_asked: dict[str, Thread] = {}


def ask_storage(*, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Ask the storage of every active location how it is, all at once, and record the answers.

    Each is asked in a thread of its own: one that hangs delays nobody longer than `patience_seconds`, and is not asked
    again before it has come back.
    """
    locations = list(Location.objects.active())
    answers: dict[str, tuple[str, int | None]] = {}
    for location in locations:
        if location.code not in _asked or not _asked[location.code].is_alive():
            _asked[location.code] = Thread(target=_ask, args=[location, answers], name="storage", daemon=True)
            _asked[location.code].start()
    deadline = time.monotonic() + patience_seconds
    for location in locations:
        _asked[location.code].join(max(0, deadline - time.monotonic()))
    for location in locations:
        reason, free_bytes = answers.get(location.code) or (_("The storage hangs: it has not answered yet."), None)
        if reason:
            logger.error("The storage of %s does not work: %s", location.code, reason)
            count_storage_error(location.code)
        answer = {"checked_at": timezone.now(), "reason": reason, "free_bytes": free_bytes}
        StorageCheck.objects.update_or_create(location=location, defaults=answer)


def _ask(location: Location, answers: dict[str, tuple[str, int | None]]) -> None:
    try:
        driver = get_driver(location)
        driver.check_health()
        answers[location.code] = "", driver.free_bytes()
    except (StorageError, ImproperlyConfigured) as error:
        answers[location.code] = str(error), None
    except Exception:
        logger.exception("The storage of %s could not be asked", location.code)
        answers[location.code] = _("Something unexpected happened when it was asked; the log says what."), None


def count_storage() -> None:
    """Count the snapshots in each location, the damaged ones and the room that they take up, and find out which one was
    read longest ago. It reads every one, so it is done seldom.
    """
    now = timezone.now()
    kept = DiskImage.objects.filter(snapshot__deleted_at=None, captured_at__isnull=False).order_by()
    counts = kept.values("snapshot__location").annotate(
        snapshots=Count("snapshot", distinct=True),
        damaged=Count(
            "snapshot", distinct=True, filter=Q(snapshot__state=State.READY, snapshot__damaged_at__isnull=False)
        ),
        used=Sum("allocated_bytes", default=0),
    )
    found = {row["snapshot__location"]: row for row in counts}
    for location in Location.objects.all():
        row = found.get(location.code, {"snapshots": 0, "damaged": 0, "used": 0})
        figures = {
            "counted_at": now,
            "snapshot_count": row["snapshots"],
            "damaged_count": row["damaged"],
            "snapshot_bytes": row["used"],
            "oldest_read_at": oldest_read_at(location),
        }
        StorageCheck.objects.update_or_create(location=location, defaults=figures)


def oldest_read_at(location: Location) -> datetime | None:
    """Of its usable snapshots; None where there is none, or the engine shows no bytes."""
    read = Snapshot.objects.filter(usable(), location=location, last_read_at__isnull=False)
    return read.order_by("last_read_at").values_list("last_read_at", flat=True).first()
