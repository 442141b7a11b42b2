"""Sending e-mail: every e-mail of the portal is a row first, and leaves by `send_due`."""

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from smtplib import SMTPDataError, SMTPRecipientsRefused
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db.models import Count, F, Min
from django.utils.translation import gettext as _

from cng_portal.support.services import load_contact

from .models import LONGEST_BACKOFF, OutgoingMail, OutgoingMailQuerySet

logger = structlog.stdlib.get_logger(__name__)

BATCH = 200
# The scheduler has other duties, and each unreachable server costs EMAIL_TIMEOUT.
TURN = timedelta(seconds=20)
# Longer than the slowest attempt: the turn, then a dozen SMTP commands that each take EMAIL_TIMEOUT.
LEASE = timedelta(minutes=5)
EXPIRES_AFTER = timedelta(days=2)
KEEP_FOR = timedelta(days=90)
LONGEST_ERROR = 500


def enqueue(*, kind: str, recipient: str, subject: str, body: str, expires_at: datetime) -> OutgoingMail:
    """Queue an e-mail. Call it in the transaction of the event that it reports."""
    longest = OutgoingMail._meta.get_field("subject").max_length
    return OutgoingMail.objects.create(
        kind=kind,
        recipient=recipient,
        subject=" ".join(subject.split())[:longest],
        body=body,
        expires_at=expires_at,
    )


def enqueue_for_admins(*, subject: str, body: str, now: datetime) -> None:
    """Queue an e-mail to each of ADMINS."""
    for _name, address in settings.ADMINS:
        enqueue(
            kind=OutgoingMail.Kind.OPERATIONS,
            recipient=address,
            subject=f"1CNG: {subject}",
            body=body,
            expires_at=now + EXPIRES_AFTER,
        )


def cancel(mails: OutgoingMailQuerySet) -> None:
    """Delete the e-mails that haven't been sent."""
    mails.filter(sent_at=None).delete()


def send_due(*, now: datetime) -> int:
    """Send the e-mails that are due, those with the fewest attempts first. Returns how many were sent.

    Delivery is at least once. An e-mail is claimed before it is sent, by a compare-and-set that counts the attempt and
    sets the time from which another process may claim it; if this process dies in between, it is sent then. A copy
    has the same Message-ID. An e-mail that fails does not stop the next one. A server that can't be reached ends the
    turn: the others stay due, and the next turn begins with another one.
    """
    fail_expired(now=now)
    due = list(OutgoingMail.objects.due(now).order_by("attempts", "created_at")[:BATCH])
    if not due:
        return 0
    sent = 0
    stop_at = time.monotonic() + TURN.total_seconds()
    server = get_connection()
    try:
        for mail in due:
            if time.monotonic() > stop_at:
                break
            if not claim(mail, now=now):
                continue
            if not connect(server, mail, now=now):
                break
            sent += deliver(mail, server, now=now)
    finally:
        close(server)
    return sent


def claim(mail: OutgoingMail, *, now: datetime) -> bool:
    """Claim the e-mail. Returns False if another process claimed it first."""
    same_attempt = OutgoingMail.objects.due(now).filter(pk=mail.pk, attempts=mail.attempts)
    claimed = same_attempt.update(attempts=F("attempts") + 1, next_attempt_at=now + LEASE)
    mail.attempts += 1
    return bool(claimed)


def connect(server: BaseEmailBackend, mail: OutgoingMail, *, now: datetime) -> bool:
    """Open the connection unless it is open. If that fails, it counts as the current e-mail's failure."""
    try:
        server.open()
    except OSError as error:
        record_failure(mail, error, now=now)
        return False
    return True


def deliver(mail: OutgoingMail, server: BaseEmailBackend, *, now: datetime) -> bool:
    try:
        server.send_messages([message(mail)])
    except Exception as error:
        close(server)  # The connection may be dead; the next e-mail opens another one.
        record_failure(mail, error, now=now)
        return False
    # Even if another process has claimed it meanwhile and failed: it was sent.
    row = OutgoingMail.objects.filter(pk=mail.pk, sent_at=None)
    row.update(sent_at=now, failed_at=None, next_attempt_at=None, body="", error="")
    return True


def message(mail: OutgoingMail) -> EmailMessage:
    host = urlsplit(settings.PORTAL_URL).hostname
    # The same for every attempt, so that a copy can be recognized; and no absence notes in return.
    headers = {"Message-ID": f"<{mail.pk}@{host}>", "Auto-Submitted": "auto-generated"}
    contact = load_contact()
    footer = "\n\n-- \n" + _("Support: %(contact)s") % {"contact": contact.summary} if contact else ""
    return EmailMessage(subject=mail.subject, body=mail.body.rstrip() + footer, to=[mail.recipient], headers=headers)


