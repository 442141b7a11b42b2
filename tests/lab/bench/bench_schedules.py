"""Finding the due schedules among 100,000, on SQLite and PostgreSQL: the query that the scheduler runs all the time.

Measures the database: executing the statement and fetching all rows.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path

from django.db import connection

from tests.lab.bench import Measure
from tests.postgres import find_server_programs, postgres

SCHEDULES, MACHINES, CUSTOMERS = 100_000, 20_000, 1_000
NOW = datetime(2040, 11, 1, tzinfo=UTC)
RUNS = 9


def main() -> Iterator[Measure]:
    yield from measure()
    programs = find_server_programs()
    if programs is None:
        yield Measure("schedules on PostgreSQL", 0, note="not measured: there is no PostgreSQL server on this machine")
        return
    with postgres(programs) as url, tempfile.TemporaryDirectory(prefix="portal-bench-") as folder:
        result = Path(folder, "measures")
        command = [sys.executable, "-m", "tests.lab.bench.bench_schedules", str(result)]
        subprocess.run(command, env=os.environ | {"DATABASE_URL": url}, check=True)
        yield from pickle.loads(result.read_bytes())


def measure() -> Iterator[Measure]:
    from snapshots.backups.runs import BATCH_SIZE as BATCH

    fill()
    where = f"{'PostgreSQL' if connection.vendor == 'postgresql' else 'SQLite'}, {SCHEDULES:,} schedules"
    # one is due every six seconds, and a fifth of all at 2 a.m.
    for what, now, expected in [
        ("none is due", NOW, 0),
        ("100 are due", NOW + timedelta(minutes=10), 100),
        (f"a fifth is due, the first {BATCH}", NOW + timedelta(days=6), BATCH),
    ]:
        runs, seconds = best(now)
        assert runs == expected, f"{runs} are due at {now}"
        yield Measure(f"{where}: {what}", seconds * 1000, " ms", at_most=50, note=f"best of {RUNS}")


def best(now: datetime) -> tuple[int, float]:
    from snapshots.backups.runs import BATCH_SIZE, due_schedules

    sql, params = due_schedules(now)[:BATCH_SIZE].query.get_compiler(connection=connection).as_sql()
    seconds = []
    with connection.cursor() as cursor:
        for _run in range(RUNS):
            start = time.perf_counter()
            cursor.execute(sql, params)
            rows = cursor.fetchall()
            seconds.append(time.perf_counter() - start)
    return len(rows), min(seconds)


def fill() -> None:
    from cng_portal.accounts.models import Customer, Project
    from cng_portal.inventory.models import Location, VirtualMachine
    from snapshots.models import BackupSchedule

    location = Location.objects.create(code="1CNG-BEN-AZ01", city="Yangon", country="MM", region="asia")
    customers = [Customer(number=n + 1, name=f"Customer {n}") for n in range(CUSTOMERS)]
    Customer.objects.bulk_create(customers, batch_size=2000)
    projects = [Project(customer=customer, name="Default") for customer in customers]
    Project.objects.bulk_create(projects, batch_size=2000)
    machines = [
        VirtualMachine(project=projects[n % CUSTOMERS], location=location, name=f"vm-{n}") for n in range(MACHINES)
    ]
    VirtualMachine.objects.bulk_create(machines, batch_size=2000)
    peak = NOW + timedelta(days=5, hours=20)
    BackupSchedule.objects.bulk_create(
        (
            BackupSchedule(
                vm=machines[n % MACHINES],
                interval="daily",
                at=time_of_day(2),
                time_zone="Asia/Yangon",
                next_run_at=peak if n % 5 == 0 else NOW + timedelta(seconds=6 * (n - n // 5)),
            )
            for n in range(SCHEDULES)
        ),
        batch_size=2000,
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


if __name__ == "__main__":
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    Path(sys.argv[1]).write_bytes(pickle.dumps(list(measure())))
