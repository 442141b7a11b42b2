"""Quotes, usage, prices and the wallet: every write to billing, and what things cost now.

Nothing accrues. What is owed is computed from usage segments and price versions whenever somebody asks.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db import transaction
from django.db.models import Case, Exists, F, Max, Min, OuterRef, Q, QuerySet, Subquery, Sum, When
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts import activity
from cng_portal.accounts.models import BillingType, Customer, Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Location
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import customer_owners, notify

from . import bulk, money, rating
from .models import (
    MAX_AMOUNT_MICRO,
    PAST,
    Invoice,
    InvoiceLine,
    LowBalanceWarning,
    Package,
    PriceVersion,
    ServiceKind,
    TransactionKind,
    UsageSegment,
    WalletAccount,
    WalletTransaction,
)

logger = logging.getLogger(__name__)


class BillingError(Exception):
    """``str(error)`` is a sentence for people."""


class NotSold(BillingError):
    """The location has no active package of the kind, or its price has not begun."""


class Refused(BillingError):
    """What was asked for would break a rule of billing."""


class InsufficientCredit(BillingError):
    """The wallet does not cover the first hour."""

    def __init__(self, *, missing_micro: int, balance_micro: int, currency: str) -> None:
        self.missing_micro = missing_micro
        self.balance_micro = balance_micro
        # rounded up, so that buying just this amount is enough
        shown = -(-missing_micro // money.HUNDREDTH_MICRO) * money.HUNDREDTH_MICRO
        super().__init__(
            _(
                "Insufficient infra credit: your balance is %(balance)s and the first hour needs %(missing)s more. Add "
                "infra credits, or delete what you no longer need."
            )
            % {
                "balance": money.format_amount(balance_micro, currency),
                "missing": money.format_amount(shown, currency),
            }
        )


# Prices ------------------------------------------------------------------------------------------------------------


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


def quote(
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


@transaction.atomic
def create_package(
    *, location: Location, kind: str, rate_micro: int, starts_at: datetime, name: str = "", by: User | None = None
) -> Package:
    """A package with its first price. Raises ValidationError with sentences."""
    name = name or f"{ServiceKind(kind).label} {location.pk}"
    package = Package(location=location, kind=kind, name=name)
    package.full_clean()
    package.save()
    save_price(PriceVersion(package=package, rate_micro=rate_micro, starts_at=starts_at), by=by)
    return package


@transaction.atomic
def retire_package(*, package: Package, by: User | None) -> list[PriceVersion]:
    """Take the package off sale and return its planned prices, which are deleted: they will never begin.

    What runs keeps the price that it has until another package of the kind has one in the location.
    """
    planned = list(package.versions.filter(starts_at__gt=Now()))
    for version in planned:
        delete_price(version, by=by)
    package.active = False
    package.save(update_fields=["active"])
    return planned


def save_price(version: PriceVersion, *, by: User | None) -> PriceVersion:
    """Write a price that is planned, or a package's first one, with its entry in the activity log."""
    version.created_by = version.created_by or by
    version.full_clean()
    version.save()
    after = {"rate_micro": version.rate_micro, "starts_at": version.starts_at}
    activity.record(act="price.set", actor=by, thing=version.package, after=after)
    return version


def delete_price(version: PriceVersion, *, by: User | None) -> None:
    """Delete a planned price; the database refuses it for one that has begun."""
    before = {"rate_micro": version.rate_micro, "starts_at": version.starts_at}
    activity.record(act="price.delete", actor=by, thing=version.package, before=before)
    version.delete()


def set_price(
    *, package: Package, rate_micro: int, starts_at: datetime, by: User | None, at: datetime | None = None
) -> PriceVersion:
    """Plan the price from `starts_at` on, which must be later than now. Raises Refused, ValidationError."""
    if starts_at <= (at or timezone.now()):
        raise Refused(str(PAST))
    return save_price(PriceVersion(package=package, rate_micro=rate_micro, starts_at=starts_at), by=by)


# Usage -------------------------------------------------------------------------------------------------------------


def closed_until(customer_id: UUID) -> datetime | None:
    """Up to where the customer has been invoiced; None where no invoice was made yet. One query."""
    return Invoice.objects.filter(customer_id=customer_id).aggregate(last=Max("ends_at"))["last"]


def _is_late(customer_id: UUID, at: datetime) -> bool:
    until = closed_until(customer_id)
    return until is not None and at < until


