"""Members of projects: invitations and roles. A project always has an owner.

Each action validates, writes and records in one transaction that holds the customer's lock, or raises
`ActionRefused`, whose text is for the user.
"""

from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.activity import services as activity
from cng_portal.common.locks import lock_name
from cng_portal.common.preferences import localized_for
from cng_portal.mail import services as mail
from cng_portal.mail.models import OutgoingMail

from . import approvals
from .approvals import ActionRefused
from .models import Approval, Customer, Invitation, Membership, Project, Role, User
from .services import lock_customer, set_verified_email

logger = structlog.stdlib.get_logger(__name__)

VALID_FOR = timedelta(days=7)
WINDOW = timedelta(hours=1)
SALT = "accounts.invitation"
CHANGE_ROLE = "change_role"


def require_owner(user: User, project: Project) -> None:
    """Raise PermissionDenied for a member who isn't an owner. For strangers, callers have raised a 404."""
    if user.roles.get(project.pk) != Role.OWNER:
        raise PermissionDenied(_("Only owners can manage “%(project)s”. Ask one of them.") % {"project": project.name})


def open_invitations() -> QuerySet[Invitation]:
    return Invitation.objects.filter(accepted_at=None, revoked_at=None)


def acceptable_invitations(*, at: datetime) -> QuerySet[Invitation]:
    """Return the open, unexpired invitations to projects that aren't archived, whose sender is still an owner: Django admin
    removes owners, too.
    """
    owners = Membership.objects.filter(
        project=OuterRef("project"), user=OuterRef("invited_by"), role=Role.OWNER, user__is_active=True
    )
    return open_invitations().filter(Exists(owners), expires_at__gt=at, project__archived_at=None)


def sign_token(invitation: Invitation) -> str:
    return signing.dumps(str(invitation.pk), salt=SALT)


def get_invitation(token: str, *, at: datetime) -> Invitation | None:
    """Return the invitation of a link if it can still be accepted."""
    try:
        key = signing.loads(token, salt=SALT)
    except signing.BadSignature:
        return None
    return acceptable_invitations(at=at).filter(pk=key).select_related("project__customer", "invited_by").first()


def require_another_owner(membership: Membership) -> None:
    """Raise ActionRefused if the member is the last owner. The caller must hold the customer's lock."""
    others = Membership.objects.filter(project_id=membership.project_id, role=Role.OWNER, user__is_active=True)
    if membership.role == Role.OWNER and not others.exclude(pk=membership.pk).exists():
        raise ActionRefused(
            _("“%(project)s” needs at least one owner. Make another member an owner first.")
            % {"project": membership.project.name}
        )
    if membership.role == Role.OWNER and is_only_owner(
        membership.user, membership.project.customer, without=membership
    ):
        raise ActionRefused(
            _("%(customer)s needs at least one owner of its own. Make another of its users an owner first.")
            % {"customer": membership.project.customer.name}
        )


def is_only_owner(user: User, customer: Customer, *, without: Membership | None = None) -> bool:
    """Return whether the customer would have no owner left without the user, or without only the membership `without`."""
    owners = Membership.objects.filter(
        project__customer=customer, role=Role.OWNER, user__is_active=True, user__customer=customer
    )
    others = owners.exclude(pk=without.pk) if without else owners.exclude(user=user)
    return owners.filter(user=user).exists() and not others.exists()


def owned_only_by(user: User) -> QuerySet[Project]:
    """Return the projects that would have no active owner without the user."""
    owners = Membership.objects.filter(project=OuterRef("pk"), role=Role.OWNER)
    others = owners.filter(user__is_active=True).exclude(user=user)
    return Project.objects.filter(Exists(owners.filter(user=user)), ~Exists(others)).order_by("name")


