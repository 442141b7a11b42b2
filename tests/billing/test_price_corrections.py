"""A mistyped price: confirmed before it is saved, corrected after it has started, never too large for the database."""

from datetime import UTC, date, datetime, timedelta
from html import unescape

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from billing import closing, verification
from billing.balance import get_balance, get_owed
from billing.charges import cost_so_far
from billing.errors import Refused
from billing.models import (
    MAX_RATE_MICRO,
    MAX_SIZE_GB,
    ClosingFailure,
    Invoice,
    InvoiceLine,
    PriceVersion,
    ServiceKind,
    UsageSegment,
)
from billing.pricing.packages import correct_price, create_package, set_price
from billing.statement import usage_rows
from billing.usage import close_segment, hourly_cost
from cng_portal.activity.models import Activity
from tests.factories import LocationFactory, ProjectFactory, UserFactory

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]

OCTOBER, NOVEMBER, DECEMBER = (datetime(2040, month, 1, 12, tzinfo=UTC) for month in (10, 11, 12))
HOUR = timedelta(hours=1)
K = 10**6


@pytest.fixture
def mistake(shop) -> PriceVersion:
    """K 0.40, which should have been K 0.04."""
    return shop.package.versions.get()


def correct(version, rate_micro=40_000, reason="typo"):
    return correct_price(version=version, rate_micro=rate_micro, reason=reason, by=None)


def test_a_correction_lowers_what_no_invoice_has_yet(shop, use, mistake):
    use(OCTOBER, OCTOBER + 3 * HOUR)
    assert get_owed(customer=shop.customer, at=OCTOBER + 9 * HOUR) == 60 * K
    correct(mistake)
    assert get_owed(customer=shop.customer, at=OCTOBER + 9 * HOUR) == 6 * K


def test_the_next_invoice_credits_the_overcharge(shop, use, mistake):
    segment = use(OCTOBER, OCTOBER + 3 * HOUR)
    closing.close_months(at=NOVEMBER)
    correct(mistake)
    assert get_owed(customer=shop.customer, at=NOVEMBER) == -54 * K
    assert cost_so_far(resource_id=segment.resource_id, at=NOVEMBER).amount_micro == 6 * K
    closing.close_months(at=DECEMBER)
    credit = InvoiceLine.objects.get(corrects__isnull=False)
    assert (credit.invoice.month, credit.month) == (date(2040, 11, 1), date(2040, 10, 1))
    assert (credit.hours, credit.rate_micro, credit.amount_micro) == (0, 40_000, -54 * K)
    assert credit.formula == "Price corrected to K 0.0400 = -K 54.00"
    assert get_balance(customer=shop.customer, at=DECEMBER) == -6 * K
    assert get_owed(customer=shop.customer, at=DECEMBER) == 0
    assert verification.differences(at=DECEMBER) == []
    closing.close_months(at=DECEMBER + timedelta(days=40))
    assert InvoiceLine.objects.count() == 2


def test_hours_and_price_of_a_line_are_corrected_separately(shop, use, mistake):
    segment = use(OCTOBER)
    closing.close_months(at=NOVEMBER)
    correct(mistake)
    close_segment(resource_id=segment.resource_id, kind=segment.kind, at=OCTOBER + 3 * HOUR)
    closing.close_months(at=DECEMBER)
    [line] = InvoiceLine.objects.filter(corrects=None)
    by_price, by_hours = InvoiceLine.objects.filter(corrects=line).order_by("-hours")
    assert (by_price.hours, by_price.amount_micro) == (0, -line.hours * 18 * K)
    assert (by_hours.hours, by_hours.amount_micro) == (3 - line.hours, (3 - line.hours) * 2 * K)
    assert verification.differences(at=DECEMBER) == []
    assert get_balance(customer=shop.customer, at=DECEMBER) == -6 * K


def test_a_correction_can_be_corrected_again(shop, use, mistake):
    use(OCTOBER, OCTOBER + 3 * HOUR)
    closing.close_months(at=NOVEMBER)
    correction = correct(mistake, 100_000)
    closing.close_months(at=DECEMBER)
    correct(correction)
    closing.close_months(at=DECEMBER + timedelta(days=40))
    credits = InvoiceLine.objects.filter(corrects__isnull=False).order_by("pk")
    assert [line.amount_micro for line in credits] == [-45 * K, -9 * K]
    with pytest.raises(Refused, match="already corrected"):
        correct(mistake, 1)


