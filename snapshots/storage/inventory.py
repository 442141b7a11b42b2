"""What an engine that knows volumes of its own tells of them: cloud projects, their volumes, snapshots and servers.

snapshots/cloudsync reads it to keep the portal up to date. Lists come in pages, so that thousands of
things need no more memory than a page of them.
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
    is_own: bool  # the one in which the engine works when it is told none


@dataclass(frozen=True, kw_only=True)
class ProjectUsage:
    """How much of its quotas a project uses; a quota of -1 is unlimited."""

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
    is_ready: bool  # to be captured and attached
    is_creating: bool
    server_ref: str  # what it is attached to, or ""
    position: int  # in the server; 0 is its first disk
    portal_uuid: UUID | None  # of ours, when the portal made it
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
    vcpus: int  # 0 where the cloud does not tell
    memory_mb: int
    created_at: datetime


class Inventory(ABC):
    """Everything raises Unavailable, or Refused where the account may not look."""

    @abstractmethod
    def list_projects(self) -> list[CloudProjectInfo]:
        """Every project in which the portal's account has a role."""

    @abstractmethod
    def get_usage(self, backend_project: str) -> ProjectUsage: ...

    @abstractmethod
    def volume_pages(self, backend_project: str) -> Iterator[list[CloudVolume]]:
        """What is being deleted, and what the portal itself wants to get rid of, is left out. One may come twice."""

    @abstractmethod
    def snapshot_pages(self, backend_project: str) -> Iterator[list[CloudSnapshot]]:
        """Those that are complete."""

    @abstractmethod
    def server_pages(self, backend_project: str) -> Iterator[list[CloudServer]] | None:
        """None where the cloud has no servers that it could tell of, only volumes that are attached to some."""
