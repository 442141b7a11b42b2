"""`make bench-horizon`: compare the page of volume snapshots with Horizon's, for the same snapshots of the same cloud.

    python -m tests.lab.openstack.bench_horizon [COUNT…]    with COUNT snapshots; by default 10, 100 and 500

Each runs in one gunicorn worker with four threads on this machine and shows 20 rows. Requests alternate, and each
request to the portal comes from another customer, so that nothing is cached. Prints a table of ratios, and exits with 1
if one misses the goal.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.lab.bench import Measure
from tests.lab.bench.__main__ import show
from tests.lab.openstack.horizon import PAGE, Horizon
from tests.lab.openstack.lab import Lab, wait_until

CLOUD = "other"
COUNTS = (10, 100, 500)
ROWS = 20
WARM, RUNS = 8, 15  # each thread opens its own connection first
SECONDS = 60  # a page that takes longer has failed
GOAL = 8


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab is stopped
    counts, lab = [int(word) for word in arguments] or COUNTS, Lab()
    horizon = Horizon(lab, free_port())
    with lab.alone():
        lab.clear()
        try:
            lab.start()
            horizon.start()
            with tempfile.TemporaryDirectory(prefix="portal-bench-") as folder:
                measures = list(compare(lab, horizon, Path(folder), counts))
        finally:
            lab.clear()
    show(measures)
    return 0 if all(measure.reached for measure in measures) else 1


def compare(lab: Lab, horizon: Horizon, folder: Path, counts: Sequence[int]) -> Iterator[Measure]:
    storage = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": CLOUD}}}
    os.environ.update(
        DATA_DIR=str(folder),
        STORAGE=json.dumps(storage),
        OS_CLIENT_CONFIG_FILE=str(lab.clouds),
        DJANGO_SETTINGS_MODULE="cng_portal.settings",
        ENV_FILE=os.devnull,
        LOG_LEVEL="WARNING",
    )
    import django

    django.setup()
    import openstack
    from django.core.management import call_command

    from cng_portal.inventory.models import CloudProject
    from snapshots.cloudsync.sync import sync_location
    from snapshots.models import Snapshot
    from tests.factories import LocationFactory, MembershipFactory
    from tests.snapshots.disks import sell_everywhere

    for command in ("migrate", "createcachetable", "collectstatic"):
        call_command(command, verbosity=0, **({"interactive": False} if command == "collectstatic" else {}))
    member, location = MembershipFactory(project__customer__postpaid=True), LocationFactory(driver="cinder")
    sell_everywhere()
    sync_location(location)
    CloudProject.objects.filter(name=CLOUD).update(project=member.project)

    cinder = openstack.connect(cloud=CLOUD).block_storage
    volume = cinder.wait_for_status(cinder.create_volume(size=1, name="data"), "available", interval=0.3, wait=60)
    snapshot = cinder.create_snapshot(volume_id=volume.id, name="snapshot 1")
    cinder.wait_for_status(snapshot, "available", interval=0.3, wait=60)
    theirs = horizon.sign_in(CLOUD)
    with portal_server() as url:
        for count in counts:
            copy_snapshot(lab, snapshot.id, count)
            sync_location(location)
            mine = list(Snapshot.objects.filter(customer=member.project.customer))
            assert len(mine) == count
            ours = iter(visits_of_customers(f"{url}/snapshots/", mine, WARM + RUNS + 1))
            page = f"http://127.0.0.1:{horizon.port}{PAGE}"
            fetch = {
                "here": lambda ours=ours: urlopen(next(ours), timeout=SECONDS).read().decode(),
                "Horizon": lambda page=page: theirs.open(page, timeout=SECONDS).read().decode(),
            }
            rows = {
                "here": len(re.findall(r'<tr id="snapshot-', fetch["here"]())),
                "Horizon": len(re.findall(r"<tr[^>]*data-object-id=", fetch["Horizon"]())),
            }
            assert set(rows.values()) == {min(ROWS, count)}, rows
            seconds = measure(fetch)
            note = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
            ratio = seconds["Horizon"] / seconds["here"]
            yield Measure(f"the page of snapshots, of {count}", ratio, "×", at_least=GOAL, note=note)


def visits_of_customers(url: str, snapshots: list[Any], count: int) -> list[Request]:
    """Yield requests for the same page, each by another customer with a copy of the snapshots."""
    from copy import copy
    from uuid import uuid4

    from django.test import Client

    from snapshots.models import Snapshot
    from tests.factories import MembershipFactory, VolumeFactory

    visits = []
    for _customer in range(count):
        member = MembershipFactory(project__customer__postpaid=True)
        volume = VolumeFactory(project=member.project, location=snapshots[0].location)
        copies = []
        for snapshot in snapshots:
            copied = copy(snapshot)
            copied.pk, copied.customer, copied.project = uuid4(), member.project.customer, member.project
            copied.volume, copied.draft = volume, None
            copies.append(copied)
        Snapshot.objects.bulk_create(copies)
        client = Client()
        client.force_login(member.user)
        cookies = "; ".join(f"{name}={cookie.value}" for name, cookie in client.cookies.items())
        visits.append(Request(url, headers={"Cookie": cookies, "Accept-Encoding": "identity"}))
    return visits


def measure(fetch: dict[str, Callable[[], str]]) -> dict[str, float]:
    """Return the median of each, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in fetch}
    for _run in range(WARM + RUNS):
        for name, get in fetch.items():
            begin = time.perf_counter()
            get()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values[WARM:]) for name, values in seconds.items()}


def copy_snapshot(lab: Lab, snapshot_id: str, count: int) -> None:
    """Copy the snapshot's row in Cinder's database, because creating 500 through the API would take minutes."""
    import psycopg

    with psycopg.connect(
        host="127.0.0.1", port=lab.ports["postgres"], user="lab", dbname="cinder", autocommit=True
    ) as database:
        described = database.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'snapshots'"
        )
        columns = [row[0] for row in described]
        new = {"id": "gen_random_uuid()::text", "display_name": "'snapshot ' || number"}
        names = ", ".join(f'"{column}"' for column in columns)
        values = ", ".join(new.get(column, f'"{column}"') for column in columns)
        there = database.execute(
            "SELECT count(*) FROM snapshots WHERE deleted = false AND project_id = "
            "(SELECT project_id FROM snapshots WHERE id = %s)",
            [snapshot_id],
        ).fetchone()
        assert there
        database.execute(
            f"INSERT INTO snapshots ({names}) SELECT {values} FROM snapshots, "
            f"generate_series({there[0] + 1}, {count}) AS number WHERE id = %s",
            [snapshot_id],
        )


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def portal_server() -> Iterator[str]:
    port = free_port()
    gunicorn: list[Any] = [sys.executable, "-m", "gunicorn", "cng_portal.wsgi", "--no-control-socket"]
    process = subprocess.Popen([*gunicorn, "--workers", "1", "--threads", "4", "--bind", f"127.0.0.1:{port}"])

    def answers() -> bool:
        try:
            return bool(urlopen(f"http://127.0.0.1:{port}/accounts/login/").read())
        except OSError:
            return False

    try:
        assert wait_until(answers, seconds=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
