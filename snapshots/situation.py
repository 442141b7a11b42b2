"""What the checks before a new snapshot need to know of prices, account and volumes: asked at once, in one query."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db.models import BigIntegerField, Case, CharField, Count, DateTimeField, F, Q, QuerySet, Sum, Value, When
from django.db.models.functions import Cast, Coalesce

from billing import services as billing
from billing.models import PriceVersion
from cng_portal.accounts.models import UNLIMITED, BillingType, Customer, Project
from cng_portal.accounts.prepared import Given, prepared
from cng_portal.common.names import fold_name
from cng_portal.inventory.models import Volume

from . import limits
from .models import SERVICE_KINDS, BackupSchedule, Kind, Operation, OperationQuerySet, Snapshot, State


@dataclass(frozen=True)
class Situation:
    """As it was at the instant `at`. Who writes asks after `lock_customer`, in the same transaction."""

    at: datetime
    customer: Customer
    prices: billing.PricesByPlace
    used: dict[UUID, tuple[int, int]]  # {project: (count, GB)} of what takes up quota; nothing where nothing is limited
    waiting: dict[tuple[str, str], int]  # {(service kind, location): GB} of what is charged once it is Ready
    is_written: bool  # something writes to one of the volumes
    is_captured: bool  # a snapshot or backup of one of the volumes is being taken
    asked: int  # how many snapshots the account has asked for within the hour
    is_taken: bool  # a snapshot of the account has the name
    ledger: dict[str, Any]  # billing.LEDGER of who pays in advance

    def is_sold(self, kind: str, location_code: str) -> bool:
        price = billing.price_at(self.prices.get((SERVICE_KINDS[Kind(kind)], location_code), []), self.at)
        return price is not None and price.is_sold

    @cached_property
    def balance_micro(self) -> int | None:
        """What is left of the credits; None of who pays afterwards. One query."""
        if not self.ledger:
            return None
        for name, value in self.ledger.items():
            setattr(self.customer, name, value)
        standing = billing.standings_of([self.customer], at=self.at)[self.customer.pk]
        self.customer.standing = standing  # for the top bar
        return standing.balance_micro


def situation_of(project: Project, volumes: Iterable[Volume], *, at: datetime, name: str = "") -> Situation:
    """Before these volumes are captured for the project, under that name where there is one. One query."""
    volumes, customer = list(volumes), project.customer
    found: dict[str, list[list[Any]]] = defaultdict(list)
    for what, *row in _rows(
        customer.pk,
        at if customer.billing_type == BillingType.PREPAID else None,
        limits.since(at),
        [volume.pk for volume in volumes],
        sorted({volume.vm_id for volume in volumes if volume.vm_id}),
        Given(fold_name(name)) if name else None,
        is_limited=is_limited(project),
    ):
        found[what].append(row)
    return Situation(
        at=at,
        customer=customer,
        prices=billing.by_place(
            (kind, place, since, int(rate_micro), int(pk), is_sold)
            for kind, place, rate_micro, pk, is_sold, since, _also in found["price"]
        ),
        used={UUID(place): (int(count), int(gb)) for _sort, place, count, gb, *_ in found["used"]},
        waiting={(SERVICE_KINDS[Kind(kind)], place): int(gb) for kind, place, gb, *_ in found["waiting"]},
        is_written=bool(found["writer"]),
        is_captured=bool(found["captured"]),
        asked=sum(int(count) for _sort, _place, count, *_ in found["asked"]),
        is_taken=bool(found["name"]),
        ledger=next(
            (
                {
                    "last_month": date.fromisoformat(month) if month else None,
                    "last_until": last_until,
                    "first_use": first_use,
                    "credits": credits,
                    "late": bool(late),
                    "expiring": bool(expiring),
                }
                for month, _place, credits, late, expiring, last_until, first_use in found["ledger"]
            ),
            {},
        ),
    )


def is_limited(project: Project) -> bool:
    owners = (project.customer, project)
    return any(quota != UNLIMITED for one in owners for quota in (one.snapshot_quota, one.snapshot_gb_quota))


def writers(volumes: list[UUID], machines: list[UUID]) -> OperationQuerySet:
    """The operations that write to any of these volumes now, or to the machines that they are of."""
    return Operation.objects.active().filter(
        Q(volume__in=volumes) | Q(vm__in=machines) | Q(vm__isnull=False, snapshot__disks__volume__in=volumes)
    )


def being_taken(volumes: list[UUID]) -> QuerySet[Snapshot]:
    """The snapshots and backups of any of these volumes that are being taken now."""
    return Snapshot.objects.filter(
        disks__volume__in=volumes, deleted_at=None, state__in=[State.PENDING, State.CREATING]
    )


# --- the query -----------------------------------------------------------------------------------------------------------

COLUMNS = ("what", "sort", "place", "one", "two", "three", "at", "also")
TEXT, NUMBER, TIME = Value(""), Value(0, output_field=BigIntegerField()), Cast(Value(None), DateTimeField())
EMPTY = {"one": NUMBER, "two": NUMBER, "three": NUMBER, "at": TIME, "also": TIME}


@prepared(skewed=True)
def _rows(
    customer: UUID,
    credits_at: datetime | None,
    since: datetime,
    volumes: list[UUID],
    machines: list[UUID],
    name: Given | None,
    *,
    is_limited: bool,
) -> QuerySet[Any, tuple[Any, ...]]:
    mine = Snapshot.objects.filter(customer=customer, deleted_at=None)
    parts = [
        _part(
            "price",
            PriceVersion.objects.all(),
            sort=F("package__kind"),
            place=F("package__location_id"),
            one=F("rate_micro"),
            two=F("id"),
            three=_flag(package__active=True),
            at=F("starts_at"),
        ),
        _part("writer", writers(volumes, machines), sort=F("kind"), one=Count("*")),
        _part("captured", being_taken(volumes), sort=F("kind"), one=Count("*")),
        _part("asked", limits.asked(customer, Operation.Kind.CAPTURE, since), sort=F("kind"), one=Count("*")),
    ]
    if name:
        parts.append(_part("name", mine.filter(name_key=name)))
    if is_limited:
        # with the kind an index has all of it
        counted = mine.filter(kind__in=Kind.values).counted()
        project = Cast("project_id", CharField())
        parts.append(_part("used", counted, place=project, one=Count("*"), two=Sum("size_gb")))
    if credits_at:
        # the copies of automatic backups are not charged per GB
        waiting = mine.filter(state__in=[State.PENDING, State.CREATING]).exclude(
            run__schedule__origin=BackupSchedule.Origin.AUTOMATIC
        )
        ledger = billing.with_ledger(Customer.objects.filter(pk=customer), at=credits_at)
        parts += [
            _part("waiting", waiting, sort=F("kind"), place=F("location_id"), one=Sum("size_gb")),
            _part(
                "ledger",
                ledger,
                sort=Coalesce(Cast("last_month", CharField()), Value("")),
                one=Coalesce("credits", NUMBER),
                two=_flag(late=True),
                three=_flag(expiring=True),
                at=F("last_until"),
                also=F("first_use"),
            ),
        ]
    return parts[0].union(*parts[1:], all=True)


def _flag(**condition: Any) -> Case:
    return Case(When(**condition, then=1), default=0, output_field=BigIntegerField())


def _part(
    what: str, found: QuerySet[Any], *, sort: Any = TEXT, place: Any = TEXT, **numbers: Any
) -> QuerySet[Any, tuple[Any, ...]]:
    """Rows of COLUMNS, one for each `sort` and `place` where the numbers are sums."""
    keys = {"what": Value(what), "sort": sort, "place": place}
    return found.order_by().values(**keys).annotate(**(EMPTY | numbers)).values_list(*COLUMNS)
