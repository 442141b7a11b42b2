"""Snapshots of a machine: all disks at one instant, or none; restored together, or as a new machine."""

from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.urls import reverse

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import checks, restores, services
from snapshots.errors import InvalidState, SourceUnavailable
from snapshots.models import Kind, Operation, Snapshot, State
from snapshots.operations import cancellation
from snapshots.volumes import new_volumes
from snapshots.volumes import services as volume_services
from tests.factories import MembershipFactory, VirtualMachineFactory, VMSnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, holds, put_volume, run_active_operations, sell_everywhere

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.both_databases,
    pytest.mark.usefixtures("lock_order"),
]

BEFORE = [content(b"root"), content(b"data"), content(b"logs")]
AFTER = [content(b"ROOT"), content(b"DATA"), content(b"LOGS")]


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def vm(storage_root: Path, member: Membership) -> VirtualMachine:
    vm = VirtualMachineFactory(project=member.project, name="db-01", vcpus=4, memory_mb=8192, stopped=True)
    for position, (name, size_gb) in enumerate([("root", 10), ("data", 30), ("logs", 5)]):
        VolumeFactory(
            project=member.project, location=vm.location, vm=vm, position=position, name=name, size_gb=size_gb
        )
    sell_everywhere(kind=ServiceKind.VM_SNAPSHOT, rate_micro=1_000_000)
    sell_everywhere()
    write_disks(storage_root, vm, BEFORE)
    return vm


def write_disks(root: Path, vm: VirtualMachine, contents: list[bytes]) -> None:
    for volume, data in zip(checks.volumes_of(vm), contents, strict=True):
        put_volume(root, volume, data)


def disks_hold(root: Path, vm: VirtualMachine, contents: list[bytes]) -> bool:
    folder = root / vm.location_id / "volumes"
    volumes = checks.volumes_of(vm)
    return all(holds(folder / f"{volume.pk}.img", data) for volume, data in zip(volumes, contents, strict=True))


