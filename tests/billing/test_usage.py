from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing.balance import credit_runway, get_balance, require_cover
from billing.charges import cost_so_far, costs_so_far, total_charged
from billing.closing import close_months
from billing.errors import InsufficientCredit, NotSold, Refused
from billing.models import BillingCycle, InvoiceLine, Package, PriceVersion, ServiceKind, UsageSegment
from billing.pricing.packages import create_package, retire_package, set_price
from billing.pricing.prices import PriceList, get_quote
from billing.usage import change_usage, close_segment, open_segment, rename_resource
from billing.wallet import buy_credits, grant_credits
from cng_portal.accounts.models import User
from cng_portal.accounts.services import create_customer
from cng_portal.inventory.models import Location
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db
KIND = ServiceKind.BS_SNAPSHOT
START = datetime(2040, 11, 5, 10, 17, 23, tzinfo=UTC)


@pytest.fixture
def shop():
    owner = User.objects.create_user("owner@example.com", "x")
    customer = create_customer(name="Shwe", owner=owner)
    location = Location.objects.create(code="1CNG-YGN-AZ01", city="Yangon", country="MM", region="asia")
    create_package(location=location, kind=KIND, rate_micro=400_000, starts_at=datetime(2020, 1, 1, tzinfo=UTC))
    return SimpleNamespace(
        owner=owner, customer=customer, project=customer.projects.get(), location=location, resource=uuid4()
    )


def open_usage(shop, at=START, **fields):
    values = {
        "resource_id": shop.resource,
        "kind": KIND,
        "name": "disk-1",
        "project": shop.project,
        "location": shop.location,
        "size_gb": 50,
        "at": at,
    }
    return open_segment(**(values | fields))


def test_usage_costs_the_amount_of_the_product_pages_example(shop):
    open_usage(shop)
    assert close_segment(resource_id=shop.resource, kind=KIND, at=datetime(2040, 11, 5, 13, 2, 10, tzinfo=UTC))
    cost = cost_so_far(resource_id=shop.resource, at=datetime(2040, 12, 24, tzinfo=UTC))
    assert (cost.hours, cost.label) == (3, "K 60.00")
    assert [line.formula for line in cost.lines] == ["3 hours × 50 GB × K 0.4000 = K 60.00"]


def test_a_quote_has_the_price_as_text(shop):
    quote = get_quote(customer=shop.customer, location=shop.location, kind=KIND, size_gb=50, at=START)
    assert quote.summary == "K 20.00 / Hour / 50 GB"
    assert quote.formula == "50 GB × K 0.4000 = K 20.00 an hour"
    assert (quote.hourly_micro, quote.daily_micro, quote.monthly_micro) == (20_000_000, 480_000_000, 14_640_000_000)
    assert quote.cost_between(START, START + timedelta(hours=2, minutes=45)) == 60_000_000


def test_an_estimate_until_a_date_includes_planned_prices(shop):
    set_price(
        package=Package.objects.get(), rate_micro=800_000, starts_at=START + timedelta(hours=2), by=None, at=START
    )
    quote = get_quote(customer=shop.customer, location=shop.location, kind=KIND, size_gb=50, at=START)
    assert quote.cost_between(START, START + timedelta(hours=3)) == 80_000_000


def test_kinds_without_a_package_or_current_price_are_not_sold(shop):
    with pytest.raises(NotSold, match="VM Backup is not sold in 1CNG-YGN-AZ01"):
        get_quote(customer=shop.customer, location=shop.location, kind=ServiceKind.VM_BACKUP, size_gb=50, at=START)
    with pytest.raises(NotSold):
        get_quote(
            customer=shop.customer, location=shop.location, kind=KIND, size_gb=50, at=datetime(2019, 1, 1, tzinfo=UTC)
        )
    Package.objects.update(active=False)
    with pytest.raises(NotSold):
        get_quote(customer=shop.customer, location=shop.location, kind=KIND, size_gb=50, at=START)
    prices = PriceList.load()
    assert prices.sold_rate(KIND, shop.location.pk, "MMK", START) is None
    existing = prices.quote(KIND, shop.location.pk, "MMK", START, size_gb=1)
    assert existing is not None and existing.rate_micro == 400_000


