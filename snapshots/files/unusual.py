"""Unusual changes: after its files are listed, a disk is compared with the previous snapshot, and with its own history.

The rule: a change is unusual if the share of files that were changed, removed or renamed, or of those whose content became
unreadable, exceeds a floor and twice what nine in ten of the volume's last 30 changes stayed within.

The portal says what it has counted, not why: an upgrade looks the same as encryption by an intruder. The last snapshot
before an unusual change is held: retention and expiry leave it until a member decides.
"""

import math
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

import structlog
from django.db import transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.money import format_count
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from .. import checks
from ..models import DiskChange, DiskImage, Snapshot, State
from ..storage.contract import Corrupt, Heartbeat
from ..storage.registry import get_driver
from . import catalogue, children
from .catalogue import Catalogue, Record
from .comparison import ADDED, CHANGED, MAX_CHANGES, REMOVED, RENAMED, pair_renamed, read_changes

logger = structlog.stdlib.get_logger(__name__)

HISTORY, MIN_HISTORY = 30, 5
# Fewer files, or smaller shares, are never unusual: a day's work changes half of a small disk.
MIN_FILES, FLOOR, UNREADABLE_FLOOR = 20, 0.2, 0.05
USUAL_PART, FACTOR = 0.9, 2
SAMPLE = 100
MIN_SAMPLED_BYTES = 256  # less says nothing about randomness


class Sample:
    """At most SAMPLE of many files, each with the same chance, in bounded memory."""

    def __init__(self) -> None:
        self.files: list[Record] = []
        self.seen = 0

    def add(self, record: Record) -> None:
        if record.kind != "f" or record.size < MIN_SAMPLED_BYTES:
            return
        self.seen += 1
        if len(self.files) < SAMPLE:
            self.files.append(record)
        elif (position := random.randrange(self.seen)) < SAMPLE:
            self.files[position] = record


def measure(disk: DiskImage, heartbeat: Heartbeat) -> DiskChange | None:
    """Compare the disk with the previous snapshot. Returns an unsaved row, None if there is nothing to compare it with.

    Raises StorageError, and what the heartbeat raises.
    """
    previous = find_previous(disk)
    driver = get_driver(disk.snapshot.location)
    try:
        if previous is None or (old := driver.open_catalogue(previous.ref)) is None:
            return None
        with catalogue.opened(old) as before:
            if (new := driver.open_catalogue(disk.ref)) is None:
                return None
            with catalogue.opened(new) as after:
                change, sample = count_changes(before, after)
    except (Corrupt, ValueError) as error:
        logger.warning("catalogue.not_compared", disk=str(disk.pk), error=str(error))
        return None
    if change:
        heartbeat(0, 0)
        change.disk, change.previous = disk, previous
        change.sampled, change.unreadable = read_sample(disk, sample)
    return change


def find_previous(disk: DiskImage) -> DiskImage | None:
    """Return the disk in the newest older snapshot of its volume that has a catalogue."""
    older = DiskImage.objects.filter(
        volume=disk.volume_id,
        file_count__isnull=False,
        snapshot__state=State.READY,
        snapshot__missing_since=None,
        snapshot__ready_at__lt=disk.snapshot.ready_at,
    )
    return older.select_related("volume", "snapshot").order_by("-snapshot__ready_at").first()


def count_changes(before: Catalogue, after: Catalogue) -> tuple[DiskChange | None, list[Record]]:
    """Return the counts, and a sample of files with new content; no counts if a list is incomplete or was empty.

    Beyond MAX_CHANGES, renamed files count as removed and added, which makes the same share. Raises ValueError.
    """
    files_before = sum(part["files"] for part in before.summary["parts"])
    if not files_before or not (before.summary["is_complete"] and after.summary["is_complete"]):
        return None, []
    counts: Counter[str] = Counter()
    removed: list[Record] = []
    added: list[Record] = []
    sample = Sample()
    for change in read_changes(before, after):
        if change.record.kind == "d":
            continue
        has_room = len(removed) + len(added) < MAX_CHANGES
        if has_room and change.kind == REMOVED and change.old:
            removed.append(change.old)
        elif has_room and change.kind == ADDED and change.new:
            added.append(change.new)
        elif change.kind != CHANGED or change.is_new_content:
            counts[change.kind] += 1
            if change.new:
                sample.add(change.new)
    for change in pair_renamed(removed, added):
        counts[change.kind] += 1
        if change.kind == ADDED and change.new:
            sample.add(change.new)
    figures = {kind: counts[kind] for kind in (ADDED, CHANGED, REMOVED, RENAMED)}
    return DiskChange(files_before=files_before, **figures), sample.files


def read_sample(disk: DiskImage, sample: Sequence[Record]) -> tuple[int, int]:
    """Return how many of the files could be read, and how many of these look random. Raises StorageError."""
    if not sample:
        return 0, 0
    files = sorted([int(record.path.split(b"/", 1)[0]), record.inode, record.size] for record in sample)
    image = get_driver(disk.snapshot.location).open_for_reading(disk.ref)
    try:
        answers = children.ask(image, {"command": "sample", "files": files})
        found = [answer["is_random"] for answer in answers if isinstance(answer["is_random"], bool)]
    except (children.ReaderFailed, LookupError) as error:
        logger.warning("catalogue.not_sampled", disk=str(disk.pk), error=str(error))
        return 0, 0
    finally:
        os.close(image)
    return len(found), sum(found)


