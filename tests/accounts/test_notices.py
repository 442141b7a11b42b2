"""The bell: told once, counted until seen, sent once, and nobody else's business."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts import notices
from cng_portal.accounts.models import Notice, Project, Role, User
from snapshots import tasks
from snapshots.models import Operation
from tests.factories import NoticeFactory, OperationFactory, ProjectFactory, SnapshotFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def person() -> User:
    return UserFactory(member_of=ProjectFactory())


def tell(*people: User, key: str = "event") -> None:
    words = ("A backup was missed", "Why")
    notices.tell(users=people, key=key, tone=Notice.Tone.WARNING, words=lambda: words, url="/x/")


@pytest.mark.both_databases
def test_an_event_is_told_once_to_each_person(person: User) -> None:
    other = UserFactory()
    tell(person)
    tell(person, other)
    tell(person, key="another event")
    assert person.notices.count() == 2
    assert other.notices.count() == 1


def test_the_bell_counts_what_is_not_seen_and_the_list_shows_it(
    person: User, client_for: Callable[..., Client]
) -> None:
    client = client_for(person)
    assert "Notices, none of them new" in client.get("/").text
    tell(person)
    NoticeFactory(user=person, seen=True, title="An old one")
    assert "1 new notice<" in client.get("/").text
    page = client.get("/notices/").text
    assert page.index("A backup was missed") and "An old one" in page
    assert page.count(">New<") == 1


def test_following_a_notice_leads_to_its_page_and_has_seen_it(person: User, client_for: Callable[..., Client]) -> None:
    notice = NoticeFactory(user=person, url="/volumes/")
    response = client_for(person).get(reverse("accounts:notice", args=[notice.pk]))
    assert response["Location"] == "/volumes/"
    assert person.notices.unseen().count() == 0


def test_all_are_marked_as_seen_at_once_by_a_post_alone(person: User, client_for: Callable[..., Client]) -> None:
    client = client_for(person)
    tell(person)
    assert client.get("/notices/seen/").status_code == 405
    assert person.notices.unseen().count() == 1
    assert client.post("/notices/seen/", follow=True).redirect_chain == [("/notices/", 302)]
    assert person.notices.unseen().count() == 0


def test_a_notice_is_its_persons_alone(person: User, client_for: Callable[..., Client]) -> None:
    notice = NoticeFactory(user=person)
    stranger = client_for(UserFactory(member_of=ProjectFactory()))
    assert stranger.get(reverse("accounts:notice", args=[notice.pk])).status_code == 404
    assert notice.title not in stranger.get("/notices/").text
    stranger.post("/notices/seen/")
    assert person.notices.unseen().count() == 1


def test_it_goes_out_once_by_e_mail_with_a_link(person: User, settings: Any) -> None:
    settings.PORTAL_URL = "https://portal.example.com"
    tell(person)
    assert notices.send_mails(now=timezone.now()) == 1
    assert notices.send_mails(now=timezone.now()) == 0
    [message] = mail.outbox
    assert (message.to, message.subject) == ([person.email], "1CNG: A backup was missed")
    assert message.body == "A backup was missed\n\nWhy\n\nhttps://portal.example.com/x/"


def test_what_the_mail_server_refuses_is_sent_later(person: User, settings: Any) -> None:
    tell(person)
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1  # where nothing listens
    with pytest.raises(OSError):
        notices.send_mails(now=timezone.now())
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert notices.send_mails(now=timezone.now()) == 1
    assert Notice.objects.get().mailed_at is not None


def test_old_news_is_not_sent_and_goes_in_the_end(person: User) -> None:
    NoticeFactory(user=person, created_at=timezone.now() - timedelta(days=3))
    NoticeFactory(user=person, created_at=timezone.now() - timedelta(days=91), seen=True)
    assert notices.send_mails(now=timezone.now()) == 0
    assert notices.forget_old(now=timezone.now()) == 1


def test_who_is_told_of_a_project_may_change_it_and_of_a_customer_owns_it(person: User) -> None:
    project = Project.objects.get()
    member = UserFactory(member_of=project, member_of__role=Role.MEMBER)
    UserFactory(member_of=project, member_of__role=Role.VIEWER)
    UserFactory(member_of=project, is_active=False)
    assert set(notices.people_of(project)) == {person, member}
    assert list(notices.owners_of(project.customer)) == [person]


def test_who_asked_is_told_of_a_failure_and_everybody_where_nobody_did(person: User) -> None:
    snapshot = SnapshotFactory(project=Project.objects.get(), name="db-01")
    member = UserFactory(member_of=snapshot.project, member_of__role=Role.MEMBER)
    asked = OperationFactory(snapshot=snapshot, kind=Operation.Kind.VERIFY, running=True, requested_by=member)
    tasks.settle_failure(asked, "The storage is silent.", retryable=False, cause=tasks.UNEXPECTED)
    [notice] = Notice.objects.all()
    assert (notice.user, notice.title, notice.text, notice.url) == (
        member,
        "“db-01” could not be verified",
        "The storage is silent.",
        reverse("snapshots:snapshot", args=[snapshot.pk]),
    )
    by_itself = OperationFactory(snapshot=snapshot, kind=Operation.Kind.VERIFY, running=True, requested_by=None)
    tasks.settle_failure(by_itself, "The storage is silent.", retryable=False, cause=tasks.UNEXPECTED)
    assert Operation.objects.filter(state=Operation.State.FAILED).count() == 2
    assert {notice.user for notice in Notice.objects.filter(key=f"operation-{by_itself.pk}")} == {person, member}