@transaction.atomic
def open_segment(
    *,
    resource_id: UUID,
    kind: str,
    name: str,
    project: Project,
    location: Location,
    size_gb: int = 0,
    at: datetime,
    base_rate_micro: int | None = None,
) -> UsageSegment:
    """Start charging the resource at the instant `at`; what is being charged already is returned as it is.

    So is a segment of GB that has ended after `at`: the call is then a repetition of the one that opened it. What comes
    back, as automatic backups do, inside an hour that it has paid for, or by a clock that was set back since, starts where
    that hour ends: no hour is paid twice.
    """
    lock_customer(project.customer_id)  # or the month could be closed meanwhile, without this
    began = UsageSegment.objects.filter(resource_id=resource_id, kind=kind, never_began=False)
    last = began.order_by("-started_at").first()
    if last and (last.ended_at is None or (base_rate_micro is None and (at <= last.started_at or at < last.ended_at))):
        return last
    if last and last.paid_until:
        at = max(at, last.paid_until)
    return UsageSegment.objects.create(
        resource_id=resource_id,
        kind=kind,
        resource_name=name,
        customer_id=project.customer_id,
        project=project,
        location=location,
        size_gb=size_gb,
        base_rate_micro=base_rate_micro,
        started_at=at,
        late=_is_late(project.customer_id, at),
    )


@transaction.atomic
def close_segment(*, resource_id: UUID, kind: str, at: datetime) -> bool:
    """Stop charging the resource at the instant `at`. False where nothing was open: a repetition changes nothing.

    Automatic backups that waited for the end of an hour that was paid already, and are off again before it, never began.
    """
    segment = UsageSegment.objects.filter(resource_id=resource_id, kind=kind, ended_at=None).first()
    if segment is None:
        return False
    lock_customer(segment.customer_id)
    # the clocks of two machines may differ: what is there was there for its first hour
    end = max(at, segment.started_at)
    changed = UsageSegment.objects.filter(pk=segment.pk, ended_at=None).update(
        ended_at=end,
        never_began=segment.base_rate_micro is not None and at < segment.started_at,
        late=segment.late or _is_late(segment.customer_id, end),
    )
    return changed == 1


@transaction.atomic
def change_base_rate(*, resource_id: UUID, base_rate_micro: int, at: datetime) -> UsageSegment | None:
    """The VM's hourly price changed: its automatic backups cost 20 % of the new one from the next unpaid hour on.

    None where automatic backups are off.
    """
    kind = ServiceKind.VM_BACKUP_AUTOMATIC
    segment = (
        UsageSegment.objects.select_related("project", "location")
        .filter(resource_id=resource_id, kind=kind, ended_at=None)
        .first()
    )
    if segment is None or segment.base_rate_micro == base_rate_micro:
        return segment
    begins = segment.started_at
    waits = close_segment(resource_id=resource_id, kind=kind, at=at) and at < begins
    return open_segment(
        resource_id=resource_id,
        kind=kind,
        name=segment.resource_name,
        project=segment.project,
        location=segment.location,
        at=begins if waits else at,
        base_rate_micro=base_rate_micro,
    )


def running_usage(*, location_code: str, kinds: Iterable[str]) -> QuerySet[UsageSegment]:
    """What is being charged there now."""
    return UsageSegment.objects.filter(location_id=location_code, kind__in=list(kinds), ended_at=None)


def rename_resource(*, resource_id: UUID, name: str) -> int:
    """Open segments follow the new name; what has ended keeps the name that it had. Returns how many changed."""
    return UsageSegment.objects.filter(resource_id=resource_id, ended_at=None).update(resource_name=name)


# What is owed ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DueLine:
    """Hours of a segment that no invoice has yet, or the difference to what one has."""

    segment: UsageSegment
    month: date
    line: rating.Line
    corrects: InvoiceLine | None = None


