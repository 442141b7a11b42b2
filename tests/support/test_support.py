"""Support contacts: on error pages, in Help and in e-mails, if the provider has entered them."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core import mail as outbox
from django.db import IntegrityError, connection, transaction
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone

from cng_portal.common.full_disk import server_error
from cng_portal.mail import services as mail
from cng_portal.mail.models import OutgoingMail
from cng_portal.support.models import SupportContact
from cng_portal.support.services import contact_support
from snapshots.errors import QuotaExceeded
from snapshots.limits import QuotaUse
from tests.factories import MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db

ADD, CHANGE = reverse("admin:support_supportcontact_add"), reverse("admin:support_supportcontact_change", args=[1])


@pytest.fixture
def contact() -> SupportContact:
    return SupportContact.objects.create(
        email="help@example.com", phone="+95 1 (234) 567", url="https://support.example.com/"
    )


@pytest.fixture
def member_client(client_for: Callable[..., Client]) -> Client:
    return client_for(MembershipFactory().user, raise_request_exception=False)


def test_help_says_how_to_reach_support(member_client: Client, contact: SupportContact) -> None:
    page = member_client.get(reverse("help:index")).content.decode()
    assert 'href="mailto:help@example.com"' in page
    assert 'href="tel:+951234567"' in page and "+95 1 (234) 567" in page
    assert 'href="https://support.example.com/"' in page


def test_the_page_of_an_error_says_which_request_to_quote(member_client: Client, contact: SupportContact) -> None:
    answer = member_client.get("/no-such-page/")
    assert answer.status_code == 404
    assert "help@example.com" in answer.content.decode()
    assert answer["X-Request-ID"] in answer.content.decode()


def test_nothing_promises_support_where_no_contact_is_entered(member_client: Client) -> None:
    SupportContact.objects.create()
    for address in (reverse("help:index"), "/no-such-page/"):
        assert "Contact support" not in member_client.get(address).content.decode()
    assert contact_support() == ""


def test_a_refusal_ends_with_how_to_reach_support(contact: SupportContact) -> None:
    contacts = "help@example.com, +95 1 (234) 567, https://support.example.com/"
    assert contact_support() == f" Contact support: {contacts}."


def test_every_e_mail_ends_with_how_to_reach_support(contact: SupportContact) -> None:
    now = timezone.now()
    expires_at = now + timedelta(days=1)
    kind = OutgoingMail.Kind.NOTIFICATION
    mail.enqueue(kind=kind, recipient="a@example.com", subject="s", body="b", expires_at=expires_at)
    assert mail.send_due(now=now) == 1
    assert outbox.outbox[0].body == (
        "b\n\n-- \nSupport: help@example.com, +95 1 (234) 567, https://support.example.com/"
    )


def test_a_page_omits_what_it_cannot_read(member_client: Client, contact: SupportContact) -> None:
    with connection.schema_editor() if connection.vendor == "postgresql" else transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE support_supportcontact RENAME TO elsewhere")
    assert member_client.get(reverse("help:index")).status_code == 200
    assert member_client.get("/no-such-page/").status_code == 404


def test_the_error_page_makes_no_queries_after_a_database_failure(contact: SupportContact) -> None:
    def page_after(error: Exception) -> str:
        try:
            raise error
        except type(error):
            return server_error(RequestFactory().get("/")).content.decode()

    assert "help@example.com" in page_after(ValueError())
    assert "help@example.com" not in page_after(IntegrityError())


def test_there_is_a_single_contact(contact: SupportContact) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        SupportContact.objects.bulk_create([SupportContact(pk=2)])


def test_an_administrator_enters_the_contact_once(client_for: Callable[..., Client]) -> None:
    desk = client_for(UserFactory(is_staff=True, is_superuser=True))
    changelist = reverse("admin:support_supportcontact_changelist")
    assert desk.get(changelist)["Location"] == ADD

    answer = desk.post(ADD, {"email": "help@example.com", "phone": "call us", "url": ""})
    assert "Enter a phone number such as +95 1 234 567." in answer.content.decode()
    assert 'value="help@example.com"' in answer.content.decode()

    desk.post(ADD, {"email": "help@example.com", "phone": "+95 1 234 567", "url": ""})
    assert SupportContact.objects.get().phone == "+95 1 234 567"
    assert desk.get(changelist)["Location"] == CHANGE
    again = desk.post(ADD, {"email": "other@example.com", "phone": "", "url": ""})
    assert "There is a support contact already. Change that one." in again.content.decode()


def test_a_customer_cannot_enter_it(member_client: Client, contact: SupportContact) -> None:
    answer = member_client.post(CHANGE, {"email": "mine@example.com"})
    assert answer.status_code in (302, 403)
    assert SupportContact.objects.get().email == "help@example.com"


def test_a_refusal_that_sends_to_the_provider_says_how_to_reach_it(contact: SupportContact) -> None:
    with pytest.raises(
        QuotaExceeded, match=r"ask your provider for a higher quota\. Contact support: help@example\.com"
    ):
        QuotaUse("snapshots", 5, 5).require(1)
