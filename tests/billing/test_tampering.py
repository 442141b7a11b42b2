"""Changes to the books by an administrator with SQL access: `verify_billing` reports every one of these statements."""

from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from billing import closing, verification
from billing import wallet as ledger
from billing.bulk import adapt
from billing.guards import lifted
from billing.models import Invoice, ServiceKind
from billing.pricing import packages
from cng_portal.inventory.models import Volume
from snapshots.backups.automatic import NOTICE, switch_automatic_backups
from snapshots.models import Snapshot, State
from snapshots.volumes.charges import change_volume_charge, start_charging_volume, stop_charging_volume
from tests.factories import (
    LocationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]


def yangon(day: int, hour: int = 0, minute: int = 0, month: int = 11) -> datetime:
    return datetime(2040, month, day, hour, minute, tzinfo=UTC) - timedelta(hours=6, minutes=30)


NOW = yangon(20, month=12)  # October and November are invoiced


@pytest.fixture
def books() -> SimpleNamespace:
    """A customer with two invoices, a correction, expired credits, and usage in the current month."""
    project = ProjectFactory(customer__number=39, customer__name="Shwe", name="Default")
    location = LocationFactory(code="1CNG-YGN-AZ01")
    package, *_others = (
        packages.create_package(
            location=location, kind=kind, rate_micro=rate_micro, starts_at=datetime(2026, 1, 1, tzinfo=UTC)
        )
        for kind, rate_micro in (
            (ServiceKind.BS_SNAPSHOT, 400_000),
            (ServiceKind.VM_BACKUP, 600_000),
            (ServiceKind.BLOCK_STORAGE, 100_000),
        )
    )
    packages.set_price(package=package, rate_micro=500_000, starts_at=yangon(16), by=None)
    credit: dict[str, Any] = {"customer": project.customer, "by": None, "reason": "agreed"}
    ledger.buy_credits(**credit, amount_micro=100_000_000_000, key="bought", at=yangon(1, month=10))
    for key, amount, expires_at in (
        ("welcome", 100_000_000_000, yangon(9)),
        ("sorry", 50_000_000_000, yangon(19, month=12)),
        ("spring", 70_000_000_000, yangon(1, month=12) + timedelta(days=90)),
    ):
        ledger.grant_credits(**credit, amount_micro=amount, key=key, at=yangon(2, month=10), expires_at=expires_at)
    ledger.correct_credits(**credit, amount_micro=30_000_000, key="correction", at=yangon(3))

    def snapshot(name: str, ready_at: datetime) -> Snapshot:
        new = SnapshotFactory(
            name=name,
            volume__project=project,
            volume__location=location,
            volume__gone=True,
            size_gb=50,
            ready_at=ready_at,
        )
        new.start_charging(ready_at)
        return new

    def delete(snapshot: Snapshot, at: datetime) -> None:
        changes = {"state": State.DELETED, "delete_requested_at": at, "deleted_at": at, "deletion_cause": "user"}
        Snapshot.objects.filter(pk=snapshot.pk).update(**changes)
        snapshot.stop_charging(at)

    def volume(name: str, available_at: datetime) -> Volume:
        new = VolumeFactory(
            name=name,
            project=project,
            location=location,
            size_gb=50,
            available_at=available_at,
            created_at=available_at,
        )
        start_charging_volume(new, at=available_at)
        return new

    snapshot("alpha", yangon(3, 10, 17, month=10))
    grown, gone = volume("golf", yangon(4, 9, 30, month=10)), volume("hotel", yangon(5, month=10))
    corrected = snapshot("foxtrot", yangon(10, month=10))
    delete(snapshot("bravo", yangon(29, month=10)), yangon(2))
    closing.close_months(at=yangon(1))
    delete(corrected, yangon(20, month=10))
    vm = VirtualMachineFactory(project=project, location=location, name="echo", hourly_price_micro=45_500_000)
    switch_automatic_backups(vm=vm, on=True, user=UserFactory(admin=True), now=yangon(10) - NOTICE)
    ledger.expire_credits(at=yangon(10))
    ledger.refund_credits(**credit, amount_micro=20_000_000, key="refund", at=yangon(12))
    closing.close_months(at=yangon(1, month=12))
    delete(snapshot("charlie", yangon(2, month=12)), yangon(5, 1, month=12))
    snapshot("delta", yangon(3, month=12))
    grown.size_gb = 80
    grown.save()
    change_volume_charge(grown, at=yangon(10, 11, month=12))
    Volume.objects.filter(pk=gone.pk).update(state=Volume.State.DELETING, delete_requested_at=yangon(6, month=12))
    stop_charging_volume(gone, at=yangon(6, month=12))
    volume("india", yangon(8, month=12))
    ProjectFactory(customer=project.customer, name="Other")
    return SimpleNamespace(project=project, location=location, package=package, customer=project.customer)


