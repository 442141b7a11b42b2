"""The first price of a Block Storage package: it charges volumes that cost nothing before, so it needs notice."""

from collections.abc import Callable
from datetime import timedelta

from django.db.models import Count, Exists, OuterRef, QuerySet, Sum
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.accounts.models import Customer
from cng_portal.common import money
from cng_portal.common.loops import for_each
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import Volume
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import customer_owners, notify

from .. import rating
from ..models import PriceVersion, ServiceKind, UsageSegment

# How long before its start a first price must be saved: e-mails that announce it are retried for two days.
NOTICE = timedelta(days=3)


def uncharged_volumes(location_code: str, currency: str) -> QuerySet[Volume]:
    """Return the volumes that will be charged once Block Storage has a price in the location and currency."""
    charged = UsageSegment.objects.filter(
        resource_id=OuterRef("pk"), kind=ServiceKind.BLOCK_STORAGE.value, ended_at=None
    )
    volumes = Volume.objects.counted().filter(location=location_code, project__customer__currency=currency)
    return volumes.filter(~Exists(charged))


def count_uncharged(location_code: str, currency: str) -> tuple[int, int]:
    """Return the numbers of these volumes and of their customers."""
    volumes = uncharged_volumes(location_code, currency)
    counts = volumes.aggregate(volumes=Count("pk"), customers=Count("project__customer", distinct=True))
    return counts["volumes"], counts["customers"]


def starts_charging(version: PriceVersion) -> bool:
    """Return whether it is the first price of a Block Storage package, from which on volumes are charged."""
    package = version.package
    earlier = package.versions.filter(starts_at__lt=version.starts_at)
    return package.kind == ServiceKind.BLOCK_STORAGE and not earlier.exists()


def notify_first_price(version: PriceVersion) -> None:
    """Notify owners of what their volumes will cost from the first price on. Nobody is notified twice."""
    package, rate_micro = version.package, version.rate_micro

    def describe(count: int, size_gb: int) -> tuple[str, str]:
        text = ngettext(
            "From %(time)s on, Block Storage in %(location)s costs %(rate)s per GB and hour. Your volume there, %(size)s "
            "GB, will then cost %(hourly)s an hour, about %(monthly)s for a month of 732 hours. Delete it by then if you "
            "no longer need it, and you don't pay for it.",
            "From %(time)s on, Block Storage in %(location)s costs %(rate)s per GB and hour. Your %(count)s volumes there, "
            "%(size)s GB, will then cost %(hourly)s an hour, about %(monthly)s for a month of 732 hours. Delete what you no "
            "longer need by then, and you don't pay for it.",
            count,
        ) % {
            "time": minute(version.starts_at),
            "location": package.location_id,
            "rate": money.format_rate(rate_micro, package.currency),
            "count": money.format_count(count),
            "size": money.format_count(size_gb),
            "hourly": money.format_price(size_gb * rate_micro, package.currency),
            "monthly": money.format_amount(size_gb * rate_micro * rating.HOURS_PER_MONTH, package.currency),
        }
        return _("Volumes in %(location)s will be charged") % {"location": package.location_id}, text

    key = f"{_key_prefix(version)}{rate_micro}:{version.starts_at.isoformat()}"
    _notify(version, Customer.objects.all(), key=key, level=Notification.Level.WARNING, describe=describe)


def notify_withdrawn(version: PriceVersion) -> None:
    """Notify those who were told of the first price that it was withdrawn."""

    def describe(count: int, size_gb: int) -> tuple[str, str]:
        place = {"location": version.package.location_id, "time": minute(version.starts_at)}
        text = _("Block Storage in %(location)s won't be charged from %(time)s on, as announced.") % place
        return _("Volumes in %(location)s stay free of charge") % place, text

    told = Notification.objects.filter(key__startswith=_key_prefix(version), user__customer=OuterRef("pk"))
    key = f"block-storage-withdrawn:{version.pk}"
    _notify(version, Customer.objects.filter(Exists(told)), key=key, level=Notification.Level.INFO, describe=describe)


def _key_prefix(version: PriceVersion) -> str:
    """Return what the keys of a first price's notifications start with."""
    return f"block-storage:{version.pk}:"


def _notify(
    version: PriceVersion,
    customers: QuerySet[Customer],
    *,
    key: str,
    level: str,
    describe: Callable[[int, int], tuple[str, str]],
) -> None:
    """Notify the owners of those customers who have volumes. `describe` gets the count and GB of the volumes."""
    volumes = uncharged_volumes(version.package.location_id, version.package.currency).order_by()
    sums = volumes.values_list("project__customer").annotate(Count("pk"), Sum("size_gb"))
    by_customer = {customer_id: (count, size_gb) for customer_id, count, size_gb in sums}
    notified = Notification.objects.filter(key=key, user__customer=OuterRef("pk"))
    notify_owners(
        customers.filter(~Exists(notified), pk__in=by_customer),
        key=key,
        level=level,
        describe=lambda customer: describe(*by_customer[customer.pk]),
        url=reverse("billing:prices"),
    )


def notify_owners(
    customers: QuerySet[Customer], *, key: str, level: str, describe: Callable[[Customer], tuple[str, str]], url: str
) -> None:
    """Notify the owners of each customer. `describe` returns title and text.

    A customer's failure doesn't stop the others: raises an ExceptionGroup at the end.
    """

    def notify_customer(customer: Customer) -> None:
        notify(users=customer_owners(customer), key=key, level=level, message=lambda: describe(customer), url=url)

    for_each(customers.order_by("pk"), notify_customer)
