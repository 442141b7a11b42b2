"""Damage found in a snapshot's bytes: what it changes, and who is told.

A damaged snapshot costs nothing from the instant the damage was found, doesn't count as protection, and is used only by a
person who types its name to accept that. The bell and an e-mail tell the project's members.

The mark goes only after a full read that somebody asked for: a member with *Verify*, whose page says what the snapshot
costs afterwards, or an operator with `fsck --repair`. A scheduled read never takes it away, because a fault that
comes and goes is no reason to trust the medium or to charge the snapshot again unasked. The time between stays free.
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
    """Record what is wrong with its disks, and end its billing. Call it in a transaction.

    False when it is damaged already or no longer Ready, and then nobody is told. `user` is told besides the members.
    """
    lock_customer(snapshot.customer_id)
    for disk, text in damage.items():
        DiskImage.objects.filter(pk=disk.pk).update(damage=text)
    if not Snapshot.objects.filter(pk=snapshot.pk, state=State.READY, damaged_at=None).update(damaged_at=at):
        return False
    snapshot.stop_charging(at)
    activity.record(action="snapshot.damaged", actor=None, target=snapshot, after={"damage": _joined(damage.values())})
    if not BackupRun.objects.unfinished().filter(snapshot=snapshot).exists():  # else the run says what happens next
        _notify_damaged(snapshot, damage.values(), at, user)
    return True


def record_sound(snapshot: Snapshot, at: datetime, *, user: User | None = None) -> bool:
    """All of its disks were read and match again: it is usable and charged from now on. Call it in a transaction.

    False when it isn't damaged or no longer Ready.
    """
    lock_customer(snapshot.customer_id)
    DiskImage.objects.filter(snapshot=snapshot).update(damage="")
    damaged = Snapshot.objects.filter(pk=snapshot.pk, state=State.READY, damaged_at__isnull=False)
    if not damaged.update(damaged_at=None):
        return False
    snapshot.refresh_from_db(fields=["damaged_at"])
    is_charged = snapshot.is_charged and not snapshot.costs_nothing
    if is_charged:
        snapshot.start_charging(at)
    activity.record(action="snapshot.sound", actor=user, target=snapshot)

    def message() -> tuple[str, str]:
        text = _("All of its bytes were read again and match its checksum, so it can be restored.")
        if is_charged:
            text += " " + _("It is charged again from %(time)s on.") % {"time": minute(at)}
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
            sentences.append(_("It costs nothing from %(time)s on.") % {"time": minute(at)})
        sentences.append(
            _("Take a new one while “%(source)s” is sound, then delete this one.") % {"source": snapshot.source.name}
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
    return " ".join(dict.fromkeys(damage))  # several disks may have the same to say
