"""What the portal can ask about an image, and the answers: dictionaries, which main.py writes as JSON lines, and bytes.

Names, paths and targets are base64 of bytes, because JSON has no bytes.
"""

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import log, log2
from time import monotonic
from typing import Any

from .catalogue import read_catalogue
from .disk import Part, find_parts, open_part
from .entries import CHUNK, FILE, FOLDER, UNREADABLE, Damaged, Entry, FileSystem
from .walking import Missing, Walk, find

Answer = dict[str, Any]
Answers = Iterator[Answer | bytes]

MAX_LISTED = 200_000  # entries of one folder
MAX_SEARCHED, SEARCH_SECONDS = 1_000_000, 7
MAX_PATH = 255  # components
# How much larger than its disk a sparse file may be. Holes are sent as zeros, so the disk alone sets no limit.
MAX_HOLES = 16 * 1024**3
SAMPLE_BYTES = 4096  # of a file's start, which intruders encrypt even where they leave the rest
ORDERS: dict[str, Callable[[Entry], Any]] = {
    "name": lambda entry: (entry.kind != FOLDER, entry.name, entry.id),
    "size": lambda entry: (-entry.size if entry.kind == FILE else 1, entry.name, entry.id),
    "changed": lambda entry: (-entry.changed_at, entry.name, entry.id),
}


class Refused(Exception):
    """`str(error)` is the reason, a key of services.REASONS."""


def encode(data: bytes) -> str:
    return b64encode(data).decode()


def decode_path(request: dict[str, Any]) -> list[bytes]:
    return [b64decode(name) for name in request["path"]]


def describe(entry: Entry, path: Sequence[bytes] | None = None) -> Answer:
    answer = {
        "name": encode(entry.name),
        "id": entry.id,
        "kind": entry.kind,
        "size": entry.size,
        "changed_at": entry.changed_at,
        "mode": entry.mode,
        "owner": entry.owner,
        "group": entry.group,
        "target": encode(entry.target),
    }
    return answer if path is None else answer | {"path": [encode(name) for name in path]}


def list_parts(image: int, size: int, request: dict[str, Any]) -> Answers:
    for part in find_parts(image, size):
        yield {
            "name": encode(part.name),
            "label": encode(part.label),
            "kind": part.kind,
            "file_system": part.file_system,
            "start": part.window.start,
            "size": part.window.size,
            "is_readable": part.is_readable,
            "was_in_use": part.is_journal_pending,
            "is_journal_pending": part.is_journal_pending and not is_replayed(part),
        }


def is_replayed(part: Part) -> bool:
    try:
        return part.open().is_replayed
    except (Damaged, OSError):
        return False


def list_folder(image: int, size: int, request: dict[str, Any]) -> Answers:
    """Answer a summary, then `count` entries from number `start` on in the requested order."""
    system, folder = _find(image, size, request)
    if folder.kind != FOLDER:
        raise Missing
    entries: list[Entry] = []
    unreadable = 0
    is_complete = True
    for entry in system.entries(folder.id):
        if len(entries) == MAX_LISTED:
            is_complete = False
            break
        if entry.kind == UNREADABLE and not entry.name:
            unreadable += 1
        else:
            entries.append(entry)
    entries.sort(key=ORDERS[request["order"]])
    yield {
        "total": len(entries),
        "unreadable": unreadable,
        "is_complete": is_complete,
        "has_owners": system.has_owners,
    }
    for entry in entries[request["start"] : request["start"] + request["count"]]:
        yield describe(entry)


def search(image: int, size: int, request: dict[str, Any]) -> Answers:
    """Answer up to `count` entries whose path below the folder contains the text, then a summary."""
    system, folder = _find(image, size, request)
    text = fold(b64decode(request["text"]))
    walk = Walk(system, folder, max_entries=MAX_SEARCHED, seconds=SEARCH_SECONDS)
    count, has_more = 0, False
    for path, entry in walk:
        if text in fold(b"/".join(path)) and entry.name:
            if count == request["count"]:
                has_more = True
                break
            count += 1
            yield describe(entry, path)
    yield {"is_complete": walk.is_complete and not has_more, "unread": len(walk.unread)}


