"""Record sign-ins and changes of credentials in the activity log, and notify the user."""

import time
from collections.abc import Callable
from typing import Any

import structlog
from allauth.account import signals as account
from allauth.account.internal.flows.login import get_authentication_records
from allauth.mfa import signals as mfa
from allauth.mfa.models import Authenticator
from django.contrib.auth import signals as auth
from django.db import transaction
from django.dispatch import Signal, receiver
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.activity import services as activity
from cng_portal.activity.models import Activity
from cng_portal.common.origin import get_origin
from cng_portal.common.preferences import localized_for
from cng_portal.mail import services as mail
from cng_portal.mail.models import OutgoingMail

from . import known_browsers
from .models import User
from .signin import confirmation, sessions

logger = structlog.stdlib.get_logger(__name__)

# Sends `user`; `message`, which returns title and text; `url`, the path of the page to act on.
security_event = Signal()


@receiver(auth.user_logged_in)
def confirm_on_sign_in(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    confirmation.confirm(request)


@receiver(account.authentication_step_completed)
def record_confirmation(sender: Any, request: HttpRequest, **kwargs: Any) -> None:
    if kwargs.get("reauthenticated"):
        confirmation.confirm(request)
        sessions.rotate_key(request)
        record(kwargs["user"], "user.reauthenticate", factors=[auth_method(kwargs)])


@receiver(account.user_logged_in)
@transaction.atomic
def record_sign_in(sender: Any, request: HttpRequest, user: User, response: HttpResponse, **kwargs: Any) -> None:
    known_browsers.remember(request, response, user)
    request.session[sessions.BEGAN] = request.session[sessions.SEEN] = time.time()
    device = get_origin().device
    before = Activity.objects.filter(actor=user, action="user.sign_in")
    since = activity.retention_start(now=timezone.now())
    # Older sign-ins may have been deleted from the log.
    is_first = not before.exists() and (since is None or user.date_joined > since)
    is_known_device = is_first or before.filter(after__device=device).exists()
    record(
        user,
        "user.sign_in",
        device=device,
        factors=[auth_method(step) for step in get_authentication_records(request, user)],
    )
    if not is_known_device:
        notify(
            user,
            lambda: (
                _("New sign-in from %(device)s") % {"device": device},
                _("If this wasn't you, end the session and change your password."),
            ),
            page="accounts:sessions",
        )


@receiver(auth.user_login_failed)
def record_failed_sign_in(sender: Any, credentials: dict[str, Any], **kwargs: Any) -> None:
    user = User.objects.filter(email__iexact=credentials.get("email") or "").first()
    if user:
        password_failed(user)
    else:  # The address isn't logged, because users type passwords into the wrong field.
        logger.warning("sign_in.unknown_email")


def password_failed(user: User) -> None:
    record(user, "user.sign_in_failed", device=get_origin().device, factor=auth_method({"method": "password"}))


@receiver(mfa.authentication_failed)
def code_failed(sender: Any, user: User, **kwargs: Any) -> None:
    record(user, "user.sign_in_failed", device=get_origin().device, factor=describe_factor(kwargs["authenticator"]))


def passkey_failed(user: User | None) -> None:
    """Called by the form, because allauth sends no signal. The user is unknown in a passwordless sign-in."""
    if user:
        record(user, "user.sign_in_failed", device=get_origin().device, factor=auth_method({"type": "webauthn"}))
    else:
        logger.warning("sign_in.unknown_passkey")


@receiver(auth.user_logged_out)
def record_sign_out(sender: Any, user: User | None, **kwargs: Any) -> None:
    if user:
        record(user, "user.sign_out")


@receiver(account.password_changed)
@receiver(account.password_set)
@receiver(account.password_reset)
@transaction.atomic
def record_new_password(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    record(user, "user.change_password")
    sessions.end_all(user, but=request.session.session_key)
    notify(
        user,
        lambda: (
            _("Your password was changed"),
            _("All other sessions were ended. If this wasn't you, reset your password now and contact your provider."),
        ),
    )


@receiver(account.email_added)
def record_email_request(sender: Any, user: User, email_address: Any, **kwargs: Any) -> None:
    record(user, "user.request_email_change", email=email_address.email)


@receiver(account.email_changed)
@transaction.atomic
def record_new_email(sender: Any, user: User, from_email_address: Any, to_email_address: Any, **kwargs: Any) -> None:
    before, after = (address.email if address else "" for address in (from_email_address, to_email_address))
    activity.record(
        action="user.change_email", actor=user, target=user, before={"email": before}, after={"email": after}
    )
    notify_of_new_email(user, before, after)


def notify_of_new_email(user: User, before: str, after: str) -> None:
    """Notify the old address too: an attacker who took over the account reads the new one."""

    def message() -> tuple[str, str]:
        return (
            _("Your e-mail address is now %(email)s") % {"email": after},
            _("It was %(email)s. If this wasn't you, contact your provider now.") % {"email": before},
        )

    notify(user, message)
    if before:
        with localized_for(user):
            title, text = message()
        mail.enqueue(
            kind=OutgoingMail.Kind.ACCOUNT,
            recipient=before,
            subject=f"1CNG: {title}",
            body=text,
            expires_at=timezone.now() + mail.EXPIRES_AFTER,
        )


@receiver(mfa.authenticator_added)
@transaction.atomic
def record_new_factor(sender: Any, user: User, authenticator: Authenticator, **kwargs: Any) -> None:
    if authenticator.type == Authenticator.Type.RECOVERY_CODES:
        record(user, "user.generate_recovery_codes")
        return
    record(user, "user.add_factor", factor=describe_factor(authenticator))
    notify(
        user,
        lambda: (
            _("A second factor was added: %(factor)s") % {"factor": describe_factor(authenticator)},
            _("If this wasn't you, remove it and change your password."),
        ),
    )


@receiver(mfa.authenticator_removed)
@transaction.atomic
def record_removed_factor(sender: Any, user: User, authenticator: Authenticator, **kwargs: Any) -> None:
    if authenticator.type == Authenticator.Type.RECOVERY_CODES:
        return
    record(user, "user.remove_factor", factor=describe_factor(authenticator))
    notify(
        user,
        lambda: (
            _("A second factor was removed: %(factor)s") % {"factor": describe_factor(authenticator)},
            _("If this wasn't you, change your password and add a second factor again."),
        ),
    )


@receiver(mfa.authenticator_reset)
@transaction.atomic
def record_recovery_codes(sender: Any, user: User, **kwargs: Any) -> None:
    record(user, "user.generate_recovery_codes")
    notify(
        user,
        lambda: (
            _("New recovery codes were generated"),
            _("The old codes no longer work. If this wasn't you, contact your provider."),
        ),
    )


def describe_factor(authenticator: Authenticator) -> str:
    if authenticator.type == Authenticator.Type.WEBAUTHN:
        return _("passkey “%(name)s”") % {"name": authenticator.wrap().name}
    return _("authenticator app")


def auth_method(step: dict[str, Any]) -> str:
    """Name the method of one of allauth's authentication records."""
    names = {
        "password": _("password"),
        Authenticator.Type.TOTP: _("authenticator app"),
        Authenticator.Type.WEBAUTHN: _("passkey"),
        Authenticator.Type.RECOVERY_CODES: _("recovery code"),
    }
    kind = step.get("type") or step["method"]
    return names.get(kind, kind)


def record(user: User, action: str, **after: Any) -> None:
    activity.record(action=action, actor=user, target=user, after=after)


def notify(user: User, message: Callable[[], tuple[str, str]], *, page: str = "accounts:security") -> None:
    """Send a `security_event`: what happened, from where, and what to do if it was not the user."""
    origin = get_origin()

    def with_origin() -> tuple[str, str]:
        title, text = message()
        source = _("From %(device)s, IP address %(address)s.") % {
            "device": origin.device,
            "address": origin.address or "–",
        }
        return title, f"{source}\n{text}"

    security_event.send(sender=User, user=user, message=with_origin, url=reverse(page))
