"""Months, invoices, and usage that arrives after them."""

import threading
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import closing, scheduling, verification
from billing.balance import get_balance, get_owed, require_cover, with_ledger
from billing.charges import cost_so_far
from billing.errors import InsufficientCredit, Refused
from billing.low_balance import low_balance_warning
from billing.models import (
    ClosingFailure,
    Invoice,
    InvoiceLine,
    LowBalanceWarning,
    UsageSegment,
    UsedUpGrant,
    WalletTransaction,
)
from billing.pricing.packages import create_package
from billing.summary import build_summary, spend_by_project
from billing.usage import close_segment
from billing.wallet import buy_credits, correct_credits, expire_credits, grant_credits, refund_credits
from cng_portal.accounts.models import Customer
from cng_portal.accounts.services import lock_customer
from cng_portal.notifications.models import Notification
from tests.factories import CustomerFactory, LocationFactory, ProjectFactory
from tests.smtp import sent_mails

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]


def yangon(day: int, hour: int = 0, minute: int = 0, month: int = 11, year: int = 2040) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC) - timedelta(hours=6, minutes=30)


DECEMBER = yangon(1, month=12)


def the_books() -> list:
    """Return all records of billing in a comparable form."""
    return [
        list(Invoice.objects.order_by("pk").values()),
        list(
            InvoiceLine.objects.order_by("segment", "from_at", "hours").values_list(
                "segment", "from_at", "hours", "amount_micro"
            )
        ),
        list(WalletTransaction.objects.order_by("pk").values_list("pk", "key", "amount_micro", "target")),
    ]


def test_a_snapshot_open_through_all_of_november_is_720_hours_on_its_invoice(shop, use):
    use(yangon(3, 10, 17, month=10))
    closing.close_months(at=DECEMBER)
    october, november = Invoice.objects.order_by("month")
    [line] = november.lines.all()
    assert (line.hours, line.size_gb, line.rate_micro, line.amount_micro) == (720, 50, 400_000, 14_400_000_000)
    assert (line.from_at, line.to_at) == (yangon(1, 0, 17), yangon(1, 0, 17, month=12))
    assert (october.number, november.number) == ("INV-000039-0001", "INV-000039-0002")
    assert (november.starts_at, november.ends_at) == (yangon(1), DECEMBER)
    assert get_balance(customer=shop.customer, at=DECEMBER) == -(october.total_micro + november.total_micro)
    assert verification.differences(at=DECEMBER) == []


def test_making_the_invoice_does_not_move_the_balance(shop, use):
    use(yangon(5, 10, 17), size_gb=7)
    at = DECEMBER + timedelta(hours=5)
    before = get_balance(customer=shop.customer, at=at)
    closing.close_months(at=at)
    assert get_balance(customer=shop.customer, at=at) == before


def test_closing_twice_changes_nothing(shop, use):
    use(yangon(3, month=9), yangon(28, month=10))
    assert closing.close_months(at=DECEMBER).invoices == 3
    books = the_books()
    assert closing.close_months(at=DECEMBER).invoices == 0
    assert the_books() == books


def test_a_month_is_not_closed_before_it_is_over_where_the_customer_lives(shop, use):
    use(yangon(3))
    assert closing.close_months(at=DECEMBER - timedelta(microseconds=1)).invoices == 0
    with pytest.raises(Refused, match="2040-11 is not over in Asia/Yangon before 2040-11-30 17:30 UTC"):
        closing.require_month_is_over(date(2040, 11, 1), DECEMBER - timedelta(seconds=1))


def test_a_month_without_usage_gets_an_empty_invoice(shop, use):
    use(yangon(3, month=9), yangon(4, month=9))
    use(yangon(3))
    closing.close_months(at=DECEMBER)
    assert [(invoice.sequence, invoice.line_count) for invoice in Invoice.objects.order_by("month")] == [
        (1, 1),
        (2, 0),
        (3, 1),
    ]
    assert WalletTransaction.objects.count() == 2


def test_usage_that_is_reported_late_comes_with_the_next_invoice_and_its_own_period(shop, use):
    use(yangon(3, month=10))
    closing.close_months(at=DECEMBER)
    backdated = use(yangon(29, 10), yangon(29, 12))
    at = yangon(2, month=12)
    owed = get_owed(customer=shop.customer, at=at)
    assert owed == (2 + 24) * 20_000_000
    closing.close_months(at=yangon(1, month=1, year=2041))
    [line] = InvoiceLine.objects.filter(segment=backdated)
    assert (line.invoice.month, line.month, line.from_at) == (date(2040, 12, 1), date(2040, 11, 1), yangon(29, 10))
    assert verification.differences(at=yangon(1, month=1, year=2041)) == []


