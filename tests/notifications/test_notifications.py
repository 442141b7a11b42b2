"""Notifications: one per event and user, unread until opened, sent once by e-mail, and invisible to others."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from html import unescape
from threading import Barrier
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts.models import Project, Role, User
from cng_portal.mail.models import OutgoingMail
from cng_portal.notifications import services
from cng_portal.notifications.models import Notification
from snapshots import tasks
from snapshots.models import Operation
from tests.factories import (
    NotificationFactory,
    OperationFactory,
    OutgoingMailFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
)
from tests.smtp import sent_mails

pytestmark = pytest.mark.django_db

LIST = reverse("notifications:list")


@pytest.fixture
def user() -> User:
    return UserFactory(member_of=ProjectFactory())


def notify(*users: User, key: str = "event") -> None:
    message = ("A backup was missed", "Why")
    services.notify(users=users, key=key, level=Notification.Level.WARNING, message=lambda: message, url="/volumes/")


@pytest.mark.both_databases
def test_each_user_is_notified_once_of_an_event(user: User) -> None:
    other = UserFactory()
    notify(user)
    notify(user, other)
    notify(user, key="another event")
    assert user.notifications.count() == 2
    assert other.notifications.count() == 1
    assert OutgoingMail.objects.count() == 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
def test_an_event_reported_by_eight_processes_at_once_is_one_notification_and_one_email(user: User) -> None:
    barrier = Barrier(8)

    def report(_number: int) -> None:
        try:
            barrier.wait()
            notify(user)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(report, range(8)))
    assert user.notifications.count() == 1
    assert [message.to for message in sent_mails()] == [[user.email]]


def test_the_bell_counts_the_unread_ones_and_the_list_shows_them(user: User, client_for: Callable[..., Client]) -> None:
    client = client_for(user)
    assert "No unread notifications" in client.get("/").text
    notify(user)
    NotificationFactory(user=user, read=True, title="An old one")
    assert "1 unread notification<" in client.get("/").text
    page = client.get(LIST).text
    assert page.index("A backup was missed") and "An old one" in page
    assert page.count(">New<") == 1


def test_opening_a_notification_leads_to_its_page_and_marks_it_as_read(
    user: User, client_for: Callable[..., Client]
) -> None:
    notification = NotificationFactory(user=user, url="/volumes/")
    response = client_for(user).get(reverse("notifications:open", args=[notification.pk]))
    assert response["Location"] == "/volumes/"
    assert user.notifications.unread().count() == 0


def test_all_are_marked_as_read_at_once_by_a_post_alone(user: User, client_for: Callable[..., Client]) -> None:
    client = client_for(user)
    notify(user)
    assert client.get(reverse("notifications:mark_all_read")).status_code == 405
    assert user.notifications.unread().count() == 1
    assert client.post(reverse("notifications:mark_all_read"), follow=True).redirect_chain == [(LIST, 302)]
    assert user.notifications.unread().count() == 0


def test_a_notification_is_visible_only_to_its_user(user: User, client_for: Callable[..., Client]) -> None:
    notification = NotificationFactory(user=user)
    stranger = client_for(UserFactory(member_of=ProjectFactory()))
    assert stranger.get(reverse("notifications:open", args=[notification.pk])).status_code == 404
    assert stranger.post(reverse("notifications:resend", args=[notification.pk])).status_code == 404
    assert notification.title not in stranger.get(LIST).text
    stranger.post(reverse("notifications:mark_all_read"))
    assert user.notifications.unread().count() == 1


def test_a_notification_is_sent_once_by_email_with_a_link(user: User, settings: Any) -> None:
    settings.PORTAL_URL = "https://portal.example.com"
    notify(user)
    sent_mails()
    [message] = sent_mails()
    assert (message.to, message.subject) == ([user.email], "1CNG: A backup was missed")
    assert message.body == "A backup was missed\n\nWhy\n\nhttps://portal.example.com/volumes/"


def test_an_email_that_failed_is_shown_and_sent_again_to_the_present_address(
    user: User, client_for: Callable[..., Client]
) -> None:
    notify(user)
    OutgoingMail.objects.update(failed_at=timezone.now(), error="550 5.1.1 No such user")
    client = client_for(user)
    page = client.get(LIST).text
    assert f"The e-mail to {user.email} wasn't delivered: 550 5.1.1 No such user" in page
    User.objects.update(email="new@example.com")
    resend = reverse("notifications:resend", args=[user.notifications.get().pk])
    assert "The e-mail is on its way to new@example.com again." in client.post(resend, follow=True).text
    [message] = sent_mails()
    assert (message.to, "A backup was missed" in message.body) == (["new@example.com"], True)
    page = unescape(client.post(resend, follow=True).text)
    assert "Nothing was sent: the e-mail hasn't failed." in page
    assert "delivered" not in page
    assert len(sent_mails()) == 1


def test_old_notifications_are_deleted(user: User) -> None:
    NotificationFactory(user=user, created_at=timezone.now() - timedelta(days=89))
    NotificationFactory(
        user=user, created_at=timezone.now() - timedelta(days=91), read=True, mail=OutgoingMailFactory()
    )
    assert services.delete_old(now=timezone.now()) == 1


def test_members_can_change_the_project_and_owners_own_it(user: User) -> None:
    project = Project.objects.get()
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    UserFactory(member_of=project, member_of__role=Role.VIEWER)
    UserFactory(member_of=project, is_active=False)
    assert set(services.project_members(project)) == {user, member}
    assert list(services.customer_owners(project.customer)) == [user]


def test_a_failure_notifies_its_requester_or_else_all_members(user: User) -> None:
    snapshot = SnapshotFactory(project=Project.objects.get(), name="db-01")
    member = UserFactory(member_of=snapshot.project, member_of__role=Role.MEMBER)
    operation = OperationFactory(snapshot=snapshot, kind=Operation.Kind.VERIFY, running=True, requested_by=member)
    tasks.retry_or_fail(operation, "The storage is silent.", retryable=False, cause=tasks.UNEXPECTED)
    [notification] = Notification.objects.all()
    assert (notification.user, notification.title, notification.text, notification.url) == (
        member,
        "“db-01” could not be verified",
        "The storage is silent.",
        reverse("snapshots:snapshot", args=[snapshot.pk]),
    )
    by_itself = OperationFactory(snapshot=snapshot, kind=Operation.Kind.VERIFY, running=True, requested_by=None)
    tasks.retry_or_fail(by_itself, "The storage is silent.", retryable=False, cause=tasks.UNEXPECTED)
    assert Operation.objects.filter(state=Operation.State.FAILED).count() == 2
    notified = Notification.objects.filter(key=f"operation-{by_itself.pk}")
    assert {notification.user for notification in notified} == {user, member}
