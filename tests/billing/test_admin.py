from datetime import UTC, datetime, timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from billing import closing
from billing.balance import get_balance
from billing.models import Invoice, Package, PriceVersion, ServiceKind, WalletTransaction
from billing.pricing.notices import announce_prices
from billing.pricing.packages import create_package, retire_package, set_price
from billing.wallet import buy_credits
from cng_portal.activity.models import Activity
from tests.factories import LocationFactory, UserFactory, VolumeFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def desk(client_for):
    return client_for(UserFactory(admin=True))


def package_form(package=None, versions=(), **fields):
    """Return the form data as a browser sends it; versions are (pk, start, rate)."""
    form = {
        "location": package.location_id if package else LocationFactory().pk,
        "kind": package.kind if package else ServiceKind.BS_SNAPSHOT,
        "currency": package.currency if package else "MMK",
        "name": "BS Snapshot",
        "active": "on",
        "billing_cycle": "hourly",
        "billing_rule": "fixed_prorata",
        "versions-TOTAL_FORMS": len(versions),
        "versions-INITIAL_FORMS": sum(1 for pk, _start, _rate in versions if pk),
    }
    for number, (pk, start, rate) in enumerate(versions):
        form |= {
            f"versions-{number}-id": pk or "",
            f"versions-{number}-package": package.pk if package else "",
            f"versions-{number}-starts_at_0": start.strftime("%Y-%m-%d"),
            f"versions-{number}-starts_at_1": start.strftime("%H:%M:%S"),
            f"versions-{number}-rate": rate,
        }
    return form | fields


def errors(response):
    assert response.status_code == 200
    forms = [response.context["adminform"].form, *response.context["inline_admin_formsets"][0].formset.forms]
    formset = response.context["inline_admin_formsets"][0].formset
    return " ".join(
        [str(error) for form in forms for messages in form.errors.values() for error in messages]
        + [str(error) for error in formset.non_form_errors()]
    )


FUTURE = datetime(2041, 1, 1, tzinfo=UTC)


def test_an_administrator_makes_a_package_with_its_price(desk):
    response = desk.post(
        reverse("admin:billing_package_add"), package_form(versions=[(None, timezone.now(), "0.400001")])
    )
    assert response.status_code == 302, errors(response)
    assert PriceVersion.objects.get().rate_micro == 400_001


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"billing_cycle": "monthly"}, "Snapshots and backups support only Hourly billing cycles."),
        ({"billing_rule": "actual"}, "The only billing rule supported is Fixed Prorata."),
    ],
)
def test_only_hourly_and_fixed_prorata_are_accepted(desk, fields, sentence):
    response = desk.post(reverse("admin:billing_package_add"), package_form(**fields))
    assert sentence in errors(response)


def test_a_second_package_is_refused_with_the_reason(desk, shop):
    response = desk.post(reverse("admin:billing_package_add"), package_form(location=shop.location.pk))
    assert "Only one package per zone is supported" in errors(response)
    assert Package.objects.count() == 1


@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        ("-1", "greater than or equal to 0"),
        ("NaN", "Enter a number"),
        ("Infinity", "Enter a number"),
        ("0.0000001", "no more than 6 decimal places"),
        ("1001", "less than or equal to 1000"),
    ],
)
def test_an_impossible_rate_is_refused(desk, shop, rate, sentence):
    [first] = shop.package.versions.all()
    form = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (None, FUTURE, rate)])
    response = desk.post(reverse("admin:billing_package_change", args=[shop.package.pk]), form)
    assert sentence in errors(response)


def test_the_next_price_is_planned_and_the_present_one_stays(desk, shop):
    [first] = shop.package.versions.all()
    url = reverse("admin:billing_package_change", args=[shop.package.pk])
    form = package_form(shop.package, [(first.pk, FUTURE, "9"), (None, FUTURE, "0.5")])
    response = desk.post(url, form)
    assert response.status_code == 302, errors(response)
    assert list(shop.package.versions.order_by("starts_at").values_list("starts_at", "rate_micro")) == [
        (first.starts_at, 400_000),
        (FUTURE, 500_000),
    ]
    assert "K 0.5000" in desk.get(reverse("admin:billing_package_changelist")).content.decode()
    past = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (None, timezone.now(), "0.6")])
    assert "A price starts in the future" in errors(desk.post(url, past))
    same = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (None, FUTURE, "0.6")])
    assert errors(desk.post(url, same))
    gone = package_form(shop.package, [(first.pk, first.starts_at, "0.4")], **{"versions-0-DELETE": "on"})
    assert "A price that has started can't be deleted" in errors(desk.post(url, gone))


