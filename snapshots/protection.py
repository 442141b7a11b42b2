"""What protects a volume: one definition for the dashboard, the list of volumes and its filter."""

from collections.abc import Iterable
from uuid import UUID

from django.db.models import Exists, OuterRef, Subquery, UUIDField

from cng_portal.inventory.models import Volume

from .models import DiskImage, Snapshot, usable

_restore_points = DiskImage.objects.filter(usable("snapshot__"), volume=OuterRef("pk"))
# Volumes that no snapshot and no backup holds which could be restored: a condition.
UNPROTECTED = ~Exists(_restore_points)


def newest_restore_points(volumes: Iterable[Volume]) -> dict[UUID, Snapshot]:
    """Return, by volume, the newest snapshot or backup that holds it and can be restored. Two queries."""
    points = _restore_points.order_by("-snapshot__ready_at", "-snapshot").values("snapshot")
    newest = Subquery(points[:1], output_field=UUIDField())
    ids = Volume.objects.filter(pk__in=[volume.pk for volume in volumes]).values_list("pk", newest)
    by_volume = {volume_id: point_id for volume_id, point_id in ids if point_id}
    snapshots = Snapshot.objects.in_bulk(set(by_volume.values()))
    return {volume_id: snapshots[point_id] for volume_id, point_id in by_volume.items() if point_id in snapshots}
