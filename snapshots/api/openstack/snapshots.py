"""Block Storage v3: volume snapshots of the token's project in one location."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.http import HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _

from billing.pricing.prices import PriceList
from cng_portal.accounts.models import Act

from ... import checks, services
from ...labels import change_labels, clean_note
from ...locks import get_locks
from ...models import Operation, Snapshot, State
from ...recycle_bin import goes_to_bin
from ...views.common import price_of
from ..metadata import PREFIX, clean_metadata, with_price
from .calls import Call, accepted, bad_request, of_project, parse_id
from .lists import page_of, parse_filters
from .lookups import cinder_time, get_snapshot, get_volume, snapshots_of

SORT_KEYS = {"created_at": "created_at", "name": "name_key", "size": "size_gb", "volume_size": "size_gb", "id": "id"}
RELATED = ("project__customer", "location", "run__schedule")
# What OpenStack takes for a boolean.
BOOLEANS = {"", "true", "t", "yes", "y", "on", "1", "false", "f", "no", "n", "off", "0"}
USABLE = Q(state=State.READY, missing_since=None, damaged_at=None)
FILTER_STATUS = {
    "creating": Q(state__in=[State.PENDING, State.CREATING]),
    "available": USABLE,
    "deleting": Q(state=State.DELETING),
    "error": Q(state=State.FAILED) | (Q(state=State.READY) & ~USABLE),
}
FILTERS = {
    "name": lambda value: Q(name=value),
    "status": lambda value: FILTER_STATUS.get(value, Q(pk=None)),
    "volume_id": lambda value: Q(volume=parse_id(value)),
    "availability_zone": lambda value: Q(location=value),
    "id": lambda value: Q(pk=parse_id(value)),
}


def status_of(snapshot: Snapshot) -> str:
    if snapshot.state in (State.PENDING, State.CREATING):
        return "creating"
    if snapshot.state == State.DELETING:
        return "deleting"
    is_usable = snapshot.state == State.READY and not snapshot.missing_since and not snapshot.is_damaged
    return "available" if is_usable else "error"


def describe_all(snapshots: Iterable[Snapshot], call: Call, *, detailed: bool = True) -> list[dict[str, Any]]:
    rows = list(snapshots)
    prices = PriceList.load([call.location.pk]) if call.sees_prices and call.location and rows else None
    locks = get_locks([row.pk for row in rows]) if rows else {}
    progress = progress_of([row for row in rows if status_of(row) == "creating"]) if detailed else {}
    result = []
    for row in rows:
        content = {
            "id": str(row.pk),
            "name": row.name,
            "description": row.note or None,
            "volume_id": str(row.volume_id),
            "status": status_of(row),
            "size": row.size_gb,
            "created_at": cinder_time(row.created_at),
            "updated_at": cinder_time(row.ready_at),
            "metadata": with_price(row.metadata, price_of(row, prices) if prices else None)
            | ({f"{PREFIX}locked_until": str(cinder_time(locks[row.pk].until))} if row.pk in locks else {}),
        }
        if detailed:
            content = with_group(content, call)
            content["os-extended-snapshot-attributes:project_id"] = row.project_id.hex
            content["os-extended-snapshot-attributes:progress"] = (
                progress.get(row.pk, "0%") if content["status"] == "creating" else "100%"
            )
        result.append(content)
    return result


def with_group(content: dict[str, Any], call: Call) -> dict[str, Any]:
    """Add what only the list without details lacks."""
    return content | ({"group_snapshot_id": None} if call.version >= (3, 14) else {})


def progress_of(snapshots: list[Snapshot]) -> dict[UUID, str]:
    """Return {snapshot: how much of it has been captured}. No query for none."""
    if not snapshots:
        return {}
    captures = Operation.objects.active().filter(kind=Operation.Kind.CAPTURE, snapshot__in=snapshots)
    return {
        pk: f"{100 * done // total}%" if total else "0%"
        for pk, done, total in captures.values_list("snapshot", "bytes_done", "bytes_total")
    }


def answer(call: Call, snapshot_id: UUID | str, *, detailed: bool = False) -> dict[str, Any]:
    [content] = describe_all([get_snapshot(call, str(snapshot_id))], call, detailed=detailed)
    return {"snapshot": with_group(content, call)}


def list_of(call: Call, *, detailed: bool) -> dict[str, Any]:
    found = snapshots_of(call).filter(parse_filters(call, FILTERS)).select_related(*RELATED)
    rows, links = page_of(call, found, SORT_KEYS)
    content = {"snapshots": describe_all(rows, call, detailed=detailed)}
    return content | ({"snapshots_links": links} if links else {})


def list_snapshots(call: Call) -> dict[str, Any]:
    return list_of(call, detailed=False)


def list_details(call: Call) -> dict[str, Any]:
    return list_of(call, detailed=True)


def show_snapshot(call: Call, snapshot_id: str) -> dict[str, Any]:
    return answer(call, snapshot_id, detailed=True)


def create_snapshot(call: Call) -> HttpResponse:
    """A snapshot without a name gets the one that the wizard suggests, because names are unique here."""
    # `force` allows volumes that are in use, as the portal always does.
    values = call.read("snapshot", volume_id=str, name=str, description=str, metadata=dict, force=(bool, str))
    call.require(Act.SNAPSHOT)
    if "volume_id" not in values:
        raise bad_request(_("Give the ID of the volume."))
    if str(values.get("force", "")).lower() not in BOOLEANS:
        raise bad_request(_("“force” must be true or false."))
    volume = get_volume(call, values["volume_id"])
    snapshot = services.request_snapshot(
        source=volume,
        name=values.get("name") or checks.suggest_name(volume, at=timezone.now()),
        user=call.user,
        note=clean_note(values.get("description", "")) or None,
        metadata=clean_metadata(values.get("metadata", {})) or None,
    )
    return accepted(answer(call, snapshot.pk))


def update_snapshot(call: Call, snapshot_id: str) -> dict[str, Any]:
    snapshot = get_snapshot(call, snapshot_id)
    values = call.read("snapshot", name=str, description=str)
    call.require(Act.SNAPSHOT)
    if not values:
        raise bad_request(_("Give a name or a description."))
    note = clean_note(values["description"]) if "description" in values else None
    if "name" in values and values["name"] != snapshot.name:
        services.rename_snapshot(snapshot=snapshot, user=call.user, name=values["name"])
    if note is not None:
        change_labels(model=Snapshot, ids=[snapshot.pk], user=call.user, note=note)
    return answer(call, snapshot_id)


def delete_snapshot(call: Call, snapshot_id: str) -> HttpResponse:
    """Put it in the recycle bin, as the pages do: from then on it doesn't exist for the API.

    Cinder's clients can't confirm. The last restore point of a disk is refused where nothing could put it back.
    """
    snapshot = get_snapshot(call, snapshot_id)
    call.require(Act.DELETE)
    services.request_deletion(snapshot=snapshot, user=call.user, even_if_last=goes_to_bin(snapshot))
    return accepted()


snapshots = of_project(GET=list_snapshots, POST=create_snapshot)
details = of_project(GET=list_details)
snapshot = of_project(GET=show_snapshot, PUT=update_snapshot, DELETE=delete_snapshot)
