"""A deleted volume waits in the recycle bin, costs nothing there, and comes back with its bytes."""

import html
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse

from billing import verification
from billing.charges import cost_so_far
from billing.models import ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer, Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import Location, Volume
from cng_portal.monitoring.models import StorageCheck
from cng_portal.notifications.models import Notification
from snapshots import recycle_bin
from snapshots.errors import InvalidState, QuotaExceeded, WrongConfirmation
from snapshots.maintenance.fsck import check_location
from snapshots.management.commands.scheduler import empty_recycle_bin
from snapshots.models import Operation
from snapshots.storage.contract import GIB
from snapshots.usage_check import check_usage
from snapshots.volumes import recycle_bin as volume_bin
from snapshots.volumes.charges import start_charging_volume
from snapshots.volumes.services import request_volume_deletion, why_gone
from tests.factories import BackupScheduleFactory, MembershipFactory, SnapshotFactory, VolumeFactory
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere
from tests.snapshots.test_recycle_bin import die_in

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
NOW = datetime(2040, 3, 5, 10, 17, 23, tzinfo=UTC)


@pytest.fixture(autouse=True)
def recycle_bin_days(settings: Any) -> None:
    settings.RECYCLE_BIN_DAYS = 7


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


def charged(member: Membership, *, at: datetime = NOW, name: str = "db-data", size_gb: int = 50) -> Volume:
    """An available volume that is charged from `at` on."""
    location = Location.objects.first()
    fields = {"location": location} if location else {}
    volume = VolumeFactory(project=member.project, name=name, size_gb=size_gb, available_at=at, created_at=at, **fields)
    if location is None:
        sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    assert start_charging_volume(volume, at=at)
    return volume


def stored(member: Membership, storage_root: Path) -> tuple[Volume, Path]:
    volume = charged(member, size_gb=1)
    put_volume(storage_root, volume, content(b"bytes"))
    return volume, next(storage_root.rglob(f"volumes/{volume.pk}.img"))


def delete(volume: Volume, member: Membership, at: datetime) -> Volume:
    with time_machine.travel(at, tick=False):
        return request_volume_deletion(volume=volume, user=member.user, confirmation=volume.name)


def put_back(volume: Volume, member: Membership, at: datetime) -> Volume:
    with time_machine.travel(at, tick=False):
        return volume_bin.put_back(volume=volume, user=member.user)


def hours_of(volume: Volume, at: datetime) -> int:
    cost = cost_so_far(resource_id=volume.pk, at=at)
    return cost.hours if cost else 0


def test_a_deleted_volume_waits_in_the_bin_and_costs_nothing(member: Membership) -> None:
    schedule = BackupScheduleFactory(volume=charged(member), vm=None)
    volume = delete(schedule.volume, member, NOW + 2.75 * HOUR)
    assert volume.bin_until == NOW + 2.75 * HOUR + timedelta(days=7)
    assert volume.deleted_at == volume.delete_requested_at
    assert hours_of(volume, NOW + timedelta(days=3)) == 3
    assert not Operation.objects.filter(volume=volume).exists()
    schedule.refresh_from_db()
    assert schedule.deleted_at
    assert why_gone(volume) == "“db-data” is in the recycle bin. Put it back first."


def test_putting_it_back_charges_the_hours_between(member: Membership) -> None:
    volume = delete(charged(member), member, NOW + 2.75 * HOUR)
    back = NOW + 47.5 * HOUR
    price = volume_bin.quote_put_back(volume, at=back)
    assert price is not None
    assert (price.gap_hours, price.gap_micro) == (45, 45 * price.quote.hourly_micro)
    volume = put_back(volume, member, back)
    assert (volume.state, volume.bin_until, volume.deleted_at) == (Volume.State.AVAILABLE, None, None)
    names = UsageSegment.objects.filter(resource_id=volume.pk).order_by("started_at").values_list("resource_name")
    assert [name for (name,) in names] == ["db-data", "db-data (put back from the recycle bin)", "db-data"]
    assert hours_of(volume, back) == 48
    assert not list(check_usage(back + HOUR))
    assert not list(verification.all_differences(at=back + HOUR))


