"""The lists as CSV: the rows that the filters match, with tags, note, expiry and price, of the user's own projects."""

import csv
from collections.abc import Callable
from datetime import date
from io import StringIO
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.models import ServiceKind
from cng_portal.accounts.models import Membership, Role
from cng_portal.common import batches
from cng_portal.inventory.models import Volume
from snapshots.expiry import expiry_of
from snapshots.labels import change_labels
from snapshots.models import Snapshot
from snapshots.volumes.charges import start_charging_volume
from tests.factories import (
    BackupFactory,
    MembershipFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]

SNAPSHOTS, VOLUMES = "snapshots:volume_snapshots_csv", "snapshots:volumes_csv"


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__name="Software", project__customer__postpaid=True)


@pytest.fixture
def client(client_for: Callable[..., Client], member: Membership) -> Client:
    return client_for(member.user)


def rows_of(client: Client, name: str, query: str = "") -> list[dict[str, str]]:
    response = client.get(reverse(name) + query)
    assert response.status_code == 200 and response["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(StringIO(response.getvalue().decode("utf-8-sig"))))


@pytest.mark.parametrize(
    ("name", "page"),
    [
        (SNAPSHOTS, "snapshots:volume_snapshots"),
        ("snapshots:vm_snapshots_csv", "snapshots:vm_snapshots"),
        ("snapshots:backups_csv", "snapshots:backups"),
        (VOLUMES, "snapshots:volumes"),
        ("activity:csv", "activity:log"),
    ],
)
def test_a_filter_that_does_not_exist_leads_to_the_page_that_says_so(client: Client, name: str, page: str) -> None:
    response = client.get(reverse(name), {"project": "nonsense"})
    assert response["Location"] == f"{reverse(page)}?project=nonsense"
    assert "were ignored:" in client.get(response["Location"]).text


def test_the_csv_of_snapshots_has_tags_note_expiry_and_price(client: Client, member: Membership) -> None:
    day = date(2090, 6, 30)
    snapshot = SnapshotFactory(
        volume__project=member.project,
        volume__name="database",
        volume__size_gb=50,
        name="=before",
        expires_at=expiry_of(day, member.project.customer.zone),
    )
    sell_everywhere()
    change_labels(model=Snapshot, ids=[snapshot.pk], user=member.user, add=["web", "Daily"], note="two\nlines")
    [row] = rows_of(client, SNAPSHOTS)
    assert row | {"created": "", "ready": ""} == {
        "resource_uuid": str(snapshot.pk),
        "name": "'=before",  # A spreadsheet would run it.
        "state": "ready",
        "source": "database",
        "project": "Software",
        "location": snapshot.location_id,
        "gb": "50",
        "created": "",
        "ready": "",
        "delete_after": day.isoformat(),
        "price_per_hour": "20.000000",
        "currency": "MMK",
        "tags": "Daily, web",
        "note": "two\nlines",
    }
    assert row["ready"].endswith("+00:00")


def test_the_csv_of_volumes_has_tags_note_and_price(client: Client, member: Membership) -> None:
    free, charged = (VolumeFactory(project=member.project, name=name, size_gb=10) for name in ("a free", "charged"))
    sell_everywhere(kind=ServiceKind.BLOCK_STORAGE)
    start_charging_volume(charged, at=timezone.now())
    change_labels(model=Volume, ids=[charged.pk], user=member.user, add=["web"], note="the disk")
    SnapshotFactory(volume=charged)
    rows = rows_of(client, VOLUMES)
    assert [(row["name"], row["price_per_hour"], row["tags"], row["note"]) for row in rows] == [
        (free.name, "", "", ""),
        (charged.name, "4.000000", "web", "the disk"),
    ]
    assert [bool(row["protected"]) for row in rows] == [False, True]


def test_the_rows_are_those_of_the_list_in_its_order(client: Client, member: Membership) -> None:
    for name in ("beta", "alpha", "other"):
        SnapshotFactory(volume__project=member.project, name=name)
    VMSnapshotFactory(vm__project=member.project, name="of an instance")
    BackupFactory(vm__project=member.project, name="a backup")
    change_labels(
        model=Snapshot,
        ids=Snapshot.objects.filter(name__in=["alpha", "beta"]).values_list("pk", flat=True),
        user=member.user,
        add=["web"],
    )
    tag = Snapshot.objects.get(name="alpha").tags.get()
    here = client.get(f"{reverse('snapshots:volume_snapshots')}?tag={tag.pk}&sort=name").text
    query = f"?tag={tag.pk}&amp;sort=name"
    assert f'href="{reverse(SNAPSHOTS)}{query}"' in here
    assert [row["name"] for row in rows_of(client, SNAPSHOTS, query.replace("&amp;", "&"))] == ["alpha", "beta"]
    assert [row["name"] for row in rows_of(client, "snapshots:vm_snapshots_csv")] == ["of an instance"]
    assert [row["name"] for row in rows_of(client, "snapshots:backups_csv")] == ["a backup"]


def test_a_stranger_gets_no_rows_and_no_names_of_hidden_volumes(
    client_for: Callable[..., Client], client: Client, member: Membership
) -> None:
    hidden = VolumeFactory(project=ProjectFactory(customer=member.project.customer), name="hidden")
    SnapshotFactory(volume=hidden, project=member.project, name="visible")
    assert [(row["name"], row["source"]) for row in rows_of(client, SNAPSHOTS)] == [("visible", "")]
    assert rows_of(client, VOLUMES) == []
    stranger = client_for(UserFactory(member_of=ProjectFactory()))
    assert rows_of(stranger, SNAPSHOTS) == rows_of(stranger, VOLUMES) == []
    viewer = client_for(UserFactory(member_of=member.project, member_of__role=Role.VIEWER))
    assert len(rows_of(viewer, SNAPSHOTS)) == 1


def test_every_row_comes_in_batches_without_a_query_for_each(
    client: Client, member: Membership, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Any
) -> None:
    monkeypatch.setattr(batches, "BATCH_SIZE", 3)
    volume = VolumeFactory(project=member.project)
    for _number in range(7):
        SnapshotFactory(volume=volume)
    assert len(rows_of(client, SNAPSHOTS)) == 7
    monkeypatch.setattr(batches, "BATCH_SIZE", 500)
    with django_assert_max_num_queries(12):
        assert len(rows_of(client, SNAPSHOTS)) == 7
