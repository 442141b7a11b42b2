"""What is locked is deleted by nobody before its lock ends; locks are lengthened, lifted with a reason, and paid for."""

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import ProtectedError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import UsageSegment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Customer, Membership, Role, User
from cng_portal.activity.models import Activity
from cng_portal.notifications.models import Notification
from snapshots import expiry, locks, recycle_bin, services
from snapshots.assignment import move_snapshot
from snapshots.backups.retention import apply_retention
from snapshots.backups.runs import settle_runs
from snapshots.errors import ActionRefused, InsufficientCredit, InvalidState, PriceChanged
from snapshots.maintenance import repairs
from snapshots.maintenance.fsck import check_location
from snapshots.models import (
    BackupRun,
    DeletionCause,
    DiskImage,
    LockMode,
    Operation,
    Snapshot,
    SnapshotLock,
    State,
)
from snapshots.operations.handlers import delete_disks
from snapshots.operations.lifecycle import create_operation
from snapshots.storage.contract import StorageError
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    MembershipFactory,
    ProjectFactory,
    SnapshotFactory,
    SnapshotLockFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.test_crashes import survives

pytestmark = pytest.mark.django_db
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture
def owner() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def snapshot(owner: Membership) -> Snapshot:
    """A Ready snapshot of 50 GB that costs K 20 an hour."""
    snapshot = SnapshotFactory(volume__project=owner.project, volume__size_gb=50, name="before-update")
    sell_everywhere()
    snapshot.start_charging(snapshot.ready_at)
    return snapshot


@pytest.fixture
def client(client_for: Callable[..., Client], owner: Membership) -> Client:
    return client_for(owner.user)


def day_in(days: int) -> date:
    return (timezone.now() + days * DAY).date()


def lock(snapshot: Snapshot, user: User, *, days: int = 30, **options: object) -> SnapshotLock:
    return locks.lock_snapshot(snapshot=snapshot, user=user, day=day_in(days), **options)


def credit(customer: Customer, user: User) -> None:
    """Buy credits for ten days of K 480."""
    buy_credits(customer=customer, amount_micro=10 * 480_000_000, reason="test", key="credits", by=user)


def scheduled_backups(membership: Membership) -> list[Snapshot]:
    """Two verified snapshots of a schedule that keeps one."""
    volume = VolumeFactory(project=membership.project)
    schedule = BackupScheduleFactory(vm=None, volume=volume, retention_count=1)
    copies = []
    for number in (1, 2):
        snapshot = SnapshotFactory(volume=volume, disk__verified_at=timezone.now())
        BackupRunFactory(schedule=schedule, volume=volume, vm=None, number=number, snapshot=snapshot)
        copies.append(snapshot)
    return copies