def test_a_rate_exists_only_where_the_location_sells_the_kind(shop):
    prices = PriceList.load(["1CNG-YGN-AZ01", "X"])
    assert prices.sold_rate(KIND, "1CNG-YGN-AZ01", "MMK", START) == 400_000
    assert prices.sold_rate(KIND, "X", "MMK", START) is None
    assert prices.sold_rate(ServiceKind.VM_BACKUP, "1CNG-YGN-AZ01", "MMK", START) is None
    assert PriceList.load(["X"]).quote(KIND, "1CNG-YGN-AZ01", "MMK", START, size_gb=1) is None


def test_a_customer_is_priced_by_the_packages_of_their_currency(shop):
    dollars = ProjectFactory(customer__currency="USD").customer
    quote = {"location": shop.location, "kind": KIND, "size_gb": 50, "at": START}
    with pytest.raises(NotSold, match="BS Snapshot is not sold in 1CNG-YGN-AZ01"):
        get_quote(customer=dollars, **quote)
    with pytest.raises(ValidationError, match="already has an active package"):
        create_package(location=shop.location, kind=KIND, rate_micro=1, starts_at=START)
    since = datetime(2020, 1, 1, tzinfo=UTC)
    create_package(location=shop.location, kind=KIND, currency="USD", rate_micro=200, starts_at=since)
    assert get_quote(customer=dollars, **quote).summary == "$ 0.01 / Hour / 50 GB"
    assert get_quote(customer=shop.customer, **quote).hourly_micro == 20_000_000


def test_each_customer_of_a_location_is_charged_by_the_package_of_their_currency(shop):
    project = ProjectFactory(customer__currency="USD")
    since = datetime(2020, 1, 1, tzinfo=UTC)
    create_package(location=shop.location, kind=KIND, currency="USD", rate_micro=200, starts_at=since)
    open_usage(shop)
    open_usage(shop, resource_id=uuid4(), project=project)
    at = START + timedelta(hours=2, minutes=30)
    assert total_charged(customer=shop.customer, at=at) == 3 * 50 * 400_000
    assert total_charged(customer=project.customer, at=at) == 3 * 50 * 200
    close_months(at=START + timedelta(days=40))
    lines = InvoiceLine.objects.filter(month="2040-11-01")
    rates = {(line.invoice.currency, line.rate_micro) for line in lines.select_related("invoice")}
    assert rates == {("MMK", 400_000), ("USD", 200)}


def test_a_package_has_a_currency_of_iso_4217(shop):
    with pytest.raises(ValidationError, match="not a valid choice"):
        create_package(location=shop.location, kind=KIND, currency="KYT", rate_micro=1, starts_at=START)


def test_opening_and_closing_twice_changes_nothing(shop):
    first = open_usage(shop)
    assert open_usage(shop, at=START + timedelta(minutes=1), size_gb=60) == first
    end = START + timedelta(hours=1)
    assert close_segment(resource_id=shop.resource, kind=KIND, at=end) is True
    assert close_segment(resource_id=shop.resource, kind=KIND, at=end + timedelta(hours=9)) is False
    assert close_segment(resource_id=uuid4(), kind=KIND, at=end) is False
    assert open_usage(shop) == first
    assert UsageSegment.objects.get().ended_at == end


def test_an_hour_is_not_charged_twice(shop):
    kind = ServiceKind.VM_BACKUP_AUTOMATIC
    automatic = {"kind": kind, "size_gb": 0, "base_rate_micro": 100_000_000}
    open_usage(shop, **automatic)
    close_segment(resource_id=shop.resource, kind=kind, at=START + timedelta(minutes=10))
    again = open_usage(shop, at=START + timedelta(minutes=20), **automatic)
    assert again.started_at == START + timedelta(hours=1)
    assert cost_so_far(resource_id=shop.resource, at=START + timedelta(minutes=30)).amount_micro == 20_000_000
    # off again before the paid hour is over: it never began
    assert close_segment(resource_id=shop.resource, kind=kind, at=START + timedelta(minutes=40))
    assert UsageSegment.objects.get(voided=True) == again
    assert cost_so_far(resource_id=shop.resource, at=START + timedelta(hours=9)).hours == 1
    third = open_usage(shop, at=START + timedelta(minutes=50), **automatic)
    assert third.started_at == START + timedelta(hours=1)
    assert cost_so_far(resource_id=shop.resource, at=START + timedelta(minutes=61)).hours == 2


