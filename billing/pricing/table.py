"""The page of prices: what each kind costs in each location, and what has been planned."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cng_portal.accounts.models import User
from cng_portal.common import money
from cng_portal.inventory.models import Location

from ..models import PACKAGE_KINDS, ServiceKind
from .prices import PriceList


@dataclass(frozen=True, kw_only=True)
class PlannedPrice:
    starts_at: datetime
    rate: str


@dataclass(frozen=True, kw_only=True)
class KindPrice:
    """The price of one GB for an hour and for a month of 732 hours. Both are empty where the kind is not sold."""

    kind: str
    label: str
    rate: str
    month: str
    planned: Sequence[PlannedPrice]


@dataclass(frozen=True, kw_only=True)
class LocationPrices:
    location: Location
    prices: Sequence[KindPrice]


def currencies_of(user: User) -> list[str]:
    """Return the currencies in which the user's customers are billed, that of the user's own first."""
    own = [user.customer.currency] if user.customer else []
    return list(dict.fromkeys([*own, *sorted(project.currency for project in user.project_roles)])) or [
        money.DEFAULT_CURRENCY
    ]


def build_price_tables(currencies: Sequence[str], at: datetime) -> dict[str, list[LocationPrices]]:
    """Return {currency: prices of each location that is open}. Two queries."""
    locations = list(Location.objects.active())
    prices = PriceList.load([location.pk for location in locations])
    return {
        currency: [
            LocationPrices(
                location=location,
                prices=[_price_of_kind(prices, kind, location.pk, currency, at) for kind in PACKAGE_KINDS],
            )
            for location in locations
        ]
        for currency in currencies
    }


def _price_of_kind(prices: PriceList, kind: str, location: str, currency: str, at: datetime) -> KindPrice:
    quote = None
    if prices.sold_rate(kind, location, currency, at) is not None:
        quote = prices.quote(kind, location, currency, at, size_gb=1)
    # The last of several with the same start corrects the others.
    planned = {
        price.since: price.rate_micro
        for price in prices.history(kind, location, currency)
        if price.since > at and price.is_sold
    }
    return KindPrice(
        kind=kind,
        label=str(ServiceKind(kind).label),
        rate=money.format_rate(quote.rate_micro, currency) if quote else "",
        month=money.format_amount(quote.monthly_micro, currency) if quote else "",
        planned=[
            PlannedPrice(starts_at=starts_at, rate=money.format_rate(rate_micro, currency))
            for starts_at, rate_micro in planned.items()
        ],
    )
