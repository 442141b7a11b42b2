from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import structlog
from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.models import EmailAddress
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.activity import services as activity
from cng_portal.common.locks import lock_name
from cng_portal.common.preferences import localized_for
from cng_portal.mail import services as mail
from cng_portal.mail.models import OutgoingMail

from .. import known_browsers
from ..models import User

logger = structlog.stdlib.get_logger(__name__)


def to_portal_url(url: str) -> str:
    """Replace scheme, host and port by those of PORTAL_URL."""
    return settings.PORTAL_URL + urlsplit(url)._replace(scheme="", netloc="").geturl()


class AccountAdapter(DefaultAccountAdapter):
    error_messages = DefaultAccountAdapter.error_messages | {
        "email_password_mismatch": _("Wrong e-mail or password. Check both, or reset your password."),
        "too_many_login_attempts": _("Too many failed attempts. Try again in a few minutes."),
        "account_inactive": _("This account is disabled. Ask an administrator."),
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Always False: administrators create the users."""
        return False

    def validation_error(self, code: str, *args: Any) -> ValidationError:
        if code == "too_many_login_attempts":
            logger.warning("sign_in.rate_limited")
        return super().validation_error(code, *args)

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        """Count failed attempts in a known browser separately."""
        browser_id = known_browsers.browser_id(request, str(credentials.get("email", "")))
        return f"{super()._get_login_attempts_cache_key(request, **credentials)}:{browser_id}"

    def confirm_email(self, request: HttpRequest, email_address: EmailAddress) -> bool:
        """Refuse an address that another user signs in with. allauth checks only addresses confirmed through it."""
        with transaction.atomic():
            lock_name(User._meta.label_lower)
            taken = User.objects.filter(email__iexact=email_address.email).exclude(pk=email_address.user_id)
            if taken.exists():
                data = {"email": email_address.email}
                self.add_message(request, messages.ERROR, "account/messages/email_confirmation_failed.txt", data)
                return False
            return bool(super().confirm_email(request, email_address))

    def send_password_reset_mail(self, user: User, email: str, context: dict[str, Any]) -> None:
        activity.record(action="user.request_password_reset", actor=user, target=user)
        super().send_password_reset_mail(user, email, context)

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Queue the e-mail, with times in the recipient's zone: another user's request may send it."""
        expires_in = timedelta(seconds=settings.PASSWORD_RESET_TIMEOUT)
        if "password_reset" not in template_prefix:
            expires_in = mail.EXPIRES_AFTER
        # allauth builds links from the Host header, which can be forged.
        links = {name: to_portal_url(value) for name, value in context.items() if name.endswith("_url")}
        site = SimpleNamespace(name="1CNG", domain=urlsplit(settings.PORTAL_URL).netloc)
        with localized_for(User.objects.filter(email__iexact=email).first()):
            values = {"request": self.request, "current_site": site, "email": email}
            message = self.render_mail(template_prefix, email, values | context | links)
        mail.enqueue(
            kind=OutgoingMail.Kind.ACCOUNT,
            recipient=email,
            subject=str(message.subject),
            body=str(message.body),
            expires_at=timezone.now() + expires_in,
        )

    def can_delete_email(self, email_address: EmailAddress) -> bool:
        """Return False for the address that the user signs in with."""
        return email_address.email.lower() != email_address.user.email.lower()
