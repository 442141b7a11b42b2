"""The portal of a large provider on PostgreSQL: a million snapshots of 20,000 customers, one of whom has 50,000.

Each page is compared with the same page of a portal with a thousand snapshots. Every request comes from another
customer, so nothing measured is cached. The large customer's pages are measured too, with the cached balance cleared
before each. Every query plan is checked for sequential scans of large tables. Finally, 200 users arrive at once.

LOAD_SNAPSHOTS=100000 runs it with fewer.
"""

import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.lab.bench import Measure
from tests.postgres import find_server_programs, postgres

FEW, MANY = 1_000, int(os.environ.get("LOAD_SNAPSHOTS", "1000000"))
RUNS, WARM = 15, 2  # in total fewer than the small portal's customers
LARGE = 1  # the customer with many snapshots; the others have numbers from 2 on
PEOPLE, CLICKS = 200, 4
DAYS = 320
BIG_SHARE, OF_A_CUSTOMER = 20, 50  # a twentieth belongs to the large customer; snapshots per other customer
VOLUMES_EACH, VOLUMES_OF_BIG = 5, 50
BIG_TABLES = {"snapshots_snapshot", "snapshots_diskimage", "snapshots_operation", "billing_usagesegment"}
BIG_TABLES |= {"inventory_volume", "accounts_customer", "accounts_project", "accounts_user", "accounts_membership"}
MOST_QUERIES = 25


def main() -> Iterator[Measure]:
    programs = find_server_programs()
    if programs is None:
        yield Measure("load", 0, note="not measured: there is no PostgreSQL server on this machine")
        return
    with postgres(programs) as url, ExitStack() as stack:
        portals = {count: stack.enter_context(Portal(url, count)) for count in (FEW, MANY)}
        for count, portal in portals.items():
            seconds = portal.ask("fill")["seconds"]
            print(f"  {count:,} snapshots were written in {seconds:.0f} s", flush=True)
        for name in portals[MANY].ask("names"):
            yield from reported(compare(name, portals))
        yield from reported(crowd(portals[MANY]))


def reported(measures: Iterator[Measure]) -> Iterator[Measure]:
    """Print each measure as soon as it is known, because the whole run is long."""
    for measure in measures:
        print(f"  {measure.what}: {measure.value:.2f}{measure.unit} {measure.note}", flush=True)
        yield measure


def compare(name: str, portals: dict[int, "Portal"]) -> Iterator[Measure]:
    """Compare wall-clock times. The note has the CPU times, which are steadier on a busy machine."""
    visits: dict[tuple[int, bool], list[dict[str, float]]] = defaultdict(list)
    for run in range(WARM + RUNS):
        for count, portal in portals.items():
            for is_large in (False, True):
                answer = portal.ask("page", name, LARGE if is_large else LARGE + 1 + run)
                if run >= WARM:  # templates are compiled by then
                    visits[count, is_large].append(answer)

    def median(count: int, is_large: bool, what: str) -> float:
        return statistics.median(visit[what] for visit in visits[count, is_large])

    for is_large in (False, True):
        (few, few_cpu), (many, many_cpu) = (
            [median(count, is_large, what) for what in ("seconds", "cpu")] for count in (FEW, MANY)
        )
        note = f"{many * 1000:.0f} ms against {few * 1000:.0f} ms; {many_cpu / few_cpu:.2f}× by CPU"
        what = f"{name} of {'the large customer' if is_large else 'another customer each time'}"
        yield Measure(
            f"{what}: {MANY:,} against {FEW:,} snapshots", many / few, "×", at_most=None if is_large else 1.3, note=note
        )
        plans = portals[MANY].ask("plans", name, LARGE if is_large else LARGE + 1)
        yield Measure(f"{what}: queries", plans["queries"], at_most=MOST_QUERIES)
        note = "; ".join(plans["scans"])[:300]
        yield Measure(f"{what}: large tables read from end to end", len(plans["scans"]), at_most=0, note=note)


