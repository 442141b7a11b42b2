"""Second factors: who needs one, how their secrets are encrypted (with a key derived from SECRET_KEY), and their removal."""

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

NEXT_PAGE = "wanted_page"  # session key: where to go after adding a factor
SALT = "cng_portal.accounts.signin.factors"
ENCRYPTED = "fernet:"
# Passkeys have none here: the portal has only their public key.
SECRETS = {Authenticator.Type.TOTP: "secret", Authenticator.Type.RECOVERY_CODES: "seed"}


def is_factor_missing(user: User) -> bool:
    """Return whether `request.user` lacks a second factor that MFA_REQUIRED asks for. No query."""
    if user.has_factor:  # type: ignore[attr-defined]  # set by the backend
        return False
    required = settings.MFA_REQUIRED
    return required == "everyone" or (required == "owners" and Role.OWNER in user.roles.values())


class MFAAdapter(DefaultMFAAdapter):
    """Also reads plain text of earlier versions, and secrets encrypted with one of SECRET_KEY_FALLBACKS."""

    def encrypt(self, text: str) -> str:
        return key_prefix() + get_cipher().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """Raises PermissionDenied when the key is missing."""
        text = try_decrypt(encrypted_text)
        if text is None:
            logger.error("factor.undecryptable")
            raise PermissionDenied(
                _(
                    "Your second factor can't be checked, because the key that encrypts it was replaced. Use a passkey, "
                    "or ask an administrator to remove the factor."
                )
            )
        return text


def get_cipher() -> MultiFernet:
    keys = [salted_hmac(SALT, "key", secret=secret, algorithm="sha256").digest() for secret in secret_keys()]
    return MultiFernet([Fernet(urlsafe_b64encode(key)) for key in keys])


def secret_keys() -> list[str]:
    return [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]


def key_prefix() -> str:
    """The prefix of everything encrypted with the current key."""
    return f"{ENCRYPTED}{salted_hmac(SALT, 'name', algorithm='sha256').hexdigest()[:8]}:"


def try_decrypt(text: str) -> str | None:
    if not text.startswith(ENCRYPTED):
        return text
    try:
        return get_cipher().decrypt(text.rpartition(":")[2]).decode()
    except InvalidToken:
        return None


def encrypt_all() -> int:
    """Encrypt every secret with the current key that isn't yet. Returns how many."""
    written = []

    @transaction.atomic
    def encrypt(others: QuerySet[Authenticator], name: str, pk: int) -> None:
        # Locked, because using a recovery code changes the same field.
        factor = others.select_for_update().filter(pk=pk).first()
        text = try_decrypt(factor.data[name]) if factor else None
        if factor and text is not None:
            factor.data[name] = MFAAdapter().encrypt(text)
            factor.save(update_fields=["data"])
            written.append(pk)

    for kind, name in SECRETS.items():
        others = Authenticator.objects.filter(type=kind).exclude(**{f"data__{name}__startswith": key_prefix()})
        for_each(list(others.values_list("pk", flat=True)), partial(encrypt, others, name))
    return len(written)


@transaction.atomic
def remove_factor(factor: Authenticator, *, by: User | None) -> None:
    """Remove a lost factor and notify the user. `by` is the administrator, None for a command."""
    user, name = factor.user, signals.describe_factor(factor)
    activity.record(action="user.remove_factor", actor=by, target=user, before={"factor": name})
    factor.delete()
    delete_dangling_recovery_codes(user)
    signals.notify(
        user,
        lambda: (
            _("An administrator removed a second factor: %(factor)s") % {"factor": signals.describe_factor(factor)},
            _("If you didn't ask for this, contact your provider now and add a second factor again."),
        ),
    )
