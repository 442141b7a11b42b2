"""What follows from a sign-in, a new password or a new factor: an entry in the activity log, and a notice."""

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
from cng_portal.common.preferences import as_read_by
from cng_portal.mail import services as mail
from cng_portal.mail.models import OutgoingMail

from . import known_browsers
from .models import User
from .signin import confirmation, sessions

logger = structlog.stdlib.get_logger(__name__)

# A user has to be notified of it. `user`; `message` returns title and text; `url` is the path of the page to go to.
security_event = Signal()


@receiver(auth.user_logged_in)
def remember_when(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    confirmation.confirm(request)


@receiver(account.authentication_step_completed)
def remember_confirmation(sender: Any, request: HttpRequest, **kwargs: Any) -> None:
    if kwargs.get("reauthenticated"):
        confirmation.confirm(request)
        sessions.renew(request)
        record(kwargs["user"], "user.reauthenticate", factors=[way(kwargs)])


@receiver(account.user_logged_in)
@transaction.atomic
def signed_in(sender: Any, request: HttpRequest, user: User, response: HttpResponse, **kwargs: Any) -> None:
    known_browsers.remember(request, response, user)
    request.session[sessions.BEGAN] = request.session[sessions.SEEN] = time.time()
    device = get_origin().device
    before = Activity.objects.filter(actor=user, action="user.sign_in")
    since = activity.retention_start(now=timezone.now())
    is_first = not before.exists() and (since is None or user.date_joined > since)  # else the log may have forgotten
    known = is_first or before.filter(after__device=device).exists()
    record(user, "user.sign_in", device=device, factors=[way(one) for one in get_authentication_records(request, user)])
    if not known:
        warn(
            user,
            lambda: (
                _("New sign-in from %(device)s") % {"device": device},
                _("Was it not you? End the session, and change your password."),
            ),
            page="accounts:sessions",
        )


@receiver(auth.user_login_failed)
def sign_in_failed(sender: Any, credentials: dict[str, Any], **kwargs: Any) -> None:
    user = User.objects.filter(email__iexact=credentials.get("email") or "").first()
    if user:
        password_failed(user)
    else:  # not what was typed: it may be a password
        logger.warning("sign_in.unknown_email")


def password_failed(user: User) -> None:
    record(user, "user.sign_in_failed", device=get_origin().device, factor=way({"method": "password"}))


@receiver(mfa.authentication_failed)
def code_failed(sender: Any, user: User, **kwargs: Any) -> None:
    record(user, "user.sign_in_failed", device=get_origin().device, factor=factor(kwargs["authenticator"]))


def passkey_failed(user: User | None) -> None:
    """allauth tells nobody. Who signs in with a passkey alone does not say beforehand who it is."""
    if user:
        record(user, "user.sign_in_failed", device=get_origin().device, factor=way({"type": "webauthn"}))
    else:
        logger.warning("sign_in.unknown_passkey")


@receiver(auth.user_logged_out)
def signed_out(sender: Any, user: User | None, **kwargs: Any) -> None:
    if user:
        record(user, "user.sign_out")


@receiver(account.password_changed)
@receiver(account.password_set)
@receiver(account.password_reset)
@transaction.atomic
def password_changed(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    record(user, "user.change_password")
    sessions.end_all(user, but=request.session.session_key)
    warn(
        user,
        lambda: (
            _("Your password was changed"),
            _("Every other session was ended. Was it not you? Reset the password at once, and ask support."),
        ),
    )


@receiver(account.email_added)
def email_asked(sender: Any, user: User, email_address: Any, **kwargs: Any) -> None:
    record(user, "user.request_email_change", email=email_address.email)


@receiver(account.email_changed)
@transaction.atomic
def email_changed(sender: Any, user: User, from_email_address: Any, to_email_address: Any, **kwargs: Any) -> None:
    before, after = (one.email if one else "" for one in (from_email_address, to_email_address))
    activity.record(
        action="user.change_email", actor=user, target=user, before={"email": before}, after={"email": after}
    )
    tell_of_address(user, before, after)


def tell_of_address(user: User, before: str, after: str) -> None:
    """The old address is told too: whoever has taken the account over reads the new one."""

    def words() -> tuple[str, str]:
        return (
            _("Your e-mail address is %(email)s now") % {"email": after},
            _("It was %(email)s. Was it not you? Ask support at once.") % {"email": before},
        )

    warn(user, words)
    if before:
        with as_read_by(user):
            title, text = words()
        mail.enqueue(
            kind=OutgoingMail.Kind.ACCOUNT,
            recipient=before,
            subject=f"1CNG: {title}",
            body=text,
            expires_at=timezone.now() + mail.EXPIRES_AFTER,
        )


@receiver(mfa.authenticator_added)
@transaction.atomic
def factor_added(sender: Any, user: User, authenticator: Authenticator, **kwargs: Any) -> None:
    if authenticator.type == Authenticator.Type.RECOVERY_CODES:
        record(user, "user.generate_recovery_codes")
        return
    record(user, "user.add_factor", factor=factor(authenticator))
    warn(
        user,
        lambda: (
            _("A second factor was added: %(factor)s") % {"factor": factor(authenticator)},
            _("Was it not you? Remove it, and change your password."),
        ),
    )


@receiver(mfa.authenticator_removed)
@transaction.atomic
def factor_removed(sender: Any, user: User, authenticator: Authenticator, **kwargs: Any) -> None:
    if authenticator.type == Authenticator.Type.RECOVERY_CODES:
        return
    record(user, "user.remove_factor", factor=factor(authenticator))
    warn(
        user,
        lambda: (
            _("A second factor was removed: %(factor)s") % {"factor": factor(authenticator)},
            _("Was it not you? Change your password, and add a factor again."),
        ),
    )


@receiver(mfa.authenticator_reset)
@transaction.atomic
def codes_made(sender: Any, user: User, **kwargs: Any) -> None:
    record(user, "user.generate_recovery_codes")
    warn(
        user,
        lambda: (
            _("New recovery codes were made"),
            _("The old ones do not work any more. Was it not you? Ask support."),
        ),
    )


def factor(authenticator: Authenticator) -> str:
    if authenticator.type == Authenticator.Type.WEBAUTHN:
        return _("passkey “%(name)s”") % {"name": authenticator.wrap().name}
    return _("authenticator app")


def way(step: dict[str, Any]) -> str:
    """How somebody showed who it is, by what allauth remembers of it."""
    ways = {
        "password": _("password"),
        Authenticator.Type.TOTP: _("authenticator app"),
        Authenticator.Type.WEBAUTHN: _("passkey"),
        Authenticator.Type.RECOVERY_CODES: _("recovery code"),
    }
    kind = step.get("type") or step["method"]
    return ways.get(kind, kind)


def record(user: User, action: str, **after: Any) -> None:
    activity.record(action=action, actor=user, target=user, after=after)


def warn(user: User, words: Callable[[], tuple[str, str]], *, page: str = "accounts:security") -> None:
    """Send a `security_event`: what happened, from where, and what to do if it was not the user."""
    where = get_origin()

    def with_origin() -> tuple[str, str]:
        title, text = words()
        came = _("From %(device)s, address %(address)s.") % {"device": where.device, "address": where.address or "–"}
        return title, f"{came}\n{text}"

    security_event.send(sender=User, user=user, message=with_origin, url=reverse(page))
