"""The inventory of a cloud: its projects, and their volumes, snapshots and servers.

snapshots/cloudsync reads it to keep the portal up to date. Lists come in pages, to limit memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class CloudProjectInfo:
    ref: str
    name: str
    is_own: bool  # the one that the engine uses by default


@dataclass(frozen=True, kw_only=True)
class ProjectUsage:
    """A project's quotas and their use. A quota of -1 is unlimited."""

    volumes: int
    volume_quota: int
    snapshots: int
    snapshot_quota: int
    gb: int  # GiB of volumes and snapshots together
    gb_quota: int


@dataclass(frozen=True, kw_only=True)
class CloudVolume:
    ref: str
    name: str
    size_gb: int  # GiB
    is_ready: bool  # can be captured and attached
    is_creating: bool
    server_ref: str  # the server that it is attached to, or ""
    position: int  # among the server's disks; 0 is the first
    portal_uuid: UUID | None  # our uuid, if the portal created it
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class CloudSnapshot:
    ref: str
    name: str
    volume_ref: str
    size_gb: int
    portal_uuid: UUID | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class CloudServer:
    ref: str
    name: str
    is_running: bool
    vcpus: int  # 0 where the cloud doesn't tell
    memory_mb: int
    created_at: datetime


class Inventory(ABC):
    """Every method raises Unavailable, and Refused where the account has no permission."""

    @abstractmethod
    def list_projects(self) -> list[CloudProjectInfo]:
        """List every project in which the portal's account has a role."""

    @abstractmethod
    def get_usage(self, backend_project: str) -> ProjectUsage: ...

    @abstractmethod
    def volume_pages(self, backend_project: str) -> Iterator[list[CloudVolume]]:
        """List the volumes, except those being deleted and the portal's own orphans. One may come twice."""

    @abstractmethod
    def snapshot_pages(self, backend_project: str) -> Iterator[list[CloudSnapshot]]:
        """List the complete snapshots."""

    @abstractmethod
    def server_pages(self, backend_project: str) -> Iterator[list[CloudServer]] | None:
        """List the servers. None where the cloud has no compute service, so that only attachments are known."""
