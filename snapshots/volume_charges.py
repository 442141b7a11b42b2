"""Charge volumes as Block Storage: from the instant at which they are available until their deletion is accepted.

A volume costs something where its location sells Block Storage in its customer's currency. Elsewhere a cloud may bill it.
"""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from billing.models import ServiceKind, UsageSegment
from billing.prices import PriceList, Quote
from billing.usage import change_usage, close_segment, open_segment
from cng_portal.inventory.models import Volume

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
