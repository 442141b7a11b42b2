"""The first page: what there is, what it costs, what runs now, and what needs attention."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.humanize.templatetags.humanize import intcomma
from django.db.models import (
    BigIntegerField,
    Count,
    Exists,
    F,
    OuterRef,
    Prefetch,
    Q,
    QuerySet,
    Sum,
    Value,
    prefetch_related_objects,
)
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from billing import rating
from billing.models import ServiceKind
from billing.money import format_amount, format_price
from cng_portal.accounts import kept
from cng_portal.accounts.models import User
from cng_portal.accounts.prepared import prepared
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import lists, services
from snapshots.models import COUNTED_STATES, SERVICE_KINDS, BackupRun, BackupSchedule, Kind, Operation, Snapshot, State

from . import bell
from .common import (
    Rates,
    explain_operations,
    newest_of,
    rates_now,
    render_live,
    version_of,
    with_time_left,
)
from .snapshots import explain_rows, listed_snapshots

NEWEST_SHOWN = 5
OPERATIONS_SHOWN = 10
# What failed longer ago is found in the list, by the filter of states.
FAILED_WITHIN = timedelta(days=30)


@require_GET
def dashboard(request: HttpRequest) -> HttpResponse:
    """Four queries besides session, person and wallet: operations, newest snapshots, prices, and figures."""
    user = request.user
    operations = _operations(user, failed_since=timezone.now() - FAILED_WITHIN)
    running = with_time_left(one for one in operations if one.is_active)
    ended = [one for one in operations if not one.is_active]
    prefetch_related_objects([one for one in ended if one.can_be_undone], "safety_snapshot__location")
    failed = explain_operations(ended, user)
    rates = rates_now()
    newest = _newest_snapshots.found(user)  # type: ignore[attr-defined]
    limits = services.write_backs([UUID(str(row[0])) for row in newest.raw])
    totals = figures(user, rates)
    context = {
        **totals,
        "running": running,
        "in_progress": bell.shown(running),
        "failed": failed,
        "rows": SimpleLazyObject(lambda: explain_rows(with_runs(newest.rows), user, rates, limits, running)),
        "is_live": bool(running),
        "can_take": bool(user.changeable_project_ids),
        "has_projects": bool(user.roles),
    }
    version = version_of(
        [operation.pk for operation in running],
        [operation.pk for operation in failed],
        newest.raw,
    )
    return render_live(request, "dashboard.html", context, part="dashboard", poll="running", version=version)


@prepared(skewed=True)
def _operations(user: User, *, failed_since: datetime) -> QuerySet[Operation]:
    found = newest_of(user, OPERATIONS_SHOWN, Operation.objects.active(), still_failed(failed_since))
    # one table less to plan; the location of what hardly ever is there is read by itself
    return found.select_related(None).select_related("snapshot", "volume", "vm", "safety_snapshot", "requested_by")


@prepared(skewed=True)
def _newest_snapshots(user: User) -> QuerySet[Snapshot]:
    mine = Snapshot.objects.visible_to(user).filter(deleted_at=None).order_by("-created_at", "-pk")
    # of each kind by itself, as the index has them
    newest = lists.any_of([mine.filter(kind=kind).values("pk")[:NEWEST_SHOWN] for kind in Kind.values])
    return listed_snapshots().filter(lists.IsIn("pk", newest)).order_by("-created_at", "-pk")[:NEWEST_SHOWN]


def with_runs(found: list[Snapshot]) -> list[Snapshot]:
    """The copies among them with their runs. One query where there are any: joined to the others, which are asked for anew
    each time, its tables would take longer to plan than to read.
    """
    copies = [one for one in found if one.kind == Kind.BACKUP]
    prefetch_related_objects(copies, Prefetch("run", BackupRun.objects.select_related("schedule")))
    return found


def figures(user: User, rates: Rates) -> dict[str, object]:
    """`volume_count`, `unprotected_count`, and of the snapshots that are kept `count` and `size`, and what those that are
    Ready cost: `hourly` ("K 20") and a sentence on the month.
    """
    count = gb = hourly_micro = volumes = unprotected = 0
    for what, code, *numbers in rows_of_figures(user):
        if what == "volumes":
            volumes, unprotected = volumes + numbers[0], unprotected + numbers[1]
        elif what == "automatic":
            hourly_micro += rating.hourly_micro(rate_micro=numbers[0], size_gb=None)
        elif what == "copies":
            hourly_micro -= numbers[0] * rates.get((ServiceKind.VM_BACKUP, code), 0)
        else:
            count, gb = count + numbers[0], gb + numbers[1]
            hourly_micro += numbers[2] * rates.get((SERVICE_KINDS[Kind(what)], code), 0)
    currency = user.customer.currency if user.customer else "MMK"
    monthly_micro = hourly_micro * rating.HOURS_PER_MONTH
    return {
        "totals": {
            "count": intcomma(count),
            "size": _("%(gb)s GB") % {"gb": intcomma(gb)},
            "hourly": format_price(hourly_micro, currency),
            "monthly": _("About %(amount)s a month") % {"amount": format_amount(monthly_micro, currency)},
        },
        "volume_count": volumes,
        "unprotected_count": unprotected,
    }


def rows_of_figures(user: User) -> list[tuple[Any, ...]]:
    """(what, location, three numbers), in one query. They are added up once a minute, and at once when something changes."""
    # who sees things of several customers is not told when one of the others has changed
    customer = user.customer if user.customer_ids == {user.customer_id} else None
    key = f"figures-{version_of(sorted(user.roles))}"
    rows: list[tuple[Any, ...]] | None = kept.recall(key, customer) if customer else None
    if rows is None:
        others = [volumes_in_figures(user), automatic_in_figures(user), copies_in_figures(user)]
        rows = list(snapshots_in_figures(user).union(*others, all=True))
        if customer:
            kept.keep(key, customer, rows)
    return rows


FIGURES = ("what", "place", "one", "two", "three")
NOTHING = Value(0, output_field=BigIntegerField())


def snapshots_in_figures(user: User) -> QuerySet[Any, Any]:
    """(kind, location, count, GB, GB of those that are Ready and not damaged)"""
    counted = Snapshot.objects.visible_to(user).filter(deleted_at=None, kind__in=Kind.values, state__in=COUNTED_STATES)
    return (
        counted.order_by()
        .values(what=F("kind"), place=F("location_id"))
        .annotate(
            one=Count("*"),
            two=Sum("size_gb"),
            three=Sum("size_gb", filter=Q(state=State.READY, damaged_at=None), default=0),
        )
        .values_list(*FIGURES)
    )


def volumes_in_figures(user: User) -> QuerySet[Any, Any]:
    """("volumes", location, count, how many of them have nothing that could be restored, 0)"""
    there = Volume.objects.visible_to(user).present().filter(state=Volume.State.AVAILABLE)
    return (
        there.order_by()
        .values(what=Value("volumes"), place=F("location_id"))
        .annotate(one=Count("pk"), two=Count("pk", filter=lists.UNPROTECTED), three=NOTHING)
        .values_list(*FIGURES)
    )


def automatic_in_figures(user: User) -> QuerySet[Any, Any]:
    """("automatic", location, hourly price of a machine with automatic backups, of which they cost 20 %, 0, 0)"""
    machines = VirtualMachine.objects.visible_to(user).filter(automatic_backups_since__isnull=False)
    return (
        machines.order_by()
        .annotate(
            what=Value("automatic"), place=F("location_id"), one=F("hourly_price_micro"), two=NOTHING, three=NOTHING
        )
        .values_list(*FIGURES)
    )


def copies_in_figures(user: User) -> QuerySet[Any, Any]:
    """("copies", location, GB of the copies of automatic backups, which are not charged by themselves, 0, 0)"""
    copies = BackupRun.objects.visible_to(user).filter(
        schedule__origin=BackupSchedule.Origin.AUTOMATIC,
        snapshot__state=State.READY,
        snapshot__damaged_at=None,
        snapshot__project__in=list(user.roles),
    )
    return (
        copies.order_by()
        .values(what=Value("copies"), place=F("snapshot__location_id"))
        .annotate(one=Sum("snapshot__size_gb"), two=NOTHING, three=NOTHING)
        .values_list(*FIGURES)
    )


def still_failed(since: datetime) -> QuerySet[Operation]:
    """What failed since then, was not asked for again, and still concerns somebody."""
    again = Operation.objects.filter(
        snapshot=OuterRef("snapshot"), kind=OuterRef("kind"), created_at__gt=OuterRef("created_at")
    )
    return Operation.objects.filter(
        ~Exists(again),
        state=Operation.State.FAILED,
        finished_at__gt=since,
        snapshot__deleted_at=None,
    )
