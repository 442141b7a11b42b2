"""Projects: created, renamed and archived by owners, visible to members, and a 404 for everyone else."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.test import Client
from django.urls import reverse

from cng_portal.accounts import projects as services
from cng_portal.accounts.models import Project, Role, User
from cng_portal.activity.models import Activity
from snapshots.errors import InvalidState
from snapshots.projects import archive_project
from tests.factories import (
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Default")


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(name="Aye", member_of=project)


@pytest.fixture
def client(owner: User, client_for: Callable[..., Client]) -> Client:
    return client_for(owner)


def actions_on(project: Project) -> list[str]:
    return list(Activity.objects.filter(project=project).order_by("at").values_list("action", flat=True))


def test_an_owner_creates_renames_and_archives_a_project(client: Client, owner: User, project: Project) -> None:
    page = client.post(reverse("new_project"), {"name": "  Web   shop "}, follow=True)
    shop = Project.objects.get(name="Web shop")
    assert page.redirect_chain[-1][0] == reverse("project", args=[shop.pk])
    assert shop.memberships.get().user == owner and shop.memberships.get().role == Role.OWNER

    client.post(reverse("rename_project", args=[shop.pk]), {"name": "Shop"})
    assert "Shop" in client.get(reverse("projects")).text

    client.post(reverse("archive_project", args=[shop.pk]))
    shop.refresh_from_db()
    assert shop.archived_at
    assert "Nothing can be created in it" in client.get(reverse("project", args=[shop.pk])).text
    client.post(reverse("unarchive_project", args=[shop.pk]))
    assert actions_on(shop) == ["project.create", "project.rename", "project.archive", "project.unarchive"]


@pytest.mark.parametrize("name", ["DEFAULT", "default ", "De\u200bfault"])
def test_a_name_is_used_once(client: Client, project: Project, name: str) -> None:
    answer = client.post(reverse("new_project"), {"name": name})
    assert "already has a project with this name" in answer.text
    assert Project.objects.count() == 1


@pytest.mark.parametrize("name", ["", "x" * 121, "a\u202eb"])
def test_a_bad_name_is_explained_and_kept(client: Client, project: Project, name: str) -> None:
    answer = client.post(reverse("rename_project", args=[project.pk]), {"name": name})
    assert "There is a problem" in answer.text
    project.refresh_from_db()
    assert project.name == "Default"


def test_other_customers_may_use_the_same_name(client: Client) -> None:
    other = ProjectFactory(name="Shop")
    client.post(reverse("new_project"), {"name": "Shop"})
    assert Project.objects.filter(name="Shop").exclude(pk=other.pk).exists()


def test_a_member_sees_the_project_and_cannot_change_it(project: Project, client_for: Callable[..., Client]) -> None:
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    client = client_for(member)
    page = client.get(reverse("project", args=[project.pk])).text
    assert "Invite a member" not in page and "Rename" not in page and "Cost this month" not in page
    for name in ("rename_project", "archive_project"):
        answer = client.post(reverse(name, args=[project.pk]), {"name": "Mine"})
        assert answer.status_code == 403
        assert "Only owners can manage “Default”." in answer.text
    assert client.get(reverse("new_project")).status_code == 403
    with pytest.raises(PermissionDenied):
        services.create_project(name="Mine", by=member)


def test_a_stranger_finds_nothing(project: Project, client_for: Callable[..., Client]) -> None:
    client = client_for(UserFactory(member_of=ProjectFactory(name="Elsewhere")))
    assert "Default" not in client.get(reverse("projects")).text
    for name in ("project", "rename_project", "archive_project"):
        assert client.get(reverse(name, args=[project.pk])).status_code == 404


@pytest.mark.parametrize("factory", [VolumeFactory, VirtualMachineFactory, SnapshotFactory])
def test_only_an_empty_project_is_archived(client: Client, owner: User, project: Project, factory: Callable) -> None:
    shop = services.create_project(name="Shop", by=owner)
    target = factory(volume__project=shop) if factory is SnapshotFactory else factory(project=shop)
    with pytest.raises(InvalidState):
        archive_project(project=shop, by=owner, at=NOW)
    page = client.get(reverse("archive_project", args=[shop.pk])).text
    assert "This one still has" in page and f"?project={shop.pk}" in page
    assert target.pk


def test_the_last_project_stays(client: Client, owner: User, project: Project) -> None:
    with pytest.raises(InvalidState):
        archive_project(project=project, by=owner, at=NOW)
    answer = client.post(reverse("archive_project", args=[project.pk]))
    assert "This is your last project" in answer.text
    project.refresh_from_db()
    assert project.archived_at is None


def test_nothing_is_created_in_an_archived_project(client: Client, owner: User, project: Project) -> None:
    shop = services.create_project(name="Shop", by=owner)
    archive_project(project=shop, by=owner, at=NOW)
    again = User.objects.get(pk=owner.pk)
    assert not again.can_change(shop.pk) and again.can_change(project.pk)
    assert shop not in Project.objects.changeable_by(again)
    assert shop in Project.objects.visible_to(again)


def test_the_number_of_projects_is_limited(owner: User, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MAX_PROJECTS", 1)
    with pytest.raises(ValidationError, match="1 projects, which is the limit"):
        services.create_project(name="Shop", by=owner)
