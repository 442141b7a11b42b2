"""What users delete goes to the recycle bin, costs nothing there, and comes back as if it had never been deleted."""

import html
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, connections, transaction
from django.test import Client
from django.urls import reverse
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing import verification
from billing.charges import cost_so_far
from billing.closing import close_months
from billing.models import InvoiceLine, UsageSegment
from billing.wallet import buy_credits
from cng_portal.accounts.models import Customer, Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Location
from cng_portal.monitoring.models import StorageCheck
from cng_portal.notifications.models import Notification
from snapshots import recycle_bin, services
from snapshots.errors import InsufficientCredit, InvalidState, NameTaken, QuotaExceeded, WrongConfirmation
from snapshots.maintenance.fsck import check_location
from snapshots.management.commands.scheduler import empty_recycle_bin
from snapshots.models import Operation, Snapshot, State
from snapshots.storage.contract import GIB
from snapshots.usage_check import check_usage
from tests.billing import oracle
from tests.factories import MembershipFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere
from tests.snapshots.test_crashes import Steps

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
NOW = datetime(2040, 3, 5, 10, 17, 23, tzinfo=UTC)


@pytest.fixture(autouse=True)
def recycle_bin_days(settings: Any) -> None:
    settings.RECYCLE_BIN_DAYS = 7


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


def charged(member: Membership, *, at: datetime = NOW, name: str = "before-update", size_gb: int = 50) -> Snapshot:
    """A Ready snapshot of 50 GB that costs K 20 an hour from `at` on."""
    location = Location.objects.first()
    volume = VolumeFactory(project=member.project, size_gb=size_gb, **({"location": location} if location else {}))
    if location is None:
        sell_everywhere()
    snapshot = SnapshotFactory(volume=volume, name=name, created_at=at, ready_at=at, disk__size_gb=size_gb)
    snapshot.start_charging(at)
    return snapshot


def delete(snapshot: Snapshot, member: Membership, at: datetime) -> Snapshot:
    with time_machine.travel(at, tick=False):
        return services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)


def put_back(snapshot: Snapshot, member: Membership, at: datetime, **options: str) -> Snapshot:
    with time_machine.travel(at, tick=False):
        return recycle_bin.put_back(snapshot=snapshot, user=member.user, **options)


def hours_of(snapshot: Snapshot, at: datetime) -> int:
    cost = cost_so_far(resource_id=snapshot.pk, at=at)
    return cost.hours if cost else 0


def test_a_deleted_snapshot_waits_in_the_bin_and_costs_nothing(member: Membership) -> None:
    snapshot = delete(charged(member), member, NOW + 2.75 * HOUR)
    assert (snapshot.state, snapshot.bin_until) == (State.DELETED, NOW + 2.75 * HOUR + timedelta(days=7))
    assert hours_of(snapshot, NOW + timedelta(days=3)) == 3
    assert not Operation.objects.filter(snapshot=snapshot).exists()
    assert SnapshotFactory(volume=snapshot.volume, name=snapshot.name), "its name is free"


def test_putting_it_back_charges_the_hours_between_in_one_line(member: Membership) -> None:
    snapshot = delete(charged(member), member, NOW + 2.75 * HOUR)
    back = NOW + timedelta(days=2)
    with time_machine.travel(back, tick=False):
        price = recycle_bin.quote_put_back(snapshot, at=back)
    assert price is not None
    assert (price.gap_hours, price.gap_micro) == (45, 45 * price.quote.hourly_micro)
    snapshot = put_back(snapshot, member, back)
    assert (snapshot.state, snapshot.bin_until, snapshot.delete_requested_at) == (State.READY, None, None)
    segments = list(UsageSegment.objects.filter(resource_id=snapshot.pk).order_by("started_at"))
    assert [(segment.resource_name, segment.started_at - NOW, segment.ended_at) for segment in segments] == [
        ("before-update", timedelta(0), NOW + 2.75 * HOUR),
        ("before-update (put back from the recycle bin)", 3 * HOUR, back),
        ("before-update", timedelta(days=2), None),
    ]
    assert not list(check_usage(back + HOUR))


