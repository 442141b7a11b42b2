"""The journal of an ext file system that was in use when it was captured: what the kernel would write back at mounting.

The image isn't changed: the journal's blocks are laid over it. The format is jbd2's, in the kernel's documentation of ext4.
Checksums aren't verified, because the kernel orders a commit after what it commits.
"""

from collections.abc import Iterator

from .windows import Read, Window

MAGIC = b"\xc0\x3b\x39\x98"
DESCRIPTOR, COMMIT, REVOKE = 1, 2, 5
ESCAPED, SAME_UUID, LAST = 1, 2, 8
REVOKES, WIDE, ASYNC, CHECKED, CHECKED_3 = 0x1, 0x2, 0x4, 0x8, 0x10
KNOWN = REVOKES | WIDE | CHECKED | CHECKED_3
MAX_BLOCKS = 262_144  # of a journal; ext4's largest are that long


class Unusable(Exception):
    """The journal isn't one that this code can replay."""


class ReplayedWindow(Window):
    """A file system after its journal was replayed."""

    def __init__(self, window: Window, journal: Read, size: int) -> None:
        """`size` is the journal's. Raises Unusable, and what reading it raises."""
        super().__init__(window.image, window.pieces)
        self.journal = journal
        self.block, self.overlay = read_overlay(journal, size)

    def read_at(self, offset: int, size: int) -> bytes:
        data = super().read_at(offset, size)
        first, last = offset // self.block, (offset + len(data) - 1) // self.block
        replaced = [number for number in range(first, last + 1) if number in self.overlay]
        if not replaced:
            return data
        result = bytearray(data)
        for number in replaced:
            start = number * self.block - offset
            cut = max(0, -start)
            content = self.read_block(self.overlay[number])[cut : len(data) - start]
            result[start + cut : start + cut + len(content)] = content
        return bytes(result)

    def read_block(self, source: int) -> bytes:
        content = self.journal(abs(source) * self.block, self.block)
        return MAGIC + content[4:] if source < 0 else content


def integer(data: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size], "big")


def read_overlay(read: Read, size: int) -> tuple[int, dict[int, int]]:
    """Return (bytes of a block, {block of the file system: block of the journal that replaces it}). Raises Unusable.

    The number of an escaped block, which begins with MAGIC in truth, is negative.
    """
    head = read(0, 1024)
    if head[:4] != MAGIC or integer(head, 4) not in (3, 4):
        raise Unusable("no journal")
    block, count, first, sequence, start = (integer(head, at) for at in (12, 16, 20, 24, 28))
    features = integer(head, 40) if integer(head, 4) == 4 else 0
    if features & ~KNOWN or not 1024 <= block <= 65_536 or not 0 < first < count <= min(MAX_BLOCKS, size // block):
        raise Unusable("unknown features")
    if not start:
        return block, {}
    tag = 16 if features & CHECKED_3 else 8 + (2 if features & CHECKED else 0) + (4 if features & WIDE else 0)
    tail = block - (4 if features & (CHECKED | CHECKED_3) else 0)

    def next_block(at: int) -> int:
        return at + 1 if at + 1 < count else first

    def tags(data: bytes) -> Iterator[tuple[int, int]]:
        at = 12
        while at + tag <= tail:
            flags = integer(data, at + 4) if features & CHECKED_3 else integer(data, at + 6, 2)
            high = integer(data, at + 8) if features & WIDE else 0
            yield integer(data, at) | high << 32, flags
            if flags & LAST:
                return
            at += tag + (0 if flags & SAME_UUID else 16)

    transactions: list[tuple[int, list[tuple[int, int]]]] = []
    revoked: dict[int, int] = {}  # {block: the last transaction that revokes it}
    writes: list[tuple[int, int]] = []
    revokes: list[int] = []
    at, seen = start, 0
    while seen < count:
        data = read(at * block, block)
        if data[:4] != MAGIC or integer(data, 8) != sequence:
            break
        kind = integer(data, 4)
        at, seen = next_block(at), seen + 1
        if kind == DESCRIPTOR:
            for target, flags in tags(data):
                writes.append((target, -at if flags & ESCAPED else at))
                at, seen = next_block(at), seen + 1
        elif kind == REVOKE:
            width = 8 if features & WIDE else 4
            end = min(integer(data, 12), tail)
            revokes += [integer(data, each, width) for each in range(16, end - width + 1, width)]
        elif kind == COMMIT:
            transactions.append((sequence, writes))
            revoked |= dict.fromkeys(revokes, sequence)
            writes, revokes = [], []
            sequence += 1
        else:
            break
    return block, {
        target: source
        for transaction, blocks in transactions
        for target, source in blocks
        if revoked.get(target, -1) < transaction
    }
