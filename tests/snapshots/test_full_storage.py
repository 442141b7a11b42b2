"""A full storage, on a small file system that only root can mount."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.urls import reverse

from billing.models import UsageSegment
from snapshots import services
from snapshots.errors import OutOfSpace
from snapshots.models import Operation, Snapshot, State
from tests.factories import MembershipFactory, VolumeFactory
from tests.snapshots.disks import holds, put_volume, run_active_operations, sell_everywhere

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]


@pytest.fixture
def small_storage(storage_root: Path) -> Iterator[Path]:
    storage_root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", storage_root], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield storage_root
    subprocess.run(["umount", storage_root], check=True)


def test_too_little_space_is_shown_at_the_volume_step_and_nothing_is_created(small_storage: Path, client_for) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    put_volume(small_storage, volume, os.urandom(5 * 1024**2))
    client = client_for(member.user)
    client.post(reverse("snapshots:new"), {"location": volume.location_id})
    step = client.post(
        client.post(reverse("snapshots:new"), {"location": volume.location_id})["Location"],
        {"project": member.project.pk},
    )["Location"]
    response = client.post(step, {"volume": volume.pk})
    assert response.status_code == 200
    assert "too full" in response.text and "Nothing was created" in response.text
    with pytest.raises(OutOfSpace):
        services.request_snapshot(source=volume, name="no room", user=member.user)
    assert not Snapshot.objects.exists()


def test_a_storage_that_fills_up_meanwhile_fails_the_capture_and_try_again_works(small_storage: Path) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    data = os.urandom(3 * 1024**2)
    put_volume(small_storage, volume, data)
    snapshot = services.request_snapshot(source=volume, name="just in time", user=member.user)
    hog = small_storage / "hog"
    hog.write_bytes(bytes(4 * 1024**2))
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.FAILED and "is too full" in snapshot.error
    assert not UsageSegment.objects.exists()
    assert not [path for path in small_storage.rglob("*.img") if "snapshots" in path.parts]

    hog.unlink()
    services.retry(operation=Operation.objects.get(), user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    disk = small_storage / volume.location_id / "snapshots" / str(snapshot.pk) / "disk.img"
    assert holds(disk, data)
