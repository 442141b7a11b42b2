"""The recycle bin: deleted snapshots and backups can be put back for some days.

A snapshot in it is Deleted and has `bin_until`: its data is still in storage, its name is free, and it costs nothing.
Putting it back charges the hours between as if it had never been deleted. `bin_until` is cleared when it is put back or
erased, by compare-and-set, so that only one of them happens. `snapshots.volumes.recycle_bin` puts volumes in it and back.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing import rating
from billing.models import UsageSegment
from billing.pricing.prices import PriceList, Quote
from billing.usage import charge_gap
from cng_portal.accounts.approvals import request_approval_if_needed
from cng_portal.accounts.models import Approval, Customer, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.names import fold_name, is_same_name
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import Volume
from cng_portal.monitoring.models import StorageCheck
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from . import checks, limits
from .errors import InvalidState, WrongConfirmation
from .models import DeletionCause, Operation, Snapshot, State
from .operations.lifecycle import create_operation
from .storage.contract import GIB

logger = structlog.stdlib.get_logger(__name__)

BATCH_SIZE = 200
# Where a second owner approves deletions past the bin.
MIN_DAYS_WITH_APPROVAL = 3

Binned = Snapshot | Volume


def bin_days(customer: Customer) -> int:
    """Return how many days a deleted snapshot stays in the customer's recycle bin; 0 turns it off."""
    days = customer.recycle_bin_days
    days = settings.RECYCLE_BIN_DAYS if days is None else days
    return max(days, MIN_DAYS_WITH_APPROVAL) if customer.needs_approval else days


def goes_to_bin(deleted: Binned) -> bool:
    """Return whether deleting it puts it in the recycle bin. A failed or missing snapshot has no data to put back."""
    if isinstance(deleted, Volume):
        is_whole = deleted.state == Volume.State.AVAILABLE
    else:
        is_whole = deleted.state == State.READY and deleted.missing_since is None
    return is_whole and bin_days(deleted.project.customer) > 0


def put_in_bin(
    snapshot: Snapshot, *, at: datetime, cause: DeletionCause = DeletionCause.USER, user: User | None = None
) -> None:
    """End the charge and put the snapshot in the recycle bin. The caller must hold the customer's lock, and have checked it.

    Raises IntegrityError as `accept_deletion` does.
    """
    until = at + timedelta(days=bin_days(snapshot.project.customer))
    Snapshot.objects.transition(
        snapshot.pk,
        [State.READY],
        State.DELETED,
        delete_requested_at=at,
        deleted_at=at,
        deletion_cause=cause,
        bin_until=until,
    )
    snapshot.stop_charging(at)
    activity.record(action="snapshot.bin", actor=user, target=snapshot, after={"bin_until": until})


def explain_deletion(deleted: Collection[Binned]) -> list[str]:
    """Return sentences on what deleting them does to their data. Their projects must come with their customers."""
    binned = [row for row in deleted if goes_to_bin(row)]
    lines = []
    if binned:
        days = bin_days(binned[0].project.customer)
        text = (
            ngettext(
                "It goes to the recycle bin for %(days)s day. Until then you can put it back; then its data is erased.",
                "It goes to the recycle bin for %(days)s days. Until then you can put it back; then its data is erased.",
                days,
            )
            if len(deleted) == 1
            else ngettext(
                "They go to the recycle bin for %(days)s day. Until then you can put them back; then their data is erased.",
                "They go to the recycle bin for %(days)s days. Until then you can put them back; then their data is erased.",
                days,
            )
        )
        lines.append(text % {"days": days})
    erased = len(deleted) - len(binned)
    if erased and binned:
        lines.append(
            ngettext(
                "%(count)s of them failed or is missing, so its data is erased at once.",
                "%(count)s of them failed or are missing, so their data is erased at once.",
                erased,
            )
            % {"count": erased}
        )
    elif erased:
        lines.append(
            _("Its data is erased. This can't be undone, not even by support.")
            if erased == 1
            else _("Their data is erased. This can't be undone, not even by support.")
        )
    return lines


@dataclass(frozen=True)
class PutBackPrice:
    """What putting a snapshot back costs: `quote` an hour from now on, and `gap_micro` for the hours since its deletion."""

    quote: Quote
    gap_hours: int
    gap_micro: int


def quote_put_back(snapshot: Snapshot, *, at: datetime) -> PutBackPrice | None:
    """Return what putting it back costs, None if nothing."""
    if not snapshot.is_charged or snapshot.damaged_at is not None or snapshot.costs_nothing:
        return None
    return quote_resumed(resource_id=snapshot.pk, kind=snapshot.service_kind, at=at)


def quote_resumed(*, resource_id: UUID, kind: str, at: datetime) -> PutBackPrice | None:
    """Return what it costs to charge again what was charged until its deletion; None if it wasn't charged."""
    segments = UsageSegment.objects.filter(resource_id=resource_id, kind=kind, voided=False).select_related("customer")
    last = segments.order_by("-started_at").first()
    if last is None or last.ended_at is None or last.paid_until is None:
        return None
    quote = PriceList.load([last.location_id]).quote_segment(last, currency=last.customer.currency, at=at)
    if quote is None:
        return None
    if at <= last.paid_until:
        return PutBackPrice(quote, 0, 0)
    hours = rating.hours(last.paid_until, at)
    return PutBackPrice(quote, hours, quote.cost_between(last.paid_until, at))