LINE = "UPDATE billing_invoiceline SET {} WHERE resource_name = 'alpha' AND month = %s AND rate_micro = 500000"
INVOICE = "UPDATE billing_invoice SET {} WHERE month = %s"
OCTOBER, NOVEMBER = date(2040, 10, 1), date(2040, 11, 1)
WALLET = "UPDATE billing_wallettransaction SET {} WHERE key = %s"
USAGE = "UPDATE billing_usagesegment SET {} WHERE resource_name = %s"
PRICE = "UPDATE billing_priceversion SET {} WHERE rate_micro = %s"
EXPIRY = "UPDATE billing_wallettransaction SET {} WHERE kind = 'expired'"
OF_NOVEMBER = "(SELECT id FROM billing_invoice WHERE month = %s)"
Statement = tuple[str, list[Any]]


def line(change: str, *values: object) -> list[Statement]:
    return [(LINE.format(change), [*values, NOVEMBER])]


def invoice(change: str, *values: object) -> list[Statement]:
    return [(INVOICE.format(change), [*values, NOVEMBER])]


def wallet(key: str, change: str, *values: object) -> list[Statement]:
    return [(WALLET.format(change), [*values, key])]


def usage(name: str, change: str, *values: object) -> list[Statement]:
    return [(USAGE.format(change), [*values, name])]


def removed(month: date) -> list[Statement]:
    return [
        (f"DELETE FROM billing_wallettransaction WHERE invoice_id IN {OF_NOVEMBER}", [month]),
        (f"DELETE FROM billing_invoiceline WHERE invoice_id IN {OF_NOVEMBER}", [month]),
        ("DELETE FROM billing_invoice WHERE month = %s", [month]),
    ]


