"""The description that is stored beside a snapshot's bytes, as `manifest.json`."""

import json
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from uuid import UUID

from ..contract import VERIFICATION_VALID_FOR, SnapshotInfo

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Instants are ISO 8601 in UTC.

    Format 1 had `blake3`, a plain digest of all bytes, in place of `checksum`, which says how it was computed.
    """

    format: int = FORMAT
    snapshot_uuid: str
    volume_uuid: str
    volume_name: str
    size_bytes: int
    allocated_bytes: int  # shared blocks of a clone are counted in full
    checksum: str | None  # see checksums.py
    captured_at: str
    method: str  # "clone" or "copy"
    verified_at: str | None = None
    capture: str  # the same for everything that one call captured
    group: list[str]  # the uuids of the snapshots that one call captured

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """Raises ValueError for anything that `dump` did not write."""
        try:
            content = json.loads(text)
            if content["format"] == 1:
                content = content | {"format": FORMAT, "checksum": content["blake3"]}
                del content["blake3"]
            manifest = cls(**content)
            captured_at = datetime.fromisoformat(manifest.captured_at)
            verified_at = datetime.fromisoformat(manifest.verified_at or manifest.captured_at)
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(str(error)) from error
        texts = [manifest.checksum or "", manifest.volume_uuid, manifest.capture]
        sizes = [manifest.size_bytes, manifest.allocated_bytes]
        if (
            manifest.format != FORMAT
            or captured_at.tzinfo is None
            or verified_at.tzinfo is None
            or not isinstance(manifest.group, list)
            or not all(isinstance(text, str) for text in (*texts, *manifest.group))
            or not all(isinstance(size, int) for size in sizes)
        ):
            raise ValueError("unknown format")
        return manifest

    def dump(self) -> str:
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, indent=2) + "\n"

    def as_info(self) -> SnapshotInfo:
        return SnapshotInfo(
            uuid=UUID(self.snapshot_uuid),
            backend_ref="",
            size_bytes=self.size_bytes,
            allocated_bytes=self.allocated_bytes,
            checksum=self.checksum or "",
            captured_at=datetime.fromisoformat(self.captured_at),
            verified_at=datetime.fromisoformat(self.verified_at) if self.verified_at else None,
        )

    def is_verified_recently(self, now: datetime) -> bool:
        """False also if it was verified in the future, before the clock was set back."""
        if not self.checksum or not self.verified_at:
            return False
        return timedelta() <= now - datetime.fromisoformat(self.verified_at) < VERIFICATION_VALID_FOR