def test_within_the_paid_hour_nothing_more_is_charged(member: Membership) -> None:
    snapshot = delete(charged(member), member, NOW + 0.25 * HOUR)
    snapshot = put_back(snapshot, member, NOW + 0.5 * HOUR)
    assert hours_of(snapshot, NOW + 0.9 * HOUR) == 1
    assert hours_of(snapshot, NOW + 1.5 * HOUR) == 2
    delete(snapshot, member, NOW + 0.6 * HOUR)
    put_back(snapshot, member, NOW + 0.7 * HOUR)
    assert hours_of(snapshot, NOW + 1.5 * HOUR) == 2
    assert not list(check_usage(NOW + 2 * HOUR))


def test_a_gap_in_an_invoiced_month_is_settled_by_the_next_invoice(member: Membership) -> None:
    snapshot = delete(charged(member), member, NOW + 3 * HOUR)
    Customer.objects.filter(pk=snapshot.customer_id).update(recycle_bin_days=60)
    april = datetime(2040, 4, 3, tzinfo=UTC)
    close_months(at=april)
    recycle_bin.lengthen([snapshot], 60)
    put_back(snapshot, member, april)
    close_months(at=datetime(2040, 5, 3, tzinfo=UTC))
    lines = InvoiceLine.objects.filter(segment__resource_id=snapshot.pk)
    until = datetime(2040, 4, 30, 17, 30, tzinfo=UTC)  # the end of April in Yangon
    assert sum(line.hours for line in lines) == -(-(until - NOW) // HOUR)
    assert not list(verification.all_differences(at=datetime(2040, 5, 3, 1, tzinfo=UTC)))


def test_a_taken_name_gets_a_free_one(member: Membership, client_for: Callable[..., Client]) -> None:
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    SnapshotFactory(volume=snapshot.volume, name="Before-Update")
    with pytest.raises(NameTaken) as refusal:
        recycle_bin.put_back(snapshot=snapshot, user=member.user)
    assert refusal.value.suggestion == "before-update-2"
    url = reverse("snapshots:put_back", args=[snapshot.pk])
    client = client_for(member.user)
    assert 'value="before-update-2"' in client.get(url).content.decode()
    refused = html.unescape(client.post(url, {"name": "before-update"}).content.decode())
    assert "Another snapshot has the name “before-update”" in refused
    client.post(url, {"name": "before-update", "use": "before-update-2"})
    snapshot.refresh_from_db()
    assert (snapshot.state, snapshot.name) == (State.READY, "before-update-2")


def test_the_page_says_what_putting_back_costs_and_charges_that(
    member: Membership, client_for: Callable[..., Client]
) -> None:
    snapshot = delete(charged(member), member, NOW + 3 * HOUR)
    client = client_for(member.user)
    url = reverse("snapshots:put_back", args=[snapshot.pk])
    with time_machine.travel(NOW + 27.5 * HOUR, tick=False):
        client = client_for(member.user)
        page = html.unescape(client.get(url).content.decode())
        shown = recycle_bin.quote_put_back(snapshot, at=NOW + 27.5 * HOUR)
    assert shown is not None
    assert "for the 25 hours since its deletion, as if it had never been deleted" in page
    with time_machine.travel(NOW + 28.5 * HOUR, tick=False):
        client = client_for(member.user)
        later = client.post(url, {"name": snapshot.name, "shown_micro": shown.gap_micro})
        assert "since it was shown" in html.unescape(later.content.decode())
        again = recycle_bin.quote_put_back(snapshot, at=NOW + 28.5 * HOUR)
        assert f'value="{again.gap_micro}"' in later.content.decode()  # type: ignore[union-attr]
        client.post(url, {"name": snapshot.name, "shown_micro": again.gap_micro})  # type: ignore[union-attr]
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY


def test_credits_have_to_cover_the_gap_and_the_next_hour() -> None:
    member = MembershipFactory()
    snapshot = charged(member)
    price = recycle_bin.quote_put_back
    buy_credits(customer=member.project.customer, amount_micro=2 * 20 * 10**6, at=NOW, by=None, reason="paid", key="1")
    snapshot = delete(snapshot, member, NOW + HOUR)
    with time_machine.travel(NOW + 3 * HOUR, tick=False):
        missing = price(snapshot, at=NOW + 3 * HOUR)
        assert missing is not None
        with pytest.raises(InsufficientCredit):
            recycle_bin.put_back(snapshot=snapshot, user=member.user)
    more = missing.gap_micro + 2 * missing.quote.hourly_micro
    buy_credits(customer=member.project.customer, amount_micro=more, at=NOW, by=None, reason="paid", key="2")
    assert put_back(snapshot, member, NOW + 3 * HOUR).state == State.READY


def test_the_gb_of_a_snapshot_in_the_bin_count_until_it_is_erased(member: Membership) -> None:
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    Customer.objects.filter(pk=snapshot.customer_id).update(snapshot_gb_quota=60, snapshot_quota=1)
    project = recycle_bin.checks.reload_project(snapshot.project, snapshot.customer_id)
    with pytest.raises(QuotaExceeded, match="50 of 60"):
        recycle_bin.limits.check_snapshot_quota(project, 20)
    other = SnapshotFactory(volume__project=project)
    with pytest.raises(QuotaExceeded, match="1 of 1"):
        recycle_bin.put_back(snapshot=snapshot, user=member.user)
    services.request_deletion(snapshot=other, user=member.user, even_if_last=True)
    recycle_bin.put_back(snapshot=snapshot, user=member.user)
    assert Snapshot.objects.get(pk=snapshot.pk).state == State.READY


def test_a_longer_time_counts_at_once_and_a_shorter_one_only_later(member: Membership) -> None:
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    deleted_at = snapshot.delete_requested_at
    customer = Customer.objects.get(pk=snapshot.customer_id)
    for days, expected in ((30, 30), (2, 30), (None, 30)):
        customer.recycle_bin_days = days
        customer.save()
        snapshot.refresh_from_db()
        assert snapshot.bin_until - deleted_at == timedelta(days=expected)
    assert recycle_bin.bin_days(customer) == 7
    customer.recycle_bin_days = 366
    with pytest.raises(ValidationError):
        customer.full_clean()
    with pytest.raises(IntegrityError), transaction.atomic():
        Customer.objects.filter(pk=customer.pk).update(recycle_bin_days=366)


def test_without_days_in_the_bin_a_snapshot_is_deleted_for_good(member: Membership) -> None:
    Customer.objects.filter(pk=member.project.customer_id).update(recycle_bin_days=0)
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    assert (snapshot.state, snapshot.bin_until) == (State.DELETING, None)


def test_failed_and_missing_snapshots_do_not_go_to_the_bin(member: Membership) -> None:
    volume = VolumeFactory(project=member.project)
    for snapshot in (
        SnapshotFactory(volume=volume, failed=True),
        SnapshotFactory(volume=volume, missing_since=NOW),
    ):
        assert services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True).state == State.DELETING


