"""The dashboard: failures, active operations, unprotected volumes, next backups, newest snapshots and costs."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.contrib.humanize.templatetags.humanize import intcomma
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from billing import rating
from billing.access import billed_customer
from billing.models import ServiceKind, UsageSegment
from billing.pricing.prices import PriceList
from billing.summary import build_summary
from cng_portal.accounts.models import Customer, User
from cng_portal.common.money import DEFAULT_CURRENCY, format_amount, format_price
from cng_portal.common.optional import optional
from cng_portal.common.templatetags.portal import month as format_month
from cng_portal.common.templatetags.portal import poll_seconds
from cng_portal.inventory.models import Volume
from snapshots import lists, protection
from snapshots.drills.proof import last_proven_at
from snapshots.models import (
    SERVICE_KINDS,
    BackupSchedule,
    Drill,
    Kind,
    Operation,
    Snapshot,
    State,
    costs_nothing,
)
from snapshots.storage.contract import NOT_PROVEN, Corrupt

from .common import explain_empty, render_live, version_of
from .rows import build_operation_rows, build_rows, listed_with_runs, newest_operations

NEWEST_SHOWN = 5
UNPROTECTED_SHOWN = 5
TROUBLED_SHOWN = 3
NEXT_SHOWN = 4
OPERATIONS_SHOWN = 10
# Earlier failures are in the lists, under the filter by state.
FAILED_WITHIN = timedelta(days=30)


@require_GET
def dashboard(request: HttpRequest) -> HttpResponse:
    user = request.user
    operations = newest_operations(
        Operation.objects.visible_to(user).active().foreground(),
        still_failed(user, since=timezone.now() - FAILED_WITHIN),
        limit=OPERATIONS_SHOWN,
    )
    rows = build_operation_rows(operations, user)
    running = [replace(row, can_cancel=False) for row in rows if row.operation.is_active]
    failed = [row for row in rows if not row.operation.is_active]
    newest = newest_snapshots(user)
    schedules = BackupSchedule.objects.visible_to(user).present().select_related("vm", "volume")
    volumes = Volume.objects.visible_to(user).present().filter(state=Volume.State.AVAILABLE)
    all_unprotected = volumes.filter(protection.UNPROTECTED)
    unprotected = list(all_unprotected.select_related("vm").order_by("name", "pk")[: UNPROTECTED_SHOWN + 1])
    prices = PriceList.load()
    context = {
        **totals_of(user, prices),
        "unprotected": [(volume, user.can_change(volume.project_id)) for volume in unprotected[:UNPROTECTED_SHOWN]],
        "unprotected_count": len(unprotected) if len(unprotected) <= UNPROTECTED_SHOWN else all_unprotected.count(),
        "has_volumes": bool(newest) or volumes.exists(),
        "troubled": list(lists.troubled(schedules).order_by("-last_scheduled_at")[:TROUBLED_SHOWN]),
        "next_backups": list(schedules.filter(next_run_at__isnull=False).order_by("next_run_at", "pk")[:NEXT_SHOWN]),
        "proven_at": last_proven_at(Drill.objects.visible_to(user)),
        "spending": optional("spending", lambda: spending_of(billed_customer(user)), None),
        "running": running,
        "failed": failed,
        "rows": build_rows(newest, user, prices),
        "is_live": bool(running),
        "poll_seconds": poll_seconds(operations),
        "can_take": bool(user.changeable_project_ids),
        "has_projects": bool(user.roles),
    }
    if not newest:
        context |= explain_empty(Snapshot.objects.visible_to(user))
    version = version_of(
        [row.operation.pk for row in running],
        [row.operation.pk for row in failed],
        [(snapshot.pk, snapshot.state) for snapshot in newest],
    )
    return render_live(request, "dashboard.html", context, part="dashboard", poll="running", version=version)


def newest_snapshots(user: User) -> list[Snapshot]:
    visible = listed_with_runs().visible_to(user).filter(deleted_at=None).order_by("-created_at", "-pk")
    # One query per kind, in the order of the index snapshot_by_age.
    newest = [snapshot for kind in Kind for snapshot in visible.filter(kind=kind)[:NEWEST_SHOWN]]
    return sorted(newest, key=lambda snapshot: (snapshot.created_at, snapshot.pk), reverse=True)[:NEWEST_SHOWN]


def totals_of(user: User, prices: PriceList) -> dict[str, object]:
    """Return the totals to display: number and size of snapshots and backups, and the price an hour and a month.

    The price includes that of volumes.
    """
    count = gb = 0
    now = timezone.now()
    currency = user.customer.currency if user.customer else DEFAULT_CURRENCY
    hourly_micro = 0
    for kind, code, number, size_gb, charged_gb in snapshot_sums(user):
        count, gb = count + number, gb + size_gb
        hourly_micro += prices.hourly_micro(SERVICE_KINDS[Kind(kind)], code, currency, now, size_gb=charged_gb)
    for service, code, size_gb, base_rate_micro in other_sums(user):
        if service == ServiceKind.BLOCK_STORAGE:
            hourly_micro += prices.hourly_micro(service, code, currency, now, size_gb=size_gb)
        else:
            hourly_micro += rating.hourly_micro(rate_micro=base_rate_micro, size_gb=None)
    monthly_micro = hourly_micro * rating.HOURS_PER_MONTH
    return {
        "totals": {
            "count": intcomma(count),
            "size": _("%(gb)s GB") % {"gb": intcomma(gb)},
            "hourly": format_price(hourly_micro, currency),
            "monthly": _("About %(amount)s a month") % {"amount": format_amount(monthly_micro, currency)},
        },
    }


@dataclass(frozen=True)
class Bar:
    """A month of the sparkline, in the units of its SVG."""

    x: int
    y: int
    height: int
    title: str


@dataclass(frozen=True)
class Spending:
    this_month: str
    forecast: str
    bars: list[Bar]


BAR_STEP, BAR_HEIGHT = 10, 40


def spending_of(customer: Customer | None) -> Spending | None:
    """Return what the customer spends by month; None for users who don't see bills."""
    if customer is None:
        return None
    summary = build_summary(customer=customer, at=timezone.now())
    totals = [sum(summary.costs.get((month, kind), 0) for kind in ServiceKind.values) for month in summary.months]
    most = max(*totals, 1)
    bars = []
    for number, (month, total_micro) in enumerate(zip(summary.months, totals, strict=True)):
        height = max(1, BAR_HEIGHT * total_micro // most)
        title = f"{format_month(month)}: {format_amount(total_micro, customer.currency)}"
        bars.append(Bar(x=number * BAR_STEP, y=BAR_HEIGHT - height, height=height, title=title))
    return Spending(
        this_month=format_amount(summary.this_month_micro, customer.currency),
        forecast=format_amount(summary.projected_micro, customer.currency),
        bars=bars,
    )


def snapshot_sums(user: User) -> QuerySet[Any, tuple[Any, ...]]:
    """Return (kind, location, count, GB, GB charged for). Automatic backups are paid for with their instance."""
    counted = Snapshot.objects.visible_to(user).filter(deleted_at=None, kind__in=Kind.values).counted()
    is_automatic = Q(run__schedule__origin=BackupSchedule.Origin.AUTOMATIC)
    charged = Q(state=State.READY, damaged_at=None) & ~costs_nothing() & ~is_automatic
    sums = (
        counted.order_by()
        .values("kind", "location_id")
        .annotate(count=Count("*"), gb=Sum("size_gb"), charged_gb=Sum("size_gb", filter=charged, default=0))
    )
    return sums.values_list("kind", "location_id", "count", "gb", "charged_gb")


def other_sums(user: User) -> QuerySet[Any, tuple[Any, ...]]:
    """Return (service kind, location, GB, machines' hourly prices) of volumes and automatic backups that are charged."""
    charged = UsageSegment.objects.filter(
        project__in=list(user.roles),
        kind__in=[ServiceKind.BLOCK_STORAGE.value, ServiceKind.VM_BACKUP_AUTOMATIC.value],
        ended_at=None,
        started_at__lt=timezone.now() + rating.HOUR,
    )
    return charged.order_by().values_list("kind", "location_id").annotate(Sum("size_gb"), Sum("base_rate_micro"))


def still_failed(user: User, *, since: datetime) -> QuerySet[Operation]:
    """Return the operations that failed since then and weren't retried. Excludes those of deleted snapshots."""
    retries = Operation.objects.filter(
        # A snapshot may become many volumes at once.
        Q(volume=None) | Q(volume=OuterRef("volume")),
        snapshot=OuterRef("snapshot"),
        kind=OuterRef("kind"),
        created_at__gt=OuterRef("created_at"),
    )
    return Operation.objects.visible_to(user).filter(
        ~Exists(retries),
        # A scrub that failed without finding damage concerns only the operator.
        ~Q(kind__in=Operation.MAINTENANCE) | Q(cause__in=[Corrupt.__name__, NOT_PROVEN]),
        state=Operation.State.FAILED,
        finished_at__gt=since,
        snapshot__deleted_at=None,
    )
