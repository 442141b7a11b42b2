"""Disk images with real file systems, created without mounting, and the files in them."""

import mmap
import os
import random
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

MIB = 1024**2
SECTOR = 512
START = MIB  # offsets of the partition and of the logical volume's first extent
ORDINARY = {
    b"plain.txt": b"hello\n",
    b"random.bin": random.Random(1).randbytes(3 * MIB + 17),
    b"empty": b"",
    "မြန်မာ.txt".encode(): b"burmese",
    b"sub/deep/random.bin": random.Random(2).randbytes(MIB + 1),
}
HOSTILE = {
    b"new\nline": b"newline",
    b"nonutf8-\xff\xfe": b"bytes",
    b"n" * 255: b"long",
    b"..hidden": b"dots",
    b"-rf": b"dash",
    b"<script>alert(1)<_script>": b"markup",
    "right-\u202eto-left".encode(): b"invisible",
    b"100%25 \\n": b"escapes",
}
LINKS = {
    b"link-passwd": b"/etc/passwd",
    b"link-up": b"../../../../etc/shadow",
    b"link-ok": b"plain.txt",
    b"link-60": b"x" * 60,  # the shortest that ext4 keeps in a block
    b"link-long": b"/a/rather/long/path" * 20,
}
FILES = ORDINARY | HOSTILE
CLUSTER, UNIT = 4096, 16 * 4096  # of NTFS, and of its compression
PACKED = b"A" * 2 * UNIT
BIG, SPARSE = 2 * 1024**3 + 8, 64 * MIB