def close(server: BaseEmailBackend) -> None:
    with suppress(OSError):  # smtplib's errors are OSErrors
        server.close()


def record_failure(mail: OutgoingMail, error: Exception, *, now: datetime) -> None:
    """Fail for good, or wait for the next attempt; unless another process took the e-mail over meanwhile."""
    is_permanent, reason = classify(error)
    same_attempt = OutgoingMail.objects.waiting().filter(pk=mail.pk, attempts=mail.attempts)
    if is_permanent:
        same_attempt.update(failed_at=now, next_attempt_at=None, error=reason)
    else:
        same_attempt.update(next_attempt_at=now + backoff(mail.attempts), error=reason)
    # The log has no addresses; Django admin finds the e-mail by its id.
    fields = {"mail_id": str(mail.pk), "kind": mail.kind, "attempts": mail.attempts}
    fields["reason"] = reason.replace(mail.recipient, "…")
    if is_permanent:
        logger.error("mail.failed", **fields)
    else:
        logger.warning("mail.delayed", **fields, exc_info=None if isinstance(error, OSError) else error)


def classify(error: Exception) -> tuple[bool, str]:
    """Return (whether another attempt is pointless, reason).

    It is pointless only where the server refused this recipient or this message for good (5xx), or where the message
    can't be written. A server that is unreachable, or that refuses the portal itself, is the operator's to repair.
    """
    reply: bytes | str
    match error:
        case SMTPRecipientsRefused():
            code, reply = next(iter(error.recipients.values()))
        case SMTPDataError():
            code, reply = error.smtp_code, error.smtp_error
        case _:
            # ValueError: an address or a header that can't be encoded
            return isinstance(error, ValueError), one_line(str(error) or type(error).__name__)
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply
    return 500 <= code < 600, one_line(f"{code} {text}")


def one_line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_ERROR]


def backoff(attempts: int) -> timedelta:
    """1, 2, 4 … minutes, at most an hour."""
    return min(timedelta(minutes=2 ** min(attempts - 1, 10)), LONGEST_BACKOFF)


def fail_expired(*, now: datetime) -> None:
    for mail in OutgoingMail.objects.due(now).filter(expires_at__lte=now):
        same_attempt = OutgoingMail.objects.due(now).filter(pk=mail.pk, attempts=mail.attempts)
        if same_attempt.update(
            failed_at=now, next_attempt_at=None, body="", error=mail.error or "Expired before it was sent"
        ):
            logger.error("mail.expired", mail_id=str(mail.pk), kind=mail.kind, attempts=mail.attempts)


def retry(mails: OutgoingMailQuerySet, *, now: datetime) -> int:
    """Queue failed e-mails again, unless they have expired. Returns how many."""
    failed = mails.filter(failed_at__isnull=False, expires_at__gt=now).exclude(body="")
    return failed.update(failed_at=None, attempts=0, next_attempt_at=None, error="")


def delete_old(*, now: datetime) -> int:
    """Delete the rows older than KEEP_FOR, and erase the bodies of those that expired. Returns how many were deleted."""
    OutgoingMail.objects.filter(failed_at__isnull=False, expires_at__lte=now).exclude(body="").update(body="")
    old = OutgoingMail.objects.filter(created_at__lt=now - KEEP_FOR)
    return old.delete()[0]


RECENTLY = timedelta(hours=1)


@dataclass(frozen=True)
class QueueStatus:
    waiting: int
    oldest_wait: timedelta  # 0 when nothing waits
    failed_recently: dict[str, int]  # by kind, in the last hour; every kind is there


def queue_status(*, now: datetime) -> QueueStatus:
    """Two queries."""
    waiting = OutgoingMail.objects.waiting().aggregate(count=Count("pk"), oldest=Min("created_at"))
    failed = dict.fromkeys(OutgoingMail.Kind.values, 0)
    recent = OutgoingMail.objects.filter(failed_at__gt=now - RECENTLY).order_by()
    failed.update(recent.values_list("kind").annotate(count=Count("pk")))
    return QueueStatus(
        waiting=waiting["count"],
        oldest_wait=max(now - waiting["oldest"], timedelta()) if waiting["oldest"] else timedelta(),
        failed_recently=failed,
    )
