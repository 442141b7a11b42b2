"""Requests to the services of an OpenStack cloud: sign-in, pages, retries, and the errors that answers stand for."""

import contextlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import structlog
from django.utils.translation import gettext as _

from ..contract import (
    Busy,
    Denied,
    Heartbeat,
    NotAccepted,
    QuotaReached,
    Refused,
    StorageError,
    TooSlow,
    Unavailable,
    no_heartbeat,
)

try:
    import openstack
    from keystoneauth1.exceptions import ClientException, EndpointNotFound, Unauthorized
    from keystoneauth1.exceptions.discovery import ImpliedVersionMismatch
    from openstack.exceptions import SDKException
except ImportError as error:
    raise ImportError("openstacksdk is not installed; it is in requirements-openstack.txt") from error

logger = structlog.stdlib.get_logger(__name__)

Response = Any  # of requests, which openstacksdk is built on; its exceptions never reach us
Result = TypeVar("Result")
Kind = Literal["volume", "snapshot"]
Service = Literal["volume", "compute", "identity"]
Version = tuple[int, int]
Item = dict[str, Any]  # a volume or a snapshot as Cinder describes it

# The newest microversion that this was tested with; older clouds get their own newest.
NEWEST: Version = (3, 71)
MESSAGES: Version = (3, 5)
# Nova reports the size of a server's flavour since 2.47.
OTHER_SERVICES: dict[str, dict[str, str]] = {"compute": {"microversion": "2.47"}, "identity": {}}

PAGE_SIZE = 500
MAX_MARKERS = 20
MAX_SESSIONS = 32
CONNECT_SECONDS = 5.0
# A patient client retries reads for this long while the service does not answer.
PATIENCE_SECONDS = 30.0


class BadRequest(Exception):
    """Cinder answered 400: `str(error)` is its own explanation."""


class Missing(Exception):
    """Cinder answered 404."""


class Unauthenticated(Exception):
    """The account or its token was rejected."""


@dataclass(frozen=True)
class Session:
    """A connection that is signed in to one project."""

    process: int
    cloud: Any
    service: Any
    version: Version  # the microversion that it uses


class Cloud:
    """One cloud of `clouds.yaml`, with a session for each of the projects that were used last."""

    def __init__(self, *, location: str, name: str, region: str, request_seconds: float) -> None:
        self.location, self.name, self.region, self.request_seconds = location, name, region, request_seconds
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # by project, the most recently used last
        self._lock = threading.RLock()

    def connect(self, project: str = "") -> Session:
        """Return this process's session of the project, "" being that of `clouds.yaml`.

        Signing in takes a second or two the first time. Raises whatever openstacksdk raises.
        """
        with self._lock:
            session = self._sessions.get(project)
            if session is None or session.process != os.getpid():
                session = self._sessions[project] = self._sign_in(project)
                while len(self._sessions) > MAX_SESSIONS:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end(project)
            return session

    def disconnect(self) -> None:
        with self._lock:
            self._sessions.clear()

    def _sign_in(self, project: str) -> Session:
        if project:
            cloud = self.connect().cloud
        else:
            cloud = openstack.connect(
                cloud=self.name or None, region_name=self.region or None, app_name="snapshot-portal"
            )
        if project and project != cloud.current_project_id:
            cloud = cloud.connect_as(project_id=project)
        service = cloud.block_storage
        endpoint = service.get_endpoint_data()
        if endpoint is None:
            raise EndpointNotFound("no block storage in this region")
        major, minor = endpoint.max_microversion or (3, 0)
        return Session(os.getpid(), cloud, service, min(NEWEST, (int(major), int(minor))))

    def error(self, kind: type[StorageError], message: str, **values: object) -> StorageError:
        """Return an error whose message may name the `%(location)s`."""
        return kind(message % {"location": self.location, **values})

    def unavailable(self) -> StorageError:
        return self.error(
            Unavailable,
            _(
                "The storage of %(location)s does not answer. Try again later; if this continues, contact your "
                "provider."
            ),
        )

    def failed(self, reason: str, *, timed_out: bool = False) -> StorageError:
        """Return the error for something that ended in `error`, or that was not done in time."""
        if reason:
            message = _(
                "The storage of %(location)s failed: %(reason)s. Try again later; if this continues, contact your "
                "provider."
            )
            return self.error(Unavailable, message, reason=reason)
        if timed_out:
            message = _(
                "The storage of %(location)s did not finish in time. Try again later; if this continues, contact "
                "your provider."
            )
            return self.error(TooSlow, message)
        message = _(
            "The storage of %(location)s failed without a reason. Try again later; if this continues, contact "
            "your provider."
        )
        return self.error(Unavailable, message)

    def refused(self, error: BadRequest) -> StorageError:
        return self.error(
            Refused,
            _("The storage of %(location)s refused this: %(reason)s. Contact your provider if you do not know why."),
            reason=str(error).strip().rstrip(".") or "400",
        )


