"""What the database itself refuses."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from billing import closing
from billing.errors import Refused
from billing.models import (
    Invoice,
    InvoiceLine,
    Package,
    PriceVersion,
    ServiceKind,
    UsageSegment,
    WalletTransaction,
)
from billing.pricing.packages import create_package, set_price
from billing.usage import close_segment, open_segment
from billing.wallet import buy_credits
from tests.factories import LocationFactory, ProjectFactory

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]
KIND = ServiceKind.BS_SNAPSHOT
START = datetime(2040, 11, 5, 10, 17, 23, tzinfo=UTC)
PRICED_SINCE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def package():
    return create_package(location=LocationFactory(), kind=KIND, rate_micro=400_000, starts_at=PRICED_SINCE)


@pytest.fixture
def segment(package):
    return open_segment(
        resource_id=uuid4(),
        kind=KIND,
        name="disk-1",
        project=ProjectFactory(),
        location=package.location,
        size_gb=50,
        at=START,
    )


@pytest.fixture
def invoice(segment):
    buy_credits(customer=segment.customer, amount_micro=10_000, reason="paid", by=None, key="k")
    closing.close_months(at=datetime(2040, 12, 2, tzinfo=UTC))
    return Invoice.objects.get()


def refused(action, sentence=None):
    with pytest.raises(IntegrityError, match=sentence), transaction.atomic():
        action()
        connection.check_constraints()


def raw(sql, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def test_a_second_active_package_is_refused_in_words_and_by_the_database(package):
    second = Package(location=package.location, kind=KIND, name="again")
    with pytest.raises(ValidationError, match="already has an active package .* Only one package per zone"):
        second.full_clean()
    refused(second.save)
    Package(location=package.location, kind=KIND, name="old", active=False).save()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("billing_cycle", "monthly", "Snapshots and backups support only Hourly billing cycles."),
        ("billing_rule", "actual", "The only billing rule supported is Fixed Prorata."),
        (
            "kind",
            ServiceKind.VM_BACKUP_AUTOMATIC,
            "Packages are for Block Storage, BS Snapshot, VM Snapshot and VM Backup",
        ),
    ],
)
def test_only_hourly_and_fixed_prorata_are_possible(package, field, value, sentence):
    setattr(package, field, value)
    with pytest.raises(ValidationError, match=sentence):
        package.full_clean()
    refused(package.save)


@pytest.mark.parametrize("rate_micro", [-1, 10_000_000_001])
def test_a_rate_out_of_range_is_refused(package, rate_micro):
    version = PriceVersion(package=package, starts_at=START, rate_micro=rate_micro)
    with pytest.raises(ValidationError):
        version.full_clean()
    refused(version.save)


def test_a_price_that_has_begun_is_immutable(package):
    version = package.versions.get()
    sentence = "A price that has begun cannot be changed"
    refused(lambda: PriceVersion.objects.filter(pk=version.pk).update(rate_micro=1), sentence)
    refused(lambda: raw("DELETE FROM billing_priceversion WHERE id = %s", version.pk), sentence)


def test_a_planned_price_can_be_changed_but_not_moved_into_the_past(package):
    version = set_price(package=package, rate_micro=1, starts_at=START, by=None)
    PriceVersion.objects.filter(pk=version.pk).update(rate_micro=2)
    past = timezone.now() - timedelta(minutes=1)
    refused(lambda: PriceVersion.objects.filter(pk=version.pk).update(starts_at=past), "starts in the future")
    version.delete()


def test_a_further_price_cannot_start_in_the_past(package):
    past = timezone.now() - timedelta(seconds=1)
    with pytest.raises(Refused, match="starts in the future"):
        set_price(package=package, rate_micro=1, starts_at=past, by=None)
    refused(lambda: PriceVersion.objects.create(package=package, rate_micro=1, starts_at=past), "starts in the future")


def test_two_prices_cannot_start_at_once(package):
    set_price(package=package, rate_micro=1, starts_at=START, by=None)
    with pytest.raises(ValidationError, match="already has a price that starts at this instant"):
        set_price(package=package, rate_micro=2, starts_at=START, by=None)
    refused(lambda: PriceVersion.objects.create(package=package, rate_micro=2, starts_at=START))


def test_a_package_with_a_price_does_not_move(package):
    refused(lambda: Package.objects.update(kind=ServiceKind.VM_BACKUP), "keeps its kind, location and currency")


def test_a_second_open_segment_is_refused(segment):
    segment.pk = uuid4()
    refused(lambda: segment.save(force_insert=True))


def test_an_end_before_the_start_is_refused(segment):
    refused(lambda: UsageSegment.objects.update(ended_at=START - timedelta(microseconds=1)))


def test_invoiced_usage_can_only_be_closed(segment, invoice):
    sentence = "Usage that an invoice was made of cannot be"
    for change in ({"size_gb": 1}, {"started_at": START + timedelta(hours=1)}, {"resource_id": uuid4()}):
        refused(lambda change=change: UsageSegment.objects.update(**change), sentence)
    refused(lambda: raw("DELETE FROM billing_usagesegment"), sentence)
    assert close_segment(resource_id=segment.resource_id, kind=KIND, at=datetime(2041, 1, 1, tzinfo=UTC))
    for change in ({"ended_at": None}, {"ended_at": datetime(2041, 1, 2, tzinfo=UTC)}, {"resource_name": "x"}):
        refused(lambda change=change: UsageSegment.objects.update(**change), sentence)


def test_usage_that_is_voided_ends_at_its_start(segment, package):
    own = UsageSegment.objects.filter(pk=segment.pk)
    refused(lambda: own.update(voided=True))
    refused(lambda: own.update(voided=True, ended_at=START + timedelta(hours=1)))
    own.update(voided=True, ended_at=START)


@pytest.mark.parametrize("kind", ServiceKind)
def test_invoiced_usage_can_be_voided_once_while_it_is_open(segment, kind):
    """It was to start at the end of a paid hour, was invoiced, and its end within that hour arrives late."""
    automatic = {"size_gb": 0, "base_rate_micro": 100_000_000}
    measure = automatic if kind == ServiceKind.VM_BACKUP_AUTOMATIC else {}
    UsageSegment.objects.update(kind=kind, **measure)
    create_missing_price(segment, kind)
    first = {"resource_id": segment.resource_id, "kind": kind}
    close_segment(**first, at=START + timedelta(minutes=10))
    waiting = open_segment(
        **first,
        name="disk-1",
        project=segment.project,
        location=segment.location,
        at=START + timedelta(minutes=20),
        **(measure or {"size_gb": 50}),
    )
    assert waiting.started_at == START + timedelta(hours=1)
    closing.close_months(at=datetime(2040, 12, 2, tzinfo=UTC))
    assert close_segment(**first, at=START + timedelta(minutes=30))
    own = UsageSegment.objects.filter(pk=waiting.pk)
    assert (own.get().voided, own.get().backdated) == (True, True)
    refused(lambda: own.update(voided=False), "cannot be changed")


def create_missing_price(segment: UsageSegment, kind: ServiceKind) -> None:
    if kind not in (KIND, ServiceKind.VM_BACKUP_AUTOMATIC):
        create_package(location=segment.location, kind=kind, rate_micro=400_000, starts_at=PRICED_SINCE)


def test_a_block_storage_package_is_not_activated_again(package):
    create_package(
        location=package.location, kind=ServiceKind.BLOCK_STORAGE, rate_micro=1, starts_at=PRICED_SINCE, name="disks"
    )
    own = Package.objects.filter(name="disks")
    own.update(active=False)
    refused(lambda: own.update(active=True), "add another one")


@pytest.mark.parametrize("table", ["billing_invoice", "billing_invoiceline", "billing_wallettransaction"])
def test_written_rows_cannot_be_deleted(invoice, table):
    columns = {
        "billing_invoice": "total_micro",
        "billing_invoiceline": "hours",
        "billing_wallettransaction": "amount_micro",
    }
    refused(lambda: raw(f"DELETE FROM {table}"), "never changed or deleted")
    refused(lambda: raw(f"UPDATE {table} SET {columns[table]} = 10000"), "never changed or deleted")


def test_an_invoice_takes_no_further_lines(invoice):
    line = InvoiceLine.objects.get()
    line.pk, line.from_at = None, line.from_at + timedelta(hours=1)
    refused(lambda: line.save(force_insert=True), "takes no further lines")


def test_an_invoice_is_the_sum_of_its_lines(invoice):
    invoice.pk, invoice.sequence, invoice.month, invoice.line_count = uuid4(), 9, invoice.month.replace(year=2050), 0
    refused(lambda: invoice.save(force_insert=True), "add up to its total")


def test_an_invoice_is_made_once_its_month_is_over(invoice):
    invoice.pk, invoice.sequence, invoice.line_count, invoice.total_micro = uuid4(), 9, 0, 0
    invoice.month = invoice.month.replace(year=2050)
    invoice.made_at = invoice.ends_at - timedelta(microseconds=1)
    refused(lambda: invoice.save(force_insert=True), "billing_invoice_month_over")
    invoice.made_at = invoice.ends_at
    invoice.save(force_insert=True)


def test_a_line_is_written_once(invoice):
    line = InvoiceLine.objects.get()
    line.pk, line.invoice_id = None, uuid4()
    refused(lambda: line.save(force_insert=True))


def test_a_transaction_needs_two_accounts_a_reason_and_whole_hundredths(segment):
    fields = {"customer": segment.customer, "kind": "bought", "amount_micro": 10_000, "reason": "x", "at": START}
    sides = {"source": "purchases", "target": "wallet"}
    for number, wrong in enumerate(
        ({"source": "wallet"}, {"target": "grants"}, {"amount_micro": 0}, {"amount_micro": -10_000}, {"reason": ""})
    ):
        refused(lambda wrong=wrong, n=number: WalletTransaction.objects.create(**fields | sides | wrong, key=str(n)))
    WalletTransaction.objects.create(**fields, **sides, key="k")
    refused(lambda: WalletTransaction.objects.create(**fields, **sides, key="k"))


@pytest.mark.django_db(transaction=True)
def test_a_whole_database_can_still_be_emptied_and_is_guarded_afterwards(invoice):
    call_command("flush", interactive=False, verbosity=0)
    assert Invoice.objects.count() == 0
    package = create_package(
        location=LocationFactory(), kind=KIND, rate_micro=1, starts_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    refused(lambda: package.versions.update(rate_micro=2), "has begun")
