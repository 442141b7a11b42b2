"""Locks: until an instant nobody deletes a snapshot or backup, nor puts it in the recycle bin.

*Governance* can be lifted by an owner of the project or an administrator, with a reason that everybody of the customer is
told. *Compliance* can be lifted so during its cooling-off, and by nobody afterwards. Neither is ever shortened. Triggers of
the database hold all of this by its own clock; what is here explains it beforehand, and counts what it costs.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext as _

from billing import rating
from billing.balance import get_balance
from billing.models import UsageSegment
from billing.pricing.prices import PriceList, Quote
from cng_portal.accounts.approvals import request_approval_if_needed
from cng_portal.accounts.models import Approval, BillingType, Customer, Project, Role, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.clock import database_now
from cng_portal.common.money import format_amount
from cng_portal.common.templatetags.portal import day as format_day
from cng_portal.common.templatetags.portal import minute
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from . import checks
from .backups.occurrences import DAY, instant
from .errors import ActionRefused, InsufficientCredit, InvalidState, PriceChanged
from .models import MAX_REASON_LENGTH, LockMode, Snapshot, SnapshotLock, State

MIN_COOLING_OFF, MAX_COOLING_OFF = 1, 72  # hours
MAX_LOCK = timedelta(days=3653)


class InvalidLock(ActionRefused):
    """The lock's end or cooling-off isn't allowed; `field` is the form's."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def get_locks(snapshot_ids: Collection[UUID]) -> dict[UUID, SnapshotLock]:
    """Return {snapshot: its lock that holds longest now}. One query."""
    active = SnapshotLock.objects.active().filter(snapshot__in=snapshot_ids).order_by("until")
    return {lock.snapshot_id: lock for lock in active}


def get_lock(snapshot: Snapshot) -> SnapshotLock | None:
    return get_locks([snapshot.pk]).get(snapshot.pk)


def why_locked(snapshot: Snapshot, lock: SnapshotLock | None = None) -> str:
    """Return until when nobody can delete it, or an empty string. `lock` saves a query."""
    lock = lock or get_lock(snapshot)
    if lock is None:
        return ""
    return _("“%(name)s” is locked: nobody can delete it before %(time)s.") % {
        "name": snapshot.name,
        "time": minute(lock.until),
    }


def why_not_lockable(snapshot: Snapshot) -> str:
    """Return why it can't be locked, or an empty string."""
    if snapshot.state != State.READY:
        return _("“%(name)s” is not ready, so it can't be locked.") % {"name": snapshot.name}
    if snapshot.missing_since:
        return _("“%(name)s” was deleted outside the portal, so it can't be locked.") % {"name": snapshot.name}
    if snapshot.is_damaged:
        return _("“%(name)s” is damaged, so it can't be locked.") % {"name": snapshot.name}
    return ""


def can_lift(lock: SnapshotLock, user: User, snapshot: Snapshot, *, at: datetime) -> bool:
    """Return whether the user may lift the lock now: an owner of the project or an administrator, before it is final."""
    is_final = lock.final_at is not None and lock.final_at <= at
    is_owner = user.roles.get(snapshot.project_id) == Role.OWNER and user.can_change(snapshot.project_id)
    return not is_final and (is_owner or user.is_staff)


def end_of(day: date, snapshot: Snapshot) -> datetime:
    """Return the instant at which the day is over, in the customer's time zone."""
    return instant(day + DAY, time(), snapshot.project.customer.zone)


@dataclass(frozen=True)
class LockPrice:
    """What a snapshot costs from the end of its paid hour, `since`, until `until`, at today's and planned prices."""

    quote: Quote
    since: datetime
    until: datetime

    def cost_until(self, until: datetime) -> int:
        return self.quote.cost_between(self.since, until) if until > self.since else 0

    @property
    def micro(self) -> int:
        return self.cost_until(self.until)


