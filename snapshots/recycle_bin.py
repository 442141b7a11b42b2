"""The recycle bin: what users delete can be put back for some days.

A snapshot in it is Deleted and has `bin_until`: its data is still in storage, its name is free, and it costs nothing.
Putting it back charges the hours between as if it had never been deleted. `bin_until` is cleared when it is put back or
erased, by compare-and-set, so that only one of them happens.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.models import UsageSegment
from billing.pricing.prices import PriceList, Quote
from billing.usage import charge_gap
from cng_portal.accounts.models import Customer, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.names import fold_name, is_same_name
from cng_portal.common.templatetags.portal import minute
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


def bin_days(customer: Customer) -> int:
    """Return for how many days what is deleted now can be put back; 0: not at all."""
    days = customer.recycle_bin_days
    return settings.RECYCLE_BIN_DAYS if days is None else days


def goes_to_bin(snapshot: Snapshot) -> bool:
    """Return whether deleting it puts it in the recycle bin. What failed or is missing has no data to put back."""
    is_whole = snapshot.state == State.READY and snapshot.missing_since is None
    return is_whole and bin_days(snapshot.project.customer) > 0


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


def explain_deletion(snapshots: Collection[Snapshot]) -> list[str]:
    """Return sentences on what deleting them does to their data. Their projects must come with their customers."""
    binned = [snapshot for snapshot in snapshots if goes_to_bin(snapshot)]
    lines = []
    if binned:
        days = bin_days(binned[0].project.customer)
        text = (
            ngettext(
                "It goes to the recycle bin for %(days)s day. Until then you can put it back; then its data is erased.",
                "It goes to the recycle bin for %(days)s days. Until then you can put it back; then its data is erased.",
                days,
            )
            if len(snapshots) == 1
            else ngettext(
                "They go to the recycle bin for %(days)s day. Until then you can put them back; then their data is erased.",
                "They go to the recycle bin for %(days)s days. Until then you can put them back; then their data is erased.",
                days,
            )
        )
        lines.append(text % {"days": days})
    erased = len(snapshots) - len(binned)
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


# --- putting back ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PutBackPrice:
    """What putting a snapshot back costs: `quote` an hour from now on, and `gap_micro` for the hours since its deletion."""

    quote: Quote
    gap_hours: int
    gap_micro: int


def quote_put_back(snapshot: Snapshot, *, at: datetime) -> PutBackPrice | None:
    """Return what putting it back costs, None if nothing."""
    last = last_segment(snapshot)
    is_charged = last and snapshot.is_charged and snapshot.damaged_at is None and not snapshot.costs_nothing
    if not last or not is_charged:
        return None
    customer = snapshot.project.customer
    prices = PriceList.load([snapshot.location_id])
    quote = prices.quote_segment(last, currency=customer.currency, at=at)
    if quote is None or last.paid_until is None:
        return None
    if at <= last.paid_until:
        return PutBackPrice(quote, 0, 0)
    hours = -((last.paid_until - at) // timedelta(hours=1))
    return PutBackPrice(quote, hours, quote.cost_between(last.paid_until, at))


def last_segment(snapshot: Snapshot) -> UsageSegment | None:
    """Return its last usage, if it was charged until its deletion."""
    segments = UsageSegment.objects.filter(resource_id=snapshot.pk, kind=snapshot.service_kind, voided=False)
    last = segments.order_by("-started_at").first()
    return last if last and last.ended_at is not None else None


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
        if price:
            checks.check_shown_total(price.gap_micro, shown_micro, price.quote)
            checks.check_cover(snapshot.project.customer, price.gap_micro + price.quote.hourly_micro, at=at)
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
            gap_name = _("%(name)s (put back from the recycle bin)") % {"name": name}
            charge_gap(
                resource_id=snapshot.pk,
                kind=snapshot.service_kind,
                name=name,
                gap_name=gap_name,
                project=snapshot.project,
                location=snapshot.location,
                size_gb=snapshot.size_gb,
                at=at,
            )
        snapshot.refresh_from_db()
        activity.record(action="snapshot.put_back", actor=user, target=snapshot)
    return snapshot


# --- erasing -----------------------------------------------------------------------------------------------------------


def erase(*, snapshot: Snapshot, user: User, confirmation: str) -> Snapshot:
    """Erase a snapshot in the recycle bin now. `confirmation` has to be its name. No-op if it was erased before.

    Raises InvalidState if it was put back, and WrongConfirmation.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        checks.require_change(User.objects.get(pk=user.pk), snapshot.project_id)
        if snapshot.state != State.DELETED:
            raise InvalidState(_("“%(name)s” was put back from the recycle bin.") % {"name": snapshot.name})
        if not is_same_name(confirmation, snapshot.name):
            raise WrongConfirmation(
                _("That is not its name. Type “%(name)s” to delete it for good.") % {"name": snapshot.name}
            )
        start_erasing(snapshot, user=user)
    return snapshot


