"""OpenStack's clients against the portal on local storage."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cng_portal.inventory.models import Volume
from tests.factories import MembershipFactory, VolumeFactory
from tests.snapshots.api.clients import ClientContract
from tests.snapshots.disks import put_volume, sell_everywhere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def worker(process_environment: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "manage.py", "worker", "--interval", "0.2"]
    process = subprocess.Popen(command, env=process_environment)
    yield
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture
def volume(storage_root: Path) -> Volume:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project, name="data 1")
    put_volume(storage_root, volume, b"bytes")
    sell_everywhere()
    return volume


class TestClients(ClientContract):
    """With the fixtures above."""