def test_usage_is_settled_once_an_invoice_has_its_corrections(shop, use, mistake):
    """Closing then takes as many queries as without corrections, however many months are corrected."""

    def close(month: int) -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            closing.close_months(at=datetime(2041, month, 2, tzinfo=UTC))
        return len(queries)

    use(OCTOBER)
    use(OCTOBER, OCTOBER + 3 * HOUR)
    closing.close_months(at=DECEMBER)
    before = close(1)
    correct(mistake)
    assert UsageSegment.objects.filter(backdated=True).count() == 2
    close(2)
    assert not UsageSegment.objects.filter(backdated=True).exists()
    assert verification.differences(at=datetime(2041, 2, 2, tzinfo=UTC)) == []
    assert close(3) == before
    correct(mistake.correction, 4_000)
    assert UsageSegment.objects.filter(backdated=True).count() == 2
    close(4)
    assert verification.differences(at=datetime(2041, 4, 2, tzinfo=UTC)) == []
    assert (
        cost_so_far(resource_id=UsageSegment.objects.get(ended_at__isnull=False).resource_id, at=DECEMBER).amount_micro
        == 600_000
    )


def test_only_hours_of_the_corrected_price_are_credited(shop, use, mistake):
    later = set_price(package=shop.package, rate_micro=800_000, starts_at=OCTOBER + 2 * HOUR, by=None)
    use(OCTOBER, OCTOBER + 3 * HOUR)
    closing.close_months(at=NOVEMBER)
    correct(mistake)
    assert get_owed(customer=shop.customer, at=NOVEMBER) == -2 * 18 * K
    assert later.rate_micro == 800_000


def test_the_statement_shows_a_credit_on_the_day_it_is_for(shop, use, mistake):
    use(OCTOBER, OCTOBER + 3 * HOUR)
    closing.close_months(at=NOVEMBER)
    correct(mistake)
    amounts = {
        day: [row.amount_micro for row in usage_rows(customer=shop.customer, at=NOVEMBER, first=day, last=day)]
        for day in (date(2040, 9, 30), date(2040, 10, 1), date(2040, 10, 2))
    }
    assert list(amounts.values()) == [[], [-54 * K, 60 * K], []]
    assert sum(row.amount_micro for row in usage_rows(customer=shop.customer, at=NOVEMBER)) == 6 * K


def test_a_price_is_never_raised_afterwards(shop, mistake):
    with pytest.raises(Refused, match="A correction lowers a price"):
        correct(mistake, 400_000)
    planned = set_price(package=shop.package, rate_micro=500_000, starts_at=OCTOBER, by=None)
    with pytest.raises(Refused, match="A correction lowers a price"):
        correct(planned)
    for wrong in ({"rate_micro": 500_000}, {"starts_at": mistake.starts_at + HOUR}):
        values = {"rate_micro": 1, "starts_at": mistake.starts_at, "corrects": mistake, "reason": "x"} | wrong
        with pytest.raises(IntegrityError, match="A correction lowers a price"), transaction.atomic():
            PriceVersion.objects.create(package=shop.package, **values)


def test_an_administrator_corrects_a_price(client_for, shop, mistake):
    admin = client_for(UserFactory(admin=True))
    package = reverse("admin:billing_package_change", args=[shop.package.pk])
    url = reverse("admin:billing_price_correct", args=[mistake.pk])
    assert url in admin.get(package).text
    assert "K 0.4000" in admin.get(url).text
    page = admin.post(url, {"rate": "0.04", "reason": "Typo in the contract"}, follow=True)
    assert "K 0.4000 corrected to K 0.0400" in page.text and "Corrected to K 0.0400" in page.text
    entry = Activity.objects.get(action="price.correct")
    assert (entry.before["rate_micro"], entry.after) == (
        400_000,
        {"rate_micro": 40_000, "reason": "Typo in the contract"},
    )


