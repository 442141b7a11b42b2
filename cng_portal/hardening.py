"""Refuse to start with unsafe settings, and add security headers to every response."""

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
# Device features that our pages may use: the clipboard to copy IDs, and passkeys to sign in.
PERMISSIONS = {
    **dict.fromkeys(["camera", "display-capture", "geolocation", "gyroscope", "magnetometer", "microphone"], "()"),
    **dict.fromkeys(["accelerometer", "midi", "payment", "serial", "usb", "xr-spatial-tracking"], "()"),
    **dict.fromkeys(["clipboard-write", "publickey-credentials-create", "publickey-credentials-get"], "(self)"),
}
PERMISSIONS_POLICY = ", ".join(f"{feature}={allowed}" for feature, allowed in sorted(PERMISSIONS.items()))


class Request(WSGIRequest):
    """Always decodes as UTF-8. Django takes any of Python's codecs from the Content-Type header, and those that aren't text
    encodings raise an error before any middleware.
    """

    @property
    def encoding(self) -> None:
        return None

    @encoding.setter
    def encoding(self, claimed: str | None) -> None:
        pass


def headers(get_response: GetResponse) -> GetResponse:
    """Middleware: other sites can't embed or read our pages, and browsers don't store them."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Permissions-Policy"] = PERMISSIONS_POLICY
        response["Cross-Origin-Resource-Policy"] = "same-origin"
        response.setdefault("Cache-Control", "private, no-store")  # exports too; static files have their own
        return response

    return middleware


def ignore_unusable_cookies(get_response: GetResponse) -> GetResponse:
    """Middleware: remove cookies that hold a NUL. PostgreSQL refuses one in a parameter, such as a session's key."""

    def middleware(request: HttpRequest) -> HttpResponse:
        for name in [name for name, value in request.COOKIES.items() if "\0" in value]:
            del request.COOKIES[name]
        return get_response(request)

    return middleware


def is_local(host: str) -> bool:
    """Return whether the host is localhost or a private address."""
    host = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_private  # includes loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def refuse_exposed_bind(bind: str, *, allowed: bool) -> None:
    """Raise ImproperlyConfigured for an address that the internet can reach.

    Each thread of the web process reads one whole request, so a few dozen slow clients block all others. nginx buffers
    requests.
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
    """Return whether others can reach the portal: it uses HTTPS or has a public name."""
    return https or not all(is_local(host) for host in allowed_hosts)


def refuse_unsafe_settings(
    *, debug: bool, https: bool, allowed_hosts: Iterable[str], secret_key: str, mail_goes_to_log: bool
) -> None:
    """Raise ImproperlyConfigured for settings that are unsafe in production."""
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
            "passwords would be sent unencrypted. Put a proxy that speaks HTTPS in front and set HTTPS=true."
        )
    is_short = len(secret_key) < SECRET_KEY_LENGTH or len(set(secret_key)) < SECRET_KEY_CHARACTERS
    if is_short or secret_key.startswith("django-insecure-"):
        raise ImproperlyConfigured(
            f"SECRET_KEY cannot be used here: it is shorter than {SECRET_KEY_LENGTH} characters or easy to guess, and "
            "anyone who guesses it can sign in as any user. Leave it out to have one generated."
        )
    if mail_goes_to_log:
        raise ImproperlyConfigured(
            "EMAIL_URL cannot be left out here: password reset links would go to the log instead of their recipients."
        )


def refuse_unsafe_start() -> None:
    """Raise ImproperlyConfigured, with one sentence, if the portal is unsafe in production. At most three queries.

    Called when web, worker and scheduler start. Each demo user that still exists takes a moment.
    """
    if not settings.PRODUCTION:
        return
    for message in run_checks(tags=[Tags.security], include_deployment_checks=True):
        raise ImproperlyConfigured(f"The settings are not safe for production ({message.id}): {message.msg}")
    from snapshots.management.commands.demo import PASSWORD, SIGN_INS

    for user in get_user_model().objects.filter(email__in=SIGN_INS, is_active=True):
        if user.check_password(PASSWORD):
            raise ImproperlyConfigured(
                f"The demo's sign-in {user.email} is still in this database, with its published password. Set "
                f"another one: manage.py changepassword {user.email}"
            )
