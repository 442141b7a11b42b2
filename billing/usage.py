"""Usage segments: start and stop charging resources, and the hourly cost of running usage."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Max, QuerySet, Sum
from django.utils import timezone

from cng_portal.accounts.models import Customer, Project
from cng_portal.accounts.services import lock_customer
from cng_portal.inventory.models import Location

from . import rating
from .models import Invoice, ServiceKind, UsageSegment
from .pricing.prices import PriceList


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
    last = _charged_segments(resource_id, kind).first()
    if last and (last.ended_at is None or (base_rate_micro is None and (at <= last.started_at or at < last.ended_at))):
        return last
    return _create_segment(
        resource_id=resource_id,
        kind=kind,
        name=name,
        project=project,
        location=location,
        size_gb=size_gb,
        base_rate_micro=base_rate_micro,
        at=at,
    )


def _charged_segments(resource_id: UUID, kind: str) -> QuerySet[UsageSegment]:
    """Return the resource's segments without voided ones, the latest first."""
    return UsageSegment.objects.filter(resource_id=resource_id, kind=kind, voided=False).order_by("-started_at")


def _create_segment(
    *,
    resource_id: UUID,
    kind: str,
    name: str,
    project: Project,
    location: Location,
    size_gb: int,
    base_rate_micro: int | None,
    at: datetime,
) -> UsageSegment:
    last = _charged_segments(resource_id, kind).first()
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

    A segment that is closed before it starts is voided if it would have started after a paid hour, or if it is of automatic
    backups, whose start is announced.
    """
    segment = UsageSegment.objects.filter(resource_id=resource_id, kind=kind, ended_at=None).first()
    if segment is None:
        return False
    lock_customer(segment.customer_id)
    before = _charged_segments(resource_id, kind).exclude(pk=segment.pk).first()
    is_paid = bool(before and before.paid_until and at < before.paid_until)
    is_announced = kind == ServiceKind.VM_BACKUP_AUTOMATIC
    # The clocks of two machines may differ; the first hour of anything else is charged in any case.
    end = max(at, segment.started_at)
    changed = UsageSegment.objects.filter(pk=segment.pk, ended_at=None).update(
        ended_at=end,
        end_recorded_at=timezone.now(),
        voided=at < segment.started_at and (is_paid or is_announced),
        backdated=segment.backdated or _is_backdated(segment.customer_id, end),
    )
    return changed == 1


@transaction.atomic
def charge_gap(
    *,
    resource_id: UUID,
    kind: str,
    name: str,
    gap_name: str,
    project: Project,
    location: Location,
    size_gb: int,
    at: datetime,
) -> UsageSegment | None:
    """Charge the resource again as if its last usage had not ended, and return the segment that is open from then on.

    The hours from the end of the paid ones until `at` become a segment of their own, named `gap_name`, unless `at` is inside
    a paid hour. No hour is paid twice or left out. Returns None if nothing was charged before; while a segment is open,
    returns that.
    """
    lock_customer(project.customer_id)
    last = _charged_segments(resource_id, kind).first()
    if last is None or last.paid_until is None:
        return last
    fields: dict[str, Any] = {"project": project, "location": location, "size_gb": size_gb, "base_rate_micro": None}
    if at > last.paid_until:
        _create_segment(resource_id=resource_id, kind=kind, name=gap_name, at=last.paid_until, **fields)
        close_segment(resource_id=resource_id, kind=kind, at=at)
    return _create_segment(resource_id=resource_id, kind=kind, name=name, at=at, **fields)


@transaction.atomic
def change_usage(
    *,
    resource_id: UUID,
    kind: str,
    at: datetime,
    project: Project | None = None,
    size_gb: int | None = None,
    base_rate_micro: int | None = None,
) -> UsageSegment | None:
    """Charge the resource with a new project, size, or VM's hourly price from the next unpaid hour on.

    The hour that `at` lies in stays as it was paid. A change made before an earlier one began takes its place. Returns the
    segment from then on, which is the present one where nothing changes; None if the resource isn't charged. Raises
    ValueError for a project of another customer.
    """
    customers = UsageSegment.objects.filter(resource_id=resource_id, kind=kind, ended_at=None)
    customer_id = customers.values_list("customer_id", flat=True).first()
    if customer_id is None:
        return None
    if project and project.customer_id != customer_id:
        raise ValueError("Usage stays with its customer: close the segment, and open one for the other customer.")
    lock_customer(customer_id)
    segment = customers.select_related("project", "location").first()
    if segment is None:
        return None
    project = project or segment.project
    size_gb = segment.size_gb if size_gb is None else size_gb
    base_rate_micro = segment.base_rate_micro if base_rate_micro is None else base_rate_micro
    if (project.pk, size_gb, base_rate_micro) == (segment.project_id, segment.size_gb, segment.base_rate_micro):
        return segment
    close_segment(resource_id=resource_id, kind=kind, at=at)
    return _create_segment(
        resource_id=resource_id,
        kind=kind,
        name=segment.resource_name,
        project=project,
        location=segment.location,
        size_gb=size_gb,
        base_rate_micro=base_rate_micro,
        at=max(at, segment.started_at),
    )


def running_usage(*, location_code: str, kinds: Iterable[str]) -> QuerySet[UsageSegment]:
    """Return the open segments of these kinds in the location."""
    return UsageSegment.objects.filter(location_id=location_code, kind__in=list(kinds), ended_at=None)


def rename_resource(*, resource_id: UUID, name: str) -> int:
    """Rename the resource on its open segments; closed ones keep their name. Returns how many changed."""
    return UsageSegment.objects.filter(resource_id=resource_id, ended_at=None).update(resource_name=name)


@dataclass(frozen=True, kw_only=True)
class RunningUsage:
    """A customer's running usage of one kind in one location. `hourly_micro` is its cost an hour."""

    customer_id: UUID
    kind: str
    count: int
    size_gb: int
    hourly_micro: int


def running_usage_of(customers: Iterable[Customer] | QuerySet[Customer], *, at: datetime) -> list[RunningUsage]:
    """Sum up the usage that runs in the hour from `at` on, by customer, kind and location. Two queries.

    Includes changed usage, which continues under its new terms when the paid hour ends.
    """
    running = UsageSegment.objects.filter(customer__in=customers, ended_at=None, started_at__lt=at + rating.HOUR)
    running = running.order_by()
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