def test_the_scheduler_erases_it_when_its_time_is_over(member: Membership, storage_root: Path) -> None:
    snapshot = taken(member, storage_root)
    folder = next(storage_root.rglob(f"snapshots/{snapshot.pk}"))
    snapshot = services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    until = snapshot.bin_until
    assert until is not None
    assert recycle_bin.erase_due(now=until - timedelta(seconds=1)) == 0
    empty_recycle_bin()
    run_active_operations()
    assert folder.exists()
    assert not list(check_location(snapshot.location)), "fsck leaves what is in the bin"
    assert recycle_bin.erase_due(now=until) == 1
    assert recycle_bin.erase_due(now=until) == 0
    run_active_operations()
    assert not folder.exists()
    with pytest.raises(InvalidState):
        recycle_bin.put_back(snapshot=snapshot, user=member.user)
    assert not list(check_location(snapshot.location))


def test_a_default_that_became_longer_counts_before_erasing(member: Membership, settings: Any) -> None:
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    until = snapshot.bin_until
    assert until is not None
    settings.RECYCLE_BIN_DAYS = 9
    assert recycle_bin.erase_due(now=until) == 0
    snapshot.refresh_from_db()
    assert snapshot.bin_until == until + timedelta(days=2)


def test_deleting_now_needs_its_name(member: Membership, client_for: Callable[..., Client]) -> None:
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    with pytest.raises(WrongConfirmation):
        recycle_bin.erase(binned=snapshot, user=member.user, confirmation="another")
    url = reverse("snapshots:erase", args=[snapshot.pk])
    client = client_for(member.user)
    wrong = html.unescape(client.post(url, {"confirmation": "another"}).content.decode())
    assert "That is not its name" in wrong and 'value="another"' in wrong
    client.post(url, {"confirmation": snapshot.name})
    snapshot.refresh_from_db()
    assert (snapshot.state, snapshot.bin_until) == (State.DELETED, None)
    assert Operation.objects.get(snapshot=snapshot).kind == Operation.Kind.DELETE
    assert client.post(url, {"confirmation": snapshot.name}).status_code == 302
    assert Operation.objects.filter(snapshot=snapshot).count() == 1


