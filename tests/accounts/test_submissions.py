"""A form that is submitted twice takes effect once."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Invitation, Project, Submission
from cng_portal.inventory.models import Volume
from snapshots.models import Operation, Snapshot
from tests.factories import ProjectFactory, SnapshotFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory(customer__postpaid=True)


@pytest.fixture
def client(project: Project, client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(member_of=project))


@pytest.fixture
def snapshot(project: Project) -> Snapshot:
    return SnapshotFactory(volume__project=project)


def new_volume(snapshot: Snapshot) -> str:
    return reverse("snapshots:new_volume", args=[snapshot.pk])


def answers(snapshot: Snapshot, **changes: object) -> dict[str, object]:
    return {"name": "copy", "size_gb": 1, "project": snapshot.project_id, "form_key": uuid4()} | changes


def made_from(snapshot: Snapshot) -> int:
    return Volume.objects.exclude(pk=snapshot.volume_id).count()


def test_a_repeated_form_redirects_to_the_result_of_the_first(client: Client, snapshot: Snapshot) -> None:
    form = answers(snapshot)
    first, second = client.post(new_volume(snapshot), form), client.post(new_volume(snapshot), form)
    assert made_from(snapshot) == 1
    volume = Volume.objects.get(name="copy")
    assert first["Location"] == second["Location"] == reverse("snapshots:volume", args=[volume.pk])
    client.post(new_volume(snapshot), answers(snapshot))
    assert made_from(snapshot) == 2


@pytest.mark.parametrize("action", ["new_volume", "delete", "verify"])
def test_each_form_carries_a_key_of_its_own(client: Client, snapshot: Snapshot, action: str) -> None:
    path = reverse(f"snapshots:{action}", args=[snapshot.pk])
    keys = {re.search(r'name="form_key" value="([0-9a-f-]{36})"', client.get(path).text)[1] for _ in range(2)}  # type: ignore[index]
    assert len(keys) == 2


def test_a_verification_that_is_sent_again_after_it_ended_is_not_repeated(client: Client, snapshot: Snapshot) -> None:
    form = {"form_key": uuid4()}
    path = reverse("snapshots:verify", args=[snapshot.pk])
    client.post(path, form)
    Operation.objects.update(state=Operation.State.SUCCEEDED, finished_at=timezone.now(), attempt=1)
    assert client.post(path, form).status_code == 302
    assert Operation.objects.count() == 1


def test_an_invitation_form_sent_twice_invites_once(client: Client, project: Project) -> None:
    path = reverse("accounts:invite", args=[project.pk])
    form = {"email": "guest@example.com", "role": "member", "form_key": uuid4()}
    assert [client.post(path, form).status_code for _ in range(2)] == [302, 302]
    assert Invitation.objects.count() == 1


def test_a_refused_form_may_be_sent_again(client: Client, snapshot: Snapshot) -> None:
    key = uuid4()
    assert client.post(new_volume(snapshot), answers(snapshot, name="", form_key=key)).status_code == 200
    assert client.post(new_volume(snapshot), answers(snapshot, form_key=key)).status_code == 302
    assert made_from(snapshot) == 1


@pytest.mark.parametrize("key", ["", "nonsense"])
def test_a_form_without_a_key_works(client: Client, snapshot: Snapshot, key: str) -> None:
    assert client.post(new_volume(snapshot), answers(snapshot, form_key=key)).status_code == 302
    assert made_from(snapshot) == 1


def test_another_users_key_is_useless(client: Client, snapshot: Snapshot) -> None:
    key = Submission.objects.create(key=uuid4(), user=UserFactory(), url="/secret/").key
    assert client.post(new_volume(snapshot), answers(snapshot, form_key=key)).status_code == 404
    assert made_from(snapshot) == 0


def test_keys_are_deleted_after_a_day(client: Client, snapshot: Snapshot) -> None:
    client.post(new_volume(snapshot), answers(snapshot))
    Submission.objects.update(created_at=timezone.now() - timedelta(days=2))
    client.post(new_volume(snapshot), answers(snapshot))
    assert Submission.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
def test_only_one_of_many_concurrent_posts_is_processed(client: Client, snapshot: Snapshot) -> None:
    form = answers(snapshot)

    def send(_number: int) -> int:
        sender = Client()
        sender.cookies = client.cookies
        try:
            return sender.post(new_volume(snapshot), form).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as senders:
        assert set(senders.map(send, range(8))) == {302}
    assert made_from(snapshot) == 1
