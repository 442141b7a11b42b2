"""A folder as a tar archive whose size is known before its first byte, so that clients notice a stream that breaks.

Names stay below the folder, set-user-ID bits are dropped, devices, pipes and sockets are left out, and holes of sparse files
stay holes (GNU's format 1.0). What was left out is listed in a last member.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from .entries import FILE, FOLDER, LINK, OTHER, Damaged, Entry, FileSystem
from .walking import Walk

MAX_ENTRIES, WALK_SECONDS = 100_000, 8
BLOCK, CHUNK = tarfile.BLOCKSIZE, 1024**2
END = bytes(2 * BLOCK)
SAFE_MODE = 0o1777
MIN_HOLES = 64 * 1024  # less isn't worth the map
LEFT_OUT = b"LEFT-OUT.txt"
MAX_LEFT_OUT = 10_000  # lines


class TooLarge(Exception):
    """`str(error)` is one of services.REASONS."""


@dataclass(frozen=True, slots=True)
class Member:
    """`ranges` of the file come after `header`, then zeros up to a whole block."""

    header: bytes
    entry: Entry | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def data_size(self) -> int:
        return sum(size for _offset, size in self.ranges)

    @property
    def size(self) -> int:
        return len(self.header) + self.data_size + padding(self.data_size)


@dataclass
class Plan:
    members: list[Member] = field(default_factory=list)
    file_count: int = 0
    left_out_count: int = 0

    @property
    def size(self) -> int:
        return sum(member.size for member in self.members) + len(END)


def plan(system: FileSystem, folder: Entry, *, max_bytes: int) -> Plan:
    """Read what the archive will hold, but no content. Raises TooLarge, Damaged, OSError."""
    result, left_out = Plan(), list[str]()
    # {path on the disk: name in the archive}, of folders; names in use; {inode: name}, of files with several names
    prefix = [safe_name(folder.name)] if folder.name else []
    names: dict[tuple[bytes, ...], bytes] = {(): b"/".join(prefix)}
    used = {b"/".join([*prefix, LEFT_OUT])}
    linked: dict[int, bytes] = {}
    data = 0
    walk = Walk(system, folder, max_entries=MAX_ENTRIES, seconds=WALK_SECONDS)
    for path, entry in walk:
        if not entry.name or path[:-1] not in names:
            continue
        name = unique(names[path[:-1]], safe_name(entry.name), entry.id, used)
        if entry.kind == FOLDER:
            names[path] = name
            member = Member(header(entry, name + b"/", tarfile.DIRTYPE))
        elif entry.kind == LINK:
            member = Member(header(entry, name, tarfile.SYMTYPE, target=entry.target))
        elif entry.kind == FILE and entry.id in linked:
            member = Member(header(entry, name, tarfile.LNKTYPE, target=linked[entry.id]))
        elif entry.kind == FILE:
            try:
                member = plan_file(system, entry, name)
            except (Damaged, OSError):
                left_out.append(f"{to_text(path)}: unreadable")
                continue
            if entry.link_count > 1:
                linked[entry.id] = name
            result.file_count += 1
            data += member.data_size
        else:
            reason = "a device, pipe or socket" if entry.kind == OTHER else "unreadable"
            left_out.append(f"{to_text(path)}: {reason}")
            continue
        if data > max_bytes:
            raise TooLarge("archive_too_large")
        result.members.append(member)
    if not walk.is_complete:
        raise TooLarge("archive_too_many")
    left_out += [f"{to_text(path) or '.'}: not everything in this folder is readable" for path in walk.unread]
    result.left_out_count = len(left_out)
    if left_out:
        result.members.append(describe_left_out(left_out, b"/".join([*prefix, LEFT_OUT])))
    return result


def plan_file(system: FileSystem, entry: Entry, name: bytes) -> Member:
    ranges = system.data_ranges(entry) if entry.size > MIN_HOLES else [(0, entry.size)] if entry.size else []
    if entry.size - sum(size for _offset, size in ranges) < MIN_HOLES:
        return Member(header(entry, name, tarfile.REGTYPE, size=entry.size), entry, ((0, entry.size),))
    if not ranges or ranges[-1][0] + ranges[-1][1] < entry.size:
        ranges = [*ranges, (entry.size, 0)]  # tells where the file ends
    numbers = [len(ranges), *(number for each in ranges for number in each)]
    map_ = "".join(f"{number}\n" for number in numbers).encode()
    map_ += bytes(padding(len(map_)))
    size = len(map_) + sum(size for _offset, size in ranges)
    return Member(header(entry, name, tarfile.REGTYPE, size=size, real_size=entry.size) + map_, entry, tuple(ranges))


def header(
    entry: Entry, name: bytes, kind: bytes, *, size: int = 0, target: bytes = b"", real_size: int | None = None
) -> bytes:
    info = tarfile.TarInfo(decode(name))
    info.type, info.size, info.linkname = kind, size, decode(target)
    info.mode = entry.mode & SAFE_MODE or (0o755 if kind == tarfile.DIRTYPE else 0o644)
    info.mtime, info.uid, info.gid = max(0, int(entry.changed_at)), entry.owner, entry.group
    if real_size is not None:
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": info.name,
            "GNU.sparse.realsize": str(real_size),
        }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def describe_left_out(lines: list[str], name: bytes) -> Member:
    if len(lines) > MAX_LEFT_OUT:
        lines = [*lines[:MAX_LEFT_OUT], f"and {len(lines) - MAX_LEFT_OUT} more"]
    text = "".join(f"{line}\n" for line in lines).encode()
    entry = Entry(name, 0, FILE, mode=0o644)
    return Member(header(entry, name, tarfile.REGTYPE, size=len(text)) + text + bytes(padding(len(text))))


def write(system: FileSystem, result: Plan) -> Iterator[bytes]:
    """Raises Damaged and OSError when content can't be read, after which the archive is useless."""
    for member in result.members:
        yield member.header
        for offset, size in member.ranges:
            for at in range(offset, offset + size, CHUNK):
                assert member.entry
                yield system.read(member.entry.id, at, min(CHUNK, offset + size - at))
        yield bytes(padding(member.data_size))
    yield END


def safe_name(name: bytes) -> bytes:
    """Return a name that stays in its folder."""
    name = name.replace(b"/", b"_")
    return name.replace(b".", b"_") if name in (b".", b"..") else name


def unique(folder: bytes, name: bytes, number: int, used: set[bytes]) -> bytes:
    """Return the path in the archive. Two entries of one name would let a link take the place of a folder."""
    path = folder + b"/" + name if folder else name
    while path in used:
        path += b"~%d" % number
    used.add(path)
    return path


def padding(size: int) -> int:
    return -size % BLOCK


def decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def to_text(path: tuple[bytes, ...]) -> str:
    text = b"/".join(path).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