def fold(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape").casefold()


def read_file(image: int, size: int, request: dict[str, Any]) -> Answers:
    """Answer the file's name and size, then exactly that many bytes."""
    system, file = _find(image, size, request)
    if file.kind != FILE:
        raise Missing
    data = sum(length for _offset, length in system.data_ranges(file)) if file.size > size else file.size
    if data > size or file.size > size + MAX_HOLES:
        raise Refused("too_large")
    yield describe(file)
    yield from system.stream(file)


def read_folder(image: int, size: int, request: dict[str, Any]) -> Answers:
    """Answer the size of the tar archive, then exactly that many bytes."""
    system, folder = _find(image, size, request)
    if folder.kind != FOLDER:
        raise Missing
    from . import archive  # imported by main.py, only where it is needed

    try:
        plan = archive.plan(system, folder, max_bytes=size)
    except archive.TooLarge as error:
        raise Refused(str(error)) from error
    yield {"name": encode(folder.name), "size": plan.size, "files": plan.file_count, "left_out": plan.left_out_count}
    yield from archive.write(system, plan)


def sample_files(image: int, size: int, request: dict[str, Any]) -> Answers:
    """Answer for each of `files`, [(part, inode, size)] sorted by part, whether its start looks random; None if unread."""
    for system, file, length in _open_files(image, size, request):
        try:
            data = system.read(file, 0, min(SAMPLE_BYTES, length))
        except (Damaged, OSError):
            yield {"is_random": None}
        else:
            yield {"is_random": is_random(data)}


def is_random(data: bytes) -> bool:
    """Return whether the entropy of the bytes is what random ones have, or lacks at most twice as much of 8 bits.

    Of n random bytes the entropy lacks 255 / (2 n ln 2) bits on average.
    """
    count = len(data)
    if not count:
        return False
    entropy = log2(count) - sum(times * log2(times) for times in Counter(data).values()) / count
    return entropy > 8 - 255 / (count * log(2))


def hash_files(image: int, size: int, request: dict[str, Any]) -> Answers:
    """Answer the hash of each of `files`, as for `sample_files`; None if unread, and none after `seconds`."""
    import hashlib  # imported by main.py, only where it is needed

    until = monotonic() + request["seconds"]
    for system, file, length in _open_files(image, size, request):
        content = hashlib.blake2b(digest_size=16)
        try:
            for offset in range(0, length, CHUNK):
                if monotonic() > until:
                    return
                content.update(system.read(file, offset, min(CHUNK, length - offset)))
        except (Damaged, OSError):
            yield {"hash": None}
        else:
            yield {"hash": content.hexdigest()}


def _open_files(image: int, size: int, request: dict[str, Any]) -> Iterator[tuple[FileSystem, int, int]]:
    """Yield (file system, inode, size) of each of `files`, [(part, inode, size)] sorted by part."""
    number, system = None, None
    for part, file, length in request["files"]:
        if part != number:
            number, system = part, open_part(image, size, part)
        assert system
        yield system, file, length


def _find(image: int, size: int, request: dict[str, Any]) -> tuple[FileSystem, Entry]:
    system = open_part(image, size, request["part"])
    path = decode_path(request)
    if len(path) > MAX_PATH:
        raise Missing
    return system, find(system, path, request.get("id"))


COMMANDS: dict[str, Callable[[int, int, dict[str, Any]], Answers]] = {
    "parts": list_parts,
    "folder": list_folder,
    "search": search,
    "file": read_file,
    "archive": read_folder,
    "sample": sample_files,
    "hash": hash_files,
    "catalogue": read_catalogue,
}
DOWNLOADS = ("file", "archive", "catalogue")