def statements(lock: SnapshotLock) -> Iterator[str]:
    """SQL that would get rid of what is locked, or of its lock, as the portal's own user."""
    snapshot_id, lock_id = (
        value.hex if connection.vendor == "sqlite" else str(value) for value in (lock.snapshot_id, lock.pk)
    )
    other = uuid4().hex if connection.vendor == "sqlite" else str(uuid4())
    past, now = "'2001-02-03 04:05:06'", "'2026-11-30 12:00:00'"
    of_snapshot = f"WHERE id = '{snapshot_id}'"
    for change in (
        f"state = 'deleting', delete_requested_at = {now}, deletion_cause = 'user'",
        f"state = 'deleted', delete_requested_at = {now}, deleted_at = {now}, deletion_cause = 'expired'",
        f"state = 'deleted', delete_requested_at = {now}, deleted_at = {now}, deletion_cause = 'user', bin_until = {now}",
        "state = 'failed'",
        "state = 'pending'",
        f"bin_until = {now}",
        f"id = '{other}'",
        f"project_id = '{other}'",
        "location_id = 'elsewhere'",
        "size_gb = 1",
        f"ready_at = {past}",
    ):
        yield f"UPDATE snapshots_snapshot SET {change} {of_snapshot}"
    yield f"DELETE FROM snapshots_snapshot {of_snapshot}"
    yield "DELETE FROM snapshots_snapshot"
    of_disk = f"WHERE snapshot_id = '{snapshot_id}'"
    for change in ("backend_ref = 'another'", f"snapshot_id = '{other}'", f"id = '{other}'", "size_gb = 1"):
        yield f"UPDATE snapshots_diskimage SET {change} {of_disk}"
    yield f"UPDATE snapshots_diskimage SET checksum = 'sha256:0' {of_disk}"
    yield f"DELETE FROM snapshots_diskimage {of_disk}"
    of_lock = f"WHERE id = '{lock_id}'"
    for change in (
        f"until = {past}",
        f"until = {now}",
        "until = NULL",
        f"lifted_at = {now}",
        f"lifted_at = {now}, reason = '  '",
        f"snapshot_id = '{other}'",
        f"locked_at = {past}",
        f"id = '{other}'",
        "mode = 'governance', final_at = NULL" if lock.is_compliance else f"mode = 'compliance', final_at = {past}",
        f"final_at = {now}",
    ):
        yield f"UPDATE snapshots_snapshotlock SET {change} {of_lock}"
    if lock.final_at and lock.final_at < timezone.now():
        yield f"UPDATE snapshots_snapshotlock SET lifted_at = {now}, reason = 'because' {of_lock}"
        yield f"UPDATE snapshots_snapshotlock SET final_at = '2099-01-01 00:00:00' {of_lock}"
    yield f"DELETE FROM snapshots_snapshotlock {of_lock}"
    yield "DELETE FROM snapshots_snapshotlock"
    for kind in ("delete", "clean_up"):
        yield f"UPDATE snapshots_operation SET kind = '{kind}' WHERE snapshot_id = '{snapshot_id}'"
    for table, which in (("snapshot", of_snapshot), ("diskimage", of_disk), ("snapshotlock", of_lock)):
        if connection.vendor == "sqlite":
            yield f"INSERT OR REPLACE INTO snapshots_{table} SELECT * FROM snapshots_{table} {which}"
        else:
            yield f"TRUNCATE snapshots_{table} CASCADE"


def doors(lock: SnapshotLock, user: User, admin: User) -> Iterator[Callable[[], object]]:
    """Every function of the portal that ends in a deletion."""
    snapshot, now = lock.snapshot, timezone.now()
    yield lambda: services.request_deletion(snapshot=snapshot, user=user, even_if_last=True)
    yield lambda: services.request_deletions(snapshots=[snapshot], user=user, even_if_last=True)
    yield lambda: recycle_bin.put_in_bin(snapshot, at=now, user=user)
    yield lambda: recycle_bin.start_erasing(snapshot)
    yield lambda: recycle_bin.erase(binned=snapshot, user=user, confirmation=snapshot.name)
    for cause in DeletionCause:
        yield lambda cause=cause: services.accept_deletion(snapshot, at=now, cause=cause)
    for kind in (Operation.Kind.DELETE, Operation.Kind.CLEAN_UP):
        yield lambda kind=kind: create_operation(kind=kind, snapshot=snapshot)
    yield lambda: delete_disks(snapshot)
    yield lambda: repairs.request_deletion(snapshot.pk)
    yield lambda: Snapshot.objects.filter(pk=snapshot.pk).delete()
    yield lambda: snapshot.volume.delete()
    yield lambda: snapshot.project.delete()
    yield lambda: snapshot.customer.delete()
    yield lambda: lock.delete()
    yield lambda: locks.lift_lock(lock=lock, user=UserFactory(), reason="I may not")
    yield lambda: locks.lift_lock(lock=lock, user=user, reason="  ")
    if lock.final_at and lock.final_at < now:
        yield lambda: locks.lift_lock(lock=lock, user=user, reason="I own it")
        yield lambda: locks.lift_lock(lock=lock, user=admin, reason="I administer it")
    yield lambda: locks.lock_snapshot(snapshot=snapshot, user=user, day=day_in(1))
    yield lambda: expiry.set_expiry(snapshot=snapshot, user=user, day=day_in(0))
    yield lambda: expiry.delete_expired(now=now)
    yield lambda: move_snapshot(snapshot=snapshot, user=user, project=ProjectFactory(customer=snapshot.customer))