def copied(table: str, where: str, **changes: object) -> list[Statement]:
    """Return a statement that inserts a copy of a row with some columns changed."""
    with connection.cursor() as cursor:
        columns = [column.name for column in connection.introspection.get_table_description(cursor, table)]
    values = ", ".join("%s" if column in changes else column for column in columns if column != "id" or "id" in changes)
    names = ", ".join(column for column in columns if column != "id" or "id" in changes)
    ordered = [changes[column] for column in columns if column in changes]
    return [(f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} WHERE {where} LIMIT 1", ordered)]


def tamperings() -> dict[str, list[Statement]]:
    other = uuid4()
    return {
        # lines
        "rate of a line": line("rate_micro = rate_micro + 1"),
        "size of a line": line("size_gb = 51"),
        "start of a line": line("from_at = %s", yangon(4)),
        "end of a line": line("to_at = %s", yangon(30)),
        "name of a line": line("resource_name = 'other'"),
        "project of a line": line("project_name = 'other'"),
        "location of a line": line("location_code = 'other'"),
        "kind of a line": line("kind = 'vm_snapshot'"),
        "resource of a line": line("resource_id = %s", other),
        "month of a line": line("month = %s", date(2040, 9, 1)),
        "price of a line": line("price_version_id = NULL"),
        "hours of a line": line("hours = hours + 1"),
        "amount of a line": line("amount_micro = amount_micro + 10000"),
        "usage of a line": line("segment_id = (SELECT id FROM billing_usagesegment WHERE resource_name = 'delta')"),
        "correction of a line": [
            ("UPDATE billing_invoiceline SET amount_micro = amount_micro - 10000 WHERE corrects_id IS NOT NULL", [])
        ],
        "correction deleted": [("DELETE FROM billing_invoiceline WHERE corrects_id IS NOT NULL", [])],
        "line deleted": [("DELETE FROM billing_invoiceline WHERE resource_name = 'alpha' AND month = %s", [NOVEMBER])],
        "line deleted, with the sums": [
            ("DELETE FROM billing_invoiceline WHERE resource_name = 'bravo' AND month = %s", [NOVEMBER]),
            (
                "UPDATE billing_invoice SET line_count = line_count - 1, total_micro ="
                " (SELECT SUM(amount_micro) FROM billing_invoiceline WHERE invoice_id = billing_invoice.id)"
                " WHERE month = %s",
                [NOVEMBER],
            ),
            (
                "UPDATE billing_wallettransaction SET amount_micro ="
                " (SELECT total_micro FROM billing_invoice WHERE id = invoice_id) WHERE invoice_id IS NOT NULL",
                [],
            ),
        ],
        "line added": copied("billing_invoiceline", "resource_name = 'bravo'", from_at=yangon(1, month=9)),
        # invoices
        "sequence of an invoice": invoice("sequence = 7"),
        "sequence of the last invoice": invoice("sequence = 3"),
        "customer's number of an invoice": invoice("customer_number = 40"),
        "customer's name of an invoice": invoice("customer_name = 'other'"),
        "currency of an invoice": invoice("currency = 'USD'"),
        "billing type of an invoice": invoice("billing_type = 'postpaid'"),
        "time zone of an invoice": invoice("time_zone = 'UTC'"),
        "total of an invoice": invoice("total_micro = total_micro - 10000"),
        "line count of an invoice": invoice("line_count = 9"),
        "start of an invoice": invoice("starts_at = %s", yangon(2)),
        "end of an invoice": invoice("ends_at = %s", yangon(30)),
        "month of an invoice": [(INVOICE.format("month = %s"), [date(2040, 9, 1), OCTOBER])],
        "time of an invoice": invoice("made_at = %s", yangon(9, month=12)),
        "last invoice removed whole": removed(NOVEMBER),
        "first invoice removed whole": removed(OCTOBER),
        "all invoices removed": [*removed(OCTOBER), *removed(NOVEMBER)],
        "invoice removed, with the end of its seals": [
            *removed(NOVEMBER),
            ("DELETE FROM billing_seal WHERE chain LIKE 'customer%%' AND sequence >= 8", []),
        ],
        # credits
        "bought credits": wallet("bought", "amount_micro = amount_micro + 10000000"),
        "granted credits": wallet("welcome", "amount_micro = amount_micro + 10000000"),
        "refund": wallet("refund", "amount_micro = amount_micro + 10000"),
        "correction of credits": wallet("correction", "amount_micro = amount_micro + 10000"),
        "sides of a correction": wallet("correction", "source = 'wallet', target = 'corrections'"),
        "kind of credits": wallet("bought", "kind = 'granted', source = 'grants'"),
        "reason of credits": wallet("bought", "reason = 'other'"),
        "time of credits": wallet("bought", "at = %s", yangon(4, month=10)),
        "expiry of credits": wallet("spring", "expires_at = NULL"),
        "recording time of credits": wallet("bought", "created_at = %s", yangon(4, month=10)),
        "bought credits deleted": [("DELETE FROM billing_wallettransaction WHERE key = 'bought'", [])],
        "credits added": copied("billing_wallettransaction", "key = 'bought'", id=other, key="again"),
        "amount that expired": [(EXPIRY.format("amount_micro = amount_micro - 10000"), [])],
        "amount that expired, all": [(EXPIRY.format("amount_micro = 100000000000"), [])],
        "expiry deleted": [("DELETE FROM billing_wallettransaction WHERE kind = 'expired'", [])],
        "amount of an invoice in the wallet": [
            ("UPDATE billing_wallettransaction SET amount_micro = amount_micro - 10000 WHERE kind = 'spent'", [])
        ],
        "payment of an invoice deleted": [("DELETE FROM billing_wallettransaction WHERE kind = 'spent'", [])],
        "time of a payment": [
            ("UPDATE billing_wallettransaction SET at = %s WHERE kind = 'spent'", [yangon(1, month=12)])
        ],
        # prices
        "begun price": [(PRICE.format("rate_micro = 390000"), [400_000])],
        "price of a part of the month": [(PRICE.format("rate_micro = 490000"), [500_000])],
        "start of a price": [(PRICE.format("starts_at = %s"), [yangon(2, month=12), 500_000])],
        "price added in this month": copied(
            "billing_priceversion", "rate_micro = 500000", rate_micro=300_000, starts_at=yangon(10, month=12)
        ),
        "price deleted": [("DELETE FROM billing_priceversion WHERE rate_micro = 500000", [])],
        "kind of a package": [("UPDATE billing_package SET kind = 'vm_snapshot' WHERE kind = 'bs_snapshot'", [])],
        # usage
        "start of open usage": usage("delta", "started_at = %s", yangon(4, month=12)),
        "start of invoiced usage": usage("alpha", "started_at = %s", yangon(4, month=10)),
        "size of open usage": usage("delta", "size_gb = 5"),
        "size of ended usage": usage("charlie", "size_gb = 5"),
        "end of usage in this month": usage("charlie", "ended_at = %s", yangon(4, 1, month=12)),
        "end of open usage": usage("delta", "ended_at = %s", yangon(9, month=12)),
        "end of invoiced usage": usage("bravo", "ended_at = %s", yangon(1, 1)),
        "ended usage opened again": usage("charlie", "ended_at = NULL"),
        "kind of usage": usage("delta", "kind = 'vm_snapshot'"),
        "resource of usage": usage("delta", "resource_id = %s", other),
        "usage deleted": [("DELETE FROM billing_usagesegment WHERE resource_name = 'charlie'", [])],
        "usage added": copied(
            "billing_usagesegment",
            "resource_name = 'charlie'",
            id=other,
            started_at=yangon(7, month=12),
            ended_at=yangon(8, month=12),
        ),
        "base rate of automatic backups": usage("echo", "base_rate_micro = base_rate_micro - 1000000"),
        "start of automatic backups": usage("echo", "started_at = %s", yangon(11)),
        "end of automatic backups": usage("echo", "ended_at = %s", yangon(9, month=12)),
        "automatic backups deleted": [
            ("DELETE FROM billing_invoiceline WHERE resource_name = 'echo'", []),
            ("DELETE FROM billing_usagesegment WHERE resource_name = 'echo'", []),
        ],
        "start of a volume's usage": usage("india", "started_at = %s", yangon(9, month=12)),
        "size of a volume's usage": usage("india", "size_gb = 5"),
        "end of a volume's usage": usage("india", "ended_at = %s", yangon(9, month=12)),
        "project of a volume's usage": usage(
            "india", "project_id = (SELECT id FROM accounts_project WHERE name = 'Other')"
        ),
        "volume's usage voided": usage("india", "voided = %s, ended_at = started_at", True),
        "volume's usage deleted": [("DELETE FROM billing_usagesegment WHERE resource_name = 'india'", [])],
        "resource of a volume's usage": usage("india", "resource_id = %s", other),
        "deleted volume charged": usage("hotel", "ended_at = NULL"),
        "end of a deleted volume's usage": usage("hotel", "ended_at = %s", yangon(5, month=12)),
        "grown volume charged as before": [
            ("DELETE FROM billing_usagesegment WHERE resource_name = 'golf' AND size_gb = 80", []),
            ("UPDATE billing_usagesegment SET ended_at = NULL WHERE resource_name = 'golf'", []),
        ],
        "grown volume charged later": [
            (f"{USAGE.format('started_at = %s')} AND size_gb = 80", [yangon(12, month=12), "golf"])
        ],
        "size before a volume grew": [(f"{USAGE.format('size_gb = 90')} AND size_gb = 50", ["golf"])],
        "line of a volume": [
            ("UPDATE billing_invoiceline SET hours = hours + 1 WHERE resource_name = 'golf' AND month = %s", [NOVEMBER])
        ],
        "price of Block Storage": [(PRICE.format("rate_micro = 90000"), [100_000])],
        "usage marked as backdated": usage("alpha", "backdated = %s, started_at = %s", True, yangon(4, month=10)),
        # the evidence
        "content of a seal": [("UPDATE billing_seal SET content = '0' WHERE sequence = 2", [])],
        "digest of a seal": [("UPDATE billing_seal SET digest = '0' WHERE sequence = 2", [])],
        "seal deleted": [("DELETE FROM billing_seal WHERE sequence = 2", [])],
        "seals of a package deleted": [("DELETE FROM billing_seal WHERE chain LIKE 'package%%'", [])],
        "bought credits, with their seal": [
            *wallet("bought", "amount_micro = amount_micro + 10000000"),
            ("DELETE FROM billing_seal WHERE chain LIKE 'customer%%' AND sequence = 1", []),
        ],
        "snapshot's ready time": [
            ("UPDATE snapshots_snapshot SET ready_at = %s WHERE name = 'delta'", [yangon(2, month=12)])
        ],
        "volume's available time": [
            ("UPDATE inventory_volume SET available_at = %s WHERE name = 'india'", [yangon(7, month=12)])
        ],
        "volume's deletion time": [
            ("UPDATE inventory_volume SET delete_requested_at = %s WHERE name = 'hotel'", [yangon(7, month=12)])
        ],
        "volume's size": [("UPDATE inventory_volume SET size_gb = 40 WHERE name = 'india'", [])],
        "volume's project": [
            (
                "UPDATE inventory_volume SET project_id = (SELECT id FROM accounts_project WHERE name = 'Other')"
                " WHERE name = 'india'",
                [],
            )
        ],
    }


def tamper(statements: list[Statement]) -> None:
    """Run the statements as a DBA would: without the triggers."""
    with lifted(connection), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL session_replication_role = replica")
        changed = 0
        for sql, parameters in statements:
            cursor.execute(sql, [adapt(value) for value in parameters])
            changed += cursor.rowcount
        assert changed, "the statement changed nothing"


@pytest.mark.slow
def test_every_tampering_is_reported(books: SimpleNamespace) -> None:
    assert Invoice.objects.count() == 2
    assert verification.all_differences(at=NOW) == []
    missed = []
    for name, statements in tamperings().items():
        with transaction.atomic():
            tamper(statements)
            if not verification.all_differences(at=NOW):
                missed.append(name)
            transaction.set_rollback(True)
    assert missed == [], f"{len(missed)} of {len(tamperings())}"


def test_verify_billing_names_the_rows_that_were_tampered_with(books: SimpleNamespace, time_machine, capsys) -> None:
    time_machine.move_to(NOW)
    call_command("verify_billing")
    assert "All amounts of 1 customers are what they should be." in capsys.readouterr().out
    tamper(line("hours = hours + 1"))
    with pytest.raises(CommandError, match="#000039: alpha .* invoiced 361 h for .* recomputed 360 h"):
        call_command("verify_billing")


def test_unusable_rows_are_reported_and_do_not_hide_other_customers(books: SimpleNamespace) -> None:
    other = ProjectFactory(customer__number=40)
    type(other.customer).objects.filter(number=40).update(time_zone="Mars/Olympus")
    ledger.buy_credits(customer=other.customer, amount_micro=10_000, reason="paid", by=None, key="x", at=yangon(1))
    tamper(line("hours = hours + 1"))
    differences = " ".join(verification.differences(at=NOW))
    assert "#000040: cannot be verified" in differences
    assert "invoiced 361 h" in differences
