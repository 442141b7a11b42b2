"""Every entry of a disk's readable parts, sorted by path: what a snapshot's catalogue is made of.

A record is the path, NUL, and `kind size changed_at inode mode` (bytes, microseconds since 1970, octal). A path starts with
its part's number; its names are joined by `/`. Records are joined by two NULs, which neither side of a record can contain.
"""

from collections.abc import Iterator
from time import monotonic
from typing import Any

from . import MAX_RECORD, SEPARATOR, clean
from .disk import Part, find_parts
from .entries import FOLDER, Damaged, Entry
from .walking import Walk

MAX_ENTRIES = 2_000_000  # sorting them takes about half of the child's memory
MAX_SECONDS = 600
REPORT_EVERY = 1.0  # seconds
PIECE = 10_000  # records


def read_catalogue(image: int, size: int, request: dict[str, Any]) -> Iterator[dict[str, Any] | bytes]:
    """Answer {"entries"} about once a second, then a summary with the size of the records, then these."""
    records: list[bytes] = []
    parts = []
    is_complete = True
    until = monotonic() + MAX_SECONDS
    for index, part in enumerate(find_parts(image, size)):
        summary = {"part": index, "entries": 0, "files": 0, "unread": 0, "is_readable": part.is_readable}
        parts.append(summary)
        if not part.is_readable:
            continue
        for entries in add_records(records, index, part, summary, until):
            yield {"entries": entries}
        is_complete = is_complete and bool(summary.pop("is_complete"))
    records.sort()
    total = sum(map(len, records)) + len(SEPARATOR) * max(0, len(records) - 1)
    yield {"size": total, "parts": parts, "is_complete": is_complete}
    for start in range(0, len(records), PIECE):
        yield (SEPARATOR if start else b"") + SEPARATOR.join(records[start : start + PIECE])


def add_records(records: list[bytes], index: int, part: Part, summary: dict[str, Any], until: float) -> Iterator[int]:
    """Add the part's records, and yield their number so far about once a second."""
    summary["is_complete"] = True
    try:
        system = part.open()
        walk = Walk(system, system.root, max_entries=MAX_ENTRIES - len(records), seconds=until - monotonic())
    except (Damaged, OSError):
        summary["unread"] = 1
        return
    reported_at = monotonic()
    before, files, too_long = len(records), 0, 0
    # Joining every path from its names would be most of the work.
    base: tuple[bytes, ...] | None = None
    prefix = b""
    for path, entry in walk:
        if not entry.name:
            continue
        if path[:-1] != base:
            base = path[:-1]
            prefix = b"".join([b"%d/" % index, *(clean(name) + b"/" for name in base)])
        record = describe(prefix + clean(entry.name), entry)
        if len(record) > MAX_RECORD:
            too_long += 1
            continue
        records.append(record)
        files += entry.kind != FOLDER
        if not len(records) % 1000 and monotonic() - reported_at > REPORT_EVERY:
            reported_at = monotonic()
            yield len(records)
    summary.update(
        entries=len(records) - before,
        files=files,
        unread=len(walk.unread) + too_long,
        is_complete=walk.is_complete,
    )


def describe(path: bytes, entry: Entry) -> bytes:
    return b"%s\0%s %d %d %d %o" % (
        path,
        entry.kind.encode(),
        entry.size,
        round(entry.changed_at * 1_000_000),
        entry.id,
        entry.mode,
    )