def crowd(portal: "Portal") -> Iterator[Measure]:
    result = portal.ask("crowd")
    median, slowest = statistics.median(result["seconds"]), percentile(result["seconds"], 99)
    yield Measure(f"{PEOPLE} people at once: errors", len(result["errors"]), at_most=0, note=str(result["errors"][:3]))
    note = f"{slowest:.2f} s and {median:.2f} s of {len(result['seconds'])} pages"
    what = f"{PEOPLE} people at once: the slowest of a hundred against the median"
    yield Measure(what, slowest / median, "×", at_most=5, note=note)


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[max(0, len(values) * percent // 100 - 1)]


class Portal:
    """A portal in its own process with its own database, which runs one command per line of its input."""

    def __init__(self, url: str, count: int) -> None:
        self.url, self.count = url, count

    def __enter__(self) -> "Portal":
        self.folder = tempfile.TemporaryDirectory(prefix="portal-load-")
        name = f"load_{self.count}"
        base = self.url.rpartition("/")[0]
        import psycopg

        socket_folder = base.partition("@/")[2]
        with psycopg.connect(
            host=f"/{socket_folder.lstrip('/')}", user="portal", dbname="postgres", autocommit=True
        ) as c:
            c.execute(f"CREATE DATABASE {name}")
        environment = {"DATABASE_URL": f"{base}/{name}", "DATA_DIR": self.folder.name, "LOG_LEVEL": "ERROR"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.bench.bench_load", str(self.count)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()

    def ask(self, *arguments: object) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("=> "):
                return json.loads(line[3:])
        raise RuntimeError(f"the portal with {self.count} snapshots ended at {arguments}")


def uuid(number: str) -> str:
    return f"lpad(to_hex(({number})::bigint), 32, '0')::uuid"


@contextmanager
def indexed_afterwards(*models: Any) -> Iterator[None]:
    """Drop the tables' foreign keys and indexes within the block, and recreate them together at the end."""
    from django.db import connection

    names = [model._meta.db_table for model in models]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname), "
            "format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid)) "
            "FROM pg_constraint WHERE contype = 'f' AND conrelid = ANY (%s::regclass[]) "
            "UNION ALL SELECT format('DROP INDEX %%s', indexrelid::regclass), pg_get_indexdef(indexrelid) FROM pg_index "
            "WHERE indrelid = ANY (%s::regclass[]) AND indexrelid NOT IN (SELECT conindid FROM pg_constraint)",
            [names, names],
        )
        rows = cursor.fetchall()
        for drop, _make in rows:
            cursor.execute(drop)
        yield
        cursor.execute("SET maintenance_work_mem = '512MB'")
        for _drop, make in reversed(rows):  # first the indexes
            cursor.execute(make)


def fill(count: int) -> None:
    """Create one of each with the factories, and let the database multiply them."""
    from datetime import timedelta

    from django.db import connection
    from django.utils import timezone

    from billing.models import Invoice, ServiceKind, UsageSegment
    from billing.pricing.packages import create_package
    from cng_portal.accounts.models import Customer, Membership, Project, User
    from cng_portal.inventory.models import Location, Volume
    from snapshots.models import DiskImage, Operation, Snapshot
    from tests.factories import LocationFactory, OperationFactory, SnapshotFactory, UserFactory

    now = timezone.now()
    customers = count // OF_A_CUSTOMER
    for n in range(4):
        LocationFactory(code=f"1CNG-BEN-AZ{n:02d}")
    for location in Location.objects.all():
        for kind in ServiceKind.BS_SNAPSHOT, ServiceKind.VM_SNAPSHOT, ServiceKind.VM_BACKUP:
            create_package(location=location, kind=kind, rate_micro=400_000, starts_at=now - timedelta(days=800))
    first = SnapshotFactory(
        volume__location=Location.objects.first(), volume__project__customer__postpaid=True, name="first"
    )
    user = UserFactory(member_of=first.project)
    operation = OperationFactory(snapshot=first, capture=True, succeeded=True)
    segment = UsageSegment.objects.create(
        resource_id=first.pk,
        kind=ServiceKind.BS_SNAPSHOT,
        resource_name=first.name,
        customer=first.customer,
        project=first.project,
        location=first.location,
        size_gb=1,
        started_at=now,
    )
    month = now.date().replace(day=1)
    closed = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(minutes=390)
    invoice = Invoice.objects.create(
        customer=first.customer,
        sequence=1,
        month=(month - timedelta(days=1)).replace(day=1),
        starts_at=closed - timedelta(days=30),
        ends_at=closed,
        customer_number=first.customer.number,
        time_zone=first.customer.time_zone,
        total_micro=0,
        line_count=0,
        made_at=closed,
    )
    # IDs: a customer and what it has one of have its number n; its volume m is n * 2**20 + m; snapshots are numbered
    # from 2**60
    copy(Customer, first.customer, customers, id=uuid("n"), number="100000 + n", name="'Customer ' || n")
    copy(Project, first.project, customers, id=uuid("n"), customer_id=uuid("n"))
    copy(User, user, customers, id=uuid("n"), customer_id=uuid("n"), email="'person' || n || '@load.example'")
    copy(Membership, Membership.objects.get(), customers, id="1000 + n", user_id=uuid("n"), project_id=uuid("n"))
    copy(Invoice, invoice, customers, id=uuid("n"), customer_id=uuid("n"), customer_number="100000 + n")
    owner = f"CASE WHEN n % {BIG_SHARE} = 0 THEN 1 ELSE 2 + (n * 7919) % {max(1, customers - 1)} END"
    each = f"CASE WHEN n % {BIG_SHARE} = 0 THEN n / {BIG_SHARE} % {VOLUMES_OF_BIG} ELSE n % {VOLUMES_EACH} END"
    volume = uuid(f"({owner}) * 1048576 + ({each})")
    place = f"'1CNG-BEN-AZ0' || ({each}) % 4"
    of_big = {"id": uuid("1048576 + n - 1"), "project_id": uuid("1"), "name": "'disk-' || n"}
    copy(Volume, first.volume, VOLUMES_OF_BIG, **of_big, location_id="'1CNG-BEN-AZ0' || (n - 1) % 4")
    rest = {"id": uuid(f"(2 + (n - 1) / {VOLUMES_EACH}) * 1048576 + (n - 1) % {VOLUMES_EACH}")}
    rest |= {"project_id": uuid(f"2 + (n - 1) / {VOLUMES_EACH}"), "name": "'disk-' || n"}
    rest["location_id"] = f"'1CNG-BEN-AZ0' || ((n - 1) % {VOLUMES_EACH}) % 4"
    copy(Volume, first.volume, (customers - 1) * VOLUMES_EACH, **rest)

    pk, name = uuid("1152921504606846976 + n"), "'nightly-' || lpad(n::text, 7, '0')"
    # the newest are the same for any total, and half of the large customer's have failed
    seconds = f"LEAST(n, {FEW}) * {DAYS * 86400 / 1_000_000} + GREATEST(n - {FEW}, 0) * {DAYS * 86400 / count}"
    created_at = f"now() - ({seconds}) * INTERVAL '1 second'"
    failed = f"(n % 400 = 40 OR n <= {FEW} AND n % {2 * BIG_SHARE} = {BIG_SHARE})"
    gone = f"CASE WHEN n % 25 = 3 THEN LEAST({created_at} + INTERVAL '2 days', now()) END"
    whose = {"customer_id": uuid(owner), "project_id": uuid(owner), "location_id": place}
    done = {"created_at": created_at, "started_at": created_at, "finished_at": created_at, "not_before": created_at}
    done["state"] = f"CASE WHEN {failed} THEN 'failed' ELSE 'succeeded' END"
    disk = first.disks.get()
    with indexed_afterwards(Snapshot, DiskImage, Operation, UsageSegment):
        copy(
            Snapshot,
            first,
            count,
            **whose,
            id=pk,
            volume_id=volume,
            name=name,
            name_key=name,
            size_gb="1 + n % 60",
            state=f"CASE WHEN n % 25 = 3 THEN 'deleted' WHEN {failed} THEN 'failed' ELSE 'ready' END",
            error=f"CASE WHEN {failed} THEN 'The storage was full.' ELSE '' END",
            created_at=created_at,
            ready_at=f"CASE WHEN {failed} THEN NULL ELSE {created_at} END",
            delete_requested_at=gone,
            deleted_at=gone,
            deletion_cause="CASE WHEN n % 25 = 3 THEN 'user' ELSE '' END",
        )
        copy(DiskImage, disk, count, id=pk, snapshot_id=pk, volume_id=volume, size_gb="1 + n % 60")
        copy(Operation, operation, count, id=uuid("2305843009213693952 + n"), snapshot_id=pk, **done)
        copy(
            UsageSegment,
            segment,
            count,
            **whose,
            id=pk,
            resource_id=pk,
            resource_name=name,
            size_gb="1 + n % 60",
            started_at=created_at,
            ended_at=gone,
        )
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def copy(model: Any, row: Any, times: int, **changed: str) -> None:
    """Insert the row `count` times, with `n` counting from 1 in the expressions of the changed columns."""
    from django.db import connection

    columns = [field.column for field in model._meta.concrete_fields]
    table, key = model._meta.db_table, model._meta.pk.column
    values = ", ".join(changed.get(column, f'origin."{column}"') for column in columns)
    quoted = ", ".join(f'"{column}"' for column in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f'INSERT INTO "{table}" ({quoted}) SELECT {values} FROM "{table}" origin, '
            f"generate_series(1::bigint, {times}) n WHERE origin.\"{key}\" = '{row.pk}'"
        )


class Pages:
    """The pages of any customer, each requested by the customer's own user."""

    names = (
        *("list", "search", "search of one", "filter", "volumes", "instances", "detail", "dashboard"),
        *("wizard step", "billing summary"),
    )

    def __init__(self) -> None:
        from django.test.client import ClientHandler

        self.handler = ClientHandler(enforce_csrf_checks=False)
        self.handler.load_middleware()  # here, so that it isn't part of each client's first page

    def customer(self, number: int, name: str) -> tuple[Any, str]:
        """Return a client signed in as the customer's user, and the path of the page."""
        from django.test import Client

        from cng_portal.accounts.models import User
        from snapshots.models import Snapshot

        user = User.objects.get(email=f"person{number}@load.example")
        client = Client()
        client.handler = self.handler
        client.force_login(user)
        snapshot = Snapshot.objects.filter(customer=user.customer, state="ready").order_by("-created_at")[5]
        if name == "wizard step":
            step = client.post("/snapshots/new/", {"location": snapshot.location_id})["Location"]
            return client, client.post(step, {"project": str(snapshot.project_id)})["Location"]
        paths = {
            "list": "/snapshots/",
            "search": "/snapshots/?q=nightly",
            "search of one": f"/snapshots/?q={snapshot.name.partition('-')[2]}",
            "filter": "/snapshots/?state=failed",
            "volumes": "/volumes/",
            "instances": "/instances/",
            "detail": f"/snapshots/{snapshot.pk}/",
            "dashboard": "/",
            "billing summary": "/billing/",
        }
        return client, paths[name]

    def page(self, name: str, number: int) -> dict[str, float]:
        from django.core.cache import caches
        from django.db import connection

        client, path = self.customer(number, name)
        caches["process"].clear()
        pid = connection.connection.info.backend_pid
        start, cpu = time.perf_counter(), time.process_time() + spent_by(pid)
        response = client.get(path)
        spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() + spent_by(pid) - cpu}
        if response.status_code != 200:
            raise RuntimeError(f"{path} answered {response.status_code}")
        return spent

    def plans(self, name: str, number: int) -> dict[str, Any]:
        from django.core.cache import caches
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        client, path = self.customer(number, name)
        caches["process"].clear()
        with CaptureQueriesContext(connection) as queries:
            client.get(path)
        statements = [query["sql"] for query in queries if query["sql"].lstrip(" (\n").startswith(("SELECT", "WITH"))]
        scans = []
        with connection.cursor() as cursor:
            for sql in statements:
                cursor.execute("EXPLAIN (FORMAT JSON) " + sql)
                plan = cursor.fetchone()[0]
                plan = json.loads(plan) if isinstance(plan, str) else plan
                scans += [f"{table}: {sql[:200]}" for table in scanned(plan[0]["Plan"]) if table in BIG_TABLES]
        return {"queries": len(queries), "scans": scans}


