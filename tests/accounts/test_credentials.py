"""Application credentials: who creates and revokes them, and when they stop working."""

import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from django.db import IntegrityError, connections, transaction
from django.test import Client
from django.urls import reverse

from cng_portal.accounts.credentials import (
    create_credential,
    issue_token,
    read_token,
    record_use,
    revoke_credential,
    sign_in,
)
from cng_portal.accounts.models import ApplicationCredential, Membership, Project, Role, User
from cng_portal.accounts.roles import ActionRefused
from cng_portal.accounts.signin import confirmation
from cng_portal.activity.models import Activity
from tests.factories import (
    CREDENTIAL_SECRET,
    ApplicationCredentialFactory,
    MembershipFactory,
    ProjectFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
ADDRESS = "203.0.113.7"


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def credential(project: Project) -> ApplicationCredential:
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    return ApplicationCredentialFactory(project=project, user=member)


def answers(project: Project, **others: object) -> dict[str, object]:
    return {
        "name": "nightly",
        "project": project.pk,
        "role": "member",
        "acts": ["snapshot"],
        "valid_for": "90",
    } | others


def can_sign_in(credential: ApplicationCredential, at: datetime = NOW, address: str | None = ADDRESS) -> bool:
    return sign_in(credential.pk, CREDENTIAL_SECRET, address=address, at=at) is not None


def test_a_member_creates_a_credential_and_sees_its_secret_once(
    project: Project, client_for: Callable[..., Client]
) -> None:
    client = client_for(UserFactory(member_of=project, member_of__role=Role.MEMBER))
    response = client.post(reverse("api:new_credential"), answers(project, networks="203.0.113.9/24 2001:db8::1"))
    secret = re.search(r"1cng_[0-9a-f]{48}", response.text)
    assert secret is not None and response["Cache-Control"].startswith("max-age=0, no-cache")
    credential = ApplicationCredential.objects.get()
    assert credential.networks == ["203.0.113.0/24", "2001:db8::1/128"]
    assert sign_in(credential.pk, secret[0], address=ADDRESS, at=credential.created_at) == credential
    assert credential.secret_hash not in response.text
    page = client.get(reverse("api:credentials")).text
    assert "nightly" in page and secret[0] not in page
    entry = Activity.objects.get(action="credential.create")
    assert (entry.target_name, entry.after["acts"]) == ("nightly", ["snapshot"])
    # The same form again creates no second one.
    assert "You already have a credential" in client.post(reverse("api:new_credential"), answers(project)).text


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"role": "owner"}, "Your own role in this project is Member"),
        ({"networks": "10.0.0.0/33"}, "is not an address or network"),
        ({"name": ""}, "Enter a name"),
        ({"project": "4b42a7a1-53ea-41a9-9a2e-5ab21a8d1234"}, "Select a valid choice"),
    ],
)
def test_invalid_answers_are_explained_and_lose_nothing(
    wrong: dict[str, str], text: str, project: Project, client_for: Callable[..., Client]
) -> None:
    client = client_for(UserFactory(member_of=project, member_of__role=Role.MEMBER))
    page = client.post(reverse("api:new_credential"), answers(project, valid_for="365") | wrong).text
    assert text in page
    assert 'value="365" selected' in page
    assert not ApplicationCredential.objects.exists()


def test_creating_a_credential_asks_for_a_recent_confirmation(
    project: Project, client_for: Callable[..., Client]
) -> None:
    client = client_for(UserFactory(member_of=project, password="a password of the tests"))
    session = client.session
    session[confirmation.CONFIRMED_AT] = time.time() - confirmation.VALID_SECONDS - 1
    session.save()
    for response in (
        client.get(reverse("api:new_credential")),
        client.post(reverse("api:new_credential"), answers(project)),
    ):
        assert response["Location"].startswith(reverse("account_reauthenticate"))
    assert not ApplicationCredential.objects.exists()


def test_only_its_user_and_owners_of_the_project_see_and_revoke_it(
    credential: ApplicationCredential, client_for: Callable[..., Client]
) -> None:
    colleague = UserFactory(member_of=credential.project, member_of__role=Role.MEMBER)
    url = reverse("api:revoke", args=[credential.pk])
    assert client_for(colleague).post(url).status_code == 404
    assert can_sign_in(credential)
    token = issue_token(credential, expires_at=NOW + timedelta(hours=1))
    owner = client_for(UserFactory(member_of=credential.project))
    assert credential.name in owner.get(reverse("api:credentials")).text
    assert "signed out at once" in owner.get(url).text
    owner.post(url)
    assert not can_sign_in(credential)
    assert read_token(token, address=ADDRESS, at=NOW) == (None, None)
    assert Activity.objects.filter(action="credential.revoke").count() == 1
    assert owner.post(url).status_code == 404


