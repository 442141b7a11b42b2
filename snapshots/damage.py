"""Snapshots whose bytes are no longer those that were captured.

A damaged snapshot costs nothing from the time the damage was found, doesn't count as protection, and can be used only by
typing its name. The project's members are notified.

Only a requested verification clears the mark: a user's, whose page says what the snapshot will cost, or an operator's
`fsck --repair`. A scrub never does, because an intermittent fault is no reason to trust the disk or to charge the snapshot
again. The time in between stays free.
"""

from collections.abc import Iterable
from datetime import datetime

from django.urls import reverse
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.templatetags.portal import minute
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from .models import BackupRun, DiskImage, Snapshot, State


def record_damage(snapshot: Snapshot, damage: dict[DiskImage, str], at: datetime, *, user: User | None = None) -> bool:
    """Record the damage of its disks, stop the charge, and notify the members and `user`. Call it in a transaction.

    Returns False, without notifying, if it is damaged already or no longer Ready.
    """
    lock_customer(snapshot.customer_id)
    for disk, text in damage.items():
        DiskImage.objects.filter(pk=disk.pk).update(damage=text)
    if not Snapshot.objects.filter(pk=snapshot.pk, state=State.READY, damaged_at=None).update(damaged_at=at):
        return False
    snapshot.refresh_from_db(fields=["project"])  # It may have been moved while it was read.
    snapshot.stop_charging(at)
    activity.record(action="snapshot.damaged", actor=None, target=snapshot, after={"damage": _joined(damage.values())})
    if not BackupRun.objects.unfinished().filter(snapshot=snapshot).exists():  # The run sends its own notification.
        _notify_damaged(snapshot, damage.values(), at, user)
    return True


def record_sound(snapshot: Snapshot, at: datetime, *, user: User | None = None) -> bool:
    """Clear the mark after all disks were verified, and charge the snapshot again. Call it in a transaction.

    Returns False if it isn't damaged or no longer Ready.
    """
    lock_customer(snapshot.customer_id)
    DiskImage.objects.filter(snapshot=snapshot).update(damage="")
    damaged = Snapshot.objects.filter(pk=snapshot.pk, state=State.READY, damaged_at__isnull=False)
    if not damaged.update(damaged_at=None):
        return False
    snapshot.refresh_from_db(fields=["damaged_at", "project"])
    is_charged = snapshot.is_charged and not snapshot.costs_nothing
    if is_charged:
        snapshot.start_charging(at)
    activity.record(action="snapshot.sound", actor=user, target=snapshot)

    def message() -> tuple[str, str]:
        text = _("All of its bytes match its checksum again, so it can be restored.")
        if is_charged:
            text += " " + _("It is charged again from %(time)s.") % {"time": minute(at)}
        return _("“%(name)s” is no longer damaged") % {"name": snapshot.name}, text

    notify(
        users=_recipients(snapshot, user),
        key=f"sound-{snapshot.pk}-{at.isoformat()}",
        level=Notification.Level.SUCCESS,
        message=message,
        url=reverse("snapshots:snapshot", args=[snapshot.pk]),
    )
    return True


def _notify_damaged(snapshot: Snapshot, damage: Iterable[str], at: datetime, user: User | None) -> None:
    def message() -> tuple[str, str]:
        sentences = [_joined(damage)]
        if snapshot.is_charged:
            sentences.append(_("It costs nothing from %(time)s.") % {"time": minute(at)})
        sentences.append(
            _("Take a new snapshot of “%(source)s” now, then delete this one.") % {"source": snapshot.source.name}
        )
        return _("“%(name)s” is damaged") % {"name": snapshot.name}, " ".join(sentences)

    notify(
        users=_recipients(snapshot, user),
        key=f"damaged-{snapshot.pk}-{at.isoformat()}",
        level=Notification.Level.DANGER,
        message=message,
        url=reverse("snapshots:snapshot", args=[snapshot.pk]),
    )


def _recipients(snapshot: Snapshot, user: User | None) -> set[User]:
    return {*project_members(snapshot.project), *([user] if user and user.is_active else [])}


def _joined(damage: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(damage))  # Disks may have the same damage.
