"""The content of a disk or partition, recognized by its first bytes before any reader is loaded."""

import os
from collections.abc import Callable

HEAD = 0x11000
Read = Callable[[int, int], bytes]  # read(offset, size)

EXT, XFS, NTFS, FAT, EXFAT = "ext", "xfs", "ntfs", "fat", "exfat"
GPT, MBR, LVM = "gpt", "mbr", "lvm"
BTRFS, SWAP, LUKS, BITLOCKER, RAID, ZEROS, UNKNOWN = "btrfs", "swap", "luks", "bitlocker", "raid", "zeros", "unknown"
FILE_SYSTEMS = (EXT, XFS, NTFS, FAT, EXFAT)
TABLES = (GPT, MBR)

RAID_MAGIC = b"\xfc\x4e\x2b\xa9"
RAID_LEVEL_1 = (1).to_bytes(4, "little")
SIGNATURES = [
    (LUKS, 0, b"LUKS\xba\xbe"),
    (BITLOCKER, 3, b"-FVE-FS-"),
    (RAID, 0, RAID_MAGIC),
    (RAID, 0x1000, RAID_MAGIC),
    *((LVM, sector * 512, b"LABELONE") for sector in range(4)),
    (NTFS, 3, b"NTFS    "),
    (EXFAT, 3, b"EXFAT   "),
    (XFS, 0, b"XFSB"),
    (BTRFS, 0x10040, b"_BHRfS_M"),
    *(
        (SWAP, page - 10, magic)
        for page in (0x1000, 0x2000, 0x4000, 0x10000)
        for magic in (b"SWAPSPACE2", b"SWAP-SPACE")
    ),
    (FAT, 82, b"FAT32   "),
    (FAT, 54, b"FAT12   "),
    (FAT, 54, b"FAT16   "),
    (EXT, 0x438, b"\x53\xef"),
    (GPT, 0x200, b"EFI PART"),
    (GPT, 0x1000, b"EFI PART"),
]


def identify(read: Read, size: int) -> str:
    head = read(0, HEAD)
    kind = next((kind for kind, at, magic in SIGNATURES if head[at : at + len(magic)] == magic), "")
    if kind != RAID and is_raid_by_its_end(read, size):
        return RAID
    if kind:
        return kind
    if has_partition_table(head):
        return MBR
    return UNKNOWN if head.strip(b"\0") else ZEROS


def is_raid_by_its_end(read: Read, size: int) -> bool:
    """Return whether it is a member of a RAID with its description at the end. Members of a mirror are readable alone."""
    for at, level_at in ((size - size % 4096 - 8192, 72), (size - size % 65536 - 65536, 28)):
        block = read(at, 128) if at >= 0 else b""
        if block[:4] == RAID_MAGIC:
            return block[level_at : level_at + 4] != RAID_LEVEL_1
    return False


def has_partition_table(head: bytes) -> bool:
    if head[510:512] != b"\x55\xaa":
        return False
    entries = [head[at : at + 16] for at in range(446, 510, 16)]
    return all(entry[0] in (0, 0x80) for entry in entries) and any(entry[4] for entry in entries)


def describe_ext(read: Read) -> tuple[str, bytes, bool]:
    """Return the file system's name, its label, and whether its journal waits to be replayed."""
    block = read(1024, 1024)
    has_journal = block[92] & 0x4
    incompatible = int.from_bytes(block[96:100], "little")
    name = "ext4" if incompatible & 0x2C0 else "ext3" if has_journal else "ext2"
    return name, block[120:136].split(b"\0")[0], bool(incompatible & 0x4)


def read_label(kind: str, read: Read) -> bytes:
    """Return the label where it is at a fixed place, else an empty one."""
    head = read(0, 512)
    if kind == XFS:
        return head[108:120].rstrip(b"\0")
    if kind == FAT:
        label = head[71:82] if head[82:90] == b"FAT32   " else head[43:54]
        return b"" if label == b"NO NAME    " else label.rstrip(b" \0")
    return b""


def read_image(image: int) -> Read:
    return lambda offset, size: os.pread(image, size, offset)