class Client:
    """Requests in one project on behalf of one call of the driver, whose heartbeat continues meanwhile.

    `patient`: reads are retried while the service does not answer, for PATIENCE_SECONDS.
    """

    def __init__(
        self,
        cloud: Cloud,
        project: str = "",
        heartbeat: Heartbeat = no_heartbeat,
        *,
        total: int = 0,
        patient: bool = False,
    ) -> None:
        self.cloud, self.project, self.patient = cloud, project, patient
        self.heartbeat, self.done, self.total = heartbeat, 0, total

    # Progress and waiting

    def beat(self, done: int = 0) -> None:
        """Report progress, after `done` more bytes. Raises whatever the heartbeat raises."""
        self.done += done
        self.heartbeat(self.done, self.total)

    def poll(self, seconds: float) -> Iterator[float]:
        """Yield the time (monotonic) with growing pauses, until that many seconds have passed."""
        pause, end = 0.15, time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            yield now
            self.pause(pause)
            pause = min(pause * 1.4, 5.0)

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.beat()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.4))
            self.beat()

    # Volumes and snapshots

    @property
    def version(self) -> Version:
        """The microversion in use. Raises Unavailable."""
        return self.session().version

    def session(self) -> Session:
        """Raises Unavailable."""
        with self.credentials_errors():
            return self.run(lambda: self.cloud.connect(self.project))

    def get(self, kind: Kind, ref: str) -> Item | None:
        try:
            return self.request("GET", f"/{kind}s/{quote(ref, safe='')}")[kind]
        except (Missing, BadRequest):  # 400: not an id of Cinder's
            return None

    def items(self, kind: Kind, **filters: str) -> Iterator[Item]:
        """Yield all items of a kind, page by page. A cloud may ignore filters that it doesn't support."""
        for page in self.pages(f"{kind}s", filters):
            yield from page

    def pages(
        self, collection: str, filters: dict[str, str] | None = None, service: Service = "volume"
    ) -> Iterator[list[Item]]:
        page: list[Item] = []
        while True:
            # Deleted meanwhile, the last item of a page can't be its marker. An earlier one repeats some items.
            for marker in [*page[: -MAX_MARKERS - 1 : -1], None]:
                params = {**(filters or {}), "limit": str(PAGE_SIZE)} | ({"marker": marker["id"]} if marker else {})
                with contextlib.suppress(Missing, BadRequest) if marker else contextlib.nullcontext():
                    answer = self.request("GET", f"/{collection}/detail", params=params, service=service)
                    break
            page = answer[collection]
            yield page
            if not page or not answer.get(f"{collection}_links"):
                return

    def delete(self, kind: Kind, item: Item) -> bool:
        """Request the deletion. False when it is gone, or can't be deleted in its state.

        What Cinder failed to create or delete can only be deleted by force. That is an administrator's right, unless the
        cloud's policy grants `volume_extension:snapshot_admin_actions:force_delete` to the portal's account.
        """
        by_force = item["status"] in {"error_deleting", "creating"}
        try:
            if by_force:
                self.act(kind, item, "os-force_delete")
            else:
                self.request("DELETE", f"/{kind}s/{item['id']}")
        except (Missing, BadRequest):
            return False
        except Refused as error:
            if not by_force:
                raise
            raise Refused(
                _(
                    "The storage failed to delete this, and only its administrator can try that again. "
                    "Contact your provider."
                )
            ) from error
        return True

    def act(self, kind: Kind, item: Item, action: str, **arguments: object) -> None:
        self.request("POST", f"/{kind}s/{item['id']}/action", json={action: arguments})

    def label(self, kind: Kind, item: Item, **metadata: str) -> None:
        self._edit("POST", f"/{kind}s/{item['id']}/metadata", {"metadata": metadata})

    def rename(self, kind: Kind, item: Item, name: str) -> None:
        self._edit("PUT", f"/{kind}s/{item['id']}", {kind: {"name": name}})

    def _edit(self, method: str, path: str, body: Item) -> None:
        try:
            self.request(method, path, json=body)
        except (Missing, BadRequest):
            logger.info("cinder.edit_failed", method=method, path=path)

    def failure_reason(self, item: Item) -> str:
        """Return Cinder's user message about a failure, or ""."""
        try:
            if self.version < MESSAGES:
                return ""
            messages = self.request("GET", f"/messages?resource_uuid={item['id']}")["messages"]
        except (Missing, BadRequest, StorageError):
            return ""
        newest = max(messages, key=lambda message: message["created_at"], default=None)
        # "schedule allocate volume:Could not find any available weighted backend."
        return newest["user_message"].strip().rstrip(".").replace(":", ": ", 1) if newest else ""

    # Requests

    def request(self, method: str, path: str, *, service: Service = "volume", **options: Any) -> Item:
        """Return the answer's JSON. Raises Missing, BadRequest, Busy, Refused, Unavailable."""
        until = time.monotonic() + (PATIENCE_SECONDS if self.patient and method == "GET" else 0.0)
        while True:
            try:
                return self._send(method, path, service, options)
            except Unavailable:
                if time.monotonic() >= until:
                    raise
            self.pause(1.0)

    def _send(self, method: str, path: str, service: Service, options: dict[str, Any]) -> Item:
        def send() -> Response:
            session = self.cloud.connect(self.project)
            if service == "volume":
                adapter, headers = session.service, {"microversion": "{}.{}".format(*session.version)}
            else:
                adapter, headers = getattr(session.cloud, service), OTHER_SERVICES[service]
            return adapter.request(
                path,
                method,
                timeout=(CONNECT_SECONDS, self.cloud.request_seconds),
                connect_retries=0,  # a POST whose connection broke may have been processed
                status_code_retries=0,
                raise_exc=False,
                **headers,
                **options,
            )

        def attempt() -> Item:
            self.beat()
            return self._read(method, path, self.run(send, complete=method != "GET"))

        try:
            return attempt()
        except Unauthenticated:  # even with keystoneauth's new token; the password may have changed
            self.cloud.disconnect()
        with self.credentials_errors():
            return attempt()

    def _read(self, method: str, path: str, response: Response) -> Item:
        if response.ok:
            try:
                return response.json() if response.content else {}
            except ValueError as error:  # a proxy answered
                raise self.cloud.unavailable() from error
        status, reason = response.status_code, read_reason(response)
        if status == 404:
            raise Missing
        logger.info(
            "cinder.request_failed",
            method=method,
            path=path.partition("?")[0],
            location=self.cloud.location,
            status=status,
            reason=reason,
        )
        if status == 401:
            raise Unauthenticated
        if status == 413 and response.headers.get("Retry-After", "0") == "0" or "quota" in reason.lower():
            raise QuotaReached(describe_quota(reason))
        if status == 400:
            raise BadRequest(reason)
        if status == 403:
            message = _(
                "The portal's account isn't allowed to do this in the storage of %(location)s. Contact your provider."
            )
            raise self.cloud.error(Denied, message)
        if status == 409:
            raise Busy(_("Another operation is using this in the storage right now. Try again when it has finished."))
        raise self.cloud.unavailable()

    @contextlib.contextmanager
    def credentials_errors(self) -> Iterator[None]:
        try:
            yield
        except Unauthenticated as error:
            message = _("The storage of %(location)s does not accept the portal's account. Contact your provider.")
            raise self.cloud.error(NotAccepted, message) from error

    def run(self, call: Callable[[], Result], *, complete: bool = False) -> Result:
        """Return the result of a call that may block, while heartbeats continue.

        With `complete` an interruption waits for the answer: what was requested must be known before it can be undone.
        Raises Unauthenticated, Unavailable.
        """
        future: Future[Result] = Future()
        interruption: BaseException | None = None

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        if self.heartbeat is no_heartbeat:
            work()
        else:
            threading.Thread(target=work, name=f"cinder-{self.cloud.location}", daemon=True).start()
        while not wait([future], timeout=0.4).done:
            try:
                self.beat()
            except BaseException as error:
                if not complete:
                    raise
                interruption = interruption or error
        if interruption:
            raise interruption
        try:
            return future.result()
        except Unauthorized as error:
            raise Unauthenticated from error
        except (ClientException, SDKException, ImpliedVersionMismatch) as error:
            # Only the name, because the text may contain addresses.
            logger.warning("cinder.unavailable", location=self.cloud.location, error=type(error).__name__)
            raise self.cloud.unavailable() from error


def read_reason(response: Response) -> str:
    """Return Cinder's own explanation of a failure, {"badRequest": {"code": 400, "message": …}}, or ""."""
    try:
        [fault] = response.json().values()
        return str(fault["message"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return ""


def describe_quota(reason: str) -> str:
    if match := re.search(r"Maximum number of \w+ allowed \((\d+)\)", reason):
        return _(
            "The quota of the storage allows %(count)s of these and all are used. Delete some that you do not need, or ask "
            "your provider for more."
        ) % {"count": match[1]}
    if match := re.search(r"Requested (\d+)G, quota is (\d+)G and (\d+)G", reason):
        return _(
            "The quota of the storage allows %(quota)s GB, of which %(used)s GB are used and %(needed)s GB more would be "
            "needed. Delete what you do not need, or ask your provider for more."
        ) % {"needed": match[1], "quota": match[2], "used": match[3]}
    return _("The quota of the storage is used up. Delete what you do not need, or ask your provider for more.")
