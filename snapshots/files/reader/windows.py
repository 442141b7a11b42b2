"""A partition or logical volume as a file: pieces of the image, one after the other."""

import os
from collections.abc import Callable

Read = Callable[[int, int], bytes]  # (offset, size)


class Window:
    """Bytes of the image at `pieces`, [(start in the image, size)]. Never reads outside of them."""

    def __init__(self, image: int, pieces: list[tuple[int, int]]) -> None:
        self.image, self.pieces, self.position = image, pieces, 0
        self.size = sum(size for _start, size in pieces)

    @property
    def start(self) -> int | None:
        """Return where it begins in the image, None if it is in several pieces."""
        return self.pieces[0][0] if len(self.pieces) == 1 else None

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes: fewer at the end."""
        if len(self.pieces) == 1:
            start, piece = self.pieces[0]
            return os.pread(self.image, max(0, min(size, piece - offset)), start + offset) if offset >= 0 else b""
        data = []
        for start, piece in self.pieces:
            if offset < piece and size > 0:
                data.append(os.pread(self.image, min(size, piece - offset), start + offset))
                size -= min(size, piece - offset)
                offset = piece
            offset -= piece
        return b"".join(data)

    # The methods of a file that libyal's readers call.

    def read(self, size: int = -1) -> bytes:
        data = self.read_at(self.position, self.size if size < 0 else size)
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> None:
        self.position = offset + (0, self.position, self.size)[whence]

    def tell(self) -> int:
        return self.position

    get_offset = tell

    def get_size(self) -> int:
        return self.size
