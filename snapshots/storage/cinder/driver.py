"""Volumes and snapshots of an OpenStack cloud, through the block storage service Cinder (API 3.0 or newer).

A location names a cloud of `clouds.yaml`, and if need be its region, availability zone and volume type. Credentials stay
in that file or in the environment. What is made here is called `snapshot-portal-<our uuid>` and carries these metadata:

    portal_uuid   our uuid, by which it is found again even when somebody renamed it
    portal_claim  the call that answers for it; whoever adopts it writes its own, and only the claimant cleans it up

What could not be removed yet is renamed `snapshot-portal-unwanted`, for `remove_leftovers`. A name, because Cinder puts the
metadata back to what they were at first when something `creating` is done.

Cinder answers before the work is done, so every call looks until the state is final. What one attempt began, even one
whose answer was lost, is found and adopted by the next, and of things made twice the oldest stays.

Cinder lets a volume be reverted to its latest snapshot only (and not once it has grown). A snapshot taken before each
restore would therefore make every restore impossible: `create_safety_snapshots` copies the volume instead, which shares
blocks on Ceph just as a snapshot does. Such a copy can become a new volume, but nothing can be reverted to it.

Snapshots of several volumes are taken one after the other. Cinder's group snapshots would promise more only where the
volume driver supports consistent ones: the one for Ceph (RBD) does not, it takes them one after the other as well.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import quote
from uuid import UUID, uuid4

import structlog
from django.utils.translation import gettext as _

from ..contract import (
    GIB,
    Busy,
    Consistency,
    Corrupt,
    Denied,
    Driver,
    Heartbeat,
    Held,
    NotAccepted,
    NotFound,
    QuotaReached,
    Refused,
    SnapshotInfo,
    SnapshotRef,
    StorageError,
    TooSlow,
    Unavailable,
    VolumeRef,
    no_heartbeat,
)
from ..inventory import FoundProject, FoundServer, FoundSnapshot, FoundVolume, Inventory, Use

try:
    import openstack
    from keystoneauth1.exceptions import ClientException, EndpointNotFound, Unauthorized
    from keystoneauth1.exceptions.discovery import ImpliedVersionMismatch
    from openstack.exceptions import SDKException
except ImportError as error:
    raise ImportError("openstacksdk is not installed; it is in requirements-openstack.txt") from error

logger = structlog.stdlib.get_logger(__name__)

Response = Any  # of requests, which openstacksdk stands on; it lets no exception of its through
Result = TypeVar("Result")
Kind = Literal["volume", "snapshot"]
Service = Literal["volume", "compute", "identity"]
Item = dict[str, Any]  # a volume or a snapshot as Cinder describes it

# The newest microversion this was tried with; less is used where the cloud has less.
NEWEST = (3, 71)
REVERT, MESSAGES, SNAPSHOT_METADATA_FILTER, EXTEND_ATTACHED, NO_FORCE = (3, 40), (3, 5), (3, 22), (3, 42), (3, 66)

# Nova tells the size of a server's flavour from 2.47 on.
OTHER_SERVICES: dict[str, dict[str, str]] = {"compute": {"microversion": "2.47"}, "identity": {}}

PAGE = 500
MARKERS_TRIED = 20
MOST_SESSIONS = 32
CONNECT_SECONDS = 5.0
# `error` was seen to become `available` when the volume service came back, so it counts only when it lasts.
ERROR_STANDS_SECONDS = 6.0
# How long a request whose answer was lost may take to show what it made.
LOST_ANSWER_SECONDS = 10.0
# How long the service may be silent while something is waited for.
PATIENCE_SECONDS = 30.0
# What was made by another attempt must last for this long after it was claimed: its maker may be removing it right now.
CLAIM_STANDS_SECONDS = 1.0
CLEAN_UP_SECONDS = 15.0
# How long an attempt waits for what one before it gave up: when RabbitMQ dies, what was asked for may stay `creating`.
ADOPTABLE_SECONDS = 60.0
# After so long nothing comes of it any more, and what is still `creating` may be removed by force.
STUCK_SECONDS = 24 * 3600.0
# How long what was made twice may take to become deletable, before it is left to remove_leftovers.
CROWDED_SECONDS = 20.0
# Reading goes on in these states of a snapshot or a copy.
COMPLETE = {"available", "in-use", "backing-up", "restoring", "reserved", "attaching", "detaching", "uploading"}
PASSING = {"creating", "downloading", "reverting", "extending", "retyping", "attaching", "detaching", "reserved"}
PASSING |= {"maintenance", "backing-up", "restoring-backup", "uploading", "awaiting-transfer", "deleting"}

# States of a server in which nothing writes to its volumes.
STANDING_STILL = {"SHUTOFF", "SHELVED", "SHELVED_OFFLOADED"}

DELETABLE = {"available", "error", "error_deleting"}  # the last one with the right to force it

UNWANTED = "snapshot-portal-unwanted"
KEPT = "kept"  # the claim on a complete volume: nobody cleans that up
COPY_PREFIX = "volume:"  # of a backend_ref: a safety copy, which is a volume for Cinder


class Refusal(Exception):
    """Cinder answered 400: `str(refusal)` is its own sentence."""


class Absent(Exception):
    """Cinder answered 404."""


class NotSignedIn(Exception):
    """The account or its token is not accepted."""


@dataclass
class Beat:
    """The caller's heartbeat and how far the call has come."""

    heartbeat: Heartbeat = no_heartbeat
    done: int = 0
    total: int = 0
    project: str = ""  # Keystone's id of the project that requests are made in; "" is that of clouds.yaml

    def __call__(self) -> None:
        self.heartbeat(self.done, self.total)


@dataclass(frozen=True)
class Session:
    """A connection that is signed in to one project. `version` is the microversion that it speaks."""

    process: int
    cloud: Any
    service: Any
    version: tuple[int, int]