def start_erasing(snapshot: Snapshot, *, user: User | None = None) -> bool:
    """Have the storage erase it. Returns False if it has left the recycle bin. The caller must hold the customer's lock."""
    if not Snapshot.objects.in_bin().filter(pk=snapshot.pk, state=State.DELETED).update(bin_until=None):
        return False
    create_operation(kind=Operation.Kind.DELETE, snapshot=snapshot, requested_by=user)
    return True


def erase_due(*, now: datetime) -> int:
    """Erase what has been in the recycle bin until its time. Returns how many."""
    due = Snapshot.objects.in_bin().filter(bin_until__lte=now).order_by("bin_until")
    return sum(_try_to_erase(snapshot, now=now) for snapshot in due[:BATCH_SIZE])


def _try_to_erase(snapshot: Snapshot, *, now: datetime) -> bool:
    try:
        return _erase(snapshot, now=now)
    except Exception:
        logger.exception("bin.erasing_failed", snapshot_id=str(snapshot.pk))
        return False


def _erase(snapshot: Snapshot, *, now: datetime) -> bool:
    """Erase it unless it was put back, or may stay longer."""
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        lengthen([snapshot], bin_days(snapshot.project.customer))  # The default may have changed.
        snapshot.refresh_from_db(fields=["bin_until"])
        if snapshot.bin_until is None or snapshot.bin_until > now:
            return False
        return start_erasing(snapshot)


def lengthen(snapshots: Iterable[Snapshot], days: int) -> None:
    """Let what is in the recycle bin stay for `days` since its deletion, unless it stays for longer already."""
    for snapshot in snapshots:
        assert snapshot.delete_requested_at is not None  # held by the constraint snapshot_state_instants
        until = snapshot.delete_requested_at + timedelta(days=days)
        Snapshot.objects.in_bin().filter(pk=snapshot.pk, bin_until__lt=until).update(bin_until=until)


@receiver(post_save, sender=Customer)
def lengthen_for_customer(instance: Customer, **kwargs: object) -> None:
    """Let a longer time count at once. A shorter one counts for what is deleted later."""
    if instance.recycle_bin_days:
        lengthen(Snapshot.objects.in_bin().filter(customer=instance), instance.recycle_bin_days)


# --- free space -------------------------------------------------------------------------------------------------------


def free_space(*, now: datetime) -> int:
    """Erase the oldest of the recycle bin early where a location is short of free space. Returns how many.

    The scheduler measures the free space every minute; nothing more is erased until it has measured the last effect.
    """
    wanted = settings.RECYCLE_BIN_FREE_GB * GIB
    erased = 0
    for check in StorageCheck.objects.filter(free_bytes__lt=wanted, error=""):
        deletions = Operation.objects.filter(kind=Operation.Kind.DELETE, snapshot__location=check.location_id)
        if deletions.filter(Q(finished_at=None) | Q(finished_at__gte=check.checked_at)).exists():
            continue
        missing = wanted - (check.free_bytes or 0)
        oldest = Snapshot.objects.in_bin().filter(location=check.location_id).order_by("delete_requested_at", "pk")
        for snapshot in oldest.prefetch_related("disks")[:BATCH_SIZE]:
            if missing <= 0:
                break
            missing -= sum(disk.allocated_bytes or 0 for disk in snapshot.disks.all())
            try:
                erased += _erase_early(snapshot)
            except Exception:
                logger.exception("bin.erasing_failed", snapshot_id=str(snapshot.pk))
    return erased


def _erase_early(snapshot: Snapshot) -> bool:
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        until = snapshot.bin_until
        if until is None or not start_erasing(snapshot):
            return False

        def message() -> tuple[str, str]:
            return _("“%(name)s” left the recycle bin early") % {"name": snapshot.name}, _(
                "The storage of %(location)s is short of space, so the oldest in the recycle bin were erased. It would have "
                "stayed until %(time)s. It can't be put back any more."
            ) % {"location": snapshot.location_id, "time": minute(until)}

        notify(
            users=project_members(snapshot.project),
            key=f"bin-room:{snapshot.pk}:{until.isoformat()}",
            level=Notification.Level.WARNING,
            message=message,
            url=reverse("snapshots:snapshot", args=[snapshot.pk]),
        )
    logger.warning("bin.erased_early", location=snapshot.location_id, snapshot_id=str(snapshot.pk))
    return True
