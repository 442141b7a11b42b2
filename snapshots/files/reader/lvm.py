"""Logical volumes of one physical volume: LVM2 describes them in text, which needs no C code to be read."""

import re
from typing import Any

from .windows import Window

SECTOR = 512
MAX_METADATA = 1024**2
TOKENS = re.compile(r'#[^\n]*|"((?:[^"\\]|\\.)*)"|([A-Za-z0-9_.+-]+)|([{}=\[\],])')


class NotReadable(Exception):
    """`str(error)` is one of the reasons of disk.py."""


def find_logical_volumes(physical: Window) -> list[tuple[str, Window]]:
    """Return [(name, content)], sorted by name; `physical` is one piece of the image.

    Raises NotReadable for what spans disks or isn't linear, and ValueError, LookupError or TypeError for nonsense.
    """
    group = parse(read_metadata(physical))
    [(_name, group)] = [(name, value) for name, value in group.items() if isinstance(value, dict)]
    volumes = group.get("logical_volumes", {})
    if len(group["physical_volumes"]) != 1:
        raise NotReadable("lvm_disks")
    [pv] = group["physical_volumes"].values()
    extent, start = group["extent_size"] * SECTOR, pv["pe_start"] * SECTOR
    if extent < SECTOR or start < SECTOR:
        raise ValueError("no extents")
    logical_volumes = []
    for name, volume in sorted(volumes.items()):
        if "VISIBLE" not in volume["status"]:
            continue
        segments = [segment for key, segment in volume.items() if re.fullmatch(r"segment\d+", key)]
        if any(segment["type"] != "striped" or len(segment["stripes"]) != 2 for segment in segments):
            raise NotReadable("lvm_layout")
        pieces = []
        for segment in sorted(segments, key=lambda segment: segment["start_extent"]):
            at, size = start + segment["stripes"][1] * extent, segment["extent_count"] * extent
            if at < start or size < 0 or at + size > physical.size:
                raise ValueError("a segment outside of the disk")
            pieces.append((physical.pieces[0][0] + at, size))
        logical_volumes.append((name, Window(physical.image, pieces)))
    return logical_volumes


def read_metadata(physical: Window) -> str:
    """Return the newest metadata. Raises ValueError."""
    [label_at, *_others] = [at for at in range(0, 4 * SECTOR, SECTOR) if physical.read_at(at, 8) == b"LABELONE"]
    header = physical.read_at(label_at, SECTOR)
    at = int.from_bytes(header[20:24], "little") + 40  # after the header's uuid and size
    areas: list[tuple[int, int]] = []
    ends = 0
    while ends < 2 and at + 16 <= SECTOR:  # data areas, then metadata areas; each list ends with zeros
        offset, size = (int.from_bytes(header[at + i : at + i + 8], "little") for i in (0, 8))
        at += 16
        if not offset and not size:
            ends += 1
        elif ends == 1:
            areas.append((offset, size))
    for offset, area in areas:
        block = physical.read_at(offset, SECTOR)
        if block[4:20] != b" LVM2 x[5A%r0N*>":
            continue
        text_at, size = (int.from_bytes(block[40 + i : 48 + i], "little") for i in (0, 8))
        if not 0 < size <= MAX_METADATA or not SECTOR <= text_at < area:
            continue
        text = physical.read_at(offset + text_at, min(size, area - text_at))
        if len(text) < size:  # the area is a ring
            text += physical.read_at(offset + SECTOR, size - len(text))
        return text.decode("utf-8", "replace").rstrip("\0")
    raise ValueError("no metadata")


def parse(text: str) -> dict[str, Any]:
    """Parse LVM's configuration syntax. Raises ValueError."""
    root: dict[str, Any] = {}
    sections, key = [root], ""
    values: list[Any] | None = None
    for match in TOKENS.finditer(text):
        quoted, word, sign = match.groups()
        if sign == "{":
            section: dict[str, Any] = {}
            sections[-1][key] = section
            sections.append(section)
        elif sign == "}":
            sections.pop()
            if not sections:
                raise ValueError("unbalanced")
        elif sign == "[":
            values = []
        elif sign == "]":
            sections[-1][key], values = values, None
        elif sign == "=":
            sections[-1][key] = None
        elif quoted is not None or word is not None:
            value: Any = quoted if quoted is not None else int(word) if re.fullmatch(r"-?\d+", word) else word
            if values is not None:
                values.append(value)
            elif key in sections[-1] and sections[-1][key] is None:
                sections[-1][key] = value
            else:
                key = str(value)
    return root
