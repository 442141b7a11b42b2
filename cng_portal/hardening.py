"""What keeps a portal that others reach from starting half-open, and the headers that every answer carries."""

import ipaddress
from collections.abc import Callable, Iterable

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import Tags, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse

GetResponse = Callable[[HttpRequest], HttpResponse]

SECRET_KEY_LENGTH = 50
SECRET_KEY_CHARACTERS = 5
# What a page of ours may use of the device: the clipboard to copy an id, and passkeys to sign in.
PERMISSIONS = {
    **dict.fromkeys(["camera", "display-capture", "geolocation", "gyroscope", "magnetometer", "microphone"], "()"),
    **dict.fromkeys(["accelerometer", "midi", "payment", "serial", "usb", "xr-spatial-tracking"], "()"),
    **dict.fromkeys(["clipboard-write", "publickey-credentials-create", "publickey-credentials-get"], "(self)"),
}
PERMISSIONS_POLICY = ", ".join(f"{feature}={allowed}" for feature, allowed in sorted(PERMISSIONS.items()))


class Request(WSGIRequest):
    """What arrives is UTF-8, whatever its Content-Type claims: Django would take any codec of Python's for it, and the
    codecs that are none for text end in an error before any middleware is asked.
    """

    @property
    def encoding(self) -> None:
        return None

    @encoding.setter
    def encoding(self, claimed: str | None) -> None:
        pass


def headers(get_response: GetResponse) -> GetResponse:
    """Middleware: nobody else's page may embed or read ours, and no shared or forgotten browser keeps one."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Permissions-Policy"] = PERMISSIONS_POLICY
        response["Cross-Origin-Resource-Policy"] = "same-origin"
        response.setdefault(
            "Cache-Control", "private, no-store"
        )  # exports too; files of ours say how long they are good
        return response

    return middleware


def is_local(host: str) -> bool:
    """Whether only this machine or its own network reaches it: localhost, or an address that is not on the internet."""
    host = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_private  # of which loopback is a part
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def refuse_exposed_bind(bind: str, *, allowed: bool) -> None:
    """Raise ImproperlyConfigured for an address that the internet may reach.

    Each thread of the web process reads one request to its end, so a few dozen clients that send half a header keep
    everybody else waiting. nginx reads requests whole before it passes them on.
    """
    address = ipaddress.ip_address(bind)
    if allowed or (address.is_private and not address.is_unspecified):
        return
    raise ImproperlyConfigured(
        f"BIND={bind} cannot be used: a few slow clients could block the web server for everybody. Bind to 127.0.0.1 or to "
        "a private address and put a proxy in front (deploy/nginx.conf), or set BIND_EXPOSED=true where a firewall or a "
        "container lets only the proxy in."
    )


def is_production(*, https: bool, allowed_hosts: Iterable[str]) -> bool:
    """A portal that speaks HTTPS or has a name is one for customers; one of this machine or network is for a look."""
    return https or not all(is_local(host) for host in allowed_hosts)


def refuse_unsafe_settings(
    *, debug: bool, https: bool, allowed_hosts: Iterable[str], secret_key: str, mail_goes_to_log: bool
) -> None:
    """Raise ImproperlyConfigured for settings with which a production portal would be open to strangers."""
    if debug:
        raise ImproperlyConfigured(
            "DEBUG=true cannot be used here: others reach this portal, and its error pages would show them source code "
            "and settings."
        )
    for host in allowed_hosts:
        if host.startswith((".", "*")):
            raise ImproperlyConfigured(
                f"ALLOWED_HOSTS={host} cannot be used: with a wildcard a stranger's host name ends up in links that the "
                "portal mails. Name each host."
            )
    if not https:
        raise ImproperlyConfigured(
            "HTTPS=false cannot be used here: ALLOWED_HOSTS has a name under which others reach this portal, and "
            "passwords would travel readable. Put a proxy that speaks HTTPS in front and set HTTPS=true."
        )
    is_short = len(secret_key) < SECRET_KEY_LENGTH or len(set(secret_key)) < SECRET_KEY_CHARACTERS
    if is_short or secret_key.startswith("django-insecure-"):
        raise ImproperlyConfigured(
            f"SECRET_KEY cannot be used here: it is shorter than {SECRET_KEY_LENGTH} characters or easy to guess, and "
            "who guesses it signs in as anybody. Leave it out to have one generated."
        )
    if mail_goes_to_log:
        raise ImproperlyConfigured(
            "EMAIL_URL cannot be left out here: links for new passwords would go to the log instead of their owners."
        )


def refuse_unsafe_start() -> None:
    """Called where web, worker and scheduler start. Raises ImproperlyConfigured: one sentence, for who starts them.

    Three queries at most, and a moment for each of the demo's people that is still there.
    """
    if not settings.PRODUCTION:
        return
    for message in run_checks(tags=[Tags.security], include_deployment_checks=True):
        raise ImproperlyConfigured(f"The settings are not safe for production ({message.id}): {message.msg}")
    from snapshots.management.commands.demo import PASSWORD, SIGN_INS

    for user in get_user_model().objects.filter(email__in=SIGN_INS, is_active=True):
        if user.check_password(PASSWORD):
            raise ImproperlyConfigured(
                f"The demo's sign-in {user.email} is still in this database, with a password that everybody knows. Give "
                f"it another one: manage.py changepassword {user.email}"
            )
