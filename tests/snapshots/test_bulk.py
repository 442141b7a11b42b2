"""Deleting many snapshots: one confirmation, a result for each, and a 404 for strangers."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.utils.http import urlencode

from cng_portal.accounts.models import Project, Role
from snapshots import services
from snapshots.models import Snapshot, State
from tests.factories import (
    CustomerFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db

PATH = "/snapshots/delete/"


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer=CustomerFactory(postpaid=True))


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


def asking(*snapshots: Snapshot) -> str:
    return f"{PATH}?{urlencode({'id': [snapshot.pk for snapshot in snapshots]}, doseq=True)}"


def messages_of(response: object) -> str:
    return " ".join(str(message) for message in get_messages(response.wsgi_request))  # type: ignore[attr-defined]


def test_the_confirmation_lists_the_snapshots_and_the_saving(client: Client, project: Project) -> None:
    volume = VolumeFactory(project=project, size_gb=50)
    snapshots = [SnapshotFactory(volume=volume, name=f"nightly-{number}") for number in range(3)]
    sell_everywhere(400_000)

    page = client.get(asking(*snapshots)).content.decode()

    for text in ("nightly-0", "nightly-2", "Delete 3 snapshots for good?", "Type “delete 3 snapshots” to confirm"):
        assert text in page
    assert "You stop paying K 60.00 an hour, about K 43,920.00 a month." in page
    assert Snapshot.objects.filter(state=State.READY).count() == 3


def test_each_has_its_own_result(client: Client, project: Project) -> None:
    free, busy = SnapshotFactory(volume__project=project), SnapshotFactory(volume__project=project)
    creating = SnapshotFactory(volume__project=project, creating=True)
    OperationFactory(snapshot=busy, restore=True)
    ids = [snapshot.pk for snapshot in (free, busy, creating)]

    response = client.post(PATH, {"id": ids, "confirmation": " Delete  3 snapshots ", "is_last": "on"})

    page = response.content.decode()
    assert "1 snapshot is being deleted" in page
    assert "2 snapshots are not deleted" in page
    assert "The snapshot is in use (Restore)." in page
    assert "The snapshot is still being taken. Cancel it instead." in page
    assert {snapshot.pk: snapshot.state for snapshot in Snapshot.objects.filter(pk__in=ids)} == {
        free.pk: State.DELETING,
        busy.pk: State.READY,
        creating.pk: State.CREATING,
    }


def test_a_repeated_request_deletes_nothing_twice(client: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    answer = {"id": [snapshot.pk], "confirmation": "delete 1 snapshot", "is_last": "on"}

    for _time in range(2):
        assert "1 snapshot is being deleted" in client.post(PATH, answer).content.decode()
    assert snapshot.operations.count() == 1


@pytest.mark.parametrize("typed", ["", "delete", "delete 2 snapshots"])
def test_without_the_typed_words_nothing_is_deleted_and_the_selection_is_kept(
    client: Client, project: Project, typed: str
) -> None:
    snapshot = SnapshotFactory(volume__project=project)

    page = client.post(PATH, {"id": [snapshot.pk], "confirmation": typed, "is_last": "on"}).content.decode()

    assert "<title>Error: Delete 1 snapshot for good? · 1CNG</title>" in page
    assert f'name="id" value="{snapshot.pk}"' in page
    assert Snapshot.objects.get().state == State.READY


def test_one_unknown_id_is_a_404_for_all(client: Client, project: Project) -> None:
    mine, strange = SnapshotFactory(volume__project=project), SnapshotFactory()

    assert client.get(asking(mine, strange)).status_code == 404
    for other in (strange.pk, uuid4(), "no-id"):
        answer = {"id": [mine.pk, other], "confirmation": "delete 2 snapshots", "is_last": "on"}
        assert client.post(PATH, answer).status_code == 404
    assert Snapshot.objects.filter(state=State.READY).count() == 2


def test_a_viewer_who_deletes_many_gets_the_reason_for_the_refusal(
    project: Project, client_for: Callable[..., Client]
) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))

    response = viewer.post(PATH, {"id": [snapshot.pk], "confirmation": "delete 1 snapshot", "is_last": "on"})

    assert response.status_code == 403
    assert "Viewer" in response.content.decode()
    assert f'value="{snapshot.pk}"' not in viewer.get("/snapshots/").content.decode()


def test_nothing_or_too_much_selected_explains_itself(client: Client, project: Project) -> None:
    nothing = client.get(PATH, {"kind": "vm"})
    assert nothing["Location"] == "/snapshots/vm/"
    assert "Nothing was selected." in messages_of(nothing)

    many = client.get(PATH, {"id": [uuid4() for _number in range(services.MAX_DELETIONS + 1)]})
    assert many["Location"] == "/snapshots/"
    assert "at most 50 can be deleted at once" in messages_of(many)


def test_only_what_can_be_deleted_can_be_selected(client: Client, project: Project) -> None:
    ready = SnapshotFactory(volume__project=project)
    creating = SnapshotFactory(volume__project=project, creating=True)

    for view in ("table", "cards"):
        page = client.get(f"/snapshots/?view={view}").content.decode()
        assert f'type="checkbox" name="id" value="{ready.pk}" form="bulk"' in page
        assert f'value="{creating.pk}"' not in page