def test_the_page_of_a_package_needs_no_query_for_each_corrected_price(client_for, shop, mistake):
    admin = client_for(UserFactory(admin=True))
    page = reverse("admin:billing_package_change", args=[shop.package.pk])
    correction = correct(mistake, 300_000)
    admin.get(page)  # fills caches
    with CaptureQueriesContext(connection) as few:
        admin.get(page)
    correct(correct(correction, 200_000), 100_000)
    with CaptureQueriesContext(connection) as many:
        assert "Corrected to K 0.1000" in admin.get(page).text
    assert len(many) == len(few)


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"rate": "0.5"}, "A correction lowers a price that has begun. Plan a new price to raise it."),
        ({"rate": "-1"}, "greater than or equal to 0"),
        ({"rate": "1e999999"}, "less than or equal to 1000"),
        ({"rate": "0"}, "The new price is K 0.0000; the previous price is K 0.4000. If that's right, check this box."),
        ({"reason": ""}, "This field is required"),
    ],
)
def test_an_impossible_correction_is_explained(client_for, mistake, form, sentence):
    admin = client_for(UserFactory(admin=True))
    url = reverse("admin:billing_price_correct", args=[mistake.pk])
    assert sentence in unescape(admin.post(url, {"rate": "0.04", "reason": "typo"} | form).text)
    assert PriceVersion.objects.count() == 1


def test_correcting_a_price_needs_permission_to_change_packages(client_for, mistake):
    url = reverse("admin:billing_price_correct", args=[mistake.pk])
    assert client_for(UserFactory(is_staff=True)).post(url, {"rate": "0.04", "reason": "x"}).status_code == 403
    assert client_for(UserFactory()).post(url, {"rate": "0.04", "reason": "x"}).status_code == 302
    assert PriceVersion.objects.count() == 1


def test_sums_of_the_largest_amounts_fit(client_for, shop, use, mistake):
    """Fifteen of the largest resources at the highest price: their month exceeds 64 bits of millionths."""
    dear = LocationFactory()
    since = datetime(2026, 1, 1, tzinfo=UTC)
    create_package(location=dear, kind=shop.kind, rate_micro=MAX_RATE_MICRO, starts_at=since)
    start = timezone.now() - timedelta(days=60)
    for _number in range(15):
        use(start, location=dear, size_gb=MAX_SIZE_GB)
    use(start, kind=ServiceKind.VM_BACKUP_AUTOMATIC, location=dear, size_gb=0, base_rate_micro=10**15)
    now = timezone.now()
    assert hourly_cost(customer=shop.customer, at=now) == 15 * MAX_RATE_MICRO * MAX_SIZE_GB + 2 * 10**14
    assert get_owed(customer=shop.customer, at=now) > 2**63
    owner = client_for(shop.owner)
    for name in ("summary", "subscriptions", "credits", "transactions", "statement", "summary_csv", "usage_csv"):
        response = owner.get(reverse(f"billing:{name}"))
        assert response.status_code == 200 and b"".join(response)


def test_a_month_that_no_invoice_can_hold_stops_only_its_customer(shop, use):
    dear = LocationFactory()
    since = datetime(2026, 1, 1, tzinfo=UTC)
    package = create_package(location=dear, kind=shop.kind, rate_micro=MAX_RATE_MICRO, starts_at=since)
    for _number in range(15):
        use(OCTOBER, location=dear, size_gb=MAX_SIZE_GB)
    other = ProjectFactory()
    use(OCTOBER, OCTOBER + HOUR, project=other)
    closing.close_months(at=NOVEMBER)
    assert [invoice.customer for invoice in Invoice.objects.all()] == [other.customer]
    reason = ClosingFailure.objects.get().reason
    assert "an invoice can total at most K 1,000,000,000,000.00. Correct the price in its package" in reason
    correct(package.versions.get(), 1)
    closing.close_months(at=NOVEMBER)
    assert Invoice.objects.count() == 2 and not ClosingFailure.objects.exists()


def test_values_out_of_range_are_refused_by_the_database(shop, use):
    with pytest.raises(IntegrityError), transaction.atomic():
        use(OCTOBER, size_gb=MAX_SIZE_GB + 1)
    with pytest.raises(IntegrityError), transaction.atomic():
        use(OCTOBER, kind=ServiceKind.VM_BACKUP_AUTOMATIC, size_gb=0, base_rate_micro=10**15 + 1)
    with pytest.raises(IntegrityError), transaction.atomic():
        PriceVersion.objects.create(package=shop.package, starts_at=OCTOBER, rate_micro=MAX_RATE_MICRO + 1)
    assert not UsageSegment.objects.exists()
