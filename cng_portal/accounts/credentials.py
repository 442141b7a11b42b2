"""Application credentials: how programs sign in, and the tokens that they get for their secret.

Whether a credential is valid is asked of the live rows on every request, so that it ends at once when it is revoked, when
its user is deactivated or leaves the project, or when their role there is lowered.
"""

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from ipaddress import ip_address, ip_network
from uuid import UUID

from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q
from django.utils.crypto import constant_time_compare
from django.utils.translation import gettext as _

from cng_portal.activity import services as activity
from cng_portal.common import full_disk
from cng_portal.common.locks import lock_name
from cng_portal.common.names import is_same_name
from cng_portal.common.optional import optional

from .models import Act, ApplicationCredential, Project, Role, User
from .roles import ActionRefused
from .services import lock_customer

# Secret scanners look for 1cng_[0-9a-f]{48}.
PREFIX = "1cng_"
SECRET_BYTES = 24
# Each role can do what those before it can.
RANKS = (Role.VIEWER, Role.MEMBER, Role.OWNER)
MAX_CREDENTIALS = 50  # of one user
MAX_NETWORKS = 20
TOKEN_LIFETIME = timedelta(hours=1)
SALT = "accounts.credentials"
# How often the last use is recorded.
USED_EVERY = timedelta(minutes=1)


def hash_secret(secret: str) -> str:
    """A plain hash is enough, because the secret is random and long."""
    return sha256(secret.encode(errors="replace")).hexdigest()


def has_role(user: User, project_id: UUID, role: str) -> bool:
    own = user.roles.get(project_id)
    return own is not None and RANKS.index(Role(own)) >= RANKS.index(Role(role))


def may(credential: ApplicationCredential, act: Act) -> bool:
    """Return whether the credential has the permission and a role that can use it. Services check the user's own role."""
    return act in credential.acts and RANKS.index(Role(credential.role)) >= RANKS.index(Role.MEMBER)


def create_credential(
    *,
    user: User,
    project: Project,
    name: str,
    role: str,
    acts: Iterable[str],
    networks: Iterable[str],
    expires_at: datetime | None,
    at: datetime,
) -> tuple[ApplicationCredential, str]:
    """Return the credential and its secret, which can't be read again. Raises ActionRefused, PermissionDenied."""
    with transaction.atomic():
        # Names are the user's own, who may create another one in a project of another customer now.
        lock_name(f"{ApplicationCredential._meta.label_lower} {user.pk}")
        lock_customer(project.customer_id)
        user = User.objects.get(pk=user.pk)
        if not user.can_change(project.pk) or not has_role(user, project.pk, role):
            raise PermissionDenied(
                _("You can't create this credential in “%(project)s”. Ask one of its owners.")
                % {"project": project.name}
            )
        own = ApplicationCredential.objects.present().filter(user=user).values_list("name", flat=True)
        if any(is_same_name(other, name) for other in own):
            raise ActionRefused(_("You already have a credential of this name. Choose another name."))
        if len(own) >= MAX_CREDENTIALS:
            raise ActionRefused(
                _("You have %(limit)s credentials, which is the limit. Revoke one that you no longer use.")
                % {"limit": MAX_CREDENTIALS}
            )
        secret = PREFIX + secrets.token_hex(SECRET_BYTES)
        credential = ApplicationCredential.objects.create(
            user=user,
            project=project,
            name=name,
            secret_hash=hash_secret(secret),
            role=role,
            acts=[act.value for act in Act if act in set(acts)],
            networks=list(networks),
            created_at=at,
            expires_at=expires_at,
        )
        activity.record(
            action="credential.create",
            actor=user,
            target=credential,
            after={
                "name": name,
                "role": role,
                "acts": credential.acts,
                "networks": credential.networks,
                "expires_at": expires_at,
            },
        )
    return credential, secret


def revoke_credential(*, credential: ApplicationCredential, by: User, at: datetime) -> None:
    """End the credential and its tokens at once. No-op if it was revoked before."""
    with transaction.atomic():
        lock_customer(credential.project.customer_id)
        by = User.objects.get(pk=by.pk)
        if not ApplicationCredential.objects.visible_to(by).filter(pk=credential.pk).exists():
            raise PermissionDenied(_("You can't revoke this credential any more."))
        if ApplicationCredential.objects.present().filter(pk=credential.pk).update(revoked_at=at):
            activity.record(
                action="credential.revoke", actor=by, target=credential, before={"user": str(credential.user)}
            )


def sign_in(credential_id: UUID, secret: str, *, address: str | None, at: datetime) -> ApplicationCredential | None:
    """Return the credential if the secret is right and the credential is valid."""
    credential = get_valid(credential_id, address=address, at=at)
    if credential and constant_time_compare(hash_secret(secret), credential.secret_hash):
        return credential
    return None


def get_valid(credential_id: UUID, *, address: str | None, at: datetime) -> ApplicationCredential | None:
    """Return the credential if it may be used now from this address."""
    alive = Q(expires_at=None) | Q(expires_at__gt=at)
    present = ApplicationCredential.objects.present().filter(alive, pk=credential_id, user__is_active=True)
    credential = present.select_related("user__customer", "project__customer").first()
    if credential is None or not has_role(credential.user, credential.project_id, credential.role):
        return None
    return credential if is_allowed_from(credential, address) else None


def is_allowed_from(credential: ApplicationCredential, address: str | None) -> bool:
    if not credential.networks:
        return True
    return address is not None and any(ip_address(address) in ip_network(network) for network in credential.networks)


def record_use(credential: ApplicationCredential, *, address: str | None, at: datetime) -> None:
    """Record when and from where it was used, at most once a minute from the same address. Never fails a request."""
    last = credential.last_used_at
    if last and at - last < USED_EVERY and credential.last_used_from == address:
        return
    own = ApplicationCredential.objects.filter(pk=credential.pk)
    if not full_disk.is_full():
        optional("credential last used", partial(own.update, last_used_at=at, last_used_from=address), None)


def issue_token(credential: ApplicationCredential, *, expires_at: datetime) -> str:
    """Return a signed token of the credential. Nothing is stored: it is worth as much as its credential."""
    return get_signer(credential).sign(f"{credential.pk.hex}.{int(expires_at.timestamp())}")


def read_token(
    token: str, *, address: str | None, at: datetime
) -> tuple[ApplicationCredential, datetime] | tuple[None, None]:
    """Return the credential of the token and when the token expires, or two Nones."""
    try:
        key, _dot, expiry = token.partition(":")[0].partition(".")
        expires_at = datetime.fromtimestamp(int(expiry), tz=UTC)
        credential = get_valid(UUID(key), address=address, at=at) if at < expires_at else None
        if credential is None:
            return None, None
        get_signer(credential).unsign(token)
    except (ValueError, OverflowError, OSError, signing.BadSignature):
        return None, None
    return credential, expires_at


def get_signer(credential: ApplicationCredential) -> signing.Signer:
    # With the hash, so that a token can't be forged with SECRET_KEY alone.
    return signing.Signer(salt=f"{SALT}.{credential.secret_hash}")
