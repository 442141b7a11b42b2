"""Outgoing e-mail in Django admin: failures with their reasons, bodies without links, and resending."""

from collections.abc import Callable

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from tests.factories import OutgoingMailFactory, UserFactory
from tests.smtp import sent_mails

pytestmark = pytest.mark.django_db

LIST = reverse("admin:mail_outgoingmail_changelist")


@pytest.fixture
def support(client_for: Callable[..., Client]) -> Client:
    return client_for(UserFactory(admin=True))


def test_failed_emails_are_listed_with_their_reason_and_without_their_links(support: Client) -> None:
    failed = OutgoingMailFactory(
        recipient="bad@example.com", failed_at=timezone.now(), error="550 5.1.1 No such user", body="/secret-link/"
    )
    delayed = OutgoingMailFactory(recipient="late@example.com", error="450 4.2.0 Greylisted")
    OutgoingMailFactory(recipient="fine@example.com", sent_at=timezone.now())
    page = support.get(LIST, {"state": "failed"}).text
    assert "550 5.1.1 No such user" in page
    assert delayed.recipient not in page
    assert delayed.recipient in support.get(LIST, {"state": "delayed"}).text
    assert "fine@example.com" in support.get(LIST, {"q": "fine@"}).text
    assert failed.recipient in support.get(LIST, {"q": str(failed.pk)}).text
    detail = support.get(reverse("admin:mail_outgoingmail_change", args=[failed.pk])).text
    assert "550 5.1.1 No such user" in detail
    assert "secret-link" not in page + detail


def test_an_administrator_sends_failed_emails_again(support: Client) -> None:
    failed = OutgoingMailFactory(failed_at=timezone.now(), error="550 5.7.1 Relaying denied", attempts=1)
    sent = OutgoingMailFactory(sent_at=timezone.now())
    chosen = {"action": "send_again", ACTION_CHECKBOX_NAME: [failed.pk, sent.pk]}
    assert "1 e-mail was queued again." in support.post(LIST, chosen, follow=True).text
    assert [message.to for message in sent_mails()] == [[failed.recipient]]