def take(vm: VirtualMachine, member: Membership, name: str = "machine") -> Snapshot:
    snapshot = services.request_snapshot(source=vm, name=name, user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    return snapshot


def test_all_disks_are_captured_at_one_instant_and_billed_together(
    storage_root: Path, vm: VirtualMachine, member: Membership
) -> None:
    snapshot = take(vm, member)
    assert (snapshot.kind, snapshot.state, snapshot.consistency) == (Kind.VM, State.READY, "instant")
    disks = list(snapshot.disks.all())
    assert [(disk.volume_name, disk.position) for disk in disks] == [("root", 0), ("data", 1), ("logs", 2)]
    assert len({disk.captured_at for disk in disks}) == 1
    folder = storage_root / vm.location_id / "snapshots"
    for disk, data in zip(disks, BEFORE, strict=True):
        assert holds(folder / str(disk.pk) / "disk.img", data)
    assert snapshot.vm_config["vcpus"] == 4
    assert [volume["name"] for volume in snapshot.vm_config["volumes"]] == ["root", "data", "logs"]
    segment = UsageSegment.objects.get()
    assert (segment.kind, segment.size_gb, segment.resource_id) == (ServiceKind.VM_SNAPSHOT, 45, snapshot.pk)


def test_a_failing_disk_fails_the_whole_snapshot_without_charge(
    storage_root: Path, vm: VirtualMachine, member: Membership
) -> None:
    snapshot = services.request_snapshot(source=vm, name="machine", user=member.user)
    lost = storage_root / vm.location_id / "volumes" / f"{checks.volumes_of(vm)[2].pk}.img"
    lost.unlink()
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.FAILED and "logs" in snapshot.error
    assert not [path for path in (storage_root / vm.location_id / "snapshots").rglob("*") if path.is_file()]
    assert not UsageSegment.objects.exists()


def test_a_machine_is_restored_with_all_its_disks_and_the_restore_is_undone(
    storage_root: Path, vm: VirtualMachine, member: Membership
) -> None:
    snapshot = take(vm, member)
    write_disks(storage_root, vm, AFTER)
    restore = restores.request_restore(snapshot=snapshot, user=member.user, confirmation="db-01")
    run_active_operations()
    restore.refresh_from_db()
    assert restore.state == Operation.State.SUCCEEDED and restore.can_be_undone
    assert disks_hold(storage_root, vm, BEFORE)
    restores.request_restore(snapshot=restore.safety_snapshot, user=member.user, confirmation="db-01")
    run_active_operations()
    assert disks_hold(storage_root, vm, AFTER)


def test_a_running_machine_is_not_restored(vm: VirtualMachine, member: Membership) -> None:
    snapshot = take(vm, member)
    VirtualMachine.objects.update(state=VirtualMachine.State.RUNNING)
    with pytest.raises(InvalidState, match="Stop the instance first"):
        restores.request_restore(snapshot=snapshot, user=member.user, confirmation="db-01")
    assert Snapshot.objects.count() == 1


def test_a_volume_of_a_machine_that_is_being_restored_is_left_alone(vm: VirtualMachine, member: Membership) -> None:
    snapshot = take(vm, member)
    restores.request_restore(snapshot=snapshot, user=member.user, confirmation="db-01")
    with pytest.raises(SourceUnavailable, match="being restored"):
        services.request_snapshot(source=checks.volumes_of(vm)[1], name="one disk", user=member.user)
    with pytest.raises(SourceUnavailable, match="being restored"):
        restores.request_restore(snapshot=snapshot, user=member.user, confirmation="db-01")


def test_a_new_machine_is_made_from_it(storage_root: Path, vm: VirtualMachine, member: Membership) -> None:
    snapshot = take(vm, member)
    machine = new_volumes.request_new_machine(snapshot=snapshot, user=member.user, project=member.project, name="db-02")
    run_active_operations()
    machine.refresh_from_db()
    assert (machine.state, machine.vcpus, machine.memory_mb) == (VirtualMachine.State.STOPPED, 4, 8192)
    volumes = checks.volumes_of(machine)
    assert [(volume.name, volume.size_gb) for volume in volumes] == [
        ("db-02-root", 10),
        ("db-02-data", 30),
        ("db-02-logs", 5),
    ]
    assert all(volume.state == Volume.State.AVAILABLE for volume in volumes)
    assert disks_hold(storage_root, machine, BEFORE)


def test_no_machine_is_created_from_a_snapshot_without_disks(member: Membership) -> None:
    lost = VMSnapshotFactory(vm__project=member.project, state=State.READY)
    with pytest.raises(InvalidState, match="has no disks"):
        new_volumes.request_new_machine(snapshot=lost, user=member.user, project=member.project, name="db-02")


def test_a_machine_without_volumes_is_refused(member: Membership) -> None:
    vm = VirtualMachineFactory(project=member.project)
    with pytest.raises(SourceUnavailable, match="has no volume"):
        services.request_snapshot(source=vm, name="nothing", user=member.user)


def test_a_retry_notices_changed_disks(storage_root: Path, vm: VirtualMachine, member: Membership) -> None:
    snapshot = services.request_snapshot(source=vm, name="machine", user=member.user)
    logs = checks.volumes_of(vm)[2]
    (storage_root / vm.location_id / "volumes" / f"{logs.pk}.img").unlink()
    run_active_operations()
    Volume.objects.filter(pk=logs.pk).update(vm=None)
    with pytest.raises(InvalidState, match="disks have changed"):
        services.retry(operation=snapshot.operations.get(), user=member.user)


def test_the_wizard_takes_a_machine_through_the_same_steps(
    client_for: Any, vm: VirtualMachine, member: Membership
) -> None:
    client = client_for(member.user)
    step_url = reverse("snapshots:new_vm")
    answers = {"location": vm.location_id, "project": member.project_id, "vm": vm.pk, "name": "before the upgrade"}
    headings = ["Choose a Location", "Assign to a Project", "Choose an Instance", "Choose Snapshot Name"]
    for heading, (field, answer) in zip(headings, answers.items(), strict=True):
        assert heading in client.get(step_url).text
        step_url = client.post(step_url, {field: answer})["Location"]
    page = client.get(step_url).text.replace("\N{NO-BREAK SPACE}", " ")
    for text in ("45 GB × K 1.0000 = K 45.00 an hour", "root (10 GB), data (30 GB), logs (5 GB)", "at one instant"):
        assert text in page, text
    response = client.post(step_url, {"billing_cycle": "hourly", "shown_hourly_micro": 45_000_000})
    snapshot = Snapshot.objects.get()
    assert response["Location"] == reverse("snapshots:snapshot", args=[snapshot.pk]) + "#heading"
    assert (snapshot.kind, snapshot.vm, snapshot.size_gb) == (Kind.VM, vm, 45)


def test_the_wizard_says_why_an_instance_cannot_be_chosen(
    client_for: Any, member: Membership, vm: VirtualMachine
) -> None:
    empty = VirtualMachineFactory(project=member.project, location=vm.location, name="empty-01")
    client = client_for(member.user)
    step_url = client.post(reverse("snapshots:new_vm"), {"location": vm.location_id})["Location"]
    step_url = client.post(step_url, {"project": member.project_id})["Location"]
    assert "none, so there is nothing to capture" in client.get(step_url).text
    assert "has no volume" in client.post(step_url, {"vm": empty.pk}).text
    assert "Choose an instance." in client.post(step_url, {}).text


def test_a_machine_larger_than_any_charge_is_refused_before_it_is_captured(vm: VirtualMachine) -> None:
    volumes = [
        VolumeFactory(project=vm.project, location=vm.location, vm=vm, position=position, size_gb=1_000_000)
        for position in range(3, 8)
    ]
    with pytest.raises(
        SourceUnavailable, match="has volumes of 5,000,045 GB together, and a snapshot holds at most 5,000,0"
    ):
        checks.check_deliverable(vm)
    with pytest.raises(IntegrityError, match="at most 5,000,000 GB"), transaction.atomic():
        VMSnapshotFactory(vm=vm, size_gb=5_000_001)
    Volume.objects.filter(pk=volumes[0].pk).update(vm=None)
    assert checks.check_deliverable(vm)


def test_a_disk_that_was_detached_since_is_not_overwritten_while_it_grows_or_is_deleted(
    vm: VirtualMachine, member: Membership
) -> None:
    snapshot = take(vm, member)
    data = volume_services.detach_volume(volume=checks.volumes_of(vm)[1], user=member.user)
    growth = volume_services.request_extension(volume=data, user=member.user, size_gb=40)
    with pytest.raises(InvalidState, match="in use .Grow volume"):
        restores.request_restore(snapshot=snapshot, user=member.user, confirmation="db-01")
    cancellation.cancel(operation=growth, user=member.user)
    volume_services.request_volume_deletion(volume=data, user=member.user, confirmation="data")
    # The deletion failed.
    Operation.objects.active().update(state="failed", finished_at=data.created_at, error="down")
    with pytest.raises(SourceUnavailable, match="“data” is being deleted"):
        restores.request_restore(snapshot=snapshot, user=member.user, confirmation="db-01")