@pytest.mark.both_databases
def test_a_price_in_the_past_by_the_databases_clock_is_a_form_error(desk, shop, time_machine):
    """The web server's clock is hours behind the database's."""
    [first] = shop.package.versions.all()
    url = reverse("admin:billing_package_change", args=[shop.package.pk])
    began = timezone.now() - timedelta(hours=1)
    time_machine.move_to(timezone.now() - timedelta(hours=5))
    desk.force_login(UserFactory(admin=True))
    form = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (None, began, "0.5")], name="Renamed")
    response = desk.post(url, form)
    assert "A price starts in the future: hours that have begun keep the price they were sold at." in errors(response)
    assert f"The portal's time is {began + timedelta(hours=1):%Y-%m-%d}" in errors(response)
    page = response.content.decode()
    assert 'value="0.5"' in page and f'value="{began:%H:%M:%S}"' in page and 'value="Renamed"' in page
    assert Package.objects.get().name == "BS Snapshot 1CNG-YGN-AZ01" and PriceVersion.objects.get() == first


def test_a_price_that_would_begin_while_it_is_saved_is_an_error_of_the_form(desk, shop):
    [first] = shop.package.versions.all()
    soon = timezone.now() + timedelta(seconds=20)
    form = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (None, soon, "0.5")])
    response = desk.post(reverse("admin:billing_package_change", args=[shop.package.pk]), form)
    assert "Choose a start at least a minute later" in errors(response)
    assert 'value="0.5"' in response.content.decode()
    assert PriceVersion.objects.get() == first


def test_two_prices_planned_for_the_same_start_are_a_form_error(desk, shop):
    [first] = shop.package.versions.all()
    set_price(package=shop.package, rate_micro=600_000, starts_at=FUTURE, by=None)  # since the form was opened
    form = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (None, FUTURE, "0.5")])
    response = desk.post(reverse("admin:billing_package_change", args=[shop.package.pk]), form)
    assert "The package already has a price that starts at this instant." in errors(response)


@pytest.mark.parametrize("rate", ["4", "0.04", "0"])
def test_a_price_that_differs_tenfold_has_to_be_confirmed(desk, shop, rate):
    [first] = shop.package.versions.all()
    url = reverse("admin:billing_package_change", args=[shop.package.pk])
    form = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (None, FUTURE, rate)])
    sentence = f"The new price is K {float(rate):.4f}; the previous price is K 0.4000. If that's right, check this box."
    assert sentence in errors(desk.post(url, form))
    assert PriceVersion.objects.count() == 1
    assert desk.post(url, form | {"versions-1-confirm": "on"}).status_code == 302
    assert PriceVersion.objects.count() == 2


def test_a_price_is_compared_with_the_one_just_before_it(desk, shop):
    [first] = shop.package.versions.all()
    url = reverse("admin:billing_package_change", args=[shop.package.pk])
    current = (first.pk, first.starts_at, "0.4")
    rising = [current, (None, FUTURE + timedelta(days=1), "12"), (None, FUTURE, "3")]
    assert desk.post(url, package_form(shop.package, rising)).status_code == 302


def test_of_several_first_prices_only_the_first_may_start_in_the_past(desk):
    past = [timezone.now() - timedelta(hours=hours) for hours in (3, 2)]
    form = package_form(versions=[(None, past[0], "0.4"), (None, past[1], "0.5")])
    assert "A price starts in the future" in errors(desk.post(reverse("admin:billing_package_add"), form))
    assert not Package.objects.exists()


def test_credits_are_granted_once_however_often_the_form_is_sent(desk, shop):
    url = reverse("admin:billing_account_grant", args=[shop.customer.pk])
    page = desk.get(url)
    form = {"amount": "100.50", "reason": "welcome", "key": page.context["form"]["key"].value()}
    for _time in range(2):
        assert desk.post(url, form).status_code == 302
    granted = WalletTransaction.objects.get()
    assert (granted.wallet_micro, granted.kind, granted.reason) == (100_500_000, "granted", "welcome")
    assert "K 100.50" in desk.get(reverse("admin:billing_customeraccount_changelist")).content.decode()
    assert (
        "K 100.50"
        in desk.get(reverse("admin:billing_customeraccount_change", args=[shop.customer.pk])).content.decode()
    )


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"amount": "-5"}, "greater than or equal to 0.01"),
        ({"amount": "0.001"}, "no more than 2 decimal places"),
        ({"reason": ""}, "This field is required"),
        ({"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}, "Credits expire in the future"),
    ],
)
def test_an_impossible_grant_is_refused(desk, shop, form, sentence):
    answers = {"amount": "1", "reason": "x", "key": "k"} | form
    response = desk.post(reverse("admin:billing_account_grant", args=[shop.customer.pk]), answers)
    assert sentence in response.content.decode()
    assert not WalletTransaction.objects.exists()


