"""Members of a project: owners invite and remove members and change roles; any member can leave."""

from uuid import UUID

from allauth.account.internal.flows.login import perform_login
from allauth.account.models import Login
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from cng_portal.accounts import roles
from cng_portal.accounts.approvals import REQUESTED
from cng_portal.accounts.forms import InvitationForm, RoleForm, SignUpForm
from cng_portal.accounts.models import Invitation, Membership, Project, User
from cng_portal.accounts.submissions import submit_once


@require_http_methods(["GET", "POST"])
@submit_once
def invite(request: HttpRequest, project_id: UUID) -> HttpResponse:
    project = get_object_or_404(Project.objects.visible_to(request.user), pk=project_id)
    roles.require_owner(request.user, project)
    form = InvitationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            roles.invite(project=project, by=request.user, at=timezone.now(), **form.cleaned_data)
        except roles.ActionRefused as refusal:
            form.add_error("email", str(refusal))
        else:
            text = _("We've e-mailed an invitation to “%(project)s” to %(email)s.")
            messages.success(request, text % {"email": form.cleaned_data["email"], "project": project.name})
            return redirect("project", project.pk)
    return render(request, "accounts/invite.html", {"project": project, "form": form})


def get_invitation(user: User, invitation_id: UUID) -> Invitation:
    """404 for strangers, 403 for members who aren't owners."""
    visible = roles.open_invitations().filter(project__in=list(user.roles)).select_related("project__customer")
    invitation = get_object_or_404(visible, pk=invitation_id)
    roles.require_owner(user, invitation.project)
    return invitation


@require_POST
def resend(request: HttpRequest, invitation_id: UUID) -> HttpResponse:
    """Replace the invitation by a new one with a new link."""
    old = get_invitation(request.user, invitation_id)
    try:
        roles.invite(project=old.project, email=old.email, role=old.role, by=request.user, at=timezone.now())
    except roles.ActionRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, _("We've sent the invitation to %(email)s again.") % {"email": old.email})
    return redirect("project", old.project_id)


@require_POST
def revoke(request: HttpRequest, invitation_id: UUID) -> HttpResponse:
    invitation = get_invitation(request.user, invitation_id)
    try:
        roles.revoke(invitation=invitation, by=request.user, at=timezone.now())
    except roles.ActionRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, _("The invitation for %(email)s was revoked.") % {"email": invitation.email})
    return redirect("project", invitation.project_id)


def get_membership(user: User, membership_id: int) -> Membership:
    visible = Membership.objects.filter(project__in=list(user.roles)).select_related("project__customer", "user")
    return get_object_or_404(visible, pk=membership_id)


@require_http_methods(["GET", "POST"])
def change_role(request: HttpRequest, membership_id: int) -> HttpResponse:
    membership = get_membership(request.user, membership_id)
    roles.require_owner(request.user, membership.project)
    form = RoleForm(request.POST or None, initial={"role": membership.role})
    if request.method == "POST" and form.is_valid():
        try:
            changed = roles.change_role(membership=membership, role=form.cleaned_data["role"], by=request.user)
        except roles.ActionRefused as refusal:
            form.add_error("role", str(refusal))
        else:
            names = {"user": changed.user, "role": changed.get_role_display()}
            is_done = changed.role == form.cleaned_data["role"]
            messages.success(request, _("New role of %(user)s: %(role)s.") % names if is_done else REQUESTED)
            return redirect("project", membership.project_id)
    return render(request, "accounts/role.html", {"membership": membership, "form": form})


@require_http_methods(["GET", "POST"])
def remove(request: HttpRequest, membership_id: int) -> HttpResponse:
    """Owners remove members; any member can leave."""
    membership = get_membership(request.user, membership_id)
    leaves = membership.user_id == request.user.pk
    if not leaves:
        roles.require_owner(request.user, membership.project)
    problems = []
    if request.method == "POST":
        try:
            roles.remove(membership=membership, by=request.user)
        except roles.ActionRefused as refusal:
            problems = [{"id": "", "message": str(refusal)}]
        else:
            names = {"person": membership.user, "project": membership.project.name}
            done = _("You left “%(project)s”.") if leaves else _("%(person)s is no longer a member of “%(project)s”.")
            messages.success(request, done % names)
            return redirect("projects") if leaves else redirect("project", membership.project_id)
    context = {"membership": membership, "leaves": leaves, "problems": problems}
    return render(request, "accounts/remove.html", context)


@login_not_required
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """The page of an invitation's link: sign up, join with an existing account, or see why the link doesn't work.

    It may reveal that the address has an account, because only its owner has the link.
    """
    now = timezone.now()
    invitation = roles.get_invitation(token, at=now)
    if invitation is None:
        return render(request, "accounts/invitation_gone.html", status=404)
    user = request.user if request.user.is_authenticated else None
    is_for_me = user is not None and user.email.lower() == invitation.email.lower()
    has_sign_in = User.objects.filter(email__iexact=invitation.email).exists()
    form = None if user or has_sign_in else SignUpForm(request.POST or None)
    problems = []
    if request.method == "POST":
        try:
            if is_for_me:
                roles.accept(invitation=invitation, user=user, at=now)
                messages.success(request, _("Welcome to “%(project)s”.") % {"project": invitation.project.name})
                return redirect("dashboard")
            if form is not None and form.is_valid():
                new_user = roles.sign_up(invitation=invitation, at=now, **form.cleaned_data)
                return perform_login(request, Login(user=new_user, redirect_url=reverse("dashboard")))
        except roles.ActionRefused as refusal:
            problems = [{"id": "", "message": str(refusal)}]
        except ValidationError as error:
            form.add_error("password", error)
    context = {
        "invitation": invitation,
        "form": form,
        "problems": problems,
        "is_for_me": is_for_me,
        "has_sign_in": has_sign_in,
    }
    return render(request, "accounts/invitation.html", context)
