"""When a snapshot starts and stops being charged per GB. The caller holds the customer's lock."""

from datetime import datetime

from billing.usage import close_segment, open_segment

from .models import Snapshot


def start_charging(snapshot: Snapshot, at: datetime) -> None:
    """Open its usage segment; one that is open stays as it is."""
    open_segment(
        resource_id=snapshot.pk,
        kind=snapshot.service_kind,
        name=snapshot.name,
        project=snapshot.project,
        location=snapshot.location,
        size_gb=snapshot.size_gb,
        at=at,
    )


def stop_charging(snapshot: Snapshot, at: datetime) -> bool:
    """False where nothing was charged."""
    return close_segment(resource_id=snapshot.pk, kind=snapshot.service_kind, at=at)
