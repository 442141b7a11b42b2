from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from django.dispatch import receiver

from cng_portal.accounts.approvals import approval_event
from cng_portal.accounts.models import User
from cng_portal.accounts.signals import security_event

from .models import Notification
from .services import notify


@receiver(security_event)
def notify_of_security_event(
    sender: Any, user: User, message: Callable[[], tuple[str, str]], url: str, **kwargs: Any
) -> None:
    notify(users=[user], key=f"security-{uuid4()}", level=Notification.Level.WARNING, message=message, url=url)


@receiver(approval_event)
def notify_of_approval(
    sender: Any, users: Iterable[User], key: str, message: Callable[[], tuple[str, str]], url: str, **kwargs: Any
) -> None:
    notify(users=users, key=key, level=Notification.Level.WARNING, message=message, url=url)
