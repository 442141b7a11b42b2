"""The dashboard: counts, running and failed operations, newest snapshots, and its empty state."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role, User
from cng_portal.inventory.models import Location
from snapshots.models import Operation, Snapshot, State
from tests.factories import (
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.test_list import HTMX

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def user(project: Project) -> User:
    return UserFactory(member_of=project)


@pytest.fixture
def client(user: User, client_for: Callable[..., Client]) -> Client:
    return client_for(user)


def test_the_dashboard_shows_totals_costs_and_unprotected_volumes(client: Client, project: Project) -> None:
    SnapshotFactory(volume__project=project, volume__size_gb=50)
    SnapshotFactory(volume__project=project, volume__size_gb=10, creating=True)
    SnapshotFactory(volume__project=project, volume__size_gb=7, failed=True)
    SnapshotFactory(volume__project=project, volume__size_gb=9, deleted=True)
    SnapshotFactory(volume__size_gb=500)
    sell_everywhere(400_000)

    context = client.get("/").context

    assert context["totals"] == {
        "count": "2",
        "size": "60 GB",
        "hourly": "K 20.00",
        "monthly": "About K 14,640.00 a month",
    }
    assert context["has_volumes"]
    assert context["unprotected_count"] == 3


@pytest.mark.parametrize("charged", [False, True], ids=["free", "charged"])
def test_snapshots_from_outside_cost_what_their_location_charges(
    client: Client, project: Project, charged: bool
) -> None:
    SnapshotFactory(volume__project=project, volume__size_gb=10, made_outside=True)
    SnapshotFactory(volume__project=project, volume__size_gb=40, missing_since=timezone.now())
    Location.objects.update(charges_outside=charged, charges_missing=charged)
    sell_everywhere(400_000)

    totals = client.get("/").context["totals"]

    assert (totals["count"], totals["hourly"]) == ("2", "K 20.00" if charged else "K 0.00")


def test_the_dashboard_shows_running_operations(client: Client, project: Project) -> None:
    mine = OperationFactory(snapshot__volume__project=project, running=True, bytes_done=30, bytes_total=100)
    OperationFactory(running=True)

    response = client.get("/")

    assert [row.operation.pk for row in response.context["running"]] == [mine.pk]
    page = response.content.decode()
    assert "Running now" in page
    assert "30 %" in page
    assert 'hx-get="/?seen=' in page


def test_the_dashboard_shows_failures_with_reason_and_next_step(client: Client, project: Project) -> None:
    failed = OperationFactory(
        snapshot__volume__project=project, snapshot__failed=True, capture=True, failed=True, error="Out of room."
    )
    OperationFactory(failed=True)

    response = client.get("/")

    assert [row.operation.pk for row in response.context["failed"]] == [failed.pk]
    page = response.content.decode()
    assert "Out of room." in page
    assert reverse("snapshots:retry", args=[failed.pk]) in page
    assert reverse("snapshots:snapshot", args=[failed.snapshot_id]) in page


def test_a_retried_operation_is_no_longer_listed_as_failed(client: Client, project: Project) -> None:
    hour = timedelta(hours=1)
    failed = OperationFactory(
        snapshot__volume__project=project, failed=True, created_at=timezone.now() - hour, finished_at=timezone.now()
    )
    OperationFactory(snapshot=failed.snapshot, succeeded=True)
    OperationFactory(snapshot__volume__project=project, failed=True, finished_at=timezone.now() - 60 * 24 * hour)

    assert client.get("/").context["failed"] == []


def test_another_volume_from_the_same_snapshot_does_not_hide_a_failed_one(client: Client, project: Project) -> None:
    earlier = timezone.now() - timedelta(minutes=1)
    failed = OperationFactory(
        snapshot__volume__project=project, new_volume=True, failed=True, created_at=earlier, finished_at=earlier
    )
    OperationFactory(snapshot=failed.snapshot, new_volume=True, succeeded=True)
    assert [row.operation for row in client.get("/").context["failed"]] == [failed]

    OperationFactory(snapshot=failed.snapshot, new_volume=True, volume=failed.volume, succeeded=True)
    assert client.get("/").context["failed"] == []


def test_the_dashboard_shows_the_newest_snapshots_first(client: Client, project: Project) -> None:
    now = timezone.now()
    snapshots = [SnapshotFactory(volume__project=project, created_at=now - timedelta(hours=n)) for n in range(7)]
    SnapshotFactory(volume__project=project, deleted=True)

    assert [row.snapshot for row in client.get("/").context["rows"]] == snapshots[:5]


def test_an_account_with_volumes_is_invited_to_its_first_snapshot(client: Client, project: Project) -> None:
    VolumeFactory(project=project)

    page = client.get("/").content.decode()

    assert "Take your first block storage snapshot" in page
    assert reverse("snapshots:new") in page


def test_an_empty_account_gets_first_steps(client: Client) -> None:
    assert "Once one of your projects has a volume" in client.get("/").content.decode()


def test_an_administrator_without_a_customer_is_led_to_admin(client_for: Callable[..., Client]) -> None:
    assert f'href="{reverse("admin:index")}"' in client_for(UserFactory(admin=True)).get("/").content.decode()


def test_a_user_without_a_project_is_told_what_to_do(client_for: Callable[..., Client]) -> None:
    page = client_for(UserFactory()).get("/").content.decode()

    assert "You're not in a project yet" in page
    assert reverse("snapshots:new") not in page.split("<main", 1)[1]


def test_a_viewer_is_offered_no_changes(project: Project, client_for: Callable[..., Client]) -> None:
    failed = OperationFactory(snapshot__volume__project=project, failed=True)
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))

    main = viewer.get("/").content.decode().split("<main", 1)[1]

    assert failed.error in main
    assert "Take Snapshot" not in main
    assert reverse("snapshots:retry", args=[failed.pk]) not in main


def test_a_signed_out_person_signs_in() -> None:
    assert Client().get("/").status_code == 302


def test_the_dashboard_polls_active_operations_and_refreshes_when_they_end(client: Client, project: Project) -> None:
    OperationFactory(snapshot__volume__project=project, running=True, bytes_total=100)
    seen = {"seen": client.get("/").context["version"]}

    Operation.objects.update(bytes_done=60)
    progress = client.get("/", seen, headers=HTMX)
    assert progress.content.decode().strip().startswith('<section class="section" id="running"')
    assert "60 %" in progress.content.decode()

    Operation.objects.update(state="succeeded", finished_at=timezone.now())
    settled = client.get("/", seen, headers=HTMX)
    assert settled["HX-Retarget"] == "#dashboard"
    assert 'hx-trigger="every' not in settled.content.decode()


def test_the_figures_follow_every_change_at_once(client: Client, project: Project) -> None:
    def count() -> str:
        return client.get("/").context["totals"]["count"]

    assert count() == "0"
    SnapshotFactory(volume__project=project, creating=True)
    assert count() == "1"
    snapshot = SnapshotFactory(volume__project=project)
    assert count() == "2"
    Snapshot.objects.filter(pk=snapshot.pk).update(state=State.FAILED)
    assert count() == "1"


def test_the_newest_are_of_volumes_and_machines_alike(client_for: Callable[..., Client]) -> None:
    volume_snapshot = SnapshotFactory(name="of a disk")
    project = volume_snapshot.project
    VMSnapshotFactory(vm__project=project, name="of an instance")
    page = client_for(UserFactory(member_of=project)).get("/").text
    assert "of a disk" in page and "of an instance" in page
