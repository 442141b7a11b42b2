"""Outgoing e-mail with a real SMTP server that refuses, defers, hangs up, is silent or is down."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from smtplib import SMTP
from threading import Barrier
from typing import Any

import pytest
from django.db import connection, connections
from django.utils import timezone

from cng_portal.mail import services
from cng_portal.mail.models import OutgoingMail
from tests.factories import OutgoingMailFactory
from tests.smtp import HANG_UP, SILENT, SMTPServer, smtp_server

pytestmark = pytest.mark.django_db

State = OutgoingMail.State
BAD, GOOD = "bad@example.com", "good@example.com"


@pytest.fixture
def now() -> datetime:
    return timezone.now()


@pytest.fixture
def server(settings: Any) -> Iterator[SMTPServer]:
    with smtp_server() as server:
        use(settings, server.port)
        yield server


def use(settings: Any, port: int) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", port


def test_an_email_is_sent_once_and_its_body_is_erased(server: SMTPServer, now: datetime) -> None:
    mail = OutgoingMailFactory(recipient=GOOD, subject="1CNG: Hello", body="https://portal.example.com/secret-link/")
    assert services.send_due(now=now) == 1
    assert services.send_due(now=now + timedelta(days=1)) == 0
    [message] = server.received
    assert (message["To"], message["Subject"]) == (GOOD, "1CNG: Hello")
    assert "secret-link" in message.get_content()
    assert (message["Message-ID"], message["Auto-Submitted"]) == (f"<{mail.pk}@localhost>", "auto-generated")
    mail.refresh_from_db()
    assert (mail.state, mail.sent_at, mail.body, mail.attempts) == (State.SENT, now, "", 1)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("answer", "state", "error"),
    [
        ("550 5.1.1 No such user", State.FAILED, "550 5.1.1 No such user"),
        ("450 4.2.0 Greylisted, try again", State.DELAYED, "450 4.2.0 Greylisted, try again"),
        ("421 4.7.0 Too many connections", State.DELAYED, "421 4.7.0 Too many connections"),
        (HANG_UP, State.DELAYED, "Connection unexpectedly closed"),
        (SILENT, State.DELAYED, "Connection unexpectedly closed: timed out"),
    ],
)
def test_a_failing_recipient_does_not_stop_others(
    server: SMTPServer, settings: Any, now: datetime, answer: str, state: str, error: str
) -> None:
    settings.EMAIL_TIMEOUT = 0.2
    server.answers[BAD] = answer
    first = OutgoingMailFactory(recipient=BAD, created_at=now - timedelta(minutes=1))
    OutgoingMailFactory.create_batch(2, recipient=GOOD)
    assert services.send_due(now=now) == 2
    assert server.recipients == [GOOD, GOOD]
    first.refresh_from_db()
    assert (first.state, first.error, first.attempts) == (state, error, 1)
    assert first.body, "it can be sent again"


def test_a_temporary_failure_is_retried_with_backoff_until_sent(server: SMTPServer, now: datetime) -> None:
    server.answers[BAD] = "450 4.2.0 Greylisted"
    mail = OutgoingMailFactory(recipient=BAD)
    pauses = []
    for _attempt in range(9):
        assert services.send_due(now=now) == 0
        mail.refresh_from_db()
        assert services.send_due(now=mail.next_attempt_at - timedelta(seconds=1)) == 0
        pauses.append((mail.next_attempt_at - now) // timedelta(minutes=1))
        now = mail.next_attempt_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert server.connections == 9
    server.answers.clear()
    assert services.send_due(now=now) == 1
    mail.refresh_from_db()
    assert (mail.state, mail.attempts, mail.error, mail.next_attempt_at) == (State.SENT, 10, "", None)


def test_a_message_that_the_server_refuses_fails_for_good(server: SMTPServer, now: datetime) -> None:
    server.answers["DATA"] = "554 5.7.1 Looks like spam"
    mail = OutgoingMailFactory()
    assert services.send_due(now=now) == 0
    mail.refresh_from_db()
    assert (mail.state, mail.error) == (State.FAILED, "554 5.7.1 Looks like spam")


@pytest.mark.parametrize("recipient", ["a@b..example.com", f"a@{'x' * 70}.example.com", "a@exa\nmple.com"])
def test_an_address_that_cannot_be_written_fails_for_good(server: SMTPServer, now: datetime, recipient: str) -> None:
    mail = OutgoingMailFactory(recipient=recipient, created_at=now - timedelta(minutes=1))
    OutgoingMailFactory(recipient=GOOD)
    assert services.send_due(now=now) == 1
    assert server.recipients == [GOOD]
    mail.refresh_from_db()
    assert mail.state == State.FAILED


def test_an_unreachable_server_ends_the_round_and_e_mails_are_sent_later(settings: Any, now: datetime) -> None:
    OutgoingMailFactory.create_batch(5)
    use(settings, 1)  # nothing listens there
    assert services.send_due(now=now) == 0
    assert services.send_due(now=now) == 0
    attempts = OutgoingMail.objects.order_by("-attempts").values_list("attempts", flat=True)
    assert list(attempts) == [1, 1, 0, 0, 0], "one attempt a turn, with another e-mail each time"
    assert "refused" in OutgoingMail.objects.exclude(error="").first().error
    with smtp_server() as server:
        use(settings, server.port)
        assert services.send_due(now=now + timedelta(minutes=1)) == 5
        assert server.connections == 1


def test_a_refused_sender_or_password_does_not_fail_the_e_mail(
    server: SMTPServer, settings: Any, now: datetime
) -> None:
    settings.EMAIL_HOST_USER, settings.EMAIL_HOST_PASSWORD = "portal", "wrong"  # which the server doesn't support
    mail = OutgoingMailFactory()
    assert services.send_due(now=now) == 0
    mail.refresh_from_db()
    assert mail.state == State.DELAYED


def test_an_unexpected_error_is_logged_and_does_not_stop_others(
    server: SMTPServer, monkeypatch: pytest.MonkeyPatch, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    sendmail = SMTP.sendmail

    def fail_once(self: SMTP, *args: Any) -> Any:
        monkeypatch.setattr(SMTP, "sendmail", sendmail)
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(SMTP, "sendmail", fail_once)
    first = OutgoingMailFactory(created_at=now - timedelta(minutes=1))
    OutgoingMailFactory(recipient=GOOD)
    assert services.send_due(now=now) == 1
    assert server.recipients == [GOOD]
    first.refresh_from_db()
    assert (first.state, first.error) == (State.DELAYED, "dictionary changed size during iteration")
    assert "RuntimeError" in caplog.text


def test_an_expired_e_mail_fails_with_a_reason(server: SMTPServer, now: datetime) -> None:
    server.answers[BAD] = "450 4.2.2 Mailbox full"
    delayed = OutgoingMailFactory(recipient=BAD, expires_at=now + timedelta(minutes=30))
    services.send_due(now=now)
    late = OutgoingMailFactory(recipient=GOOD, expires_at=now)
    assert services.send_due(now=now + timedelta(minutes=30)) == 0
    delayed.refresh_from_db()
    late.refresh_from_db()
    assert (delayed.state, delayed.error, delayed.body) == (State.FAILED, "450 4.2.2 Mailbox full", "")
    assert (late.state, late.error, late.body) == (State.FAILED, "Expired before it was sent", "")


def test_a_clock_set_back_does_not_delay_e_mails(server: SMTPServer, now: datetime) -> None:
    OutgoingMailFactory(attempts=1, error="450", next_attempt_at=now + timedelta(minutes=61))
    OutgoingMailFactory(recipient=GOOD, attempts=1, error="450", next_attempt_at=now + timedelta(hours=7))
    assert services.send_due(now=now) == 1
    assert server.recipients == [GOOD]


def test_a_new_email_does_not_wait_behind_those_that_keep_failing(server: SMTPServer, now: datetime) -> None:
    OutgoingMailFactory(recipient="old@example.com", attempts=3, error="450", created_at=now - timedelta(hours=1))
    OutgoingMailFactory(recipient="new@example.com")
    services.send_due(now=now)
    assert server.recipients == ["new@example.com", "old@example.com"]


def test_failed_emails_can_be_queued_again_until_they_expire(server: SMTPServer, now: datetime) -> None:
    server.answers[BAD] = "550 5.7.1 Relaying denied"
    mail = OutgoingMailFactory(recipient=BAD)
    services.send_due(now=now)
    del server.answers[BAD]
    assert services.retry(OutgoingMail.objects.all(), now=mail.expires_at) == 0
    assert services.retry(OutgoingMail.objects.all(), now=now) == 1
    assert services.send_due(now=now) == 1
    assert services.retry(OutgoingMail.objects.all(), now=now) == 0


def test_old_rows_are_deleted_and_expired_bodies_erased(now: datetime) -> None:
    failed = OutgoingMailFactory(failed_at=now, error="550", expires_at=now + timedelta(hours=1))
    OutgoingMailFactory(sent_at=now, created_at=now - timedelta(days=91))
    assert services.delete_old(now=now) == 1
    failed.refresh_from_db()
    assert failed.body
    services.delete_old(now=now + timedelta(hours=1))
    failed.refresh_from_db()
    assert failed.body == ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
def test_eight_concurrent_senders_send_each_email_once(server: SMTPServer, now: datetime) -> None:
    mails = OutgoingMailFactory.create_batch(20)
    barrier = Barrier(8)

    def send(_number: int) -> int:
        try:
            barrier.wait()
            return services.send_due(now=now)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(send, range(8))) == len(mails)
    assert sorted(server.recipients) == sorted(mail.recipient for mail in mails)
    assert set(OutgoingMail.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.django_db(transaction=True)
@pytest.mark.both_databases
@pytest.mark.parametrize("moment", ["before it is sent", "after it is sent"])
def test_an_email_arrives_although_its_sender_was_killed(server: SMTPServer, now: datetime, moment: str) -> None:
    """SIGKILL after the claim: before the server has the message, or before the row records it."""
    mail = OutgoingMailFactory(recipient=GOOD)
    victim = 0

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL

    if moment == "before it is sent":
        server.answers[GOOD] = SILENT
    else:
        server.after_message = kill
    connections.close_all()
    if connection.vendor == "postgresql":
        connection.close_pool()
    victim = os.fork()
    if victim == 0:
        services.send_due(now=now)
        os._exit(1)
    if moment == "before it is sent":
        server.is_silent.wait(20)
        kill()
    else:
        server.has_received.wait(20)
    mail.refresh_from_db()
    assert (mail.attempts, mail.sent_at, mail.failed_at) == (1, None, None)

    server.answers.clear()
    server.after_message = None
    assert services.send_due(now=now + services.LEASE - timedelta(seconds=1)) == 0
    assert services.send_due(now=now + services.LEASE) == 1
    assert set(server.recipients) == {GOOD}
    assert {message["Message-ID"] for message in server.received} == {f"<{mail.pk}@localhost>"}
    mail.refresh_from_db()
    assert (mail.state, mail.attempts) == (State.SENT, 2)


@pytest.mark.both_databases
def test_a_sender_past_its_lease_overwrites_nothing(now: datetime) -> None:
    """It hung for longer than its lease, and another process has sent the e-mail."""
    mail = OutgoingMailFactory()
    assert services.claim(mail, now=now)
    assert services.send_due(now=now + services.LEASE) == 1
    services.record_failure(mail, OSError("timed out"), now=now + services.LEASE)
    mail.refresh_from_db()
    assert (mail.state, mail.error) == (State.SENT, "")


def test_the_status_counts_waiting_and_recently_failed_e_mails(now: datetime) -> None:
    empty = services.queue_status(now=now)
    assert (empty.waiting, empty.oldest_wait, sum(empty.failed_recently.values())) == (0, timedelta(), 0)
    OutgoingMailFactory(created_at=now - timedelta(minutes=40), attempts=3, error="450")
    OutgoingMailFactory(sent_at=now)
    OutgoingMailFactory(failed_at=now - timedelta(minutes=59), kind="invitation")
    OutgoingMailFactory(failed_at=now - timedelta(minutes=61), kind="invitation")
    status = services.queue_status(now=now)
    assert (status.waiting, status.oldest_wait) == (1, timedelta(minutes=40))
    assert status.failed_recently == {"notification": 0, "invitation": 1, "account": 0, "operations": 0}
