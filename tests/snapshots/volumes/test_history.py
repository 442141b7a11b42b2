"""Random actions on volumes while workers are killed: in the end rows, disks and bill agree.

`VOLUME_STEPS=200 VOLUME_SEED=7` makes a longer, different history. A failure names both.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from billing import verification
from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import services
from snapshots.errors import ActionRefused
from snapshots.maintenance import fsck
from snapshots.models import Operation, Snapshot, State
from snapshots.operations import cancellation, lifecycle
from snapshots.storage.contract import GIB
from snapshots.tasks import run_operation
from snapshots.volumes import services as volume_services
from tests.factories import LocationFactory, MembershipFactory, VirtualMachineFactory
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.test_crashes import work_and_die

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

STEPS = int(os.environ.get("VOLUME_STEPS", "24"))
SEED = int(os.environ.get("VOLUME_SEED", "1"))
# A worker has about as many steps.
LAST_STEP = 18


class History:
    """Random actions of one customer with three machines, of which two are stopped."""

    def __init__(self, member: Membership, root: Path, chance: random.Random) -> None:
        self.member, self.user, self.root, self.chance = member, member.user, root, chance
        self.location = LocationFactory()
        for kind in ServiceKind.BLOCK_STORAGE, ServiceKind.BS_SNAPSHOT:
            sell_everywhere(kind=kind)
        shared = {"project": member.project, "location": self.location}
        self.machines = [VirtualMachineFactory(**shared, stopped=number > 0) for number in range(3)]
        self.marks: dict[Any, bytes] = {}  # The bytes at the start of each volume.
        self.outcomes: Counter[str] = Counter()

    def step(self) -> None:
        action = self.chance.choice(
            [self.create, self.create, self.grow, self.grow, self.attach, self.attach, self.detach, self.delete]
            + [self.rename, self.take, self.cancel]
        )
        try:
            self.outcomes[action.__name__] += bool(action())
        except ActionRefused as error:
            self.outcomes[type(error).__name__] += 1

    def pick(self) -> Volume | None:
        present = list(Volume.objects.present().select_related("project", "location", "vm").order_by("pk"))
        return self.chance.choice(sorted(present, key=lambda volume: volume.name)) if present else None

    def create(self) -> object:
        name = f"volume {sum(self.outcomes.values())}"
        return volume_services.request_volume(
            project=self.member.project, location=self.location, size_gb=1, name=name, user=self.user
        )

    def on_volume(self, action: Callable[[Volume], object]) -> object:
        volume = self.pick()
        return action(volume) if volume else None

    def grow(self) -> object:
        more_gb = self.chance.randint(0, 3)
        return self.on_volume(
            lambda volume: volume_services.request_extension(
                volume=volume, user=self.user, size_gb=volume.size_gb + more_gb
            )
        )

    def attach(self) -> object:
        vm: VirtualMachine = self.chance.choice(self.machines)
        return self.on_volume(lambda volume: volume_services.attach_volume(volume=volume, vm=vm, user=self.user))

    def detach(self) -> object:
        return self.on_volume(lambda volume: volume_services.detach_volume(volume=volume, user=self.user))

    def delete(self) -> object:
        return self.on_volume(
            lambda volume: volume_services.request_volume_deletion(
                volume=volume, user=self.user, confirmation=volume.name
            )
        )

    def rename(self) -> object:
        name = f"renamed {sum(self.outcomes.values())}"
        return self.on_volume(lambda volume: volume_services.rename_volume(volume=volume, user=self.user, name=name))

    def take(self) -> object:
        name = f"snapshot {sum(self.outcomes.values())}"
        return self.on_volume(lambda volume: services.request_snapshot(source=volume, name=name, user=self.user))

    def cancel(self) -> object:
        active = list(Operation.objects.active().order_by("created_at"))
        return cancellation.cancel(operation=self.chance.choice(active), user=self.user) if active else None

    def work(self) -> None:
        """Let a worker run waiting operations, and perhaps kill it at some step."""
        active = Operation.objects.active().first()
        if active is None:
            return
        survived = work_and_die(active, self.chance.randint(1, 2 * LAST_STEP))
        self.outcomes["survived" if survived else "killed"] += 1
        if self.chance.random() < 0.7:
            expire_leases()

    def settle(self) -> None:
        """Let workers finish all waiting operations."""
        for _round in range(10):
            expire_leases()
            Operation.objects.active().update(not_before=timezone.now())
            for operation in Operation.objects.active().order_by("created_at"):
                run_operation(operation.pk)
        assert not Operation.objects.active().exists()

    def write_marks(self) -> None:
        """Write to new volumes as a customer would."""
        for volume in Volume.objects.filter(state=Volume.State.AVAILABLE, deleted_at=None):
            if volume.pk not in self.marks:
                self.marks[volume.pk] = volume.pk.bytes
                with open(self.image_of(volume), "r+b") as image:
                    image.write(self.marks[volume.pk])

    def image_of(self, volume: Volume) -> Path:
        return self.root / volume.location_id / "volumes" / f"{volume.pk}.img"

    def check(self) -> None:
        """Check that rows, disks and bill agree."""
        assert [(finding.code, finding.subject) for finding in fsck.check_location(self.location)] == []
        assert verification.all_differences(at=timezone.now()) == []
        present = {volume.pk: volume for volume in Volume.objects.present()}
        folder = self.root / self.location.pk / "volumes"
        assert {path.stem for path in folder.iterdir()} == {str(pk) for pk in present}
        for pk, volume in present.items():
            assert volume.state == Volume.State.AVAILABLE and volume.available_at
            assert self.image_of(volume).stat().st_size == volume.size_gb * GIB
            with open(self.image_of(volume), "rb") as image:
                assert image.read(16) == self.marks.get(pk, bytes(16))
        usage = UsageSegment.objects.filter(kind=ServiceKind.BLOCK_STORAGE, ended_at=None)
        charged = {(segment.resource_id, segment.size_gb, segment.resource_name) for segment in usage}
        assert charged == {(pk, volume.size_gb, volume.name) for pk, volume in present.items()}
        for vm in self.machines:
            positions = [volume.position for volume in present.values() if volume.vm_id == vm.pk]
            assert len(positions) == len(set(positions)) and (not positions or 0 in positions)
        assert not Snapshot.objects.filter(state__in=[State.PENDING, State.CREATING, State.DELETING]).exists()


def expire_leases() -> None:
    Operation.objects.active().filter(state=Operation.State.RUNNING).update(lease_until=timezone.now())
    lifecycle.reconcile(now=timezone.now())


def test_a_random_history_with_killed_workers_leaves_rows_disks_and_bill_in_agreement(
    storage_root: Path, settings: Any
) -> None:
    settings.ACTIONS_PER_HOUR = dict.fromkeys(settings.ACTIONS_PER_HOUR, 0)
    settings.OPERATION_MAX_ATTEMPTS = 6
    (storage_root).mkdir()
    member = MembershipFactory(project__customer__postpaid=True)
    history = History(member, storage_root, random.Random(SEED))
    for number in range(1, STEPS + 1):
        history.step()
        if history.chance.random() < 0.6:
            history.work()
            history.write_marks()
        if number % 20 == 0:
            history.settle()
            history.check()
    history.settle()
    history.check()
    print(f"{STEPS} steps of seed {SEED}: {dict(history.outcomes)}")
    assert history.outcomes["killed"]
