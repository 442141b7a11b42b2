"""Services of volumes: create, rename, grow, attach, detach and delete."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer, Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Location, VirtualMachine, Volume
from snapshots import checks, services
from snapshots.errors import (
    ActionRefused,
    InsufficientCredit,
    InvalidState,
    OutOfSpace,
    PriceChanged,
    QuotaExceeded,
    SourceUnavailable,
    WrongConfirmation,
)
from snapshots.models import Draft, Operation
from snapshots.operations import cancellation
from snapshots.operations.lifecycle import claim
from snapshots.storage.contract import GIB, NoSpace, Refused, StorageError
from snapshots.storage.local import LocalDriver
from snapshots.tasks import run_claimed
from snapshots.volumes import services as volume_services
from tests.factories import (
    DraftFactory,
    LocationFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import run_active_operations, sell_everywhere
from tests.snapshots.test_races import TAKERS, all_at_once

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

HOURLY = 400_000  # K 0.4 per GB


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def location() -> Location:
    location = LocationFactory()
    sell_everywhere(HOURLY, ServiceKind.BLOCK_STORAGE)
    return location


@pytest.fixture
def request_new(member: Membership, location: Location) -> Callable[..., Volume]:
    def request_new(**changes: Any) -> Volume:
        answers = {"project": member.project, "location": location, "size_gb": 2, "name": "data", "user": member.user}
        return volume_services.request_volume(**answers | changes)

    return request_new


@pytest.fixture
def volume(storage_root: Path, request_new: Callable[..., Volume]) -> Volume:
    """An available volume of 2 GB."""
    volume = request_new()
    run_active_operations()
    volume.refresh_from_db()
    return volume


@pytest.fixture
def machine(member: Membership, volume: Volume) -> VirtualMachine:
    return VirtualMachineFactory(project=member.project, location=volume.location, stopped=True)


def image_of(root: Path, volume: Volume) -> Path:
    return root / volume.location_id / "volumes" / f"{volume.pk}.img"


def charged(volume: Volume) -> list[tuple[Any, ...]]:
    segments = UsageSegment.objects.filter(resource_id=volume.pk, voided=False).order_by("started_at")
    return [(segment.size_gb, segment.ended_at) for segment in segments]


def test_a_volume_is_created_empty_and_charged_once_it_is_available(
    storage_root: Path, request_new: Callable[..., Volume], member: Membership
) -> None:
    volume = request_new(name="  data   one ", shown_hourly_micro=2 * HOURLY)
    assert (volume.state, volume.name, volume.available_at) == (Volume.State.CREATING, "data one", None)
    assert checks.reserved_micro(member.project.customer, at=timezone.now()) == 2 * HOURLY
    assert not UsageSegment.objects.exists()

    run_active_operations()
    volume.refresh_from_db()
    operation = volume.operations.get()
    assert (volume.state, operation.state) == (Volume.State.AVAILABLE, Operation.State.SUCCEEDED)
    assert volume.available_at == operation.finished_at == UsageSegment.objects.get().started_at
    assert image_of(storage_root, volume).stat().st_size == 2 * GIB
    assert charged(volume) == [(2, None)]
    assert checks.reserved_micro(member.project.customer, at=timezone.now()) == 0
    log = Activity.objects.filter(target_id=str(volume.pk)).order_by("at")
    assert [(entry.action, entry.project, entry.customer) for entry in log] == [
        (action, member.project, member.project.customer) for action in ("volume.create_volume", "ready.create_volume")
    ]


def test_the_same_draft_creates_one_volume(request_new: Callable[..., Volume], member: Membership) -> None:
    draft = DraftFactory(customer=member.project.customer, created_by=member.user)
    first = request_new(draft=draft)
    assert request_new(draft=draft) == first and Volume.objects.count() == 1
    assert Draft.objects.get().created_volume == first


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"size_gb": 0}, OutOfSpace, "at least 1 GB"),
        ({"size_gb": 16_001}, OutOfSpace, "at most 16,000 GB"),
        ({"name": " "}, ActionRefused, "Enter a name"),
        ({"name": "line\nbreak"}, ActionRefused, "can't be displayed"),
        ({"shown_hourly_micro": 1}, PriceChanged, "has changed to K 0.80 an hour"),
    ],
)
def test_a_wrong_answer_is_refused_with_a_reason_and_nothing_is_written(
    request_new: Callable[..., Volume], changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        request_new(**changes)
    assert not Volume.objects.exists() and not Operation.objects.exists()
    assert not Activity.objects.filter(target_kind="volume").exists()


def test_a_closed_location_a_full_quota_and_a_full_storage_refuse_a_new_volume(
    request_new: Callable[..., Volume], member: Membership, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    Customer.objects.update(volume_gb_quota=1)
    with pytest.raises(QuotaExceeded, match="0 of 1 GB"):
        request_new()
    Location.objects.update(active=False)
    with pytest.raises(SourceUnavailable, match="closed for new volumes"):
        request_new()
    monkeypatch.setattr(LocalDriver, "free_bytes", lambda self: 0)
    with pytest.raises(OutOfSpace, match="too full"):
        request_new()


def test_viewers_and_strangers_create_nothing(request_new: Callable[..., Volume], member: Membership) -> None:
    viewer = MembershipFactory(project=member.project, role=Role.VIEWER).user
    for user in viewer, UserFactory(member_of=ProjectFactory()):
        with pytest.raises(PermissionDenied):
            request_new(user=user)


def test_prepaid_credits_must_cover_the_first_hour_where_block_storage_is_sold(
    request_new: Callable[..., Volume], location: Location
) -> None:
    prepaid = MembershipFactory()
    with pytest.raises(InsufficientCredit, match="K 0.80"):
        request_new(project=prepaid.project, user=prepaid.user)
    elsewhere = LocationFactory()
    volume = request_new(project=prepaid.project, user=prepaid.user, location=elsewhere)
    run_active_operations()
    volume.refresh_from_db()
    assert volume.state == Volume.State.AVAILABLE and charged(volume) == []


def test_two_requests_at_once_share_one_quota(request_new: Callable[..., Volume]) -> None:
    Customer.objects.update(volume_quota=2)
    outcomes = all_at_once(lambda number: request_new())
    assert outcomes == {"done": 2, "QuotaExceeded": TAKERS - 2} and Volume.objects.count() == 2


def test_a_failed_creation_is_hidden_not_charged_and_can_be_retried(
    storage_root: Path,
    request_new: Callable[..., Volume],
    member: Membership,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = request_new()
    with monkeypatch.context() as patch:
        patch.setattr(LocalDriver, "create_volume", fail_with(NoSpace("The storage is full.")))
        run_active_operations()
    volume.refresh_from_db()
    failed = volume.operations.get()
    assert (volume.state, failed.state, failed.error) == (
        Volume.State.ERROR,
        Operation.State.FAILED,
        "The storage is full.",
    )
    assert volume.deleted_at and not volume.is_deleted and charged(volume) == []
    notification = member.user.notifications.get()
    assert notification.title == "The volume “data” could not be created"
    assert notification.url.endswith(f"/volumes/{volume.pk}/")

    services.retry(operation=failed, user=member.user)
    with pytest.raises(InvalidState, match="nothing to retry"):
        services.retry(operation=failed, user=member.user)
    run_active_operations()
    volume.refresh_from_db()
    assert (volume.state, volume.deleted_at) == (Volume.State.AVAILABLE, None)
    assert charged(volume) == [(2, None)]


def test_a_cancelled_creation_leaves_nothing(
    storage_root: Path, request_new: Callable[..., Volume], member: Membership
) -> None:
    volume = request_new()
    operation = volume.operations.get()
    running = claim(operation.pk)
    assert running
    cancellation.cancel(operation=operation, user=member.user)
    run_claimed(running)  # The worker that had started.
    run_active_operations()
    volume.refresh_from_db()
    assert volume.state == Volume.State.ERROR and volume.deleted_at and charged(volume) == []
    assert not image_of(storage_root, volume).exists()
    kinds = volume.operations.order_by("created_at").values_list("kind", "state")
    assert list(kinds) == [("create_volume", "cancelled"), ("clean_up", "succeeded")]


def test_a_renamed_volume_has_its_new_name_on_the_bill(volume: Volume, member: Membership) -> None:
    volume_services.rename_volume(volume=volume, user=member.user, name="archive")
    volume.refresh_from_db()
    assert (volume.name, volume.name_key) == ("archive", "archive")
    assert UsageSegment.objects.get().resource_name == "archive"
    entry = Activity.objects.get(action="volume.rename")
    assert (entry.before, entry.after) == ({"name": "data"}, {"name": "archive"})


def test_a_volume_grows_and_is_charged_for_its_new_size(storage_root: Path, volume: Volume, member: Membership) -> None:
    with open(image_of(storage_root, volume), "r+b") as image:
        image.write(b"precious")
    operation = volume_services.request_extension(
        volume=volume, user=member.user, size_gb=5, shown_hourly_micro=5 * HOURLY
    )
    assert checks.reserved_micro(member.project.customer, at=timezone.now()) == 3 * HOURLY
    run_active_operations()
    volume.refresh_from_db()
    operation.refresh_from_db()
    assert (volume.size_gb, volume.state, operation.state) == (5, Volume.State.AVAILABLE, Operation.State.SUCCEEDED)
    image = image_of(storage_root, volume)
    assert image.stat().st_size == 5 * GIB and image.open("rb").read(8) == b"precious"
    segments = UsageSegment.objects.filter(resource_id=volume.pk).order_by("started_at")
    assert [segment.size_gb for segment in segments] == [2, 5]


@pytest.mark.parametrize(
    ("size_gb", "error", "sentence"),
    [
        (2, InvalidState, "has 2 GB already"),
        (1, InvalidState, "can't shrink"),
        (16_001, OutOfSpace, "at most 16,000 GB"),
    ],
)
def test_a_volume_never_shrinks(
    volume: Volume, member: Membership, size_gb: int, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        volume_services.request_extension(volume=volume, user=member.user, size_gb=size_gb)


def test_growth_needs_quota_credit_and_the_price_that_was_shown(volume: Volume, member: Membership) -> None:
    other = VolumeFactory(project=member.project, location=volume.location, size_gb=4)
    Customer.objects.update(volume_gb_quota=10)
    volume_services.request_extension(volume=volume, user=member.user, size_gb=5)
    with pytest.raises(QuotaExceeded, match="9 of 10 GB"):  # The growth in progress counts.
        volume_services.request_extension(volume=other, user=member.user, size_gb=6)
    with pytest.raises(PriceChanged):
        volume_services.request_extension(volume=other, user=member.user, size_gb=5, shown_hourly_micro=1)
    Customer.objects.update(billing_type="prepaid")
    with pytest.raises(InsufficientCredit):
        volume_services.request_extension(volume=other, user=member.user, size_gb=5)


def test_a_failed_growth_leaves_the_old_size(
    storage_root: Path, volume: Volume, member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = volume_services.request_extension(volume=volume, user=member.user, size_gb=5)
    with monkeypatch.context() as patch:
        patch.setattr(LocalDriver, "extend_volume", fail_with(NoSpace("The storage is full.")))
        run_active_operations()
    volume.refresh_from_db()
    operation.refresh_from_db()
    assert (volume.size_gb, operation.state, charged(volume)) == (2, Operation.State.FAILED, [(2, None)])
    services.retry(operation=operation, user=member.user)
    run_active_operations()
    volume.refresh_from_db()
    assert volume.size_gb == 5


def test_a_growth_that_worked_although_the_call_failed_counts(
    storage_root: Path, volume: Volume, member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = LocalDriver.extend_volume

    def extend_and_fail(self: LocalDriver, *args: Any) -> None:
        extend(self, *args)
        raise Refused("The answer was lost.")

    monkeypatch.setattr(LocalDriver, "extend_volume", extend_and_fail)
    operation = volume_services.request_extension(volume=volume, user=member.user, size_gb=5)
    run_active_operations()
    volume.refresh_from_db()
    operation.refresh_from_db()
    assert (volume.size_gb, operation.state, operation.error) == (5, Operation.State.SUCCEEDED, "")
    assert not member.user.notifications.exists()


def test_growth_can_be_cancelled_until_a_worker_begins(volume: Volume, member: Membership) -> None:
    operation = volume_services.request_extension(volume=volume, user=member.user, size_gb=5)
    cancellation.cancel(operation=operation, user=member.user)
    volume.refresh_from_db()
    assert volume.size_gb == 2 and not Operation.objects.active().exists()
    second = volume_services.request_extension(volume=volume, user=member.user, size_gb=5)
    assert claim(second.pk)
    with pytest.raises(InvalidState, match="growing the volume already"):
        cancellation.cancel(operation=second, user=member.user)


def test_a_volume_of_a_running_machine_does_not_grow(
    volume: Volume, member: Membership, machine: VirtualMachine
) -> None:
    Volume.objects.update(vm=machine)
    VirtualMachine.objects.update(state=VirtualMachine.State.RUNNING)
    with pytest.raises(InvalidState, match="Stop the instance first"):
        volume_services.request_extension(volume=volume, user=member.user, size_gb=5)


def test_volumes_take_the_next_free_position_and_the_root_leaves_last(
    volume: Volume, member: Membership, machine: VirtualMachine
) -> None:
    others = [VolumeFactory(project=member.project, location=volume.location) for _number in range(2)]
    for position, each in enumerate([volume, *others]):
        attached = volume_services.attach_volume(volume=each, vm=machine, user=member.user)
        assert (attached.vm, attached.position) == (machine, position)
    with pytest.raises(InvalidState, match="Detach the other volumes first"):
        volume_services.detach_volume(volume=volume, user=member.user)
    volume_services.detach_volume(volume=others[0], user=member.user)
    assert volume_services.attach_volume(volume=others[0], vm=machine, user=member.user).position == 1
    for each in [*others, volume, volume]:
        volume_services.detach_volume(volume=each, user=member.user)
    volume.refresh_from_db()
    assert (volume.vm, volume.position) == (None, 0)
    assert Activity.objects.filter(action="volume.attach").count() == 4
    assert Activity.objects.filter(action="volume.detach").count() == 4


@pytest.mark.parametrize("wrong", ["running", "deleted", "project", "location"])
def test_only_a_stopped_machine_of_the_same_project_and_location_takes_a_volume(
    volume: Volume, member: Membership, machine: VirtualMachine, wrong: str
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "running": {"state": VirtualMachine.State.RUNNING},
        "deleted": {"deleted_at": timezone.now()},
        "project": {"project": MembershipFactory(user=member.user, project__customer=member.project.customer).project},
        "location": {"location": LocationFactory()},
    }
    VirtualMachine.objects.update(**changes[wrong])
    with pytest.raises(InvalidState, match="Choose a stopped instance"):
        volume_services.attach_volume(volume=volume, vm=machine, user=member.user)


def test_a_volume_in_use_is_neither_attached_grown_nor_deleted(
    volume: Volume, member: Membership, machine: VirtualMachine
) -> None:
    SnapshotFactory(volume=volume, creating=True, name="under way")
    actions = [
        lambda: volume_services.attach_volume(volume=volume, vm=machine, user=member.user),
        lambda: volume_services.request_extension(volume=volume, user=member.user, size_gb=5),
        lambda: volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="data"),
    ]
    for action in actions:
        with pytest.raises(InvalidState, match="“under way” is being taken"):
            action()
    volume.snapshots.update(state="failed")
    volume_services.request_extension(volume=volume, user=member.user, size_gb=5)
    for action in actions:
        with pytest.raises(InvalidState, match="Grow volume"):
            action()


def test_deleting_a_volume_ends_its_charge_at_once_and_leaves_its_snapshots(
    storage_root: Path, volume: Volume, member: Membership
) -> None:
    snapshot = SnapshotFactory(volume=volume)
    with pytest.raises(WrongConfirmation, match="Type “data”"):
        volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="date")
    deleting = volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="data")
    assert deleting.state == Volume.State.DELETING and charged(volume) == [(2, deleting.delete_requested_at)]
    assert volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="") == deleting
    run_active_operations()
    volume.refresh_from_db()
    snapshot.refresh_from_db()
    assert volume.is_deleted and snapshot.state == "ready"
    assert not image_of(storage_root, volume).exists()
    for action in (
        lambda: volume_services.rename_volume(volume=volume, user=member.user, name="other"),
        lambda: volume_services.request_extension(volume=volume, user=member.user, size_gb=5),
    ):
        with pytest.raises(InvalidState, match="has been deleted"):
            action()


def test_an_attached_volume_is_not_deleted_and_one_of_a_deleted_machine_is(
    volume: Volume, member: Membership, machine: VirtualMachine
) -> None:
    volume_services.attach_volume(volume=volume, vm=machine, user=member.user)
    with pytest.raises(InvalidState, match="Detach it first"):
        volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="data")
    VirtualMachine.objects.update(deleted_at=timezone.now())
    volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="data")


def test_a_deletion_that_failed_is_retried(
    storage_root: Path, volume: Volume, member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="data")
    with monkeypatch.context() as patch:
        patch.setattr(LocalDriver, "delete_volume", fail_with(Refused("It has snapshots.")))
        run_active_operations()
    volume.refresh_from_db()
    failed = volume.operations.get(kind=Operation.Kind.DELETE_VOLUME)
    assert (volume.state, volume.deleted_at, failed.state) == (Volume.State.DELETING, None, Operation.State.FAILED)
    services.retry(operation=failed, user=member.user)
    run_active_operations()
    volume.refresh_from_db()
    assert volume.is_deleted and not image_of(storage_root, volume).exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "create_volume", "volume": None},
        {"kind": "extend_volume"},
        {"kind": "delete_volume", "new_size_gb": 5},
        {"kind": "capture"},
        {"kind": "verify", "new_size_gb": 5},
    ],
)
def test_the_database_refuses_operations_of_the_wrong_shape(volume: Volume, fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Operation.objects.create(**{"volume": volume} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "deleting"},
        {"delete_requested_at": timezone.now()},
        {"state": "creating"},
    ],
)
def test_the_database_refuses_states_that_do_not_match_their_times(volume: Volume, fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Volume.objects.filter(pk=volume.pk).update(**fields)


def test_a_volume_has_one_writer(volume: Volume, member: Membership) -> None:
    outcomes = all_at_once(lambda number: volume_services.request_extension(volume=volume, user=member.user, size_gb=5))
    assert outcomes == {"done": 1, "InvalidState": TAKERS - 1} and Operation.objects.active().count() == 1
    with pytest.raises(IntegrityError), transaction.atomic():
        OperationFactory(kind=Operation.Kind.DELETE_VOLUME, snapshot=None, volume=volume)


def fail_with(error: StorageError) -> Callable[..., None]:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    return fail
