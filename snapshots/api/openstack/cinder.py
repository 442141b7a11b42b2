"""Block Storage v3: versions, limits, quotas, availability zones and volume types."""

from typing import Any

from django.http import HttpRequest
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer, Project

from ...views.limits import with_usage
from .calls import MAX_VERSION, MIN_VERSION, Call, not_found, of_project, parse_id, public, to_text
from .volumes import VOLUME_TYPE

# One for all locations: what differs between them is the storage, which customers don't choose.
VOLUME_TYPE_ID = "2a0f2e2c-1c8e-4b0f-9a52-5ac1d5a9b3a1"
TYPE: dict[str, Any] = {
    "id": VOLUME_TYPE_ID,
    "name": VOLUME_TYPE,
    "description": None,
    "is_public": True,
    "os-volume-type-access:is_public": True,
    "extra_specs": {},
}


def show_versions(request: HttpRequest, location: str) -> dict[str, Any]:
    """The same for every location, whether there is one of this name or not."""
    path = f"/volume/{location}/v3/"
    return {
        "versions": [
            {
                "id": "v3.0",
                "status": "CURRENT",
                "version": to_text(MAX_VERSION),
                "min_version": to_text(MIN_VERSION),
                "updated": "2026-11-30T00:00:00Z",
                "links": [{"rel": "self", "href": request.build_absolute_uri(path)}],
                "media-types": [
                    {"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}
                ],
            }
        ]
    }


def measure(call: Call) -> tuple[Any, Any]:
    """Return the project and its customer with their usage."""
    project = with_usage(Project.objects.visible_to(call.user).filter(pk=call.project.pk), "project").get()
    customer = with_usage(Customer.objects.filter(pk=project.customer_id), "customer").get()
    return project, customer


def uses(call: Call) -> dict[str, tuple[int, int]]:
    """Return {resource: (limit, used)}: of the project, or of the account if that is reached first."""
    project, customer = measure(call)
    fields = {
        "volumes": ("volume_quota", "volume_count"),
        "gigabytes": ("volume_gb_quota", "volume_gb"),
        "snapshots": ("snapshot_quota", "snapshot_count"),
        "snapshot_gigabytes": ("snapshot_gb_quota", "snapshot_gb"),
    }
    result = {}
    for resource, (limit, used) in fields.items():
        rows = [(getattr(owner, limit), getattr(owner, used)) for owner in (project, customer)]
        limited = [row for row in rows if row[0] >= 0]
        result[resource] = min(limited, key=lambda row: row[0] - row[1], default=rows[0])
    return result


def show_limits(call: Call) -> dict[str, Any]:
    use = uses(call)
    absolute = {
        "maxTotalVolumes": use["volumes"][0],
        "totalVolumesUsed": use["volumes"][1],
        "maxTotalVolumeGigabytes": use["gigabytes"][0],
        "totalGigabytesUsed": use["gigabytes"][1],
        "maxTotalSnapshots": use["snapshots"][0],
        "totalSnapshotsUsed": use["snapshots"][1],
        "maxTotalBackups": 0,
        "totalBackupsUsed": 0,
        "maxTotalBackupGigabytes": 0,
        "totalBackupGigabytesUsed": 0,
    }
    return {"limits": {"rate": [], "absolute": absolute}}


def show_quotas(call: Call, quota_project: str) -> dict[str, Any]:
    if parse_id(quota_project) != call.project.pk:
        raise not_found(_("The project"))
    use = uses(call) | {
        "backups": (0, 0),
        "backup_gigabytes": (0, 0),
        "groups": (0, 0),
        "per_volume_gigabytes": (-1, 0),
    }
    if call.query.get("usage", "").lower() == "true":
        quotas: dict[str, Any] = {
            name: {"limit": limit, "in_use": used, "reserved": 0} for name, (limit, used) in use.items()
        }
    else:
        quotas = {name: limit for name, (limit, _used) in use.items()}
    return {"quota_set": {"id": call.project.pk.hex} | quotas}


def list_zones(call: Call) -> dict[str, Any]:
    assert call.location is not None
    return {"availabilityZoneInfo": [{"zoneName": call.location.pk, "zoneState": {"available": call.location.active}}]}


def list_types(call: Call) -> dict[str, Any]:
    return {"volume_types": [TYPE]}


def show_type(call: Call, type_id: str) -> dict[str, Any]:
    if type_id not in (VOLUME_TYPE_ID, "default"):
        raise not_found(_("The volume type"))
    return {"volume_type": TYPE}


versions = public(GET=show_versions)
limits = of_project(GET=show_limits)
quotas = of_project(GET=show_quotas)
zones = of_project(GET=list_zones)
types = of_project(GET=list_types)
volume_type = of_project(GET=show_type)