def requests(lock: SnapshotLock, member: Client, admin: Client) -> Iterator[Callable[[], object]]:
    """Every page on which something is deleted."""
    snapshot = lock.snapshot
    name = {"confirmation": snapshot.name}
    yield lambda: member.post(reverse("snapshots:delete", args=[snapshot.pk]), name)
    many = {"id": [str(snapshot.pk)], "confirmation": "delete 1 snapshot"}
    yield lambda: member.post(reverse("snapshots:delete_many"), many)
    yield lambda: member.post(reverse("snapshots:erase", args=[snapshot.pk]), name)
    for model, pk in (
        ("snapshots_snapshot", snapshot.pk),
        ("snapshots_snapshotlock", lock.pk),
        ("accounts_project", snapshot.project_id),
        ("accounts_customer", snapshot.customer_id),
        ("inventory_volume", snapshot.volume_id),
        ("inventory_location", snapshot.location_id),
    ):
        yield lambda model=model, pk=pk: admin.post(reverse(f"admin:{model}_delete", args=[pk]), {"post": "yes"})
        selected = {"action": "delete_selected", "_selected_action": [str(pk)], "post": "yes"}
        yield lambda model=model, selected=selected: admin.post(reverse(f"admin:{model}_changelist"), selected)
    yield lambda: admin.post(reverse("admin:snapshots_lift_lock", args=[lock.pk]), {"reason": ""})


@pytest.mark.both_databases
def test_nothing_deletes_a_locked_snapshot_in_any_way(owner: Membership, client_for: Callable[..., Client]) -> None:
    admin = UserFactory(admin=True)
    pages, desk = client_for(owner.user), client_for(admin)
    kept = [
        SnapshotLockFactory(
            snapshot=SnapshotFactory(volume__project=owner.project, disk__checksum="blake3:1", name=f"kept {mode}"),
            **({mode: True} if mode else {}),
        )
        for mode in ("", "compliance", "final")
    ]
    for held in kept:
        held.snapshot.start_charging(held.snapshot.ready_at)
        create_operation(kind=Operation.Kind.VERIFY, snapshot=held.snapshot)
        Snapshot.objects.filter(pk=held.snapshot_id).update(  # As if it had expired, and that had been announced.
            expires_at=timezone.now() - DAY, expiry_announced_at=timezone.now() - 3 * DAY
        )
    attempts = refused = 0

    def try_it(action: Callable[[], object]) -> None:
        nonlocal attempts, refused
        attempts += 1
        try:
            with transaction.atomic():
                action()
        except (ActionRefused, DatabaseError, PermissionDenied, ProtectedError, StorageError):
            refused += 1

    for held in kept:
        actions = [*doors(held, owner.user, admin), *requests(held, pages, desk)]
        for action in actions:
            try_it(action)
            with time_machine.travel(timezone.now() + 800 * DAY, tick=False):
                try_it(action)
        for sql in statements(held):
            try_it(lambda sql=sql: connection.cursor().execute(sql))
            check_constraints = "SET CONSTRAINTS ALL IMMEDIATE" if connection.vendor == "postgresql" else "SELECT 1"
            connection.cursor().execute(check_constraints)
        held.refresh_from_db()
        snapshot = Snapshot.objects.get(pk=held.snapshot_id)
        assert (snapshot.state, snapshot.bin_until) == (State.READY, None)
        assert held.lifted_at is None and held.until > timezone.now()
        assert SnapshotLock.objects.active().filter(pk=held.pk).exists()
        assert DiskImage.objects.filter(snapshot=snapshot, checksum="blake3:1").count() == 1
        assert UsageSegment.objects.filter(resource_id=snapshot.pk, ended_at=None).exists()
    assert not Operation.objects.filter(kind__in=["delete", "clean_up"]).exists()
    assert attempts >= 200
    assert refused >= attempts / 2


@pytest.mark.both_databases
def test_retention_and_switched_off_backups_leave_locked_copies_until_the_lock_ends(owner: Membership) -> None:
    old, newest = scheduled_backups(owner)
    held = SnapshotLockFactory(snapshot=old)
    apply_retention(old.run.schedule, timezone.now())
    assert Snapshot.objects.filter(state=State.READY).count() == 2
    locks.lift_lock(lock=held, user=owner.user, reason="no longer needed")
    apply_retention(old.run.schedule, timezone.now())
    assert list(Snapshot.objects.filter(state=State.READY)) == [newest]


@pytest.mark.both_databases
def test_a_lock_that_has_ended_holds_nothing(owner: Membership, snapshot: Snapshot) -> None:
    SnapshotLockFactory(snapshot=snapshot, ended=True)
    services.request_deletion(snapshot=snapshot, user=owner.user, even_if_last=True)
    snapshot.refresh_from_db()
    assert snapshot.state != State.READY