def quote_locks(untils: Mapping[Snapshot, datetime], *, at: datetime) -> dict[UUID, LockPrice]:
    """Return what each snapshot costs until its instant, without those that cost nothing. Two queries.

    They must come with `run__schedule`, location, and project with customer.
    """
    charged = {
        snapshot: until
        for snapshot, until in untils.items()
        if snapshot.is_charged and not snapshot.is_damaged and not snapshot.costs_nothing
    }
    prices = PriceList.load({snapshot.location_id for snapshot in charged})
    open_segments = UsageSegment.objects.filter(
        resource_id__in=[snapshot.pk for snapshot in charged], ended_at=None, voided=False
    )
    started = {segment.resource_id: segment.started_at for segment in open_segments}
    result = {}
    for snapshot, until in charged.items():
        currency = snapshot.project.customer.currency
        quote = prices.quote(snapshot.service_kind, snapshot.location_id, currency, at, size_gb=snapshot.size_gb)
        if quote:
            start = min(started.get(snapshot.pk, at), at)
            since = start + rating.hours(start, at) * rating.HOUR if snapshot.pk in started else at
            result[snapshot.pk] = LockPrice(quote, since, until)
    return result


def quote_lock(snapshot: Snapshot, until: datetime, *, at: datetime) -> LockPrice | None:
    """Return what the snapshot costs until then, None if nothing."""
    return quote_locks({snapshot: until}, at=at).get(snapshot.pk)


def locked_micro(customer: Customer, *, at: datetime, without: Snapshot) -> int:
    """Return what the customer's locked snapshots cost until their locks end, `without` this one."""
    related = ("snapshot__project__customer", "snapshot__location", "snapshot__run__schedule")
    active = SnapshotLock.objects.active().filter(snapshot__customer=customer).exclude(snapshot=without)
    untils = {lock.snapshot: lock.until for lock in active.select_related(*related).order_by("until")}
    return sum(price.micro for price in quote_locks(untils, at=at).values())


def covered_until(snapshot: Snapshot, price: LockPrice | None, *, at: datetime) -> datetime | None:
    """Return until when prepaid credits cover the snapshot beside all that is locked already, None without a limit.

    The caller must hold the customer's lock. At most `price.until`.
    """
    customer = snapshot.project.customer
    if price is None or customer.billing_type != BillingType.PREPAID:
        return None
    left = get_balance(customer=customer, at=at) - checks.reserved_micro(customer, at=at)
    left -= locked_micro(customer, at=at, without=snapshot)
    if price.micro <= left:
        return price.until
    low, high = 0, rating.hours(at, max(price.until, at))  # Whole hours from now: the first is covered, the last isn't.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if price.cost_until(at + middle * rating.HOUR) <= left else (low, middle)
    return at + low * rating.HOUR


def lock_snapshot(
    *,
    snapshot: Snapshot,
    user: User,
    day: date,
    mode: str = LockMode.GOVERNANCE,
    cooling_off_hours: int | None = None,
    shown_micro: int | None = None,
) -> SnapshotLock:
    """Lock the snapshot until the day is over, or lengthen its lock, which keeps its mode.

    `shown_micro` is what the user saw that it costs until then. Raises InvalidLock, InvalidState, InsufficientCredit,
    PriceChanged; PermissionDenied if anybody but an owner chooses Compliance.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        at = database_now()
        snapshot = checks.reload_snapshot(snapshot)
        user = User.objects.get(pk=user.pk)
        checks.require_change(user, snapshot.project_id)
        if reason := why_not_lockable(snapshot):
            raise InvalidState(reason)
        until = check_end(snapshot, day, at=at)
        check_lock_price(snapshot, until, shown_micro, at=at)
        if lock := get_lock(snapshot):
            lengthen(lock, until, user)
        else:
            final_at = check_cooling_off(mode, cooling_off_hours, user, snapshot, at=at)
            lock = SnapshotLock.objects.create(
                snapshot=snapshot, mode=mode, until=until, final_at=final_at, locked_at=at, locked_by=user
            )
            after = {"until": until, "mode": lock.get_mode_display()}
            activity.record(action="snapshot.lock", actor=user, target=snapshot, after=after)
            if final_at:
                notify_final(lock)
        Snapshot.objects.filter(pk=snapshot.pk, expires_at__lt=until).update(expires_at=until, expiry_announced_at=None)
    return lock


def check_end(snapshot: Snapshot, day: date, *, at: datetime) -> datetime:
    """Return the lock's end. Raises InvalidLock unless the day is today or later, within MAX_LOCK, and lengthens a lock."""
    today = at.astimezone(snapshot.project.customer.zone).date()
    if not today <= day <= today + MAX_LOCK:
        raise InvalidLock(_("Enter a date from today on, at most ten years ahead."), "day")
    until, lock = end_of(day, snapshot), get_lock(snapshot)
    if lock and until <= lock.until:
        raise InvalidLock(
            _("It is locked until %(time)s already, and a lock can only be lengthened. Enter a later date.")
            % {"time": minute(lock.until)},
            "day",
        )
    return until