class CinderDriver(Driver, Inventory):
    """One cloud. Options: cloud, region, availability_zone, volume_type; the seconds create_timeout (until something
    that stays `creating` fails), delete_timeout, request_timeout.
    """

    consistency = Consistency.PER_DISK
    reads_bytes = False
    reverts_only_latest = True
    reverts_attached = False
    finishes_late = True

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
        self.location = location
        self.cloud, self.region = cloud, region
        self.availability_zone, self.volume_type = availability_zone, volume_type
        self.create_seconds, self.delete_seconds = float(create_timeout), float(delete_timeout)
        self.request_seconds = float(request_timeout)
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # by project, the last used one last
        self._lock = threading.RLock()

    # Volumes

    def create_volume(self, volume: VolumeRef, heartbeat: Heartbeat = no_heartbeat) -> str:
        if volume.size_gb < 1:
            raise Refused(_("A volume has at least 1 GB. Choose a larger size."))
        wish: Item = {"size": volume.size_gb, "description": volume.name}
        if self.availability_zone:
            wish["availability_zone"] = self.availability_zone
        if self.volume_type:
            wish["volume_type"] = self.volume_type
        try:
            return self._make_volume(
                volume, wish, Beat(heartbeat, total=volume.size_gb * GIB, project=volume.backend_project)
            )
        except Absent as error:
            raise Refused(
                _("The storage of %(location)s does not have the volume type that is set for it. Contact support.")
                % {"location": self.location}
            ) from error

    def extend_volume(self, volume: VolumeRef, new_size_gb: int, heartbeat: Heartbeat = no_heartbeat) -> None:
        beat = Beat(heartbeat, total=new_size_gb * GIB, project=volume.backend_project)
        beat()
        current = self._wait_for_extension(volume, self._get_volume(volume, beat)["id"], beat)
        if max(current["size"], volume.size_gb) > new_size_gb:
            raise Refused(_("The volume “%(name)s” can't shrink. Choose a larger size.") % {"name": volume.name})
        if current["size"] < new_size_gb:
            current = self._extend(volume, current, new_size_gb, beat)
        if current["size"] != new_size_gb:
            raise self._failed(self._reason(current, beat))
        beat.done = beat.total
        beat()

    def _extend(self, volume: VolumeRef, current: Item, new_size_gb: int, beat: Beat) -> Item:
        if current["status"] == "in-use" and self._version(beat) < EXTEND_ATTACHED:
            raise self._attached(volume)
        self._check_status(volume, current)
        beat()
        try:
            self._request(
                beat, "POST", f"/volumes/{current['id']}/action", json={"os-extend": {"new_size": new_size_gb}}
            )
        except Absent as error:
            raise self._no_volume(volume) from error
        except Refusal as refusal:
            raise self._refused(refusal) from refusal
        except Unavailable:  # the answer was lost, the request perhaps not
            after = self._get_volume(volume, beat)
            if after["status"] != "extending" and after["size"] != new_size_gb:
                raise
        return self._wait_for_extension(volume, current["id"], beat)

    def _wait_for_extension(self, volume: VolumeRef, volume_id: str, beat: Beat) -> Item:
        message = _("The storage failed to grow the volume “%(name)s”, which is locked now. Contact support.")
        return self._wait_while("extending", volume, volume_id, message % {"name": volume.name}, beat)

    def create_volume_from_snapshot(
        self,
        snapshot: SnapshotRef,
        volume: VolumeRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> str:
        beat = Beat(heartbeat, total=volume.size_gb * GIB, project=snapshot.backend_project)
        beat()
        if volume.backend_ref and self._find_volume(volume, beat):
            return volume.backend_ref
        kind, source = self._get_snapshot(snapshot, beat)
        if volume.size_gb < source["size"]:
            raise Refused(
                _("The volume “%(name)s” would be smaller than the snapshot. Choose a size of %(size)s GB or more.")
                % {"name": volume.name, "size": source["size"]}
            )
        wish: Item = {"size": volume.size_gb, "description": volume.name}
        wish["source_volid" if kind == "volume" else "snapshot_id"] = source["id"]
        try:
            return self._make_volume(volume, wish, beat)
        except Absent as error:
            raise self._no_snapshot() from error

    def revert_volume(
        self,
        volume: VolumeRef,
        snapshot: SnapshotRef,
        heartbeat: Heartbeat = no_heartbeat,
        *,
        unchecked: bool = False,
    ) -> None:
        beat = Beat(heartbeat, total=volume.size_gb * GIB, project=volume.backend_project)
        beat()
        current = self._get_volume(volume, beat)
        kind, source = self._get_snapshot(snapshot, beat)
        self._check_revert(volume, current, kind, source, beat)
        if current["status"] == "reverting":  # an attempt before this one; what it came to is not known, so once more
            current = self._wait_for_revert(volume, current["id"], beat)
        if current["status"] == "in-use":
            raise self._attached(volume)
        self._check_status(volume, current)
        beat()
        try:
            self._request(
                beat, "POST", f"/volumes/{current['id']}/action", json={"revert": {"snapshot_id": source["id"]}}
            )
        except Absent as error:
            raise self._no_volume(volume) from error
        except Refusal as refusal:
            raise self._describe_refused_revert(volume, current, source, refusal, beat) from refusal
        except Unavailable:  # the answer was lost, the request perhaps not
            if self._get_volume(volume, beat)["status"] != "reverting":
                raise
        self._wait_for_revert(volume, current["id"], beat)
        beat.done = beat.total
        beat()

    # Snapshots

    def create_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        return self._capture(disks, heartbeat, "snapshot")

    def create_safety_snapshots(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat = no_heartbeat
    ) -> list[SnapshotInfo]:
        """Like create_snapshots, but so that the volumes can still be reverted to the snapshots that they have now.

        The result is read, verified and deleted like any snapshot; volumes can be made from it, not reverted to it.
        """
        return self._capture(disks, heartbeat, "volume")

    def find_snapshot(self, snapshot: SnapshotRef) -> SnapshotInfo | None:
        found = self._find_snapshot(snapshot, Beat(project=snapshot.backend_project))
        return self._describe(snapshot, *found) if found else None

    def verify_snapshot(self, snapshot: SnapshotRef, heartbeat: Heartbeat = no_heartbeat) -> SnapshotInfo:
        """Cinder shows no bytes, so this only asks whether it still has the snapshot and takes it for sound."""
        beat = Beat(heartbeat, project=snapshot.backend_project)
        beat()
        kind, item = self._get_snapshot(snapshot, beat)
        info = self._describe(snapshot, kind, item)
        beat.done = beat.total = info.size_bytes
        beat()
        return info

    def delete_volume(self, volume: VolumeRef) -> None:
        made = SnapshotRef(uuid=volume.uuid, backend_ref=volume.backend_ref, backend_project=volume.backend_project)
        self._delete_all("volume", made, Beat(project=volume.backend_project), self.delete_seconds)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        for kind in self._kinds(snapshot):
            self._delete_all(kind, snapshot, Beat(project=snapshot.backend_project), self.delete_seconds)

    # Room and health

    def bytes_needed(self, volumes: Sequence[VolumeRef]) -> int:
        """0: snapshots share blocks on Ceph and on most of what Cinder drives, and members are told no more."""
        for volume in volumes:
            self._get_volume(volume, Beat(project=volume.backend_project))
        return 0

    def free_bytes(self) -> int | None:
        """None: Cinder tells its free room to administrators only."""
        return None

    def check_health(self) -> None:
        zones = self._request(Beat(), "GET", "/os-availability-zone")["availabilityZoneInfo"]
        available = {zone["zoneName"] for zone in zones if zone["zoneState"]["available"]}
        if not available or (self.availability_zone and self.availability_zone not in available):
            raise Unavailable(
                _("The storage of %(location)s is switched off at the moment. Try again later.")
                % {"location": self.location}
            )

    def held(self, backend_project: str = "") -> Iterator[Held]:
        """What carries our metadata; what else the project has in the cloud is none of ours."""
        kinds: tuple[Kind, ...] = ("volume", "snapshot")
        for kind in kinds:
            for item in self._list(Beat(project=backend_project), kind, {}):
                uuid, unwanted = item["metadata"].get("portal_uuid"), item["name"] == UNWANTED
                if (uuid or unwanted) and item["status"] in COMPLETE | {"error", "error_deleting"}:
                    yield Held(
                        name=f"{kind} {item['id']}",
                        uuid=UUID(uuid) if uuid else None,
                        half_made=unwanted or item["status"] not in COMPLETE,
                        size_bytes=item["size"] * GIB if kind == "volume" else None,
                        changed_at=datetime.fromisoformat(item["created_at"].removesuffix("Z")).replace(tzinfo=UTC),
                        still_there=partial(self._is_there, kind, item["id"], backend_project),
                    )

    def _is_there(self, kind: Kind, ref: str, project: str) -> bool:
        return self._get(kind, ref, Beat(project=project)) is not None

    def remove_leftovers(self, backend_project: str = "", needed: Callable[[UUID], bool] = lambda uuid: False) -> None:
        """Remove what a failed call had to leave behind because it was still being made. Raises Unavailable."""
        beat = Beat(project=backend_project)
        kinds: tuple[Kind, ...] = ("volume", "snapshot")
        for kind in kinds:
            for item in list(self._list(beat, kind, {"name": UNWANTED})):
                age = time.time() - read_instant(item["created_at"]).timestamp()
                stuck = item["status"] == "creating" and age >= STUCK_SECONDS
                if item["name"] == UNWANTED and (stuck or item["status"] in DELETABLE):
                    try:
                        self._delete(kind, item, beat)
                    except Refused:
                        logger.warning("cinder.delete_refused", kind=kind, id=item["id"])

    # Inventory

    def find_projects(self) -> list[FoundProject]:
        """Those in which the account has a role of its own or an inherited one. An application credential has one only."""
        beat = Beat()
        try:
            cloud = self._run(beat, self._connect).cloud
            own = self._run(beat, lambda: (cloud.current_project_id, cloud.current_project.name))
            if str(cloud.config.config.get("auth_type", "")).endswith("applicationcredential"):
                return [FoundProject(ref=own[0], name=own[1] or "", is_own=True)]
            projects = self._request(beat, "GET", "/auth/projects", service="identity")["projects"]
        except NotSignedIn as error:
            raise self._not_accepted() from error
        except (Absent, Refusal) as error:
            raise self._silent() from error
        return [
            FoundProject(ref=project["id"], name=project["name"], is_own=project["id"] == own[0])
            for project in projects
            if project.get("enabled", True)
        ]

    def use_of(self, backend_project: str) -> Use:
        beat = Beat(project=backend_project)
        with self._looking():
            limits = self._request(beat, "GET", "/limits")["limits"]["absolute"]
        return Use(
            volumes=limits["totalVolumesUsed"],
            volume_quota=limits["maxTotalVolumes"],
            snapshots=limits["totalSnapshotsUsed"],
            snapshot_quota=limits["maxTotalSnapshots"],
            gb=limits["totalGigabytesUsed"],
            gb_quota=limits["maxTotalVolumeGigabytes"],
        )

    def pages_of_volumes(self, backend_project: str) -> Iterator[list[FoundVolume]]:
        with self._looking():
            for page in self._pages(Beat(project=backend_project), "volumes", {}, PATIENCE_SECONDS):
                yield [
                    describe_volume(item)
                    for item in page
                    if item["name"] != UNWANTED and item["status"] not in {"deleting", "error_deleting"}
                ]

    def pages_of_snapshots(self, backend_project: str) -> Iterator[list[FoundSnapshot]]:
        with self._looking():
            for page in self._pages(Beat(project=backend_project), "snapshots", {}, PATIENCE_SECONDS):
                yield [
                    FoundSnapshot(
                        ref=item["id"],
                        name=item["name"] or "",
                        volume_ref=item["volume_id"],
                        size_gb=item["size"],
                        portal_uuid=read_portal_uuid(item),
                        created_at=read_instant(item["created_at"]),
                    )
                    for item in page
                    if item["name"] != UNWANTED and item["status"] in COMPLETE
                ]

    def pages_of_servers(self, backend_project: str) -> Iterator[list[FoundServer]] | None:
        beat = Beat(project=backend_project)
        with self._looking():
            try:
                cloud = self._run(beat, lambda: self._connect(backend_project)).cloud
                if self._run(beat, lambda: cloud.endpoint_for("compute")) is None:
                    return None
            except NotSignedIn as error:
                raise self._not_accepted() from error
        return self._pages_of_servers(beat)

    def _pages_of_servers(self, beat: Beat) -> Iterator[list[FoundServer]]:
        with self._looking():
            for page in self._pages(beat, "servers", {}, PATIENCE_SECONDS, service="compute"):
                yield [
                    FoundServer(
                        ref=item["id"],
                        name=item["name"] or "",
                        is_running=item["status"] not in STANDING_STILL,
                        vcpus=item["flavor"].get("vcpus", 0),
                        memory_mb=item["flavor"].get("ram", 0),
                        created_at=read_instant(item["created"]),
                    )
                    for item in page
                    if item["status"] not in {"DELETED", "SOFT_DELETED"}
                ]

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """What a list never answers, unless something in between does."""
        try:
            yield
        except (Absent, Refusal, KeyError) as error:
            raise self._silent() from error

    # Making

    def _make_volume(self, volume: VolumeRef, wish: Item, beat: Beat) -> str:
        claim = uuid4().hex
        try:
            item = self._make("volume", volume.uuid, wish, claim, beat, ref=volume.backend_ref, keep=True)
            if item["size"] != volume.size_gb:
                raise Refused(
                    _("The volume “%(name)s” exists already with another size, so it was left as it is.")
                    % {"name": volume.name}
                )
            beat.done = beat.total
            beat()
        except BaseException as error:
            self._clean_up("volume", [volume.uuid], claim, beat.project)
            if isinstance(error, Refusal):
                raise self._refused(error) from error
            raise
        return item["id"]

    def _capture(
        self, disks: Sequence[tuple[SnapshotRef, VolumeRef]], heartbeat: Heartbeat, kind: Kind
    ) -> list[SnapshotInfo]:
        """All of them or none: what this call made or adopted is removed when it fails."""
        # the disks of a machine are in its project
        project = disks[0][1].backend_project if disks else ""
        beat = Beat(heartbeat, total=sum(volume.size_gb for _snapshot, volume in disks) * GIB, project=project)
        beat()
        claim, infos = uuid4().hex, []
        sources: list[Item] = [self._get_volume(volume, beat) for _snapshot, volume in disks[1:]]
        first = disks[0][1] if disks else None
        if first and (sources or not first.backend_ref or kind == "volume" or self._version(beat) < NO_FORCE):
            sources.insert(0, self._get_volume(first, beat))
        elif first:  # alone it need not be looked at before: Cinder refuses what cannot be captured
            sources.insert(0, {"id": first.backend_ref, "status": "available"})
        try:
            for (snapshot, volume), source in zip(disks, sources, strict=True):
                item = self._capture_one(snapshot, volume, source, kind, claim, beat)
                infos.append(self._describe(snapshot, kind, item))
                beat.done += volume.size_gb * GIB
                beat()
        except BaseException:
            self._clean_up(kind, [snapshot.uuid for snapshot, _volume in disks], claim, project)
            raise
        return infos

    def _capture_one(
        self, snapshot: SnapshotRef, volume: VolumeRef, source: Item, kind: Kind, claim: str, beat: Beat
    ) -> Item:
        wish: Item = {"description": _("Snapshot of %(volume)s") % {"volume": volume.name}}
        if kind == "volume":
            wish |= {"source_volid": source["id"], "size": source["size"]}
        else:
            wish |= {"volume_id": source["id"]}
            if self._version(beat) < NO_FORCE:  # from there on a volume in use needs no force, and gets none
                wish["force"] = True
        try:
            return self._make(kind, snapshot.uuid, wish, claim, beat, before=lambda: self._check_status(volume, source))
        except Absent as error:
            raise self._no_volume(volume) from error
        except Refusal as refusal:
            self._check_status(volume, self._get_volume(volume, beat))  # it may have changed since
            raise self._refused(refusal) from refusal

    def _make(
        self,
        kind: Kind,
        uuid: UUID,
        wish: Item,
        claim: str,
        beat: Beat,
        *,
        ref: str = "",
        keep: bool = False,
        before: Callable[[], None] = lambda: None,
    ) -> Item:
        """What there is of this uuid, once it is complete; made if there is nothing. `before` is called before that.

        1. Look. Of several the oldest counts, and the others go: they were made by attempts taken for dead.
        2. One that another attempt began is claimed, and waited for like an own one; one that another gave up, only for
           a while. From then on it is a ghost: it counts when it is complete after all, and keeps nothing waiting.
           With `keep` one that is complete is claimed so that no failure of this call removes it.
        3. An `error` that lasts is removed. Was it ours, this fails with the reason; else it is made anew.
        4. Ask for it, at most once per call. When the answer is lost, it may still appear, so keep looking for a while.

        Raises Refusal, Absent, Busy, Refused, Unavailable.
        """
        ours: set[tuple[str, bool]] = set()  # what this call made or claimed: its id, and whether it was complete
        asked = claimed = failed = crowded = 0.0  # when, in the time of _look_until
        given_up: dict[str, float] = {}  # what another attempt gave up: its id, and when this one saw it first
        lost: Unavailable | None = None
        item: Item | None = None
        for now in self._look_until(beat, self.create_seconds):
            found = self._look(kind, uuid, beat, ref=ref, patience=PATIENCE_SECONDS)
            errors = [each for each in found if each["status"] == "error"]
            sound = [each for each in found if each["status"] not in {"error", "deleting", "error_deleting"}]
            sound.sort(key=lambda each: each["status"] not in COMPLETE)
            for each in sound:
                if each["name"] == UNWANTED:
                    given_up.setdefault(each["id"], now)
            ghosts = [
                each
                for each in sound
                if each["status"] not in COMPLETE and now - given_up.get(each["id"], now) >= ADOPTABLE_SECONDS
            ]
            sound = [each for each in sound if each not in ghosts]
            if sound:
                item, failed = sound[0], 0.0
                complete = item["status"] in COMPLETE
                others = sound[1:]
                crowded = (crowded or now) if complete and others else 0.0
                for other in others:
                    # Cinder would accept to delete a volume that is `creating`, and its image would stay for ever
                    if other["status"] in DELETABLE:
                        self._delete(kind, other, beat)
                claims = {claim, KEPT} if keep else {claim}
                if item["metadata"].get("portal_claim") not in claims and (item["id"], complete) not in ours:
                    # once now, and once when it is complete, because Cinder forgets metadata then; no more often, or
                    # of two that take it from each other none gets to its end
                    self._label(kind, item, beat, portal_claim=KEPT if keep and complete else claim)
                    if item["name"] == UNWANTED:
                        self._rename(kind, item, name_of(uuid), beat)
                    ours.add((item["id"], complete))
                    claimed = now
                elif complete and (not claimed or now - claimed >= CLAIM_STANDS_SECONDS):
                    if not others or now - crowded >= CROWDED_SECONDS:
                        for other in [*others, *ghosts]:
                            self._rename(kind, other, UNWANTED, beat)
                        return item
            elif errors:
                failed = failed or now
                if now - failed < ERROR_STANDS_SECONDS:
                    continue
                failed = 0.0
                reason = self._reason(errors[0], beat)
                for each in errors:
                    self._rename(kind, each, UNWANTED, beat)  # storage that hangs may fail to delete it
                    self._delete(kind, each, beat)
                if any((each["id"], False) in ours or each["metadata"].get("portal_claim") == claim for each in errors):
                    raise self._failed(reason)
            elif any(each["status"] == "deleting" for each in found):
                continue
            elif lost:
                if now - asked >= LOST_ANSWER_SECONDS:
                    raise lost
            elif asked:
                raise self._failed("")  # it was removed behind us
            else:
                before()
                labels = {"portal_uuid": str(uuid), "portal_claim": claim}
                body = {kind: wish | {"name": name_of(uuid), "metadata": labels}}
                asked = now
                try:
                    ref = self._request(beat, "POST", f"/{kind}s", json=body)[kind]["id"]
                    ours.add((ref, False))
                except Unavailable as error:
                    lost, asked = error, time.monotonic()
        raise self._failed(self._reason(item, beat) if item else "", still_waiting=True)

    def _clean_up(self, kind: Kind, uuids: Sequence[UUID], claim: str, project: str) -> None:
        """Remove what carries this claim, within some seconds; what cannot be removed yet is marked as unwanted.

        Called while another exception is on its way, so what goes wrong here is only logged.
        """
        beat, end = Beat(project=project), time.monotonic() + CLEAN_UP_SECONDS
        for uuid in uuids:
            ours: list[Item] = []
            try:
                for _now in self._look_until(beat, max(1.0, end - time.monotonic())):
                    ours = [
                        item
                        for item in self._look(kind, uuid, beat)
                        if item["metadata"].get("portal_claim") == claim and item["status"] != "error_deleting"
                    ]
                    if not ours:
                        break
                    for item in ours:
                        if item["status"] in {"available", "error"}:
                            self._delete(kind, item, beat)
                else:
                    for item in ours:
                        self._rename(kind, item, UNWANTED, beat)
            except StorageError:
                logger.warning("cinder.cleanup_failed", uuid=str(uuid), location=self.location)

    # Reverting

    def _check_revert(self, volume: VolumeRef, current: Item, kind: Kind, source: Item, beat: Beat) -> None:
        if kind == "volume":
            raise Refused(
                _(
                    "This is the copy of a volume, and the storage cannot write it back. Make a new volume from it instead."
                )
            )
        if self._version(beat) < REVERT:
            raise Refused(
                _(
                    "The storage of %(location)s is too old to write a snapshot back to its volume. Make a new volume "
                    "from the snapshot instead."
                )
                % {"location": self.location}
            )
        if source["volume_id"] != current["id"]:
            raise Refused(
                _(
                    "The snapshot was not taken of the volume “%(name)s”, so it cannot be written to it. Make a new "
                    "volume from the snapshot instead."
                )
                % {"name": volume.name}
            )
        if source["size"] != current["size"]:
            raise Refused(
                _(
                    "The volume “%(name)s” has grown since the snapshot was taken, so the storage cannot write it back. "
                    "Make a new volume from the snapshot instead."
                )
                % {"name": volume.name}
            )

    def _wait_for_revert(self, volume: VolumeRef, volume_id: str, beat: Beat) -> Item:
        message = _(
            "The storage failed while it wrote the snapshot back, so the volume “%(name)s” may hold parts of both and is "
            "locked. The copy made before has the old content. Contact support."
        )
        return self._wait_while("reverting", volume, volume_id, message % {"name": volume.name}, beat)

    def _wait_while(self, status: str, volume: VolumeRef, volume_id: str, failure: str, beat: Beat) -> Item:
        """The volume once it has left `status`. Raises Refused with `failure` when it ends in an error that lasts."""
        failed = 0.0
        for now in self._look_until(beat, self.create_seconds):
            found = self._look("volume", volume.uuid, beat, ref=volume_id, patience=PATIENCE_SECONDS)
            current = next((item for item in found if item["id"] == volume_id), None)
            if current is None:
                raise self._no_volume(volume)
            if current["status"] == status:
                failed = 0.0
            elif not current["status"].startswith("error"):
                return current
            else:
                failed = failed or now
                if now - failed >= ERROR_STANDS_SECONDS:
                    raise Refused(failure)
        raise self._failed("", still_waiting=True)

    def _describe_refused_revert(
        self, volume: VolumeRef, current: Item, source: Item, refusal: Refusal, beat: Beat
    ) -> StorageError:
        newest = max(
            self._list(beat, "snapshot", {"volume_id": current["id"]}),
            key=lambda item: (item["created_at"], item["id"]),
            default=source,
        )
        if newest["id"] == source["id"]:
            return self._refused(refusal)
        return Refused(
            _(
                "The volume “%(name)s” has newer snapshots, and this storage writes back the latest one only. Make a "
                "new volume from the snapshot, or delete the newer snapshots first."
            )
            % {"name": volume.name}
        )

    # Finding

    def _look(self, kind: Kind, uuid: UUID, beat: Beat, *, ref: str = "", patience: float = 0.0) -> list[Item]:
        """What Cinder has of our uuid, oldest first, and the thing with the id `ref` in any case."""
        found = {
            item["id"]: item
            for item in self._list(beat, kind, {"name": name_of(uuid)}, patience)
            if item["name"] == name_of(uuid)
        }
        if ref and ref not in found and (item := self._get(kind, ref, beat, patience)):
            found[ref] = item
        if not found and not ref:  # somebody may have renamed it
            for item in self._list(beat, kind, self._metadata_filter(kind, "portal_uuid", str(uuid), beat), patience):
                if item["metadata"].get("portal_uuid") == str(uuid):
                    found[item["id"]] = item
        return sorted(found.values(), key=lambda item: (item["created_at"], item["id"]))

    def _find_volume(self, volume: VolumeRef, beat: Beat) -> Item | None:
        if volume.backend_ref:
            found = [self._get("volume", volume.backend_ref, beat)]
        else:
            found = [*self._look("volume", volume.uuid, beat)]
        return next((item for item in found if item and item["status"] not in {"deleting", "error_deleting"}), None)

    def _get_volume(self, volume: VolumeRef, beat: Beat) -> Item:
        item = self._find_volume(volume, beat)
        if not item:
            raise self._no_volume(volume)
        return item

    def _kinds(self, snapshot: SnapshotRef) -> list[Kind]:
        if not snapshot.backend_ref:
            return ["snapshot", "volume"]
        return ["volume"] if snapshot.backend_ref.startswith(COPY_PREFIX) else ["snapshot"]

    def _look_for_snapshot(self, snapshot: SnapshotRef, beat: Beat) -> Iterator[tuple[Kind, Item]]:
        for kind in self._kinds(snapshot):
            if snapshot.backend_ref:
                item = self._get(kind, snapshot.backend_ref.removeprefix(COPY_PREFIX), beat)
                found = [item] if item else []
            else:
                found = self._look(kind, snapshot.uuid, beat)
            for item in found:
                yield kind, item

    def _find_snapshot(self, snapshot: SnapshotRef, beat: Beat) -> tuple[Kind, Item] | None:
        return next(
            (found for found in self._look_for_snapshot(snapshot, beat) if found[1]["status"] in COMPLETE), None
        )

    def _get_snapshot(self, snapshot: SnapshotRef, beat: Beat) -> tuple[Kind, Item]:
        broken = False
        for kind, item in self._look_for_snapshot(snapshot, beat):
            if item["status"] in COMPLETE:
                return kind, item
            broken = broken or (bool(snapshot.backend_ref) and item["status"] == "error")
        if broken:  # it was complete once, or there were no backend_ref
            raise Corrupt(_("The storage reports the snapshot as damaged, so it cannot be used. Contact support."))
        raise self._no_snapshot()

    def _describe(self, snapshot: SnapshotRef, kind: Kind, item: Item) -> SnapshotInfo:
        return SnapshotInfo(
            uuid=snapshot.uuid,
            backend_ref=item["id"] if kind == "snapshot" else COPY_PREFIX + item["id"],
            size_bytes=item["size"] * GIB,
            allocated_bytes=None,
            checksum="",
            captured_at=read_instant(item["created_at"]),
        )

    def _check_status(self, volume: VolumeRef, item: Item) -> None:
        """Raises Busy or Refused unless the volume can be captured or written now."""
        if item["status"] in {"available", "in-use"}:
            return
        if item["status"] in PASSING:
            raise Busy(
                _("Something else is being done with the volume “%(name)s” right now. Try again when that is done.")
                % {"name": volume.name}
            )
        raise Refused(
            _("The storage reports the volume “%(name)s” as failed, so nothing can be done with it. Contact support.")
            % {"name": volume.name}
        )

    # Removing

    def _delete_all(self, kind: Kind, snapshot: SnapshotRef, beat: Beat, seconds: float) -> None:
        """Delete what there is of a snapshot and wait until Cinder knows nothing of it any more."""
        asked: set[str] = set()
        found: list[Item] = []
        for _now in self._look_until(beat, seconds):
            found = self._look(
                kind, snapshot.uuid, beat, ref=snapshot.backend_ref.removeprefix(COPY_PREFIX), patience=PATIENCE_SECONDS
            )
            if not found:
                return
            if all(item["status"] == "creating" and item["name"] == UNWANTED for item in found):
                break  # waited for long enough before
            for item in found:
                if item["status"] in DELETABLE and item["id"] not in asked:
                    if self._delete(kind, item, beat):
                        asked.add(item["id"])
                elif item["status"] == "error_deleting":
                    raise Unavailable(
                        _("The storage of %(location)s failed to delete the snapshot. Try again later.")
                        % {"location": self.location}
                    )
                elif item["status"] == "available":  # the deletion had begun, and turned back
                    raise Busy(_("The storage still uses the snapshot, so it was not deleted. Try again later."))
        for item in found:
            if item["status"] == "creating":
                self._rename(kind, item, UNWANTED, beat)
        raise Unavailable(
            _("The storage of %(location)s has not finished deleting the snapshot yet. Try again later.")
            % {"location": self.location}
        )

    def _delete(self, kind: Kind, item: Item, beat: Beat) -> bool:
        """Ask for the deletion. False when it is gone, or in a state in which it cannot be deleted now.

        What failed to be deleted once, or to be made at all, goes only by force. That is a right of administrators, unless
        the cloud's policy gives `volume_extension:snapshot_admin_actions:force_delete` to the portal's account.
        """
        try:
            if item["status"] in {"error_deleting", "creating"}:
                self._request(beat, "POST", f"/{kind}s/{item['id']}/action", json={"os-force_delete": {}})
            else:
                self._request(beat, "DELETE", f"/{kind}s/{item['id']}")
        except (Absent, Refusal):
            return False
        except Refused as error:
            if item["status"] not in {"error_deleting", "creating"}:
                raise
            raise Refused(
                _(
                    "The storage failed to delete the snapshot, and only its administrator can try that again. "
                    "Contact support."
                )
            ) from error
        return True

    # Waiting

    def _look_until(self, beat: Beat, seconds: float) -> Iterator[float]:
        """The time, again and again with growing pauses, in which heartbeats go on."""
        pause, end = 0.15, time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            yield now
            self._pause(beat, pause)
            pause = min(pause * 1.4, 5.0)

    def _pause(self, beat: Beat, seconds: float) -> None:
        end = time.monotonic() + seconds
        beat()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.4))
            beat()

    def _reason(self, item: Item, beat: Beat) -> str:
        """What Cinder tells members about a failure, or ""."""
        try:
            if self._version(beat) < MESSAGES:
                return ""
            messages = self._request(beat, "GET", f"/messages?resource_uuid={item['id']}")["messages"]
        except (Absent, Refusal, StorageError):
            return ""
        newest = max(messages, key=lambda message: message["created_at"], default=None)
        # "schedule allocate volume:Could not find any available weighted backend."
        return newest["user_message"].strip().rstrip(".").replace(":", ": ", 1) if newest else ""

    # The service

    def _get(self, kind: Kind, ref: str, beat: Beat, patience: float = 0.0) -> Item | None:
        try:
            return self._request(beat, "GET", f"/{kind}s/{quote(ref, safe='')}", patience=patience)[kind]
        except (Absent, Refusal):  # 400: no id of Cinder's
            return None

    def _list(self, beat: Beat, kind: Kind, filters: dict[str, str], patience: float = 0.0) -> Iterator[Item]:
        """All of a kind, page by page. A cloud may ignore filters that it does not know."""
        for page in self._pages(beat, f"{kind}s", filters, patience):
            yield from page

    def _pages(
        self, beat: Beat, what: str, filters: dict[str, str], patience: float = 0.0, service: Service = "volume"
    ) -> Iterator[list[Item]]:
        params = {**filters, "limit": str(PAGE)}
        page: list[Item] = []
        while True:
            # what the next page shall follow may be gone by now; then the one before it, which gives some twice
            for marker in [*page[: -MARKERS_TRIED - 1 : -1], None]:
                if marker:
                    params["marker"] = marker["id"]
                else:
                    params.pop("marker", None)
                with contextlib.suppress(Absent, Refusal) if marker else contextlib.nullcontext():
                    answer = self._request(
                        beat, "GET", f"/{what}/detail", params=params, patience=patience, service=service
                    )
                    break
            page = answer[what]
            yield page
            if not page or not answer.get(f"{what}_links"):
                return

    def _metadata_filter(self, kind: Kind, key: str, value: str, beat: Beat) -> dict[str, str]:
        if kind == "snapshot" and self._version(beat) < SNAPSHOT_METADATA_FILTER:
            return {}
        return {"metadata": json.dumps({key: value})}

    def _label(self, kind: Kind, item: Item, beat: Beat, **labels: str) -> None:
        try:
            self._request(beat, "POST", f"/{kind}s/{item['id']}/metadata", json={"metadata": labels})
        except (Absent, Refusal):
            logger.info("cinder.label_failed", kind=kind, id=item["id"])

    def _rename(self, kind: Kind, item: Item, name: str, beat: Beat) -> None:
        try:
            self._request(beat, "PUT", f"/{kind}s/{item['id']}", json={kind: {"name": name}})
        except (Absent, Refusal):
            logger.info("cinder.rename_failed", kind=kind, id=item["id"])

    def _request(
        self, beat: Beat, method: str, path: str, *, patience: float = 0.0, service: Service = "volume", **options: Any
    ) -> Item:
        """The answer's JSON. With `patience`, failures of the service that pass within so many seconds do not count.

        Raises Absent, Refusal, Busy, Refused, Unavailable.
        """
        until = time.monotonic() + patience
        while True:
            try:
                return self._ask(beat, method, path, service, options)
            except Unavailable:
                if time.monotonic() >= until:
                    raise
            self._pause(beat, 1.0)

    def _ask(self, beat: Beat, method: str, path: str, service: Service, options: dict[str, Any]) -> Item:
        def send() -> Response:
            session = self._connect(beat.project)
            if service == "volume":
                adapter, headers = session.service, {"microversion": "{}.{}".format(*session.version)}
            else:
                adapter, headers = getattr(session.cloud, service), OTHER_SERVICES[service]
            return adapter.request(
                path,
                method,
                timeout=(CONNECT_SECONDS, self.request_seconds),
                connect_retries=0,  # a POST whose connection broke may have been heard
                status_code_retries=0,
                raise_exc=False,
                **headers,
                **options,
            )

        for again in (True, False):
            beat()
            try:
                return self._read(method, path, self._run(beat, send, finish=method != "GET"))
            except NotSignedIn as error:
                # keystoneauth asked for a new token already; the account's password may be new too
                if not again:
                    raise self._not_accepted() from error
                with self._lock:
                    self._sessions.clear()
        raise AssertionError("unreachable")

    def _run(self, beat: Beat, call: Callable[[], Result], *, finish: bool = False) -> Result:
        """The result of a call that may be silent for long, during which heartbeats go on.

        With `finish` an interruption waits for the answer: what was asked for must be known before it can be undone.
        Raises NotSignedIn, Unavailable.
        """
        future: Future[Result] = Future()
        interruption: BaseException | None = None

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        if beat.heartbeat is no_heartbeat:
            work()
        else:
            threading.Thread(target=work, name=f"cinder-{self.location}", daemon=True).start()
        while not wait([future], timeout=0.4).done:
            try:
                beat()
            except BaseException as error:
                if not finish:
                    raise
                interruption = interruption or error
        if interruption:
            raise interruption
        try:
            return future.result()
        except Unauthorized as error:
            raise NotSignedIn from error
        except (ClientException, SDKException, ImpliedVersionMismatch) as error:
            # the name alone: the text may hold addresses
            logger.warning("cinder.unavailable", location=self.location, error=type(error).__name__)
            raise self._silent() from error

    def _read(self, method: str, path: str, response: Response) -> Item:
        if response.ok:
            try:
                return response.json() if response.content else {}
            except ValueError as error:  # something in between answered
                raise self._silent() from error
        status, reason = response.status_code, read_reason(response)
        if status == 404:
            raise Absent
        logger.info(
            "cinder.request_failed",
            method=method,
            path=path.partition("?")[0],
            location=self.location,
            status=status,
            reason=reason,
        )
        if status == 401:
            raise NotSignedIn
        if status == 413 and response.headers.get("Retry-After", "0") == "0" or "quota" in reason.lower():
            raise QuotaReached(describe_quota(reason))
        if status == 400:
            raise Refusal(reason)
        if status == 403:
            raise Denied(
                _("The storage of %(location)s does not allow this to the portal's account. Contact support.")
                % {"location": self.location}
            )
        if status == 409:
            raise Busy(
                _("Something else is being done with this in the storage right now. Try again when that is done.")
            )
        raise self._silent()

    def _connect(self, project: str = "") -> Session:
        """One connection per process and project: signing in takes a part of a second, the first time one or two.

        Raises what openstacksdk raises.
        """
        with self._lock:
            session = self._sessions.get(project)
            if session is None or session.process != os.getpid():
                session = self._sign_in(project)
                self._sessions[project] = session
                while len(self._sessions) > MOST_SESSIONS:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end(project)
            return session

    def _sign_in(self, project: str) -> Session:
        if project:
            cloud = self._connect().cloud
        else:
            cloud = openstack.connect(
                cloud=self.cloud or None, region_name=self.region or None, app_name="snapshot-portal"
            )
        if project and project != cloud.current_project_id:
            cloud = cloud.connect_as(project_id=project)
        service = cloud.block_storage
        endpoint = service.get_endpoint_data()
        if endpoint is None:
            raise EndpointNotFound("no block storage in this region")
        major, minor = endpoint.max_microversion or (3, 0)
        return Session(os.getpid(), cloud, service, min(NEWEST, (int(major), int(minor))))

    def _version(self, beat: Beat) -> tuple[int, int]:
        """The microversion that is spoken. Raises Unavailable."""
        try:
            return self._run(beat, lambda: self._connect(beat.project)).version
        except NotSignedIn as error:
            raise self._not_accepted() from error

    # Errors

    def _refused(self, refusal: Refusal) -> Refused:
        return Refused(
            _("The storage of %(location)s refused this: %(reason)s. Contact support if you do not know why.")
            % {"location": self.location, "reason": str(refusal).strip().rstrip(".") or "400"}
        )

    def _failed(self, reason: str, *, still_waiting: bool = False) -> Unavailable:
        words = {"location": self.location, "reason": reason}
        if still_waiting and not reason:
            return TooSlow(
                _(
                    "The storage of %(location)s did not finish in time. Try again later; if it stays so, contact support."
                )
                % words
            )
        if not reason:
            return Unavailable(
                _(
                    "The storage of %(location)s failed without a reason. Try again later; if it stays so, contact support."
                )
                % words
            )
        return Unavailable(
            _("The storage of %(location)s failed: %(reason)s. Try again later; if it stays so, contact support.")
            % words
        )

    def _silent(self) -> Unavailable:
        return Unavailable(
            _("The storage of %(location)s does not answer. Try again later; if it stays so, contact support.")
            % {"location": self.location}
        )

    def _not_accepted(self) -> NotAccepted:
        return NotAccepted(
            _("The storage of %(location)s does not accept the portal's account. Contact support.")
            % {"location": self.location}
        )

    def _attached(self, volume: VolumeRef) -> Busy:
        return Busy(
            _("The volume “%(name)s” is attached to a machine. Detach it there, then try again.")
            % {"name": volume.name}
        )

    def _no_volume(self, volume: VolumeRef) -> NotFound:
        return NotFound(
            _("The disk of the volume “%(name)s” is not in the storage of %(location)s. Contact support.")
            % {"name": volume.name, "location": self.location}
        )

    def _no_snapshot(self) -> NotFound:
        return NotFound(_("The snapshot is not in the storage of %(location)s.") % {"location": self.location})


