"""Pages of actions on a volume: they work, explain refusals, and are closed to viewers and strangers."""

from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind
from cng_portal.accounts.models import Customer, Membership, Role
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import lists
from snapshots.models import Operation
from snapshots.storage.local import LocalDriver
from snapshots.volumes import services as volume_services
from snapshots.volumes.charges import start_charging_volume
from tests.factories import (
    LocationFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db

ACTIONS = ["grow", "attach", "detach", "rename", "delete"]


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, project__name="Default")


@pytest.fixture
def volume(storage_root: Path, member: Membership) -> Volume:
    """A volume of 50 GB, charged K 0.4 per GB and hour."""
    volume = VolumeFactory(project=member.project, name="data", size_gb=50)
    put_volume(storage_root, volume, content(b"bytes"))
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    start_charging_volume(volume, at=timezone.now())
    return volume


@pytest.fixture
def machine(member: Membership, volume: Volume) -> VirtualMachine:
    return VirtualMachineFactory(project=member.project, location=volume.location, stopped=True, name="web-01")


@pytest.fixture
def client(member: Membership, client_for: Callable[..., Client]) -> Client:
    return client_for(member.user)


def address(action: str, volume: Volume) -> str:
    return reverse(f"snapshots:{action}_volume" if action else "snapshots:volume", args=[volume.pk])


def text_of(response: Any) -> str:
    return " ".join(unescape(response.content.decode()).split())


def read(client: Client, url: str, status: int = 200) -> str:
    response = client.get(url)
    assert response.status_code == status
    return text_of(response)


@pytest.mark.parametrize("action", ACTIONS)
def test_strangers_get_a_404_and_viewers_a_reason(
    client_for: Callable[..., Client], member: Membership, volume: Volume, action: str
) -> None:
    stranger = UserFactory(member_of=ProjectFactory())
    viewer = MembershipFactory(project=member.project, role=Role.VIEWER).user
    for method in ("get", "post"):
        assert getattr(client_for(stranger), method)(address(action, volume)).status_code == 404
        refused = getattr(client_for(viewer), method)(address(action, volume))
        assert refused.status_code == 403 and "does not allow changes" in text_of(refused)
    assert "is-danger" not in read(client_for(viewer), address("", volume))


@pytest.mark.parametrize("action", ACTIONS)
def test_a_deleted_volume_has_only_its_page(client: Client, volume: Volume, action: str) -> None:
    at = timezone.now()
    Volume.objects.update(state=Volume.State.DELETING, delete_requested_at=at, deleted_at=at)
    read(client, address(action, volume), 404)
    assert "This volume is deleted" in read(client, address("", volume))


def test_the_page_and_the_list_say_what_a_volume_costs(client: Client, volume: Volume) -> None:
    page = read(client, address("", volume))
    assert "50 GB × K 0.4000 = K 20.00 an hour" in page and "K 14,640.00" in page and "Unprotected" in page
    assert "K 20.00" in read(client, reverse("snapshots:volumes"))


def test_where_block_storage_is_not_sold_the_pages_say_that_it_is_free(
    client: Client, member: Membership, storage_root: Path
) -> None:
    volume = VolumeFactory(project=member.project)
    put_volume(storage_root, volume, content(b"bytes"))
    assert "This volume is free of charge" in read(client, address("", volume))
    page = read(client, address("grow", volume) + "?size_gb=2")
    assert "free of charge" in page and 'name="shown_hourly_micro" value="0"' in page
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)  # while the user read the page
    page = text_of(client.post(address("grow", volume), {"size_gb": 2, "shown_hourly_micro": 0}))
    assert "The price has changed to K 0.80 an hour" in page and not Operation.objects.exists()


def test_the_menu_offers_what_is_possible(client: Client, volume: Volume, machine: VirtualMachine) -> None:
    url = reverse("snapshots:volume_menu", args=[volume.pk])
    assert client.get(url).status_code == 302
    menu = text_of(client.get(url, headers={"HX-Request": "true"}))
    assert all(word in menu for word in ("Grow", "Attach", "Rename", "Delete")) and "Detach" not in menu
    Volume.objects.update(vm=machine)
    assert "Detach" in text_of(client.get(url, headers={"HX-Request": "true"}))


