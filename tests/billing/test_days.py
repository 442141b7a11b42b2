"""Daily costs of a new account: each equals the statement of that day, and they add up to the months."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import pytest
from django.test import Client

from billing import closing
from billing.days import LEAST_DAYS, YOUNG_DAYS, costs_by_day, young_days
from billing.pricing.packages import create_package, set_price
from billing.statement import usage_rows
from billing.summary import build_summary

pytestmark = pytest.mark.django_db


def yangon(day: int, hour: int = 0, month: int = 11) -> datetime:
    return datetime(2040, month, day, hour, tzinfo=UTC) - timedelta(hours=6, minutes=30)


NOW = yangon(20, 12)


@pytest.fixture
def history(shop: SimpleNamespace, use: Callable) -> SimpleNamespace:
    """An invoiced month and an open one, two kinds, a price that changes, and hours that start at midnight."""
    create_package(location=shop.location, kind="vm_backup", rate_micro=333_333, starts_at=yangon(1, month=1))
    set_price(package=shop.package, rate_micro=777_777, starts_at=yangon(7, 13), by=None)
    use(yangon(20, 22, month=10), size_gb=7)
    use(yangon(28, 0, month=10), yangon(2, 0), kind="vm_backup", size_gb=3)
    use(yangon(5, 10) + timedelta(minutes=17, seconds=23), yangon(5, 13))
    use(yangon(6, 23) + timedelta(minutes=30), yangon(7, 0) + timedelta(minutes=31), size_gb=11)
    closing.close_months(at=yangon(1, 1))
    return shop


@pytest.mark.both_databases
def test_each_day_costs_what_the_statement_says_of_it(history: SimpleNamespace) -> None:
    days = young_days(customer=history.customer, at=NOW)
    assert (days[0], days[-1]) == (date(2040, 10, 20), date(2040, 11, 20))
    costs = costs_by_day(customer=history.customer, days=days, at=NOW)
    for day in days:
        rows = usage_rows(customer=history.customer, at=NOW, first=day, last=day)
        amounts: dict[str, int] = {}
        for row in rows:
            amounts[row.kind] = amounts.get(row.kind, 0) + row.amount_micro
        assert {kind: costs[day, kind] for kind in amounts} == amounts, day


@pytest.mark.both_databases
def test_the_days_of_a_month_add_up_to_it(history: SimpleNamespace) -> None:
    days = young_days(customer=history.customer, at=NOW)
    costs = costs_by_day(customer=history.customer, days=days, at=NOW)
    months: dict[tuple[date, str], int] = {}
    for (day, kind), micro in costs.items():
        key = (day.replace(day=1), kind)
        months[key] = months.get(key, 0) + micro
    assert months == {
        key: micro for key, micro in build_summary(customer=history.customer, at=NOW).costs.items() if micro
    }


def test_an_hour_that_starts_at_midnight_belongs_to_the_day(shop: SimpleNamespace, use: Callable) -> None:
    use(yangon(5), yangon(5, 1))
    at = yangon(6)
    days = young_days(customer=shop.customer, at=at)
    costs = costs_by_day(customer=shop.customer, days=days, at=at)
    assert {day: micro for (day, _kind), micro in costs.items() if micro} == {date(2040, 11, 5): 20_000_000}


def test_an_account_of_two_months_has_no_days_and_a_new_one_two_weeks(shop: SimpleNamespace, use: Callable) -> None:
    assert young_days(customer=shop.customer, at=NOW) == []
    use(NOW)
    assert len(young_days(customer=shop.customer, at=NOW)) == LEAST_DAYS
    last = NOW + timedelta(days=YOUNG_DAYS - 1)
    assert len(young_days(customer=shop.customer, at=last)) == YOUNG_DAYS
    assert young_days(customer=shop.customer, at=last + timedelta(days=1)) == []


def test_the_page_draws_days_and_links_each_to_its_hours(
    history: SimpleNamespace, client_for: Callable[..., Client], time_machine
) -> None:
    time_machine.move_to(NOW, tick=False)
    client = client_for(history.owner)
    page = client.get("/billing/").text
    wide, narrow = re.findall(r"<svg viewBox=\"0 0 [13].*?</svg>", page, re.DOTALL)
    assert "5 Nov, BS Snapshot: K " in wide and "5 Nov, BS Snapshot: K " in narrow
    assert narrow.count("<text") <= 5 + 4
    link = "/billing/statement/?first=2040-11-05&amp;last=2040-11-05"
    assert link in page
    total = next(row["total"] for row in client.get("/billing/").context["days"] if row["name"] == "5 Nov 2040")
    assert f">{total}</td>" in client.get(link.replace("&amp;", "&")).text
