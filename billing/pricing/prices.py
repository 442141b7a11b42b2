"""The price list, and quotes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer
from cng_portal.common import money
from cng_portal.inventory.models import Location
from cng_portal.support.services import contact_support

from .. import rating
from ..errors import NotSold
from ..models import PriceVersion, ServiceKind, UsageSegment


def _priced_kind(kind: str) -> str:
    """Automatic backups are sold where VM Backup is, and have no package of their own."""
    return ServiceKind.VM_BACKUP if kind == ServiceKind.VM_BACKUP_AUTOMATIC else kind


def _not_sold(kind: str, location_code: str) -> NotSold:
    return NotSold(
        _(
            "%(kind)s is not sold in %(location)s: there is no active package with a price for it. Choose another location "
            "or contact your provider."
        )
        % {"kind": ServiceKind(kind).label, "location": location_code}
        + contact_support()
    )


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The price of a resource. `prices` includes planned ones, for `cost_between`."""

    kind: str
    size_gb: int
    rate_micro: int
    currency: str
    prices: tuple[rating.Price, ...] = field(default=(), repr=False, compare=False)

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
        hourly = money.format_price(self.hourly_micro, self.currency)
        rate = money.format_rate(self.rate_micro, self.currency)
        if self.is_share_of_vm:
            return _("20 %% of %(rate)s = %(hourly)s an hour") % {"rate": rate, "hourly": hourly}
        return _("%(size)s GB × %(rate)s = %(hourly)s an hour") % {
            "size": money.format_count(self.size_gb),
            "rate": rate,
            "hourly": hourly,
        }

    @property
    def hourly_micro(self) -> int:
        return rating.hourly_micro(rate_micro=self.rate_micro, size_gb=self._measure)

    @property
    def _measure(self) -> int | None:
        return None if self.is_share_of_vm else self.size_gb

    def cost_of(self, hours: int) -> int:
        """Return the cost of `hours` hours at the current rate, in millionths."""
        unit_micro = money.unit_micro(self.currency)
        return rating.line_amount(hours=hours, rate_micro=self.rate_micro, size_gb=self._measure, unit_micro=unit_micro)

    @property
    def daily_micro(self) -> int:
        return self.cost_of(rating.HOURS_PER_DAY)

    @property
    def monthly_micro(self) -> int:
        return self.cost_of(rating.HOURS_PER_MONTH)

    def cost_between(self, start: datetime, end: datetime) -> int:
        """Return the cost from `start` to `end`, planned prices included. Raises ValueError for an end before `start`."""
        usage = rating.Usage(
            started_at=start,
            ended_at=end,
            size_gb=self.size_gb,
            base_rate_micro=self.rate_micro if self.is_share_of_vm else None,
        )
        rating.hours(start, end)
        lines = rating.rate(
            usage,
            since=start,
            until=end + rating.HOUR,
            at=end,
            prices=self.prices,
            unit_micro=money.unit_micro(self.currency),
        )
        return sum(line.amount_micro or 0 for line in lines)


@dataclass(frozen=True)
class PriceList:
    """The price versions of some locations: the only reader of prices in Python. `bulk.py` has the same rule in SQL.

    A customer is priced by the packages of their currency. A location is its code.
    """

    versions: Mapping[tuple[str, str, str], Sequence[rating.Price]]  # by kind, location and currency, in order of start

    @classmethod
    def load(cls, locations: Iterable[str] | None = None) -> Self:
        """Read the prices of the locations, or of all. One query."""
        rows = PriceVersion.objects.order_by("starts_at", "id")
        if locations is not None:
            rows = rows.filter(package__location__in=set(locations))
        versions = defaultdict(list)
        for kind, location, currency, since, rate_micro, pk, is_sold in rows.values_list(
            *("package__kind", "package__location_id", "package__currency"),
            *("starts_at", "rate_micro", "id", "package__active"),
        ):
            price = rating.Price(since=since, rate_micro=rate_micro, id=pk, is_sold=is_sold)
            versions[kind, location, currency].append(price)
        return cls(dict(versions))

    def history(self, kind: str, location: str, currency: str) -> Sequence[rating.Price]:
        return self.versions.get((_priced_kind(kind), location, currency), ())

    def sold_rate(self, kind: str, location: str, currency: str, at: datetime) -> int | None:
        """Return the rate of a new resource, in millionths per GB and hour; None where the kind is not sold."""
        price = rating.price_at(self.history(kind, location, currency), at)
        return price.rate_micro if price and price.is_sold else None

    def quote(self, kind: str, location: str, currency: str, at: datetime, *, size_gb: int) -> Quote | None:
        """Return the price of `size_gb` of usage, even if the kind is no longer sold; None before the first price."""
        history = self.history(kind, location, currency)
        price = rating.price_at(history, at)
        if price is None:
            return None
        return Quote(kind=kind, size_gb=size_gb, rate_micro=price.rate_micro, currency=currency, prices=tuple(history))

    def hourly_micro(self, kind: str, location: str, currency: str, at: datetime, *, size_gb: int) -> int:
        """Return the hourly cost of `size_gb` of usage, in millionths; 0 before the first price."""
        quote = self.quote(kind, location, currency, at, size_gb=size_gb)
        return quote.hourly_micro if quote else 0

    def quote_segment(self, segment: UsageSegment, *, currency: str, at: datetime) -> Quote | None:
        """Return the price of the usage at the instant; None before the first price."""
        if segment.base_rate_micro is not None:
            return Quote(kind=segment.kind, size_gb=0, rate_micro=segment.base_rate_micro, currency=currency)
        return self.quote(segment.kind, segment.location_id, currency, at, size_gb=segment.size_gb)


def get_quote(
    *,
    customer: Customer,
    location: Location | str,
    kind: str,
    size_gb: int = 0,
    at: datetime,
    base_rate_micro: int | None = None,
) -> Quote:
    """Return the price of a new resource. `base_rate_micro`: the VM's hourly price, for automatic backups only. One query.

    Raises NotSold unless the price in force is that of an active package.
    """
    code = location if isinstance(location, str) else location.pk
    prices = PriceList.load([code])
    if prices.sold_rate(kind, code, customer.currency, at) is None:
        raise _not_sold(kind, code)
    if kind != ServiceKind.VM_BACKUP_AUTOMATIC:
        quote = prices.quote(kind, code, customer.currency, at, size_gb=size_gb)
        assert quote is not None
        return quote
    if base_rate_micro is None:
        raise ValueError("Automatic backups are quoted from the VM's hourly price.")
    return Quote(kind=kind, size_gb=0, rate_micro=base_rate_micro, currency=customer.currency)
