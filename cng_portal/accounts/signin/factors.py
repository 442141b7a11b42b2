"""Second factors: who needs one. Their secrets are encrypted in the database with a key that is made of SECRET_KEY, and
one that is lost is taken away here.
"""

from base64 import urlsafe_b64encode
from functools import partial

import structlog
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.internal.flows import delete_dangling_recovery_codes
from allauth.mfa.models import Authenticator
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _

from cng_portal.activity import services as activity
from cng_portal.common.loops import for_each

from .. import signals
from ..models import Role, User

logger = structlog.stdlib.get_logger(__name__)

WANTED = "wanted_page"  # in the session, of who had to add a factor first
SALT = "cng_portal.accounts.signin.factors"
ENCRYPTED = "fernet:"
# A passkey's is its owner's: the portal has the public half alone.
SECRETS = {Authenticator.Type.TOTP: "secret", Authenticator.Type.RECOVERY_CODES: "seed"}


def is_missing(user: User) -> bool:
    """Whether it is one without which MFA_REQUIRED lets nobody in. The user is the request's; no query."""
    if user.has_factor:  # type: ignore[attr-defined]  # set by the backend
        return False
    required = settings.MFA_REQUIRED
    return required == "everyone" or (required == "owners" and Role.OWNER in user.roles.values())


class MFAAdapter(DefaultMFAAdapter):
    """What was written in clear by a version before, or with one of SECRET_KEY_FALLBACKS, goes on working."""

    def encrypt(self, text: str) -> str:
        return mark() + cipher().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """Raises PermissionDenied with a sentence where the key is gone."""
        text = decrypted(encrypted_text)
        if text is None:
            logger.error("factor.undecryptable")
            raise PermissionDenied(
                _(
                    "The portal cannot check your second factor any more, because the key that protects it was exchanged. "
                    "Ask an administrator to remove it, or use a passkey."
                )
            )
        return text


def cipher() -> MultiFernet:
    keys = [salted_hmac(SALT, "key", secret=one, algorithm="sha256").digest() for one in secret_keys()]
    return MultiFernet([Fernet(urlsafe_b64encode(key)) for key in keys])


def secret_keys() -> list[str]:
    return [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]


def mark() -> str:
    """What everything begins with that was encrypted with today's key."""
    return f"{ENCRYPTED}{salted_hmac(SALT, 'name', algorithm='sha256').hexdigest()[:8]}:"


def decrypted(text: str) -> str | None:
    if not text.startswith(ENCRYPTED):
        return text
    try:
        return cipher().decrypt(text.rpartition(":")[2]).decode()
    except InvalidToken:
        return None


def encrypt_all() -> int:
    """Encrypt with today's key what is in clear or has an older one. Returns how many secrets were written."""
    written = []

    @transaction.atomic
    def encrypt(others: QuerySet[Authenticator], name: str, pk: int) -> None:
        # locked, because a code that is used meanwhile is crossed out in the same field
        factor = others.select_for_update().filter(pk=pk).first()
        text = decrypted(factor.data[name]) if factor else None
        if factor and text is not None:
            factor.data[name] = MFAAdapter().encrypt(text)
            factor.save(update_fields=["data"])
            written.append(pk)

    for kind, name in SECRETS.items():
        others = Authenticator.objects.filter(type=kind).exclude(**{f"data__{name}__startswith": mark()})
        for_each(list(others.values_list("pk", flat=True)), partial(encrypt, others, name))
    return len(written)


@transaction.atomic
def take_away(factor: Authenticator, *, by: User | None) -> None:
    """For who has lost it; the person is told, as it might be somebody else who asked. Without `by` it was done by
    command.
    """
    person, name = factor.user, signals.factor(factor)
    activity.record(action="user.remove_factor", actor=by, target=person, before={"factor": name})
    factor.delete()
    delete_dangling_recovery_codes(person)
    signals.warn(
        person,
        lambda: (
            _("An administrator removed a second factor: %(factor)s") % {"factor": signals.factor(factor)},
            _("Did you not ask for it? Ask support at once, and add a factor again."),
        ),
    )
