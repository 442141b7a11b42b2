"""Create a volume or snapshot exactly once, whatever happened to earlier attempts.

What the portal creates is named `snapshot-portal-<our uuid>` and carries these metadata:

    portal_uuid   our uuid, by which it is found again even if somebody renamed it
    portal_claim  the call that is responsible for it; a call that adopts it writes its own, and only the claimant cleans up

What can't be removed yet is renamed to `snapshot-portal-unwanted`, for `remove_orphans`. The mark is a name because Cinder
resets the metadata to their first values when something that is `creating` becomes available.
"""

import json
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog

from ..contract import StorageError, Unavailable
from .client import Client, Item, Kind, Version

logger = structlog.stdlib.get_logger(__name__)

# `error` was seen to turn into `available` when the volume service came back, so it counts only once it lasts.
ERROR_STANDS_SECONDS = 6.0
# How long a request whose answer was lost may take to show its result.
LOST_ANSWER_SECONDS = 10.0
# An adopted object must last this long: the attempt that created it may be removing it right now.
CLAIM_STANDS_SECONDS = 1.0
CLEAN_UP_SECONDS = 15.0
# How long to wait for an object that an earlier attempt gave up: it may stay `creating` forever if RabbitMQ died.
ADOPTABLE_SECONDS = 60.0
# How long to wait until a duplicate can be deleted, before it's left to remove_orphans.
CROWDED_SECONDS = 20.0

# The bytes of a snapshot or a copy stay readable in these states.
COMPLETE = {"available", "in-use", "backing-up", "restoring", "reserved", "attaching", "detaching", "uploading"}
DELETABLE = {"available", "error", "error_deleting"}  # the last one only by force
UNUSABLE = {"error", "deleting", "error_deleting"}

UNWANTED = "snapshot-portal-unwanted"
PERMANENT = "kept"  # the claim on a complete volume, which no call cleans up
SNAPSHOT_METADATA_FILTER: Version = (3, 22)


def name_of(uuid: UUID) -> str:
    if not isinstance(uuid, UUID):
        raise TypeError(f"{uuid!r} is no UUID")
    return f"snapshot-portal-{uuid}"


def find_all(client: Client, kind: Kind, uuid: UUID, ref: str = "") -> list[Item]:
    """Return all items of our uuid, oldest first, and in any case the item with the ID `ref`."""
    name = name_of(uuid)
    items = {item["id"]: item for item in client.items(kind, name=name) if item["name"] == name}
    if ref and ref not in items and (item := client.get(kind, ref)):
        items[ref] = item
    if not items and not ref:  # somebody may have renamed it
        can_filter = kind == "volume" or client.version >= SNAPSHOT_METADATA_FILTER
        filters = {"metadata": json.dumps({"portal_uuid": str(uuid)})} if can_filter else {}
        items = {
            item["id"]: item
            for item in client.items(kind, **filters)
            if item["metadata"].get("portal_uuid") == str(uuid)
        }
    return sorted(items.values(), key=lambda item: (item["created_at"], item["id"]))


