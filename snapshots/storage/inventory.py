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
class FoundProject:
    ref: str
    name: str
    is_own: bool  # the one in which the engine works when it is told none


@dataclass(frozen=True, kw_only=True)
class Use:
    """How much of its quotas a project uses; a quota of -1 is unlimited."""

    volumes: int
    volume_quota: int
    snapshots: int
    snapshot_quota: int
    gb: int  # GiB of volumes and snapshots together
    gb_quota: int


@dataclass(frozen=True, kw_only=True)
class FoundVolume:
    ref: str
    name: str
    size_gb: int  # GiB
    is_ready: bool  # to be captured and attached
    is_being_made: bool
    server_ref: str  # what it is attached to, or ""
    position: int  # in the server; 0 is its first disk
    portal_uuid: UUID | None  # of ours, when the portal made it
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class FoundSnapshot:
    ref: str
    name: str
    volume_ref: str
    size_gb: int
    portal_uuid: UUID | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class FoundServer:
    ref: str
    name: str
    is_running: bool
    vcpus: int  # 0 where the cloud does not tell
    memory_mb: int
    created_at: datetime


class Inventory(ABC):
    """Everything raises Unavailable, or Refused where the account may not look."""

    @abstractmethod
    def find_projects(self) -> list[FoundProject]:
        """Every project in which the portal's account has a role."""

    @abstractmethod
    def use_of(self, backend_project: str) -> Use: ...

    @abstractmethod
    def pages_of_volumes(self, backend_project: str) -> Iterator[list[FoundVolume]]:
        """What is being deleted, and what the portal itself wants to get rid of, is left out. One may come twice."""

    @abstractmethod
    def pages_of_snapshots(self, backend_project: str) -> Iterator[list[FoundSnapshot]]:
        """Those that are complete."""

    @abstractmethod
    def pages_of_servers(self, backend_project: str) -> Iterator[list[FoundServer]] | None:
        """None where the cloud has no servers that it could tell of, only volumes that are attached to some."""