def test_the_list_shows_members_what_is_theirs(member: Membership, client_for: Callable[..., Client]) -> None:
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    stranger = MembershipFactory()
    viewer = MembershipFactory(project=member.project, role=Role.VIEWER)
    page = client_for(member.user).get(reverse("snapshots:recycle_bin")).content.decode()
    assert snapshot.name in page and reverse("snapshots:put_back", args=[snapshot.pk]) in page
    assert snapshot.name not in client_for(stranger.user).get(reverse("snapshots:recycle_bin")).content.decode()
    page = client_for(viewer.user).get(reverse("snapshots:recycle_bin")).content.decode()
    assert snapshot.name in page and "put-back" not in page
    assert snapshot.name not in client_for(member.user).get("/recycle-bin/?q=nothing").content.decode()
    for name in ("put_back", "erase"):
        url = reverse(f"snapshots:{name}", args=[snapshot.pk])
        assert client_for(stranger.user).get(url).status_code == 404
        assert client_for(viewer.user).get(url).status_code == 403


@pytest.mark.parametrize("address", ["/", "/snapshots/"])
def test_an_empty_list_says_first_only_before_the_first(
    member: Membership, client_for: Callable[..., Client], address: str
) -> None:
    client, snapshot = client_for(member.user), charged(member)
    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    page = client.get(address).text
    assert "Take your first" not in page and "Open the recycle bin" in page
    Snapshot.objects.filter(pk=snapshot.pk).update(bin_until=None)
    page = client.get(address).text
    assert "Take your first" not in page and "Open the recycle bin" not in page


def test_where_space_runs_short_the_oldest_are_erased_and_members_notified(member: Membership) -> None:
    snapshots = [delete(charged(member, name=f"copy-{number}"), member, NOW + number * HOUR) for number in (2, 1, 3)]
    location = snapshots[0].location
    for snapshot in snapshots:
        snapshot.disks.update(allocated_bytes=3 * GIB)
    check = {"location": location, "checked_at": NOW, "free_bytes": 5 * GIB}
    StorageCheck.objects.create(**check)
    assert recycle_bin.free_space() == 2
    assert [snapshot.name for snapshot in Snapshot.objects.in_bin()] == ["copy-3"]
    titles = set(Notification.objects.filter(user=member.user).values_list("title", flat=True))
    assert titles == {"“copy-1” left the recycle bin early", "“copy-2” left the recycle bin early"}
    assert recycle_bin.free_space() == 0, "the effect is measured first"


@pytest.mark.both_databases
def test_the_database_refuses_to_erase_what_is_in_the_bin(member: Membership) -> None:
    snapshot = SnapshotFactory(volume__project=member.project, binned=True)
    for kind in ("delete", "clean_up"):
        with pytest.raises(IntegrityError), transaction.atomic():
            Operation.objects.create(kind=kind, snapshot=snapshot)
    with pytest.raises(IntegrityError), transaction.atomic():
        Snapshot.objects.filter(pk=snapshot.pk).update(state=State.READY, deleted_at=None)


def test_actions_of_the_recycle_bin_are_in_the_activity_log(member: Membership) -> None:
    snapshot = services.request_deletion(snapshot=charged(member), user=member.user, even_if_last=True)
    recycle_bin.put_back(snapshot=snapshot, user=member.user)
    assert Activity.objects.filter(action__in=["snapshot.bin", "snapshot.put_back"], actor=member.user).count() == 2


