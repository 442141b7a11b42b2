"""The search: its hits, their order, and its permissions."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from billing import closing
from billing.models import ServiceKind
from billing.usage import open_segment
from cng_portal.accounts.models import Project, Role, User
from snapshots.search import SHOWN, search
from tests.factories import (
    BackupScheduleFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Shop", customer__postpaid=True, customer__number=1039)


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(member_of=project)


def names(user: User, text: str) -> dict[str, list[str]]:
    return {str(group.label): [hit.name for hit in group.hits] for group in search(user, text)}


def fill(project: Project) -> None:
    vm = VirtualMachineFactory(project=project, name="db-01")
    BackupScheduleFactory(vm=vm)
    volume = VolumeFactory(project=project, vm=vm, name="db-01-data")
    SnapshotFactory(volume=volume, name="before db-01 moves")
    VMSnapshotFactory(vm=vm, name="DB-01 nightly")


@pytest.mark.both_databases
def test_the_search_finds_each_kind_by_a_part_of_its_name(project: Project, owner: User) -> None:
    fill(project)
    assert names(owner, " Db-01 ") == {
        "Instances": ["db-01"],
        "Schedules": ["db-01"],
        "Volumes": ["db-01-data"],
        "Snapshots and backups": ["DB-01 nightly", "before db-01 moves"],
    }
    assert names(owner, "shop") == {"Projects": ["Shop"], "Actions": ["Invite a member to Shop"]}


@pytest.mark.both_databases
def test_exact_matches_come_first_then_prefixes(project: Project, owner: User) -> None:
    for name in ("web", "a-web", "web-2", "WEB-1"):
        volume = VolumeFactory(project=project, name=name)
        SnapshotFactory(volume=volume, name=name)
    hits = names(owner, "web")
    assert hits["Volumes"] == hits["Snapshots and backups"] == ["web", "WEB-1", "web-2", "a-web"]


@pytest.mark.both_databases
def test_everything_is_found_by_its_id(project: Project, owner: User) -> None:
    volume = VolumeFactory(project=project, name="old", gone=True)
    snapshot = SnapshotFactory(volume=volume, name="last")
    schedule = BackupScheduleFactory(vm__project=project, vm__name="db-01")
    for target, name in ((volume, "old"), (snapshot, "last"), (schedule, "db-01"), (project, "Shop")):
        [(_label, hits)] = names(owner, str(target.pk)).items()
        assert hits == [name]
    assert names(owner, str(uuid4())) == {}


def test_an_invoice_is_found_by_its_number_and_only_by_owners(project: Project, owner: User) -> None:
    volume = VolumeFactory(project=project)
    open_segment(
        resource_id=volume.pk,
        kind=ServiceKind.BS_SNAPSHOT,
        name=volume.name,
        project=project,
        location=volume.location,
        size_gb=1,
        at=datetime(2026, 9, 10, tzinfo=UTC),
    )
    sell_everywhere()
    closing.close_months(at=datetime(2026, 10, 2, tzinfo=UTC))
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    stranger = UserFactory(member_of=ProjectFactory())
    assert names(owner, "inv-001039") == {"Invoices": ["INV-001039-0001"]}
    assert names(member, "inv-001039") == names(stranger, "inv-001039") == {}


def test_other_customers_resources_are_not_found(project: Project, owner: User) -> None:
    fill(ProjectFactory(name="Shop of others"))
    theirs = VolumeFactory(name="db-01-theirs")
    assert names(owner, "db-01") == names(owner, "others") == names(owner, str(theirs.pk)) == {}
    fill(project)
    other = ProjectFactory(customer=project.customer, name="Secret")
    VolumeFactory(project=other, name="db-01-secret")  # of the same customer, in a project that the user is not in
    assert names(owner, "secret") == {}


def test_deleted_resources_are_found_only_by_id(project: Project, owner: User) -> None:
    volume = VolumeFactory(project=project, name="data")
    SnapshotFactory(volume=volume, name="data gone", deleted=True)
    VolumeFactory(project=project, name="data gone too", gone=True)
    assert names(owner, "data") == {"Volumes": ["data"]}


@pytest.mark.both_databases
def test_what_is_in_the_recycle_bin_is_found_and_marked(project: Project, owner: User) -> None:
    volume = VolumeFactory(project=project, name="web-data", binned=True)
    snapshot = SnapshotFactory(volume=VolumeFactory(project=project), name="web yesterday", binned=True)
    SnapshotFactory(name="web of others", binned=True)
    [group] = [group for group in search(owner, "WEB") if group.hits]
    assert (group.label, {hit.name: hit.note for hit in group.hits}) == (
        "In the recycle bin",
        {"web-data": "Volume · Shop", "web yesterday": "Volume snapshot · Shop"},
    )
    for binned in (volume, snapshot):
        [group] = search(owner, str(binned.pk))
        assert group.hits[0].name == binned.name and group.hits[0].note.endswith("· In the recycle bin")


def test_only_allowed_pages_and_actions_are_found(project: Project, owner: User) -> None:
    viewer = UserFactory(member_of=project, member_of__role=Role.VIEWER)
    assert names(owner, "take snap") == {"Actions": ["Take Snapshot"]}
    assert names(owner, "invite")["Actions"] == ["Invite a member to Shop"]
    assert names(owner, "statement")["Pages"] == ["Account Statement and invoices"]
    assert names(viewer, "take snap") == names(viewer, "invite") == names(viewer, "statement") == {}
    assert names(viewer, "volumes")["Pages"] == ["Volumes"]


def test_a_word_without_letters_finds_nothing(owner: User) -> None:
    assert search(owner, "") == search(owner, "\u200b") == []


def test_more_than_are_shown_lead_to_the_list(project: Project, owner: User, client_for: Callable[..., Client]) -> None:
    for number in range(SHOWN + 2):
        SnapshotFactory(volume=VolumeFactory(project=project, name=f"web-{number}"), name=f"web-{number}")
    page = client_for(owner).get("/search/?q=web").text
    assert page.count('class="menu-item found-hit"') == 2 * SHOWN
    assert 'href="/volumes/?q=web"' in page
    assert "There are more" in page


def test_the_fragment_says_how_many_and_the_page_stands_alone(
    project: Project, owner: User, client_for: Callable[..., Client]
) -> None:
    fill(project)
    client = client_for(owner)
    page, fragment = client.get("/search/?q=db-01"), client.get("/search/?q=db-01", headers={"hx-request": "true"})
    assert page.text.count('class="menu-item found-hit"') == fragment.text.count('class="menu-item found-hit"') == 5
    assert "5 results" in fragment.text
    assert "<html" not in fragment.text
    assert 'value="db-01"' in page.text


def test_an_invalid_search_is_explained(owner: User, client_for: Callable[..., Client]) -> None:
    client = client_for(owner)
    too_long = client.get("/search/", {"q": "x" * 121}).text
    assert "at most 120 characters" in too_long and f'value="{"x" * 121}"' in too_long
    strange = client.get("/search/", {"q": "a\0b"}).text
    assert "at most 120 characters" not in strange and "Null characters are not allowed" in strange
    assert client.get("/search/", {"q": "a\x00b"}).status_code == 200
    assert "No results for “&lt;b&gt;”" in client.get("/search/", {"q": "<b>"}).text


@pytest.mark.both_databases
def test_the_queries_are_few_and_the_same_for_many(
    project: Project, owner: User, client_for: Callable[..., Client]
) -> None:
    client = client_for(owner)

    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert client.get("/search/?q=db-01", headers={"hx-request": "true"}).status_code == 200
        return len(queries)

    fill(project)
    client.get("/search/")
    few = count()
    for _number in range(3):
        other = ProjectFactory(customer=project.customer)
        other.memberships.create(user=owner, role=Role.OWNER)
        volume = VolumeFactory(project=other, name="db-01", attached=True)
        SnapshotFactory(volume=volume, name=f"db-01 {other.name}")
        BackupScheduleFactory(vm=VirtualMachineFactory(project=other, name="db-01"))
    assert count() == few <= 3 + 10  # session, user and roles, plus those of the search


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL plans by statistics")
def test_snapshots_are_found_in_the_order_of_an_index(owner: User) -> None:
    """Nothing is sorted, so a search of a hundred thousand names stops at the first matches."""
    with CaptureQueriesContext(connection) as queries:
        search(owner, "web")
    statements = [query["sql"] for query in queries if query["sql"].startswith('SELECT "snapshots_snapshot"')]
    statements = [sql for sql in statements if '"bin_until" IS NOT NULL' not in sql]  # The recycle bin is small.
    assert len(statements) == 2
    for sql in statements:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
            plan = " | ".join(row[-1] for row in cursor.fetchall())
        assert "snapshot_name_unique" in plan and "TEMP B-TREE" not in plan, plan


def test_a_stranger_may_search_but_finds_nothing(project: Project, client_for: Callable[..., Client]) -> None:
    fill(project)
    stranger = UserFactory(member_of=ProjectFactory())
    assert "No results for" in client_for(stranger).get("/search/?q=db-01").text
    assert client_for(stranger).get(reverse("search")).status_code == 200