def check_cooling_off(mode: str, hours: int | None, user: User, snapshot: Snapshot, *, at: datetime) -> datetime | None:
    """Return when the lock becomes final, None for Governance."""
    if mode == LockMode.GOVERNANCE:
        return None
    if user.roles.get(snapshot.project_id) != Role.OWNER:
        raise PermissionDenied(
            _("Only an owner of the project can choose Compliance, because nobody can take it back.")
        )
    if hours is None or not MIN_COOLING_OFF <= hours <= MAX_COOLING_OFF:
        raise InvalidLock(_("Enter a cooling-off of 1 to 72 hours."), "cooling_off_hours")
    return at + timedelta(hours=hours)


def check_lock_price(snapshot: Snapshot, until: datetime, shown_micro: int | None, *, at: datetime) -> None:
    price = quote_lock(snapshot, until, at=at)
    covered = covered_until(snapshot, price, at=at)
    if price and covered and covered < until:
        day = covered.astimezone(snapshot.project.customer.zone).date() - DAY  # The last whole one.
        if end_of(day, snapshot) <= at:
            raise InsufficientCredit(_("Your credits don't cover it until the end of that day. Buy credits first."))
        raise InsufficientCredit(
            _("Your credits cover it until the end of %(day)s at most. Enter an earlier date, or buy credits first.")
            % {"day": format_day(day)}
        )
    if price and shown_micro is not None and price.micro > shown_micro:
        amount = format_amount(price.micro, price.quote.currency)
        raise PriceChanged(
            _("It costs %(amount)s until then. Check it and confirm again.") % {"amount": amount}, price.quote
        )


def lengthen(lock: SnapshotLock, until: datetime, user: User) -> None:
    SnapshotLock.objects.filter(pk=lock.pk, until__lt=until).update(until=until)
    before, lock.until = lock.until, until
    old, new = {"until": before}, {"until": until}
    activity.record(action="snapshot.lengthen_lock", actor=user, target=lock.snapshot, before=old, after=new)


def lock_scheduled(snapshot: Snapshot, *, days: int) -> SnapshotLock | None:
    """Lock what a schedule took, with Governance, for as many of `days` as prepaid credits cover. Returns None if none.

    Members are notified if it is locked for less. The caller must hold the customer's lock.
    """
    snapshot, at = checks.reload_snapshot(snapshot), database_now()
    wanted = at + timedelta(days=days)
    if why_not_lockable(snapshot):
        return None
    covered = covered_until(snapshot, quote_lock(snapshot, wanted, at=at), at=at)
    until = min(wanted, covered or wanted)
    if until < wanted:
        notify_shortened(snapshot, days, until if until > at else None)
    current = get_lock(snapshot)
    if until <= at or (current and current.until >= until):
        return current
    lock = SnapshotLock.objects.create(snapshot=snapshot, mode=LockMode.GOVERNANCE, until=until, locked_at=at)
    activity.record(action="snapshot.lock", actor=None, target=snapshot, after={"until": until})
    return lock


