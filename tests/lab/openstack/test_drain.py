"""Four workers on PostgreSQL with one Cinder: no duplicates, and about as fast as openstacksdk alone."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lab.openstack.drain import WORKERS
from tests.lab.openstack.lab import wait_until
from tests.lab.openstack.stores import CinderStore
from tests.postgres import find_server_programs, postgres
from tests.snapshots.storage.contract import BEFORE, new_volume

COUNT = 200
VOLUMES = 20


def run(environment: dict[str, str], *arguments: Any) -> Any:
    command = [sys.executable, "-m", "tests.lab.openstack.drain", *map(str, arguments)]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def seconds_bare(environment: dict[str, str], count: int, volumes: list[str]) -> float:
    """Return the seconds that openstacksdk takes in as many processes as the portal has workers."""
    share, each = count // WORKERS, len(volumes) // WORKERS
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = [volumes[number * each : (number + 1) * each] for number in range(WORKERS)]
        times = list(pool.map(lambda part: run(environment, "bare", share, *part), parts))
    return max(time["end"] for time in times) - min(time["begin"] for time in times)


@pytest.fixture
def volumes(store: CinderStore) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        return [ref.backend_ref for ref in pool.map(lambda _number: new_volume(store, BEFORE), range(VOLUMES))]


@pytest.mark.thorough
def test_four_workers_on_postgresql_do_everything_once_at_the_pace_of_cinder(
    store: CinderStore, volumes: list[str], tmp_path: Path
) -> None:
    programs = find_server_programs()
    assert programs, "PostgreSQL is not installed"
    storage = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "demo"}}}
    environment = os.environ | {"DATA_DIR": str(tmp_path), "STORAGE": json.dumps(storage), "LOG_LEVEL": "WARNING"}
    before = seconds_bare(environment, COUNT // 2, volumes)
    with postgres(programs) as url:
        ours = run(environment | {"DATABASE_URL": url}, "portal", COUNT, *volumes)
    after = seconds_bare(environment, COUNT // 2, volumes)

    assert ours["workers"] == [0] * WORKERS
    counts = [ours[name] for name in ("operations", "attempts", "succeeded", "ready", "charged")]
    assert counts == [COUNT] * 5
    created = [
        item for item in store.cinder.snapshots() if item.volume_id in volumes and item.name.startswith("snapshot-")
    ]
    assert {item.name.removeprefix("snapshot-portal-"): item.id for item in created} == ours["snapshots"]
    assert len(created) == COUNT

    seconds = ours["end"] - ours["begin"]
    ratio = (before + after) / seconds
    print(
        f"{COUNT} snapshots: openstacksdk {before:.1f} + {after:.1f} s, the portal {seconds:.1f} s, ratio {ratio:.2f}"
    )
    for item in store.cinder.snapshots():
        if item.volume_id in volumes:
            store.cinder.delete_snapshot(item)
    assert wait_until(lambda: not any(item.volume_id in volumes for item in store.cinder.snapshots()), seconds=300)
    assert ratio >= 0.8