def test_an_end_reported_late_corrects_the_overcharged_line(shop, use):
    segment = use(yangon(3, month=10))
    closing.close_months(at=DECEMBER)
    close_segment(resource_id=segment.resource_id, kind=segment.kind, at=yangon(10))
    at = yangon(2, month=12)
    assert get_owed(customer=shop.customer, at=at) == -(720 - 216) * 20_000_000
    assert cost_so_far(resource_id=segment.resource_id, at=at).hours == 29 * 24 + 216
    closing.close_months(at=yangon(5, month=1, year=2041))
    correction = InvoiceLine.objects.get(corrects__isnull=False)
    assert correction.corrects.invoice.month == date(2040, 11, 1)
    assert (correction.hours, correction.amount_micro) == (216 - 720, -(720 - 216) * 20_000_000)
    assert WalletTransaction.objects.get(invoice=correction.invoice).kind == "refunded"
    assert closing.close_months(at=yangon(5, month=2, year=2041)).lines == 0
    assert verification.differences(at=yangon(5, month=2, year=2041)) == []


def test_late_usage_from_before_the_first_invoice_is_not_lost(shop, use):
    use(yangon(3))
    closing.close_months(at=DECEMBER)
    use(yangon(30, 23, 30, month=9), yangon(1, 1, 0, month=10))
    closing.close_months(at=yangon(1, month=1, year=2041))
    assert list(
        InvoiceLine.objects.filter(month__lt=date(2040, 11, 1)).order_by("month").values_list("month", "hours")
    ) == [(date(2040, 9, 1), 1), (date(2040, 10, 1), 1)]
    assert verification.differences(at=yangon(1, month=1, year=2041)) == []


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
def test_a_new_time_zone_neither_loses_nor_repeats_an_hour(shop, use, zone):
    segment = use(yangon(3))
    use(yangon(29, 10), yangon(29, 12))
    closing.close_months(at=DECEMBER)
    Customer.objects.update(time_zone=zone)
    use(yangon(1, month=10), yangon(2, month=10))  # backdated, and from before the first invoice
    end = datetime(2041, 3, 15, tzinfo=UTC)
    close_segment(resource_id=segment.resource_id, kind=segment.kind, at=end)
    closing.close_months(at=datetime(2041, 4, 5, tzinfo=UTC))
    hours = -((segment.started_at - end) // timedelta(hours=1))
    assert sum(line.hours for line in InvoiceLine.objects.filter(segment=segment)) == hours
    assert sum(line.hours for line in InvoiceLine.objects.all()) == hours + 2 + 24
    assert verification.differences(at=datetime(2041, 4, 5, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("zone", "hour"), [("America/New_York", 2), ("America/New_York", 8), ("Pacific/Kiritimati", 8)]
)
def test_the_current_month_is_single_on_the_day_after_a_change_of_time_zone(shop, use, zone, hour):
    """November 2026 ends in Yangon on the 30th at 17:30 UTC, and in New York on the 1st at 5:00 UTC."""
    use(yangon(3, year=2026))
    closing.close_months(at=yangon(1, month=12, year=2026))
    Customer.objects.update(time_zone=zone)
    customer, at = Customer.objects.get(), datetime(2026, 12, 1, hour, tzinfo=UTC)
    summary = build_summary(customer=customer, at=at)
    assert summary.this_month == date(2026, 12, 1)
    hours = -((yangon(1, month=12, year=2026) - at) // timedelta(hours=1))
    assert summary.this_month_micro == summary.owed_micro == hours * 20_000_000
    assert [service.month_micro for service in summary.services] == [summary.this_month_micro]
    assert summary.months[-2:] == [date(2026, 11, 1), date(2026, 12, 1)]
    assert spend_by_project(customer=customer, at=at) == {shop.project.pk: summary.this_month_micro}


def test_usage_without_a_price_stops_the_invoice_of_that_customer_only(shop, use, settings):
    settings.ADMINS = [("Administrator", "admin@example.com")]
    use(yangon(3))
    other = ProjectFactory(customer__number=40)
    unpriced = LocationFactory(code="1CNG-SGP-AZ01")
    use(yangon(3), project=other, location=unpriced, name="orphan")
    use(yangon(3), project=other)
    report = closing.close_months(at=DECEMBER)
    assert [invoice.customer for invoice in Invoice.objects.all()] == [shop.customer]
    assert InvoiceLine.objects.count() == 1
    [sentence] = report.failures.values()
    assert "Customer #000040 gets no invoice: “orphan”" in sentence
    assert sentence in sent_mails()[0].body
    assert "without a price" in " ".join(verification.differences(at=DECEMBER))


def test_late_usage_without_a_price_stops_that_customer_only_too(shop, use):
    use(yangon(3))
    other = ProjectFactory(customer__number=40)
    use(yangon(3), project=other)
    closing.close_months(at=DECEMBER)
    use(datetime(2025, 12, 31, 20, tzinfo=UTC), yangon(4), project=other, name="orphan")
    report = closing.close_months(at=yangon(1, month=1, year=2041))
    assert [invoice.customer for invoice in Invoice.objects.filter(month=date(2040, 12, 1))] == [shop.customer]
    assert (
        "“orphan” (BS Snapshot in 1CNG-YGN-AZ01) was used before its price began" in report.failures[other.customer_id]
    )


def test_a_dry_run_reports_and_writes_nothing(shop, use):
    use(yangon(31, month=10))
    report = closing.close_months(at=DECEMBER, dry_run=True)
    assert (report.invoices, report.lines, dict(report.totals)) == (2, 2, {"MMK": 31 * 24 * 20_000_000})
    assert not Invoice.objects.exists()
    assert not WalletTransaction.objects.exists()


def test_the_command_closes_a_month_that_is_over_and_refuses_one_that_is_not(shop, use, capsys, time_machine):
    use(yangon(3))
    time_machine.move_to(DECEMBER - timedelta(hours=1), tick=False)
    with pytest.raises(CommandError, match="2040-11 is not over in Asia/Yangon"):
        call_command("close_month", "2040-11")
    with pytest.raises(CommandError, match="“november” is not a month"):
        call_command("close_month", "november")
    time_machine.move_to(DECEMBER, tick=False)
    call_command("close_month", "2040-11", "--dry-run")
    assert "1 invoices would be made, with 1 lines." in capsys.readouterr().out
    assert not Invoice.objects.exists()
    call_command("close_month", "2040-11")
    assert "Total: K 13,440.00" in capsys.readouterr().out


class Killed(Exception):
    pass


def test_a_run_killed_at_any_statement_can_be_repeated(shop, use):
    use(yangon(3, month=10))
    use(yangon(5), yangon(6))
    closing.close_months(at=yangon(1))
    backdated = use(yangon(3, month=10), yangon(3, 5, month=10))
    assert backdated.backdated
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        closing.close_months(at=DECEMBER)
        expected = the_books()
        transaction.set_rollback(True)
    before = the_books()
    for fatal in range(len(queries) - 3):
        count = 0

        def kill(execute, sql, params, many, context, fatal=fatal):
            nonlocal count
            count += 1
            if count > fatal:
                raise Killed
            return execute(sql, params, many, context)

        with pytest.raises(Killed), transaction.atomic():
            with connection.execute_wrapper(kill):
                closing.close_months(at=DECEMBER)
        assert the_books() == before
    closing.close_months(at=DECEMBER)
    assert the_books() == expected


def in_threads(number: int, work) -> list:
    barrier, outcomes = threading.Barrier(number), []

    def run() -> None:
        try:
            barrier.wait()
            outcomes.append(work())
        except Exception as error:
            outcomes.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _number in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.django_db(transaction=True)
def test_closing_in_parallel_makes_each_invoice_once(shop, use):
    for number in range(30):
        project = ProjectFactory(customer=CustomerFactory(number=100 + number))
        use(yangon(3), project=project)
    outcomes = in_threads(6, lambda: closing.close_months(at=DECEMBER).invoices)
    assert sum(outcomes) == 30
    assert Invoice.objects.count() == InvoiceLine.objects.count() == WalletTransaction.objects.count() == 30
    assert verification.differences(at=DECEMBER) == []


@pytest.mark.django_db(transaction=True)
def test_usage_that_arrives_while_the_month_is_closed_is_charged_once(shop, use):
    use(yangon(3), yangon(4))
    ids = [uuid4() for _number in range(8)]

    def work() -> None:
        closing.close_months(at=DECEMBER)
        use(yangon(30, 10), yangon(30, 12), resource_id=ids.pop())

    assert in_threads(8, work) == [None] * 8
    closing.close_months(at=yangon(1, month=1, year=2041))
    assert sum(line.hours for line in InvoiceLine.objects.all()) == 24 + 8 * 2
    assert verification.differences(at=yangon(1, month=1, year=2041)) == []


@pytest.mark.django_db(transaction=True)
def test_credits_for_one_first_hour_are_not_used_twice(shop, use):
    buy_credits(customer=shop.customer, amount_micro=20_000_000, reason="paid", by=None, key="k", at=yangon(1))
    at = yangon(3)

    def work() -> bool:
        with transaction.atomic():
            lock_customer(shop.customer.pk)
            try:
                require_cover(customer=shop.customer, hourly_micro=20_000_000, at=at)
            except InsufficientCredit:
                return False
            use(at)
            return True

    assert sorted(in_threads(10, work)) == [False] * 9 + [True]


@pytest.mark.django_db(transaction=True)
def test_a_key_used_in_parallel_is_one_transaction(shop):
    def work() -> object:
        return grant_credits(
            customer=shop.customer, amount_micro=10_000, reason="gift", by=None, key="once", at=yangon(1)
        ).pk

    assert len(set(in_threads(8, work))) == 1
    assert WalletTransaction.objects.count() == 1


def test_free_credits_that_expire_are_used_first_and_the_rest_is_taken_back(shop, use):
    credit = {"customer": shop.customer, "by": None, "at": yangon(1)}
    buy_credits(**credit, amount_micro=1_000_000_000, reason="paid", key="paid")
    grant_credits(**credit, amount_micro=100_000_000, reason="welcome", key="welcome", expires_at=yangon(5))
    grant_credits(**credit, amount_micro=50_000_000, reason="sorry", key="sorry", expires_at=yangon(20))
    use(yangon(3), yangon(3, 3))  # K 60 of the K 100 that expire first
    at = yangon(6)
    assert get_balance(customer=shop.customer, at=at) == (1000 + 50) * 1_000_000
    assert expire_credits(at=at) == 1
    assert expire_credits(at=at) == 0
    assert WalletTransaction.objects.get(kind="expired").amount_micro == 40_000_000
    assert get_balance(customer=shop.customer, at=at) == (1000 + 50) * 1_000_000
    expire_credits(at=yangon(21))
    assert get_balance(customer=shop.customer, at=yangon(21)) == 1_000_000_000
    assert verification.differences(at=yangon(21)) == []


def test_a_grant_that_was_used_up_is_settled_when_it_expires(shop, use):
    """Otherwise every balance would replay the whole history."""
    use(yangon(1), yangon(2))
    for day in range(1, 20):
        credit = {"amount_micro": 10_000_000, "reason": "bonus", "key": f"bonus-{day}", "at": yangon(1)}
        grant_credits(customer=shop.customer, by=None, **credit, expires_at=yangon(3, minute=day))
    at = yangon(4)
    balance = get_balance(customer=shop.customer, at=at)
    assert expire_credits(at=at) == 0
    assert UsedUpGrant.objects.count() == 19
    assert not with_ledger(Customer.objects.all(), at=at).get().expiring
    assert get_balance(customer=shop.customer, at=at) == balance == (19 * 10 - 24 * 20) * 1_000_000
    assert verification.differences(at=at) == []


def test_a_wrongly_settled_grant_is_reported(shop):
    grant = {"customer": shop.customer, "amount_micro": 10_000_000, "reason": "x", "key": "x", "by": None}
    unused = grant_credits(**grant, at=yangon(1), expires_at=yangon(5))
    UsedUpGrant.objects.create(grant=unused)
    [difference] = verification.differences(at=yangon(6))
    assert f"grant {unused.pk}: 0 millionths expired, recomputed 10000000" in difference


def test_a_debt_is_paid_by_the_next_credits(shop, use):
    use(yangon(3), yangon(3, 3))
    grant_credits(
        customer=shop.customer,
        by=None,
        at=yangon(4),
        amount_micro=100_000_000,
        reason="x",
        key="x",
        expires_at=yangon(5),
    )
    expire_credits(at=yangon(6))
    assert get_balance(customer=shop.customer, at=yangon(6)) == 0


def test_no_more_is_refunded_than_was_charged(shop, use):
    use(yangon(1), yangon(1, 3))  # K 60
    fields = {"customer": shop.customer, "by": shop.owner, "at": yangon(2), "reason": "outage"}
    with pytest.raises(Refused, match="At most K 60.00 can be refunded"):
        refund_credits(**fields, amount_micro=60_010_000, key="a")
    refund_credits(**fields, amount_micro=60_000_000, key="b")
    refund_credits(**fields, amount_micro=60_000_000, key="b")
    with pytest.raises(Refused, match="At most K 0.00 can be refunded"):
        refund_credits(**fields, amount_micro=10_000, key="c")
    assert get_balance(customer=shop.customer, at=yangon(3)) == 0
    closing.close_months(at=DECEMBER)
    assert verification.differences(at=DECEMBER) == []


def test_corrections_and_refunds_are_transactions_with_a_reason(shop, use):
    use(yangon(1, month=10), yangon(1, 1, month=10))
    fields = {"customer": shop.customer, "by": shop.owner, "at": yangon(1)}
    correct_credits(**fields, amount_micro=30_000_000, reason="typo", key="a")
    correct_credits(**fields, amount_micro=-10_000_000, reason="typo", key="b")
    refund_credits(**fields, amount_micro=5_000_000, reason="outage", key="c")
    assert get_balance(customer=shop.customer, at=yangon(2)) == 25_000_000 - 20_000_000
    assert verification.differences(at=yangon(2)) == []


@pytest.mark.django_db(transaction=True)
def test_a_low_balance_is_notified_once_until_it_recovers(shop, use):
    credit = {"customer": shop.customer, "by": None, "reason": "paid"}
    buy_credits(**credit, amount_micro=74 * 20_000_000, key="1", at=yangon(1))
    use(yangon(3))
    scheduling.run_due(at=yangon(3, 1))
    assert not Notification.objects.exists()
    for hour in (4, 5):
        scheduling.run_due(at=yangon(3, hour))
    [notice] = Notification.objects.all()
    assert notice.user == shop.owner
    assert "K 1,400.00 of infra credits left" in notice.text
    assert low_balance_warning(customer=shop.customer) is not None
    buy_credits(**credit, amount_micro=2_000_000_000, key="2", at=yangon(3, 6))
    scheduling.run_due(at=yangon(3, 7))
    assert low_balance_warning(customer=shop.customer) is None
    scheduling.run_due(at=yangon(12))
    assert (Notification.objects.count(), LowBalanceWarning.objects.count()) == (2, 2)


def test_a_postpaid_customer_owes_the_invoice_and_is_not_warned(shop, use):
    Customer.objects.update(billing_type="postpaid")
    use(yangon(3))
    scheduling.run_due(at=DECEMBER)
    assert not Notification.objects.exists()
    assert get_balance(customer=shop.customer, at=DECEMBER) == -28 * 24 * 20_000_000


def test_usage_in_a_wallet_without_invoices_counts_from_its_first_month(shop, use):
    use(yangon(3, month=8), yangon(3, 1, month=8))
    assert get_owed(customer=shop.customer, at=DECEMBER) == 20_000_000
    assert UsageSegment.objects.get().backdated is False


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
def test_months_before_the_first_invoice_keep_their_boundaries_when_the_zone_changes(shop, use, zone):
    use(yangon(3))
    closing.close_months(at=DECEMBER)
    use(yangon(29, month=9), yangon(2, month=10))  # backdated, and from before the first invoice
    closing.close_months(at=yangon(1, month=1, year=2041))
    charged = list(InvoiceLine.objects.filter(month__lt=date(2040, 11, 1)).values_list("month", "hours"))
    Customer.objects.update(time_zone=zone)
    report = closing.close_months(at=yangon(5, month=3, year=2041))
    assert report.failures == {}
    assert list(InvoiceLine.objects.filter(month__lt=date(2040, 11, 1)).values_list("month", "hours")) == charged
    assert verification.differences(at=yangon(5, month=3, year=2041)) == []


def test_a_customer_whose_month_cannot_be_closed_does_not_stop_other_invoices(shop, use, settings):
    """The second customer's invoice exceeds the largest amount of the wallet."""
    settings.ADMINS = [("Administrator", "admin@example.com")]
    dear = LocationFactory(code="1CNG-SGP-AZ01")
    create_package(location=dear, kind=shop.kind, rate_micro=1_000_000_000, starts_at=datetime(2026, 1, 1, tzinfo=UTC))
    projects = [ProjectFactory(customer__number=number) for number in range(40, 47)]
    for project in projects:
        use(yangon(3), project=project)
    broken = projects[3]
    use(yangon(3), project=broken, location=dear, size_gb=5_000_000)

    for _attempt in range(2):
        report = closing.close_months(at=DECEMBER)

        assert list(report.failures) == [broken.customer_id]
        invoiced = set(Invoice.objects.values_list("customer", flat=True))
        assert invoiced == {project.customer_id for project in projects} - {broken.customer_id}
    failure = ClosingFailure.objects.get()
    assert (failure.customer_id, failure.failed_at) == (broken.customer_id, DECEMBER)
    assert "Customer #000043 gets no invoice" in failure.reason
    assert [failure.reason] == [message.body for message in sent_mails()]  # once, and not at each attempt
    [difference] = verification.differences(at=DECEMBER)
    assert "#000043" in difference and "could not be closed" in difference


def test_a_failure_is_deleted_once_the_month_is_closed(shop, use):
    orphan = use(yangon(3), location=LocationFactory(code="1CNG-SGP-AZ01"))
    closing.close_months(at=DECEMBER)
    assert ClosingFailure.objects.get().customer == shop.customer
    create_package(location=orphan.location, kind=shop.kind, rate_micro=1, starts_at=yangon(1))
    closing.close_months(at=DECEMBER)
    assert Invoice.objects.count() == 1
    assert not ClosingFailure.objects.exists()


def test_a_failure_of_a_later_month_stays_while_earlier_ones_are_closed(shop, use):
    use(yangon(3, month=9))
    use(yangon(3), location=LocationFactory(code="1CNG-SGP-AZ01"))
    closing.close_months(at=DECEMBER)
    assert Invoice.objects.count() == 2
    [failure] = ClosingFailure.objects.all()
    closing.close_months(at=DECEMBER, through=date(2040, 10, 1))
    assert ClosingFailure.objects.get().reason == failure.reason


def test_an_error_while_another_is_explained_does_not_stop_other_invoices(shop, use):
    """The invoice is too large, and the amount owed can't be computed, because a grant expired before it was given."""
    dear = LocationFactory(code="1CNG-SGP-AZ01")
    create_package(location=dear, kind=shop.kind, rate_micro=1_000_000_000, starts_at=datetime(2026, 1, 1, tzinfo=UTC))
    projects = [ProjectFactory(customer__number=number) for number in range(40, 45)]
    for project in projects:
        use(yangon(3), project=project)
    broken = projects[2]
    use(yangon(3), project=broken, location=dear, size_gb=5_000_000)
    fields = {"customer": broken.customer, "amount_micro": 1, "source": "grants", "target": "wallet"}
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = ON")
        else:
            cursor.execute("ALTER TABLE billing_wallettransaction DROP CONSTRAINT billing_wallet_expiry")
        WalletTransaction.objects.create(
            **fields, kind="granted", reason="x", key="x", at=yangon(9), expires_at=yangon(8)
        )
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = OFF")
    report = closing.close_months(at=DECEMBER)
    assert list(report.failures) == [broken.customer_id]
    assert Invoice.objects.count() == 4
    assert ClosingFailure.objects.get().reason.startswith("Customer #000042 gets no invoice: ")
    assert closing.close_months(at=DECEMBER, dry_run=True).failures == report.failures


def test_a_broken_customer_row_does_not_stop_other_invoices_and_warnings(shop, use):
    use(timezone.now() - timedelta(hours=2))
    use(timezone.now() - timedelta(days=70), timezone.now() - timedelta(days=60))
    broken = ProjectFactory(customer__number=40)
    use(timezone.now() - timedelta(days=70), project=broken)
    Customer.objects.filter(pk=broken.customer_id).update(time_zone="Mars/Olympus")
    scheduling.run_due(at=timezone.now())
    assert Invoice.objects.filter(customer=shop.customer).exists()
    assert LowBalanceWarning.objects.filter(customer=shop.customer).exists()
    assert "Mars/Olympus" in ClosingFailure.objects.get(customer=broken.customer_id).reason
