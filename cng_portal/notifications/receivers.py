from collections.abc import Callable
from typing import Any
from uuid import uuid4

from django.dispatch import receiver

from cng_portal.accounts.models import User
from cng_portal.accounts.signals import security_event

from .models import Notification
from .services import notify


@receiver(security_event)
def notify_of_security_event(
    sender: Any, user: User, message: Callable[[], tuple[str, str]], url: str, **kwargs: Any
) -> None:
    notify(users=[user], key=f"security-{uuid4()}", level=Notification.Level.WARNING, message=message, url=url)