def lift_lock(*, lock: SnapshotLock, user: User, reason: str, approval: Approval | None = None) -> SnapshotLock:
    """Lift a lock, and tell everybody of the customer who did it and why. No-op if it was lifted or has ended.

    While it waits for another owner's approval, `lifted_at` stays empty. Raises PermissionDenied for anybody but an owner of
    the project or an administrator, InvalidState once a Compliance lock is final, InvalidLock without a reason.
    """
    with transaction.atomic():
        lock_customer(lock.snapshot.customer_id)
        at = database_now()
        snapshot = checks.reload_snapshot(lock.snapshot)
        user = User.objects.get(pk=user.pk)
        held = SnapshotLock.objects.active().filter(pk=lock.pk).first()
        if held is None:
            return lock
        if held.final_at and held.final_at <= at:
            raise InvalidState(
                _("Its cooling-off is over: nobody can lift this lock before %(time)s.") % {"time": minute(held.until)}
            )
        if not can_lift(held, user, snapshot, at=at):
            raise PermissionDenied(_("Only an owner of the project or your provider can lift a lock."))
        reason = reason.strip()[:MAX_REASON_LENGTH]
        if not reason:
            raise InvalidLock(_("Enter why you lift it. Everybody of the account is told."), "reason")
        if request_approval_if_needed(
            action="lift_lock",
            target=held,
            customer_id=snapshot.customer_id,
            project=snapshot.project,
            by=user,
            at=at,
            approval=approval,
            reason=reason,
        ):
            return held
        held.lifted_at, held.lifted_by, held.reason = at, user, reason
        held.save(update_fields=["lifted_at", "lifted_by", "reason"])
        after = {"reason": reason, "until": held.until}
        activity.record(action="snapshot.lift_lock", actor=user, target=snapshot, after=after)
        notify_lifted(held, snapshot, user)
    return held


def everybody_of(project: Project) -> list[User]:
    """Return the active users of the customer, and those who share its projects."""
    customer = project.customer_id
    users = User.objects.filter(Q(customer=customer) | Q(memberships__project__customer=customer), is_active=True)
    return list(users.distinct())


def notify_lifted(lock: SnapshotLock, snapshot: Snapshot, user: User) -> None:
    def message() -> tuple[str, str]:
        values = {"name": snapshot.name, "user": user, "time": minute(lock.until), "reason": lock.reason}
        return _("The lock of “%(name)s” was lifted") % values, _(
            "%(user)s lifted it. It would have held until %(time)s; now the snapshot can be deleted. Reason: %(reason)s"
        ) % values

    notify(
        users=everybody_of(snapshot.project),
        key=f"lock-lifted:{lock.pk}",
        level=Notification.Level.WARNING,
        message=message,
        url=reverse("snapshots:snapshot", args=[snapshot.pk]),
    )


def notify_final(lock: SnapshotLock) -> None:
    """Tell the members until when a Compliance lock can still be lifted."""
    snapshot, final_at = lock.snapshot, lock.final_at
    assert final_at is not None  # held by the constraint lock_final_at

    def message() -> tuple[str, str]:
        values = {
            "name": snapshot.name,
            "user": lock.locked_by,
            "time": minute(lock.until),
            "final": minute(final_at),
        }
        return _("“%(name)s” is locked for Compliance") % values, _(
            "%(user)s locked it until %(time)s. An owner can lift the lock until %(final)s. After that nobody can, and the "
            "snapshot is charged until the lock ends."
        ) % values

    notify(
        users=project_members(snapshot.project),
        key=f"lock-placed:{lock.pk}",
        level=Notification.Level.INFO,
        message=message,
        url=reverse("snapshots:snapshot", args=[snapshot.pk]),
    )


def notify_shortened(snapshot: Snapshot, days: int, until: datetime | None) -> None:
    def message() -> tuple[str, str]:
        values = {"name": snapshot.name, "days": days, "time": minute(until) if until else ""}
        title = _("“%(name)s” is locked for less than its schedule says") if until else _("“%(name)s” is not locked")
        text = (
            _("Its schedule locks for %(days)s days, but your credits cover it until %(time)s only. Buy credits.")
            if until
            else _("Its schedule locks for %(days)s days, but your credits don't cover it. Buy credits.")
        )
        return title % values, text % values

    notify(
        users=project_members(snapshot.project),
        key=f"lock-shortened:{snapshot.pk}",
        level=Notification.Level.WARNING,
        message=message,
        url=reverse("snapshots:snapshot", args=[snapshot.pk]),
    )