def spent_by(pid: int) -> float:
    """Return the CPU seconds of the database's process, where Linux reports them."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


def scanned(node: dict[str, Any]) -> Iterator[str]:
    """Return the tables that a plan scans sequentially."""
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for child in node.get("Plans", []):
        yield from scanned(child)


def cookies_of(count: int) -> list[str]:
    """Return the session cookies of `count` signed-in users, each of another customer."""
    from django.conf import settings
    from django.test import Client

    from cng_portal.accounts.models import User

    cookies = []
    for user in User.objects.filter(email__endswith="@load.example").order_by("pk")[:count]:
        client = Client()
        client.force_login(user)
        cookies.append(f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}")
    return cookies


@contextmanager
def web_server(**environment: str) -> Iterator[tuple[int, int]]:
    """Start gunicorn on this portal's database; yields its port and process ID."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    web = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"],
        env=os.environ | {"PORT": str(port)} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _try in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port, web.pid
    finally:
        web.terminate()
        web.wait()


def measure_crowd() -> dict[str, Any]:
    cookies = cookies_of(PEOPLE)
    seconds: list[float] = []
    errors: list[str] = []
    ready = threading.Barrier(len(cookies))

    def click(port: int, cookie: str, number: int) -> None:
        chance = random.Random(number)
        ready.wait()
        for _click in range(CLICKS):
            path = chance.choice(CROWD_PATHS)
            start = time.perf_counter()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
                connection.request("GET", path, headers={"Cookie": cookie})
                answer = connection.getresponse()
                answer.read()
                connection.close()
                if answer.status != 200:
                    errors.append(f"{path} answered {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                errors.append(repr(error))
            seconds.append(time.perf_counter() - start)

    with web_server() as (port, _pid):
        warm = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for _request in range(8):
            warm.request("GET", "/snapshots/", headers={"Cookie": cookies[0]})
            warm.getresponse().read()
        threads = [threading.Thread(target=click, args=(port, cookie, n)) for n, cookie in enumerate(cookies)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"seconds": seconds, "errors": errors}


CROWD_PATHS = ("/", "/snapshots/", "/snapshots/?q=nightly", "/volumes/", "/billing/")


def peak_memory(pages: list[int]) -> dict[str, Any]:
    """Return the peak memory of the only web process, in MiB, after each number of pages."""
    cookies, peaks, done = cookies_of(PEOPLE), [], 0
    with web_server(WEB_WORKERS="1") as (port, pid):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for until in pages:
            while done < until:
                path, cookie = CROWD_PATHS[done % len(CROWD_PATHS)], cookies[done // len(CROWD_PATHS) % len(cookies)]
                connection.request("GET", path, headers={"Cookie": cookie})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{path} answered {answer.status}")
                done += 1
            [worker] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())
            peaks.append(int(peak) / 1024)
    return {"peaks": peaks}


def serve(count: int) -> None:
    import django

    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    settings.ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
    pages: Pages | None = None
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "fill":
            start = time.perf_counter()
            call_command("migrate", verbosity=0)
            call_command("createcachetable", verbosity=0)
            call_command("collectstatic", interactive=False, verbosity=0)
            fill(count)
            pages = Pages()
            answer: Any = {"seconds": time.perf_counter() - start}
        elif what == "names":
            answer = Pages.names
        elif what == "crowd":
            answer = measure_crowd()
        elif what == "memory":
            answer = peak_memory(*arguments)
        else:
            answer = getattr(pages, what)(*arguments)
        print("=> " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
