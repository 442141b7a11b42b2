"""Arithmetic with extreme sizes, sums and durations: 1 byte to 1 PB, 0 to 10 years."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import example, given
from hypothesis import strategies as st

from billing.balance import credit_runway
from billing.chart import NARROW, WIDE, ChartSize, build_chart
from billing.models import MAX_AMOUNT_MICRO, ServiceKind
from billing.pricing.packages import create_package
from billing.usage import open_segment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Project
from cng_portal.common import money
from cng_portal.common.templatetags import portal
from snapshots.models import Operation, State
from snapshots.timeline import MOST_MARKS, timeline
from snapshots.views.rows import estimate_time_left
from snapshots.views.timelines import gap_of
from snapshots.views.wizard import last_day
from tests.factories import (
    LocationFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)

GB, PB = 1024**3, 1024**5
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
sizes = st.integers(1, PB)
durations = st.timedeltas(timedelta(), timedelta(days=3653))
amounts = st.integers(0, MAX_AMOUNT_MICRO)


@given(total=sizes, part=st.fractions(0, 1), spent=durations)
@example(total=500 * GB, part=0.5, spent=timedelta(seconds=500))
@example(total=PB, part=1 / PB, spent=timedelta(days=3653))
@example(total=PB, part=1, spent=timedelta(days=3653))
def test_the_time_left_is_estimated_for_every_size_and_duration(total: int, part: float, spent: timedelta) -> None:
    operation = Operation(
        state=Operation.State.RUNNING,
        attempt=1,
        started_at=NOW - spent,
        bytes_done=int(total * part),
        bytes_total=total,
    )
    assert estimate_time_left(operation, NOW) == "" or estimate_time_left(operation, NOW).endswith(" left")


def test_the_time_left_is_right_in_the_middle_of_a_large_disk() -> None:
    operation = Operation(state=Operation.State.RUNNING, attempt=1, bytes_done=250 * GB, bytes_total=500 * GB)
    operation.started_at = NOW - timedelta(minutes=8)
    assert estimate_time_left(operation, NOW) == "About 8 minutes left"
    operation.started_at, operation.bytes_done = NOW - timedelta(days=1), GB
    assert estimate_time_left(operation, NOW) == "More than 30 days left"


@given(size=sizes, part=st.fractions(0, 2))
def test_bytes_and_percentages_can_be_shown_for_every_size(size: int, part: float) -> None:
    assert portal.format_bytes(size)
    assert 0 <= portal.percent(int(size * part), size) <= 100


@given(distance=durations, ahead=st.booleans())
def test_every_duration_can_be_shown(distance: timedelta, ahead: bool) -> None:
    assert portal.length_of(distance)
    assert portal.relative(timezone.now() + (distance if ahead else -distance))
    operation = Operation(created_at=timezone.now() - distance)
    assert 2 <= portal.poll_seconds([operation]) <= 30


# Ten years of a million snapshots of the largest size at the highest price are 8.8e26.
@given(micro=st.integers(-(10**27), 10**27))
def test_every_sum_can_be_shown(micro: int) -> None:
    for show in (money.format_amount, money.format_price, money.format_rate):
        assert show(micro, "MMK").lstrip("-").startswith("K ")


@given(costs=st.lists(amounts, min_size=2, max_size=2), size=st.sampled_from([WIDE, NARROW]))
def test_every_bar_of_the_cost_chart_fits_it(costs: list[int], size: ChartSize) -> None:
    months = [NOW.date().replace(day=1, month=10), NOW.date().replace(day=1)]
    kind = ServiceKind.BS_SNAPSHOT.value
    cost_by_month = {(month, kind): cost for month, cost in zip(months, costs, strict=True)}
    drawn = build_chart(
        periods=months, costs=cost_by_month, currency="MMK", label=str, size=size, labels=size.day_labels
    )
    for bar in drawn["bars"]:
        assert 0 <= float(bar.y) <= float(bar.y) + float(bar.height) <= size.height


@given(ages=st.lists(durations, max_size=20), age=durations)
def test_every_age_of_snapshots_fits_the_timeline(ages: list[timedelta], age: timedelta) -> None:
    captures = [(NOW - age_of, State.READY.value) for age_of in ages]
    result = timeline(captures, born=NOW - age, now=NOW, zone=UTC)
    assert sum(mark.count for mark in result.marks) == len(ages) and len(result.marks) <= MOST_MARKS
    assert gap_of(result.gap)


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


@pytest.mark.django_db
@pytest.mark.parametrize("seconds", [225, 500, 775])
def test_every_page_answers_while_a_large_disk_is_captured(project: Project, client: Client, seconds: int) -> None:
    volume = VolumeFactory(project=project, size_gb=500)
    OperationFactory(
        snapshot=SnapshotFactory(volume=volume, creating=True),
        capture=True,
        running=True,
        bytes_done=seconds * GB // 2,
        bytes_total=500 * GB,
        started_at=timezone.now() - timedelta(seconds=seconds),
    )
    for path in ("/", "/snapshots/", "/volumes/", f"/volumes/{volume.pk}/", "/billing/", "/help/", "/nowhere/"):
        assert " minutes left" in client.get(path).text, path


@pytest.mark.django_db
def test_large_credits_at_a_tiny_price_last_for_thousands_of_years(project: Project, client: Client) -> None:
    customer, location, now = project.customer, LocationFactory(), timezone.now()
    create_package(location=location, kind=ServiceKind.BS_SNAPSHOT, rate_micro=1, starts_at=now - timedelta(days=1))
    buy_credits(customer=customer, amount_micro=MAX_AMOUNT_MICRO, reason="bought", by=None, key="first")
    open_segment(
        resource_id=project.pk,
        kind=ServiceKind.BS_SNAPSHOT,
        name="nightly",
        project=project,
        location=location,
        size_gb=1,
        at=now,
    )
    runway = credit_runway(customer=customer, at=timezone.now()).current
    assert runway is not None and last_day(now, runway) == "for thousands of years"
    assert client.get("/billing/credits/").status_code == 200
