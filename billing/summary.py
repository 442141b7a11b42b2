"""The billing summary: running services, costs by month and kind, and the forecast for this month."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from uuid import UUID

from django.db.models import OuterRef, Subquery

from cng_portal.accounts.models import Customer

from . import bulk, rating
from .balance import open_windows, standing_of, with_ledger
from .charges import backdated_lines
from .models import InvoiceLine, ServiceKind, TransactionKind, WalletTransaction
from .sums import ExactSum
from .usage import running_usage_of

MONTHS_SHOWN = 12
Costs = dict[tuple[date, str], int]  # {(month of use, kind): millionths}


@dataclass(frozen=True, kw_only=True)
class Service:
    """The running usage of one kind, and its cost this month."""

    kind: str
    count: int
    size_gb: int
    hourly_micro: int
    month_micro: int

    @property
    def label(self) -> str:
        return str(ServiceKind(self.kind).label)


@dataclass(frozen=True, kw_only=True)
class Summary:
    services: list[Service]
    months: list[date]
    costs: Costs
    bought_micro: int
    free_micro: int
    consumed_micro: int
    balance_micro: int
    owed_micro: int
    this_month: date
    this_month_micro: int
    projected_micro: int


def invoiced_costs(customer: Customer) -> Costs:
    lines = InvoiceLine.objects.filter(invoice__customer=customer).order_by().values_list("month", "kind")
    return {(month, kind): total for month, kind, total in lines.annotate(total=ExactSum("amount_micro"))}


def build_summary(*, customer: Customer, at: datetime) -> Summary:
    credited = WalletTransaction.objects.filter(customer=OuterRef("pk"), at__lte=at).order_by().values("customer")
    total = {
        kind: Subquery(credited.filter(kind=kind).annotate(total=ExactSum("amount_micro")).values("total"))
        for kind in (TransactionKind.BOUGHT, TransactionKind.GRANTED)
    }
    customers = Customer.objects.filter(pk=customer.pk).annotate(
        bought=total[TransactionKind.BOUGHT], granted=total[TransactionKind.GRANTED]
    )
    [account] = with_ledger(customers, at=at)
    windows = open_windows([account], at)
    # The last month once more, as of its end: the forecast if everything stays as it is, planned prices included.
    rated = bulk.owed_by_kind([*windows, *(replace(window, at=window.until) for window in windows[-1:])])
    due: Costs = defaultdict(int)
    still_to_come = 0
    for (month, known_at, kind), amount_micro in rated.items():
        if known_at > at:
            still_to_come += amount_micro
        else:
            due[month, kind] += amount_micro
            still_to_come -= amount_micro if month == windows[-1].month else 0
    for line in backdated_lines(customer=customer, at=at) if account.backdated else []:  # type: ignore[attr-defined]
        due[line.month, line.segment.kind] += line.line.amount_micro or 0
    invoiced = invoiced_costs(customer)
    costs = defaultdict(int, {key: invoiced.get(key, 0) + due.get(key, 0) for key in invoiced | due})
    month = current_month(customer, windows, at)
    months = [month]
    while len(months) < MONTHS_SHOWN:
        months.append((months[-1] - timedelta(days=1)).replace(day=1))
    this_month = sum(total for (month_of_use, _kind), total in costs.items() if month_of_use == month)
    standing = standing_of(account, owed_micro=sum(due.values()), at=at)
    return Summary(
        services=active_services(customer=customer, at=at, month=month, costs=costs),
        months=sorted(months),
        costs=costs,
        bought_micro=int(account.bought or 0),  # type: ignore[attr-defined]  # of with_ledger
        free_micro=int(account.granted or 0),  # type: ignore[attr-defined]
        consumed_micro=sum(costs.values()),
        balance_micro=standing.balance_micro,
        owed_micro=standing.owed_micro,
        this_month=month,
        this_month_micro=this_month,
        projected_micro=this_month + still_to_come,
    )


def current_month(customer: Customer, windows: Sequence[bulk.CustomerWindow], at: datetime) -> date:
    """Return the month that is being billed. After a change of time zone it may differ from the calendar month."""
    return windows[-1].month if windows else rating.month_of(at, customer.zone)


def spend_by_project(*, customer: Customer, at: datetime) -> dict[UUID, int]:
    """Return {project: cost this month in millionths}. Their sum is `this_month_micro` of `build_summary`."""
    [account] = with_ledger(Customer.objects.filter(pk=customer.pk), at=at)
    windows = open_windows([account], at)
    month = current_month(customer, windows, at)
    spend: dict[UUID, int] = defaultdict(int)
    for (month_of_use, project_id), amount_micro in bulk.owed_by_project(windows).items():
        if month_of_use == month:
            spend[project_id] += amount_micro
    for due in backdated_lines(customer=customer, at=at) if account.backdated else []:  # type: ignore[attr-defined]  # of with_ledger
        if due.month == month:
            spend[due.segment.project_id] += due.line.amount_micro or 0
    invoiced = InvoiceLine.objects.filter(invoice__customer=customer, month=month).order_by()
    totals = invoiced.values_list("segment__project").annotate(total=ExactSum("amount_micro"))
    for project_id, total in totals:
        spend[project_id] += total
    return dict(spend)


def active_services(*, customer: Customer, at: datetime, month: date, costs: Costs) -> list[Service]:
    """Return one service for each kind that is running or has cost something in the month. Two queries."""
    running = defaultdict(list)
    for usage in running_usage_of([customer], at=at):
        running[usage.kind].append(usage)
    return [
        Service(
            kind=kind,
            count=sum(usage.count for usage in running[kind]),
            size_gb=sum(usage.size_gb for usage in running[kind]),
            hourly_micro=sum(usage.hourly_micro for usage in running[kind]),
            month_micro=costs.get((month, kind), 0),
        )
        for kind in ServiceKind.values
        if running[kind] or costs.get((month, kind))
    ]
