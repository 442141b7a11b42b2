"""The first page: what there is, what it costs, what runs now, and what needs attention."""

from datetime import timedelta

from django.contrib.humanize.templatetags.humanize import intcomma
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from billing import rating
from billing.models import ServiceKind
from billing.money import format_amount, format_price
from cng_portal.accounts.models import User
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import lists
from snapshots.models import COUNTED_STATES, SERVICE_KINDS, BackupRun, BackupSchedule, Kind, Operation, Snapshot, State

from . import bell
from .common import Rates, explain_operations, rates_now, render_live, version_of, visible, with_time_left
from .snapshots import explain_rows, listed_snapshots

NEWEST_SHOWN = 5
OPERATIONS_SHOWN = 10
# What failed longer ago is found in the list, by the filter of states.
FAILED_WITHIN = timedelta(days=30)


@require_GET
def dashboard(request: HttpRequest) -> HttpResponse:
    user = request.user
    running = with_time_left(visible(Operation.objects.active(), user)[:OPERATIONS_SHOWN])
    failed = explain_operations(visible(still_failed(), user)[:OPERATIONS_SHOWN], user)
    mine = Snapshot.objects.visible_to(user).filter(deleted_at=None).order_by("-created_at", "-pk")
    newest = Q()  # of each kind by itself, as the index has them
    for kind in Kind.values:
        newest |= Q(pk__in=mine.filter(kind=kind).values("pk")[:NEWEST_SHOWN])
    rows = listed_snapshots().filter(newest).order_by("-created_at", "-pk")[:NEWEST_SHOWN]
    rates = rates_now()
    snapshots = explain_rows(list(rows), user, rates)
    volumes = Volume.objects.visible_to(user).present().filter(state=Volume.State.AVAILABLE)
    context = {
        "totals": totals(user, rates),
        **volumes.aggregate(volume_count=Count("pk"), unprotected_count=Count("pk", filter=lists.UNPROTECTED)),
        "running": running,
        "in_progress": bell.shown(running),
        "failed": failed,
        "rows": snapshots,
        "is_live": bool(running),
        "can_take": bool(user.changeable_project_ids),
        "has_projects": bool(user.roles),
    }
    version = version_of(
        [operation.pk for operation in running],
        [operation.pk for operation in failed],
        [(one.pk, one.state) for one in snapshots],
    )
    return render_live(request, "dashboard.html", context, part="dashboard", poll="running", version=version)


def totals(user: User, rates: Rates) -> dict[str, object]:
    """`count` and `size` of the snapshots that are kept, and what those that are Ready cost: `hourly` ("K 20") and a
    sentence on the month.
    """
    kept = (
        Snapshot.objects.visible_to(user)
        .filter(deleted_at=None, kind__in=Kind.values, state__in=COUNTED_STATES)
        .order_by()
        .values("kind", "location_id")
        .annotate(count=Count("*"), gb=Sum("size_gb"), ready_gb=Sum("size_gb", filter=Q(state=State.READY), default=0))
    )
    count = gb = hourly_micro = 0
    for row in kept:
        count, gb = count + row["count"], gb + row["gb"]
        rate_micro = rates.get((SERVICE_KINDS[Kind(row["kind"])], row["location_id"]), 0)
        hourly_micro += row["ready_gb"] * rate_micro
    hourly_micro += automatic_hourly(user, rates)
    currency = user.customer.currency if user.customer else "MMK"
    monthly_micro = hourly_micro * rating.HOURS_PER_MONTH
    return {
        "count": intcomma(count),
        "size": _("%(gb)s GB") % {"gb": intcomma(gb)},
        "hourly": format_price(hourly_micro, currency),
        "monthly": _("About %(amount)s a month") % {"amount": format_amount(monthly_micro, currency)},
    }


def automatic_hourly(user: User, rates: Rates) -> int:
    """What automatic backups cost an hour, less what their copies would cost if they were charged by themselves."""
    prices = (
        VirtualMachine.objects.visible_to(user)
        .filter(automatic_backups_since__isnull=False)
        .values_list("hourly_price_micro", flat=True)
    )
    copies = (
        BackupRun.objects.visible_to(user)
        .filter(
            schedule__origin=BackupSchedule.Origin.AUTOMATIC,
            snapshot__state=State.READY,
            snapshot__project__in=list(user.roles),
        )
        .order_by()
        .values_list("snapshot__location_id")
        .annotate(Sum("snapshot__size_gb"))
    )
    share = sum(rating.hourly_micro(rate_micro=price, size_gb=None) for price in prices)
    return share - sum(gb * rates.get((ServiceKind.VM_BACKUP, code), 0) for code, gb in copies)


def still_failed() -> QuerySet[Operation]:
    """What failed lately, was not asked for again, and still concerns somebody."""
    again = Operation.objects.filter(
        snapshot=OuterRef("snapshot"), kind=OuterRef("kind"), created_at__gt=OuterRef("created_at")
    )
    return Operation.objects.filter(
        ~Exists(again),
        state=Operation.State.FAILED,
        finished_at__gt=timezone.now() - FAILED_WITHIN,
        snapshot__deleted_at=None,
    )