@pytest.mark.both_databases
def test_only_what_is_ready_is_locked_by_the_database() -> None:
    for trait in ("pending", "failed", "binned", "deleted"):
        with pytest.raises(IntegrityError), transaction.atomic():
            SnapshotLockFactory(snapshot=SnapshotFactory(**{trait: True}))


def test_lifting_a_lock_tells_everybody_why(owner: Membership, snapshot: Snapshot) -> None:
    viewer = UserFactory(member_of=ProjectFactory(customer=owner.project.customer), member_of__role=Role.VIEWER)
    held = lock(snapshot, owner.user)
    locks.lift_lock(lock=held, user=owner.user, reason="The trial is over.")
    told = Notification.objects.filter(key=f"lock-lifted:{held.pk}")
    assert {note.user for note in told} == {owner.user, viewer}
    assert all("The trial is over." in note.text and note.mail_id for note in told)
    entry = Activity.objects.get(action="snapshot.lift_lock")
    assert entry.actor == owner.user and entry.after["reason"] == "The trial is over."
    services.request_deletion(snapshot=snapshot, user=owner.user, even_if_last=True)


def test_compliance_is_lifted_within_its_cooling_off_and_only_lengthened_afterwards(
    owner: Membership, snapshot: Snapshot
) -> None:
    held = lock(snapshot, owner.user, mode=LockMode.COMPLIANCE, cooling_off_hours=2)
    assert held.final_at and abs(held.final_at - timezone.now() - 2 * HOUR) < HOUR
    locks.lift_lock(lock=held, user=owner.user, reason="by mistake")
    final = SnapshotLockFactory(snapshot=snapshot, final=True)
    for user in (owner.user, UserFactory(admin=True)):
        with pytest.raises(InvalidState, match="cooling-off is over"):
            locks.lift_lock(lock=final, user=user, reason="please")
    assert lock(snapshot, owner.user, days=60).pk == final.pk
    with pytest.raises(locks.InvalidLock, match="can only be lengthened"):
        lock(snapshot, owner.user, days=40)


def test_an_administrator_lifts_a_lock_in_admin_with_a_reason(
    snapshot: Snapshot, client_for: Callable[..., Client]
) -> None:
    held = SnapshotLockFactory(snapshot=snapshot)
    desk = client_for(UserFactory(admin=True))
    url = reverse("admin:snapshots_lift_lock", args=[held.pk])
    assert url in desk.get(reverse("admin:snapshots_snapshotlock_changelist")).content.decode()
    assert "Enter why you lift it" in desk.post(url, {"reason": ""}).content.decode()
    assert desk.post(url, {"reason": "Asked by phone."}).status_code == 302
    held.refresh_from_db()
    assert (held.reason, held.lifted_at is None) == ("Asked by phone.", False)


def test_members_neither_lift_a_lock_nor_choose_compliance(owner: Membership, snapshot: Snapshot) -> None:
    member = UserFactory(member_of=owner.project, member_of__role=Role.MEMBER)
    with pytest.raises(PermissionDenied, match="Only an owner"):
        lock(snapshot, member, mode=LockMode.COMPLIANCE, cooling_off_hours=2)
    held = lock(snapshot, member)
    with pytest.raises(PermissionDenied, match="Only an owner"):
        locks.lift_lock(lock=held, user=member, reason="I placed it")


def test_an_expiry_date_moves_to_the_end_of_the_lock(owner: Membership, snapshot: Snapshot) -> None:
    expiry.set_expiry(snapshot=snapshot, user=owner.user, day=day_in(3))
    held = lock(snapshot, owner.user, days=10)
    snapshot.refresh_from_db()
    assert snapshot.expires_at == held.until
    with pytest.raises(expiry.InvalidExpiry, match="It is locked until"):
        expiry.set_expiry(snapshot=snapshot, user=owner.user, day=day_in(5))
    expiry.set_expiry(snapshot=snapshot, user=owner.user, day=day_in(15))


