"""Passwords known from breaches of other sites are refused, by Have I Been Pwned's range API."""

from django.utils.translation import gettext_lazy as _
from prometheus_client import Counter
from pwned_passwords_django.api import PwnedPasswords
from pwned_passwords_django.exceptions import PwnedPasswordsError
from pwned_passwords_django.validators import PwnedPasswordsValidator

FAILURES = Counter(
    "portal_breach_service_failures",
    "Passwords that were accepted although the service of BREACHED_PASSWORDS gave no answer.",
    registry=None,
)


class BreachService(PwnedPasswords):
    def __init__(self, address: str) -> None:
        super().__init__()
        self.api_endpoint = address

    def check_password(self, password: str) -> int:
        try:
            return super().check_password(password)
        except PwnedPasswordsError:
            FAILURES.inc()
            raise


class BreachedPasswordValidator(PwnedPasswordsValidator):
    """Fails open: when the service gives no usable answer, the password is accepted, and the log and a metric say so. A
    portal in which nobody can set a password because somebody else's machine is down is worse.
    """

    def __init__(self, address: str) -> None:
        super().__init__(
            error_message=_("This password is in a list of those that were stolen elsewhere. Choose another one."),
            help_message=_("Your password must not be known from a breach of another site."),
            api_client=BreachService(address),
        )