def test_a_volume_is_renamed(client: Client, volume: Volume) -> None:
    assert client.post(address("rename", volume), {"name": "archive"}).url == address("", volume)
    assert "The volume is now called “archive”." in read(client, address("", volume))
    refused = client.post(address("rename", volume), {"name": "x" * 121})
    assert refused.status_code == 200 and "x" * 121 in text_of(refused)
    volume.refresh_from_db()
    assert volume.name == "archive"


def test_growing_shows_the_price_before_it_asks(client: Client, volume: Volume) -> None:
    url = address("grow", volume)
    assert "Show price" in read(client, url) and "Grow from" not in read(client, url)
    page = read(client, url + "?size_gb=80")
    assert "Grow from 50 GB to 80 GB?" in page and "K 20.00" in page and "K 32.00" in page
    assert 'name="shown_hourly_micro" value="32000000"' in page
    response = client.post(url, {"size_gb": 80, "shown_hourly_micro": 32_000_000})
    assert response.url == address("", volume)
    page = read(client, address("", volume))
    assert "“data” is growing to 80 GB." in page and "growing to 80 GB" in page
    assert "An operation is using it (Grow volume)" in read(client, url)
    run_active_operations()
    volume.refresh_from_db()
    assert volume.size_gb == 80
    assert "80 GB × K 0.4000 = K 32.00 an hour" in read(client, address("", volume))


@pytest.mark.parametrize(
    ("size", "sentence"),
    [("", "Enter the new size"), ("50", "can't shrink"), ("x", "whole number"), ("16001", "at most 16,000 GB")],
)
def test_a_wrong_size_explains_itself(client: Client, volume: Volume, size: str, sentence: str) -> None:
    for response in (
        client.get(address("grow", volume), {"size_gb": size}),
        client.post(address("grow", volume), {"size_gb": size}),
    ):
        page = text_of(response)
        assert response.status_code == 200 and sentence in page and "Grow from" not in page
        assert not size or f'value="{size}"' in page
    assert not Operation.objects.exists()


def test_a_price_that_changed_is_shown_again(client: Client, volume: Volume) -> None:
    page = text_of(client.post(address("grow", volume), {"size_gb": 80, "shown_hourly_micro": 1}))
    assert "The price has changed to K 32.00 an hour" in page and "Grow from 50 GB to 80 GB?" in page
    Customer.objects.update(volume_gb_quota=60)
    answers = {"size_gb": 80, "shown_hourly_micro": 32_000_000}
    assert "Quota full: 50 of 60 GB" in text_of(client.post(address("grow", volume), answers))


def test_a_volume_is_attached_and_detached(client: Client, volume: Volume, machine: VirtualMachine) -> None:
    url = address("attach", volume)
    assert "web-01" in read(client, url)
    assert "Choose an instance." in text_of(client.post(url, {"vm": ""}))
    assert "can't be attached to this instance now" in text_of(client.post(url, {"vm": "nonsense"}))
    assert client.post(url, {"vm": str(machine.pk)}).url == address("", volume)
    volume.refresh_from_db()
    assert volume.vm == machine
    assert "attached to web-01 already" in read(client, url)

    assert "Detach “data” from web-01?" in read(client, address("detach", volume))
    client.post(address("detach", volume))
    volume.refresh_from_db()
    assert volume.vm is None
    assert "isn't attached" in read(client, address("detach", volume))


def test_without_a_stopped_machine_the_page_says_what_to_do(client: Client, volume: Volume) -> None:
    assert "There is no stopped instance in the project Default" in read(client, address("attach", volume))


def test_the_first_of_many_machines_are_listed_and_the_search_finds_the_others(
    client: Client, volume: Volume, machine: VirtualMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "SOURCES_OFFERED", 1)
    other = VirtualMachineFactory(project=volume.project, location=volume.location, name="zz-last", stopped=True)
    url = address("attach", volume)
    page = read(client, url)
    assert "Only the first instance is listed" in page and machine.name in page and "zz-last" not in page
    found = read(client, url + "?q=zz")
    assert "zz-last" in found and machine.name not in found
    assert "No stopped instance matches" in read(client, url + "?q=nothing")
    client.post(url, {"vm": str(other.pk)})
    volume.refresh_from_db()
    assert volume.vm == other


