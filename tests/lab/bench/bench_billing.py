"""Rating and closing a month: a million segments of 20,000 customers on PostgreSQL, a tenth of it on SQLite.

Each figure is compared with hand-written SQL for this one month, which returns the same numbers.
"""

import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from django.db import connection, transaction

from tests.lab.bench import Measure
from tests.postgres import find_server_programs, postgres

SEGMENTS_EACH = 50
LOCATIONS = 10
MONTH = date(2040, 11, 1)
ZONE = "Asia/Yangon"
SINCE = datetime(2040, 10, 31, 17, 30, tzinfo=UTC)
UNTIL = datetime(2040, 11, 30, 17, 30, tzinfo=UTC)


def main() -> Iterator[Measure]:
    yield from measure(customers=2_000)
    programs = find_server_programs()
    if programs is None:
        yield Measure("billing on PostgreSQL", 0, note="not measured: there is no PostgreSQL server on this machine")
        return
    with postgres(programs) as url, tempfile.TemporaryDirectory(prefix="portal-bench-") as folder:
        result = Path(folder, "measures")
        command = [sys.executable, "-m", "tests.lab.bench.bench_billing", str(result)]
        subprocess.run(command, env=os.environ | {"DATABASE_URL": url}, check=True)
        yield from pickle.loads(result.read_bytes())