def test_it_costs_every_started_hour_until_the_lock_ends(owner: Membership, snapshot: Snapshot) -> None:
    at = snapshot.ready_at + 2.5 * HOUR
    price = locks.quote_lock(snapshot, snapshot.ready_at + 10 * HOUR, at=at)
    assert price and price.micro == 7 * 20_000_000  # Three hours are paid, seven follow.
    with pytest.raises(PriceChanged, match="costs K"):
        lock(snapshot, owner.user, days=2, shown_micro=1)


@pytest.mark.both_databases
def test_prepaid_credits_cover_all_that_is_locked(owner: Membership, snapshot: Snapshot) -> None:
    Customer.objects.filter(pk=snapshot.customer_id).update(billing_type="prepaid")
    customer = Customer.objects.get(pk=snapshot.customer_id)
    with pytest.raises(InsufficientCredit, match="don't cover it"):
        lock(snapshot, owner.user, days=5)
    buy_credits(
        customer=customer, amount_micro=10 * 480_000_000, reason="test", key="credits", by=owner.user, at=timezone.now()
    )
    with pytest.raises(InsufficientCredit, match="at most"):
        lock(snapshot, owner.user, days=20)
    lock(snapshot, owner.user, days=5)
    other = SnapshotFactory(volume=snapshot.volume)
    other.start_charging(other.ready_at)
    with pytest.raises(InsufficientCredit):
        lock(other, owner.user, days=6)
    lock(other, owner.user, days=1)


def taking(owner: Membership, lock_days: int) -> BackupRun:
    volume = VolumeFactory(project=owner.project, size_gb=50)
    sell_everywhere()
    schedule = BackupScheduleFactory(vm=None, volume=volume, lock_days=lock_days)
    copy = SnapshotFactory(volume=volume, disk__verified_at=timezone.now())
    copy.start_charging(copy.ready_at)
    return BackupRunFactory(schedule=schedule, volume=volume, vm=None, snapshot=copy, taking=True)


def test_each_backup_of_a_schedule_is_locked_once_it_is_verified(owner: Membership) -> None:
    run = taking(owner, lock_days=30)
    settle_runs(timezone.now())
    held = SnapshotLock.objects.get(snapshot=run.snapshot)
    assert (held.mode, held.locked_by) == (LockMode.GOVERNANCE, None)
    assert abs(held.until - timezone.now() - 30 * DAY) < HOUR


def test_a_copy_is_locked_as_long_as_credits_cover_it_and_members_are_told(owner: Membership) -> None:
    run = taking(owner, lock_days=30)
    Customer.objects.update(billing_type="prepaid")
    customer = Customer.objects.get(pk=run.snapshot.customer_id)
    buy_credits(
        customer=customer, amount_micro=10 * 480_000_000, reason="test", key="credits", by=owner.user, at=timezone.now()
    )
    settle_runs(timezone.now())
    held = SnapshotLock.objects.get(snapshot=run.snapshot)
    assert 9 * DAY < held.until - timezone.now() <= 10 * DAY
    assert "locks for 30 days" in Notification.objects.get(key=f"lock-shortened:{run.snapshot_id}").text


def test_the_page_asks_until_when_shows_the_cost_and_locks(client: Client, snapshot: Snapshot) -> None:
    url = reverse("snapshots:lock", args=[snapshot.pk])
    assert "Show what it costs" in client.get(url).content.decode()
    answers = {"day": day_in(30).isoformat(), "mode": "compliance", "cooling_off_hours": "24"}
    shown = client.get(url, answers)
    assert "Within 24 hours an owner can lift the lock" in shown.content.decode()
    confirmed = answers | {"shown_micro": shown.context["shown_micro"]}
    page = client.post(url, confirmed, follow=True).content.decode()
    assert "Locked (Compliance)" in page
    assert "root access to the storage" in page
    assert reverse("snapshots:delete", args=[snapshot.pk]) not in page
    assert "nobody can delete it before" in client.get(reverse("snapshots:delete", args=[snapshot.pk])).content.decode()


def test_wrong_answers_are_explained_and_lose_nothing(client: Client, snapshot: Snapshot) -> None:
    url = reverse("snapshots:lock", args=[snapshot.pk])
    page = client.post(url, {"day": "2001-01-01", "mode": "governance"}).content.decode()
    assert "Enter a date from today on" in page and 'value="2001-01-01"' in page
    wrong = {"day": day_in(9).isoformat(), "mode": "compliance", "cooling_off_hours": "99"}
    page = client.post(url, wrong).content.decode()
    assert "cooling-off of 1 to 72 hours" in page and 'value="99"' in page
    assert not SnapshotLock.objects.exists()


