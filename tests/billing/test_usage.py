from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing import services
from billing.models import BillingCycle, Package, PriceVersion, ServiceKind, UsageSegment
from cng_portal.accounts.models import User
from cng_portal.accounts.services import create_customer
from cng_portal.inventory.models import Location

pytestmark = pytest.mark.django_db
KIND = ServiceKind.BS_SNAPSHOT
START = datetime(2040, 11, 5, 10, 17, 23, tzinfo=UTC)


@pytest.fixture
def place():
    owner = User.objects.create_user("owner@example.com", "x")
    customer = create_customer(name="Shwe", owner=owner)
    location = Location.objects.create(code="1CNG-YGN-AZ01", city="Yangon", country="MM", region="asia")
    services.create_package(
        location=location, kind=KIND, rate_micro=400_000, starts_at=datetime(2020, 1, 1, tzinfo=UTC)
    )
    return SimpleNamespace(
        owner=owner, customer=customer, project=customer.projects.get(), location=location, resource=uuid4()
    )


def open_one(place, at=START, **fields):
    given = {
        "resource_id": place.resource,
        "kind": KIND,
        "name": "disk-1",
        "project": place.project,
        "location": place.location,
        "size_gb": 50,
        "at": at,
    }
    return services.open_segment(**(given | fields))


def test_the_worked_case_of_the_product_page(place):
    open_one(place)
    assert services.close_segment(
        resource_id=place.resource, kind=KIND, at=datetime(2040, 11, 5, 13, 2, 10, tzinfo=UTC)
    )
    cost = services.cost_so_far(resource_id=place.resource, at=datetime(2040, 12, 24, tzinfo=UTC))
    assert (cost.hours, cost.label) == (3, "K 60.00")
    assert [line.formula for line in cost.lines] == ["3 hours × 50 GB × K 0.4000 = K 60.00"]


def test_a_quote_says_the_price_in_words(place):
    quote = services.quote(customer=place.customer, location=place.location, kind=KIND, size_gb=50, at=START)
    assert quote.summary == "K 20 / Hour / 50 GB"
    assert quote.formula == "50 GB × K 0.4000 = K 20.00 an hour"
    assert (quote.hourly_micro, quote.daily_micro, quote.monthly_micro) == (20_000_000, 480_000_000, 14_640_000_000)
    assert quote.until(START, START + timedelta(hours=2, minutes=45)) == 60_000_000


def test_an_estimate_until_a_date_knows_the_planned_price(place):
    services.set_price(
        package=Package.objects.get(), rate_micro=800_000, starts_at=START + timedelta(hours=2), by=None, at=START
    )
    quote = services.quote(customer=place.customer, location=place.location, kind=KIND, size_gb=50, at=START)
    assert quote.until(START, START + timedelta(hours=3)) == 80_000_000


def test_what_has_no_package_or_no_begun_price_is_not_sold(place):
    with pytest.raises(services.NotSold, match="VM Backup is not sold in 1CNG-YGN-AZ01"):
        services.quote(
            customer=place.customer, location=place.location, kind=ServiceKind.VM_BACKUP, size_gb=50, at=START
        )
    with pytest.raises(services.NotSold):
        services.quote(
            customer=place.customer, location=place.location, kind=KIND, size_gb=50, at=datetime(2019, 1, 1, tzinfo=UTC)
        )
    Package.objects.update(active=False)
    with pytest.raises(services.NotSold):
        services.quote(customer=place.customer, location=place.location, kind=KIND, size_gb=50, at=START)
    assert services.rates_at(kind=KIND, at=START) == {}


def test_rates_are_those_of_the_locations_that_sell_it(place):
    assert services.rates_at(kind=KIND, at=START, location_codes=["1CNG-YGN-AZ01", "X"]) == {"1CNG-YGN-AZ01": 400_000}
    assert services.sold_kinds(at=START) == {"1CNG-YGN-AZ01": {KIND}}


def test_opening_and_closing_twice_changes_nothing(place):
    first = open_one(place)
    assert open_one(place, at=START + timedelta(minutes=1), size_gb=60) == first
    end = START + timedelta(hours=1)
    assert services.close_segment(resource_id=place.resource, kind=KIND, at=end) is True
    assert services.close_segment(resource_id=place.resource, kind=KIND, at=end + timedelta(hours=9)) is False
    assert services.close_segment(resource_id=uuid4(), kind=KIND, at=end) is False
    assert open_one(place) == first
    assert UsageSegment.objects.get().ended_at == end


def test_an_hour_once_paid_for_is_not_paid_twice(place):
    kind = ServiceKind.VM_BACKUP_AUTOMATIC
    automatic = {"kind": kind, "size_gb": 0, "base_rate_micro": 100_000_000}
    open_one(place, **automatic)
    services.close_segment(resource_id=place.resource, kind=kind, at=START + timedelta(minutes=10))
    again = open_one(place, at=START + timedelta(minutes=20), **automatic)
    assert again.started_at == START + timedelta(hours=1)
    assert services.cost_so_far(resource_id=place.resource, at=START + timedelta(minutes=30)).amount_micro == 20_000_000
    # off again before the paid hour is over: it never began
    assert services.close_segment(resource_id=place.resource, kind=kind, at=START + timedelta(minutes=40))
    assert UsageSegment.objects.get(never_began=True) == again
    assert services.cost_so_far(resource_id=place.resource, at=START + timedelta(hours=9)).hours == 1
    third = open_one(place, at=START + timedelta(minutes=50), **automatic)
    assert third.started_at == START + timedelta(hours=1)
    assert services.cost_so_far(resource_id=place.resource, at=START + timedelta(minutes=61)).hours == 2


