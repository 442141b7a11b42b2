"""What a call can reach: volumes and volume snapshots of the token's project in the location of the URL."""

from datetime import datetime

from django.db.models import OuterRef, QuerySet, Subquery, UUIDField
from django.utils.translation import gettext as _

from cng_portal.inventory.models import Volume

from ...models import Kind, Operation, Snapshot
from .calls import Call, not_found, parse_id

# The operations that show in a volume's status.
STATUS_OF_OPERATION = {Operation.Kind.EXTEND_VOLUME: "extending", Operation.Kind.RESTORE: "reverting"}


def volumes_of(call: Call) -> QuerySet[Volume]:
    """Return the volumes, deleted ones too.

    `active_kind` is the operation that changes it now, `made_from` the snapshot that it was made from.
    """
    active = Operation.objects.active().filter(volume=OuterRef("pk"), kind__in=list(STATUS_OF_OPERATION))
    visible = Volume.objects.visible_to(call.user).filter(project=call.project, location=call.location)
    made = Operation.objects.filter(volume=OuterRef("pk"), kind=Operation.Kind.NEW_VOLUME)
    return visible.select_related("project__customer", "vm").annotate(
        active_kind=Subquery(active.order_by("pk").values("kind")[:1]),
        made_from=Subquery(made.order_by("pk").values("snapshot")[:1], output_field=UUIDField()),
    )


def get_volume(call: Call, volume_id: str) -> Volume:
    present = volumes_of(call).filter(deleted_at=None).select_related("location")
    volume = present.filter(pk=parse_id(volume_id)).first()
    if volume is None:
        raise not_found(_("The volume %(id)s") % {"id": volume_id[:100]})
    return volume


def snapshots_of(call: Call) -> QuerySet[Snapshot]:
    """Return the volume snapshots that exist. Cinder has no word for those of machines, and for the recycle bin."""
    visible = Snapshot.objects.visible_to(call.user).filter(project=call.project, location=call.location)
    return visible.filter(kind=Kind.VOLUME, deleted_at=None)


def get_snapshot(call: Call, snapshot_id: str) -> Snapshot:
    related = snapshots_of(call).select_related("project__customer", "location", "volume", "vm", "run__schedule")
    snapshot = related.filter(pk=parse_id(snapshot_id)).first()
    if snapshot is None:
        raise not_found(_("The snapshot %(id)s") % {"id": snapshot_id[:100]})
    return snapshot


def cinder_time(at: datetime | None) -> str | None:
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}" if at else None