def test_a_new_price_of_the_machine_counts_from_the_next_unpaid_hour(shop):
    kind = ServiceKind.VM_BACKUP_AUTOMATIC
    open_usage(shop, kind=kind, size_gb=0, base_rate_micro=100_000_000)
    for minutes, base_rate_micro in ((90, 200_000_000), (100, 300_000_000)):
        at = START + timedelta(minutes=minutes)
        change_usage(resource_id=shop.resource, kind=kind, base_rate_micro=base_rate_micro, at=at)
    cost = cost_so_far(resource_id=shop.resource, at=START + timedelta(hours=3))
    assert [(line.hours, line.rate_micro) for line in cost.lines] == [(2, 100_000_000), (1, 300_000_000)]
    assert cost.amount_micro == 100_000_000


def change_usage_of(shop, at, **fields):
    return change_usage(resource_id=shop.resource, kind=KIND, at=at, **fields)


def test_a_new_size_and_project_count_from_the_next_unpaid_hour(shop):
    other = ProjectFactory(customer=shop.customer, name="Other")
    open_usage(shop)
    grown = change_usage_of(shop, START + timedelta(minutes=90), size_gb=80)
    assert (grown.started_at, grown.size_gb, grown.project) == (START + timedelta(hours=2), 80, shop.project)
    # moved before the new size began: one segment with both
    moved = change_usage_of(shop, START + timedelta(minutes=100), project=other)
    assert (moved.started_at, moved.size_gb, moved.project) == (START + timedelta(hours=2), 80, other)
    assert UsageSegment.objects.get(voided=True) == grown
    assert change_usage_of(shop, START + timedelta(minutes=110), project=other, size_gb=80) == moved
    cost = cost_so_far(resource_id=shop.resource, at=START + timedelta(hours=3))
    assert [(line.hours, line.size_gb) for line in cost.lines] == [(2, 50), (1, 80)]


def test_a_change_at_a_full_hour_counts_at_once(shop):
    open_usage(shop)
    assert change_usage_of(shop, START + timedelta(hours=2), size_gb=80).started_at == START + timedelta(hours=2)


def test_a_change_at_the_very_start_leaves_the_first_hour_as_it_was(shop):
    """The clock may also be behind that of the machine that started the charge."""
    for at in (START, START - timedelta(seconds=2)):
        shop.resource = uuid4()
        open_usage(shop)
        assert change_usage_of(shop, at, size_gb=80).started_at == START + timedelta(hours=1)
        cost = cost_so_far(resource_id=shop.resource, at=START + timedelta(hours=2))
        assert [(line.hours, line.size_gb) for line in cost.lines] == [(1, 50), (1, 80)]


def test_usage_that_ends_in_the_hour_of_a_change_costs_no_more(shop):
    open_usage(shop)
    change_usage_of(shop, START + timedelta(minutes=90), size_gb=80)
    assert close_segment(resource_id=shop.resource, kind=KIND, at=START + timedelta(minutes=110))
    cost = cost_so_far(resource_id=shop.resource, at=START + timedelta(days=3))
    assert [(line.hours, line.size_gb) for line in cost.lines] == [(2, 50)]


def test_usage_that_resumes_and_ends_in_a_paid_hour_costs_no_second_hour(shop):
    """A snapshot is found damaged, then intact, and then deleted."""
    open_usage(shop)
    close_segment(resource_id=shop.resource, kind=KIND, at=START + timedelta(minutes=10))
    assert open_usage(shop, at=START + timedelta(minutes=20)).started_at == START + timedelta(hours=1)
    close_segment(resource_id=shop.resource, kind=KIND, at=START + timedelta(minutes=30))
    assert cost_so_far(resource_id=shop.resource, at=START + timedelta(days=3)).hours == 1


def test_the_first_hour_is_paid_even_if_it_ends_before_it_starts(shop):
    """The clocks of two machines differ."""
    open_usage(shop)
    close_segment(resource_id=shop.resource, kind=KIND, at=START - timedelta(seconds=2))
    assert cost_so_far(resource_id=shop.resource, at=START + timedelta(days=3)).hours == 1


def test_changing_usage_that_is_not_charged_does_nothing(shop):
    assert change_usage_of(shop, START, size_gb=80) is None
    open_usage(shop)
    with pytest.raises(ValueError, match="stays with its customer"):
        change_usage_of(shop, START, project=ProjectFactory())


