"""Usage segments: start and stop charging resources, and the hourly cost of running usage."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Max, QuerySet, Sum
from django.utils import timezone

from cng_portal.accounts.models import Customer, Project
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Location

from . import rating
from .models import Invoice, ServiceKind, UsageSegment
from .prices import PriceList


def closed_until(customer_id: UUID) -> datetime | None:
    """Return the end of the customer's last invoiced month; None without an invoice. One query."""
    return Invoice.objects.filter(customer_id=customer_id).aggregate(last=Max("ends_at"))["last"]


def _is_backdated(customer_id: UUID, at: datetime) -> bool:
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
    """Start charging the resource at `at`, and return its segment. Calling it again returns the same one.

    A segment charged per GB that ended after `at` is returned as well: this is then a late retry of the call that opened
    it. A segment that would start inside an hour that is already paid starts where that hour ends: automatic backups that
    are switched on again, or a clock that was set back. No hour is paid twice.
    """
    lock_customer(project.customer_id)  # so that the month can't be closed without this segment
    charged = UsageSegment.objects.filter(resource_id=resource_id, kind=kind, voided=False)
    last = charged.order_by("-started_at").first()
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
        backdated=_is_backdated(project.customer_id, at),
    )


@transaction.atomic
def close_segment(*, resource_id: UUID, kind: str, at: datetime) -> bool:
    """Stop charging the resource at `at`. Returns False if no segment was open, so that a retry changes nothing.

    A segment of automatic backups that starts where a paid hour ends, and is closed before, is voided.
    """
    segment = UsageSegment.objects.filter(resource_id=resource_id, kind=kind, ended_at=None).first()
    if segment is None:
        return False
    lock_customer(segment.customer_id)
    # The clocks of two machines may differ; the first hour is charged in any case.
    end = max(at, segment.started_at)
    changed = UsageSegment.objects.filter(pk=segment.pk, ended_at=None).update(
        ended_at=end,
        end_recorded_at=timezone.now(),
        voided=segment.base_rate_micro is not None and at < segment.started_at,
        backdated=segment.backdated or _is_backdated(segment.customer_id, end),
    )
    return changed == 1


@transaction.atomic
def change_base_rate(*, resource_id: UUID, base_rate_micro: int, at: datetime) -> UsageSegment | None:
    """Charge the VM's automatic backups by its new hourly price from the next unpaid hour on.

    Returns the segment from then on; None if automatic backups are off.
    """
    kind = ServiceKind.VM_BACKUP_AUTOMATIC
    segment = (
        UsageSegment.objects.select_related("project", "location")
        .filter(resource_id=resource_id, kind=kind, ended_at=None)
        .first()
    )
    if segment is None or segment.base_rate_micro == base_rate_micro:
        return segment
    starts_at = segment.started_at
    is_voided = close_segment(resource_id=resource_id, kind=kind, at=at) and at < starts_at
    return open_segment(
        resource_id=resource_id,
        kind=kind,
        name=segment.resource_name,
        project=segment.project,
        location=segment.location,
        at=starts_at if is_voided else at,
        base_rate_micro=base_rate_micro,
    )


def running_usage(*, location_code: str, kinds: Iterable[str]) -> QuerySet[UsageSegment]:
    """Return the open segments of these kinds in the location."""
    return UsageSegment.objects.filter(location_id=location_code, kind__in=list(kinds), ended_at=None)


def rename_resource(*, resource_id: UUID, name: str) -> int:
    """Rename the resource on its open segments; closed ones keep their name. Returns how many changed."""
    return UsageSegment.objects.filter(resource_id=resource_id, ended_at=None).update(resource_name=name)


@dataclass(frozen=True, kw_only=True)
class RunningUsage:
    """A customer's running usage at an instant, of one kind in one location. `hourly_micro` is its cost an hour."""

    customer_id: UUID
    kind: str
    count: int
    size_gb: int
    hourly_micro: int


def running_usage_of(customers: Iterable[Customer] | QuerySet[Customer], *, at: datetime) -> list[RunningUsage]:
    """Sum up the customers' running usage at the instant, by customer, kind and location. Two queries."""
    running = UsageSegment.objects.filter(customer__in=customers, ended_at=None, started_at__lte=at).order_by()
    sums = running.values_list("customer_id", "customer__currency", "kind", "location_id").annotate(
        count=Count("*"), size_gb=Sum("size_gb"), base_rate_micro=Sum("base_rate_micro")
    )
    prices = PriceList.load() if sums else PriceList({})
    return [
        RunningUsage(
            customer_id=customer_id,
            kind=kind,
            count=count,
            size_gb=int(size_gb),
            hourly_micro=rating.hourly_micro(rate_micro=int(base_rate_micro), size_gb=None)
            if kind == ServiceKind.VM_BACKUP_AUTOMATIC
            else prices.hourly_micro(kind, location, currency, at, size_gb=int(size_gb)),
        )
        for customer_id, currency, kind, location, count, size_gb, base_rate_micro in sums
    ]


def hourly_costs(customers: Iterable[Customer] | QuerySet[Customer], *, at: datetime) -> dict[UUID, int]:
    """Return {customer: cost of an hour of everything charged at the instant, in millionths}. Two queries."""
    costs: dict[UUID, int] = defaultdict(int)
    for usage in running_usage_of(customers, at=at):
        costs[usage.customer_id] += usage.hourly_micro
    return costs


def hourly_cost(*, customer: Customer, at: datetime) -> int:
    """Return the cost of an hour of everything the customer is charged for, in millionths. Two queries."""
    return hourly_costs([customer], at=at).get(customer.pk, 0)
