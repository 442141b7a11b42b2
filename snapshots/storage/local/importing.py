"""Import disk images: recognize their format, check that they are complete, and unpack them with qemu-img.

The image is opened once, and QEMU gets that file as a descriptor: to QEMU its name could be a URL, or by then it could be
another file's. QEMU never opens a second file: images that name one, as backing file or extent, are refused.
"""

import json
import os
import re
import select
import shutil
import subprocess
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from django.utils.translation import gettext as _

from ..contract import NoSpace, Refused, Unavailable
from ..files import NotRegularFile, open_regular_file
from .copying import BEAT_SECONDS, Progress

SECTOR = 512
# Archives, and formats that can't be imported. Copied as they are, their bytes would make a useless volume.
OTHER_FORMATS = {
    b"# Disk DescriptorFile": "a VMDK descriptor, which only names other files",
    b"COWD": "VMDK of VMware ESX",
    b"QED\0": "QED",
    b"WithoutFreeSpace": "Parallels",
    b"WithouFreSpacExt": "Parallels",
    b"Bochs Virtual HD Image": "Bochs",
    b"#!/bin/sh\n#V2.0 Format": "cloop",
    b"\x3a\xff\x26\xed": "an Android sparse image",
    b"MSWIM\0\0\0": "WIM",
    b"EVF\x09": "EnCase",
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"LZIP": "lzip",
    b"\x89LZO\0": "lzop",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
NAMES = {"qcow2": "qcow2", "qcow": "qcow", "vmdk": "VMDK", "vhdx": "VHDX", "vpc": "VHD", "vdi": "VDI"}


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    path: Path  # for messages only
    file: int
    offset: int  # of the image in the file: an OVA holds more than the disk
    length: int
    format: str = "raw"  # as QEMU calls it
    size: int = 0  # bytes of the disk in it

    def read(self, position: int, length: int) -> bytes:
        """Return up to this many bytes, fewer at the end of the image."""
        wanted = min(length, self.length - position)
        return os.pread(self.file, wanted, self.offset + position) if wanted > 0 else b""

    def read_last_sector(self) -> bytes:
        return self.read(max(0, self.length - SECTOR), SECTOR)


@contextmanager
def open_image(path: Path) -> Iterator[SourceImage]:
    """Open a disk image. Raises Refused with the reason when it is incomplete or can't be imported."""
    try:
        file = open_regular_file(path)
    except NotRegularFile as error:
        raise refused(_("“%(path)s” is not a file. Name the disk image itself, not a link to it."), path) from error
    except OSError as error:
        raise Refused(_("“%(path)s” cannot be read: %(reason)s.") % {"path": path, "reason": error.strerror}) from error
    try:
        yield inspect(SourceImage(path=path, file=file, offset=0, length=os.fstat(file).st_size))
    finally:
        os.close(file)


def inspect(image: SourceImage) -> SourceImage:
    """Return the image with its format and size. Raises Refused."""
    start, end = image.read(0, 4096), image.read_last_sector()
    if not start:
        raise refused(_("“%(path)s” is empty. Name a disk image."), image.path)
    if is_tar(start):
        disk = inspect(find_disk(image))
        if disk.format == "raw":
            raise cut_off(image)
        return disk
    if other := find_other_format(start, end):
        raise Refused(
            _("“%(path)s” is %(format)s. Unpack it, or convert it to a raw or qcow2 image first.")
            % {"path": image.path, "format": other}
        )
    image = replace(image, format=find_format(start, end))
    if image.format == "raw":
        return replace(image, size=image.length)
    refuse_references(image, start)
    if not shutil.which("qemu-img"):
        raise Refused(
            _("“%(path)s” is %(format)s, which needs qemu-img. Install qemu-utils, or convert it to a raw image.")
            % {"path": image.path, "format": NAMES[image.format]}
        )
    require_whole(image)
    size = qemu_img(image, "info")["virtual-size"]
    if not size:
        raise refused(_("“%(path)s” has a disk of 0 bytes. Name an image that contains a disk."), image.path)
    return replace(image, size=size)


def find_format(start: bytes, end: bytes) -> str:
    if start.startswith(b"QFI\xfb"):
        return "qcow" if start[4:8] == b"\0\0\0\1" else "qcow2"
    if start.startswith(b"KDMV"):
        return "vmdk"
    if start.startswith(b"vhdxfile"):
        return "vhdx"
    if start.startswith(b"conectix") or end.startswith(b"conectix"):  # one of a fixed size has only the latter
        return "vpc"
    return "vdi" if start[64:68] == b"\x7f\x10\xda\xbe" else "raw"


def find_other_format(start: bytes, end: bytes) -> str:
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    # The header that every program writes: default parameters, a dictionary of a power of two, the range coder's first zero.
    dictionary = int.from_bytes(start[1:5], "little")
    if start[:1] == b"\x5d" and dictionary.bit_count() == 1 and dictionary >= 4096 and start[13:14] == b"\0":
        return "lzma"
    if end.startswith(b"koly"):
        return "DMG"
    return next((name for magic, name in OTHER_FORMATS.items() if start.startswith(magic)), "")


def is_tar(start: bytes) -> bool:
    if start[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(start[:SECTOR], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def find_disk(image: SourceImage) -> SourceImage:
    """Return the only disk in an OVA, which is a tar archive with a description, `.ovf`."""
    disks, is_ova = [], False
    os.lseek(image.file, 0, os.SEEK_SET)
    try:
        with open(os.dup(image.file), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                is_ova = is_ova or member.name.endswith(".ovf")
                if (
                    member.isreg()
                    and not member.issparse()
                    and member.name.lower().endswith((".vmdk", ".vhd", ".vhdx"))
                ):
                    disks.append(replace(image, offset=member.offset_data, length=member.size))
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise cut_off(image) from error
    if not is_ova:
        raise refused(_("“%(path)s” is a tar archive. Unpack it and name the disk image inside it."), image.path)
    if len(disks) != 1:
        raise Refused(
            _("“%(path)s” is an OVA with %(count)s disks. Unpack it with tar and import each of them.")
            % {"path": image.path, "count": len(disks)}
        )
    [disk] = disks
    if disk.offset + disk.length > image.length:
        raise cut_off(image)
    return disk


def refuse_references(image: SourceImage, start: bytes) -> None:
    """Raises Refused for an image that refers to other files, or is encrypted.

    Called before QEMU, which opens some of those files even to describe the image.
    """
    refers, encrypted = False, False
    if image.format == "qcow2":  # bit 2 of the incompatible features: its data is in another file
        has_features = big_endian(start, 4, 4) >= 3
        refers = any(start[8:16]) or has_features and bool(big_endian(start, 72, 8) & 4)
        encrypted = any(start[32:36])
    elif image.format == "qcow":
        refers, encrypted = any(start[8:16]), any(start[36:40])
    elif image.format == "vmdk":
        capacity, descriptor_at, descriptor_size = (little_endian(start, at, 8) for at in (12, 28, 36))
        if (descriptor_at + descriptor_size) * SECTOR > image.length:
            raise cut_off(image)
        text = image.read(descriptor_at * SECTOR, min(descriptor_size * SECTOR, 1024**2)) if descriptor_at else b""
        extents = re.findall(rb"(?m)^\s*(?:RW|RDONLY|NOACCESS)\s", text)
        parent = re.search(rb"(?mi)^\s*parentFileNameHint|^\s*parentCID\s*=\s*(?!f{8}\b)", text)
        refers = not capacity or not text or len(extents) != 1 or bool(parent)
    elif image.format == "vpc":
        footer = image.read_last_sector()
        refers = big_endian(footer, 60, 4) == 4  # differencing
    if refers:
        raise refused(
            _("“%(path)s” is only part of a disk: it refers to another file. Merge them with qemu-img convert first."),
            image.path,
        )
    if encrypted:
        raise refused(
            _("“%(path)s” is encrypted by QEMU. Decrypt it with qemu-img convert first, which asks for its secret."),
            image.path,
        )


def require_whole(image: SourceImage) -> None:
    """Raises Refused for a truncated image: QEMU would read zeros beyond its end and succeed."""
    start = image.read(0, 4096)
    if image.format in ("qcow2", "qcow"):
        if end_of_qcow(image, start) > image.length:
            raise cut_off(image)
    elif image.length % SECTOR:  # QEMU accepts a last sector of which only a part exists
        raise cut_off(image)
    if image.format == "vpc" and not image.read_last_sector().startswith(b"conectix"):
        raise cut_off(image)
    if (
        image.format == "vdi"
        and little_endian(start, 0x158, 4) + little_endian(start, 0x178, 4) * little_endian(start, 0x184, 4)
        > image.length
    ):
        raise cut_off(image)
    checked = run_qemu_img(image, "check", "-q")
    if checked.returncode not in (0, 3, 63):  # 3: only leaked clusters, 63: the format has no check
        raise Refused(
            _("“%(path)s” is damaged or truncated. qemu-img check says: %(reason)s")
            % {"path": image.path, "reason": last_line(checked.stderr)}
        )
    for extent in qemu_img(image, "map"):
        if extent.get("offset", 0) + extent["length"] > image.length and "offset" in extent:
            raise cut_off(image)


def end_of_qcow(image: SourceImage, start: bytes) -> int:
    """Return where the data end that the image's tables refer to. Exact only if that is beyond the end of the image.

    Source: QEMU, docs/interop/qcow2.txt and block/qcow.c.
    """
    is_old, size, l1_at = image.format == "qcow", big_endian(start, 24, 8), big_endian(start, 40, 8)
    cluster_bits = start[32] if is_old else big_endian(start, 20, 4)
    step = 1 if is_old or big_endian(start, 4, 4) < 3 or not big_endian(start, 72, 8) & 16 else 2  # words of an entry
    l2_bits = start[33] if is_old else cluster_bits - 2 - step
    if not 9 <= cluster_bits <= 21 or not 5 <= l2_bits <= 18:
        raise cut_off(image)
    cluster, mask = 1 << cluster_bits, -1 if is_old else 0x00FFFFFFFFFFFE00
    l1_length = -(-size >> (cluster_bits + l2_bits)) * 8
    end = l1_at + l1_length
    if end > image.length:
        return end
    for number, l2_at in enumerate(read_words(image, l1_at, l1_length)):
        l2_at &= mask
        if not l2_at:
            continue
        end = max(end, l2_at + (8 * step << l2_bits))
        if end > image.length:
            return end
        for place, entry in enumerate(read_words(image, l2_at, 8 * step << l2_bits)[::step]):
            if not entry:
                continue
            if is_old and entry >> 63:
                bits = 63 - cluster_bits
                end = max(end, (entry & (1 << bits) - 1) + (entry >> bits & cluster - 1))
            elif not is_old and entry >> 62 & 1:
                bits = 62 - (cluster_bits - 8)
                sectors = (entry >> bits & (1 << cluster_bits - 8) - 1) + 1
                end = max(end, ((entry & (1 << bits) - 1) // SECTOR + sectors) * SECTOR)
            elif (is_old or step == 2 or not entry & 1) and (data_at := entry & mask):
                position = ((number << l2_bits) + place) << cluster_bits
                end = max(end, data_at + min(cluster, size - position))
    return end


def read_words(image: SourceImage, position: int, length: int) -> "array[int]":
    words = array("Q", image.read(position, length).ljust(length, b"\0"))
    words.byteswap()
    return words


def big_endian(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")


def little_endian(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")


def cut_off(image: SourceImage) -> Refused:
    return refused(
        _("“%(path)s” is truncated or damaged: part of its data is missing. Copy or download it again."), image.path
    )


def refused(sentence: str, path: Path) -> Refused:
    return Refused(sentence % {"path": path})


def qemu_source(image: SourceImage) -> str:
    """Return the options with which QEMU opens this file and nothing else."""
    file: dict[str, Any] = {"driver": "file", "filename": f"/proc/self/fd/{image.file}"}
    if image.length != os.fstat(image.file).st_size:
        file = {"driver": "raw", "offset": image.offset, "size": image.length, "file": file}
    options: dict[str, Any] = {"driver": image.format, "file": file}
    if image.format in ("qcow2", "qcow", "vmdk"):
        options["backing"] = None
    if image.format == "vpc":  # by default QEMU takes the size of some as smaller than it is
        options["force_size_calc"] = "current_size"
    return f"json:{json.dumps(options)}"


def run_qemu_img(image: SourceImage, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["qemu-img", *command, "--output=json", qemu_source(image)],
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
        stdin=subprocess.DEVNULL,
        pass_fds=[image.file],
        env=os.environ | {"LC_ALL": "C"},
    )


def qemu_img(image: SourceImage, *command: str) -> Any:
    answer = run_qemu_img(image, *command)
    if answer.returncode:
        raise Refused(
            _("“%(path)s” cannot be read as %(format)s. qemu-img says: %(reason)s")
            % {"path": image.path, "format": NAMES[image.format], "reason": last_line(answer.stderr)}
        )
    return json.loads(answer.stdout)


def unpacked_bytes(image: SourceImage) -> int:
    """Return the space that its data need. A compressed image may grow a thousandfold."""
    return qemu_img(image, "measure", "-O", "qcow2")["required"]


def unpack(image: SourceImage, target: int, progress: Progress) -> None:
    """Write the disk into `target`, a hole of at least its size, without syncing it."""
    command = ["qemu-img", "convert", "-p", "-n", "--target-is-zero", "-O", "raw"]
    with subprocess.Popen(
        [*command, qemu_source(image), f"/proc/self/fd/{target}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[image.file, target],
        env=os.environ | {"LC_ALL": "C"},
    ) as process:
        assert process.stdout and process.stderr
        try:
            follow(process.stdout, progress)
            reason = last_line(process.stderr.read().decode(errors="replace"))
        except BaseException:
            process.kill()
            raise
    if not process.returncode:
        return
    if "No space left" in reason:
        raise NoSpace(_("The storage filled up while the image was unpacked, so nothing of it was kept."))
    if "while writing" in reason:
        raise Unavailable(_("qemu-img could not unpack the image: %(reason)s") % {"reason": reason})
    raise Refused(
        _("“%(path)s” is damaged or truncated. qemu-img says: %(reason)s") % {"path": image.path, "reason": reason}
    )


def follow(output: IO[bytes], progress: Progress) -> None:
    """Report QEMU's progress until it ends."""
    while True:
        if select.select([output], [], [], BEAT_SECONDS)[0]:
            printed = os.read(output.fileno(), 4096)
            if not printed:
                return
            if shares := re.findall(rb"([\d.]+)/100%", printed):
                progress.add(int(progress.total * float(shares[-1]) / 100) - progress.done)
        else:
            progress.beat()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].removeprefix("qemu-img: ")
