"""Checksums of disk images. Their prefix says how they were computed.

`blake3-2m:` and 64 hex digits: split the image into chunks of 2 MiB, of which the last may be shorter, and take the blake3
digest of each; the checksum is the blake3 digest of these digests, 32 bytes each, one after the other. Holes count as
zeros, so a sparse image and a full one with the same bytes have the same checksum. The digest of a chunk of zeros is a
constant, so a hole of any size takes no time. To compute it elsewhere:

    split --bytes=2M --filter='b3sum --raw' disk.img | b3sum

64 hex digits alone are the blake3 digest of all bytes, as manifests of format 1 have it.
"""

from abc import ABC, abstractmethod
from typing import BinaryIO

from blake3 import blake3

CHUNK = 2 * 1024**2
ZEROS = memoryview(bytes(CHUNK))
ZERO_DIGEST = blake3(ZEROS).digest()
DIGEST_SIZE = len(ZERO_DIGEST)
PREFIX = "blake3-2m:"


class Checksum(ABC):
    """Takes the bytes of an image from its start to its end."""

    @abstractmethod
    def add(self, data: memoryview) -> None: ...

    @abstractmethod
    def add_zeros(self, length: int) -> None: ...

    @abstractmethod
    def finish(self) -> str:
        """Return the checksum as text. Nothing can be added afterwards."""


class ChunkedChecksum(Checksum):
    def __init__(self, log: BinaryIO | None = None) -> None:
        """With a `log`, the digest of each chunk is written to it."""
        self.digests, self.chunk, self.chunk_length, self.log = blake3(), blake3(), 0, log

    def skip(self, digests: bytes) -> None:
        """Count chunks as added whose digests an earlier read has logged. Nothing else was added yet."""
        self.digests.update(digests)

    def add(self, data: memoryview) -> None:
        while data:
            part = data[: CHUNK - self.chunk_length]
            self.chunk.update(part)
            self.chunk_length += len(part)
            if self.chunk_length == CHUNK:
                self._end_chunk()
            data = data[len(part) :]

    def add_zeros(self, length: int) -> None:
        if self.chunk_length:
            started = min(length, CHUNK - self.chunk_length)
            self.add(ZEROS[:started])
            length -= started
        whole_chunks, rest = divmod(length, CHUNK)
        self._add_digests(ZERO_DIGEST * whole_chunks)
        self.add(ZEROS[:rest])

    def finish(self) -> str:
        if self.chunk_length:
            self._end_chunk()
        return PREFIX + self.digests.hexdigest()

    def _end_chunk(self) -> None:
        self._add_digests(self.chunk.digest())
        self.chunk, self.chunk_length = blake3(), 0

    def _add_digests(self, digests: bytes) -> None:
        self.digests.update(digests)
        if self.log:
            self.log.write(digests)


class PlainChecksum(Checksum):
    def __init__(self) -> None:
        self.hasher = blake3()

    def add(self, data: memoryview) -> None:
        self.hasher.update(data)

    def add_zeros(self, length: int) -> None:
        for start in range(0, length, CHUNK):
            self.hasher.update(ZEROS[: length - start])

    def finish(self) -> str:
        return self.hasher.hexdigest()


def checksum_like(text: str | None) -> Checksum:
    """Return an empty checksum of the same kind as an existing one, or of the kind that new ones have."""
    return PlainChecksum() if text and not text.startswith(PREFIX) else ChunkedChecksum()
