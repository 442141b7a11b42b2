from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.models import EmailAddress
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _


class AccountAdapter(DefaultAccountAdapter):
    error_messages = DefaultAccountAdapter.error_messages | {
        "email_password_mismatch": _("The e-mail or the password is wrong. Check both, or reset the password."),
        "too_many_login_attempts": _("Too many failed attempts. Wait a few minutes, then try again."),
        "account_inactive": _("This sign-in has been switched off. Ask an administrator."),
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Customers come with a contract; administrators make their sign-ins."""
        return False

    def can_delete_email(self, email_address: EmailAddress) -> bool:
        """Who signs in with it keeps it until another one is confirmed."""
        return email_address.email.lower() != email_address.user.email.lower()
