"""Twenty concurrent requests on both databases: one succeeds, and the others get a reason."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from billing.models import UsageSegment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from snapshots import recycle_bin, restores, services
from snapshots.assignment import move_snapshot
from snapshots.errors import ActionRefused
from snapshots.models import Operation, Snapshot, State
from snapshots.operations import lifecycle
from snapshots.tasks import run_operation
from snapshots.usage_check import check_usage
from snapshots.wizard import wizard
from tests.factories import MembershipFactory, OperationFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, sell_everywhere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

TAKERS = 20


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    volume = VolumeFactory(project=member.project, size_gb=50)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    return volume


def all_at_once(action: Callable[[int], Any]) -> Counter:
    """Call act(0) … act(19) at once, each in a thread with its own connection. Returns the count of each outcome."""
    barrier = Barrier(TAKERS)

    def call(number: int) -> str:
        try:
            barrier.wait()
            action(number)
            return "done"
        except ActionRefused as refusal:
            return type(refusal).__name__
        finally:
            connections.close_all()

    with ThreadPoolExecutor(TAKERS) as pool:
        return Counter(pool.map(call, range(TAKERS)))


def test_twenty_submits_of_one_draft_make_one_snapshot(member: Membership, volume: Volume) -> None:
    draft = wizard.start(member.user, source=volume)
    pks = set()

    def submit(number: int) -> None:
        snapshot = services.request_snapshot(source=volume, name="same draft", user=member.user, draft=draft)
        pks.add(snapshot.pk)

    assert all_at_once(submit) == {"done": TAKERS}
    assert pks == {Snapshot.objects.get().pk}
    assert Operation.objects.count() == 1


def test_twenty_requests_with_one_name_create_one_snapshot(member: Membership, volume: Volume) -> None:
    names = ["Nightly", "nightly", "NIGHTLY", " nightly "] * 5
    outcome = all_at_once(lambda number: services.request_snapshot(source=volume, name=names[number], user=member.user))
    assert outcome == {"done": 1, "NameTaken": TAKERS - 1}
    assert Snapshot.objects.count() == 1


@pytest.mark.parametrize(
    ("owner", "quota"),
    [("customer", {"snapshot_quota": 1}), ("customer", {"snapshot_gb_quota": 99}), ("project", {"snapshot_quota": 1})],
)
def test_a_quota_of_one_admits_one_request(
    member: Membership, volume: Volume, owner: str, quota: dict[str, int]
) -> None:
    limited = member.project.customer if owner == "customer" else member.project
    type(limited).objects.filter(pk=limited.pk).update(**quota)
    outcome = all_at_once(
        lambda number: services.request_snapshot(source=volume, name=f"taker {number}", user=member.user)
    )
    assert outcome == {"done": 1, "QuotaExceeded": TAKERS - 1}


def test_credit_for_one_snapshot_admits_one_request(member: Membership, volume: Volume) -> None:
    customer = member.project.customer
    type(customer).objects.filter(pk=customer.pk).update(billing_type="prepaid")
    customer.refresh_from_db()
    buy_credits(customer=customer, amount_micro=39_000_000, reason="test", by=None, key="one hour is K 20")
    outcome = all_at_once(
        lambda number: services.request_snapshot(source=volume, name=f"taker {number}", user=member.user)
    )
    assert outcome == {"done": 1, "InsufficientCredit": TAKERS - 1}


def test_twenty_concurrent_moves_respect_the_quota(member: Membership, volume: Volume) -> None:
    archive = MembershipFactory(
        user=member.user, project__customer=member.project.customer, project__snapshot_quota=3
    ).project
    snapshots = [SnapshotFactory(volume=volume) for _number in range(TAKERS)]
    outcome = all_at_once(lambda number: move_snapshot(snapshot=snapshots[number], user=member.user, project=archive))
    assert outcome == {"done": 3, "QuotaExceeded": TAKERS - 3}
    assert Snapshot.objects.filter(project=archive).count() == 3


def test_twenty_moves_of_a_snapshot_at_once_leave_one_charge(member: Membership, volume: Volume) -> None:
    snapshot = SnapshotFactory(volume=volume)
    snapshot.start_charging(snapshot.ready_at)
    archive = MembershipFactory(user=member.user, project__customer=member.project.customer).project
    all_at_once(
        lambda number: move_snapshot(
            snapshot=snapshot, user=member.user, project=archive if number % 2 else member.project
        )
    )
    snapshot.refresh_from_db()
    [charge] = UsageSegment.objects.filter(resource_id=snapshot.pk, ended_at=None)
    assert charge.project == snapshot.project
    assert list(check_usage(timezone.now())) == []


def test_twenty_workers_run_an_operation_once(member: Membership, volume: Volume) -> None:
    snapshot = services.request_snapshot(source=volume, name="once", user=member.user)
    operation = snapshot.operations.get()
    assert all_at_once(lambda number: run_operation(operation.pk)) == {"done": TAKERS}
    operation.refresh_from_db()
    snapshot.refresh_from_db()
    assert (operation.attempt, operation.state, snapshot.state) == (1, Operation.State.SUCCEEDED, State.READY)


def test_twenty_reconcilers_release_a_lost_operation_once() -> None:
    forgotten = OperationFactory(running=True, lease_until=timezone.now() - timedelta(seconds=1))
    released = []
    all_at_once(lambda number: released.append(lifecycle.reconcile()))
    assert sum(released) == 1
    forgotten.refresh_from_db()
    assert forgotten.state == Operation.State.PENDING


def test_a_snapshot_that_is_deleted_and_restored_at_once_does_one_of_them(
    storage_root: Path, member: Membership, volume: Volume
) -> None:
    snapshot = services.request_snapshot(source=volume, name="wanted by two", user=member.user)
    run_operation(snapshot.operations.get().pk)

    def action(number: int) -> None:
        if number % 2:
            services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
        else:
            restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)

    all_at_once(action)
    snapshot.refresh_from_db()
    restore_count = Operation.objects.filter(kind=Operation.Kind.RESTORE).count()
    assert (snapshot.state, restore_count) in [(State.DELETING, 0), (State.READY, 1)]


def test_a_snapshot_in_the_recycle_bin_is_put_back_or_erased_and_never_both(member: Membership, settings: Any) -> None:
    settings.RECYCLE_BIN_DAYS = 7
    snapshot = SnapshotFactory(volume__project=member.project)
    sell_everywhere()
    snapshot.start_charging(snapshot.ready_at)
    snapshot = services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    assert snapshot.bin_until is not None
    after = snapshot.bin_until + timedelta(seconds=1)
    acts = [
        lambda: recycle_bin.put_back(snapshot=snapshot, user=member.user),
        lambda: recycle_bin.erase(binned=snapshot, user=member.user, confirmation=snapshot.name),
        lambda: recycle_bin.erase_due(now=after),
    ]
    outcome = all_at_once(lambda number: acts[number % 3]())
    assert set(outcome) <= {"done", "InvalidState"}
    snapshot.refresh_from_db()
    erasures = Operation.objects.filter(snapshot=snapshot, kind=Operation.Kind.DELETE).count()
    running = UsageSegment.objects.filter(resource_id=snapshot.pk, ended_at=None).count()
    assert (snapshot.state, erasures, running) in ((State.READY, 0, 1), (State.DELETED, 1, 0))
    assert snapshot.bin_until is None
    assert not list(check_usage(timezone.now()))
