"""The customer guide on a real Cinder, with the data through librbd."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from tests.browser.guide import LOCATION, NAME, SIZE_GB, GuideContract
from tests.factories import LocationFactory, VolumeFactory
from tests.lab.openstack.stores import CinderStore
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.storage.contract import new_volume

pytestmark = pytest.mark.django_db(transaction=True)

STORAGE = {"cinder": {"driver": "snapshots.storage.cinder.CinderDriver", "options": {"cloud": "demo"}}}


@pytest.fixture
def cinder_storage(settings: Any, storage_root: Any) -> None:
    settings.STORAGE = STORAGE


@pytest.fixture
def worker(cinder_storage: None, process_environment: dict[str, str]) -> Iterator[None]:
    environment = process_environment | {"STORAGE": json.dumps(STORAGE)}
    process = subprocess.Popen([sys.executable, "manage.py", "worker", "--interval", "0.2"], env=environment)
    yield
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture
def live() -> bool:
    return True


@pytest.fixture
def volume(store: CinderStore, cinder_storage: None, member: Membership) -> Volume:
    ref = new_volume(store, size_gb=SIZE_GB)
    location = LocationFactory(code=LOCATION, driver="cinder")
    sell_everywhere()
    return VolumeFactory(
        pk=ref.uuid,
        project=member.project,
        location=location,
        backend_ref=ref.backend_ref,
        name=NAME,
        size_gb=SIZE_GB,
    )


class TestGuide(GuideContract):
    patience = 120