def put_back(*, snapshot: Snapshot, user: User, name: str = "", shown_micro: int | None = None) -> Snapshot:
    """Make a snapshot in the recycle bin Ready again, by default under its old name.

    One that a schedule took is pinned, because retention would delete it at once; an expiry date that has passed is removed.
    `shown_micro` is what the user saw that the hours since the deletion cost. Raises InvalidState, NameTaken, PriceChanged,
    QuotaExceeded, InsufficientCredit.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        at = timezone.now()
        snapshot = checks.reload_snapshot(snapshot)
        checks.require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if not snapshot.is_in_bin:
            raise InvalidState(
                _("“%(name)s” is no longer in the recycle bin, so it can't be put back.") % {"name": snapshot.name}
            )
        name = checks.check_name(snapshot.customer_id, name or snapshot.name)
        limits.check_returned_snapshot_quota(snapshot.project)
        price = quote_put_back(snapshot, at=at)
        check_price(price, snapshot.project.customer, shown_micro, at)
        is_expired = snapshot.expires_at is not None and snapshot.expires_at <= at
        is_pinned = snapshot.is_pinned or snapshot.is_scheduled
        Snapshot.objects.in_bin().transition(
            snapshot.pk,
            [State.DELETED],
            State.READY,
            bin_until=None,
            deleted_at=None,
            delete_requested_at=None,
            deletion_cause="",
            name=name,
            name_key=fold_name(name),
            is_pinned=is_pinned,
            expires_at=None if is_expired else snapshot.expires_at,
        )
        if price:
            charge_gap(
                resource_id=snapshot.pk,
                kind=snapshot.service_kind,
                name=name,
                gap_name=name_of_gap(name),
                project=snapshot.project,
                location=snapshot.location,
                size_gb=snapshot.size_gb,
                at=at,
            )
        snapshot.refresh_from_db()
        activity.record(action="snapshot.put_back", actor=user, target=snapshot)
    return snapshot


def check_price(price: PutBackPrice | None, customer: Customer, shown_micro: int | None, at: datetime) -> None:
    """Raise PriceChanged if it is more than the user saw, InsufficientCredit if the credits don't cover it."""
    if price:
        checks.check_shown_total(price.gap_micro, shown_micro, price.quote)
        checks.check_cover(customer, price.gap_micro + price.quote.hourly_micro, at=at)


def name_of_gap(name: str) -> str:
    """Return the name that the hours in the recycle bin have on statements and invoices."""
    return _("%(name)s (put back from the recycle bin)") % {"name": name}


def erase(*, binned: Binned, user: User, confirmation: str, approval: Approval | None = None) -> Binned:
    """Erase what is in the recycle bin now. `confirmation` has to be its name. No-op if it was erased before.

    It stays in the bin while it waits for another owner's approval. Raises InvalidState if it was put back, and
    WrongConfirmation.
    """
    with transaction.atomic():
        lock_customer(binned.customer_id)
        binned = reload(binned)
        checks.require_change(User.objects.get(pk=user.pk), binned.project_id)
        if binned.delete_requested_at is None:
            raise InvalidState(_("“%(name)s” was put back from the recycle bin.") % {"name": binned.name})
        if not is_same_name(confirmation, binned.name):
            raise WrongConfirmation(
                _("That is not its name. Type “%(name)s” to delete it for good.") % {"name": binned.name}
            )
        must_wait = binned.is_in_bin and request_approval_if_needed(
            action=f"erase_{binned._meta.model_name}",
            target=binned,
            customer_id=binned.project.customer_id,
            project=binned.project,
            by=user,
            at=timezone.now(),
            approval=approval,
        )
        if not must_wait:
            start_erasing(binned, user=user)
        binned.refresh_from_db(fields=["bin_until"])
    return binned


def start_erasing(binned: Binned, *, user: User | None = None) -> bool:
    """Have the storage erase it. Returns False if it has left the recycle bin. The caller must hold the customer's lock."""
    in_bin = in_bin_of(binned)
    if isinstance(binned, Volume):
        if not in_bin.update(bin_until=None, deleted_at=None):
            return False
        create_operation(kind=Operation.Kind.DELETE_VOLUME, volume=binned, requested_by=user)
    else:
        if not in_bin.filter(state=State.DELETED).update(bin_until=None):
            return False
        create_operation(kind=Operation.Kind.DELETE, snapshot=binned, requested_by=user)
    return True


def erase_due(*, now: datetime) -> int:
    """Erase snapshots whose time in the recycle bin is over. Returns how many."""
    snapshots = Snapshot.objects.in_bin().filter(bin_until__lte=now).order_by("bin_until")
    volumes = Volume.objects.in_bin().filter(bin_until__lte=now).order_by("bin_until").select_related("project")
    due: list[Binned] = [*snapshots[:BATCH_SIZE], *volumes[:BATCH_SIZE]]
    return sum(_try_to_erase(binned, now=now) for binned in due)


