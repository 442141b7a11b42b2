import logging
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.models import EmailAddress
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from . import activity
from .models import User
from .preferences import as_read_by

logger = logging.getLogger(__name__)


class AccountAdapter(DefaultAccountAdapter):
    error_messages = DefaultAccountAdapter.error_messages | {
        "email_password_mismatch": _("The e-mail or the password is wrong. Check both, or reset the password."),
        "too_many_login_attempts": _("Too many failed attempts. Wait a few minutes, then try again."),
        "account_inactive": _("This sign-in has been switched off. Ask an administrator."),
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Customers come with a contract; administrators make their sign-ins."""
        return False

    def validation_error(self, code: str, *args: Any) -> ValidationError:
        if code == "too_many_login_attempts":
            logger.warning("Refused an attempt to sign in, or to confirm who it is: there were too many")
        return super().validation_error(code, *args)

    def confirm_email(self, request: HttpRequest, email_address: EmailAddress) -> bool:
        """Not an address that somebody else signs in with: of theirs allauth knows only what it has seen confirmed."""
        taken = User.objects.filter(email__iexact=email_address.email).exclude(pk=email_address.user_id)
        if taken.exists():
            data = {"email": email_address.email}
            self.add_message(request, messages.ERROR, "account/messages/email_confirmation_failed.txt", data)
            return False
        with transaction.atomic():
            return bool(super().confirm_email(request, email_address))

    def send_password_reset_mail(self, user: User, email: str, context: dict[str, Any]) -> None:
        activity.record(act="person.reset_asked", actor=user, thing=user)
        super().send_password_reset_mail(user, email, context)

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Write times for the recipient, who may not be the user whose request sends the mail."""
        with as_read_by(User.objects.filter(email__iexact=email).first()):
            super().send_mail(template_prefix, email, context)

    def can_delete_email(self, email_address: EmailAddress) -> bool:
        """Who signs in with it keeps it until another one is confirmed."""
        return email_address.email.lower() != email_address.user.email.lower()
