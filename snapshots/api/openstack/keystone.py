"""Identity v3: tokens for application credentials, and the catalogue, in which each location is a region."""

from datetime import UTC, datetime
from typing import Any

import structlog
from django.db.models import Q
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.credentials import TOKEN_LIFETIME, issue_token, read_token, record_use, sign_in
from cng_portal.accounts.models import ApplicationCredential
from cng_portal.accounts.signin.sessions import get_address
from cng_portal.inventory.models import Location, Volume

from .calls import Call, authenticated, bad_request, parse_id, public, read_body, unauthorized

logger = structlog.stdlib.get_logger(__name__)

DOMAIN = {"id": "default", "name": "Default"}


def base_url(request: HttpRequest) -> str:
    return request.build_absolute_uri("/").rstrip("/")


def describe_version(request: HttpRequest) -> dict[str, Any]:
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{base_url(request)}/identity/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


def list_versions(request: HttpRequest) -> dict[str, Any]:
    return {"versions": {"values": [describe_version(request)]}}


def show_version(request: HttpRequest) -> dict[str, Any]:
    return {"version": describe_version(request)}


def create_token(request: HttpRequest) -> JsonResponse:
    """Issue a token for an application credential's secret, or for a valid token: then with that one's expiry."""
    address, at = get_address(request), timezone.now()
    credential, expires_at = identify(read_identity(request), address=address, at=at)
    if credential is None or expires_at is None:
        logger.warning("credential.rejected")
        return unauthorized()
    record_use(credential, address=address, at=at)
    token = issue_token(credential, expires_at=expires_at)
    content = describe_token(request, credential, issued_at=at, expires_at=expires_at)
    return JsonResponse({"token": content}, status=201, headers={"X-Subject-Token": token, "Vary": "X-Auth-Token"})


def read_identity(request: HttpRequest) -> dict[str, Any]:
    """Return the only method of authentication with its values: {"token": {"id": …}}. Raises a 400."""
    identity: Any = read_body(request).get("auth")
    identity = identity.get("identity") if isinstance(identity, dict) else None
    methods = identity.get("methods") if isinstance(identity, dict) else None
    if methods not in (["application_credential"], ["token"]):
        raise bad_request(_("Sign in with an application credential: “auth_type: v3applicationcredential”."))
    values = identity.get(methods[0])
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise bad_request(_("“%(method)s” must be an object with texts.") % {"method": methods[0]})
    if "id" not in values:
        raise bad_request(_("Give the ID of the application credential or token."))
    return {methods[0]: values}


def identify(
    identity: dict[str, Any], *, address: str | None, at: datetime
) -> tuple[ApplicationCredential, datetime] | tuple[None, None]:
    """Return the credential and when its token expires, or two Nones."""
    if values := identity.get("token"):
        return read_token(values["id"], address=address, at=at)
    values = identity["application_credential"]
    pk = parse_id(values["id"])
    credential = sign_in(pk, values.get("secret", ""), address=address, at=at) if pk else None
    return (credential, at + TOKEN_LIFETIME) if credential else (None, None)


def describe_token(
    request: HttpRequest, credential: ApplicationCredential, *, issued_at: datetime, expires_at: datetime
) -> dict[str, Any]:
    user, project = credential.user, credential.project
    return {
        "methods": ["application_credential"],
        "user": {"id": user.pk.hex, "name": user.email, "domain": DOMAIN, "password_expires_at": None},
        "project": {"id": project.pk.hex, "name": project.name, "domain": DOMAIN},
        "roles": [{"id": credential.role, "name": credential.role}],
        "is_domain": False,
        "application_credential": {"id": credential.pk.hex, "name": credential.name, "restricted": True},
        "issued_at": instant(issued_at),
        "expires_at": instant(expires_at),
        "audit_ids": [credential.pk.hex[:22]],
        "catalog": build_catalog(request, credential),
    }


def instant(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def build_catalog(request: HttpRequest, credential: ApplicationCredential) -> list[dict[str, Any]]:
    """List Identity and Block Storage in every open location, and in closed ones in which the project has volumes."""
    own = Volume.objects.present().filter(project=credential.project_id).values("location")
    regions = Location.objects.filter(Q(active=True) | Q(pk__in=own)).order_by("pk").values_list("pk", flat=True)
    base, project = base_url(request), credential.project_id.hex

    def service(kind: str, name: str, url: str) -> dict[str, Any]:
        endpoints = [
            {
                "id": f"{name}-{region}".lower(),
                "interface": "public",
                "region": region,
                "region_id": region,
                "url": url.format(region=region),
            }
            for region in regions
        ]
        return {"type": kind, "name": name, "id": name, "endpoints": endpoints}

    return [
        service("identity", "keystone", f"{base}/identity"),
        service("block-storage", "cinder", f"{base}/volume/{{region}}/v3/{project}"),
        # The same by the name that older clients know.
        service("volumev3", "cinderv3", f"{base}/volume/{{region}}/v3/{project}"),
    ]


@authenticated
def show_token(call: Call) -> JsonResponse:
    """Describe a token of the caller's own credential."""
    token = call.request.headers.get("X-Subject-Token", "")
    credential, expires_at = read_token(token, address=get_address(call.request), at=call.at)
    if credential != call.credential or expires_at is None:
        return unauthorized()
    issued_at = expires_at - TOKEN_LIFETIME
    content = describe_token(call.request, call.credential, issued_at=issued_at, expires_at=expires_at)
    return JsonResponse({"token": content}, headers={"X-Subject-Token": token})


@authenticated
def show_catalog(call: Call) -> dict[str, Any]:
    return {
        "catalog": build_catalog(call.request, call.credential),
        "links": {"self": call.request.build_absolute_uri()},
    }


versions = public(GET=list_versions)
version = public(GET=show_version)
tokens = public(POST=create_token, GET=show_token)
catalog = public(GET=show_catalog)
