"""Lists of 1,000 and of 100,000 snapshots on SQLite: a keyset page costs the same at any length.

The balance in the top bar is computed before the first measured page and cached for a minute.
"""

import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import Model
from django.test import Client
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from billing.pricing.packages import create_package
from cng_portal.accounts.models import Customer, Project
from cng_portal.common.names import fold_name
from cng_portal.common.pages import PAGE_SIZE
from snapshots.models import Operation, Snapshot, State
from tests.factories import CustomerFactory, LocationFactory, ProjectFactory, UserFactory, VolumeFactory
from tests.lab.bench import Measure

FEW, MANY = 1_000, 100_000
RUNS = 11
OPERATION_STATES = {
    State.READY: Operation.State.SUCCEEDED,
    State.FAILED: Operation.State.FAILED,
    State.CREATING: Operation.State.RUNNING,
    State.PENDING: Operation.State.PENDING,
}


def main() -> Iterator[Measure]:
    settings.ALLOWED_HOSTS = ["testserver"]
    call_command("collectstatic", interactive=False, verbosity=0)
    locations = [LocationFactory(code=f"1CNG-BEN-AZ{n:02d}") for n in range(3)]
    for location in locations:
        create_package(
            location=location,
            kind=ServiceKind.BS_SNAPSHOT,
            rate_micro=400_000,
            starts_at=timezone.now() - timedelta(days=400),
        )
    clients = {count: fill(count, locations) for count in (FEW, MANY)}

    pages = {
        "newest": "/snapshots/",
        "by name": "/snapshots/?sort=name",
        "largest": "/snapshots/?sort=largest",
        "cards": "/snapshots/?view=cards",
        "filtered": "/snapshots/?state=ready",
        "searched": "/snapshots/?q=nightly",
    }
    for name, path in pages.items():
        yield ratio(f"list, {name}: {MANY:,} against {FEW:,} snapshots", clients, dict.fromkeys(clients, path))
    middle = {count: follow(client, count) for count, client in clients.items()}
    yield ratio(f"list, in the middle: {MANY:,} against {FEW:,} snapshots", clients, middle)


@transaction.atomic
def fill(count: int, locations: list) -> Client:
    """Create a customer with `count` charged snapshots, and return a client signed in as its owner.

    The first thousand are created here; the database copies them, each time a hundred hours older.
    """
    customer: Customer = CustomerFactory(postpaid=True)
    projects: list[Project] = ProjectFactory.create_batch(3, customer=customer)
    user = UserFactory(member_of=projects[0])
    for project in projects[1:]:
        project.memberships.create(user=user, role="owner")
    volumes = [VolumeFactory(project=projects[n % 3], location=locations[n % 3], size_gb=1 + n % 50) for n in range(50)]
    now = timezone.now()
    snapshots = []
    for n in range(FEW):
        volume, name, state = volumes[n % 50], f"{n:06d}-nightly", state_of(n)
        created_at = now - timedelta(minutes=5 * n)
        snapshots.append(
            Snapshot(
                id=uuid4(),
                customer=customer,
                project=volume.project,
                location=volume.location,
                volume=volume,
                name=name,
                name_key=fold_name(name),
                size_gb=volume.size_gb,
                state=state,
                created_at=created_at,
                ready_at=created_at if state == State.READY else None,
            )
        )
    Snapshot.objects.bulk_create(snapshots)
    Operation.objects.bulk_create(
        Operation(
            kind=Operation.Kind.CAPTURE,
            snapshot=snapshot,
            state=OPERATION_STATES[snapshot.state],
            created_at=snapshot.created_at,
            started_at=snapshot.created_at,
            lease_until=now if snapshot.state == State.CREATING else None,
            finished_at=snapshot.created_at if snapshot.state in (State.READY, State.FAILED) else None,
        )
        for snapshot in snapshots
    )
    UsageSegment.objects.bulk_create(
        UsageSegment(
            resource_id=snapshot.pk,
            kind=ServiceKind.BS_SNAPSHOT,
            resource_name=snapshot.name,
            customer=customer,
            project=snapshot.project,
            location=snapshot.location,
            size_gb=snapshot.size_gb,
            started_at=snapshot.ready_at,
        )
        for snapshot in snapshots
        if snapshot.ready_at
    )
    multiply(Snapshot, customer, count // FEW)
    multiply(UsageSegment, customer, count // FEW)
    client = Client()
    client.force_login(user)
    return client


def multiply(model: type[Model], customer: Customer, times: int) -> None:
    """Multiply the customer's rows, in one statement of SQLite per table."""
    older = "strftime('%%Y-%%m-%%d %%H:%%M:%%f000', {}, '-' || (100 * copy.number) || ' hours')"
    changed = {name: "lower(hex(randomblob(16)))" for name in ("id", "resource_id")}
    changed |= {name: f"{name} || '-' || copy.number" for name in ("name", "name_key", "resource_name")}
    changed |= {name: older.format(name) for name in ("created_at", "ready_at", "started_at")}
    columns = [field.column for field in model._meta.concrete_fields]
    table = model._meta.db_table
    connection.cursor().execute(
        f"WITH RECURSIVE copy(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM copy WHERE number < %s - 1) "
        f"INSERT INTO {table} ({', '.join(columns)}) "
        f"SELECT {', '.join(changed.get(column, column) for column in columns)} FROM {table}, copy "
        f"WHERE customer_id = %s AND %s > 1",
        [times, customer.pk.hex, times],
    )


def state_of(n: int) -> State:
    """Return the state of a snapshot: the newest are in progress, and one in five hundred failed."""
    if n < 4:
        return State.PENDING if n < 2 else State.CREATING
    return State.FAILED if n % 500 == 7 else State.READY


def follow(client: Client, count: int) -> str:
    """Return the URL of the page in the middle of the list."""
    customer = client.get("/snapshots/").wsgi_request.user.customer  # type: ignore[attr-defined]
    row = Snapshot.objects.filter(customer=customer).order_by("-created_at", "-pk")[count // 2]
    return f"/snapshots/?after={row.pk}~{row.created_at.isoformat().replace('+', '%2B')}"


def ratio(what: str, clients: dict[int, Client], paths: dict[int, str]) -> Measure:
    """Return the ratio of the medians. The lists are measured in turns, so that a busy moment affects both."""
    seconds: dict[int, list[float]] = {count: [] for count in clients}
    for run in range(RUNS + 2):
        for count, client in clients.items():
            start = time.perf_counter()
            response = client.get(paths[count])
            spent = time.perf_counter() - start
            if response.status_code != 200 or response.content.count(b'class="list-name"') != PAGE_SIZE:
                raise RuntimeError(f"{paths[count]} answered {response.status_code}")
            if run >= 2:  # compiles the templates
                seconds[count].append(spent)
    few, many = statistics.median(seconds[FEW]), statistics.median(seconds[MANY])
    return Measure(what, many / few, "×", at_most=1.3, note=f"{few * 1000:.0f} ms and {many * 1000:.0f} ms")