def usual(shares: Sequence[float]) -> float | None:
    """Return what USUAL_PART of the shares stay within, None if there are too few to say."""
    if len(shares) < MIN_HISTORY:
        return None
    return sorted(shares)[math.ceil(USUAL_PART * len(shares)) - 1]


def judge(change: DiskChange, history: Sequence[DiskChange]) -> None:
    """Set `usual_share` and `is_unusual` by the earlier changes of the volume."""
    change.usual_share = usual([each.share for each in history])
    usual_unreadable = usual([each.unreadable_share for each in history])
    if change.usual_share is None or usual_unreadable is None:
        return
    change.is_unusual = change.affected >= MIN_FILES and (
        change.share > max(FLOOR, FACTOR * change.usual_share)
        or change.unreadable_share > max(UNREADABLE_FLOOR, FACTOR * usual_unreadable)
    )


def history_of(disk: DiskImage) -> list[DiskChange]:
    """Return the volume's last changes before this disk's, without those that were unusual and not accepted."""
    changes = DiskChange.objects.filter(
        Q(is_unusual=False) | Q(accepted_at__isnull=False),
        disk__volume=disk.volume_id,
        disk__snapshot__ready_at__lt=disk.snapshot.ready_at,
    )
    return list(changes.order_by("-disk__snapshot__ready_at")[:HISTORY])


def record_changes(snapshot: Snapshot, changes: Iterable[DiskChange], now: datetime) -> None:
    """Judge and save the changes of its disks. If one is unusual, hold the previous snapshot, and notify the members.

    The caller must hold the customer's lock.
    """
    unusual = []
    for change in changes:
        judge(change, history_of(change.disk))
        DiskChange.objects.filter(disk=change.disk).delete()  # Its files were listed once more.
        change.save()
        if change.is_unusual:
            unusual.append(change)
    if not Snapshot.objects.filter(pk=snapshot.pk, state=State.READY).update(unusual_at=now if unusual else None):
        return
    if unusual:
        before = Snapshot.objects.filter(pk__in=[change.previous.snapshot_id for change in unusual])
        before.filter(state=State.READY).update(held_at=now)
        activity.record(action="snapshot.unusual", actor=None, target=snapshot)
        _notify_unusual(snapshot, unusual)


def _notify_unusual(snapshot: Snapshot, changes: Sequence[DiskChange]) -> None:
    snapshot.refresh_from_db(fields=["project", "name"])

    def message() -> tuple[str, str]:
        sentences = [
            *describe(changes, disk_count=snapshot.disks.count()),
            _("Compare the two snapshots to see what changed."),
            _(
                "The snapshot before is kept, at its usual price: neither a schedule nor an expiry date deletes it until "
                "you select “Keep removing as usual” on the snapshot's page."
            ),
        ]
        return _("Unusual change in “%(name)s”") % {"name": snapshot.name}, " ".join(sentences)

    notify(
        users=project_members(snapshot.project),
        key=f"unusual-{snapshot.pk}",
        level=Notification.Level.WARNING,
        message=message,
        url=reverse("snapshots:snapshot", args=[snapshot.pk]),
    )


def describe(changes: Iterable[DiskChange], *, disk_count: int) -> list[str]:
    """Return sentences with the figures of the changes to some of a snapshot's disks."""
    return [sentence for change in changes for sentence in _describe(change, names_disk=disk_count > 1)]


def _describe(change: DiskChange, *, names_disk: bool) -> list[str]:
    sentence = (
        _(
            "%(volume)s: %(affected)s of %(files)s files (%(share)s) were changed, removed or renamed since the previous "
            "snapshot."
        )
        if names_disk
        else _(
            "%(affected)s of %(files)s files (%(share)s) were changed, removed or renamed since the previous snapshot."
        )
    )
    sentences = [
        sentence
        % {
            "volume": change.disk.volume_name,
            "affected": format_count(change.affected),
            "files": format_count(change.files_before),
            "share": percent(change.share),
        }
    ]
    if change.usual_share is not None:
        sentences.append(_("Usually it is at most %(share)s.") % {"share": percent(change.usual_share)})
    if change.sampled:
        sentences.append(
            _(
                "Of %(sampled)s new or changed files that were sampled, %(unreadable)s have unreadable content, as "
                "encrypted files have, and some compressed ones."
            )
            % {"unreadable": change.unreadable, "sampled": change.sampled}
        )
    return sentences


def percent(share: float) -> str:
    if 0 < share < 0.01:
        return _("less than 1 %")
    return _("%(number)s %%") % {"number": math.floor(share * 100)}


def keep_removing(*, snapshot: Snapshot, user: User) -> Snapshot:
    """Let retention and expiry delete the snapshot again, and count the changes after it as usual.

    No-op if it isn't held.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        checks.require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if Snapshot.objects.filter(pk=snapshot.pk, held_at__isnull=False).update(held_at=None):
            DiskChange.objects.holding().filter(previous__snapshot=snapshot).update(accepted_at=timezone.now())
            activity.record(action="snapshot.keep_removing", actor=user, target=snapshot)
            snapshot.refresh_from_db()
    return snapshot