def test_a_new_price_of_the_machine_counts_from_the_next_unpaid_hour(place):
    kind = ServiceKind.VM_BACKUP_AUTOMATIC
    open_one(place, kind=kind, size_gb=0, base_rate_micro=100_000_000)
    services.change_base_rate(
        resource_id=place.resource, base_rate_micro=200_000_000, at=START + timedelta(hours=1, minutes=30)
    )
    services.change_base_rate(
        resource_id=place.resource, base_rate_micro=300_000_000, at=START + timedelta(hours=1, minutes=40)
    )
    cost = services.cost_so_far(resource_id=place.resource, at=START + timedelta(hours=3))
    assert [(line.hours, line.rate_micro) for line in cost.lines] == [(2, 100_000_000), (1, 300_000_000)]
    assert cost.amount_micro == 100_000_000


def test_a_new_name_reaches_what_is_open_only(place):
    open_one(place)
    assert services.rename_resource(resource_id=place.resource, name="other") == 1
    services.close_segment(resource_id=place.resource, kind=KIND, at=START)
    assert services.rename_resource(resource_id=place.resource, name="third") == 0
    assert UsageSegment.objects.get().resource_name == "other"


def test_each_thing_of_a_list_has_its_own_cost(place):
    ids = [uuid4() for _ in range(30)]
    for one in ids:
        open_one(place, resource_id=one)
    costs = services.costs_so_far(ids, START + timedelta(hours=2))
    assert {cost.amount_micro for cost in costs.values()} == {40_000_000}
    assert len(costs) == 30


def test_a_prepaid_customer_needs_cover_for_the_first_hour(place):
    cover = {"customer": place.customer, "hourly_micro": 20_000_000, "at": START}
    with pytest.raises(services.InsufficientCredit, match=r"Insufficient infra credit: .*K 20.00 more"):
        services.require_cover(**cover)
    services.buy_credits(
        customer=place.customer, amount_micro=30_000_000, reason="bank", by=None, key="a", at=START - timedelta(days=1)
    )
    services.require_cover(**cover)
    with pytest.raises(services.InsufficientCredit) as refusal:
        services.require_cover(**cover, reserved_micro=20_000_000)
    assert refusal.value.missing_micro == 10_000_000
    open_one(place)
    assert services.balance(customer=place.customer, at=START) == 10_000_000
    place.customer.billing_type = "postpaid"
    services.require_cover(**cover)


def test_credits_are_recorded_once_per_key(place):
    grant = {"customer": place.customer, "amount_micro": 1_000_000, "reason": "welcome", "by": place.owner, "key": "k"}
    assert services.grant_credits(**grant) == services.grant_credits(**grant)
    with pytest.raises(services.Refused, match="under this key"):
        services.grant_credits(**grant | {"amount_micro": 2_000_000})
    with pytest.raises(services.Refused, match="two decimals"):
        services.grant_credits(**grant | {"amount_micro": 1, "key": "l"})
    with pytest.raises(services.Refused, match="reason"):
        services.grant_credits(**grant | {"reason": " ", "key": "l"})


def test_how_long_the_credits_last(place):
    services.buy_credits(
        customer=place.customer, amount_micro=100_000_000, reason="bank", by=None, key="a", at=START - timedelta(days=1)
    )
    open_one(place)
    lasting = services.lasts_for(customer=place.customer, at=START, extra_hourly_micro=20_000_000)
    assert (lasting.now, lasting.then) == (timedelta(hours=4), timedelta(hours=2))


def test_hourly_is_the_only_billing_cycle():
    assert BillingCycle.values == ["hourly"]


def test_a_planned_price_of_a_retired_package_never_begins(place):
    """A at 0.4 with 0.9 planned is retired, and B at 0.1 takes its place."""
    first = Package.objects.get()
    now = timezone.now()
    services.set_price(package=first, rate_micro=900_000, starts_at=now + timedelta(days=10), by=None, at=now)
    assert [version.rate_micro for version in services.retire_package(package=first, by=place.owner)] == [900_000]
    services.create_package(
        location=place.location, kind=KIND, rate_micro=100_000, starts_at=now + timedelta(days=1), name="B"
    )
    later = now + timedelta(days=20)
    quote = services.quote(customer=place.customer, location=place.location, kind=KIND, size_gb=50, at=later)
    assert quote.hourly_micro == 5_000_000
    open_one(place, at=later)
    cost = services.cost_so_far(resource_id=place.resource, at=later + timedelta(hours=2))
    assert cost.amount_micro == 10_000_000


@pytest.mark.both_databases
def test_the_database_keeps_planned_prices_and_inactive_packages_apart(place):
    package, now = Package.objects.get(), timezone.now()
    services.set_price(package=package, rate_micro=900_000, starts_at=now + timedelta(days=10), by=None, at=now)
    with pytest.raises(IntegrityError, match="planned prices"), transaction.atomic():
        Package.objects.update(active=False)
    services.retire_package(package=package, by=None)
    with pytest.raises(IntegrityError, match="takes no new prices"), transaction.atomic():
        PriceVersion.objects.create(package=package, rate_micro=1, starts_at=now + timedelta(days=10))
