"""A project may let its viewers read files; whoever may not doesn't learn the names of files from the activity log."""

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role, User
from cng_portal.accounts.projects import share_files
from cng_portal.activity.models import Activity
from cng_portal.activity.services import record
from snapshots.files.services import is_still_readable
from snapshots.files.versions import readable_disks
from snapshots.models import Snapshot
from tests.factories import SnapshotFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner(project: Project) -> User:
    return UserFactory(member_of=project, member_of__role=Role.OWNER)


@pytest.fixture
def viewer(project: Project) -> User:
    return UserFactory(member_of=project, member_of__role=Role.VIEWER)


@pytest.fixture
def snapshot(project: Project) -> Snapshot:
    return SnapshotFactory(volume__project=project)


def reload(user: User) -> User:
    return User.objects.get(pk=user.pk)


def test_an_owner_lets_viewers_read_and_stops_it(
    project: Project, owner: User, viewer: User, snapshot: Snapshot, client_for: Callable[..., Client]
) -> None:
    address, files = reverse("share_files", args=[project.pk]), reverse("snapshots:files", args=[snapshot.pk])
    page = reverse("snapshots:snapshot", args=[snapshot.pk])
    assert client_for(viewer).get(files).status_code == 403
    for choice, is_shared in [("yes", True), ("yes", True), ("no", False)]:
        assert client_for(owner).post(address, {"is_shared": choice}).status_code == 302
        assert reload(viewer).can_read_files(project.pk) is is_shared
        assert is_still_readable(snapshot.pk, viewer.pk) is is_shared
        assert readable_disks(snapshot.disks.get(), reload(viewer)).exists() is is_shared
        assert (client_for(viewer).get(files).status_code == 200) is is_shared
        shown = client_for(viewer).get(page).text
        assert (files in shown) is is_shared and reverse("snapshots:labels", args=[snapshot.pk]) not in shown
    assert Activity.objects.filter(action="project.share_files").count() == 2


def test_only_owners_decide_and_bad_input_changes_nothing(
    project: Project, owner: User, viewer: User, client_for: Callable[..., Client]
) -> None:
    address = reverse("share_files", args=[project.pk])
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    for user, status in [(viewer, 403), (member, 403), (UserFactory(), 404)]:
        assert client_for(user).post(address, {"is_shared": "yes"}).status_code == status
    response = client_for(owner).post(address, {"is_shared": "perhaps"}, follow=True)
    assert "Choose whether viewers can read files." in response.text
    assert not reload(viewer).can_read_files(project.pk)


def test_a_shared_project_that_is_archived_shows_no_files(project: Project, owner: User, viewer: User) -> None:
    share_files(project=project, is_shared=True, by=owner, at=timezone.now())
    Project.objects.update(archived_at=timezone.now())
    assert not reload(viewer).can_read_files(project.pk) and not reload(owner).can_read_files(project.pk)


@pytest.mark.parametrize("name", ["activity:log", "activity:csv"])
def test_the_log_names_files_only_to_those_who_may_read_them(
    name: str, project: Project, owner: User, viewer: User, snapshot: Snapshot, client_for: Callable[..., Client]
) -> None:
    record(action="snapshot.download_file", actor=owner, target=snapshot, after={"path": "/home/salaries.ods"})

    def text(user: User) -> str:
        return client_for(user).get(reverse(name)).getvalue().decode()

    assert "File downloaded" in text(viewer) and "salaries" not in text(viewer)
    assert "salaries" in text(owner)
    share_files(project=project, is_shared=True, by=owner, at=timezone.now())
    assert "salaries" in text(viewer)
