"""Block Storage v3: volumes of the token's project in one location."""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from django.db.models import Q
from django.http import HttpResponse
from django.utils.translation import gettext as _

from billing.pricing.prices import Quote
from cng_portal.accounts.models import Act
from cng_portal.inventory.models import Volume

from ...errors import InvalidState
from ...labels import change_labels, clean_note
from ...restores import irreversible_reasons, request_restore
from ...volumes import services
from ...volumes.charges import quote_volumes
from ...volumes.new_volumes import request_new_volume
from ..metadata import change_metadata, clean_metadata, with_price
from .calls import Call, Fault, accepted, bad_request, not_found, of_project, parse_id, read_body
from .lists import page_of, parse_filters
from .lookups import STATUS_OF_OPERATION, cinder_time, get_snapshot, get_volume, volumes_of

VOLUME_TYPE = "standard"
SORT_KEYS = {"created_at": "created_at", "name": "name_key", "size": "size_gb", "id": "id"}
REVERT_VERSION = (3, 40)
ATTACHED = Q(vm__isnull=False, vm__deleted_at=None)


def filter_status(status: str) -> Q:
    usable = Q(state=Volume.State.AVAILABLE, active_kind=None)
    by_status = {
        "creating": Q(state=Volume.State.CREATING),
        "available": usable & ~ATTACHED,
        "in-use": usable & ATTACHED,
        "deleting": Q(state=Volume.State.DELETING),
        "error": Q(state=Volume.State.ERROR),
    } | {name: Q(state=Volume.State.AVAILABLE, active_kind=kind) for kind, name in STATUS_OF_OPERATION.items()}
    return by_status.get(status, Q(pk=None))


FILTERS = {
    "name": lambda value: Q(name=value),
    "status": filter_status,
    "availability_zone": lambda value: Q(location=value),
    "bootable": lambda value: Q(pk=None) if value.lower() == "true" else Q(),
    "id": lambda value: Q(pk=parse_id(value)),
}


def status_of(volume: Any) -> str:
    if volume.state != Volume.State.AVAILABLE:
        return str(volume.state)
    if volume.active_kind:
        return STATUS_OF_OPERATION[volume.active_kind]
    return "in-use" if services.machine_of(volume) else "available"


def describe(volume: Any, call: Call, quote: Quote | None) -> dict[str, Any]:
    """`quote` is its price, None if it costs nothing or the credential doesn't see prices."""
    attachments = []
    if services.machine_of(volume):
        attachments = [
            {
                "id": str(volume.pk),
                "attachment_id": str(volume.pk),
                "volume_id": str(volume.pk),
                "server_id": str(volume.vm_id),
                "host_name": None,
                "device": f"/dev/vd{chr(ord('a') + volume.position % 26)}",
                "attached_at": None,
            }
        ]
    content = {
        **name_only(volume, call),
        "status": status_of(volume),
        "size": volume.size_gb,
        "availability_zone": volume.location_id,
        "created_at": cinder_time(volume.created_at),
        "updated_at": cinder_time(volume.available_at),
        "description": volume.note or None,
        "volume_type": VOLUME_TYPE,
        "snapshot_id": volume.made_from and str(volume.made_from),
        "source_volid": None,
        "consistencygroup_id": None,
        "metadata": with_price(volume.metadata, quote),
        "attachments": attachments,
        "user_id": call.user.pk.hex,
        "bootable": "false",
        "encrypted": False,
        "multiattach": False,
        "replication_status": None,
        "os-vol-tenant-attr:tenant_id": volume.project_id.hex,
    }
    return content | ({"group_id": None} if call.version >= (3, 13) else {})


def name_only(volume: Any, call: Call) -> dict[str, Any]:
    path = call.request.path.partition("/volumes")[0]
    url = call.request.build_absolute_uri(f"{path}/volumes/{volume.pk}")
    links = [{"rel": "self", "href": url}, {"rel": "bookmark", "href": url}]
    return {"id": str(volume.pk), "name": volume.name, "links": links}


def describe_all(volumes: Iterable[Volume], call: Call) -> list[dict[str, Any]]:
    rows = list(volumes)
    quotes = quote_volumes(rows, at=call.at) if call.sees_prices else {}
    return [describe(volume, call, quotes.get(volume.pk)) for volume in rows]


def answer(call: Call, volume: Volume) -> dict[str, Any]:
    """Describe the volume as it is now."""
    [content] = describe_all(volumes_of(call).filter(pk=volume.pk), call)
    del content["os-vol-tenant-attr:tenant_id"]  # Cinder has it in GET only.
    return {"volume": content}


def list_volumes(call: Call) -> dict[str, Any]:
    rows, links = page_of(call, volumes_of(call).filter(parse_filters(call, FILTERS), deleted_at=None), SORT_KEYS)
    return {"volumes": [name_only(row, call) for row in rows]} | ({"volumes_links": links} if links else {})


def list_details(call: Call) -> dict[str, Any]:
    rows, links = page_of(call, volumes_of(call).filter(parse_filters(call, FILTERS), deleted_at=None), SORT_KEYS)
    return {"volumes": describe_all(rows, call)} | ({"volumes_links": links} if links else {})


