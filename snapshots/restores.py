"""Restoring a snapshot in place: writing its bytes back to the volumes they came from."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, Max, OuterRef
from django.utils.translation import gettext as _

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.common.names import is_same_name
from cng_portal.inventory.models import Volume

from . import checks, limits
from .errors import InvalidState, SourceUnavailable, WrongConfirmation
from .models import DiskImage, Operation, Snapshot, in_storage
from .operations.lifecycle import create_operation
from .services import create_snapshot_row
from .storage.registry import get_driver


def request_restore(*, snapshot: Snapshot, user: User, confirmation: str, override: str = "") -> Operation:
    """Request a restore in place, which takes a safety snapshot first.

    `confirmation` has to be the name of the volume or machine. Raises InvalidState, SourceUnavailable, WrongConfirmation,
    what `is_unchecked` raises for the `override`, and what `request_snapshot` raises for the safety snapshot.
    """
    checks.check_space(snapshot.source)
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        source = checks.reload_source(snapshot.source)
        user = User.objects.get(pk=user.pk)
        volumes = volumes_in(snapshot)
        checks.require_change(user, snapshot.project_id)
        checks.require_change_of_source(user, snapshot, volumes)
        check_restorable(snapshot)
        if not is_same_name(confirmation, source.name):
            raise WrongConfirmation(
                _("That is not its name. Type “%(name)s” to confirm that it will be overwritten.")
                % {"name": source.name}
            )
        unchecked = checks.is_unchecked(snapshot, override)
        limits.check_rate_limit(snapshot.customer_id, Operation.Kind.RESTORE)
        checks.check_deliverable(source, safety=True)
        name = checks.free_name(snapshot.customer_id, _("before-restore-of-%(name)s") % {"name": source.name[:40]})
        # Of exactly the volumes that will be written, whatever is attached to the machine today.
        safety = create_snapshot_row(source=source, volumes=volumes, name=name, user=user)
        return create_operation(
            kind=Operation.Kind.RESTORE,
            snapshot=snapshot,
            volume=snapshot.volume,
            vm=snapshot.vm,
            safety_snapshot=safety,
            unchecked=unchecked,
            requested_by=user,
        )


def check_restorable(snapshot: Snapshot) -> None:
    """Raise InvalidState or SourceUnavailable if the snapshot can't be restored in place now."""
    checks.require_ready(snapshot)
    if reason := irreversible_reasons([snapshot]).get(snapshot.pk):
        raise InvalidState(reason)
    checks.check_source(snapshot.source)
    disks = list(snapshot.disks.select_related("volume__vm").order_by("position"))
    for disk in disks:
        volume = disk.volume
        if volume.deleted_at is not None:
            raise SourceUnavailable(
                _("The volume “%(name)s” has been deleted. Make new volumes from it instead.") % {"name": volume.name}
            )
        if volume.delete_requested_at is not None:
            raise SourceUnavailable(
                _("The volume “%(name)s” is being deleted. Make new volumes from it instead.") % {"name": volume.name}
            )
        if volume.vm and volume.vm.backend_ref and not get_driver(snapshot.location).reverts_attached:
            raise InvalidState(
                _(
                    "“%(volume)s” is attached to %(vm)s, and the storage of %(location)s restores only detached volumes. "
                    "Detach it there first, or make a new volume from the snapshot instead."
                )
                % {"volume": volume.name, "vm": volume.vm.name, "location": snapshot.location_id}
            )
        if volume.vm and volume.vm.is_running:
            raise InvalidState(
                _(
                    "“%(volume)s” is in use: its instance %(vm)s is running. Stop the instance first, or make a "
                    "new volume from the snapshot instead."
                )
                % {"volume": volume.name, "vm": volume.vm.name}
            )
        if volume.size_gb < disk.size_gb:
            raise InvalidState(
                _("The volume “%(name)s” is smaller than the snapshot. Make a new volume from it instead.")
                % {"name": volume.name}
            )
    volumes = [disk.volume for disk in disks]
    if operation := checks.writers(volumes).first():
        text = (
            _("A restore is already running there. Try again when it has finished.")
            if operation.kind == Operation.Kind.RESTORE
            else _("One of its volumes is in use (%(operation)s). Try again when that has finished.")
        )
        raise InvalidState(text % {"operation": operation.get_kind_display()})
    if checks.unfinished_captures(volumes).exists():
        raise InvalidState(
            _("A snapshot or backup of “%(name)s” is being taken. Restore when it is ready.")
            % {"name": snapshot.source.name}
        )


def irreversible_reasons(snapshots: Iterable[Snapshot]) -> dict[UUID, str]:
    """Return {snapshot ID: reason} for the snapshots that their storage engine can't restore in place.

    Two queries, or none if the engines restore every snapshot.
    """
    limited = {snapshot.pk: snapshot for snapshot in snapshots if get_driver(snapshot.location).reverts_only_latest}
    if not limited:
        return {}
    is_safety = Exists(Operation.objects.filter(safety_snapshot=OuterRef("snapshot")))
    disks = list(DiskImage.objects.filter(snapshot__in=limited).annotate(is_safety=is_safety).order_by("pk"))
    latest = _latest_captures({disk.volume_id for disk in disks})
    reasons = {}
    for disk in disks:
        snapshot = limited[disk.snapshot_id]
        if reason := _why_irreversible(disk, snapshot, latest.get(disk.volume_id)):
            reasons[snapshot.pk] = reason % {"location": snapshot.location_id}
    return reasons


def _latest_captures(volume_ids: set[UUID]) -> dict[UUID, datetime]:
    """Return {volume: when its latest snapshot was captured} by the storage's own clock, which it compares too."""
    return dict(
        DiskImage.objects.filter(
            in_storage("snapshot__"),
            volume__in=volume_ids,
            captured_at__isnull=False,
            snapshot__ready_at__isnull=False,
            snapshot__missing_since=None,
            snapshot__protects=None,  # A safety snapshot is a volume in this storage.
        )
        .order_by()
        .values_list("volume")
        .annotate(latest=Max("captured_at"))
    )


def _why_irreversible(disk: Any, snapshot: Snapshot, latest: datetime | None) -> str:
    if disk.is_safety:
        return _(
            "This is the copy that was made before a restore, and the storage of %(location)s cannot write it back. "
            "Make a new volume from it instead."
        )
    if snapshot.vm and snapshot.vm.backend_ref and not get_driver(snapshot.location).reverts_attached:
        return _("The storage of %(location)s restores only detached volumes. Make new volumes from this instead.")
    if latest and disk.captured_at and disk.captured_at < latest:
        return _(
            "The storage of %(location)s can restore a volume only to the latest of its snapshots, and this is an "
            "earlier one. Make a new volume from it instead, or delete the later ones first."
        )
    return ""


def volumes_in(snapshot: Snapshot) -> list[Volume]:
    """Return the volumes that the snapshot's disks were captured from, in their order."""
    disks = snapshot.disks.select_related("volume__vm", "volume__location", "volume__project").order_by("position")
    return [disk.volume for disk in disks]
