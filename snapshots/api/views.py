"""The API's pages: application credentials, and how to use them with OpenStack's own clients."""

import shlex
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from cng_portal.accounts.credentials import create_credential, has_role, revoke_credential
from cng_portal.accounts.models import ApplicationCredential, User
from cng_portal.accounts.roles import ActionRefused
from cng_portal.accounts.signin import confirmation
from cng_portal.inventory.models import Location, Volume

from .forms import CredentialForm
from .v1.reference import build_reference


@dataclass(frozen=True, kw_only=True)
class CredentialRow:
    credential: ApplicationCredential
    is_own: bool
    is_expired: bool
    has_lost_role: bool


CLOUDS = """\
clouds:
  portal:
    auth_type: v3applicationcredential
    auth:
      auth_url: {auth_url}
      application_credential_id: {id}
      application_credential_secret: {secret}
    region_name: {region}
"""
INSTALL = """\
pip install python-openstackclient
export OS_CLOUD=portal
"""
COMMANDS = """\
openstack volume list
openstack volume snapshot create --volume {volume} first-snapshot
openstack volume snapshot list
"""
START = """\
export ID={id} SECRET=1cng_…
curl -u "$ID:$SECRET" "{base}/api/v1/locations"
"""


def setup_context(
    user: User, credential: ApplicationCredential | None = None, secret: str = "SECRET"
) -> dict[str, Any]:
    """Return the texts to copy, with a region and a volume that the user has."""
    volumes = Volume.objects.visible_to(user).present().filter(state=Volume.State.AVAILABLE)
    if credential:
        volumes = volumes.filter(project=credential.project)
    volume = volumes.order_by("-created_at", "-pk").first()
    regions = list(Location.objects.active().order_by("pk"))
    return {
        "regions": regions,
        "clouds": CLOUDS.format(
            auth_url=f"{settings.PORTAL_URL}/identity/v3",
            id=credential.pk.hex if credential else "ID",
            secret=secret,
            region=volume.location_id if volume else regions[0].pk if regions else "",
        ),
        "install": INSTALL,
        "commands": COMMANDS.format(volume=shlex.quote(volume.name if volume else "my-volume")),
    }


@require_safe
def credentials(request: HttpRequest) -> HttpResponse:
    user, now = request.user, timezone.now()
    visible = ApplicationCredential.objects.visible_to(user).present().select_related("user", "project")
    rows = [
        CredentialRow(
            credential=credential,
            is_own=credential.user_id == user.pk,
            is_expired=credential.expires_at is not None and credential.expires_at <= now,
            has_lost_role=credential.user_id == user.pk and not has_role(user, credential.project_id, credential.role),
        )
        for credential in visible.order_by("name", "pk")
    ]
    context = {"rows": rows, "can_create": bool(user.changeable_project_ids), **setup_context(user)}
    return render(request, "api/credentials.html", context)


@require_safe
def reference(request: HttpRequest) -> HttpResponse:
    """Document /api/v1, from its schema."""
    own = ApplicationCredential.objects.present().filter(user=request.user).order_by("-created_at").first()
    start = START.format(id=own.pk.hex if own else "…", base=settings.PORTAL_URL)
    return render(request, "api/reference.html", build_reference(settings.PORTAL_URL) | {"start": start})


@never_cache
@require_http_methods(["GET", "POST"])
def new_credential(request: HttpRequest) -> HttpResponse:
    """Create a credential and show its secret, once. Needs a recent confirmation of identity."""
    user = request.user
    if not user.changeable_project_ids:
        raise PermissionDenied(_("Only members and owners of a project can create credentials."))
    if not confirmation.is_recent(request):
        return confirmation.request_confirmation(request, keep=request.method == "POST")
    form = CredentialForm(request.POST or None, user=user)
    if request.method == "POST" and form.is_valid():
        try:
            credential, secret = create_credential(user=user, at=timezone.now(), **form.cleaned_data)
        except ActionRefused as refusal:
            form.add_error("name", str(refusal))
        else:
            context = {"credential": credential, "secret": secret, **setup_context(user, credential, secret)}
            return render(request, "api/created.html", context)
    return render(request, "api/new_credential.html", {"form": form})


@require_http_methods(["GET", "POST"])
def revoke(request: HttpRequest, credential_id: UUID) -> HttpResponse:
    visible = ApplicationCredential.objects.visible_to(request.user).present().select_related("user", "project")
    credential = get_object_or_404(visible, pk=credential_id)
    if request.method == "POST":
        revoke_credential(credential=credential, by=request.user, at=timezone.now())
        messages.success(request, _("The credential “%(name)s” was revoked.") % {"name": credential.name})
        return redirect("api:credentials")
    consequences = [
        _("Programs that use it are signed out at once, and can't sign in again."),
        _("What they have started goes on. Snapshots and volumes stay."),
    ]
    return render(request, "api/revoke.html", {"credential": credential, "consequences": consequences})