def test_lifting_needs_a_reason(client: Client, owner: Membership, snapshot: Snapshot) -> None:
    lock(snapshot, owner.user)
    url = reverse("snapshots:lift_lock", args=[snapshot.pk])
    assert "Enter why you lift it" in client.post(url, {"reason": " "}).content.decode()
    page = client.post(url, {"reason": "The audit is over."}, follow=True).content.decode()
    assert "no longer locked" in page
    assert client.get(url, follow=True).redirect_chain, "nothing is left to lift"


def test_a_final_lock_is_only_lengthened(client: Client, snapshot: Snapshot) -> None:
    SnapshotLockFactory(snapshot=snapshot, final=True)
    menu = client.get(reverse("snapshots:menu", args=[snapshot.pk]), headers={"HX-Request": "true"})
    page = menu.content.decode()
    assert "Lengthen the lock" in page and "Lift the lock" not in page
    assert reverse("snapshots:delete", args=[snapshot.pk]) not in page
    assert client.get(reverse("snapshots:lift_lock", args=[snapshot.pk])).status_code == 302


def test_strangers_find_no_lock(client_for: Callable[..., Client], snapshot: Snapshot) -> None:
    schedule = BackupScheduleFactory(vm=None, volume=snapshot.volume)
    stranger = client_for(MembershipFactory().user)
    for name, pk in (("lock", snapshot.pk), ("lift_lock", snapshot.pk), ("lock_schedule", schedule.pk)):
        assert stranger.get(reverse(f"snapshots:{name}", args=[pk])).status_code == 404


def test_lists_show_the_lock_beside_the_state(client: Client, snapshot: Snapshot) -> None:
    SnapshotLockFactory(snapshot=snapshot)
    page = client.get(reverse("snapshots:volume_snapshots")).content.decode()
    assert "Locked" in page


def test_the_rule_of_a_schedule_is_set_and_cleared(client: Client, snapshot: Snapshot) -> None:
    schedule = BackupScheduleFactory(vm=None, volume=snapshot.volume)
    url = reverse("snapshots:lock_schedule", args=[schedule.pk])
    page = client.post(url, {"lock_days": "0"}).content.decode()
    assert "Enter 1 or more days" in page and 'value="0"' in page
    assert "each snapshot for 30 days" in client.post(url, {"lock_days": "30"}, follow=True).content.decode()
    client.post(url, {"lock_days": ""})
    schedule.refresh_from_db()
    assert schedule.lock_days is None


def test_fsck_reports_what_is_locked_and_went_missing(snapshot: Snapshot, storage_root: Path) -> None:
    SnapshotLockFactory(snapshot=snapshot)
    assert "locked-missing" in {finding.code for finding in check_location(snapshot.location)}


@pytest.mark.slow
@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["lock", "lengthen", "lift"])
def test_killed_at_any_statement_it_is_locked_or_not_and_nobody_is_told_of_nothing(
    name: str, storage_root: Path
) -> None:
    owner = MembershipFactory(project__customer__postpaid=True)
    snapshot = SnapshotFactory(volume__project=owner.project)
    sell_everywhere()
    snapshot.start_charging(snapshot.ready_at)
    held = None if name == "lock" else lock(snapshot, owner.user, days=20)
    deed = {
        "lock": lambda: lock(snapshot, owner.user, mode=LockMode.COMPLIANCE, cooling_off_hours=24),
        "lengthen": lambda: lock(snapshot, owner.user),
        "lift": lambda: locks.lift_lock(lock=held, user=owner.user, reason="over"),  # type: ignore[arg-type]
    }[name]

    def situation() -> tuple[Any, ...]:
        found = SnapshotLock.objects.first()
        logged = Activity.objects.filter(action__contains="lock").count()
        return found and found.until, found and found.reason, logged, Notification.objects.count()

    before = situation()
    for kill_at in range(1, 100):
        survived = survives(lambda steps: deed() and None, kill_at)
        if survived or situation() != before:
            break
    assert kill_at > 4
    after = situation()
    assert after[:2] != before[:2]
    assert (after[2] - before[2], after[3] - before[3]) == (1, 0 if name == "lengthen" else 1)