def invite(*, project: Project, email: str, role: str, by: User, at: datetime) -> Invitation:
    """Create an invitation and queue its e-mail. It replaces an open one to the same address."""
    email = email.strip().lower()
    with transaction.atomic():
        lock_customer(project.customer_id)
        require_owner(User.objects.get(pk=by.pk), project)
        if Project.objects.filter(pk=project.pk, archived_at__isnull=False).exists():
            raise ActionRefused(
                _("“%(project)s” is archived. Unarchive it before you invite anybody.") % {"project": project.name}
            )
        if Membership.objects.filter(project=project, user__email__iexact=email).exists():
            raise ActionRefused(
                _("%(email)s is already a member of “%(project)s”. Change their role instead.")
                % {"email": email, "project": project.name}
            )
        if role == Role.OWNER and project.customer.needs_approval:
            raise ActionRefused(
                _("Invite them as a member. Then change their role to owner, which another owner has to approve.")
            )
        limit = settings.INVITATIONS_PER_HOUR
        lately = Invitation.objects.filter(project__customer=project.customer_id, created_at__gt=at - WINDOW)
        if limit and lately.count() >= limit:
            logger.warning("invitation.rate_limited", limit=limit)
            raise ActionRefused(
                _("Your account has reached its limit of %(limit)s invitations an hour. Try again later.")
                % {"limit": limit}
            )
        for older in open_invitations().filter(project=project, email__iexact=email):
            close_invitation(older, at=at)
        invitation = Invitation(
            project=project, email=email, role=role, invited_by=by, created_at=at, expires_at=at + VALID_FOR
        )
        invitation.mail = enqueue_mail(invitation)
        invitation.save()
        activity.record(
            action="invitation.send", actor=by, target=invitation, project=project, after={"email": email, "role": role}
        )
    return invitation


def revoke(*, invitation: Invitation, by: User, at: datetime) -> None:
    with transaction.atomic():
        lock_customer(invitation.project.customer_id)
        require_owner(User.objects.get(pk=by.pk), invitation.project)
        if not close_invitation(invitation, at=at):
            raise ActionRefused(_("The invitation was already accepted or revoked."))
        activity.record(action="invitation.revoke", actor=by, target=invitation, project=invitation.project)


def close_invitation(invitation: Invitation, *, at: datetime) -> bool:
    """Revoke the invitation and cancel its queued e-mail. False if it was accepted or revoked before."""
    if not open_invitations().filter(pk=invitation.pk).update(revoked_at=at):
        return False
    mail.cancel(OutgoingMail.objects.filter(pk=invitation.mail_id))
    return True


def accept(*, invitation: Invitation, user: User, at: datetime) -> Membership:
    """Join the project in the role offered, or as a member where owners need approval. Members keep their role."""
    with transaction.atomic():
        lock_customer(invitation.project.customer_id)
        acceptable = acceptable_invitations(at=at).filter(pk=invitation.pk)
        if user.email.lower() != invitation.email.lower():
            raise ActionRefused(_("Sign in with the address the invitation was sent to."))
        if not acceptable.update(accepted_at=at, accepted_by=user):
            raise ActionRefused(_("The invitation was used or revoked, or has expired. Ask for a new one."))
        role = invitation.role
        if role == Role.OWNER and Customer.objects.get(pk=invitation.project.customer_id).needs_approval:
            role = Role.MEMBER  # It was sent before approvals were turned on.
        membership, _created = Membership.objects.get_or_create(
            project=invitation.project, user=user, defaults={"role": role}
        )
        User.objects.filter(pk=user.pk, customer=None).update(customer=invitation.project.customer_id)
        activity.record(
            action="user.join", actor=user, target=user, project=invitation.project, after={"role": membership.role}
        )
    return membership


def sign_up(*, invitation: Invitation, name: str, password: str, at: datetime) -> User:
    """Create the invited user and accept the invitation. Raises ValidationError for the password."""
    user = User(email=invitation.email, name=name, customer=invitation.project.customer)
    validate_password(password, user)
    user.set_password(password)  # slow on purpose, so before the lock
    with transaction.atomic():
        lock_name(User._meta.label_lower)  # so that nobody else takes the address
        lock_customer(invitation.project.customer_id)
        if User.objects.filter(email__iexact=invitation.email).exists():
            raise ActionRefused(_("An account with this address already exists. Sign in with it."))
        user.save()
        # The link proves that the address is theirs.
        set_verified_email(user)
        accept(invitation=invitation, user=user, at=at)
    return user


