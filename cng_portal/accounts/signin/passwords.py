"""Refuse passwords from known data breaches, by the range API of Have I Been Pwned."""

from django.utils.translation import gettext_lazy as _
from prometheus_client import Counter
from pwned_passwords_django.api import PwnedPasswords
from pwned_passwords_django.exceptions import PwnedPasswordsError
from pwned_passwords_django.validators import PwnedPasswordsValidator

FAILURES = Counter(
    "portal_breach_service_failures",
    "Passwords accepted unchecked because the BREACHED_PASSWORDS service failed.",
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
    """Accepts the password, with a metric and a log line, when the service fails: an outage elsewhere must not stop users
    from changing their passwords.
    """

    def __init__(self, address: str) -> None:
        super().__init__(
            error_message=_("This password has appeared in a data breach. Choose a different one."),
            help_message=_("Your password must not have appeared in a data breach."),
            api_client=BreachService(address),
        )
