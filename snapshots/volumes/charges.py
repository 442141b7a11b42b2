"""Charge volumes as Block Storage: from the instant at which they are available until their deletion is accepted.

A volume costs something where its location sells Block Storage in its customer's currency. Elsewhere a cloud may bill it.
Where a location begins to sell Block Storage, the volumes that it has are charged from the start of the first price on, and
their owners are notified before: see `billing.pricing.block_storage`.
"""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from billing.models import ServiceKind, UsageSegment
from billing.pricing.prices import PriceList, Quote
from billing.usage import change_usage, close_segment, open_segment, rename_resource
from cng_portal.accounts.services import lock_customer
from cng_portal.common.loops import for_each
from cng_portal.inventory.models import Volume

from .notices import notify_resumed

BLOCK_STORAGE = ServiceKind.BLOCK_STORAGE


def start_charging_volume(volume: Volume, *, at: datetime) -> UsageSegment | None:
    """Open the volume's usage segment, unless one is open. Returns None where Block Storage isn't sold.

    The caller must hold the customer's lock.
    """
    prices = PriceList.load([volume.location_id])
    if prices.sold_rate(BLOCK_STORAGE, volume.location_id, volume.project.customer.currency, at) is None:
        return None
    return open_segment(
        resource_id=volume.pk,
        kind=BLOCK_STORAGE,
        name=volume.name,
        project=volume.project,
        location=volume.location,
        size_gb=volume.size_gb,
        at=at,
    )


def stop_charging_volume(volume: Volume, *, at: datetime) -> bool:
    """Close the volume's usage segment. Returns False if none was open. The caller must hold the customer's lock."""
    return close_segment(resource_id=volume.pk, kind=BLOCK_STORAGE, at=at)


def change_volume_charge(volume: Volume, *, at: datetime) -> UsageSegment | None:
    """Charge the volume's present size and project from the next unpaid hour on, unless it is charged so already.

    Returns None where the volume isn't charged. The caller must hold the customer's lock. `billing.usage.rename_resource`
    changes the name. Raises ValueError if the project is another customer's.
    """
    return change_usage(
        resource_id=volume.pk, kind=BLOCK_STORAGE, project=volume.project, size_gb=volume.size_gb, at=at
    )


def quote_volumes(volumes: Collection[Volume], *, at: datetime) -> dict[UUID, Quote]:
    """Return {volume: its price} of those that are charged; the others cost nothing here. Two queries.

    The volumes' projects must come with their customers.
    """
    charged = UsageSegment.objects.filter(
        resource_id__in=[volume.pk for volume in volumes], kind=BLOCK_STORAGE.value, ended_at=None
    )
    segments = {segment.resource_id: segment for segment in charged}
    prices = PriceList.load({segment.location_id for segment in segments.values()}) if segments else PriceList({})
    quotes = {}
    for volume in volumes:
        if segment := segments.get(volume.pk):
            quote = prices.quote_segment(segment, currency=volume.project.customer.currency, at=at)
            if quote:
                quotes[volume.pk] = quote
    return quotes


def charge_volumes(*, at: datetime) -> None:
    """Start the charges of volumes that are older than their location's first price, and settle any others."""
    settle_charges(Volume.objects.all(), at=at)


def settle_charges(volumes: QuerySet[Volume], *, at: datetime) -> None:
    """Correct the charges of volumes that aren't charged as they should be.

    A charge starts when the volume became available, or when the location's first price did if that is later. A volume of a
    cloud that was gone and came back is charged from `at` on; any other was there all the time, and its charge continues. It
    ends when the deletion was accepted. Size, project and name change at `at`. A volume's failure doesn't stop the others:
    raises an ExceptionGroup at the end.
    """
    ids = unsettled(volumes, at).order_by("pk").values_list("pk", "project__customer")
    for_each(list(ids), lambda row: settle_charge(*row, at=at))


def unsettled(volumes: QuerySet[Volume], at: datetime) -> QuerySet[Volume]:
    charged = Exists(open_segments())
    otherwise = ~Q(size_gb=OuterRef("size_gb"), project=OuterRef("project"), resource_name=OuterRef("name"))
    return volumes.filter(
        wrongly_free(at) | (charged & ~Q(chargeable())) | Q(Exists(open_segments().filter(otherwise)))
    )


def open_segments() -> QuerySet[UsageSegment]:
    return UsageSegment.objects.filter(resource_id=OuterRef("pk"), kind=BLOCK_STORAGE.value, ended_at=None)


def wrongly_free(at: datetime) -> Q:
    """Match volumes that should be charged at the instant and aren't. One query."""
    sold = Q(pk__in=[])
    for location_code, currency in sold_since(PriceList.load(), at):
        sold |= Q(location=location_code, project__customer__currency=currency)
    return chargeable() & sold & ~Q(Exists(open_segments()))


def chargeable() -> Q:
    """Match volumes that are charged where Block Storage is sold."""
    was_available = Q(available_at__isnull=False) | Q(state=Volume.State.AVAILABLE)
    return was_available & Q(delete_requested_at=None, deleted_at=None)


def sold_since(prices: PriceList, at: datetime) -> dict[tuple[str, str], datetime]:
    """Return {(location, currency): when Block Storage began to be sold} of those that sell it at the instant."""
    return {
        (location, currency): min(price.since for price in history if price.is_sold)
        for (kind, location, currency), history in prices.versions.items()
        if kind == BLOCK_STORAGE and prices.sold_rate(kind, location, currency, at) is not None
    }


def settle_charge(volume_id: UUID, customer_id: UUID, *, at: datetime) -> None:
    with transaction.atomic():
        lock_customer(customer_id)
        volumes = Volume.objects.filter(pk=volume_id)
        volume = unsettled(volumes, at).select_related("project__customer", "location").first()
        if volume is None:  # It was settled meanwhile.
            return
        if not volumes.filter(chargeable()).exists():
            stop_charging_volume(volume, at=volume.delete_requested_at or volume.deleted_at or at)
        elif not change_volume_charge(volume, at=at):
            since = start_of(volume, at)
            segment = start_charging_volume(volume, at=since)
            if segment and not volume.backend_project and was_charged_before(segment):
                notify_resumed(volume, since)
        rename_resource(resource_id=volume.pk, name=volume.name)


def was_charged_before(segment: UsageSegment) -> bool:
    earlier = UsageSegment.objects.filter(resource_id=segment.resource_id, kind=segment.kind)
    return earlier.exclude(pk=segment.pk).exists()


def start_of(volume: Volume, at: datetime) -> datetime:
    """Return the instant from which a volume that isn't charged should be."""
    segments = UsageSegment.objects.filter(resource_id=volume.pk, kind=BLOCK_STORAGE.value, voided=False)
    if last := segments.order_by("-started_at").first():
        return at if volume.backend_project or last.paid_until is None else last.paid_until
    since = sold_since(PriceList.load([volume.location_id]), at)[volume.location_id, volume.project.customer.currency]
    return max(volume.available_at or volume.created_at, since)
