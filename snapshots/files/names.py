"""Names and paths of files are bytes: how they are shown, and how they travel in addresses.

In an address a path is its names, joined by `/`; what can't appear literally (not UTF-8, invisible, `/`, `%`) is `%XX`.
"""

from collections.abc import Sequence
from urllib.parse import unquote_to_bytes


def show(name: bytes) -> str:
    r"""Return the name to display, with escapes such as `\n` and `\xff` for bytes that can't be shown."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in name.decode("utf-8", "backslashreplace")
    )


def show_path(path: Sequence[bytes]) -> str:
    return "/" + "/".join(show(name) for name in path)


def to_parameter(path: Sequence[bytes]) -> str:
    return "/" + "/".join(_encode(name) for name in path)


def from_parameter(text: str) -> list[bytes]:
    return [unquote_to_bytes(name) for name in text.split("/") if name]


def _encode(name: bytes) -> str:
    return "".join(
        character
        if character.isprintable() and character not in "/%"
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in name.decode("utf-8", "surrogateescape")
    )


def file_name(name: bytes) -> str:
    """Return a name for a downloaded file: no path, and nothing invisible."""
    text = "".join(character if character.isprintable() else "_" for character in name.decode("utf-8", "replace"))
    return text.replace("/", "_").replace("\\", "_").replace('"', "_") or "file"