def test_its_gigabytes_count_until_it_is_erased(member: Membership) -> None:
    volume = delete(charged(member), member, NOW)
    Customer.objects.filter(pk=volume.customer_id).update(volume_gb_quota=60, volume_quota=1)
    with pytest.raises(QuotaExceeded, match="50 of 60"):
        recycle_bin.limits.check_volume_quota(volume.project_id, [20])
    other = VolumeFactory(project=member.project, location=volume.location)
    with pytest.raises(QuotaExceeded, match="1 of 1"):
        put_back(volume, member, NOW + HOUR)
    delete(other, member, NOW + HOUR)
    assert put_back(volume, member, NOW + HOUR).state == Volume.State.AVAILABLE


def test_the_scheduler_erases_it_when_its_time_is_over(member: Membership, storage_root: Path) -> None:
    volume, file = stored(member, storage_root)
    volume = request_volume_deletion(volume=volume, user=member.user, confirmation=volume.name)
    until = volume.bin_until
    assert until is not None
    assert recycle_bin.erase_due(now=until - timedelta(seconds=1)) == 0
    empty_recycle_bin()
    run_active_operations()
    assert file.exists()
    assert not list(check_location(volume.location)), "fsck leaves what is in the bin"
    assert (recycle_bin.erase_due(now=until), recycle_bin.erase_due(now=until)) == (1, 0)
    run_active_operations()
    assert not file.exists()
    with pytest.raises(InvalidState):
        volume_bin.put_back(volume=volume, user=member.user)
    volume.refresh_from_db()
    assert volume.is_deleted and not volume.is_in_bin
    assert not list(check_location(volume.location))


def test_it_comes_back_with_its_bytes(member: Membership, storage_root: Path) -> None:
    volume, file = stored(member, storage_root)
    before = file.read_bytes()[:4096]
    volume = request_volume_deletion(volume=volume, user=member.user, confirmation=volume.name)
    file.unlink()
    assert [finding.code for finding in check_location(volume.location)] == ["volume-missing"]
    put_volume(storage_root, volume, content(b"bytes"))
    volume_bin.put_back(volume=volume, user=member.user)
    assert file.read_bytes()[:4096] == before
    assert not list(check_location(volume.location))


def test_a_longer_time_counts_at_once(member: Membership) -> None:
    volume = delete(charged(member), member, NOW)
    customer = Customer.objects.get(pk=volume.customer_id)
    for days, expected in ((30, 30), (2, 30)):
        customer.recycle_bin_days = days
        customer.save()
        volume.refresh_from_db()
        assert volume.bin_until == NOW + timedelta(days=expected)


def test_where_space_runs_short_the_oldest_goes_first(member: Membership) -> None:
    volume = delete(charged(member), member, NOW)
    snapshot = SnapshotFactory(volume=charged(member, name="logs"), binned=True, delete_requested_at=NOW + HOUR)
    StorageCheck.objects.create(location=volume.location, checked_at=NOW, free_bytes=5 * GIB)
    assert recycle_bin.free_space() == 1
    assert not Volume.objects.in_bin().exists()
    assert type(snapshot).objects.in_bin().count() == 1
    assert Notification.objects.get(user=member.user).title == "“db-data” left the recycle bin early"
    assert recycle_bin.free_space() == 0, "the effect is measured first"


def test_deleting_now_needs_its_name(member: Membership, client_for: Callable[..., Client]) -> None:
    volume = delete(charged(member), member, NOW)
    with pytest.raises(WrongConfirmation):
        recycle_bin.erase(binned=volume, user=member.user, confirmation="another")
    url, client = reverse("snapshots:erase_volume", args=[volume.pk]), client_for(member.user)
    wrong = html.unescape(client.post(url, {"confirmation": "another"}).text)
    assert "That is not its name" in wrong and 'value="another"' in wrong
    for _twice in range(2):
        assert client.post(url, {"confirmation": volume.name}).status_code == 302
    assert Operation.objects.get(volume=volume).kind == Operation.Kind.DELETE_VOLUME