def _try_to_erase(binned: Binned, *, now: datetime) -> bool:
    try:
        return _erase(binned, now=now)
    except Exception:
        logger.exception("bin.erasing_failed", **{f"{binned._meta.model_name}_id": str(binned.pk)})
        return False


def _erase(binned: Binned, *, now: datetime) -> bool:
    """Erase it unless it was put back, or may stay longer."""
    with transaction.atomic():
        lock_customer(binned.customer_id)
        binned = reload(binned)
        lengthen([binned], bin_days(binned.project.customer))  # The default may have changed.
        binned.refresh_from_db(fields=["bin_until"])
        if binned.bin_until is None or binned.bin_until > now:
            return False
        return start_erasing(binned)


def lengthen(rows: Iterable[Binned], days: int) -> None:
    """Let the snapshots stay in the recycle bin for `days` from their deletion, unless they stay longer already."""
    for binned in rows:
        assert binned.delete_requested_at is not None  # held by constraints on the states' instants
        until = binned.delete_requested_at + timedelta(days=days)
        in_bin_of(binned).filter(bin_until__lt=until).update(bin_until=until)


@receiver(post_save, sender=Customer)
def lengthen_for_customer(instance: Customer, **kwargs: object) -> None:
    """Apply a longer time at once. A shorter one applies to later deletions."""
    if instance.recycle_bin_days:
        lengthen(Snapshot.objects.in_bin().filter(customer=instance), instance.recycle_bin_days)
        lengthen(Volume.objects.in_bin().filter(project__customer=instance), instance.recycle_bin_days)


def in_bin_of(binned: Binned) -> QuerySet[Any]:
    """Return its row, as long as it is in the recycle bin."""
    return type(binned).objects.in_bin().filter(pk=binned.pk)


def reload(binned: Binned) -> Binned:
    """Read the row again, after the customer's lock was taken."""
    return checks.reload_source(binned) if isinstance(binned, Volume) else checks.reload_snapshot(binned)


def free_space() -> int:
    """Erase the oldest of the recycle bin early where a location is short of free space. Returns how many.

    The scheduler measures the free space every minute; nothing more is erased until it has measured the last effect.
    """
    wanted = settings.RECYCLE_BIN_FREE_GB * GIB
    erased = 0
    for check in StorageCheck.objects.filter(free_bytes__lt=wanted, error=""):
        kinds = [Operation.Kind.DELETE, Operation.Kind.DELETE_VOLUME]
        here = Q(snapshot__location=check.location_id) | Q(volume__location=check.location_id)
        deletions = Operation.objects.filter(here, kind__in=kinds)
        if deletions.filter(Q(finished_at=None) | Q(finished_at__gte=check.checked_at)).exists():
            continue
        missing = wanted - (check.free_bytes or 0)
        for binned in oldest_in(check.location_id):
            if missing <= 0:
                break
            missing -= bytes_freed(binned)
            try:
                erased += _erase_early(binned)
            except Exception:
                logger.exception("bin.erasing_failed", **{f"{binned._meta.model_name}_id": str(binned.pk)})
    return erased


def oldest_in(location_id: str) -> list[Binned]:
    snapshots = Snapshot.objects.in_bin().filter(location=location_id).order_by("delete_requested_at", "pk")
    volumes = Volume.objects.in_bin().filter(location=location_id).order_by("delete_requested_at", "pk")
    oldest: list[Binned] = [
        *snapshots.prefetch_related("disks")[:BATCH_SIZE],
        *volumes.select_related("project", "location")[:BATCH_SIZE],
    ]
    return sorted(oldest, key=lambda binned: (binned.delete_requested_at, binned.pk))


def bytes_freed(binned: Binned) -> int:
    """Return how many bytes erasing it frees at most. If it frees less, the next measurement has more erased."""
    if isinstance(binned, Volume):
        return binned.size_gb * GIB
    return sum(disk.allocated_bytes or 0 for disk in binned.disks.all())


def _erase_early(binned: Binned) -> bool:
    with transaction.atomic():
        lock_customer(binned.customer_id)
        binned = reload(binned)
        until = binned.bin_until
        if until is None or not start_erasing(binned):
            return False

        def message() -> tuple[str, str]:
            return _("“%(name)s” left the recycle bin early") % {"name": binned.name}, _(
                "The storage of %(location)s is short of space, so the oldest in the recycle bin were erased. It would have "
                "stayed until %(time)s. It can't be put back any more."
            ) % {"location": binned.location_id, "time": minute(until)}

        notify(
            users=project_members(binned.project),
            key=f"bin-room:{binned.pk}:{until.isoformat()}",
            level=Notification.Level.WARNING,
            message=message,
            url=reverse(f"snapshots:{binned._meta.model_name}", args=[binned.pk]),
        )
    logger.warning("bin.erased_early", location=binned.location_id, **{f"{binned._meta.model_name}_id": str(binned.pk)})
    return True
