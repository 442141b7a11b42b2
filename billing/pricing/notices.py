"""Notifications to the owners of customers whose running usage costs more, or less, after a change of prices.

The scheduler announces planned prices, so that a customer who can't be notified fails alone, and not the administrator's
request. Withdrawals and corrections are written in the transaction of the change.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import Now
from django.urls import reverse
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer
from cng_portal.common import money
from cng_portal.common.loops import for_each
from cng_portal.common.templatetags.portal import minute
from cng_portal.notifications.models import Notification

from .. import rating
from ..models import Package, PriceVersion, ServiceKind, UsageSegment
from . import block_storage
from .prices import PriceList

# A transaction that was open during an announcement, or another machine's clock, may record usage with an earlier time.
OVERLAP = timedelta(minutes=15)


def announce_prices(*, at: datetime) -> int:
    """Notify customers of planned prices: each price to all who use its package, then to those who begin to.

    A customer's failure doesn't stop the others: raises an ExceptionGroup at the end, and the next run notifies
    those who weren't. Returns how many prices are planned.
    """
    planned = PriceVersion.objects.filter(starts_at__gt=at, package__active=True).select_related("package")
    for_each(planned, lambda version: announce_price(version, at=at))
    return len(planned)


def announce_price(version: PriceVersion, *, at: datetime) -> None:
    until = version.announced_until
    notify_planned(version, at=at, since=until - OVERLAP if until else None)
    # A price that was changed meanwhile is announced again.
    unchanged = PriceVersion.objects.filter(pk=version.pk, starts_at=version.starts_at, rate_micro=version.rate_micro)
    unchanged.filter(starts_at__gt=Now()).update(announced_until=at)


def notify_planned(version: PriceVersion, *, at: datetime, since: datetime | None = None) -> None:
    """Notify owners of what running usage, and volumes that aren't charged yet, will cost from a planned price on.

    `since`: only to customers with usage that was recorded later.
    """
    package = version.package
    if version.starts_at > at and block_storage.starts_charging(version):
        block_storage.notify_first_price(version)
    before_micro = _rate_before(version)
    if version.starts_at <= at or before_micro is None or before_micro == version.rate_micro:
        return
    is_higher = version.rate_micro > before_micro

    def describe(size_gb: int) -> tuple[str, str]:
        title = _("The price of %(kind)s rises") if is_higher else _("The price of %(kind)s falls")
        text = _(
            "From {time} on, {kind} in {location} costs {rate} per GB and hour instead of {before}. What you use now, "
            "{size} GB, will then cost {hourly} an hour, about {monthly} for a month of 732 hours. Hours that begin before "
            "keep their price. Delete what you no longer need by then, and you don't pay for it."
        ).format(
            **_prices_of(version, before_micro),
            time=minute(version.starts_at),
            size=money.format_count(size_gb),
            hourly=money.format_price(size_gb * version.rate_micro, package.currency),
            monthly=money.format_amount(size_gb * version.rate_micro * rating.HOURS_PER_MONTH, package.currency),
        )
        return title % {"kind": _label(package)}, text

    key = f"{_key_prefix(version)}{version.rate_micro}:{version.starts_at.isoformat()}"
    level = Notification.Level.WARNING if is_higher else Notification.Level.INFO
    usage = _running(package)
    if since:
        newcomers = usage.filter(start_recorded_at__gt=since).values("customer")
        usage = usage.filter(customer__in=newcomers)
    _notify_users_of(usage, key=key, level=level, describe=describe)


def _key_prefix(version: PriceVersion) -> str:
    """Return what the keys of a planned price's notifications start with."""
    return f"price:{version.pk}:"


def notify_withdrawn(version: PriceVersion) -> None:
    """Notify owners that an announced price is withdrawn. Call it before the version is deleted."""
    package, before_micro = version.package, _rate_before(version)
    if block_storage.starts_charging(version):
        block_storage.notify_withdrawn(version)
    if before_micro is None or before_micro == version.rate_micro:
        return

    def describe(_size_gb: int) -> tuple[str, str]:
        text = _("{kind} in {location} won't cost {rate} per GB and hour from {time} on. It stays at {before}.").format(
            **_prices_of(version, before_micro), time=minute(version.starts_at)
        )
        return _("The price of %(kind)s stays as it is") % {"kind": _label(package)}, text

    announced = Notification.objects.filter(key__startswith=_key_prefix(version))
    _notify_users_of(
        _running(package).filter(customer__in=announced.values("user__customer")),
        key=f"price-withdrawn:{version.pk}",
        level=Notification.Level.INFO,
        describe=describe,
    )


def notify_corrected(correction: PriceVersion) -> None:
    """Notify owners that a price was too high, and that the overcharge will be credited."""
    package, wrong = correction.package, correction.corrects
    assert wrong is not None  # the caller's

    def describe(_size_gb: int) -> tuple[str, str]:
        text = _(
            "{kind} in {location} costs {rate} per GB and hour instead of {before}, from {time} on. Usage without an "
            "invoice already costs the lower price; the next invoice credits what earlier ones charged too much."
        ).format(**_prices_of(correction, wrong.rate_micro), time=minute(correction.starts_at))
        return _("The price of %(kind)s was corrected") % {"kind": _label(package)}, text

    used_since = _usage_of(package).filter(Q(ended_at=None) | Q(ended_at__gt=correction.starts_at), voided=False)
    _notify_users_of(
        used_since, key=f"price-corrected:{correction.pk}", level=Notification.Level.SUCCESS, describe=describe
    )


def _notify_users_of(
    usage: QuerySet[UsageSegment],
    *,
    key: str,
    level: str,
    describe: Callable[[int], tuple[str, str]],
) -> None:
    """Notify the owners of each customer of the usage. `describe` gets the GB of that usage, and returns title and text."""
    sizes = dict(usage.order_by().values_list("customer").annotate(Sum("size_gb")))
    block_storage.notify_owners(
        Customer.objects.filter(pk__in=sizes),
        key=key,
        level=level,
        describe=lambda customer: describe(sizes[customer.pk]),
        url=reverse("billing:subscriptions"),
    )


def _usage_of(package: Package) -> QuerySet[UsageSegment]:
    return UsageSegment.objects.filter(
        kind=package.kind, location=package.location_id, customer__currency=package.currency
    )


def _running(package: Package) -> QuerySet[UsageSegment]:
    return _usage_of(package).filter(ended_at=None)


def _rate_before(version: PriceVersion) -> int | None:
    """Return the rate in force just before the version starts, None if there is none."""
    package = version.package
    history = PriceList.load([package.location_id]).history(package.kind, package.location_id, package.currency)
    price = rating.price_at([price for price in history if price.since < version.starts_at], version.starts_at)
    return price.rate_micro if price else None


def _prices_of(version: PriceVersion, before_micro: int) -> dict[str, str]:
    package = version.package
    return {
        "kind": _label(package),
        "location": package.location_id,
        "rate": money.format_rate(version.rate_micro, package.currency),
        "before": money.format_rate(before_micro, package.currency),
    }


def _label(package: Package) -> str:
    return str(ServiceKind(package.kind).label)