def measure(*, customers: int) -> Iterator[Measure]:
    from billing import bulk, closing
    from billing.models import Invoice, InvoiceLine
    from cng_portal.accounts.models import Customer

    fill(customers)
    where = f"{'PostgreSQL' if connection.vendor == 'postgresql' else 'SQLite'}, {customers * SEGMENTS_EACH:,} segments"

    everyone = {one.pk: one for one in Customer.objects.all()}
    windows = closing.next_windows(everyone, at=UNTIL, through=None)

    def rate() -> dict[UUID, int]:
        return bulk.owed_by_customer(windows)

    by_hand, hand_seconds = best_of(3, rate_by_hand)
    rated, seconds = best_of(3, rate)
    assert rated == by_hand, "the SQL written by hand gives other numbers"
    note = f"{seconds:.2f} s against {hand_seconds:.2f} s"
    yield Measure(f"{where}: rate a month, against SQL by hand", seconds / hand_seconds, "×", at_most=1.5, note=note)

    times = [balance_seconds(customer) for customer in Customer.objects.order_by("pk")[: customers : customers // 40]]
    note = f"median of {len(times)}; the slowest took {max(times) * 1000:.2f} ms"
    yield Measure(f"{where}: database time of a balance", statistics.median(times) * 1000, " ms", at_most=5, note=note)

    process = psutil.Process()
    memory: list[int] = []
    start = time.perf_counter()
    report = closing.close_months(at=UNTIL, progress=lambda _customers: memory.append(process.memory_info().rss))
    seconds = time.perf_counter() - start
    assert report.invoices == customers
    assert report.lines == InvoiceLine.objects.count()
    assert dict(Invoice.objects.filter(month=MONTH, line_count__gt=0).values_list("customer", "total_micro")) == by_hand
    copy_seconds = min(copy_the_rows() for _run in range(2))
    note = f"{report.lines:,} lines: {seconds:.1f} s against {copy_seconds:.1f} s"
    yield Measure(f"{where}: close a month, against INSERT … SELECT", seconds / copy_seconds, "×", at_most=3, note=note)
    tenth = max(1, len(memory) // 10)
    growth = (max(memory[tenth:] or memory) - max(memory[:tenth])) / 2**20
    yield Measure(f"{where}: memory after the first tenth of the customers", growth, " MiB", at_most=16)


def best_of(runs: int, work: Callable[[], Any]) -> tuple[Any, float]:
    seconds = []
    for _run in range(runs):
        start = time.perf_counter()
        outcome = work()
        seconds.append(time.perf_counter() - start)
    return outcome, min(seconds)


def balance_seconds(customer: Any) -> float:
    """Return the seconds that the database takes, fetching the rows included."""
    from billing.balance import get_balance

    spent = 0.0

    def timed(execute: Any, *arguments: Any) -> Any:
        nonlocal spent
        start = time.perf_counter()
        try:
            return execute(*arguments)
        finally:
            spent += time.perf_counter() - start

    durations = []
    for _run in range(3):
        spent = 0.0
        with connection.execute_wrapper(timed):
            get_balance(customer=customer, at=SINCE + timedelta(days=17))
        durations.append(spent)
    return min(durations)


def fill(customers: int) -> None:
    """Create customers whose October is closed. Their usage is inserted in chronological order, as in real life."""
    from billing.models import Invoice, Package, PriceVersion, ServiceKind
    from cng_portal.accounts.models import Customer, Project
    from cng_portal.inventory.models import Location

    places = [
        Location(code=f"1CNG-BEN-AZ{n:02d}", city="Yangon", country="MM", region="asia") for n in range(LOCATIONS)
    ]
    Location.objects.bulk_create(places)
    kinds = [ServiceKind.BS_SNAPSHOT, ServiceKind.VM_SNAPSHOT, ServiceKind.VM_BACKUP]
    for number, package_key in enumerate(places):
        for kind in kinds:
            package = Package.objects.create(location=package_key, kind=kind, name=f"{kind} {package_key}")
            starts = [datetime(2040, 1, 1, tzinfo=UTC), datetime(2040, 11, 5 + number, 3, 7, tzinfo=UTC)]
            for start in starts[: 1 + number % 2]:
                PriceVersion.objects.create(package=package, starts_at=start, rate_micro=123_457 + 1000 * start.month)
    everyone = [
        Customer(id=UUID(int=n + 1), number=n + 1, name=f"Customer {n}", time_zone=ZONE) for n in range(customers)
    ]
    Customer.objects.bulk_create(everyone, batch_size=2000)
    projects = [Project(id=UUID(int=customer.pk.int), customer=customer, name="Default") for customer in everyone]
    Project.objects.bulk_create(projects, batch_size=2000)
    Invoice.objects.bulk_create(
        (
            Invoice(
                customer=customer,
                sequence=1,
                month=date(2040, 10, 1),
                starts_at=datetime(2040, 9, 30, 17, 30, tzinfo=UTC),
                ends_at=SINCE,
                customer_number=customer.number,
                customer_name=customer.name,
                billing_type="prepaid",
                currency="MMK",
                time_zone=ZONE,
                total_micro=0,
                line_count=0,
                made_at=SINCE,
            )
            for customer in everyone
        ),
        batch_size=2000,
    )
    total = customers * SEGMENTS_EACH
    columns = (
        "id, resource_id, kind, resource_name, customer_id, project_id, location_id, size_gb, base_rate_micro,"
        " started_at, ended_at, voided, backdated"
    )
    # n increases with time; multiplying it shuffles the customers
    kind = (
        "CASE n % 50 WHEN 0 THEN 'vm_backup_auto' ELSE"
        " CASE n % 3 WHEN 0 THEN 'bs_snapshot' WHEN 1 THEN 'vm_snapshot' ELSE 'vm_backup' END END"
    )
    size = "CASE n % 50 WHEN 0 THEN 0 ELSE 1 + n * 31 % 500 END"
    base = "CASE n % 50 WHEN 0 THEN 100000000 + n END"
    owner = f"(n * 7919 % {customers}) + 1"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            uuid = "lpad(to_hex({}), 32, '0')::uuid"
            start = f"'2040-10-02'::timestamptz + (n * 59 * 86400 / {total}) * INTERVAL '1 second'"
            cursor.execute(
                f"""INSERT INTO billing_usagesegment ({columns})
                SELECT {uuid.format("n + 1")}, {uuid.format("n + 1")}, {kind}, 'disk-' || n, {uuid.format(owner)},
                    {uuid.format(owner)}, '1CNG-BEN-AZ0' || (n * 7 % {LOCATIONS}), {size}, {base}, {start},
                    CASE WHEN n % 5 > 1 THEN {start} + (n * 37 % 3000000) * INTERVAL '1 second' END, FALSE, FALSE
                FROM generate_series(0::bigint, {total - 1}) AS n"""
            )
            cursor.execute("ANALYZE")
        else:
            uuid = "printf('%032x', {})"
            start = f"strftime('%s', '2040-10-02') + n * 59 * 86400 / {total}"
            cursor.execute(
                f"""WITH RECURSIVE series(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n < {total - 1})
                INSERT INTO billing_usagesegment ({columns})
                SELECT {uuid.format("n + 1")}, {uuid.format("n + 1")}, {kind}, 'disk-' || n, {uuid.format(owner)},
                    {uuid.format(owner)}, '1CNG-BEN-AZ0' || (n * 7 % {LOCATIONS}), {size}, {base},
                    datetime({start}, 'unixepoch'),
                    CASE WHEN n % 5 > 1 THEN datetime({start} + n * 37 % 3000000, 'unixepoch') END, 0, 0
                FROM series"""
            )
            cursor.execute("ANALYZE")


def rate_by_hand() -> dict[UUID, int]:
    """Rate with one statement for this month and time zone, whose boundaries are literals, assuming whole seconds."""
    postgresql = connection.vendor == "postgresql"
    since, until = f"{SINCE:%Y-%m-%d %H:%M:%S}", f"{UNTIL:%Y-%m-%d %H:%M:%S}"
    if postgresql:
        seconds, window = "date_part('epoch', {})::bigint", f"{int(SINCE.timestamp())}, {int(UNTIL.timestamp())}"
        least, greatest, since, until = "LEAST", "GREATEST", f"{since}+00", f"{until}+00"
    else:
        seconds, window = "CAST(strftime('%s', {}) AS INTEGER)", f"{int(SINCE.timestamp())}, {int(UNTIL.timestamp())}"
        least, greatest = "MIN", "MAX"
    lower, upper = window.split(", ")
    sql = f"""
        WITH price AS {"MATERIALIZED" if postgresql else ""} (
            SELECT p.kind, p.location_id, v.rate_micro, {greatest}({seconds.format("v.starts_at")}, {lower}) AS since,
                COALESCE(LEAD({seconds.format("v.starts_at")}) OVER (
                    PARTITION BY p.kind, p.location_id ORDER BY v.starts_at), {upper}) AS until
            FROM billing_priceversion v JOIN billing_package p ON p.id = v.package_id
        ),
        usage AS (
            SELECT customer_id, kind, location_id, size_gb, base_rate_micro, {seconds.format("started_at")} AS started,
                {least}(COALESCE({seconds.format("ended_at")}, {upper}), {upper}) AS ended
            FROM billing_usagesegment
            WHERE started_at < '{until}' AND (ended_at IS NULL OR ended_at >= '{since}')
        ),
        spans AS (
            SELECT u.*, {greatest}(1, (ended - started + 3599) / 3600) AS total, p.since, p.until, p.rate_micro AS rate,
                10000 AS unit
            FROM usage u JOIN price p ON p.kind = u.kind AND p.location_id = u.location_id AND p.until > {lower}
            UNION ALL
            SELECT u.*, {greatest}(1, (ended - started + 3599) / 3600), {lower}, {upper}, base_rate_micro, 50000
            FROM usage u WHERE base_rate_micro IS NOT NULL
        ),
        exact AS (
            SELECT customer_id, unit,
                ({least}(total, {greatest}(0, (until - started + 3599) / 3600))
                - {least}(total, {greatest}(0, (since - started + 3599) / 3600)))
                * CASE WHEN base_rate_micro IS NULL THEN size_gb ELSE 1 END * rate AS amount
            FROM spans
        )
        SELECT customer_id, SUM(10000 * (amount / unit + CASE WHEN amount % unit * 2 > unit
            OR (amount % unit * 2 = unit AND amount / unit % 2 = 1) THEN 1 ELSE 0 END))
        FROM exact WHERE amount > 0 GROUP BY customer_id
    """
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return {value if isinstance(value, UUID) else UUID(value): int(total) for value, total in cursor.fetchall()}


def copy_the_rows() -> float:
    """Return the seconds it takes to copy the invoices into tables with the same columns, constraints and indexes."""
    tables = ["billing_invoiceline", "billing_invoice", "billing_wallettransaction"]
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"DROP TABLE IF EXISTS copy_{table}")
            if connection.vendor == "postgresql":
                cursor.execute(f"CREATE TABLE copy_{table} (LIKE {table} INCLUDING ALL)")
                cursor.execute(
                    "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f' AND conrelid = %s::regclass",
                    [table],
                )
                for (definition,) in cursor.fetchall():
                    cursor.execute(f"ALTER TABLE copy_{table} ADD {definition}")
            else:
                cursor.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = %s", [table])
                [definition] = cursor.fetchone()
                cursor.execute(definition.replace(f'"{table}"', f'"copy_{table}"', 1))
                cursor.execute(
                    "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = %s AND sql IS NOT NULL",
                    [table],
                )
                for name, index in cursor.fetchall():
                    index = index.replace(f'"{name}"', f'"copy_{name}"', 1).replace(f'"{table}"', f'"copy_{table}"', 1)
                    cursor.execute(index)
    start = time.perf_counter()
    with transaction.atomic(), connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"INSERT INTO copy_{table} SELECT * FROM {table}")
    return time.perf_counter() - start


if __name__ == "__main__":
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    Path(sys.argv[1]).write_bytes(pickle.dumps(list(measure(customers=20_000))))