@dataclass(frozen=True, kw_only=True)
class CostLine:
    month: date
    from_at: datetime
    to_at: datetime
    hours: int
    size_gb: int
    rate_micro: int | None
    amount_micro: int
    kind: str
    currency: str
    invoice_id: UUID | None = None

    @property
    def formula(self) -> str:
        """`3 hours × 50 GB × K 0.4000 = K 60.00`."""
        return money.format_line(
            hours=self.hours,
            size_gb=None if self.kind == ServiceKind.VM_BACKUP_AUTOMATIC else self.size_gb,
            rate_micro=self.rate_micro,
            amount_micro=self.amount_micro,
            currency=self.currency,
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a resource has cost up to an instant; the lines add up to the amount."""

    hours: int
    amount_micro: int
    currency: str
    lines: Sequence[CostLine]

    @property
    def label(self) -> str:
        return money.format_amount(self.amount_micro, self.currency)


# What of an invoice's line is in a cost.
INVOICED = ("month", "from_at", "to_at", "hours", "size_gb", "rate_micro", "amount_micro", "kind", "invoice_id")

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


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The months that a customer has invoices for, and those that follow."""

    customer: Customer
    invoices: list[Invoice]  # in the order of their months

    def open_windows(self, first: datetime, at: datetime) -> list[rating.Window]:
        """From where the last invoice ends, or from the month of the first use, to the month of `at`."""
        zone = self.customer.zone
        if self.invoices:
            last = self.invoices[-1]
            return rating.windows(month=rating.next_month(last.month), since=last.ends_at, at=at, zone=zone)
        month = rating.month_of(first, zone)
        return rating.windows(month=month, since=rating.month_start(month, zone), at=at, zone=zone)

    def invoiced_windows(self, first: datetime) -> list[rating.Window]:
        """The invoiced months, and those before them since `first`, without a gap."""
        found = [rating.Window(month=one.month, since=one.starts_at, until=one.ends_at) for one in self.invoices]
        if first >= found[0].since:
            return found
        # The zone of that invoice and not today's: a line that was invoiced must meet the same month again.
        zone, until = ZoneInfo(self.invoices[0].time_zone), found[0].since
        month = min(rating.month_of(first, zone), (found[0].month - timedelta(days=1)).replace(day=1))
        since, earlier = min(rating.month_start(month, zone), first), []
        while rating.next_month(month) < found[0].month:
            end = rating.month_start(rating.next_month(month), zone)
            earlier.append(rating.Window(month=month, since=since, until=end))
            month, since = rating.next_month(month), end
        return [*earlier, rating.Window(month=month, since=since, until=until), *found]


def due_lines(*, customer: Customer, at: datetime, segments: Sequence[UsageSegment]) -> list[DueLine]:
    """What of the customer's `segments` no invoice has yet, as known at `at`. Two queries, and one more with late usage."""
    if not segments:
        return []
    ledger = Ledger(customer=customer, invoices=list(Invoice.objects.filter(customer=customer).order_by("month")))
    first = min(segment.started_at for segment in segments)
    prices = prices_by_place({segment.location_id for segment in segments})
    found = []
    open_windows = ledger.open_windows(first, at)
    for segment in segments:
        places = prices.get((segment.kind, segment.location_id), [])
        for window in open_windows:
            if window.since > at:
                break
            for line in rating.rate(segment.usage, since=window.since, until=window.until, at=at, prices=places):
                found.append(DueLine(segment=segment, month=window.month, line=line))
    late = [segment for segment in segments if segment.late]
    if late and ledger.invoices:
        found += _late_lines(ledger, late, prices, at)
    return found


def unsettled_segments(*, customer: Customer) -> QuerySet[UsageSegment]:
    """What may have hours that no invoice has yet: for `due_lines`."""
    segments = UsageSegment.objects.filter(customer=customer)
    if last := Invoice.objects.filter(customer=customer).order_by("-month").first():
        segments = segments.filter(Q(ended_at=None) | Q(ended_at__gte=last.ends_at) | Q(late=True))
    return segments


def late_lines(*, customer: Customer, at: datetime) -> list[DueLine]:
    """What was reported late for months that have an invoice, and no invoice has settled yet. Four queries."""
    segments = list(UsageSegment.objects.filter(customer=customer, late=True))
    if not segments:
        return []
    ledger = Ledger(customer=customer, invoices=list(Invoice.objects.filter(customer=customer).order_by("month")))
    return _late_lines(ledger, segments, prices_by_place({segment.location_id for segment in segments}), at)


def _late_lines(
    ledger: Ledger,
    segments: Sequence[UsageSegment],
    prices: PricesByPlace,
    at: datetime,
) -> list[DueLine]:
    """The differences between invoices and what turned out later, of months that have an invoice already."""
    originals: dict[UUID, dict[datetime, InvoiceLine]] = defaultdict(dict)
    corrected: set[int] = set()
    for one in InvoiceLine.objects.filter(segment__in=segments).select_related("invoice"):
        if one.corrects_id is None:
            originals[one.segment_id][one.from_at] = one
        else:
            corrected.add(one.corrects_id)
    found = []
    windows = ledger.invoiced_windows(min(segment.started_at for segment in segments))
    for segment in segments:
        charged = originals[segment.pk]
        places = prices.get((segment.kind, segment.location_id), [])
        for window in windows:
            for line in rating.rate(segment.usage, since=window.since, until=window.until, at=at, prices=places):
                before = charged.pop(line.from_at, None)
                if before is None:
                    found.append(DueLine(segment=segment, month=window.month, line=line))
                elif before.hours != line.hours and before.pk not in corrected:
                    found.append(_correction(segment, before, line))
        found += [
            _correction(segment, before, None)
            for before in charged.values()
            if before.from_at < ledger.invoices[-1].ends_at and before.pk not in corrected
        ]
    return found


def _correction(segment: UsageSegment, before: InvoiceLine, now: rating.Line | None) -> DueLine:
    """What `before` charged too much, as a line that points at it."""
    return DueLine(
        segment=segment,
        month=before.month,
        corrects=before,
        line=rating.Line(
            from_at=now.to_at if now else before.from_at,
            to_at=before.to_at,
            hours=(now.hours if now else 0) - before.hours,
            rate_micro=before.rate_micro,
            price_id=before.price_version_id,
            amount_micro=((now.amount_micro or 0) if now else 0) - before.amount_micro,
        ),
    )


def cost_so_far(*, resource_id: UUID, at: datetime) -> Cost | None:
    """What one resource has cost until `at`, of all kinds; None where it never cost anything."""
    return costs_so_far([resource_id], at).get(resource_id)


def costs_so_far(resource_ids: Iterable[UUID], at: datetime) -> dict[UUID, Cost]:
    """{resource: its cost until `at`} of those that were ever charged: what was invoiced, and what is due."""
    segments = list(
        UsageSegment.objects.filter(resource_id__in=list(resource_ids), started_at__lte=at).select_related("customer")
    )
    by_customer: dict[Customer, list[UsageSegment]] = defaultdict(list)
    currencies: dict[UUID, str] = {}
    for segment in segments:
        by_customer[segment.customer].append(segment)
        currencies[segment.resource_id] = segment.customer.currency
    lines: dict[UUID, list[CostLine]] = defaultdict(list)
    for invoiced in InvoiceLine.objects.filter(segment__in=segments).values("resource_id", *INVOICED):
        resource_id = invoiced.pop("resource_id")
        lines[resource_id].append(CostLine(**invoiced, currency=currencies[resource_id]))
    for customer, own in by_customer.items():
        for due in due_lines(customer=customer, at=at, segments=own):
            lines[due.segment.resource_id].append(
                CostLine(
                    month=due.month,
                    from_at=due.line.from_at,
                    to_at=due.line.to_at,
                    hours=due.line.hours,
                    size_gb=due.segment.size_gb,
                    rate_micro=due.line.rate_micro,
                    amount_micro=due.line.amount_micro or 0,
                    kind=due.segment.kind,
                    currency=customer.currency,
                )
            )
    return {
        resource_id: Cost(
            hours=sum(line.hours for line in own),
            amount_micro=sum(line.amount_micro for line in own),
            currency=currency,
            lines=sorted(own, key=lambda line: (line.from_at, line.to_at)),
        )
        for resource_id, currency in currencies.items()
        for own in [lines[resource_id]]
    }


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a customer stands at an instant, in millionths: the ledger, and what no invoice has yet."""

    credits_micro: int
    owed_micro: int

    @property
    def balance_micro(self) -> int:
        return self.credits_micro - self.owed_micro


def with_ledger(customers: QuerySet[Customer], *, at: datetime) -> QuerySet[Customer]:
    """What a customer's standing at `at` follows from: the month and end of the last invoice, or without one the first use;
    `credits`: what the ledger says; `late`: some usage was reported for a month that had its invoice; `expiring`: free
    credits have expired, and the ledger does not say so yet.
    """
    invoices = Invoice.objects.filter(customer=OuterRef("pk")).order_by("-month")
    usage = UsageSegment.objects.filter(customer=OuterRef("pk"))
    first_use = usage.order_by().values("customer").annotate(first=Min("started_at")).values("first")
    wallet = WalletTransaction.objects.filter(customer=OuterRef("pk"), at__lte=at)
    signed = Case(When(target=WalletAccount.WALLET, then=F("amount_micro")), default=-F("amount_micro"))
    total = wallet.order_by().values("customer").annotate(total=Sum(signed)).values("total")
    return customers.annotate(
        last_month=Subquery(invoices.values("month")[:1]),
        last_until=Subquery(invoices.values("ends_at")[:1]),
        first_use=Case(When(last_month=None, then=Subquery(first_use)), default=None),
        credits=Subquery(total),
        late=Exists(usage.filter(late=True)),
        expiring=Exists(wallet.filter(expires_at__lte=at, expiry=None)),
    )


def open_windows(customers: Iterable[Any], at: datetime) -> list[bulk.CustomerWindow]:
    """The months of each, of with_ledger, that have no invoice yet, up to the one of `at`."""
    result = []
    for customer in customers:
        if customer.last_month:
            month, since = rating.next_month(customer.last_month), customer.last_until
        elif customer.first_use:
            month = rating.month_of(customer.first_use, customer.zone)
            since = rating.month_start(month, customer.zone)
        else:
            continue
        result += [
            bulk.CustomerWindow(
                customer_id=customer.pk, month=window.month, since=window.since, until=window.until, at=at
            )
            for window in rating.windows(month=month, since=since, at=at, zone=customer.zone)
            if window.since <= at
        ]
    return result


def standings(*, customers: QuerySet[Customer], at: datetime) -> dict[UUID, Standing]:
    """{customer: standing at `at`, which is not before the last invoice}. Two queries, and more for those with
    usage that was reported late or free credits that have just expired."""
    return standings_of(list(with_ledger(customers, at=at)), at=at)


def standings_of(found: Sequence[Any], *, at: datetime) -> dict[UUID, Standing]:
    """Of customers of with_ledger at the same instant. One query, and more as `standings` says."""
    sums = bulk.owed_by_customer(open_windows(found, at))
    result = {}
    for customer in found:
        owed_micro = sums.get(customer.pk, 0)
        if customer.late:
            owed_micro += sum(due.line.amount_micro or 0 for due in late_lines(customer=customer, at=at))
        result[customer.pk] = standing_of(customer, owed_micro=owed_micro, at=at)
    return result


def standing_of(customer: Any, *, owed_micro: int, at: datetime) -> Standing:
    """Of a customer of `with_ledger` at the same instant, of whom is known what is owed."""
    credits_micro = int(customer.credits or 0)
    if customer.expiring:
        credits_micro -= sum(amount for _grant, amount in expired_credits(customer=customer, at=at))
    return Standing(credits_micro=credits_micro, owed_micro=owed_micro)


def standing(*, customer: Customer, at: datetime) -> Standing:
    return standings(customers=Customer.objects.filter(pk=customer.pk), at=at)[customer.pk]


def owed(*, customer: Customer, at: datetime) -> int:
    """What no invoice has yet, as an invoice made at `at` would say it, in millionths."""
    return standing(customer=customer, at=at).owed_micro


# The wallet --------------------------------------------------------------------------------------------------------


def balance(*, customer: Customer, at: datetime) -> int:
    """What the customer has at the instant: the ledger less what is owed since the last invoice, in millionths."""
    return standing(customer=customer, at=at).balance_micro


def consumed(*, customer: Customer, at: datetime) -> int:
    """What everything the customer ever used has cost until `at`, recomputed from the usage, in millionths."""
    segments = list(UsageSegment.objects.filter(customer=customer, started_at__lte=at))
    if not segments:
        return 0
    prices = prices_by_place({segment.location_id for segment in segments})
    first = min(segment.started_at for segment in segments)
    ledger = Ledger(customer=customer, invoices=list(Invoice.objects.filter(customer=customer).order_by("month")))
    months = ledger.open_windows(first, at)
    if ledger.invoices:
        months = [*ledger.invoiced_windows(first), *months]
    return sum(
        line.amount_micro or 0
        for segment in segments
        for month in months
        if month.since <= at
        for line in rating.rate(
            segment.usage,
            since=month.since,
            until=month.until,
            at=at,
            prices=prices.get((segment.kind, segment.location_id), []),
        )
    )


def expired_credits(*, customer: Customer, at: datetime) -> list[tuple[WalletTransaction, int]]:
    """What was left of each grant when it expired, of those that expired until `at` and are not recorded so yet.

    Credits that expire sooner are used up first, those that never expire last; what could not be covered when it was
    used is covered by the credits that come next.
    """
    moves = list(WalletTransaction.objects.filter(customer=customer, at__lte=at).order_by("at", "created_at", "id"))
    recorded = {move.grant_id for move in moves if move.grant_id}
    grants = {move.pk: (move.expires_at, move) for move in moves if move.expires_at}
    events = [(move.at, 1, move) for move in moves if move.invoice_id is None and move.grant_id is None]
    events += [(expires_at, 0, grant) for expires_at, grant in grants.values() if expires_at <= at]
    left: dict[UUID, int] = {}  # in the order in which they are used up
    found, before, uncovered = [], 0, 0
    for when, is_move, move in sorted(events, key=lambda event: event[:2]):
        until_now = consumed(customer=customer, at=when)
        uncovered += until_now - before
        before = until_now
        for pk in left:
            used = min(left[pk], uncovered)
            left[pk] -= used
            uncovered -= used
        if not is_move:
            rest = left.pop(move.pk)
            if rest and move.pk not in recorded:
                found.append((move, rest))
        elif move.wallet_micro < 0:
            uncovered -= move.wallet_micro
        else:
            left[move.pk] = move.wallet_micro
            never = datetime.max.replace(tzinfo=UTC)
            left = dict(sorted(left.items(), key=lambda item: grants[item[0]][0] if item[0] in grants else never))
    return found


def hourly_total(*, customer: Customer, at: datetime) -> int:
    """What everything that the customer has costs an hour at the instant, in millionths. One query."""
    return hourly_totals(customers=[customer], at=at).get(customer.pk, 0)


@dataclass(frozen=True, kw_only=True)
class Lasting:
    """For how long the credits last at the present cost, and with a new thing; None where nothing uses them up."""

    balance_micro: int
    now: timedelta | None
    then: timedelta | None


def lasts_for(*, customer: Customer, at: datetime, extra_hourly_micro: int = 0) -> Lasting:
    left = balance(customer=customer, at=at)
    hourly = hourly_total(customer=customer, at=at)

    def lasting(hourly_micro: int) -> timedelta | None:
        # Large credits at a tiny price last longer than a timedelta can hold.
        return min(max(0, left) // hourly_micro, timedelta.max // rating.HOUR) * rating.HOUR if hourly_micro else None

    return Lasting(balance_micro=left, now=lasting(hourly), then=lasting(hourly + extra_hourly_micro))


def require_cover(*, customer: Customer, hourly_micro: int, at: datetime, reserved_micro: int = 0) -> None:
    """A prepaid wallet must cover the first hour of a new thing, and `reserved_micro` of what is being made already.

    Call it after `lock_customer` in the same transaction, else two requests could both see the same credits. Raises
    InsufficientCredit.
    """
    if customer.billing_type != BillingType.PREPAID:
        return
    left = balance(customer=customer, at=at)
    missing = hourly_micro + reserved_micro - left
    if missing > 0:
        raise InsufficientCredit(missing_micro=missing, balance_micro=left, currency=customer.currency)


SIDES = {
    TransactionKind.BOUGHT: (WalletAccount.PURCHASES, WalletAccount.WALLET),
    TransactionKind.GRANTED: (WalletAccount.GRANTS, WalletAccount.WALLET),
    TransactionKind.REFUNDED: (WalletAccount.CONSUMPTION, WalletAccount.WALLET),
    TransactionKind.SPENT: (WalletAccount.WALLET, WalletAccount.CONSUMPTION),
    TransactionKind.EXPIRED: (WalletAccount.WALLET, WalletAccount.GRANTS),
}


@transaction.atomic
def _record(
    *,
    customer: Customer,
    kind: str,
    amount_micro: int,
    reason: str,
    by: User | None,
    key: str,
    at: datetime | None,
    expires_at: datetime | None = None,
    sides: tuple[str, str] | None = None,
) -> WalletTransaction:
    """Write a transaction, or return the one that was written under the key. Raises Refused, ValidationError."""
    lock_customer(customer.pk)
    source, target = sides or SIDES[TransactionKind(kind)]
    given = {"customer_id": customer.pk, "kind": kind, "source": source, "target": target, "amount_micro": amount_micro}
    written = WalletTransaction.objects.filter(key=key).first()
    if written is not None:
        if any(getattr(written, name) != value for name, value in given.items()):
            raise Refused(_("Another transaction has been recorded under this key. Reload the page and try again."))
        return written
    if not 0 < amount_micro <= MAX_AMOUNT_MICRO or amount_micro % money.HUNDREDTH_MICRO:
        raise Refused(_("An amount is at least 0.01, and has no more than two decimals."))
    if not reason.strip():
        raise Refused(_("Give a reason: it is kept with the transaction."))
    at = at or timezone.now()
    if expires_at is not None and expires_at <= at:
        raise Refused(_("Credits expire in the future."))
    if by is not None:
        amount = {kind: money.format_amount(amount_micro, customer.currency), "reason": reason.strip()}
        activity.record(act="wallet.move", actor=by, thing=customer, after=amount)
    return WalletTransaction.objects.create(
        **given, key=key, reason=reason.strip(), by=by, expires_at=expires_at, at=at
    )


def grant_credits(
    *,
    customer: Customer,
    amount_micro: int,
    reason: str,
    by: User | None,
    key: str,
    expires_at: datetime | None = None,
    at: datetime | None = None,
) -> WalletTransaction:
    """Free credits. A second call with the key changes nothing. Raises Refused."""
    return _record(
        customer=customer,
        kind=TransactionKind.GRANTED,
        amount_micro=amount_micro,
        reason=reason,
        by=by,
        key=key,
        at=at,
        expires_at=expires_at,
    )


def buy_credits(
    *, customer: Customer, amount_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Credits that were paid for. A second call with the key changes nothing. Raises Refused."""
    return _record(
        customer=customer, kind=TransactionKind.BOUGHT, amount_micro=amount_micro, reason=reason, by=by, key=key, at=at
    )


@transaction.atomic
def refund_credits(
    *, customer: Customer, amount_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Give back what was charged, at most all of it. A second call with the key changes nothing. Raises Refused."""
    lock_customer(customer.pk)
    if not WalletTransaction.objects.filter(key=key).exists():
        # what corrects an invoice is a refund too, and is part of what was consumed already
        refunds = WalletTransaction.objects.filter(customer=customer, kind=TransactionKind.REFUNDED, invoice=None)
        refunded_micro = refunds.aggregate(total=Sum("amount_micro", default=0))["total"]
        charged_micro = consumed(customer=customer, at=at or timezone.now()) - int(refunded_micro)
        if amount_micro > charged_micro:
            raise Refused(
                _("Only %(amount)s has been charged and not refunded yet. Refund no more than that, or grant credits.")
                % {"amount": money.format_amount(charged_micro, customer.currency)}
            )
    return _record(
        customer=customer,
        kind=TransactionKind.REFUNDED,
        amount_micro=amount_micro,
        reason=reason,
        by=by,
        key=key,
        at=at,
    )


def correct_credits(
    *, customer: Customer, change_micro: int, reason: str, by: User | None, key: str, at: datetime | None = None
) -> WalletTransaction:
    """Add to the wallet or, with a negative change, take from it: a mistake is made good by another transaction.

    A second call with the key changes nothing. Raises Refused.
    """
    sides = (WalletAccount.CORRECTIONS, WalletAccount.WALLET)
    return _record(
        customer=customer,
        kind=TransactionKind.CORRECTED,
        amount_micro=abs(change_micro),
        reason=reason,
        by=by,
        key=key,
        at=at,
        sides=sides if change_micro > 0 else sides[::-1],
    )


def expire_credits(*, at: datetime) -> int:
    """Record what was left of the free credits that have expired. Returns how many. Repeating it changes nothing."""
    pending = WalletTransaction.objects.filter(expires_at__lte=at, expiry=None).values("customer").distinct()
    recorded = 0
    for customer in Customer.objects.filter(pk__in=pending):
        try:
            recorded += _expire_credits(customer, at)
        except Exception:
            logger.exception("credits.expiry_failed customer=%s", customer.crn)
    return recorded


@transaction.atomic
def _expire_credits(customer: Customer, at: datetime) -> int:
    lock_customer(customer.pk)
    expired = expired_credits(customer=customer, at=at)
    for grant, amount_micro in expired:
        WalletTransaction.objects.create(
            customer=customer,
            kind=TransactionKind.EXPIRED,
            source=WalletAccount.WALLET,
            target=WalletAccount.GRANTS,
            amount_micro=amount_micro,
            key=f"expired:{grant.pk}",
            reason=_("Free credits expired"),
            grant=grant,
            at=grant.expires_at,
        )
    return len(expired)


# Low balance -------------------------------------------------------------------------------------------------------

LOW_BALANCE_HOURS = 72  # warned when the credits last for less than three days at the present cost
PAGE = 500


def hourly_totals(*, customers: Iterable[Customer], at: datetime) -> dict[UUID, int]:
    """{customer: what everything the customer has costs an hour at `at`, in millionths}. One query."""
    totals: dict[UUID, int] = defaultdict(int)
    for customer_id, _kind, _code, gb, base_micro, rate_micro in (
        running(at)
        .filter(customer__in=customers)
        .values_list("customer_id", "kind", "location_id", "gb", "base", "rate")
    ):
        totals[customer_id] += hourly_of(gb, base_micro, rate_micro)
    return totals


def running(at: datetime) -> QuerySet[Any, Any]:
    """What is being charged at the instant, for each customer, kind and location: `gb`; for automatic backups `base`, the
    hourly prices of their machines; and `rate`, what a GB costs there, None without a price.
    """
    usage = UsageSegment.objects.filter(ended_at=None, started_at__lte=at).order_by()
    versions = PriceVersion.objects.filter(
        package__kind=OuterRef("kind"), package__location=OuterRef("location_id"), starts_at__lte=at
    ).order_by("-starts_at", "-id")
    return usage.values("customer_id", "kind", "location_id").annotate(
        gb=Sum("size_gb"), base=Sum("base_rate_micro"), rate=Subquery(versions.values("rate_micro")[:1])
    )


def hourly_of(gb: int, base_micro: int | None, rate_micro: int | None) -> int:
    """What a row of `running` costs an hour, in millionths."""
    if base_micro is not None:
        return rating.hourly_micro(rate_micro=int(base_micro), size_gb=None)
    return int(gb) * (rate_micro or 0)


def warn_low_balances(*, at: datetime) -> int:
    """Tell the owners of prepaid customers whose credits run low, once until they have recovered. Returns how many."""
    warned = 0
    using = UsageSegment.objects.filter(ended_at=None).values("customer")
    ids = list(
        Customer.objects.filter(billing_type=BillingType.PREPAID)
        .filter(Q(pk__in=using) | Q(warnings__recovered_at=None, warnings__isnull=False))
        .distinct()
        .values_list("pk", flat=True)
    )
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        try:
            warned += _warn_page(page, at=at)
        except Exception:
            logger.exception("low_balance.page_failed customers=%s", len(page))
            for pk in page:
                try:
                    warned += _warn_page([pk], at=at)
                except Exception:
                    logger.exception("low_balance.check_failed customer=%s", pk)
    return warned


def _warn_page(ids: Sequence[UUID], *, at: datetime) -> int:
    page = Customer.objects.filter(pk__in=ids)
    now, hourly = standings(customers=page, at=at), hourly_totals(customers=page, at=at)
    open_warnings = LowBalanceWarning.objects.filter(customer__in=page, recovered_at=None)
    already_warned = set(open_warnings.values_list("customer_id", flat=True))
    low = {pk for pk, one in now.items() if one.balance_micro < hourly.get(pk, 0) * LOW_BALANCE_HOURS}
    open_warnings.exclude(customer__in=low).update(recovered_at=at)
    return sum(
        _warn(customer, balance_micro=now[customer.pk].balance_micro, hourly_micro=hourly[customer.pk], at=at)
        for customer in page
        if customer.pk in low - already_warned
    )


def _warn(customer: Customer, *, balance_micro: int, hourly_micro: int, at: datetime) -> bool:
    with transaction.atomic():
        lock_customer(customer.pk)
        warning, is_new = LowBalanceWarning.objects.get_or_create(
            customer=customer,
            recovered_at=None,
            defaults={"balance_micro": balance_micro, "hourly_micro": hourly_micro, "warned_at": at},
        )
        if not is_new:  # another scheduler was quicker
            return False

        def message() -> tuple[str, str]:
            text = _(
                "%(customer)s has %(balance)s of infra credits left, and what it uses costs %(hourly)s an hour. "
                "When the credits are used up, nothing is deleted, but nothing new can be created. Add infra credits, or "
                "delete what you no longer need."
            ) % {
                "customer": customer,
                "balance": money.format_amount(balance_micro, customer.currency),
                "hourly": money.format_price_or_amount(hourly_micro, customer.currency),
            }
            return _("Your infra credits run low"), text

        notify(
            users=customer_owners(customer),
            key=f"low-balance-{warning.pk}",
            level=Notification.Level.WARNING,
            message=message,
            url=reverse("billing:credits"),
        )
    return True


def low_balance_warning(*, customer: Customer) -> LowBalanceWarning | None:
    """The warning that the customer has been given and not recovered from."""
    return LowBalanceWarning.objects.filter(customer=customer, recovered_at=None).first()
