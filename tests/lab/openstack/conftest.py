"""These tests need the lab, which `python -m tests.lab.openstack` starts; without it they aren't collected.

OS_CLIENT_CONFIG_FILE is the lab's clouds.yaml, in the lab's folder.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

LAB = Path(os.environ.get("OS_CLIENT_CONFIG_FILE", os.devnull)).parent
if not (LAB / "ceph" / "ceph.conf").exists():
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "filterwarnings", "ignore::Warning:openstack"
    )  # it emits a deprecation warning about itself


STORAGE = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "demo"}}}

if TYPE_CHECKING:
    from snapshots.storage.cinder import CinderDriver
    from tests.lab.openstack.lab import Lab
    from tests.lab.openstack.pool import Pool
    from tests.lab.openstack.stores import CinderStore


@pytest.fixture(scope="session")
def lab() -> "Lab":
    """The lab, whose services tests stop, kill and freeze."""
    from tests.lab.openstack.lab import Lab

    return Lab(LAB)


@pytest.fixture(scope="session")
def pool() -> "Iterator[Pool]":
    from tests.lab.openstack.pool import Pool

    pool = Pool(LAB)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def database(lab: "Lab") -> Iterator[Any]:
    """A connection to Cinder's database, for what would take hours through its API or can't be undone there."""
    import psycopg

    with psycopg.connect(
        host="127.0.0.1", port=lab.ports["postgres"], user="lab", dbname="cinder", autocommit=True
    ) as database:
        yield database


@pytest.fixture(scope="session")
def admin() -> Any:
    """An openstacksdk connection as the cloud's administrator."""
    import openstack

    return openstack.connect(cloud="admin")


@pytest.fixture(scope="session")
def cinder() -> Any:
    """The block storage service of the driver's project, whose quota allows many volumes."""
    import openstack

    admin, demo = openstack.connect(cloud="admin"), openstack.connect(cloud="demo")
    admin.block_storage.update_quota_set(demo.current_project_id, volumes=2000, snapshots=4000, gigabytes=20000)
    return demo.block_storage


@pytest.fixture(scope="session")
def driver() -> "CinderDriver":
    from snapshots.storage.cinder import CinderDriver

    return CinderDriver(location="TEST-1", cloud="demo")


@pytest.fixture
def store(driver: "CinderDriver", cinder: Any, pool: "Pool") -> "CinderStore":
    from tests.lab.openstack.stores import CinderStore

    return CinderStore(driver, cinder, pool)


@pytest.fixture
def cinder_storage(settings: Any, storage_root: Path) -> None:
    """Settings in which the engine `cinder` is the lab's."""
    settings.STORAGE = settings.STORAGE | STORAGE


@pytest.fixture
def worker(cinder_storage: None, process_environment: dict[str, str]) -> Iterator[None]:
    """A worker process on this test's database and the lab's Cinder."""
    process = subprocess.Popen([sys.executable, "manage.py", "worker", "--interval", "0.2"], env=process_environment)
    yield
    process.terminate()
    assert process.wait(60) == 0