def test_where_the_cloud_attaches_nothing_is_offered_and_the_reason_is_given(
    client: Client, volume: Volume, machine: VirtualMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalDriver, "attaches", False)
    page = read(client, address("", volume))
    assert "Attached and detached in the cloud itself" in page and "act-attach_volume" not in page
    assert "in the cloud itself" in read(client, address("attach", volume))
    Volume.objects.update(vm=machine)
    assert "in the cloud itself" in read(client, address("detach", volume))
    assert "Detach it in the cloud first" in read(client, address("delete", volume))


def test_deleting_explains_the_charge_and_what_stays(client: Client, volume: Volume, member: Membership) -> None:
    sell_everywhere()
    SnapshotFactory(volume=volume, size_gb=10)
    url = address("delete", volume)
    page = read(client, url)
    assert "You stop paying K 20.00 an hour, about K 14,640.00 a month." in page
    assert "Its snapshot stays" in page and "still costs K 4.00 an hour" in page
    assert "Type “data” to confirm" in text_of(client.post(url, {"confirmation": "date"}))
    assert client.post(url, {"confirmation": "data"}).url == address("", volume)
    page = read(client, address("", volume))
    assert "You no longer pay for it" in page and "This volume is being deleted" in page
    run_active_operations()
    assert "This volume is deleted" in read(client, address("", volume))
    assert "data" not in [row.volume.name for row in client.get(reverse("snapshots:volumes")).context["rows"]]


def test_an_attached_volume_leads_to_detaching_it(client: Client, volume: Volume, machine: VirtualMachine) -> None:
    Volume.objects.update(vm=machine)
    page = read(client, address("delete", volume))
    assert "is attached to web-01. Detach it first." in page and address("detach", volume) in page


def test_a_storage_that_needs_the_volume_of_its_snapshots_says_so_before(
    client: Client, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalDriver, "deletes_with_snapshots", False)
    for _number in range(2):
        SnapshotFactory(volume=volume)
    assert "Delete its 2 snapshots first" in read(client, address("delete", volume))
    assert "Delete its 2 snapshots first" in text_of(client.post(address("delete", volume), {"confirmation": "data"}))
    volume.refresh_from_db()
    assert volume.delete_requested_at is None


def test_a_failed_deletion_and_a_failed_creation_offer_a_retry(
    client: Client, volume: Volume, member: Membership
) -> None:
    volume_services.request_volume_deletion(volume=volume, user=member.user, confirmation="data")
    Operation.objects.update(
        state=Operation.State.FAILED, finished_at=timezone.now(), error="The storage did not answer."
    )
    page = read(client, address("", volume))
    assert "couldn't be deleted yet" in page and "The storage did not answer." in page
    operation = Operation.objects.get()
    assert client.post(reverse("snapshots:retry", args=[operation.pk])).url == address("", volume)
    assert Operation.objects.active().get().kind == Operation.Kind.DELETE_VOLUME

    broken = VolumeFactory(project=member.project, location=volume.location, state="error", gone=True)
    failed = OperationFactory(kind="create_volume", snapshot=None, volume=broken, failed=True)
    assert "couldn't be created" in read(client, address("", broken))
    client.post(reverse("snapshots:retry", args=[failed.pk]))
    run_active_operations()
    broken.refresh_from_db()
    assert broken.state == Volume.State.AVAILABLE
    assert "mkfs.ext4 /dev/vdb" in read(client, address("", broken))


def test_a_creation_and_a_growth_are_cancelled(client: Client, volume: Volume, member: Membership) -> None:
    new = volume_services.request_volume(
        project=member.project, location=LocationFactory(), size_gb=1, name="new", user=member.user
    )
    growth = volume_services.request_extension(volume=volume, user=member.user, size_gb=60)
    for operation, question, outcome in (
        (new.operations.get(), "Cancel the new volume “new”?", "is cancelled. Nothing is charged for it."),
        (growth, "Stop growing “data”?", "“data” keeps its size."),
    ):
        url = reverse("snapshots:cancel", args=[operation.pk])
        assert question in read(client, url)
        page = client.post(url, follow=True)
        assert outcome in text_of(page)
    assert "This volume was cancelled" in read(client, address("", new))
