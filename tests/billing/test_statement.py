"""The account statement of a period: the whole hours that start in it, each once."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from billing import closing, rating
from billing.models import ServiceKind
from billing.statement import Row, clip, usage_rows

YANGON = ZoneInfo("Asia/Yangon")
APRIL = datetime(2040, 4, 10, tzinfo=UTC)


def yangon(month: int, day: int) -> datetime:
    return datetime(2040, month, day, tzinfo=YANGON)


@pytest.fixture(params=["due", "invoiced"])
def march(request, shop, use):
    """50 GB at K 20 an hour from March on, invoiced or not."""
    use(yangon(3, 1))
    if request.param == "invoiced":
        closing.close_months(at=APRIL)
    return shop.customer


def total(customer, **period: date) -> int:
    usage = usage_rows(customer=customer, at=APRIL, **period)
    rows, total_micro = usage.page(0, 1000)
    assert total_micro == sum(row.amount_micro for row in rows) == sum(row.amount_micro for row in usage)
    assert len(usage) == len(rows)
    return total_micro


@pytest.mark.django_db
def test_one_day_of_a_month_costs_a_day(march):
    day = date(2040, 3, 15)
    [row] = usage_rows(customer=march, at=APRIL, first=day, last=day)
    assert (row.hours, row.amount_micro) == (24, 480_000_000)
    assert (row.from_at, row.to_at) == (yangon(3, 15), yangon(3, 16))
    assert total(march, first=day, last=day) == 480_000_000


@pytest.mark.django_db
def test_the_days_of_a_month_add_up_to_the_month(march):
    days = [date(2040, 3, day) for day in range(1, 32)]
    assert sum(total(march, first=day, last=day) for day in days) == total(march, month=date(2040, 3, 1))
    assert total(march, month=date(2040, 3, 1)) == 31 * 480_000_000


@pytest.mark.django_db
def test_every_split_of_a_period_adds_up_to_the_whole(march):
    whole_period = total(march, first=date(2040, 2, 1), last=date(2040, 4, 30))
    for split in (date(2040, 2, 20), date(2040, 3, 1), date(2040, 3, 17), date(2040, 4, 3)):
        before = total(march, first=date(2040, 2, 1), last=split)
        after = total(march, first=split + timedelta(days=1), last=date(2040, 4, 30))
        assert before + after == whole_period


instants = st.integers(0, 40 * 86_400).map(
    lambda seconds: datetime(2040, 3, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)


@given(
    start=instants,
    hours=st.integers(1, 800),
    sign=st.sampled_from([1, -1]),
    automatic=st.booleans(),
    rate_micro=st.integers(0, 10**10),
    size_gb=st.integers(1, 10**6),
    borders=st.lists(instants, max_size=5),
)
def test_the_parts_of_a_row_add_up_to_it(start, hours, sign, automatic, rate_micro, size_gb, borders):
    kind = ServiceKind.VM_BACKUP_AUTOMATIC if automatic else ServiceKind.BS_SNAPSHOT
    exact = {"hours": hours, "rate_micro": rate_micro, "size_gb": None if automatic else size_gb}
    amount_micro = sign * rating.line_amount(**exact, unit_micro=10_000)
    row = Row(
        month=date(2040, 3, 1),
        resource_id=uuid4(),
        kind=kind,
        name="disk",
        project="Default",
        location="1CNG-YGN-AZ01",
        from_at=start,
        to_at=start + hours * rating.HOUR - timedelta(minutes=7),
        hours=sign * hours,
        size_gb=size_gb,
        rate_micro=rate_micro,
        amount_micro=amount_micro,
        currency="MMK",
    )
    edges = [None, *sorted(borders), None]
    parts = [part for first, last in pairwise(edges) if (part := clip(row, first, last))]
    assert sum(part.amount_micro for part in parts) == amount_micro
    assert sum(part.hours for part in parts) == row.hours
    for part in parts:
        assert all(
            part.from_at + number * rating.HOUR < row.from_at + hours * rating.HOUR for number in range(abs(part.hours))
        )


@pytest.mark.django_db
@pytest.mark.parametrize("value", ["9999-12-31", "0001-01-01", "1999-12-31", "2200-01-01"])
@pytest.mark.parametrize("field", ["first", "last", "month"])
def test_a_date_out_of_range_is_explained(shop, client_for, field, value):
    client = client_for(shop.owner)
    page = client.get(reverse("billing:statement"), {field: value})
    assert page.status_code == 200
    assert page.context["form"].errors[field] == ["Choose a date between 2000 and 2199."]
    export = client.get(reverse("billing:usage_csv"), {field: value})
    assert export["Location"] == f"{reverse('billing:statement')}?{field}={value}"
