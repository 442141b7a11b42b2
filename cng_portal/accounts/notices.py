"""What people are told when they are not looking: a notice in the bell, and the same as an e-mail."""

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.db.models import QuerySet
from django.utils import translation

from .models import ROLES_THAT_CHANGE, Customer, Notice, Project, Role, User
from .preferences import as_read_by

logger = logging.getLogger(__name__)

SHOWN = 100
KEPT = timedelta(days=90)
# What could not be sent for this long is no news any more; it stays in the bell.
MAILED_WITHIN = timedelta(days=2)
MAILS_PER_TURN = 200


def people_of(project: Project) -> QuerySet[User]:
    """Who looks after a project: its active owners and members, but not those who only view."""
    return User.objects.filter(
        is_active=True, memberships__project=project, memberships__role__in=ROLES_THAT_CHANGE
    ).distinct()


def owners_of(customer: Customer) -> QuerySet[User]:
    """Who answers for a customer: the active owners of its projects who belong to it."""
    return User.objects.filter(
        is_active=True,
        customer=customer,
        memberships__project__customer=customer,
        memberships__role=Role.OWNER,
    ).distinct()


def tell(*, users: Iterable[User], key: str, tone: str, words: Callable[[], tuple[str, str]], url: str = "") -> None:
    """Tell each of them once of the event that `key` names. Call it in the transaction of the event itself.

    `words` gives title and text, and is asked for each person: in their language, time zone and dates. `url` is the path
    of the page where something can be done about it. The e-mails are sent by `send_mails`.
    """
    told = []
    for user in users:
        with translation.override(settings.LANGUAGE_CODE), as_read_by(user):
            title, text = words()
        title = title[: Notice._meta.get_field("title").max_length]
        told.append(Notice(user=user, key=key, tone=tone, title=title, text=text, url=url))
    Notice.objects.bulk_create(told, ignore_conflicts=True)


def send_mails(*, now: datetime) -> int:
    """Send what has not been sent yet, oldest first. Returns how many went out.

    Each notice is claimed before it is sent, so that of two schedulers one sends it; what the mail server does not take
    is given back and tried again the next time.
    """
    waiting = Notice.objects.filter(mailed_at=None, created_at__gte=now - MAILED_WITHIN).select_related("user")
    turn = list(waiting.order_by("created_at")[:MAILS_PER_TURN])
    if not turn:
        return 0
    sent = 0
    with get_connection() as mail_server:
        for notice in turn:
            mine = Notice.objects.filter(pk=notice.pk, mailed_at=None)
            if not mine.update(mailed_at=now):
                continue
            parts = [notice.title, notice.text, f"{settings.PORTAL_URL}{notice.url}" if notice.url else ""]
            message = EmailMessage(
                subject=f"1CNG: {notice.title}",
                body="\n\n".join(filter(None, parts)),
                to=[notice.user.email],
                connection=mail_server,
            )
            try:
                message.send()
            except OSError:  # of which every error of the mail server is one
                Notice.objects.filter(pk=notice.pk).update(mailed_at=None)
                logger.exception("The notice %s could not be sent; it will be tried again", notice.pk)
                break
            sent += 1
    return sent


def forget_old(*, now: datetime) -> int:
    """Remove the notices that are older than KEPT, seen or not. Returns how many."""
    return Notice.objects.filter(created_at__lt=now - KEPT).delete()[0]


def shown_to(user: User) -> QuerySet[Notice]:
    return Notice.objects.filter(user=user).order_by("-created_at", "-id")[:SHOWN]


def mark_seen(which: QuerySet[Notice], *, now: datetime) -> None:
    which.filter(seen_at=None).update(seen_at=now)
