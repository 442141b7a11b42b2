"""The inventory of an OpenStack cloud: its projects, and their volumes, snapshots and servers."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from ..inventory import CloudProjectInfo, CloudServer, CloudSnapshot, CloudVolume, Inventory, ProjectUsage
from .client import BadRequest, Client, Cloud, Item, Missing
from .creation import COMPLETE, UNWANTED

# Servers in these states don't write to their volumes.
NOT_RUNNING = {"SHUTOFF", "SHELVED", "SHELVED_OFFLOADED"}
BEING_CREATED = {"creating", "downloading"}


class CinderInventory(Inventory):
    cloud: Cloud

    def list_projects(self) -> list[CloudProjectInfo]:
        """List the projects in which the account has a direct or inherited role. An application credential has only one."""
        client = Client(self.cloud)
        with self._list_errors(), client.credentials_errors():
            cloud = client.session().cloud
            ref, name = client.run(lambda: (cloud.current_project_id, cloud.current_project.name))
            if str(cloud.config.config.get("auth_type", "")).endswith("applicationcredential"):
                return [CloudProjectInfo(ref=ref, name=name or "", is_own=True)]
            projects = client.request("GET", "/auth/projects", service="identity")["projects"]
        return [
            CloudProjectInfo(ref=project["id"], name=project["name"], is_own=project["id"] == ref)
            for project in projects
            if project.get("enabled", True)
        ]

    def get_usage(self, backend_project: str) -> ProjectUsage:
        with self._list_errors():
            limits = Client(self.cloud, backend_project).request("GET", "/limits")["limits"]["absolute"]
        return ProjectUsage(
            volumes=limits["totalVolumesUsed"],
            volume_quota=limits["maxTotalVolumes"],
            snapshots=limits["totalSnapshotsUsed"],
            snapshot_quota=limits["maxTotalSnapshots"],
            gb=limits["totalGigabytesUsed"],
            gb_quota=limits["maxTotalVolumeGigabytes"],
        )

    def volume_pages(self, backend_project: str) -> Iterator[list[CloudVolume]]:
        with self._list_errors():
            for page in Client(self.cloud, backend_project, patient=True).pages("volumes"):
                yield [
                    describe_volume(item)
                    for item in page
                    if item["name"] != UNWANTED and item["status"] not in {"deleting", "error_deleting"}
                ]

    def snapshot_pages(self, backend_project: str) -> Iterator[list[CloudSnapshot]]:
        with self._list_errors():
            for page in Client(self.cloud, backend_project, patient=True).pages("snapshots"):
                yield [
                    CloudSnapshot(
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

    def server_pages(self, backend_project: str) -> Iterator[list[CloudServer]] | None:
        client = Client(self.cloud, backend_project, patient=True)
        with client.credentials_errors():
            cloud = client.session().cloud
            if client.run(lambda: cloud.endpoint_for("compute")) is None:
                return None
        return self._pages_of_servers(client)

    def _pages_of_servers(self, client: Client) -> Iterator[list[CloudServer]]:
        with self._list_errors():
            for page in client.pages("servers", service="compute"):
                yield [
                    CloudServer(
                        ref=item["id"],
                        name=item["name"] or "",
                        is_running=item["status"] not in NOT_RUNNING,
                        vcpus=item["flavor"].get("vcpus", 0),
                        memory_mb=item["flavor"].get("ram", 0),
                        created_at=read_instant(item["created"]),
                    )
                    for item in page
                    if item["status"] not in {"DELETED", "SOFT_DELETED"}
                ]

    @contextlib.contextmanager
    def _list_errors(self) -> Iterator[None]:
        """Report errors that a service never returns for a list, but a proxy in front of it may."""
        try:
            yield
        except (Missing, BadRequest, KeyError) as error:
            raise self.cloud.unavailable() from error


def describe_volume(item: Item) -> CloudVolume:
    attachment: Item = next(iter(item["attachments"]), {})
    device = re.search(r"([a-z]+)\d*$", (attachment.get("device") or "").rpartition("/")[2])
    letters = device[1][2:] if device and len(device[1]) > 2 else "a"  # of vda, sdb, vdaa
    position = 0
    for letter in letters:
        position = position * 26 + ord(letter) - ord("a") + 1
    return CloudVolume(
        ref=item["id"],
        name=item["name"] or "",
        size_gb=item["size"],
        is_ready=not item["status"].startswith("error") and item["status"] not in BEING_CREATED,
        is_creating=item["status"] in BEING_CREATED,
        server_ref=attachment.get("server_id") or "",
        position=min(position - 1, 32767),
        portal_uuid=read_portal_uuid(item),
        created_at=read_instant(item["created_at"]),
    )


def read_instant(text: str) -> datetime:
    """Parse an instant in UTC: Cinder's have no time zone, Nova's end in Z."""
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)


def read_portal_uuid(item: Item) -> UUID | None:
    """Return our uuid from the metadata, or from the name if Cinder has lost them."""
    text = item["metadata"].get("portal_uuid") or (item["name"] or "").removeprefix("snapshot-portal-")
    try:
        return UUID(text)
    except ValueError:
        return None
