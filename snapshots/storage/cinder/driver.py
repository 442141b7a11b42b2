"""Volumes and snapshots of an OpenStack cloud, through its block storage service Cinder (API 3.0 or newer).

A location names a cloud of `clouds.yaml`, and if need be its region, availability zone and volume type. Credentials stay
in that file or in the environment. creation.py says how things are named and how they are created exactly once.

Cinder answers before the work is done, so every call polls until the state is final.

Cinder can revert a volume to its latest snapshot only, and only until the volume grows. A snapshot taken before each
restore would therefore make every restore impossible, so `create_safety_snapshots` copies the volume instead, which
shares blocks on Ceph just as a snapshot does. Such a copy can become a new volume, but no volume can be reverted to it.

Snapshots of several volumes are taken one after the other. Cinder's group snapshots promise more only where the volume
driver supports consistent ones. The one for Ceph (RBD) doesn't: it takes them one after the other as well.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import get_args
from uuid import UUID, uuid4

import structlog
from django.utils.translation import gettext as _

from ..contract import (
    GIB,
    Busy,
    Consistency,
    Corrupt,
    Driver,
    Heartbeat,
    NotFound,
    NotOffered,
    Refused,
    SnapshotInfo,
    SnapshotRef,
    StorageError,
    StoredObject,
    Unavailable,
    VolumeRef,
    no_heartbeat,
)
from .client import BadRequest, Client, Cloud, Item, Kind, Missing, Version
from .creation import COMPLETE, DELETABLE, ERROR_STANDS_SECONDS, UNWANTED, Creation, find_all, remove_claimed
from .inventory import CinderInventory, read_instant

logger = structlog.stdlib.get_logger(__name__)

REVERT: Version = (3, 40)
EXTEND_ATTACHED: Version = (3, 42)
NO_FORCE: Version = (3, 66)  # a volume in use is captured without `force`, and `force` is refused
# An object that is `creating` for this long never completes, so it may be force-deleted.
STUCK_SECONDS = 24 * 3600.0
TRANSITIONAL = {"creating", "downloading", "reverting", "extending", "retyping", "attaching", "detaching", "reserved"}
TRANSITIONAL |= {"maintenance", "backing-up", "restoring-backup", "uploading", "awaiting-transfer", "deleting"}
KINDS: tuple[Kind, ...] = get_args(Kind)
COPY_PREFIX = "volume:"  # of the backend_ref of a safety copy, which is a volume to Cinder


class CinderDriver(CinderInventory, Driver):
    """One cloud. Options: cloud, region, availability_zone, volume_type; create_timeout (seconds until something that stays
    `creating` fails), delete_timeout, request_timeout.
    """

    consistency = Consistency.PER_DISK
    reads_bytes = False
    reverts_only_latest = True
    reverts_attached = False
    finishes_late = True
    attaches = False
    deletes_with_snapshots = False

    def __init__(
        self,
        *,
        location: str,
        cloud: str = "",
        region: str = "",
        availability_zone: str = "",
        volume_type: str = "",
        create_timeout: str = "900",
        delete_timeout: str = "120",
        request_timeout: str = "30",
    ) -> None:
        self.cloud = Cloud(location=location, name=cloud, region=region, request_seconds=float(request_timeout))
        self.availability_zone, self.volume_type = availability_zone, volume_type
        self.create_seconds, self.delete_seconds = float(create_timeout), float(delete_timeout)

    # Volumes

    def create_volume(self, volume: VolumeRef, heartbeat: Heartbeat = no_heartbeat) -> str:
        if volume.size_gb < 1:
            raise Refused(_("A volume has at least 1 GB. Choose a larger size."))
        client = self._client(volume.backend_project, heartbeat, volume.size_gb)
        options = {"availability_zone": self.availability_zone, "volume_type": self.volume_type}
        try:
            return self._create_volume(client, volume, {name: value for name, value in options.items() if value})
        except Missing as error:
            message = _(
                "The storage of %(location)s doesn't have the volume type it is configured with. Contact your provider."
            )
            raise self.cloud.error(Refused, message) from error

    def create_volume_from_snapshot(
        self,
        snapshot: SnapshotRef,
        volume: VolumeRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> str:
        client = self._client(snapshot.backend_project, heartbeat, volume.size_gb)
        client.beat()
        if volume.backend_ref and self._find_volume(client, volume):
            return volume.backend_ref
        kind, source = self._get_snapshot(client, snapshot)
        if volume.size_gb < source["size"]:
            message = _(
                "The volume “%(name)s” would be smaller than the snapshot. Choose a size of %(size)s GB or more."
            )
            raise self.cloud.error(Refused, message, name=volume.name, size=source["size"])
        try:
            return self._create_volume(
                client, volume, {"source_volid" if kind == "volume" else "snapshot_id": source["id"]}
            )
        except Missing as error:
            raise self._no_snapshot() from error

    def _create_volume(self, client: Client, volume: VolumeRef, source: Item) -> str:
        claim = uuid4().hex
        body = {"size": volume.size_gb, "description": volume.name, **source}
        creation = Creation(client, "volume", volume.uuid, body, claim, ref=volume.backend_ref, permanent=True)
        try:
            item = creation.run(self.create_seconds)
            if item["size"] != volume.size_gb:
                message = _("The volume “%(name)s” already exists with a different size, so it wasn't changed.")
                raise self.cloud.error(Refused, message, name=volume.name)
            client.beat(client.total)
        except BaseException as error:
            remove_claimed(Client(self.cloud, client.project), "volume", [volume.uuid], claim)
            if isinstance(error, BadRequest):
                raise self.cloud.refused(error) from error
            raise
        return item["id"]

    def extend_volume(self, volume: VolumeRef, new_size_gb: int, heartbeat: Heartbeat = no_heartbeat) -> None:
        client = self._client(volume.backend_project, heartbeat, new_size_gb)
        client.beat()
        failure = _("The storage failed to grow the volume “%(name)s”, which is locked now. Contact your provider.")
        current = self._wait_while(client, volume, self._get_volume(client, volume), "extending", failure)
        if max(current["size"], volume.size_gb) > new_size_gb:
            message = _("The volume “%(name)s” can't shrink. Choose a larger size.")
            raise self.cloud.error(Refused, message, name=volume.name)
        if current["size"] < new_size_gb:
            if current["status"] == "in-use" and client.version < EXTEND_ATTACHED:
                raise self._attached(volume)
            try:
                self._request_action(client, volume, current, "extending", "os-extend", new_size=new_size_gb)
            except BadRequest as error:
                raise self.cloud.refused(error) from error
            current = self._wait_while(client, volume, current, "extending", failure)
            if current["size"] != new_size_gb:
                raise self.cloud.failed(client.failure_reason(current))
        client.beat(client.total)

    def revert_volume(
        self,
        volume: VolumeRef,
        snapshot: SnapshotRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> None:
        client = self._client(volume.backend_project, heartbeat, volume.size_gb)
        client.beat()
        failure = _(
            "The storage failed while it wrote the snapshot back, so the volume “%(name)s” may hold parts of both and is "
            "locked. The copy made before has the old content. Contact your provider."
        )
        current = self._get_volume(client, volume)
        kind, source = self._get_snapshot(client, snapshot)
        self._check_revert(client, volume, current, kind, source)
        # An earlier attempt may still run. Its outcome would be unknown, so the volume is reverted again.
        if current["status"] == "reverting":
            current = self._wait_while(client, volume, current, "reverting", failure)
        if current["status"] == "in-use":
            raise self._attached(volume)
        try:
            self._request_action(client, volume, current, "reverting", "revert", snapshot_id=source["id"])
        except BadRequest as error:
            raise self._refused_revert(client, volume, source, error) from error
        self._wait_while(client, volume, current, "reverting", failure)
        client.beat(client.total)

    def _request_action(
        self, client: Client, volume: VolumeRef, item: Item, status: str, action: str, **arguments: object
    ) -> None:
        """Request an action that puts the volume into `status`. Raises BadRequest, NotFound, Busy, Refused, Unavailable."""
        self._check_status(volume, item)
        client.beat()
        try:
            client.act("volume", item, action, **arguments)
        except Missing as error:
            raise self._no_volume(volume) from error
        except Unavailable:  # the request may have arrived although the answer was lost
            if self._get_volume(client, volume)["status"] != status:
                raise

    def _check_revert(self, client: Client, volume: VolumeRef, current: Item, kind: Kind, source: Item) -> None:
        if kind == "volume":
            message = _(
                "This is the copy of a volume, and the storage cannot write it back. Make a new volume from it instead."
            )
        elif client.version < REVERT:
            message = _(
                "The storage of %(location)s is too old to write a snapshot back to its volume. Make a new volume from the "
                "snapshot instead."
            )
        elif source["volume_id"] != current["id"]:
            message = _(
                "The snapshot was not taken of the volume “%(name)s”, so it cannot be written to it. Make a new volume "
                "from the snapshot instead."
            )
        elif source["size"] != current["size"]:
            message = _(
                "The volume “%(name)s” has grown since the snapshot was taken, so the storage cannot write it back. Make a "
                "new volume from the snapshot instead."
            )
        else:
            return
        raise self.cloud.error(Refused, message, name=volume.name)

    def _refused_revert(self, client: Client, volume: VolumeRef, source: Item, error: BadRequest) -> StorageError:
        snapshots = client.items("snapshot", volume_id=source["volume_id"])
        newest = max(snapshots, key=lambda item: (item["created_at"], item["id"]), default=source)
        if newest["id"] == source["id"]:
            return self.cloud.refused(error)
        message = _(
            "The volume “%(name)s” has newer snapshots, and this storage writes back the latest one only. Make a new volume "
            "from the snapshot, or delete the newer snapshots first."
        )
        return self.cloud.error(Refused, message, name=volume.name)

    def _wait_while(self, client: Client, volume: VolumeRef, item: Item, status: str, failure: str) -> Item:
        """Return the volume once it has left `status`. Raises Refused with `failure` if it ends in a lasting error."""
        failed_at: float | None = None
        for now in client.poll(self.create_seconds):
            current = client.get("volume", item["id"])
            if current is None:
                raise self._no_volume(volume)
            if current["status"] == status:
                failed_at = None
            elif not current["status"].startswith("error"):
                return current
            else:
                failed_at = failed_at or now
                if now - failed_at >= ERROR_STANDS_SECONDS:
                    raise self.cloud.error(Refused, failure, name=volume.name)
        raise self.cloud.failed("", timed_out=True)

    def delete_volume(self, volume: VolumeRef) -> None:
        self._delete_all(self._client(volume.backend_project), "volume", volume.uuid, volume.backend_ref)

    def measure_volume(self, volume: VolumeRef) -> int:
        size_gb: int = self._get_volume(self._client(volume.backend_project), volume)["size"]
        return size_gb * GIB

    # Snapshots

    def create_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        return self._capture(disks, heartbeat, "snapshot")

    def create_safety_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        """Copy the volumes, so that they can still be reverted to their latest snapshots.

        Such a copy is read, verified and deleted like any snapshot. New volumes can be created from it, but no volume
        can be reverted to it.
        """
        return self._capture(disks, heartbeat, "volume")

    def _capture(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat, kind: Kind
    ) -> list[SnapshotInfo]:
        """Capture all of the disks or none: whatever this call created or adopted is removed when it fails."""
        project = disks[0][1].backend_project if disks else ""  # a machine and its disks are in one project
        client = self._client(project, heartbeat, sum(volume.size_gb for _snapshot, volume in disks))
        client.beat()
        # A single volume need not be looked up before: Cinder refuses one that can't be captured.
        lookup = len(disks) > 1 or kind == "volume" or client.version < NO_FORCE
        sources: list[Item] = [
            self._get_volume(client, volume)
            if lookup or not volume.backend_ref
            else {"id": volume.backend_ref, "status": "available"}
            for _snapshot, volume in disks
        ]
        claim, infos = uuid4().hex, []
        try:
            for (snapshot, volume), source in zip(disks, sources, strict=True):
                item = self._capture_one(client, snapshot, volume, source, kind, claim)
                infos.append(describe_snapshot(snapshot, kind, item))
                client.beat(volume.size_gb * GIB)
        except BaseException:
            uuids = [snapshot.uuid for snapshot, _volume in disks]
            remove_claimed(Client(self.cloud, project), kind, uuids, claim)
            raise
        return infos

    def _capture_one(
        self, client: Client, snapshot: SnapshotRef, volume: VolumeRef, source: Item, kind: Kind, claim: str
    ) -> Item:
        body: Item = {"description": _("Snapshot of %(volume)s") % {"volume": volume.name}}
        if kind == "volume":
            body |= {"source_volid": source["id"], "size": source["size"]}
        else:
            body |= {"volume_id": source["id"]} | ({"force": True} if client.version < NO_FORCE else {})
        try:
            creation = Creation(client, kind, snapshot.uuid, body, claim)
            return creation.run(self.create_seconds, check=lambda: self._check_status(volume, source))
        except Missing as error:
            raise self._no_volume(volume) from error
        except BadRequest as error:
            self._check_status(volume, self._get_volume(client, volume))  # it may have changed since
            raise self.cloud.refused(error) from error

    def find_snapshot(self, snapshot: SnapshotRef) -> SnapshotInfo | None:
        candidates = self._find_snapshots(Client(self.cloud, snapshot.backend_project), snapshot)
        return next(
            (describe_snapshot(snapshot, *candidate) for candidate in candidates if candidate[1]["status"] in COMPLETE),
            None,
        )

    def verify_snapshot(
        self, snapshot: SnapshotRef, heartbeat: Heartbeat = no_heartbeat, *, resume: bool = False
    ) -> SnapshotInfo:
        """Check that Cinder still has the snapshot and reports it as available: it gives no access to the bytes."""
        client = self._client(snapshot.backend_project, heartbeat)
        client.beat()
        info = describe_snapshot(snapshot, *self._get_snapshot(client, snapshot))
        client.total = info.size_bytes
        client.beat(info.size_bytes)
        return info

    def open_for_reading(self, snapshot: SnapshotRef) -> int:
        raise NotOffered(
            _(
                "The files of this snapshot can't be shown here, because its storage gives the portal no access to the "
                "bytes. Create a new volume from it and attach that to an instance instead."
            )
        )

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        for kind, ref in kinds_and_refs(snapshot):
            self._delete_all(self._client(snapshot.backend_project), kind, snapshot.uuid, ref)

    # Capacity and health

    def bytes_needed(self, volumes: Sequence[VolumeRef]) -> int:
        """0: snapshots share blocks on most backends of Cinder, such as Ceph, and the portal can't find out more."""
        for volume in volumes:
            self._get_volume(Client(self.cloud, volume.backend_project), volume)
        return 0

    def free_bytes(self) -> int | None:
        """None: Cinder reports its free capacity only to administrators."""
        return None

    def check_health(self) -> None:
        zones = Client(self.cloud).request("GET", "/os-availability-zone")["availabilityZoneInfo"]
        available = {zone["zoneName"] for zone in zones if zone["zoneState"]["available"]}
        if not available or (self.availability_zone and self.availability_zone not in available):
            message = _("The storage of %(location)s is switched off at the moment. Try again later.")
            raise self.cloud.error(Unavailable, message)

    def list_objects(self, backend_project: str = "") -> Iterator[StoredObject]:
        """List the objects with our metadata. Everything else in the project belongs to others."""
        client = Client(self.cloud, backend_project)
        for kind in KINDS:
            for item in client.items(kind):
                uuid, unwanted = item["metadata"].get("portal_uuid"), item["name"] == UNWANTED
                if (uuid or unwanted) and item["status"] in COMPLETE | {"error", "error_deleting"}:
                    yield StoredObject(
                        name=f"{kind} {item['id']}",
                        uuid=UUID(uuid) if uuid else None,
                        is_incomplete=unwanted or item["status"] not in COMPLETE,
                        size_bytes=item["size"] * GIB if kind == "volume" else None,
                        changed_at=read_instant(item["created_at"]),
                        is_unchanged=partial(lambda kind, ref: client.get(kind, ref) is not None, kind, item["id"]),
                    )

    def remove_orphans(self, backend_project: str = "", needed: Callable[[UUID], bool] = lambda uuid: False) -> None:
        """Remove objects that a failed call couldn't delete because they were still being created. Raises Unavailable."""
        client = Client(self.cloud, backend_project)
        for kind in KINDS:
            for item in list(client.items(kind, name=UNWANTED)):
                age = time.time() - read_instant(item["created_at"]).timestamp()
                is_stuck = item["status"] == "creating" and age >= STUCK_SECONDS
                if item["name"] == UNWANTED and (is_stuck or item["status"] in DELETABLE):
                    try:
                        client.delete(kind, item)
                    except Refused:
                        logger.warning("cinder.delete_refused", kind=kind, id=item["id"])

    # Lookups

    def _client(self, project: str, heartbeat: Heartbeat = no_heartbeat, size_gb: int = 0) -> Client:
        """Return a patient client, for the worker's calls."""
        return Client(self.cloud, project, heartbeat, total=size_gb * GIB, patient=True)

    def _find_volume(self, client: Client, volume: VolumeRef) -> Item | None:
        items = find_by_ref(client, "volume", volume.uuid, volume.backend_ref)
        return next((item for item in items if item["status"] not in {"deleting", "error_deleting"}), None)

    def _get_volume(self, client: Client, volume: VolumeRef) -> Item:
        item = self._find_volume(client, volume)
        if not item:
            raise self._no_volume(volume)
        return item

    def _find_snapshots(self, client: Client, snapshot: SnapshotRef) -> Iterator[tuple[Kind, Item]]:
        for kind, ref in kinds_and_refs(snapshot):
            for item in find_by_ref(client, kind, snapshot.uuid, ref):
                yield kind, item

    def _get_snapshot(self, client: Client, snapshot: SnapshotRef) -> tuple[Kind, Item]:
        is_broken = False
        for kind, item in self._find_snapshots(client, snapshot):
            if item["status"] in COMPLETE:
                return kind, item
            # With a backend_ref it was complete once.
            is_broken = is_broken or (bool(snapshot.backend_ref) and item["status"] == "error")
        if is_broken:
            raise Corrupt(
                _("The storage reports the snapshot as damaged, so it cannot be used. Contact your provider.")
            )
        raise self._no_snapshot()

    def _check_status(self, volume: VolumeRef, item: Item) -> None:
        """Raises Busy or Refused unless the volume can be captured or written to now."""
        if item["status"] in TRANSITIONAL:
            message = _("Another operation is using the volume “%(name)s” right now. Try again when it has finished.")
            raise self.cloud.error(Busy, message, name=volume.name)
        if item["status"] not in {"available", "in-use"}:
            message = _(
                "The storage reports the volume “%(name)s” as failed, so nothing can be done with it. Contact your provider."
            )
            raise self.cloud.error(Refused, message, name=volume.name)

    def _delete_all(self, client: Client, kind: Kind, uuid: UUID, ref: str) -> None:
        """Delete all items of this uuid, and wait until Cinder has removed them."""
        requested: set[str] = set()
        items: list[Item] = []
        for _now in client.poll(self.delete_seconds):
            items = find_all(client, kind, uuid, ref)
            if not items:
                return
            if all(item["status"] == "creating" and item["name"] == UNWANTED for item in items):
                break  # an earlier call has waited for it already
            for item in items:
                if item["status"] in DELETABLE and item["id"] not in requested:
                    if client.delete(kind, item):
                        requested.add(item["id"])
                elif item["status"] == "error_deleting":
                    message = _("The storage of %(location)s failed to delete this. Try again later.")
                    raise self.cloud.error(Unavailable, message)
                elif item["status"] == "available":  # the deletion had begun and was undone
                    raise Busy(_("The storage still uses this, so it was not deleted. Try again later."))
        for item in items:
            if item["status"] == "creating":
                client.rename(kind, item, UNWANTED)
        message = _("The storage of %(location)s has not finished deleting this yet. Try again later.")
        raise self.cloud.error(Unavailable, message)

    # Errors

    def _attached(self, volume: VolumeRef) -> StorageError:
        message = _("The volume “%(name)s” is attached to an instance. Detach it there, then try again.")
        return self.cloud.error(Busy, message, name=volume.name)

    def _no_volume(self, volume: VolumeRef) -> StorageError:
        message = _("The disk of the volume “%(name)s” is not in the storage of %(location)s. Contact your provider.")
        return self.cloud.error(NotFound, message, name=volume.name)

    def _no_snapshot(self) -> StorageError:
        return self.cloud.error(NotFound, _("The snapshot is not in the storage of %(location)s."))


def find_by_ref(client: Client, kind: Kind, uuid: UUID, ref: str) -> list[Item]:
    """Return the item with this ID, or all items of our uuid if there is no ID yet."""
    if not ref:
        return find_all(client, kind, uuid)
    item = client.get(kind, ref)
    return [item] if item else []


def kinds_and_refs(snapshot: SnapshotRef) -> list[tuple[Kind, str]]:
    """Return the kinds and IDs under which Cinder may have the snapshot: a safety copy is a volume there."""
    if not snapshot.backend_ref:
        return [("snapshot", ""), ("volume", "")]
    if snapshot.backend_ref.startswith(COPY_PREFIX):
        return [("volume", snapshot.backend_ref.removeprefix(COPY_PREFIX))]
    return [("snapshot", snapshot.backend_ref)]


def describe_snapshot(snapshot: SnapshotRef, kind: Kind, item: Item) -> SnapshotInfo:
    return SnapshotInfo(
        uuid=snapshot.uuid,
        backend_ref=item["id"] if kind == "snapshot" else COPY_PREFIX + item["id"],
        size_bytes=item["size"] * GIB,
        allocated_bytes=None,
        checksum="",
        captured_at=read_instant(item["created_at"]),
    )
