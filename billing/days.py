"""Costs by day, for the chart of an account that is too young for months."""

from collections import defaultdict
from datetime import date, datetime, time, timedelta

from django.db.models import Min

from cng_portal.accounts.models import Customer

from . import bulk
from .charges import BillingMonths
from .models import UsageSegment
from .summary import Costs

YOUNG_DAYS = 60
LEAST_DAYS = 14
DAY, INSTANT = timedelta(days=1), timedelta(microseconds=1)


def young_days(*, customer: Customer, at: datetime) -> list[date]:
    """Return the days of use of a customer with less than two months of it, two weeks at least; else none. One query."""
    used = UsageSegment.objects.filter(customer=customer, voided=False)
    first = used.aggregate(first=Min("started_at"))["first"]
    today = at.astimezone(customer.zone).date()
    if first is None or first > at or (age := (today - first.astimezone(customer.zone).date()).days) >= YOUNG_DAYS:
        return []
    return [today - days * DAY for days in reversed(range(max(age + 1, LEAST_DAYS)))]


def costs_by_day(*, customer: Customer, days: list[date], at: datetime) -> Costs:
    """Return {(day in the customer's time zone, kind): millionths}. An hour belongs to the day on which it starts.

    A day's cost is what its month cost until its end less what it cost until the day before, so that the days of a month
    add up to it. Two queries.
    """
    ends = [datetime.combine(day + DAY, time(), customer.zone) for day in days]
    first = ends[0] - DAY
    months = BillingMonths.load(customer)
    windows = [*(months.invoiced_windows(first) if months.invoices else []), *months.open_windows(first, at)]
    # An instant before midnight, because an hour that starts at midnight is tomorrow's.
    instants = {min(end - INSTANT, at) for end in (*ends, *(window.until for window in windows))}
    totals = bulk.owed_by_kind(
        [
            bulk.CustomerWindow.build(customer, window, known_at)
            for window in windows
            for known_at in instants
            if window.since <= known_at < window.until
        ]
    )
    costs: Costs = defaultdict(int)
    before: dict[tuple[date, str], int] = defaultdict(int)
    for (month, known_at, kind), amount_micro in sorted(totals.items()):
        day = known_at.astimezone(customer.zone).date()
        costs[day, kind] += amount_micro - before[month, kind]
        before[month, kind] = amount_micro
    return costs