def test_an_administrator_corrects_and_refunds_with_a_reason(desk, shop, use):
    started = timezone.now() - timedelta(hours=2)
    use(started, started + timedelta(minutes=30))  # K 20, so that there is something to refund
    for name, amount in (("buy", "10"), ("refund", "5"), ("correct", "-2.50")):
        url = reverse(f"admin:billing_account_{name}", args=[shop.customer.pk])
        assert desk.post(url, {"amount": amount, "reason": name, "key": name}).status_code == 302
    assert get_balance(customer=shop.customer, at=timezone.now()) == 12_500_000 - 20_000_000


def test_invoices_are_made_from_the_list_of_customers(desk, shop, use, time_machine):
    use(datetime(2040, 10, 3, tzinfo=UTC))
    time_machine.move_to(datetime(2040, 11, 2, tzinfo=UTC))
    desk.force_login(UserFactory(admin=True))
    response = desk.post(
        reverse("admin:billing_customeraccount_changelist"),
        {"action": "close_months", "_selected_action": [str(shop.customer.pk)]},
        follow=True,
    )
    assert "1 invoices with 1 lines were written." in response.content.decode()
    assert Invoice.objects.count() == 1


@pytest.mark.parametrize("model", ["invoice", "invoiceline", "wallettransaction", "usagesegment", "customeraccount"])
def test_records_are_read_only(desk, shop, use, model, time_machine):
    segment = use(datetime(2040, 10, 3, tzinfo=UTC))
    buy_credits(customer=shop.customer, amount_micro=10_000, reason="x", by=None, key="k")
    closing.close_months(at=datetime(2040, 11, 2, tzinfo=UTC))
    time_machine.move_to(datetime(2040, 11, 2, tzinfo=UTC))
    desk.force_login(UserFactory(admin=True))
    page = desk.get(reverse(f"admin:billing_{model}_changelist"))
    assert page.status_code == 200
    assert desk.get(reverse(f"admin:billing_{model}_add")).status_code == 403
    [row] = page.context["cl"].result_list[:1]
    change = reverse(f"admin:billing_{model}_change", args=[row.pk])
    assert desk.get(change).status_code == 200
    assert desk.post(change, {}).status_code == 403
    assert desk.post(reverse(f"admin:billing_{model}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    for query in (str(shop.customer.pk), "owner@example.com", "39", str(segment.resource_id)):
        assert desk.get(reverse(f"admin:billing_{model}_changelist"), {"q": query}).status_code == 200


def test_an_administrator_without_the_permission_cannot_grant(client_for, shop):
    clerk = client_for(UserFactory(is_staff=True))
    url = reverse("admin:billing_account_grant", args=[shop.customer.pk])
    assert clerk.post(url, {"amount": "1", "reason": "x", "key": "k"}).status_code == 403
    assert not WalletTransaction.objects.exists()


def test_prices_set_and_deleted_in_admin_are_in_the_activity_log(desk, shop):
    [first] = shop.package.versions.all()
    url = reverse("admin:billing_package_change", args=[shop.package.pk])
    current = (first.pk, first.starts_at, "0.4")
    desk.post(url, package_form(shop.package, [current, (None, FUTURE, "0.5")]))
    planned = shop.package.versions.get(starts_at=FUTURE)
    desk.post(url, package_form(shop.package, [current, (planned.pk, FUTURE, "0.5")], **{"versions-1-DELETE": "on"}))
    entries = Activity.objects.filter(action__startswith="price.", after__rate_micro=500_000)
    entries |= Activity.objects.filter(action__startswith="price.", before__rate_micro=500_000)
    assert [(entry.action, entry.actor.is_staff) for entry in entries.order_by("at", "pk")] == [
        ("price.set", True),
        ("price.delete", True),
    ]


def test_deactivating_a_package_deletes_its_planned_prices(desk, shop):
    [first] = shop.package.versions.all()
    url = reverse("admin:billing_package_change", args=[shop.package.pk])
    current = (first.pk, first.starts_at, "0.4")
    desk.post(url, package_form(shop.package, [current, (None, FUTURE, "0.9")]))
    planned = shop.package.versions.get(starts_at=FUTURE)
    form = package_form(shop.package, [current, (planned.pk, FUTURE, "0.9")])
    del form["active"]
    page = desk.post(url, form, follow=True)
    assert "Planned prices deleted: 1." in page.content.decode()
    shop.package.refresh_from_db()
    assert (shop.package.active, list(shop.package.versions.all())) == (False, [first])


def test_a_package_whose_planned_price_is_invoiced_stays_active(desk, shop, use):
    """A clock that was ahead has closed the month in which the price begins."""
    [first] = shop.package.versions.all()
    planned = set_price(package=shop.package, rate_micro=900_000, starts_at=FUTURE, by=None)
    use(FUTURE - timedelta(days=1))
    closing.close_months(at=FUTURE + timedelta(days=40))
    form = package_form(shop.package, [(first.pk, first.starts_at, "0.4"), (planned.pk, FUTURE, "0.9")])
    del form["active"]
    page = desk.post(reverse("admin:billing_package_change", args=[shop.package.pk]), form)
    assert "An invoice already uses a planned price of this package." in page.content.decode()
    shop.package.refresh_from_db()
    assert shop.package.active


def block_storage_form(location, days, **fields):
    start = timezone.now() + timedelta(days=days)
    fields = {"kind": ServiceKind.BLOCK_STORAGE, "location": location.pk} | fields
    return package_form(versions=[(None, start, "0.1")], **fields)


def test_block_storage_that_charges_existing_volumes_is_confirmed_and_starts_after_notice(desk, shop):
    url = reverse("admin:billing_package_add")
    VolumeFactory(project=shop.project, location=shop.location)
    VolumeFactory(project=shop.project, location=shop.location, gone=True)
    soon = errors(desk.post(url, block_storage_form(shop.location, 2)))
    assert "will be charged from the first price on: 1. Customers: 1." in soon
    assert "their owners get 3 days' notice" in soon
    assert not Package.objects.filter(kind=ServiceKind.BLOCK_STORAGE).exists()
    assert "so their owners get 3 days' notice" in errors(
        desk.post(url, block_storage_form(shop.location, 2, confirm_volumes="on"))
    )
    response = desk.post(url, block_storage_form(shop.location, 4, confirm_volumes="on"))
    assert response.status_code == 302, errors(response)
    announce_prices(at=timezone.now())
    assert shop.owner.notifications.get().title == "Volumes in 1CNG-YGN-AZ01 will be charged"
    # the planned price may not start earlier, or be raised, without notice
    package = Package.objects.get(kind=ServiceKind.BLOCK_STORAGE)
    [first] = package.versions.all()
    url = reverse("admin:billing_package_change", args=[package.pk])
    sooner = package_form(package, [(first.pk, timezone.now() + timedelta(days=1), "0.1")])
    assert "so their owners get 3 days' notice" in errors(desk.post(url, sooner))


def test_the_next_planned_price_of_block_storage_becomes_the_first_only_with_notice(desk, shop):
    VolumeFactory(project=shop.project, location=shop.location)
    now = timezone.now().replace(microsecond=0)
    starts = [now + timedelta(days=1), now + timedelta(days=2)]
    fields = {"location": shop.location, "kind": ServiceKind.BLOCK_STORAGE}
    package = create_package(rate_micro=100_000, starts_at=starts[0], **fields)
    set_price(package=package, rate_micro=200_000, starts_at=starts[1], by=None)
    first, second = package.versions.order_by("starts_at")
    url = reverse("admin:billing_package_change", args=[package.pk])
    form = package_form(package, [(first.pk, starts[0], "0.1"), (second.pk, starts[1], "0.2")])
    assert desk.post(url, form).status_code == 302
    assert "so their owners get 3 days' notice" in errors(desk.post(url, form | {"versions-0-DELETE": "on"}))
    assert package.versions.count() == 2


def test_block_storage_of_a_location_without_volumes_starts_at_once(desk, shop):
    response = desk.post(reverse("admin:billing_package_add"), block_storage_form(shop.location, 0))
    assert response.status_code == 302, errors(response)


def test_a_block_storage_package_that_was_retired_is_not_activated_again(desk, shop):
    package = create_package(
        location=shop.location,
        kind=ServiceKind.BLOCK_STORAGE,
        rate_micro=100_000,
        starts_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    retire_package(package=package, by=None)
    [first] = package.versions.all()
    url = reverse("admin:billing_package_change", args=[package.pk])
    response = desk.post(url, package_form(package, [(first.pk, first.starts_at, "0.1")]))
    assert "that was deactivated stays so" in errors(response)
