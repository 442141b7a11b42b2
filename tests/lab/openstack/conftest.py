"""The tests of this folder need the lab: `python -m tests.lab.openstack` starts it, and without it they are not collected.

In them OS_CLIENT_CONFIG_FILE names the lab's clouds.yaml, beside which everything else of it lies.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

LAB = Path(os.environ.get("OS_CLIENT_CONFIG_FILE", os.devnull)).parent
if not (LAB / "ceph" / "ceph.conf").exists():
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore::Warning:openstack")  # it warns of itself


if TYPE_CHECKING:
    from snapshots.storage.cinder import CinderDriver
    from tests.lab.openstack.lab import Lab
    from tests.lab.openstack.pool import Pool
    from tests.lab.openstack.stores import CinderStore


@pytest.fixture(scope="session")
def lab() -> "Lab":
    """The services, to stop, kill and freeze them."""
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
    """Cinder's own, for what would take hours through its API, and for what nobody can undo there."""
    import psycopg

    with psycopg.connect(
        host="127.0.0.1", port=lab.ports["postgres"], user="lab", dbname="cinder", autocommit=True
    ) as database:
        yield database


@pytest.fixture(scope="session")
def admin() -> Any:
    """openstacksdk's connection of the cloud's administrator."""
    import openstack

    return openstack.connect(cloud="admin")


@pytest.fixture(scope="session")
def cinder() -> Any:
    """openstacksdk's block storage service of the project that the driver works in, with room for many volumes."""
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
