"""What a service costs: prices in force, and quotes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer
from cng_portal.inventory.models import Location

from . import money, rating
from .errors import NotSold
from .models import PriceVersion, ServiceKind


def _price_kind(kind: str) -> str:
    """Automatic backups are sold where VM Backup is."""
    return ServiceKind.VM_BACKUP if kind == ServiceKind.VM_BACKUP_AUTOMATIC else kind


def _not_sold(kind: str, location_code: str) -> NotSold:
    return NotSold(
        _(
            "%(kind)s is not sold in %(location)s: there is no active package with a price for it. Choose another location "
            "or contact support."
        )
        % {"kind": ServiceKind(kind).label, "location": location_code}
    )


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What a thing costs from the instant `at` on; `prices` also has the planned ones, which `until` takes into account."""

    kind: str
    size_gb: int
    rate_micro: int
    hourly_micro: int
    currency: str
    price_version_id: int | None
    at: datetime
    prices: tuple[rating.Price, ...] = field(repr=False, compare=False)

    @property
    def is_share_of_vm(self) -> bool:
        return self.kind == ServiceKind.VM_BACKUP_AUTOMATIC

    @property
    def summary(self) -> str:
        price = money.format_price(self.hourly_micro, self.currency)
        if self.is_share_of_vm:
            return _("%(price)s / Hour") % {"price": price}
        return _("%(price)s / Hour / %(size)s GB") % {"price": price, "size": money.format_count(self.size_gb)}

    @property
    def formula(self) -> str:
        hourly = money.format_price_or_amount(self.hourly_micro, self.currency)
        rate = money.format_rate(self.rate_micro, self.currency)
        if self.is_share_of_vm:
            return _("20 %% of %(rate)s = %(hourly)s an hour") % {"rate": rate, "hourly": hourly}
        return _("%(size)s GB × %(rate)s = %(hourly)s an hour") % {
            "size": money.format_count(self.size_gb),
            "rate": rate,
            "hourly": hourly,
        }

    def cost_of(self, hours: int) -> int:
        """So many hours at the present rate, in millionths."""
        size_gb = None if self.is_share_of_vm else self.size_gb
        return rating.line_amount(hours=hours, rate_micro=self.rate_micro, size_gb=size_gb)

    @property
    def daily_micro(self) -> int:
        return self.cost_of(rating.HOURS_PER_DAY)

    @property
    def monthly_micro(self) -> int:
        return self.cost_of(rating.HOURS_PER_MONTH)

    def until(self, at: datetime, end: datetime) -> int:
        """From `at` until `end`, with the price changes that are planned. Raises ValueError for an end before `at`."""
        usage = rating.Usage(
            started_at=at,
            ended_at=end,
            size_gb=self.size_gb,
            base_rate_micro=self.rate_micro if self.is_share_of_vm else None,
        )
        rating.hours(at, end)
        lines = rating.rate(usage, since=at, until=end + rating.HOUR, at=end, prices=self.prices)
        return sum(line.amount_micro or 0 for line in lines)


def get_quote(
    *,
    customer: Customer,
    location: Location | str,
    kind: str,
    size_gb: int = 0,
    at: datetime,
    base_rate_micro: int | None = None,
) -> Quote:
    """The price of a new thing at an instant. One query. Raises NotSold.

    `base_rate_micro` is the VM's hourly price, for automatic backups only. The price is that of the latest version begun
    in the location, whatever its package, because this is what usage is rated by; it is sold if that package is active.
    """
    code = location if isinstance(location, str) else location.pk
    prices = prices_by_place([code]).get((_price_kind(kind), code), [])
    price = price_at(prices, at)
    if price is None or not price.is_sold:
        raise _not_sold(kind, code)
    if kind == ServiceKind.VM_BACKUP_AUTOMATIC:
        if base_rate_micro is None:
            raise ValueError("automatic backups are quoted from the VM's hourly price")
        rate_micro, version_id, size_gb = base_rate_micro, None, 0
    else:
        rate_micro, version_id = price.rate_micro, price.id
    return Quote(
        kind=kind,
        size_gb=size_gb,
        rate_micro=rate_micro,
        hourly_micro=rating.hourly_micro(rate_micro=rate_micro, size_gb=size_gb if version_id else None),
        currency=customer.currency,
        price_version_id=version_id,
        at=at,
        prices=tuple(prices),
    )


def price_at(prices: Sequence[rating.Price], at: datetime) -> rating.Price | None:
    """Of prices in the order of their start the one that holds at the instant; None before the first."""
    return next((price for price in reversed(prices) if price.since <= at), None)


def rates_at(*, kind: str, at: datetime, location_codes: Iterable[str] | None = None) -> dict[str, int]:
    """{location code: rate in millionths per GB and hour} of where the kind is sold at the instant. One query."""
    versions = PriceVersion.objects.filter(package__kind=_price_kind(kind), starts_at__lte=at)
    if location_codes is not None:
        versions = versions.filter(package__location_id__in=list(location_codes))
    latest = {}
    for code, active, rate_micro in versions.order_by("starts_at", "id").values_list(
        "package__location_id", "package__active", "rate_micro"
    ):
        latest[code] = rate_micro if active else None
    return {code: rate_micro for code, rate_micro in latest.items() if rate_micro is not None}


def sold_kinds(location_codes: Iterable[str] | None = None, *, at: datetime) -> dict[str, set[str]]:
    """{location code: kinds sold there at the instant}. One query; a location that sells nothing is left out."""
    versions = PriceVersion.objects.filter(starts_at__lte=at)
    if location_codes is not None:
        versions = versions.filter(package__location_id__in=list(location_codes))
    latest = {}
    for code, kind, active in versions.order_by("starts_at", "id").values_list(
        "package__location_id", "package__kind", "package__active"
    ):
        latest[code, kind] = active
    sold: dict[str, set[str]] = defaultdict(set)
    for (code, kind), active in latest.items():
        if active:
            sold[code].add(kind)
            if kind == ServiceKind.VM_BACKUP:
                sold[code].add(ServiceKind.VM_BACKUP_AUTOMATIC)
    return dict(sold)


PricesByPlace = dict[tuple[str, str], list[rating.Price]]


def prices_by_place(codes: Iterable[str] | None = None) -> PricesByPlace:
    """{(kind, location code): prices in the order of their start}. One query."""
    versions = PriceVersion.objects.order_by("starts_at", "id")
    if codes is not None:
        versions = versions.filter(package__location__in=set(codes))
    prices: PricesByPlace = defaultdict(list)
    for kind, code, since, rate_micro, pk, is_sold in versions.values_list(
        "package__kind", "package__location_id", "starts_at", "rate_micro", "id", "package__active"
    ):
        prices[kind, code].append(rating.Price(since=since, rate_micro=rate_micro, id=pk, is_sold=is_sold))
    return prices
