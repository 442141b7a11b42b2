"""Take snapshots of many volumes at once, with the portal's workers and with openstacksdk alone.

    python -m tests.lab.openstack.drain bare COUNT VOLUME…      one process with openstacksdk; prints when it started
    and ended python -m tests.lab.openstack.drain portal COUNT VOLUME…    workers on the empty PostgreSQL that
    DATABASE_URL names

Both run in WORKERS processes and print JSON.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

WORKERS = 4
MOST_SECONDS = 900


def bare(count: int, volumes: list[str]) -> dict[str, Any]:
    begin = time.time()  # a worker imports and signs in at its first operation, so this is measured here, too
    import openstack

    cinder = openstack.connect(cloud="demo").block_storage
    for number in range(count):
        snapshot = cinder.create_snapshot(volume_id=volumes[number % len(volumes)], name=f"bare {number}")
        cinder.wait_for_status(snapshot, "available", interval=0.25, wait=300)
    return {"begin": begin, "end": time.time()}


def portal(count: int, volumes: list[str]) -> dict[str, Any]:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection
    from django.db.models import Max, Min, Sum

    from billing.models import UsageSegment
    from snapshots import services
    from snapshots.models import DiskImage, Operation, Snapshot
    from tests.factories import LocationFactory, MembershipFactory, VolumeFactory
    from tests.snapshots.disks import sell_everywhere

    call_command("migrate", verbosity=0)
    call_command("createcachetable", verbosity=0)
    member, location = MembershipFactory(project__customer__postpaid=True), LocationFactory(driver="cinder")
    sell_everywhere()
    rows = [
        VolumeFactory(project=member.project, location=location, backend_ref=volume, name=volume) for volume in volumes
    ]
    for number in range(count):
        services.request_snapshot(source=rows[number % len(rows)], name=f"ours {number}", user=member.user)
    print(f"{connection.vendor}: {Operation.objects.active().count()} operations wait", file=sys.stderr)
    workers = [
        subprocess.Popen([sys.executable, "manage.py", "worker", "--interval", "0.2"]) for _each in range(WORKERS)
    ]
    try:
        deadline = time.monotonic() + MOST_SECONDS
        while Operation.objects.active().exists() and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        for worker in workers:
            worker.terminate()
        codes = [worker.wait(60) for worker in workers]
    times = Operation.objects.aggregate(begin=Min("started_at"), end=Max("finished_at"), attempts=Sum("attempt"))
    return {
        "begin": times["begin"].timestamp(),
        "end": times["end"].timestamp(),
        "attempts": times["attempts"],
        "succeeded": Operation.objects.filter(state=Operation.State.SUCCEEDED).count(),
        "operations": Operation.objects.count(),
        "ready": Snapshot.objects.filter(state="ready").count(),
        "charged": UsageSegment.objects.filter(ended_at=None).count(),
        "snapshots": {str(disk.pk): disk.backend_ref for disk in DiskImage.objects.all()},
        "workers": codes,
    }


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cng_portal.settings")
    action = {"bare": bare, "portal": portal}[sys.argv[1]]
    print(json.dumps(action(int(sys.argv[2]), sys.argv[3:])))
