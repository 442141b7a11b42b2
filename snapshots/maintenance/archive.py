"""The file that `manage.py backup` writes: a tar of the database and the snapshots' manifests.

Members in order: `head.json` (see Header), `database` (an SQLite database, or pg_dump's custom format), `manifests.jsonl`,
`secret_key` on request, and `checksums.json`, which comes last so that an incomplete file is noticed. The data of volumes
and snapshots is not in it: it belongs to the storage.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from blake3 import blake3
from django.utils import timezone
from django.utils.translation import gettext as _

from ..storage.files import NotRegularFile, open_regular_file

FORMAT = 1
HEAD, DATABASE, MANIFESTS = "head.json", "database", "manifests.jsonl"
SECRET, CHECKSUMS = "secret_key", "checksums.json"
CHUNK = 2**20
MAX_MANIFEST_LINE = 4 * CHUNK  # A manifest has at most a MiB, before its quotes are escaped.


class BackupError(Exception):
    """A backup or restore was refused or failed; the message is for the operator. Nothing was changed."""


@dataclass(frozen=True)
class Header:
    taken_at: datetime
    database: str  # Django's vendor name
    migrations: set[str]  # "app.name"

    def dump(self) -> bytes:
        content = {
            "format": FORMAT,
            "taken_at": self.taken_at.isoformat(),
            "database": self.database,
            "migrations": sorted(self.migrations),
        }
        return json.dumps(content, indent=2).encode()

    @classmethod
    def parse(cls, data: bytes) -> "Header":
        """Raises ValueError for anything that `dump` didn't write, BackupError for a newer format."""
        content = parse_object(data, format=int)
        if content["format"] > FORMAT:
            raise newer_version(_("format %(number)s") % {"number": content["format"]})
        content = parse_object(data, taken_at=str, database=str, migrations=list)
        taken_at, migrations = datetime.fromisoformat(content["taken_at"]), content["migrations"]
        if not all(isinstance(migration, str) for migration in migrations) or taken_at.tzinfo is None:
            raise ValueError("not a header")
        return cls(taken_at, content["database"], set(migrations))


def parse_object(data: bytes, **fields: type) -> dict[str, Any]:
    """Parse a JSON object that has these fields with these types. Raises ValueError."""
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not an object")
    if wrong := [name for name, expected in fields.items() if not isinstance(content.get(name), expected)]:
        raise ValueError(f"missing or of another type: {wrong}")
    return content


class HashingReader:
    """Hashes all data read through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hasher = file, blake3()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.hasher.update(data)
        return data


def write_archive(file: IO[bytes], header: Header, members: dict[str, Path]) -> None:
    """Write the header, the members and their checksums."""
    data = header.dump()
    with tarfile.open(fileobj=file, mode="w") as tar:
        checksums = {HEAD: add(tar, HEAD, io.BytesIO(data), len(data))}
        for name, path in members.items():
            with open(path, "rb") as content:
                checksums[name] = add(tar, name, content, path.stat().st_size)
        data = json.dumps(checksums).encode()
        add(tar, CHECKSUMS, io.BytesIO(data), len(data))


def add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> str:
    """Add a member and return its checksum."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(timezone.now().timestamp()), 0o600
    reader = HashingReader(content)
    tar.addfile(member, reader)  # type: ignore[arg-type]  # It only calls read.
    return reader.hasher.hexdigest()


def manifest_line(location: str, uuid: UUID, text: str) -> str:
    return json.dumps({"location": location, "uuid": str(uuid), "text": text}) + "\n"


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[Header, tarfile.TarFile]]:
    """Open the file once every checksum matches. Raises BackupError."""
    try:
        descriptor = open_regular_file(path)
    except NotRegularFile as error:
        raise BackupError(_("%(path)s is not a regular file.") % {"path": path}) from error
    except OSError as error:
        raise unreadable(path, error) from error
    with open(descriptor, "rb") as file:
        header = check_archive(file, path)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield header, tar


def check_archive(file: IO[bytes], path: Path) -> Header:
    """Read everything, compare the checksums and return the header. Raises BackupError."""
    damaged = BackupError(
        _("%(path)s is damaged or incomplete: its checksums don't match. Use another backup.") % {"path": path}
    )
    checksums: dict[str, str] = {}
    expected: dict[str, Any] = {}
    header = b""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is None or member.name in checksums:
                    raise damaged
                if member.name == CHECKSUMS:
                    expected = parse_object(content.read(CHUNK))
                    continue
                reader = HashingReader(content)
                if member.name == HEAD:
                    header = reader.read(CHUNK)
                while reader.read(CHUNK):
                    pass
                checksums[member.name] = reader.hasher.hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise damaged from error
    if checksums != expected or not {HEAD, DATABASE, MANIFESTS} <= checksums.keys():
        raise damaged
    try:
        return Header.parse(header)
    except ValueError as error:
        raise not_a_backup(path) from error


@contextmanager
def open_member(tar: tarfile.TarFile, name: str) -> Iterator[IO[bytes]]:
    content = tar.extractfile(name)
    assert content is not None  # check_archive has read it.
    with content:
        yield content


def read_manifests(lines: IO[bytes]) -> Iterator[tuple[str, UUID, str]]:
    """Yield the location, uuid and text of each manifest. Raises ValueError."""
    while line := lines.readline(MAX_MANIFEST_LINE):
        content = parse_object(line, location=str, uuid=str, text=str)
        yield content["location"], UUID(content["uuid"]), content["text"]


def unreadable(path: Path, error: OSError) -> BackupError:
    return BackupError(_("%(path)s can't be read: %(reason)s.") % {"path": path, "reason": error.strerror or error})


def not_a_backup(path: Path) -> BackupError:
    return BackupError(_("%(path)s wasn't written by the portal. Use another backup.") % {"path": path})


def newer_version(feature: str) -> BackupError:
    return BackupError(
        _(
            "The backup was made by a newer version of the portal (it has %(feature)s). Install that version, then restore."
        )
        % {"feature": feature}
    )