def test_a_new_name_reaches_only_open_usage(shop):
    open_usage(shop)
    assert rename_resource(resource_id=shop.resource, name="other") == 1
    close_segment(resource_id=shop.resource, kind=KIND, at=START)
    assert rename_resource(resource_id=shop.resource, name="third") == 0
    assert UsageSegment.objects.get().resource_name == "other"


def test_each_resource_of_a_list_has_its_own_cost(shop):
    ids = [uuid4() for _ in range(30)]
    for resource_id in ids:
        open_usage(shop, resource_id=resource_id)
    costs = costs_so_far(ids, START + timedelta(hours=2))
    assert {cost.amount_micro for cost in costs.values()} == {40_000_000}
    assert len(costs) == 30


def test_a_prepaid_customer_needs_cover_for_the_first_hour(shop):
    cover = {"customer": shop.customer, "hourly_micro": 20_000_000, "at": START}
    with pytest.raises(InsufficientCredit, match=r"Insufficient infra credit: .*K 20.00 more"):
        require_cover(**cover)
    buy_credits(
        customer=shop.customer, amount_micro=30_000_000, reason="bank", by=None, key="a", at=START - timedelta(days=1)
    )
    require_cover(**cover)
    with pytest.raises(InsufficientCredit) as refusal:
        require_cover(**cover, reserved_micro=20_000_000)
    assert refusal.value.missing_micro == 10_000_000
    open_usage(shop)
    assert get_balance(customer=shop.customer, at=START) == 10_000_000
    shop.customer.billing_type = "postpaid"
    require_cover(**cover)


def test_credits_are_recorded_once_per_key(shop):
    grant = {"customer": shop.customer, "amount_micro": 1_000_000, "reason": "welcome", "by": shop.owner, "key": "k"}
    assert grant_credits(**grant) == grant_credits(**grant)
    with pytest.raises(Refused, match="under this key"):
        grant_credits(**grant | {"amount_micro": 2_000_000})
    with pytest.raises(Refused, match="at least K 0.01, in multiples of K 0.01"):
        grant_credits(**grant | {"amount_micro": 1, "key": "l"})
    with pytest.raises(Refused, match="reason"):
        grant_credits(**grant | {"reason": " ", "key": "l"})


def test_the_credit_runway_follows_the_hourly_cost(shop):
    buy_credits(
        customer=shop.customer, amount_micro=100_000_000, reason="bank", by=None, key="a", at=START - timedelta(days=1)
    )
    open_usage(shop)
    runway = credit_runway(customer=shop.customer, at=START, extra_hourly_micro=20_000_000)
    assert (runway.current, runway.with_new) == (timedelta(hours=4), timedelta(hours=2))


def test_hourly_is_the_only_billing_cycle():
    assert BillingCycle.values == ["hourly"]


def test_a_planned_price_of_a_retired_package_never_begins(shop):
    """Package A at 0.4 with 0.9 planned is retired, and B at 0.1 replaces it."""
    first = Package.objects.get()
    now = timezone.now()
    set_price(package=first, rate_micro=900_000, starts_at=now + timedelta(days=10), by=None, at=now)
    assert [version.rate_micro for version in retire_package(package=first, by=shop.owner)] == [900_000]
    create_package(location=shop.location, kind=KIND, rate_micro=100_000, starts_at=now + timedelta(days=1), name="B")
    later = now + timedelta(days=20)
    quote = get_quote(customer=shop.customer, location=shop.location, kind=KIND, size_gb=50, at=later)
    assert quote.hourly_micro == 5_000_000
    open_usage(shop, at=later)
    cost = cost_so_far(resource_id=shop.resource, at=later + timedelta(hours=2))
    assert cost.amount_micro == 10_000_000


@pytest.mark.both_databases
def test_the_database_keeps_planned_prices_and_inactive_packages_apart(shop):
    package, now = Package.objects.get(), timezone.now()
    set_price(package=package, rate_micro=900_000, starts_at=now + timedelta(days=10), by=None, at=now)
    with pytest.raises(IntegrityError, match="planned prices"), transaction.atomic():
        Package.objects.update(active=False)
    retire_package(package=package, by=None)
    with pytest.raises(IntegrityError, match="takes no new prices"), transaction.atomic():
        PriceVersion.objects.create(package=package, rate_micro=1, starts_at=now + timedelta(days=10))
