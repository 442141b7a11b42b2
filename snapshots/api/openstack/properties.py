"""Block Storage v3: the properties of a volume or snapshot, all of them or one."""

from typing import Any

from django.http import HttpResponse
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Act
from cng_portal.inventory.models import Volume

from ...models import Snapshot
from ..metadata import change_metadata, clean_metadata
from . import calls, snapshots, volumes
from .calls import Call, bad_request, not_found, of_project
from .lookups import get_snapshot, get_volume


def get_target(call: Call, volume_id: str = "", snapshot_id: str = "") -> Volume | Snapshot:
    return get_volume(call, volume_id) if volume_id else get_snapshot(call, snapshot_id)


def require_change(call: Call, target: Volume | Snapshot) -> None:
    call.require(Act.VOLUME if isinstance(target, Volume) else Act.SNAPSHOT)


def read_properties(call: Call, target: Volume | Snapshot) -> dict[str, str]:
    content = (
        volumes.describe_all([target], call) if isinstance(target, Volume) else snapshots.describe_all([target], call)
    )
    properties: dict[str, str] = content[0]["metadata"]
    return properties


def read_body(call: Call, key: str) -> dict[str, Any]:
    body = calls.read_body(call.request)
    if body.keys() != {key}:
        raise bad_request(_("The body must be an object with “%(key)s” alone.") % {"key": key})
    return body


def show_all(call: Call, **ids: str) -> dict[str, Any]:
    return {"metadata": read_properties(call, get_target(call, **ids))}


def add(call: Call, **ids: str) -> dict[str, Any]:
    target = get_target(call, **ids)
    require_change(call, target)
    added = clean_metadata(read_body(call, "metadata")["metadata"])
    return {"metadata": change_metadata(target=target, user=call.user, add=added)}


def replace(call: Call, **ids: str) -> dict[str, Any]:
    target = get_target(call, **ids)
    require_change(call, target)
    new = clean_metadata(read_body(call, "metadata")["metadata"], may_repeat=True)
    return {"metadata": change_metadata(target=target, user=call.user, replace=new)}


def show_one(call: Call, key: str, **ids: str) -> dict[str, Any]:
    properties = read_properties(call, get_target(call, **ids))
    if key not in properties:
        raise not_found(_("The property"))
    return {"meta": {key: properties[key]}}


def set_one(call: Call, key: str, **ids: str) -> dict[str, Any]:
    target = get_target(call, **ids)
    require_change(call, target)
    added = clean_metadata(read_body(call, "meta")["meta"])
    if added.keys() != {key}:
        raise bad_request(_("The body must be an object with “%(key)s” alone.") % {"key": key})
    change_metadata(target=target, user=call.user, add=added)
    return {"meta": added}


def remove_one(call: Call, key: str, **ids: str) -> HttpResponse:
    target = get_target(call, **ids)
    require_change(call, target)
    try:
        change_metadata(target=target, user=call.user, remove=key)
    except KeyError as error:
        raise not_found(_("The property")) from error
    return HttpResponse(status=200)


all_properties = of_project(GET=show_all, POST=add, PUT=replace)
one_property = of_project(GET=show_one, PUT=set_one, DELETE=remove_one)
