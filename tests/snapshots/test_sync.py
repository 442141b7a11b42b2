"""Inventory sync: what it leaves unchanged, and pages of snapshots created or deleted in a cloud.

Imports are tested with a real cloud, in tests/lab/openstack/test_sync.py.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Membership, Project
from cng_portal.common.batches import iterate_by_pk
from cng_portal.inventory.models import CloudProject, Location, Volume
from snapshots import checks, limits, restores, services
from snapshots.cloudsync.sync import sync_everywhere
from snapshots.errors import InvalidState, QuotaExceeded
from snapshots.models import Operation, State
from snapshots.storage.local import LocalDriver
from snapshots.volumes import new_volumes
from snapshots.wizard import wizard
from tests.factories import (
    LocationFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere

pytestmark = pytest.mark.django_db


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def cloud_project() -> CloudProject:
    return CloudProject.objects.create(location=LocationFactory(), external_id="0a1b2c", name="shop")


def test_a_location_of_local_files_is_left_alone_and_says_so() -> None:
    volume = VolumeFactory()
    out = StringIO()
    call_command("sync_inventory", location=volume.location_id, stdout=out)
    assert "was created by this portal, so there is nothing to sync." in out.getvalue()
    sync_everywhere()
    assert Volume.objects.get().deleted_at is None


@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_rows_are_changed_one_at_a_time_during_concurrent_writes() -> None:
    project_ids = sorted(ProjectFactory().pk for _project in range(5))
    other = LocationFactory()

    def write() -> None:
        Location.objects.filter(pk=other.pk).update(city="Mandalay")
        connection.close()

    renamed = []
    with ThreadPoolExecutor(max_workers=1) as somebody_else:
        for project in iterate_by_pk(Project.objects.filter(name__gt="-"), size=2):
            somebody_else.submit(write).result()
            with transaction.atomic():
                Project.objects.filter(pk=project.pk).update(name=f"-{len(renamed)}")
            renamed.append(project.pk)
    assert renamed == project_ids, "each once, also where a changed one is not found any more"


def test_an_unknown_location_is_named_with_those_that_are_known() -> None:
    LocationFactory(code="1CNG-YGN-AZ01")
    with pytest.raises(CommandError, match="no location “NOWHERE”. Use one of: 1CNG-YGN-AZ01"):
        call_command("sync_inventory", location="NOWHERE")


def test_administrators_see_unassigned_projects_and_assign_them(
    cloud_project: CloudProject, client_for: Callable[..., Client]
) -> None:
    project, support = ProjectFactory(), client_for(UserFactory(admin=True))
    unmapped = reverse("admin:inventory_cloudproject_changelist") + "?project__isempty=1"
    assert b"shop" in support.get(unmapped).content
    page = reverse("admin:inventory_cloudproject_change", args=[cloud_project.pk])
    support.post(page, {"project": project.pk}, follow=True)
    cloud_project.refresh_from_db()
    assert cloud_project.project == project
    assert b"shop" not in support.get(unmapped).content
    assert client_for(UserFactory()).get(page).status_code == 302  # to the administrators' sign-in


def test_administrators_see_the_state_of_cloud_projects_and_set_charging_rules(
    cloud_project: CloudProject, client_for: Callable[..., Client]
) -> None:
    support, now = client_for(UserFactory(admin=True)), timezone.now()
    page = reverse("admin:inventory_cloudproject_changelist")
    for figures, text in (
        ({"snapshot_count": 9, "snapshot_quota": 10}, "9 of 10"),
        ({"error": "The storage does not answer."}, "Last sync failed: The storage does not answer."),
        ({"missing_since": now}, "Missing since"),
        ({"missing_since": None, "error": ""}, "Not assigned to a project"),
        ({"project": ProjectFactory()}, "Will be imported by the next sync"),
        ({"synced_at": now}, "Synced"),
    ):
        CloudProject.objects.update(**figures)
        assert text in support.get(page).content.decode()

    page = reverse("admin:inventory_location_change", args=[cloud_project.location_id])
    form = support.get(page).context["adminform"].form
    assert (form["charges_outside"].value(), form["charges_missing"].value()) == (False, False)
    answers = {field.html_name: field.value() for field in form if field.value() not in (None, False)}
    response = support.post(page, answers | {"driver_options": "{}", "charges_outside": "on"})
    assert response.status_code == 302
    location = Location.objects.get()
    assert (location.charges_outside, location.charges_missing) == (True, False)


def test_a_cloud_project_with_imported_volumes_keeps_its_project(
    cloud_project: CloudProject, client_for: Callable[..., Client]
) -> None:
    CloudProject.objects.update(project=ProjectFactory())
    cloud_project.refresh_from_db()
    VolumeFactory(project=cloud_project.project, location=cloud_project.location, backend_project="0a1b2c")
    page = reverse("admin:inventory_cloudproject_change", args=[cloud_project.pk])
    response = client_for(UserFactory(admin=True)).post(page, {"project": ProjectFactory().pk})
    assert "have been imported into" in response.content.decode()
    before = cloud_project.project_id
    cloud_project.refresh_from_db()
    assert cloud_project.project_id == before


def test_cloud_objects_are_unique_in_the_portal() -> None:
    volume = VolumeFactory(backend_ref="one", backend_project="0a1b2c")
    VolumeFactory.create_batch(2, location=volume.location)  # without a reference there may be many
    with pytest.raises(IntegrityError):
        VolumeFactory(location=volume.location, backend_ref="one", backend_project="0a1b2c")


@pytest.mark.parametrize("charged", [False, True], ids=["free", "charged"])
def test_a_snapshot_made_in_the_cloud_shows_its_origin_and_its_price(
    member: Membership, client_for: Callable[..., Client], charged: bool
) -> None:
    snapshot = SnapshotFactory(volume__project=member.project, made_outside=True)
    Location.objects.update(charges_outside=charged)
    sell_everywhere()
    page = client_for(member.user).get(reverse("snapshots:snapshot", args=[snapshot.pk])).content.decode()
    assert "was created in the cloud, outside the portal" in page
    assert ("It costs nothing here." in page) is not charged
    row = client_for(member.user).get(reverse("snapshots:volume_snapshots")).content.decode()
    assert "Created outside the portal" in row
    assert ("K 0.40" in row) is charged


@pytest.mark.parametrize("charged", [False, True], ids=["free", "charged"])
def test_a_snapshot_deleted_in_the_cloud_can_only_be_renamed_or_deleted(
    member: Membership, client_for: Callable[..., Client], charged: bool
) -> None:
    snapshot = SnapshotFactory(volume__project=member.project, missing_since=timezone.now())
    Location.objects.update(charges_missing=charged)
    page = client_for(member.user).get(reverse("snapshots:snapshot", args=[snapshot.pk])).content.decode()
    assert "This snapshot was deleted in the cloud" in page
    for html in (page, client_for(member.user).get(reverse("snapshots:volume_snapshots")).content.decode()):
        assert "<span>Missing</span>" in html and "<span>Ready</span>" not in html
    assert ("You are charged for it until you do." in page) is charged
    assert [name for name in ("restore", "new_volume", "verify", "rename", "delete") if f'id="act-{name}"' in page] == [
        "rename",
        "delete",
    ]
    with pytest.raises(InvalidState, match="was deleted in the cloud, outside the portal"):
        services.request_verification(snapshot=snapshot, user=member.user)
    services.request_deletion(snapshot=snapshot, user=member.user, even_if_last=True)
    snapshot.refresh_from_db()
    assert snapshot.state == State.DELETING


def test_where_storage_shows_no_bytes_no_checksum_is_promised(
    member: Membership, client_for: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalDriver, "reads_bytes", False)
    snapshot, client = SnapshotFactory(volume__project=member.project, made_outside=True), client_for(member.user)
    page = client.get(reverse("snapshots:snapshot", args=[snapshot.pk])).content.decode()
    for text in (
        "Not available on this storage",
        "No operations yet",
        "Nothing has been charged",
    ):
        assert text in page
    verify = reverse("snapshots:verify", args=[snapshot.pk])
    assert "Its bytes can't be read, so they can't be compared." in client.get(verify).content.decode()
    assert "The storage is being asked whether" in client.post(verify, follow=True).content.decode()


def test_a_missing_snapshot_is_no_longer_the_latest(member: Membership, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDriver, "reverts_only_latest", True)
    older = SnapshotFactory(volume__project=member.project, ready_at=timezone.now() - timedelta(hours=1))
    newer = SnapshotFactory(volume=older.volume)
    assert set(restores.irreversible_reasons([older, newer])) == {older.pk}
    newer.missing_since = timezone.now()
    newer.save()
    assert restores.irreversible_reasons([older]) == {}


def test_the_latest_snapshot_is_the_one_the_cloud_took_last(
    member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalDriver, "reverts_only_latest", True)
    now = timezone.now()
    # The worker's clock was an hour behind, or the other one was imported later.
    latest = SnapshotFactory(volume__project=member.project, ready_at=now - timedelta(hours=1), disk__captured_at=now)
    older = SnapshotFactory(volume=latest.volume, disk__captured_at=now - timedelta(seconds=1))
    assert set(restores.irreversible_reasons([older, latest])) == {older.pk}


def test_a_retry_takes_over_a_pending_clean_up(member: Membership) -> None:
    snapshot = SnapshotFactory(volume__project=member.project, failed=True)
    sell_everywhere()
    failed = OperationFactory(capture=True, failed=True, snapshot=snapshot)
    clean_up = OperationFactory(kind=Operation.Kind.CLEAN_UP, running=True, snapshot=snapshot)
    with pytest.raises(InvalidState, match="still cleaning up"):
        services.stop_clean_up(snapshot)
    Operation.objects.filter(pk=clean_up.pk).update(state=Operation.State.PENDING, lease_until=None)
    services.stop_clean_up(snapshot)
    assert list(snapshot.operations.all()) == [failed]


def test_a_storage_that_may_finish_late_is_cleaned_up_after_a_failure(
    member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalDriver, "finishes_late", True)
    snapshot = SnapshotFactory(volume__project=member.project, pending=True)  # of a volume that storage does not have
    OperationFactory(capture=True, snapshot=snapshot)
    run_active_operations()
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.FAILED
    assert list(snapshot.operations.order_by("created_at").values_list("kind", "state")) == [
        ("capture", "failed"),
        ("clean_up", "succeeded"),
    ]


@pytest.fixture
def quotas(storage_root: Path, member: Membership) -> CloudProject:
    """A volume of 10 GB in a cloud project that had 4 of 5 snapshots and 80 of 100 GB a minute ago."""
    volume = VolumeFactory(project=member.project, size_gb=10, backend_ref="one", backend_project="0a1b2c")
    put_volume(storage_root, volume, content(b"bytes"))
    sell_everywhere()
    return CloudProject.objects.create(
        location=volume.location,
        project=member.project,
        external_id="0a1b2c",
        name="shop",
        snapshot_count=4,
        snapshot_quota=5,
        volume_count=3,
        volume_quota=-1,
        used_gb=80,
        gb_quota=100,
        synced_at=timezone.now() - timedelta(minutes=1),
    )


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({}, ""),
        ({"snapshot_count": 5}, "5 of 5 snapshots in the cloud project “shop” are used and this one needs 1."),
        (
            {"used_gb": 95},
            "95 of 100 GB of volumes and snapshots in the cloud project “shop” are used and this one needs 10",
        ),
        ({"snapshot_count": 50, "snapshot_quota": -1}, ""),
        ({"volume_count": 5, "volume_quota": 5}, ""),  # a snapshot is no volume
        # what the last sync doesn't know is left to the cloud
        ({"snapshot_count": 5, "synced_at": None}, ""),
        ({"snapshot_count": 5, "synced_at": timezone.now() - timedelta(hours=1)}, ""),
        ({"snapshot_count": 5, "error": "The storage does not answer."}, ""),
    ],
)
def test_the_wizard_says_in_advance_that_the_clouds_own_quota_is_used_up(
    quotas: CloudProject, member: Membership, client_for: Callable[..., Client], figures: dict[str, Any], text: str
) -> None:
    CloudProject.objects.update(**figures)
    volume, client = Volume.objects.get(), client_for(member.user)
    draft = wizard.start(member.user, source=volume)
    step = wizard.url(draft, "volume")
    page = client.get(step).content.decode()
    is_known = "synced_at" not in figures and "error" not in figures
    assert ("in the cloud project “shop” used" in page) is is_known
    answer = client.post(step, {"volume": volume.pk})
    if text:
        assert answer.status_code == 200 and text in answer.content.decode()
        with pytest.raises(QuotaExceeded, match="in the cloud project “shop”"):
            checks.check_capturable(volume)
    else:
        assert answer.status_code == 302
        checks.check_capturable(volume)


def test_for_another_project_the_step_shows_the_quota_of_the_cloud_project_of_its_volumes(
    quotas: CloudProject, member: Membership, client_for: Callable[..., Client]
) -> None:
    other = MembershipFactory(user=member.user, project__customer=member.project.customer).project
    draft = wizard.start(member.user, source=Volume.objects.get())
    draft.project = other
    draft.save()
    assert "in the cloud project “shop” used" in client_for(member.user).get(wizard.url(draft, "volume")).text


def test_the_clouds_quota_includes_requests_and_deletions_since_the_last_sync(
    quotas: CloudProject, member: Membership
) -> None:
    volume = Volume.objects.get()

    def used() -> tuple[int, int]:
        uses = limits.cloud_quota_use(quotas)
        return uses["snapshots"].used, uses["gb"].used

    OperationFactory(capture=True, snapshot=SnapshotFactory(volume=VolumeFactory(project=member.project)))
    assert used() == (4, 80)  # that one is in no cloud
    snapshot = SnapshotFactory(volume=volume, pending=True)
    operation = OperationFactory(capture=True, snapshot=snapshot)
    assert used() == (5, 90)
    with pytest.raises(QuotaExceeded):
        checks.check_capturable(volume)
    before = timezone.now() - timedelta(hours=1)
    Operation.objects.filter(pk=operation.pk).update(created_at=before)  # the sync has seen it
    assert used() == (4, 80)
    OperationFactory(kind=Operation.Kind.DELETE, succeeded=True, snapshot=snapshot, created_at=before)
    assert used() == (3, 70)


def test_a_new_volume_and_a_copy_before_a_restore_count_as_volumes_of_the_cloud(
    quotas: CloudProject, member: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = SnapshotFactory(volume=Volume.objects.get())
    volume = {"snapshot": snapshot, "user": member.user, "project": member.project, "name": "copy"}
    CloudProject.objects.update(snapshot_count=5)
    with pytest.raises(QuotaExceeded, match="5 of 5 snapshots"):
        checks.check_capturable(snapshot.source, safety=True)
    monkeypatch.setattr(LocalDriver, "reverts_only_latest", True)
    checks.check_capturable(snapshot.source, safety=True)
    new_volumes.request_new_volume(**volume, size_gb=10)
    CloudProject.objects.update(volume_quota=3)
    with pytest.raises(QuotaExceeded, match="3 of 3 volumes in the cloud project “shop” are used and this one needs 1"):
        new_volumes.request_new_volume(**volume, size_gb=10)
    with pytest.raises(QuotaExceeded, match="3 of 3 volumes"):
        checks.check_capturable(snapshot.source, safety=True)