class Creation:
    """Creates the volume or snapshot of one uuid, or completes what an earlier attempt began.

    Each step looks at what Cinder has of the uuid and does one thing:

        Cinder has                              step
        something usable                        adopt it, wait until it is complete, delete its duplicates
        nothing but errors                      once they last, delete them; fail if one of them is ours
        something that is being deleted         wait
        nothing, and nothing was requested      request it, once per call
        nothing, because the answer was lost    wait a while for it to appear, then fail
        nothing, though it was requested        fail: somebody deleted it

    Of duplicates, complete ones come first, then the oldest. What an earlier attempt gave up is waited for like anything
    else for ADOPTABLE_SECONDS. From then on it's a ghost, which counts only if it becomes complete after all.
    """

    def __init__(
        self, client: Client, kind: Kind, uuid: UUID, body: Item, claim: str, *, ref: str = "", permanent: bool = False
    ) -> None:
        """`permanent`: once it is complete, no failure of this call removes it."""
        self.client, self.kind, self.uuid, self.body, self.ref = client, kind, uuid, body, ref
        self.claim, self.permanent = claim, permanent
        self.item: Item | None = None  # the one that is waited for
        self.claimed: set[tuple[str, bool]] = set()  # ids, and whether each was complete when this call claimed it
        # Instants of the monotonic clock; `now` is that of the current step.
        self.now = 0.0
        self.claimed_at = float("-inf")
        self.requested_at: float | None = None
        self.errors_since: float | None = None
        self.crowded_since: float | None = None
        self.given_up_at: dict[str, float] = {}  # by id, when this call first saw it given up
        self.lost_answer: Unavailable | None = None

    def run(self, seconds: float, check: Callable[[], None] = lambda: None) -> Item:
        """Return the item once it is complete. `check` is called just before it is requested.

        Raises BadRequest, Missing, Busy, Refused, Unavailable.
        """
        for now in self.client.poll(seconds):
            self.now = now
            if item := self._step(check):
                return item
        reason = self.client.failure_reason(self.item) if self.item else ""
        raise self.client.cloud.failed(reason, timed_out=True)

    def _step(self, check: Callable[[], None]) -> Item | None:
        items = find_all(self.client, self.kind, self.uuid, self.ref)
        errors = [item for item in items if item["status"] == "error"]
        usable = [item for item in items if item["status"] not in UNUSABLE]
        ghosts = [item for item in usable if self._is_ghost(item)]
        candidates = sorted(
            (item for item in usable if item not in ghosts), key=lambda item: item["status"] not in COMPLETE
        )
        if candidates:
            return self._adopt(candidates[0], candidates[1:], ghosts)
        if errors:
            self._discard(errors)
        elif any(item["status"] == "deleting" for item in items):
            pass
        elif self.requested_at is None:
            self._request(check)
        elif not self.lost_answer:
            raise self.client.cloud.failed("")
        elif self.now - self.requested_at >= LOST_ANSWER_SECONDS:
            raise self.lost_answer
        return None

    def _is_ghost(self, item: Item) -> bool:
        if item["name"] == UNWANTED:
            self.given_up_at.setdefault(item["id"], self.now)
        age = self.now - self.given_up_at.get(item["id"], self.now)
        return item["status"] not in COMPLETE and age >= ADOPTABLE_SECONDS

    def _adopt(self, item: Item, others: list[Item], ghosts: list[Item]) -> Item | None:
        self.item, self.errors_since = item, None
        is_complete = item["status"] in COMPLETE
        if is_complete and others:
            self.crowded_since = self.crowded_since or self.now
        else:
            self.crowded_since = None
        for other in others:
            # Cinder would accept to delete a volume that is `creating`, and leave its image behind forever.
            if other["status"] in DELETABLE:
                self.client.delete(self.kind, other)
        if not self._is_claimed(item):
            self._claim(item)
            return None
        is_settled = is_complete and self.now - self.claimed_at >= CLAIM_STANDS_SECONDS
        is_alone = self.crowded_since is None or self.now - self.crowded_since >= CROWDED_SECONDS
        if not (is_settled and is_alone):
            return None
        for other in [*others, *ghosts]:
            self.client.rename(self.kind, other, UNWANTED)
        return item

    def _is_claimed(self, item: Item) -> bool:
        claims = {self.claim, PERMANENT} if self.permanent else {self.claim}
        return item["metadata"].get("portal_claim") in claims or self._claim_key(item) in self.claimed

    def _claim(self, item: Item) -> None:
        """Claim it now, and again when it is complete, because Cinder resets the metadata then.

        Not more often: two calls that kept taking it from each other would never finish.
        """
        is_final = self.permanent and item["status"] in COMPLETE
        self.client.label(self.kind, item, portal_claim=PERMANENT if is_final else self.claim)
        if item["name"] == UNWANTED:
            self.client.rename(self.kind, item, name_of(self.uuid))
        self.claimed.add(self._claim_key(item))
        self.claimed_at = self.now

    def _claim_key(self, item: Item) -> tuple[str, bool]:
        return item["id"], item["status"] in COMPLETE

    def _discard(self, errors: list[Item]) -> None:
        self.errors_since = self.errors_since or self.now
        if self.now - self.errors_since < ERROR_STANDS_SECONDS:
            return
        self.errors_since = None
        reason = self.client.failure_reason(errors[0])
        for item in errors:
            self.client.rename(self.kind, item, UNWANTED)  # storage that hangs may fail to delete it
            self.client.delete(self.kind, item)
        is_ours = [
            self._claim_key(item) in self.claimed or item["metadata"].get("portal_claim") == self.claim
            for item in errors
        ]
        if any(is_ours):
            raise self.client.cloud.failed(reason)

    def _request(self, check: Callable[[], None]) -> None:
        check()
        metadata = {"portal_uuid": str(self.uuid), "portal_claim": self.claim}
        body = self.body | {"name": name_of(self.uuid), "metadata": metadata}
        self.requested_at = self.now
        try:
            self.ref = self.client.request("POST", f"/{self.kind}s", json={self.kind: body})[self.kind]["id"]
        except Unavailable as error:
            self.lost_answer, self.requested_at = error, time.monotonic()
        else:
            self.claimed.add((self.ref, False))


def remove_claimed(client: Client, kind: Kind, uuids: Sequence[UUID], claim: str) -> None:
    """Remove the items with this claim within CLEAN_UP_SECONDS, and mark those that can't be removed yet as unwanted.

    It is called while another exception propagates, so its own failures are only logged.
    """
    end = time.monotonic() + CLEAN_UP_SECONDS
    for uuid in uuids:
        items: list[Item] = []
        try:
            for _now in client.poll(max(1.0, end - time.monotonic())):
                items = [
                    item
                    for item in find_all(client, kind, uuid)
                    if item["metadata"].get("portal_claim") == claim and item["status"] != "error_deleting"
                ]
                if not items:
                    break
                for item in items:
                    if item["status"] in {"available", "error"}:
                        client.delete(kind, item)
            else:
                for item in items:
                    client.rename(kind, item, UNWANTED)
        except StorageError:
            logger.warning("cinder.cleanup_failed", uuid=str(uuid), location=client.cloud.location)
