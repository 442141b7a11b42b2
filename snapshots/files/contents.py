"""Hashes of files' contents, made when two snapshots are compared and size and time don't decide, and kept beside the list.

Only what a page shows is read, for READ_SECONDS on each side; the next time the page is opened, what is missing is read.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import ActionRefused
from ..models import DiskImage
from ..storage.contract import CatalogueFile, StorageError
from ..storage.registry import get_driver
from .catalogue import Record
from .comparison import CHANGED, Change
from .services import ask, logger

READ_SECONDS = 3
MAX_FILE_BYTES = 256 * 1024**2  # a larger file might never be read in time
MAX_HASHES, MAX_BYTES = 20_000, 4 * 1024**2  # kept of a disk

# {"part/inode": hash, "" if the file can't be read}
Hashes = dict[str, str]


def compare_contents(old: DiskImage, new: DiskImage, changes: Sequence[Change]) -> list[Change]:
    """Return the changes; those of equal size say whether their content is the same, as far as it could be read."""
    pairs = [(change.old, change.new) for change in changes if is_undecided(change) and change.old and change.new]
    if not pairs:
        return list(changes)
    before = find_hashes(old, [pair[0] for pair in pairs])
    after = find_hashes(new, [pair[1] for pair in pairs]) if before else {}
    return [compare_content(change, before, after) for change in changes]


def is_undecided(change: Change) -> bool:
    if change.kind != CHANGED or not change.old or not change.new:
        return False
    is_file = change.old.kind == change.new.kind == "f"
    is_same_size = change.old.size == change.new.size <= MAX_FILE_BYTES
    return is_file and is_same_size and change.old.changed_at != change.new.changed_at


def compare_content(change: Change, before: Hashes, after: Hashes) -> Change:
    if not is_undecided(change) or not change.old or not change.new:
        return change
    one, other = before.get(key(change.old)), after.get(key(change.new))
    return replace(change, is_same_content=one == other) if one and other else change


def key(record: Record) -> str:
    return f"{int(record.path.split(b'/', 1)[0])}/{record.inode}"


def find_hashes(disk: DiskImage, records: Sequence[Record]) -> Hashes:
    """Return the hashes of these files, and of others that are kept; without those that couldn't be read in time."""
    hashes = load_hashes(disk)
    missing = sorted(
        {(*map(int, key(record).split("/")), record.size) for record in records if key(record) not in hashes}
    )
    if not missing:
        return hashes
    try:
        answers = ask(disk, "hash", files=missing, seconds=READ_SECONDS)
        read = {
            f"{part}/{inode}": str(answer["hash"] or "")
            for (part, inode, _size), answer in zip(missing, answers, strict=False)
        }
    except (ActionRefused, LookupError) as error:
        logger.info("files.not_hashed", disk=str(disk.pk), error=str(error))
        return hashes
    store_hashes(disk, read)
    return hashes | read


def load_hashes(disk: DiskImage) -> Hashes:
    try:
        file = get_driver(disk.snapshot.location).open_catalogue(disk.ref, CatalogueFile.HASHES)
        if file is None:
            return {}
        with open(file, "rb") as stream:
            hashes = json.loads(stream.read(MAX_BYTES))
        return hashes if isinstance(hashes, dict) else {}
    except (StorageError, ValueError) as error:
        logger.warning("files.hashes_unread", disk=str(disk.pk), error=str(error))
        return {}


def store_hashes(disk: DiskImage, read: Hashes) -> None:
    """Keep them beside those that are kept already. Without room for them, they are read again another time."""

    def data() -> Iterator[bytes]:
        # Read under the driver's lock, because another request may have stored more.
        kept = [*load_hashes(disk).items(), *read.items()][-MAX_HASHES:]
        yield json.dumps(dict(kept)).encode()

    try:
        get_driver(disk.snapshot.location).store_catalogue(disk.ref, data(), CatalogueFile.HASHES)
    except (StorageError, OSError) as error:
        logger.info("files.hashes_not_stored", disk=str(disk.pk), error=str(error))