def need(*tools: str) -> None:
    missing = [tool for tool in tools if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def run(*command: object, **options: object) -> None:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    subprocess.run(
        [os.fspath(each) if isinstance(each, Path) else str(each) for each in command],
        check=True,
        capture_output=True,
        env={"PATH": path, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"},
        **options,
    )


def make_tree(folder: Path, files: dict[bytes, bytes] = FILES) -> Path:
    root = os.fsencode(folder)
    for name, content in files.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    for name, target in LINKS.items():
        os.symlink(target, os.path.join(root, name))
    os.link(folder / "plain.txt", folder / "hard")
    (folder / "suid").write_bytes(b"#!/bin/sh\n")
    (folder / "suid").chmod(0o4755)
    os.mkfifo(folder / "pipe")
    with open(folder / "sparse", "wb") as file:
        file.truncate(SPARSE)
        file.seek(33 * MIB)
        file.write(b"middle")
    with open(folder / "big", "wb") as file:
        file.seek(BIG - 3)
        file.write(b"end")
    return folder


def blank(path: Path, size: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def make_ext4(path: Path, tree: Path, size: int = 300 * MIB) -> Path:
    need("mke2fs")
    run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "data ü", "-d", tree, blank(path, size))
    return path


def make_xfs(path: Path, tree: Path) -> Path:
    """Create it from a prototype, whose names can't have spaces or newlines."""
    names = ("plain.txt", "random.bin", "empty", "sparse", "မြန်မာ.txt")
    lines = [f"{name} ---644 0 0 {tree / name}" for name in names]
    lines += [f"suid -u-755 0 0 {tree / 'suid'}", "link-passwd l--777 0 0 /etc/passwd", "pipe p--644 0 0"]
    lines += ["sub d--755 0 0", "deep d--755 0 0", f"random.bin ---644 0 0 {tree / 'sub/deep/random.bin'}", "$", "$"]
    return make_xfs_of(path, lines)


def make_xfs_of(path: Path, lines: list[str]) -> Path:
    """`lines` are those of the root folder in the prototype."""
    need("mkfs.xfs")
    prototype = path.with_suffix(".proto")
    prototype.write_text("\n".join(["boot", "0 0", "d--755 0 0", *lines, "$", "$"]) + "\n")
    run("mkfs.xfs", "-q", "-f", "-L", "data", "-p", prototype, blank(path, 400 * MIB))
    return path


def make_fat(path: Path, tree: Path) -> Path:
    need("mkfs.vfat", "mcopy", "mmd")
    run("mkfs.vfat", "-F", "32", "-n", "DATA", blank(path, 100 * MIB))
    run("mmd", "-i", path, "::/sub", "::/sub/deep")
    run("mcopy", "-i", path, *(tree / name for name in ("plain.txt", "random.bin", "empty", "မြန်မာ.txt")), "::/")
    run("mcopy", "-i", path, tree / "sub/deep/random.bin", "::/sub/deep/")
    return path


def make_ntfs(path: Path, tree: Path) -> Path:
    need("mkntfs", "ntfscp")
    run("mkntfs", "-q", "-F", "-Q", "-L", "data", blank(path, 100 * MIB))
    for name in ("plain.txt", "random.bin", "empty", "မြန်မာ.txt"):
        run("ntfscp", "-q", path, tree / name, name)
    # LZNT1: sixteen chunks of 4 KiB, each an A and the instruction to repeat it.
    packed = path.with_suffix(".packed")
    packed.write_bytes((bytes.fromhex("03b0 02 41 fc0f") * 16).ljust(UNIT, b"\0") * 2)
    run("ntfscp", "-q", path, packed, "packed")
    mark_compressed(path, "packed")
    return path


def mark_compressed(path: Path, name: str) -> None:
    """Mark a file of two compression units as compressed: one cluster of each unit is used, 15 are saved."""
    with open(path, "r+b") as file:
        image = mmap.mmap(file.fileno(), 0)
        record = image.find(name.encode("utf-16-le")) & ~1023
        while image[record : record + 4] != b"FILE":
            record = image.find(name.encode("utf-16-le"), record + 1024) & ~1023
        at = record + int.from_bytes(image[record + 20 : record + 22], "little")
        while image[at] != 0x80:  # $DATA
            at += int.from_bytes(image[at + 4 : at + 8], "little")
        length = int.from_bytes(image[at + 4 : at + 8], "little")
        attribute, runs = bytearray(image[at : at + 64]), image[at + 64 : at + length]
        start = runs[2 : 2 + (runs[0] >> 4)]
        runs = bytes([runs[0] & 0xF0 | 1, 1]) + start + b"\x01\x0f" + b"\x11\x01\x10" + b"\x01\x0f\0"
        attribute[4], attribute[12], attribute[32], attribute[34] = 88, 1, 72, 4
        attribute += (2 * CLUSTER).to_bytes(8, "little") + runs
        attribute = attribute.ljust(88, b"\0") + b"\xff" * 4 + bytes(4)
        image[at : at + len(attribute)] = bytes(attribute)
        used = int.from_bytes(image[record + 24 : record + 28], "little") + 88 - length
        image[record + 24 : record + 28] = used.to_bytes(4, "little")
        image.close()


def make_gpt(path: Path, content: Path) -> Path:
    """Create a named partition with `content`, and a second one for swap."""
    size = content.stat().st_size
    total = START + size + 2 * MIB
    entries = bytearray(128 * 128)
    linux = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    for number, (first, length, name) in enumerate(
        ((START, size, "root fs ü"), (START + size, MIB, "swap")),
    ):
        entry = linux + UUID(int=number + 1).bytes_le
        entry += struct.pack("<QQQ", first // SECTOR, (first + length) // SECTOR - 1, 0)
        entry += name.encode("utf-16-le").ljust(72, b"\0")
        entries[number * 128 : number * 128 + 128] = entry

    def header(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, crc, 0, 1, total // SECTOR - 1, 34, total // SECTOR - 34),
            *(UUID(int=9).bytes_le, 2, 128, 128, zlib.crc32(entries)),
        )

    with open(blank(path, total), "r+b") as file:
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, total // SECTOR - 1))
        file.seek(510)
        file.write(b"\x55\xaa")
        file.write(header(zlib.crc32(header(0))))
        file.seek(2 * SECTOR)
        file.write(entries)
        copy_sparse(content, file.fileno(), START)
        file.seek(START + size + 4086)
        file.write(b"SWAPSPACE2")
    return path


def make_mbr(path: Path, content: Path) -> Path:
    size = content.stat().st_size
    with open(blank(path, START + size), "r+b") as file:
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0x80, b"\0" * 3, 0x83, b"\0" * 3, START // SECTOR, size // SECTOR))
        file.seek(510)
        file.write(b"\x55\xaa")
        copy_sparse(content, file.fileno(), START)
    return path


SEGMENT = """segment{number} {{
start_extent = {start}
extent_count = {count}
type = "{type}"
stripe_count = 1	# linear
stripes = ["pv0", {at}]
}}
"""


def lvm_text(segments: str, count: int, physical: str = "") -> str:
    """Return the metadata of the group `vg_data` with the volume `root`."""
    return f"""vg_data {{
id = "H90Siv-avH3-tYo5-yupa-KaB1-qcc7-IrtOxM"
seqno = 2
format = "lvm2" # informational
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 8192
max_lv = 0
physical_volumes {{
pv0 {{
id = "uU2Sck-6fe6-TVl1-WXrv-jp1M-g93X-YgHBcZ"
device = "/dev/sdb"
status = ["ALLOCATABLE"]
pe_start = 2048
pe_count = 200
}}
{physical}}}
logical_volumes {{
root {{
id = "0fQzfb-u6iV-UHYr-1KFG-X8hV-F6Lv-XN3S5a"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = {count}
{segments}}}
}}
}}
# Generated by LVM2
contents = "Text Format Volume Group"
version = 1
"""


def make_lvm(path: Path, content: Path | None, *, text: str = "", split_extents: int = 10) -> Path:
    """Create a physical volume with a logical one in two segments, the second before the first."""
    extent = 4 * MIB
    size = content.stat().st_size if content else 0
    extents = -(-size // extent)
    if not text:
        pieces = [(0, split_extents, extents + 5), (split_extents, extents - split_extents, 3)]
        text = lvm_text(
            "".join(
                SEGMENT.format(number=number + 1, start=start, count=count, at=at, type="striped")
                for number, (start, count, at) in enumerate(pieces)
            ),
            count=2,
        )
    data = text.encode() + b"\0"
    area, area_size = 4096, MIB - 4096
    with open(blank(path, MIB + (extents + 20) * extent), "r+b") as file:
        file.seek(SECTOR)
        file.write(struct.pack("<8sQII8s", b"LABELONE", 1, 0, 32, b"LVM2 001"))
        file.write(b"uU2Sck6fe6TVl1WXrvjp1Mg93XYgHBcZ" + struct.pack("<Q", path.stat().st_size))
        file.write(struct.pack("<QQQQ", MIB, 0, 0, 0) + struct.pack("<QQQQ", area, area_size, 0, 0))
        file.seek(area)
        file.write(struct.pack("<I16sIQQ", 0, b" LVM2 x[5A%r0N*>", 1, area, area_size))
        file.write(struct.pack("<QQII", SECTOR, len(data), 0, 0))
        file.seek(area + SECTOR)
        file.write(data)
        if content:
            for start, count, at in pieces:
                copy_sparse(content, file.fileno(), MIB + at * extent, start * extent, count * extent)
    return path


def copy_sparse(source: Path, target: int, offset: int, start: int = 0, size: int | None = None) -> None:
    """Write the bytes that aren't zero."""
    end = source.stat().st_size if size is None else min(source.stat().st_size, start + size)
    with open(source, "rb") as file:
        for at in range(start, end, MIB):
            file.seek(at)
            block = file.read(min(MIB, end - at))
            if block != bytes(len(block)):
                os.pwrite(target, block, offset + at - start)


def copy(source: Path, target: Path) -> Path:
    with open(blank(target, source.stat().st_size), "r+b") as file:
        copy_sparse(source, file.fileno(), 0)
    return target


def make_marked(path: Path, *marks: tuple[int, bytes]) -> Path:
    """Create a file of zeros with some bytes at given offsets, for what is recognized by its signature."""
    with open(blank(path, 32 * MIB), "r+b") as file:
        for at, mark in marks:
            file.seek(at)
            file.write(mark)
    return path


Maker = Callable[[Path, Path], Path]


def from_ext4(make: Callable[[Path, Path], Path]) -> Maker:
    return lambda path, tree: make(path, make_ext4(path.with_suffix(".ext4"), tree))


MAKERS: dict[str, Maker] = {
    "ext4": make_ext4,
    "gpt": from_ext4(make_gpt),
    "mbr": from_ext4(make_mbr),
    "lvm": from_ext4(make_lvm),
    "xfs": make_xfs,
    "ntfs": make_ntfs,
    "fat": make_fat,
}
