"""The page of prices: in the customer's currency, with planned prices and kinds that aren't sold, for every user."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from django.test import Client
from django.utils import timezone

from billing.models import ServiceKind
from billing.pricing.packages import create_package, retire_package, set_price
from billing.pricing.table import build_price_tables, currencies_of
from cng_portal.accounts.models import Role
from snapshots.search import search
from tests.factories import LocationFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db
AT = datetime(2026, 6, 1, tzinfo=UTC)


def cells(shop: SimpleNamespace, currency: str = "MMK") -> dict[str, tuple[str, str, list[tuple[datetime, str]]]]:
    [row] = build_price_tables([currency], timezone.now())[currency]
    return {
        price.kind: (price.rate, price.month, [(planned.starts_at, planned.rate) for planned in price.planned])
        for price in row.prices
    }


def test_the_price_of_an_hour_and_of_a_month_and_what_is_planned(shop: SimpleNamespace) -> None:
    starts_at = timezone.now() + timedelta(days=30)
    set_price(package=shop.package, rate_micro=500_000, starts_at=starts_at, by=None)
    assert cells(shop)[ServiceKind.BS_SNAPSHOT] == ("K 0.4000", "K 292.80", [(starts_at, "K 0.5000")])


def test_kinds_that_are_not_sold_have_no_price(shop: SimpleNamespace) -> None:
    assert cells(shop)[ServiceKind.VM_BACKUP] == ("", "", [])
    assert cells(shop, "USD")[ServiceKind.BS_SNAPSHOT] == ("", "", [])
    retire_package(package=shop.package, by=None)
    assert cells(shop)[ServiceKind.BS_SNAPSHOT] == ("", "", [])


def test_closed_locations_sell_nothing(shop: SimpleNamespace) -> None:
    LocationFactory(closed=True)
    assert [row.location for row in build_price_tables(["MMK"], AT)["MMK"]] == [shop.location]


def test_each_customer_reads_the_prices_of_its_currency(
    shop: SimpleNamespace, client_for: Callable[..., Client]
) -> None:
    create_package(location=shop.location, kind=shop.kind, rate_micro=100, starts_at=AT, currency="USD")
    abroad = ProjectFactory(customer__currency="USD")
    page = client_for(UserFactory(member_of=abroad)).get("/billing/prices/").text
    assert "0.0001" in page
    assert "K 0.4000" not in page
    both = UserFactory(member_of=shop.project)
    abroad.memberships.create(user=both, role=Role.VIEWER)
    assert currencies_of(both) == ["MMK", "USD"]
    assert currencies_of(UserFactory(admin=True)) == ["MMK"]


@pytest.mark.parametrize("role", Role.values)
def test_everybody_sees_prices_and_only_owners_see_the_tabs(
    shop: SimpleNamespace, role: str, client_for: Callable[..., Client]
) -> None:
    user = UserFactory(member_of=shop.project, member_of__role=role)
    page = client_for(user).get("/billing/prices/")
    assert page.status_code == 200
    assert 'id="1CNG-YGN-AZ01"' in page.text
    assert "K 292.80" in page.text
    assert ("Account Statement" in page.text) == (role == Role.OWNER)
    assert "Prices" in [hit.name for group in search(user, "prices") for hit in group.hits]


def test_unit_prices_link_to_the_price_page(
    shop: SimpleNamespace, use: Callable, client_for: Callable[..., Client]
) -> None:
    use(timezone.now() - timedelta(hours=3))
    client = client_for(shop.owner)
    for path in ("statement/", "subscriptions/"):
        assert 'href="/billing/prices/#1CNG-YGN-AZ01"' in client.get(f"/billing/{path}").text
    assert 'href="/billing/prices/"' in client.get("/billing/").text