steps = st.lists(
    st.one_of(st.integers(1, 7200), st.sampled_from([1800, 3599, 3600, 3601, 7200]), st.integers(1, 25 * 86_400)),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@pytest.mark.both_databases
@hypothesis_settings(
    max_examples=int(os.environ.get("HISTORIES", "30")),
    derandomize="HISTORIES" not in os.environ,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking histories takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seconds=steps, size_gb=st.integers(1, 500), monthly=st.booleans())
def test_histories_with_the_bin_cost_what_the_oracle_says(seconds: list[int], size_gb: int, monthly: bool) -> None:
    """Deleted, put back, deleted …: as if only the last deletion had happened."""
    with transaction.atomic():
        member = MembershipFactory(project__customer__postpaid=True, project__customer__recycle_bin_days=365)
        snapshot = charged(member, size_gb=size_gb)
        at, ended_at = NOW, None
        for number, pause in enumerate(seconds):
            at += timedelta(seconds=pause)
            if monthly:
                close_months(at=at)
            if number % 2 == 0:
                snapshot, ended_at = delete(snapshot, member, at), at
            else:
                snapshot, ended_at = put_back(snapshot, member, at), None
            stay = oracle.Stay(1, NOW, ended_at, size_gb)
            assert hours_of(snapshot, at) in (
                len(oracle.started_hours(stay, at)),
                # Put back on the hour, the next one begins at this instant.
                len(oracle.started_hours(stay, at + timedelta(microseconds=1))),
            )
        end = at + timedelta(days=40, minutes=7)
        close_months(at=end)
        stay = oracle.Stay(1, NOW, ended_at, size_gb)
        assert hours_of(snapshot, end) == len(oracle.started_hours(stay, end))
        assert not list(check_usage(end))
        assert not list(verification.all_differences(at=end))
        transaction.set_rollback(True)


def taken(member: Membership, storage_root: Path) -> Snapshot:
    """A snapshot of real bytes."""
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    put_volume(storage_root, volume, content(b"bytes"))
    snapshot = services.request_snapshot(source=volume, name="before-update", user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    return snapshot


def die_in(action: Callable[[], object], kill_at: int) -> bool:
    """Run the action in a process that kills itself at its n-th statement. Returns whether it survived."""
    connections.close_all()
    if connection.vendor == "postgresql":
        connection.close_pool()  # its sockets must not be shared with the child
    child = os.fork()
    if not child:
        try:
            steps = Steps(kill_at)
            connection.ensure_connection()
            with connection.execute_wrapper(steps.on_statement):
                action()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["bin", "put_back", "erase"])
def test_killed_at_any_statement_nothing_is_lost_or_charged_twice(name: str, storage_root: Path) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    snapshot = taken(member, storage_root)
    folder = next(storage_root.rglob(f"snapshots/{snapshot.pk}"))
    deed = {
        "bin": lambda: services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True),
        "put_back": lambda: recycle_bin.put_back(snapshot=snapshot, user=member.user),
        "erase": lambda: recycle_bin.erase(binned=snapshot, user=member.user, confirmation=snapshot.name),
    }
    if name != "bin":
        deed["bin"]()
    before, after = {
        "bin": ((State.READY, False, 1), (State.DELETED, True, 0)),
        "put_back": ((State.DELETED, True, 0), (State.READY, False, 1)),
        "erase": ((State.DELETED, True, 0), (State.DELETED, False, 0)),
    }[name]

    def situation() -> tuple[str, bool, int]:
        snapshot.refresh_from_db()
        running = UsageSegment.objects.filter(resource_id=snapshot.pk, ended_at=None).count()
        return snapshot.state, snapshot.is_in_bin, running

    for kill_at in range(1, 200):
        survived = die_in(deed[name], kill_at)
        assert situation() in (before, after)
        assert folder.exists()
        assert not list(check_usage(snapshot.created_at + timedelta(days=1)))
        if survived or situation() == after:
            break
    assert kill_at > 5
    deed[name]() if situation() == before else None
    assert situation() == after
    deletions = Operation.objects.filter(snapshot=snapshot, kind=Operation.Kind.DELETE).count()
    assert deletions == (1 if name == "erase" else 0)
    run_active_operations()
    assert folder.exists() == (name != "erase")
    assert {location.pk for location in Location.objects.all() if list(check_location(location))} == set()