def name_of(uuid: UUID) -> str:
    if not isinstance(uuid, UUID):
        raise TypeError(f"{uuid!r} is no UUID")
    return f"snapshot-portal-{uuid}"


def read_instant(text: str) -> datetime:
    """Cinder's, which are in UTC and do not say so, and Nova's, which say so."""
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)


def read_portal_uuid(item: Item) -> UUID | None:
    """By metadata, or by name where Cinder has forgotten them."""
    written = item["metadata"].get("portal_uuid") or (item["name"] or "").removeprefix("snapshot-portal-")
    try:
        return UUID(written)
    except ValueError:
        return None


def describe_volume(item: Item) -> FoundVolume:
    attachment: Item = next(iter(item["attachments"]), {})
    device = re.search(r"([a-z]+)\d*$", (attachment.get("device") or "").rpartition("/")[2])
    letters = device[1][2:] if device and len(device[1]) > 2 else "a"  # of vda, sdb, vdaa
    position = 0
    for letter in letters:
        position = position * 26 + ord(letter) - ord("a") + 1
    return FoundVolume(
        ref=item["id"],
        name=item["name"] or "",
        size_gb=item["size"],
        is_ready=not item["status"].startswith("error") and item["status"] not in {"creating", "downloading"},
        is_being_made=item["status"] in {"creating", "downloading"},
        server_ref=attachment.get("server_id") or "",
        position=min(position - 1, 32767),
        portal_uuid=read_portal_uuid(item),
        created_at=read_instant(item["created_at"]),
    )


def read_reason(response: Response) -> str:
    """Cinder's own sentence in an answer that is a failure: {"badRequest": {"code": 400, "message": …}}; or ""."""
    try:
        [fault] = response.json().values()
        return str(fault["message"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return ""


def describe_quota(reason: str) -> str:
    if match := re.search(r"Maximum number of \w+ allowed \((\d+)\)", reason):
        return _(
            "The quota of the storage allows %(count)s of these and all are used. Delete some that you do not need, or ask "
            "support for more."
        ) % {"count": match[1]}
    if match := re.search(r"Requested (\d+)G, quota is (\d+)G and (\d+)G", reason):
        return _(
            "The quota of the storage allows %(quota)s GB, of which %(used)s GB are used and %(needed)s GB more would be "
            "needed. Delete what you do not need, or ask support for more."
        ) % {"needed": match[1], "quota": match[2], "used": match[3]}
    return _("The quota of the storage is used up. Delete what you do not need, or ask support for more.")
