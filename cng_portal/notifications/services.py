"""Notifying users of what happens while they are away: in the bell, and by e-mail."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from cng_portal.accounts.models import ROLES_THAT_CHANGE, Customer, Project, Role, User
from cng_portal.common.preferences import localized_for
from cng_portal.mail import services as mail
from cng_portal.mail.models import OutgoingMail

from .models import Notification

LISTED = 100
KEEP_FOR = timedelta(days=90)


def project_members(project: Project) -> QuerySet[User]:
    """The active owners and members of a project, without its viewers."""
    return User.objects.filter(
        is_active=True, memberships__project=project, memberships__role__in=ROLES_THAT_CHANGE
    ).distinct()


def customer_owners(customer: Customer) -> QuerySet[User]:
    """The customer's own active users who own one of its projects."""
    return User.objects.filter(
        is_active=True,
        customer=customer,
        memberships__project__customer=customer,
        memberships__role=Role.OWNER,
    ).distinct()


def notify(
    *, users: Iterable[User], key: str, level: str, message: Callable[[], tuple[str, str]], url: str = ""
) -> None:
    """Notify each user once of the event that `key` names. Call it in the transaction of the event.

    `message` returns title and text; it is called for each user, in their time zone and date format. `url` is the path
    of the page where something can be done about it.
    """
    longest = Notification._meta.get_field("title").max_length
    for user in users:
        with localized_for(user):
            title, text = message()
        content = {"title": title[:longest], "text": text, "url": url}
        Notification.objects.get_or_create(
            user=user,
            key=key,
            # The e-mail is queued only where the notification is new.
            defaults={"level": level, "mail": partial(enqueue_mail, user, **content), **content},
        )


def enqueue_mail(user: User, *, title: str, text: str, url: str) -> OutgoingMail:
    parts = [title, text, f"{settings.PORTAL_URL}{url}" if url else ""]
    return mail.enqueue(
        kind=OutgoingMail.Kind.NOTIFICATION,
        recipient=user.email,
        subject=f"1CNG: {title}",
        body="\n\n".join(filter(None, parts)),
        expires_at=timezone.now() + mail.EXPIRES_AFTER,
    )


@transaction.atomic
def resend(notification: Notification) -> bool:
    """Queue the e-mail again, to the user's present address. False unless the last one has failed."""
    new = enqueue_mail(notification.user, title=notification.title, text=notification.text, url=notification.url)
    failed = Notification.objects.filter(pk=notification.pk, mail=notification.mail_id, mail__failed_at__isnull=False)
    if failed.update(mail=new):
        return True
    new.delete()
    return False


def recent(user: User) -> QuerySet[Notification]:
    return user.notifications.select_related("mail").order_by("-created_at", "-id")[:LISTED]


def mark_read(notifications: QuerySet[Notification], *, now: datetime) -> None:
    notifications.filter(read_at=None).update(read_at=now)


def delete_old(*, now: datetime) -> int:
    """Delete the notifications older than KEEP_FOR, read or not. Returns how many."""
    return Notification.objects.filter(created_at__lt=now - KEEP_FOR).delete()[0]