def change_role(*, membership: Membership, role: str, by: User, approval: Approval | None = None) -> Membership:
    """Change a member's role. Making or unmaking an owner may have to wait for approval: then the role is unchanged."""
    with transaction.atomic():
        lock_customer(membership.project.customer_id)
        require_owner(User.objects.get(pk=by.pk), membership.project)
        membership = reload_for_update(membership)
        before = membership.role
        if role == before:
            return membership
        if role != Role.OWNER:
            require_another_owner(membership)
        if Role.OWNER in (role, before) and approvals.request_approval_if_needed(
            action=CHANGE_ROLE,
            target=membership,
            customer_id=membership.project.customer_id,
            project=membership.project,
            by=by,
            at=timezone.now(),
            approval=approval,
            role=role,
        ):
            return membership
        if role != Role.OWNER:
            revoke_invitations_of(membership, by)
        membership.role = role
        membership.save(update_fields=["role"])
        activity.record(
            action="role.change",
            actor=by,
            target=membership.user,
            project=membership.project,
            before={"role": before},
            after={"role": role},
        )
    return membership


def change_approved_role(approval: Approval) -> None:
    membership = Membership.objects.select_related("project").filter(pk=approval.target_id).first()
    if membership is None:
        raise ActionRefused(_("This user is no longer a member of the project."))
    change_role(membership=membership, role=approval.role, by=approval.requested_by, approval=approval)


approvals.register(CHANGE_ROLE, gettext_lazy("%(target)s: change the role to %(role)s"), change_approved_role)


def remove(*, membership: Membership, by: User) -> None:
    """Remove a member as an owner, or leave the project."""
    with transaction.atomic():
        lock_customer(membership.project.customer_id)
        membership = reload_for_update(membership)
        leaves = membership.user_id == by.pk
        if not leaves:
            require_owner(User.objects.get(pk=by.pk), membership.project)
        require_another_owner(membership)
        if membership.role == Role.OWNER and membership.project.customer.needs_approval:
            raise ActionRefused(
                _("Change the role from owner to another one first. Another owner has to approve that.")
            )
        revoke_invitations_of(membership, by)
        membership.delete()
        activity.record(
            action="role.leave" if leaves else "role.remove",
            actor=by,
            target=membership.user,
            project=membership.project,
            before={"role": membership.role},
        )


def revoke_invitations_of(membership: Membership, by: User) -> None:
    """Revoke pending invitations sent by someone who is no longer an owner."""
    for invitation in open_invitations().filter(project=membership.project_id, invited_by=membership.user_id):
        close_invitation(invitation, at=timezone.now())
        activity.record(action="invitation.revoke", actor=by, target=invitation, project=membership.project)


def reload_for_update(membership: Membership) -> Membership:
    """Return the row as it is now that the caller holds the customer's lock."""
    current = Membership.objects.select_related("project__customer", "user").filter(pk=membership.pk).first()
    if current is None:
        raise ActionRefused(_("This user is no longer a member of the project."))
    return current


def enqueue_mail(invitation: Invitation) -> OutgoingMail:
    recipient = User.objects.filter(email__iexact=invitation.email).first()
    with localized_for(recipient):
        names = {
            "who": invitation.invited_by,
            "project": invitation.project.name,
            "customer": invitation.project.customer.name,
            "role": invitation.get_role_display(),
        }
        lines = [
            _("%(who)s invites you to join the project “%(project)s” of %(customer)s. Your role: %(role)s.") % names,
            settings.PORTAL_URL + reverse("accounts:invitation", args=[sign_token(invitation)]),
            _("The link works once and expires in 7 days. If you don't know the sender, ignore this e-mail."),
        ]
        subject = _("1CNG: %(who)s invites you to “%(project)s”") % names
    return mail.enqueue(
        kind=OutgoingMail.Kind.INVITATION,
        recipient=invitation.email,
        subject=subject,
        body="\n\n".join(lines),
        expires_at=invitation.expires_at,
    )