def lower_role(credential: ApplicationCredential) -> None:
    Membership.objects.update(role=Role.VIEWER)


def leave(credential: ApplicationCredential) -> None:
    Membership.objects.all().delete()


def deactivate(credential: ApplicationCredential) -> None:
    User.objects.update(is_active=False)


def revoke(credential: ApplicationCredential) -> None:
    revoke_credential(credential=credential, by=credential.user, at=NOW)


def expire(credential: ApplicationCredential) -> None:
    ApplicationCredential.objects.update(expires_at=NOW)


def restrict(credential: ApplicationCredential) -> None:
    ApplicationCredential.objects.update(networks=["198.51.100.0/24"])


@pytest.mark.parametrize("end", [lower_role, leave, deactivate, revoke, expire, restrict])
def test_a_credential_and_its_tokens_end_at_once(
    end: Callable[[ApplicationCredential], None], credential: ApplicationCredential
) -> None:
    token = issue_token(credential, expires_at=NOW + timedelta(hours=1))
    assert can_sign_in(credential) and read_token(token, address=ADDRESS, at=NOW)[0] == credential
    end(credential)
    assert not can_sign_in(credential)
    assert read_token(token, address=ADDRESS, at=NOW) == (None, None)


@pytest.mark.both_databases
def test_the_database_keeps_a_credential_revoked_and_with_its_owner(credential: ApplicationCredential) -> None:
    other = MembershipFactory()
    own = ApplicationCredential.objects.filter(pk=credential.pk)
    own.update(revoked_at=NOW)
    for fields in ({"revoked_at": None}, {"user": other.user}, {"project": other.project}, {"secret_hash": "0" * 64}):
        with pytest.raises(IntegrityError), transaction.atomic():
            own.update(**fields)


def test_a_token_ends_after_its_time_and_cannot_be_changed(credential: ApplicationCredential) -> None:
    expires_at = NOW + timedelta(hours=1)
    token = issue_token(credential, expires_at=expires_at)
    assert read_token(token, address=ADDRESS, at=NOW) == (credential, expires_at)
    assert read_token(token, address=ADDRESS, at=expires_at) == (None, None)
    later = token.replace(str(int(expires_at.timestamp())), str(int(expires_at.timestamp()) + 3600))
    other = token.replace(credential.pk.hex, ApplicationCredentialFactory(secret_hash="0" * 64).pk.hex)
    for forged in (later, other, token[:-1], "", "x", f"{credential.pk.hex}.99999999999999999999:x", "é.1:\x00"):
        assert read_token(forged, address=ADDRESS, at=NOW) == (None, None)


def test_a_wrong_secret_is_refused_and_an_address_outside_its_networks_too(credential: ApplicationCredential) -> None:
    assert sign_in(credential.pk, "1cng_" + 24 * "5f", address=ADDRESS, at=NOW) is None
    ApplicationCredential.objects.update(networks=["203.0.113.0/24"])
    assert can_sign_in(credential)
    assert not can_sign_in(credential, address="203.0.114.7")
    assert not can_sign_in(credential, address="2001:db8::1")
    assert not can_sign_in(credential, address=None)


def test_the_last_use_is_recorded_once_a_minute(credential: ApplicationCredential) -> None:
    for seconds, address in ((0, ADDRESS), (30, ADDRESS), (40, "203.0.113.8"), (110, "203.0.113.8")):
        credential.refresh_from_db()
        record_use(credential, address=address, at=NOW + timedelta(seconds=seconds))
        last = ApplicationCredential.objects.get()
        seen = 0 if seconds == 30 else seconds
        assert (last.last_used_at, last.last_used_from) == (NOW + timedelta(seconds=seen), address)


@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_one_name_at_one_instant_in_projects_of_several_customers_is_refused_all_but_once() -> None:
    user, number = UserFactory(), 8
    projects = [MembershipFactory(user=user, role=Role.MEMBER).project for _ in range(number)]
    barrier = Barrier(number)

    def create(project: Project) -> str:
        try:
            barrier.wait()
            create_credential(
                user=user, project=project, name="nightly", role="member", acts=[], networks=[], expires_at=None, at=NOW
            )
            return "created"
        except ActionRefused:
            return "refused"
        finally:
            connections.close_all()

    with ThreadPoolExecutor(number) as pool:
        assert Counter(pool.map(create, projects)) == {"created": 1, "refused": number - 1}


@pytest.mark.both_databases
def test_names_that_differ_in_case_alone_are_one_name(project: Project, client_for: Callable[..., Client]) -> None:
    client = client_for(UserFactory(member_of=project, member_of__role=Role.MEMBER))
    for name in ("STRAẞE", "straße"):  # PostgreSQL's lower() makes one of them, and its upper() doesn't.
        page = client.post(reverse("api:new_credential"), answers(project, name=name)).text
    assert "You already have a credential" in page
