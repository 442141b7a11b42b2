"""Volumes charged without a user's request: older than the price, from a cloud, imported, or changed in Django admin."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import verification
from billing.charges import cost_so_far
from billing.models import ServiceKind, UsageSegment
from billing.pricing.block_storage import count_uncharged
from billing.pricing.notices import announce_prices
from billing.pricing.packages import create_package, retire_package, set_price
from billing.scheduling import run_due
from cng_portal.accounts.models import Project, User
from cng_portal.inventory.models import CloudProject, Location, Volume
from snapshots.cloudsync.sync import sync_location
from snapshots.models import Operation
from snapshots.operations.handlers import record_size
from snapshots.volumes import charges
from snapshots.volumes.charges import (
    change_volume_charge,
    charge_volumes,
    quote_volumes,
    start_charging_volume,
    stop_charging_volume,
)
from tests.factories import LocationFactory, OperationFactory, ProjectFactory, UserFactory, VolumeFactory
from tests.smtp import sent_mails
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.test_sync_races import Cloud, volume_of

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]

BLOCK_STORAGE = ServiceKind.BLOCK_STORAGE
FIRST_PRICE = datetime(2040, 3, 1, 6, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer__postpaid=True)


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(member_of=project, customer=project.customer)


@pytest.fixture
def location() -> Location:
    return LocationFactory(code="1CNG-YGN-AZ01")


def volume_in(project: Project, location: Location, **fields: Any) -> Volume:
    return VolumeFactory(project=project, location=location, **{"size_gb": 50} | fields)


def sell(location: Location, starts_at: datetime = FIRST_PRICE, **fields: Any) -> Any:
    return create_package(location=location, kind=BLOCK_STORAGE, rate_micro=100_000, starts_at=starts_at, **fields)


def segments(volume: Volume) -> list[tuple[datetime, datetime | None, int]]:
    own = UsageSegment.objects.filter(resource_id=volume.pk, voided=False).order_by("started_at")
    return list(own.values_list("started_at", "ended_at", "size_gb"))


def test_a_volume_that_is_older_than_the_price_is_charged_from_its_start(project: Project, location: Location) -> None:
    sell(location)
    old, new = volume_in(project, location), volume_in(project, location, available_at=FIRST_PRICE + HOUR)
    unfinished = volume_in(project, location, state=Volume.State.CREATING)
    gone = volume_in(project, location, gone=True)
    charge_volumes(at=FIRST_PRICE - timedelta(seconds=1))
    assert not UsageSegment.objects.exists()
    for _time in range(2):
        charge_volumes(at=FIRST_PRICE + 3 * HOUR)  # the scheduler was late
    assert segments(old) == [(FIRST_PRICE, None, 50)]
    assert segments(new) == [(FIRST_PRICE + HOUR, None, 50)]
    assert not segments(unfinished) and not segments(gone)
    assert cost_so_far(resource_id=old.pk, at=FIRST_PRICE + 3 * HOUR).label == "K 15.00"
    assert verification.all_differences(at=FIRST_PRICE + 3 * HOUR) == []


def test_where_block_storage_is_not_sold_volumes_cost_nothing(project: Project, location: Location) -> None:
    sell(LocationFactory())
    sell(location, currency="USD")
    volume = volume_in(project, location)
    charge_volumes(at=FIRST_PRICE + HOUR)
    assert start_charging_volume(volume, at=FIRST_PRICE + HOUR) is None
    assert not stop_charging_volume(volume, at=FIRST_PRICE + HOUR)
    assert quote_volumes([volume], at=FIRST_PRICE + HOUR) == {}
    assert verification.all_differences(at=FIRST_PRICE + HOUR) == []


def test_usage_keeps_its_price_when_the_package_is_retired_and_new_volumes_are_free(
    project: Project, location: Location
) -> None:
    package = sell(location, datetime(2026, 1, 1, tzinfo=UTC))  # has begun by the database's clock
    volume = volume_in(project, location, available_at=FIRST_PRICE)
    charge_volumes(at=FIRST_PRICE)
    retire_package(package=package, by=None)
    later = volume_in(project, location, available_at=FIRST_PRICE + HOUR)
    charge_volumes(at=FIRST_PRICE + 2 * HOUR)
    assert segments(volume) == [(FIRST_PRICE, None, 50)] and not segments(later)
    # another package charges the later one from its own start on
    sell(location, FIRST_PRICE + timedelta(days=9), name="again")
    at = FIRST_PRICE + timedelta(days=9, hours=1)
    charge_volumes(at=at)
    assert segments(later) == [(FIRST_PRICE + timedelta(days=9), None, 50)]
    assert verification.all_differences(at=at) == []


def test_one_volume_that_fails_does_not_stop_the_others(
    project: Project, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    sell(location)
    volumes = [volume_in(ProjectFactory() if number else project, location) for number in range(3)]
    really_start = charges.start_charging_volume

    def start(volume: Volume, *, at: datetime) -> Any:
        if volume == volumes[1]:
            raise RuntimeError("broken")
        return really_start(volume, at=at)

    monkeypatch.setattr(charges, "start_charging_volume", start)
    with pytest.raises(ExceptionGroup):
        charge_volumes(at=FIRST_PRICE)
    assert [len(segments(volume)) for volume in volumes] == [1, 0, 1]


def test_size_project_name_and_deletion_reach_the_charge(project: Project, location: Location) -> None:
    sell(location)
    volume = volume_in(project, location, available_at=FIRST_PRICE)
    other = ProjectFactory(customer=project.customer)
    charge_volumes(at=FIRST_PRICE)
    Volume.objects.update(size_gb=80, project=other, name="renamed")
    charge_volumes(at=FIRST_PRICE + 1.5 * HOUR)
    assert segments(volume) == [(FIRST_PRICE, FIRST_PRICE + 1.5 * HOUR, 50), (FIRST_PRICE + 2 * HOUR, None, 80)]
    now = UsageSegment.objects.get(ended_at=None)
    assert (now.project, now.resource_name) == (other, "renamed")
    assert verification.all_differences(at=FIRST_PRICE + 2 * HOUR) == []
    at = FIRST_PRICE + 4 * HOUR
    Volume.objects.update(state="deleting", delete_requested_at=at)
    charge_volumes(at=at + HOUR)
    assert segments(volume)[-1] == (FIRST_PRICE + 2 * HOUR, at, 80)
    assert verification.all_differences(at=at + HOUR) == []


def test_a_page_of_volumes_has_their_prices_with_two_queries(
    project: Project, location: Location, django_assert_num_queries: Any
) -> None:
    sell(location)
    volumes = [volume_in(project, location) for _number in range(5)]
    free = volume_in(project, LocationFactory())
    charge_volumes(at=FIRST_PRICE)
    with django_assert_num_queries(2):
        quotes = quote_volumes([*volumes, free], at=FIRST_PRICE)
    assert set(quotes) == {volume.pk for volume in volumes}
    assert quotes[volumes[0].pk].summary == "K 5.00 / Hour / 50 GB"


def test_owners_are_notified_of_the_first_price_when_it_is_planned(
    project: Project, owner: User, location: Location
) -> None:
    volume_in(project, location)
    volume_in(project, location, size_gb=100)
    volume_in(project, location, gone=True)
    member = UserFactory(member_of=project, member_of__role="member")
    stranger = UserFactory(member_of=ProjectFactory())
    package = sell(location, datetime(2090, 3, 1, 6, 30, tzinfo=UTC))
    announce_prices(at=timezone.now())
    [notice] = owner.notifications.all()
    assert (notice.level, notice.title) == ("warning", "Volumes in 1CNG-YGN-AZ01 will be charged")
    assert "costs K 0.1000 per GB and hour. Your 2 volumes there, 150 GB, will then cost K 15.00 an hour" in notice.text
    assert "1 Mar 2090, 13:00" in notice.text and notice.url == reverse("billing:prices")
    assert [mail.to for mail in sent_mails()] == [[owner.email]]
    assert not member.notifications.exists() and not stranger.notifications.exists()
    retire_package(package=package, by=None)
    assert "stay free" in owner.notifications.order_by("-created_at")[0].title


def test_only_the_withdrawal_of_an_announced_price_is_notified(
    project: Project, owner: User, location: Location
) -> None:
    volume_in(project, location)
    package = sell(location, datetime(2090, 3, 1, tzinfo=UTC))
    set_price(package=package, rate_micro=200_000, starts_at=datetime(2090, 4, 1, tzinfo=UTC), by=None)
    announce_prices(at=timezone.now())
    retire_package(package=package, by=None)
    titles = list(owner.notifications.order_by("created_at").values_list("title", flat=True))
    assert titles == ["Volumes in 1CNG-YGN-AZ01 will be charged", "Volumes in 1CNG-YGN-AZ01 stay free of charge"]


def test_one_customer_who_cannot_be_notified_does_not_stop_the_others(
    project: Project, owner: User, location: Location
) -> None:
    sell(location, datetime(2090, 3, 1, tzinfo=UTC))
    broken = [UserFactory(member_of=project, customer=project.customer) for project in ProjectFactory.create_batch(5)]
    User.objects.filter(pk__in=[user.pk for user in broken]).update(date_format="broken")
    for project in Project.objects.all():
        volume_in(project, location)
    with pytest.raises(ExceptionGroup):
        run_due(at=datetime(2090, 2, 1, tzinfo=UTC))
    assert owner.notifications.count() == 1


def test_customers_whose_first_volume_follows_the_planned_price_are_notified(
    project: Project, owner: User, location: Location
) -> None:
    sell(location, datetime(2090, 3, 1, tzinfo=UTC))
    assert not owner.notifications.exists()
    volume_in(project, location)
    for _time in range(2):
        run_due(at=datetime(2090, 2, 1, tzinfo=UTC))
    assert owner.notifications.count() == 1


@pytest.fixture
def cloud(settings: Any, tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> Location:
    settings.STORAGE = {"cloud": {"driver": f"{Cloud.__module__}.Cloud", "options": {"root": str(tmp_path / "cloud")}}}
    monkeypatch.setattr(Cloud, "listed_snapshots", [])
    location = LocationFactory(driver="cloud")
    CloudProject.objects.create(location=location, external_id="0a1b2c", name="shop", project=project)
    return location


def test_volumes_of_a_cloud_are_charged_from_their_import_on_and_members_are_notified(
    project: Project, owner: User, cloud: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    sell_everywhere(100_000, BLOCK_STORAGE)
    now = timezone.now()
    listed = [replace(volume_of(number), size_gb=50) for number in range(3)]
    unready = replace(volume_of(9), is_ready=False, is_creating=True)
    monkeypatch.setattr(Cloud, "listed_volumes", [*listed, unready])
    sync_location(cloud, now=now)
    first = Volume.objects.get(backend_ref="volume-0")
    assert first.available_at == now and segments(first) == [(now, None, 50)]
    [notice] = owner.notifications.all()
    assert "3 volumes of 150 GB" in notice.text and "K 15.00 an hour" in notice.text
    # grown and renamed in the cloud, one gone, the last one ready
    grown = replace(listed[0], size_gb=80, name="renamed")
    monkeypatch.setattr(Cloud, "listed_volumes", [grown, listed[1], replace(unready, is_ready=True, is_creating=False)])
    sync_location(cloud, now=now + HOUR)
    assert segments(first) == [(now, now + HOUR, 50), (now + HOUR, None, 80)]
    assert UsageSegment.objects.get(resource_id=first.pk, ended_at=None).resource_name == "renamed"
    gone = Volume.objects.get(backend_ref="volume-2")
    assert segments(gone) == [(now, now + HOUR, 50)]
    assert segments(Volume.objects.get(backend_ref="volume-9")) == [(now + HOUR, None, 1)]
    assert verification.all_differences(at=now + 2 * HOUR) == []
    # back again: the time between is free
    monkeypatch.setattr(Cloud, "listed_volumes", [grown, *listed[1:]])
    sync_location(cloud, now=now + 5 * HOUR)
    assert segments(gone) == [(now, now + HOUR, 50), (now + 5 * HOUR, None, 50)]
    assert verification.all_differences(at=now + 6 * HOUR) == []


def test_a_volume_whose_deletion_was_requested_here_stays_so_while_the_cloud_lists_it(
    project: Project, cloud: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cloud, "listed_volumes", [volume_of(1)])
    now = timezone.now()
    sync_location(cloud, now=now)
    Volume.objects.update(state="deleting", delete_requested_at=now)
    sync_location(cloud, now=now + HOUR)
    assert Volume.objects.get().state == "deleting"


def test_a_list_from_before_a_growth_does_not_undo_it(
    project: Project, cloud: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    sell_everywhere(100_000, BLOCK_STORAGE)
    listed = replace(volume_of(1), size_gb=50)
    monkeypatch.setattr(Cloud, "listed_volumes", [listed])
    now = timezone.now()
    sync_location(cloud, now=now - 2 * HOUR)
    volume = Volume.objects.get()
    growth = {"kind": Operation.Kind.EXTEND_VOLUME, "volume": volume, "new_size_gb": 80, "snapshot": None}
    OperationFactory(**growth, succeeded=True)
    record_size(volume, 80, now)
    sync_location(cloud, now=now - HOUR)
    volume.refresh_from_db()
    assert volume.size_gb == 80
    assert segments(volume) == [(now - 2 * HOUR, now, 50), (now, None, 80)]
    monkeypatch.setattr(Cloud, "listed_volumes", [replace(listed, size_gb=90)])
    sync_location(cloud, now=now + HOUR)
    volume.refresh_from_db()
    assert volume.size_gb == 90
    assert verification.all_differences(at=now + 2 * HOUR) == []


def test_an_imported_volume_is_charged_and_members_are_notified(
    project: Project, owner: User, location: Location, tmp_path: Path, storage_root: Path
) -> None:
    sell_everywhere(100_000, BLOCK_STORAGE)
    image = tmp_path / "disk.raw"
    image.write_bytes(b"data" * 1000)
    call_command("import_volume", str(image), project=str(project.pk), location=location.pk, name="from elsewhere")
    volume = Volume.objects.get()
    assert segments(volume) == [(volume.available_at, None, 1)]
    assert "1 volume of 1 GB" in owner.notifications.get().text


def test_a_volume_that_is_renamed_or_marked_as_deleted_in_admin_is_charged_so(
    project: Project, location: Location, client_for: Callable[..., Client]
) -> None:
    sell_everywhere(100_000, BLOCK_STORAGE)
    start = timezone.now() - timedelta(days=1)
    volume = volume_in(project, location, available_at=start)
    start_charging_volume(volume, at=start)
    support = client_for(UserFactory(admin=True))
    page = reverse("admin:inventory_volume_change", args=[volume.pk])
    form = {"name": "renamed", "position": 0, "vm": "", "deleted_at_0": "", "deleted_at_1": ""}
    assert support.post(page, form).status_code == 302
    assert UsageSegment.objects.get().resource_name == "renamed"
    tomorrow = timezone.now() + timedelta(days=1)
    deleted = {"deleted_at_0": f"{tomorrow:%Y-%m-%d}", "deleted_at_1": "10:00:00"}
    assert "in the future" in support.post(page, form | deleted).content.decode()
    deleted["deleted_at_0"] = f"{start + timedelta(hours=30) - timedelta(days=1):%Y-%m-%d}"
    deleted["deleted_at_1"] = f"{start + timedelta(hours=6):%H:%M:%S}"
    assert support.post(page, form | deleted).status_code == 302
    volume.refresh_from_db()
    assert UsageSegment.objects.get().ended_at == volume.deleted_at
    assert verification.all_differences(at=timezone.now()) == []


def test_a_volume_whose_deletion_is_undone_is_charged_as_if_it_had_never_been_deleted(
    project: Project, owner: User, location: Location
) -> None:
    sell(location)
    volume = volume_in(project, location, available_at=FIRST_PRICE)
    charge_volumes(at=FIRST_PRICE)
    Volume.objects.update(deleted_at=FIRST_PRICE + 10 * HOUR)
    charge_volumes(at=FIRST_PRICE + 11 * HOUR)
    Volume.objects.update(deleted_at=None)
    for _time in range(2):
        charge_volumes(at=FIRST_PRICE + 40 * HOUR + timedelta(minutes=7))  # the scheduler was late
    continued = FIRST_PRICE + 10 * HOUR
    assert segments(volume) == [(FIRST_PRICE, continued, 50), (continued, None, 50)]
    assert cost_so_far(resource_id=volume.pk, at=FIRST_PRICE + 50 * HOUR).label == "K 250.00"
    [notice] = owner.notifications.all()
    assert "as if it had never been deleted" in notice.text
    assert verification.all_differences(at=FIRST_PRICE + 50 * HOUR) == []


def test_volumes_without_a_charge_are_counted_by_location_and_currency(project: Project, location: Location) -> None:
    volume_in(project, location)
    volume_in(project, location)
    volume_in(ProjectFactory(), location)
    volume_in(ProjectFactory(customer__currency="USD"), location)
    assert count_uncharged(location.pk, "MMK") == (3, 2)
    sell(location, FIRST_PRICE)
    charge_volumes(at=FIRST_PRICE)
    assert count_uncharged(location.pk, "MMK") == (0, 0)


def test_changing_a_volume_that_is_not_charged_does_nothing(project: Project, location: Location) -> None:
    assert change_volume_charge(volume_in(project, location), at=FIRST_PRICE) is None
