"""Snapshots that expire: members are notified a day before, and the portal deletes them when their last day is over.

After a late notice, the deletion waits until a day after that; the charge ends with the last day in any case. The day ends
in the customer's time zone. The database's clock decides, so that schedulers on several machines agree.
"""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import structlog
from django.db import transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.templatetags.portal import minute
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from .backups.occurrences import DAY, instant
from .checks import reload_snapshot, require_change
from .errors import ActionRefused, InvalidState
from .locks import get_lock
from .models import DeletionCause, Kind, Snapshot, State, locked
from .services import delete_automatically, why_not_deletable

logger = structlog.stdlib.get_logger(__name__)

ANNOUNCED_BEFORE = timedelta(days=1)
MAX_EXPIRY = timedelta(days=3653)
BATCH_SIZE = 500
NAMES_SHOWN = 5


class InvalidExpiry(ActionRefused):
    field = "delete_after"


def expiry_of(day: date, zone: ZoneInfo) -> datetime:
    """Return the instant at which the day is over."""
    return instant(day + DAY, time(), zone)


def clean_day(day: date, zone: ZoneInfo, *, now: datetime) -> date:
    """Return the last day of a snapshot. Raises InvalidExpiry unless it is today or later, within MAX_EXPIRY."""
    today = now.astimezone(zone).date()
    if not today <= day <= today + MAX_EXPIRY:
        raise InvalidExpiry(_("Enter a date from today on, at most ten years ahead."))
    return day


def why_not_expirable(snapshot: Snapshot) -> str:
    """Return why no expiry date can be set, or an empty string."""
    if snapshot.kind == Kind.BACKUP or snapshot.is_scheduled:
        return _("Its schedule decides how long it is kept.")
    if snapshot.state in (State.DELETING, State.DELETED):
        return _("“%(name)s” is being deleted already.") % {"name": snapshot.name}
    return ""


def set_expiry(*, snapshot: Snapshot, user: User, day: date | None, now: datetime | None = None) -> Snapshot:
    """Set the last day of the snapshot, or None to keep it. Raises InvalidExpiry, InvalidState."""
    now = now or timezone.now()
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if reason := why_not_expirable(snapshot):
            raise InvalidState(reason)
        zone, before = snapshot.project.customer.zone, snapshot.delete_after
        snapshot.expires_at = expiry_of(clean_day(day, zone, now=now), zone) if day else None
        lock = get_lock(snapshot)
        if lock and snapshot.expires_at and snapshot.expires_at < lock.until:
            raise InvalidExpiry(
                _("It is locked until %(time)s. Enter that day or a later one.") % {"time": minute(lock.until)}
            )
        if snapshot.delete_after != before:
            snapshot.expiry_announced_at = None
            snapshot.save(update_fields=["expires_at", "expiry_announced_at"])
            activity.record(
                action="snapshot.expiry",
                actor=user,
                target=snapshot,
                before={"delete_after": before},
                after={"delete_after": snapshot.delete_after},
            )
    return snapshot


def announce_expiring(*, now: datetime) -> int:
    """Notify members of snapshots that expire within a day, each project once for all of an instant. Returns how many."""
    expiring = Snapshot.objects.filter(
        expires_at__lte=now + ANNOUNCED_BEFORE, expiry_announced_at=None, deleted_at=None, held_at=None
    ).exclude(state=State.DELETING)
    rows = expiring.select_related("project").order_by("project", "expires_at", "pk")[:BATCH_SIZE]
    announced = 0
    for (_project_id, expires_at), group in groupby(rows, key=lambda row: (row.project_id, row.expires_at)):
        snapshots = list(group)
        try:
            announced += _announce(snapshots, expires_at, now)
        except Exception:
            logger.exception("expiry.announcement_failed", snapshot_id=str(snapshots[0].pk))
    return announced


def _announce(snapshots: list[Snapshot], expires_at: datetime, now: datetime) -> int:
    first = snapshots[0]
    unannounced = Snapshot.objects.filter(
        project=first.project_id, expires_at=expires_at, expiry_announced_at=None, deleted_at=None
    )
    deleted_at = max(expires_at, now + ANNOUNCED_BEFORE)
    with transaction.atomic():
        changed = unannounced.filter(pk__in=[snapshot.pk for snapshot in snapshots]).update(expiry_announced_at=now)
        if changed:
            notify(
                users=project_members(first.project),
                key=f"expiring:{first.pk}:{expires_at.isoformat()}",
                level=Notification.Level.WARNING,
                message=lambda: _describe(snapshots, deleted_at),
                url=reverse("snapshots:snapshot", args=[first.pk]),
            )
    return changed


def _describe(snapshots: list[Snapshot], deleted_at: datetime) -> tuple[str, str]:
    count = len(snapshots)
    title = ngettext("“%(name)s” will be deleted", "%(count)s snapshots will be deleted", count)
    text = ngettext(
        "The portal deletes %(names)s at %(time)s, when its expiry date has passed. To keep it, change or "
        "remove the date on its page.",
        "The portal deletes these snapshots at %(time)s, when their expiry date has passed: %(names)s. To "
        "keep one, change or remove the date on its page.",
        count,
    )
    values = {"name": snapshots[0].name, "count": count, "names": _join(snapshots), "time": minute(deleted_at)}
    return title % values, text % values


def _join(snapshots: list[Snapshot]) -> str:
    names = ", ".join(f"“{snapshot.name}”" for snapshot in snapshots[:NAMES_SHOWN])
    more = len(snapshots) - NAMES_SHOWN
    return (
        ngettext("%(names)s and %(count)s more", "%(names)s and %(count)s more", more)
        % {
            "names": names,
            "count": more,
        }
        if more > 0
        else names
    )


def delete_expired(*, now: datetime) -> int:
    """Accept the deletion of the snapshots whose time is over and that nothing uses. Returns how many."""
    due = Snapshot.objects.filter(
        expires_at__lte=now,
        expiry_announced_at__lte=now - ANNOUNCED_BEFORE,
        deleted_at=None,
        held_at=None,
        state__in=[State.READY, State.FAILED],
    )
    unlocked = due.exclude(locked())
    return sum(_delete_each(unlocked.order_by("expires_at", "pk")[:BATCH_SIZE], now))


def _delete_each(snapshots: Iterable[Snapshot], now: datetime) -> Iterable[bool]:
    for snapshot in snapshots:
        try:
            yield _delete(snapshot, now)
        except Exception:
            logger.exception("expiry.deletion_failed", snapshot_id=str(snapshot.pk))


def _delete(snapshot: Snapshot, now: datetime) -> bool:
    """Delete the snapshot unless it is in use, held, was given another date, or was deleted meanwhile."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = reload_snapshot(snapshot)
        expires_at = snapshot.expires_at
        announced_at = snapshot.expiry_announced_at
        is_due = expires_at is not None and expires_at <= now and snapshot.state in (State.READY, State.FAILED)
        is_announced = announced_at is not None and announced_at <= now - ANNOUNCED_BEFORE
        if not is_due or not is_announced or snapshot.held_at or why_not_deletable(snapshot):
            return False
        assert expires_at is not None
        # Whenever the scheduler comes, the charge ends where the customer was told.
        delete_automatically(snapshot, at=max(expires_at, snapshot.ready_at or expires_at), cause=DeletionCause.EXPIRED)
    return True
