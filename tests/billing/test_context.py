"""The wallet in the top bar."""

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.test import RequestFactory
from django.utils import timezone

from billing import context
from billing.models import ServiceKind
from billing.pricing.packages import create_package
from billing.usage import open_segment
from billing.wallet import buy_credits
from cng_portal.accounts.models import User
from tests.factories import LocationFactory, MembershipFactory

pytestmark = pytest.mark.django_db


def wallet_amount(user: User) -> str:
    request = RequestFactory().get("/")
    request.user = User.objects.get(pk=user.pk)
    return str(context.wallet(request)["wallet_amount"])


@pytest.fixture
def user() -> User:
    member = MembershipFactory()
    member.user.customer = member.project.customer
    member.user.save()
    location = LocationFactory()
    starts_at = timezone.now() - timedelta(days=9)
    create_package(location=location, kind=ServiceKind.BS_SNAPSHOT, rate_micro=400_000, starts_at=starts_at)
    buy_credits(customer=member.project.customer, amount_micro=100_000_000, reason="bought", by=None, key="first")
    open_segment(
        resource_id=member.project.pk,
        kind=ServiceKind.BS_SNAPSHOT,
        name="nightly",
        project=member.project,
        location=location,
        size_gb=50,
        at=timezone.now(),
    )
    return member.user


def test_the_balance_in_the_top_bar_is_at_most_a_minute_old(user: User) -> None:
    next_minute = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    with time_machine.travel(next_minute, tick=False) as clock:
        assert wallet_amount(user) == "K 80.00"
        buy_credits(customer=user.customer, amount_micro=10_000_000, reason="more", by=None, key="second")
        clock.shift(timedelta(seconds=59))
        assert wallet_amount(user) == "K 80.00"
        clock.shift(timedelta(seconds=1))
        assert wallet_amount(user) == "K 90.00"
        clock.shift(timedelta(hours=1))
        assert wallet_amount(user) == "K 70.00"


def test_each_customer_has_a_balance_of_their_own(user: User) -> None:
    other = MembershipFactory(user__customer=None)
    other.user.customer = other.project.customer
    other.user.save()
    with time_machine.travel(timezone.now(), tick=False):
        assert (wallet_amount(user), wallet_amount(other.user)) == ("K 80.00", "K 0.00")


def test_the_wallet_and_links_to_bills_are_shown_only_to_owners(client_for: Any) -> None:
    member = MembershipFactory(role="member")
    member.user.customer = member.project.customer
    member.user.save()
    page = client_for(member.user).get("/volumes/").text
    assert "/billing/" not in page
    assert client_for(member.user).get("/billing/").status_code == 404
