"""Which backups or snapshots a schedule keeps: the newest verified ones, and those that a user has pinned.

They are ordered by the number of their run and never by a clock. Triggers of the database refuse to delete the newest
verified one of a schedule, a pinned one, or the last before an unusual change, unless a user requested it.
"""

from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity

from ..assignment import is_outside_schedule
from ..checks import reload_snapshot, require_change
from ..errors import InvalidState
from ..models import BackupSchedule, DeletionCause, Kind, Snapshot, State, locked
from ..services import delete_automatically, uses_of


def apply_retention(schedule: BackupSchedule, now: datetime) -> None:
    """Delete the backups that exceed the schedule's retention count. The caller must hold the customer's lock.

    Only verified, unpinned backups count, the newest first. Older ones are deleted, including those that failed or are
    damaged. They go to the recycle bin if the schedule says so, or if a second owner has to approve what is deleted past it.
    A backup that is in use or locked stays until the next time, and one that is held until a member decides.
    """
    backups = Snapshot.objects.filter(run__schedule=schedule, is_pinned=False)
    newest_first = backups.verified().order_by("-run__number").values_list("run__number", flat=True)
    retained = list(newest_first[: schedule.retention_count])
    if len(retained) < schedule.retention_count:
        return
    older = backups.filter(run__number__lt=retained[-1], held_at=None, state__in=[State.READY, State.FAILED])
    older = older.exclude(locked()).select_related("project__customer")
    for backup in older.order_by("-run__number"):
        if not uses_of(backup).exists():
            delete_automatically(backup, at=now, cause=DeletionCause.RETENTION, uses_bin=schedule.uses_recycle_bin)


def pin_backup(*, snapshot: Snapshot, user: User) -> Snapshot:
    """Exclude a scheduled backup or snapshot from retention: it neither counts nor is deleted. Raises InvalidState."""
    return _set_pinned(snapshot, user, is_pinned=True)


def unpin_backup(*, snapshot: Snapshot, user: User) -> Snapshot:
    """Let retention count and delete it again. Raises InvalidState for what no schedule took, or was moved."""
    return _set_pinned(snapshot, user, is_pinned=False)


def _set_pinned(snapshot: Snapshot, user: User, *, is_pinned: bool) -> Snapshot:
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.kind != Kind.BACKUP and not snapshot.is_scheduled:
            raise InvalidState(_("Only scheduled backups and snapshots can be pinned. No schedule deletes others."))
        if snapshot.state in (State.DELETING, State.DELETED):
            raise InvalidState(
                _("“%(name)s” is being deleted, so it can't be pinned or unpinned.") % {"name": snapshot.name}
            )
        if not is_pinned and is_outside_schedule(snapshot):
            raise InvalidState(
                _("Its schedule belongs to another project and deletes nothing here, so it stays pinned.")
            )
        snapshot.is_pinned = is_pinned
        snapshot.save(update_fields=["is_pinned"])
        activity.record(action="backup.pin", actor=user, target=snapshot, after={"is_pinned": is_pinned})
    return snapshot
