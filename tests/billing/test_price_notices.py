"""Owners are notified of a price change before it applies, and of every change of their credits by an administrator."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from billing.models import UsageSegment
from billing.pricing import notices as price_notices
from billing.pricing.notices import announce_prices
from billing.pricing.packages import correct_price, create_package, delete_price, retire_package, save_price, set_price
from billing.scheduling import run_due
from billing.wallet import buy_credits, correct_credits
from cng_portal.accounts.models import User
from cng_portal.common.preferences import DateFormat
from tests.factories import LocationFactory, ProjectFactory, UserFactory
from tests.smtp import sent_mails

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]

PAST = datetime(2026, 1, 2, tzinfo=UTC)
FUTURE = datetime(2090, 3, 1, 6, 30, tzinfo=UTC)
K = 10**6


def notices_of(user):
    return list(user.notifications.order_by("created_at", "id").values_list("level", "title", "text"))


def plan(package, rate_micro=500_000, starts_at=FUTURE):
    version = set_price(package=package, rate_micro=rate_micro, starts_at=starts_at, by=None)
    announce_prices(at=timezone.now())
    return version


def test_a_planned_rise_is_notified_with_the_future_cost(shop, use):
    use(PAST)
    use(PAST, size_gb=100)
    plan(shop.package)
    [(level, title, text)] = notices_of(shop.owner)
    assert (level, title) == ("warning", "The price of BS Snapshot rises")
    assert "K 0.5000 per GB and hour instead of K 0.4000" in text
    assert "150 GB, will then cost K 75.00 an hour, about K 54,900.00" in text
    assert "1 Mar 2090, 13:00 UTC+06:30" in text
    assert [mail.to for mail in sent_mails()] == [[shop.owner.email]]


def test_only_owners_with_running_usage_of_that_kind_location_and_currency_are_notified(shop, use):
    use(PAST, PAST + timedelta(hours=1))
    member = UserFactory(member_of=shop.project, member_of__role="member")
    stranger = UserFactory(member_of=ProjectFactory())
    dollars = ProjectFactory(customer__currency="USD")
    elsewhere = LocationFactory(code="1CNG-SGP-AZ01")
    for fields in ({"project": dollars}, {"location": elsewhere}, {"kind": "vm_snapshot"}):
        use(PAST, **fields)
    user_in_dollars = UserFactory(member_of=dollars)
    plan(shop.package)
    for user in (shop.owner, member, stranger, user_in_dollars):
        assert not notices_of(user)


def test_a_first_price_and_an_unchanged_one_are_not_notified(shop, use):
    use(PAST, kind="vm_snapshot")
    create_package(location=shop.location, kind="vm_snapshot", rate_micro=9, starts_at=FUTURE)
    announce_prices(at=timezone.now())
    use(PAST)
    plan(shop.package, rate_micro=400_000)
    assert not notices_of(shop.owner)


def test_customers_who_start_after_the_plan_are_notified_once_by_the_scheduler(shop, use):
    plan(shop.package)
    use(PAST)
    for _turn in range(2):
        run_due(at=timezone.now())
    titles = [title for _level, title, _text in notices_of(shop.owner)]
    assert titles.count("The price of BS Snapshot rises") == 1


def test_a_customer_who_cannot_be_notified_fails_alone_and_is_notified_later(shop, use):
    use(PAST)
    broken = UserFactory(member_of=ProjectFactory(), date_format="broken")
    broken.customer = broken.projects.get().customer
    broken.save()
    use(PAST, project=broken.projects.get())
    version = set_price(package=shop.package, rate_micro=500_000, starts_at=FUTURE, by=None)
    with pytest.raises(ExceptionGroup):
        announce_prices(at=timezone.now())
    assert (len(notices_of(shop.owner)), len(notices_of(broken))) == (1, 0)
    User.objects.filter(pk=broken.pk).update(date_format=DateFormat.WORDS)
    announce_prices(at=timezone.now())
    assert (len(notices_of(shop.owner)), len(notices_of(broken))) == (1, 1)
    # changed before it begins: announced again
    version.rate_micro = 600_000
    save_price(version, by=None)
    announce_prices(at=timezone.now())
    assert "K 0.6000" in notices_of(broken)[-1][2]


def test_customers_who_know_are_not_visited_again(shop, use, monkeypatch):
    use(PAST)
    UsageSegment.objects.update(start_recorded_at=timezone.now() - timedelta(days=1))
    plan(shop.package)
    monkeypatch.setattr(price_notices.block_storage, "notify", lambda **event: pytest.fail("was visited again"))
    announce_prices(at=timezone.now())


def test_a_withdrawal_is_notified_only_to_those_who_know_of_the_price(shop, use):
    use(PAST)
    version = set_price(package=shop.package, rate_micro=500_000, starts_at=FUTURE, by=None)
    delete_price(version, by=None)
    assert not notices_of(shop.owner)


def test_a_fall_and_a_withdrawn_plan_are_notified(shop, use):
    use(PAST)
    fall = plan(shop.package, rate_micro=300_000)
    assert notices_of(shop.owner)[-1][:2] == ("info", "The price of BS Snapshot falls")
    delete_price(fall, by=None)
    assert notices_of(shop.owner)[-1][1] == "The price of BS Snapshot stays as it is"
    plan(shop.package)
    retire_package(package=shop.package, by=None)
    assert len(notices_of(shop.owner)) == 4


def test_the_price_of_a_replacement_package_is_notified(shop, use):
    use(PAST)
    retire_package(package=shop.package, by=None)
    create_package(location=shop.location, kind=shop.kind, rate_micro=900_000, starts_at=FUTURE)
    announce_prices(at=timezone.now())
    assert "K 0.9000 per GB and hour instead of K 0.4000" in notices_of(shop.owner)[0][2]


def test_a_correction_is_notified_to_customers_with_usage(shop, use):
    use(PAST, PAST + timedelta(hours=1))
    correct_price(version=shop.package.versions.get(), rate_micro=40_000, reason="typo", by=None)
    [(level, title, text)] = notices_of(shop.owner)
    assert (level, title) == ("success", "The price of BS Snapshot was corrected")
    assert "K 0.0400 per GB and hour instead of K 0.4000" in text and "the next invoice credits" in text


def test_changes_of_credits_by_administrators_are_notified_once(shop):
    admin = UserFactory(admin=True)
    for _click in range(2):
        correct_credits(customer=shop.customer, amount_micro=-5 * K, reason="counted twice", by=admin, key="one")
    [(level, title, text)] = notices_of(shop.owner)
    assert (level, title) == ("warning", "Your infra credits changed by -K 5.00")
    assert "counted twice" in text
    buy_credits(customer=shop.customer, amount_micro=9 * K, reason="by card", by=None, key="two")
    assert len(notices_of(shop.owner)) == 1
