"""Impersonation: an administrator views the portal as a user, with a banner and a log entry, and can't change anything."""

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse

from cng_portal.accounts.models import Project, User
from cng_portal.activity.models import Activity
from tests.factories import NotificationFactory, ProjectFactory, SnapshotFactory, UserFactory

pytestmark = pytest.mark.django_db

BANNER = "You're viewing the portal as Aye."


@pytest.fixture
def project() -> Project:
    return ProjectFactory()


@pytest.fixture
def user(project: Project) -> User:
    return UserFactory(name="Aye", member_of=project)


@pytest.fixture
def impersonator(user: User, client_for: Callable[..., Client]) -> Client:
    client = client_for(UserFactory(admin=True, name="Support"))
    url = reverse("admin:accounts_impersonate", args=[user.pk])
    assert "View as this user" in client.get(url).text
    assert client.post(url)["Location"] == "/"
    return client


def test_every_page_is_the_users_and_has_the_banner(impersonator: Client, project: Project) -> None:
    snapshot = SnapshotFactory(volume__project=project, name="nightly")
    for url in ("/", "/snapshots/", f"/snapshots/{snapshot.pk}/", "/profile/", "/billing/", "/nowhere/"):
        assert BANNER in impersonator.get(url).text, url
    assert "nightly" in impersonator.get("/snapshots/").text


def test_an_impersonator_changes_nothing_and_cannot_open_the_account_pages(
    impersonator: Client, user: User, project: Project
) -> None:
    snapshot = SnapshotFactory(volume__project=project)
    notification = NotificationFactory(user=user)
    for url in (
        reverse("snapshots:verify", args=[snapshot.pk]),
        reverse("accounts:profile"),
        reverse("account_logout"),
    ):
        response = impersonator.post(url)
        assert response.status_code == 403
        assert "change anything. Stop viewing first." in response.text
    for name in ("account_email", "mfa_activate_totp", "mfa_view_recovery_codes", "account_change_password"):
        assert impersonator.get(reverse(name)).status_code == 403
    impersonator.get(reverse("notifications:open", args=[notification.pk]))
    notification.refresh_from_db()
    assert notification.read_at is None
    assert not snapshot.operations.exists()


def test_beginning_and_end_are_in_the_log_of_the_customer(
    impersonator: Client, user: User, client_for: Callable[..., Client]
) -> None:
    response = impersonator.post(reverse("accounts:stop_impersonating"))
    assert response["Location"] == reverse("admin:accounts_user_change", args=[user.pk])
    assert BANNER not in impersonator.get("/").text
    assert impersonator.get("/").context["user"].name == "Support"
    log = Activity.objects.filter(customer=user.customer, target_id=str(user.pk)).order_by("at")
    assert [(entry.action, entry.actor_name) for entry in log] == [
        ("impersonation.start", "Support"),
        ("impersonation.end", "Support"),
    ]
    assert "Impersonation started by an administrator" in client_for(user).get(reverse("activity:log")).text


def test_django_admin_stays_the_administrators_own(impersonator: Client) -> None:
    assert impersonator.get("/admin/").status_code == 200


def test_administrators_cannot_be_impersonated_and_only_administrators_impersonate(
    user: User, client_for: Callable[..., Client]
) -> None:
    admin = UserFactory(admin=True)
    client = client_for(UserFactory(admin=True))
    page = client.post(reverse("admin:accounts_impersonate", args=[admin.pk])).text
    assert "You can view the portal only as an active user" in page
    assert client_for(user).post(reverse("admin:accounts_impersonate", args=[user.pk])).status_code == 302
    assert not Activity.objects.exists()


def test_impersonation_ends_when_the_user_is_no_longer_an_administrator(impersonator: Client) -> None:
    User.objects.filter(is_staff=True).update(is_staff=False)
    assert BANNER not in impersonator.get("/").text