def test_the_pages_say_what_deleting_and_putting_back_do(member: Membership, client_for: Callable[..., Client]) -> None:
    with time_machine.travel(NOW + 3 * HOUR, tick=False):
        volume, client = charged(member), client_for(member.user)
        BackupScheduleFactory(volume=volume, vm=None)
        url = reverse("snapshots:delete_volume", args=[volume.pk])
        page = html.unescape(client.get(url).text)
        assert "It goes to the recycle bin for 7 days" in page and "can't be undone" not in page
        assert client.post(url, {"confirmation": volume.name}).url == reverse("snapshots:volume", args=[volume.pk])
        assert client.post(url, {"confirmation": volume.name}).status_code == 302, "sent twice"
    with time_machine.travel(NOW + 27.5 * HOUR, tick=False):
        client = client_for(member.user)
        url = reverse("snapshots:put_back_volume", args=[volume.pk])
        assert url in client.get(reverse("snapshots:volume", args=[volume.pk])).text
        page = html.unescape(client.get(url).text)
        assert "for the 25 hours since its deletion, as if it had never been deleted" in page
        assert "Its snapshot schedules ended with the deletion" in page
        refused = html.unescape(client.post(url, {"shown_micro": 1}).text)
        assert "since it was shown" in refused
        shown = volume_bin.quote_put_back(volume, at=NOW + 27.5 * HOUR)
        assert shown and f'value="{shown.gap_micro}"' in refused
        client.post(url, {"shown_micro": shown.gap_micro})
    volume.refresh_from_db()
    assert volume.state == Volume.State.AVAILABLE


def test_the_list_shows_members_what_is_theirs(member: Membership, client_for: Callable[..., Client]) -> None:
    volume = delete(charged(member), member, NOW)
    stranger, viewer = MembershipFactory(), MembershipFactory(project=member.project, role=Role.VIEWER)
    url = reverse("snapshots:volumes_in_bin")
    page = client_for(member.user).get(url).text
    assert volume.name in page and reverse("snapshots:put_back_volume", args=[volume.pk]) in page
    assert volume.name not in client_for(stranger.user).get(url).text
    page = client_for(viewer.user).get(url).text
    assert volume.name in page and "put-back" not in page
    assert volume.name not in client_for(member.user).get(f"{url}?q=nothing").text
    assert volume.name not in client_for(member.user).get(reverse("snapshots:volumes")).text


def test_what_happened_is_in_the_activity_log(member: Membership) -> None:
    put_back(delete(charged(member), member, NOW), member, NOW + HOUR)
    assert Activity.objects.filter(action__in=["volume.bin", "volume.put_back"], actor=member.user).count() == 2


@pytest.mark.both_databases
def test_the_database_refuses_to_erase_a_volume_in_the_bin(member: Membership) -> None:
    volume = VolumeFactory(project=member.project, binned=True)
    for kind in ("delete_volume", "clean_up"):
        with pytest.raises(IntegrityError), transaction.atomic():
            Operation.objects.create(kind=kind, volume=volume)
    with pytest.raises(IntegrityError), transaction.atomic():
        Volume.objects.filter(pk=volume.pk).update(
            state=Volume.State.AVAILABLE, delete_requested_at=None, deleted_at=None
        )


@pytest.mark.slow
@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["bin", "put_back", "erase"])
def test_killed_at_any_statement_no_volume_is_lost_or_charged_twice(name: str, storage_root: Path) -> None:
    member = MembershipFactory(project__customer__postpaid=True)
    volume, file = stored(member, storage_root)
    actions: dict[str, Callable[[], object]] = {
        "bin": lambda: request_volume_deletion(volume=volume, user=member.user, confirmation=volume.name),
        "put_back": lambda: volume_bin.put_back(volume=volume, user=member.user),
        "erase": lambda: recycle_bin.erase(binned=volume, user=member.user, confirmation=volume.name),
    }
    if name != "bin":
        actions["bin"]()
    before, after = {
        "bin": (("available", False, 1), ("deleting", True, 0)),
        "put_back": (("deleting", True, 0), ("available", False, 1)),
        "erase": (("deleting", True, 0), ("deleting", False, 0)),
    }[name]

    def outcome() -> tuple[str, bool, int]:
        volume.refresh_from_db()
        running = UsageSegment.objects.filter(resource_id=volume.pk, ended_at=None).count()
        return volume.state, volume.is_in_bin, running

    for kill_at in range(1, 200):
        survived = die_in(actions[name], kill_at)
        assert outcome() in (before, after)
        assert file.exists()
        if survived or outcome() == after:
            break
    assert kill_at > 5
    if outcome() == before:
        actions[name]()
    assert outcome() == after
    assert Operation.objects.filter(volume=volume).count() == (1 if name == "erase" else 0)
    run_active_operations()
    assert file.exists() == (name != "erase")
    assert not list(check_location(volume.location))