def show_volume(call: Call, volume_id: str) -> dict[str, Any]:
    """Also one whose creation failed, so that a client that waits for it learns that."""
    volume = volumes_of(call).filter(Q(deleted_at=None) | Q(state=Volume.State.ERROR), pk=parse_id(volume_id)).first()
    if volume is None:
        raise not_found(_("The volume %(id)s") % {"id": volume_id})
    return {"volume": describe_all([volume], call)[0]}


def create_volume(call: Call) -> HttpResponse | dict[str, Any]:
    values = call.read(
        "volume",
        name=str,
        description=str,
        size=(int, str),
        snapshot_id=str,
        availability_zone=str,
        volume_type=str,
        metadata=dict,
        source_volid=None,
        imageRef=None,
        backup_id=None,
        consistencygroup_id=None,
        group_id=None,
        multiattach=None,
        scheduler_hints=None,
    )
    assert call.location is not None
    if values.get("availability_zone", call.location.pk) != call.location.pk:
        raise bad_request(_("The availability zone of this region is “%(zone)s”.") % {"zone": call.location.pk})
    if values.get("volume_type", VOLUME_TYPE) not in (VOLUME_TYPE, "__DEFAULT__"):
        raise not_found(_("The volume type"))
    fields: dict[str, Any] = {
        "user": call.user,
        "project": call.project,
        "name": services.check_name(values.get("name") or f"volume-{uuid4().hex[:8]}"),
        "note": clean_note(values.get("description", "")) or None,
        "metadata": clean_metadata(values.get("metadata", {})) or None,
    }
    size_gb = parse_size(values["size"]) if "size" in values else None
    if snapshot_id := values.get("snapshot_id"):
        call.require(Act.RESTORE)
        snapshot = get_snapshot(call, snapshot_id)
        operation = request_new_volume(snapshot=snapshot, size_gb=size_gb or snapshot.size_gb, **fields)
        volume = operation.volume
        assert volume is not None
    else:
        call.require(Act.VOLUME)
        if size_gb is None:
            raise bad_request(_("Give the size of the volume in GB."))
        volume = services.request_volume(location=call.location, size_gb=size_gb, **fields)
    return accepted(answer(call, volume))


def parse_size(value: int | str) -> int:
    text = str(value)
    if not text.isdecimal() or not 0 < len(text) < 10 or int(text) < 1:
        raise bad_request(_("The size must be a whole number of GB."))
    return int(text)


def update_volume(call: Call, volume_id: str) -> dict[str, Any]:
    volume = get_volume(call, volume_id)
    values = call.read("volume", name=str, description=str, metadata=dict)
    call.require(Act.VOLUME)
    note = clean_note(values["description"]) if "description" in values else None
    metadata = clean_metadata(values["metadata"], may_repeat=True) if "metadata" in values else None
    if "name" in values and values["name"] != volume.name:
        services.rename_volume(volume=volume, user=call.user, name=values["name"])
    if note is not None:
        change_labels(model=Volume, ids=[volume.pk], user=call.user, note=note)
    if metadata is not None:
        change_metadata(target=volume, user=call.user, replace=metadata)
    return answer(call, volume)


def delete_volume(call: Call, volume_id: str) -> HttpResponse:
    """Its snapshots stay, unlike in Cinder, which deletes them with `cascade`."""
    volume = get_volume(call, volume_id)
    call.require(Act.DELETE)
    if call.query.get("cascade", "false").lower() == "true":
        raise bad_request(_("Snapshots outlive their volume here. Delete them one by one."))
    services.request_volume_deletion(volume=volume, user=call.user, confirmation=volume.name)
    return accepted()


def act_on_volume(call: Call, volume_id: str) -> HttpResponse:
    volume = get_volume(call, volume_id)
    if "revert" in read_action(call):
        return revert_volume(call, volume)
    values = call.read("os-extend", new_size=(int, str))
    call.require(Act.VOLUME)
    if "new_size" not in values:
        raise bad_request(_("Give the new size of the volume in GB."))
    services.request_extension(volume=volume, user=call.user, size_gb=parse_size(values["new_size"]))
    return accepted()


def read_action(call: Call) -> dict[str, Any]:
    body = read_body(call.request)
    if body.keys() not in ({"revert"}, {"os-extend"}):
        raise bad_request(_("There is no action “%(name)s” here.") % {"name": ", ".join(body)[:100]})
    return body


def revert_volume(call: Call, volume: Volume) -> HttpResponse:
    if call.version < REVERT_VERSION:
        raise Fault(404, _("Version 3.40 or later is needed to revert a volume."))
    values = call.read("revert", snapshot_id=str)
    call.require(Act.RESTORE)
    snapshot = get_snapshot(call, values.get("snapshot_id", ""))
    if snapshot.volume_id != volume.pk:
        raise bad_request(_("The snapshot was taken of another volume."))
    if reason := irreversible_reasons([snapshot]).get(snapshot.pk):
        raise bad_request(reason)
    try:
        request_restore(snapshot=snapshot, user=call.user, confirmation=volume.name)
    except InvalidState as error:
        raise Fault(409, str(error)) from error
    return accepted()


volumes = of_project(GET=list_volumes, POST=create_volume)
details = of_project(GET=list_details)
volume = of_project(GET=show_volume, PUT=update_volume, DELETE=delete_volume)
action = of_project(POST=act_on_volume)
