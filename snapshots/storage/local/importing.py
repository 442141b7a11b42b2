"""Disk images from elsewhere: what they are, and qcow2 unpacked by QEMU's own tool."""

import json
import os
import re
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

from django.utils.translation import gettext as _

from ..contract import Refused, Unavailable
from .copying import BEAT_SECONDS, Progress

QCOW2 = b"QFI\xfb"
# A file that starts like this holds a disk, but not as it is, so that taking its bytes would give a useless volume.
OTHER_FORMATS = {
    b"KDMV": "VMDK",
    b"# Disk DescriptorFile": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"<<< ": "VDI",
    b"QED\0": "QED",
    b"WithoutFreeSpace": "Parallels",
    b"WithouFreSpacExt": "Parallels",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}


def inspect_image(path: Path) -> tuple[bool, int]:
    """(whether it is qcow2, bytes of the disk in it). Raises Refused with the reason when it cannot be imported."""
    try:
        if path.exists() and not path.is_file():  # asked before it is opened, for which a pipe would wait
            raise Refused(_("“%(path)s” is not a file. Give a raw or qcow2 disk image.") % {"path": path})
        with open(path, "rb") as file:
            start, size = file.read(80), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Refused(_("“%(path)s” cannot be read: %(reason)s.") % {"path": path, "reason": error.strerror}) from error
    for magic, name in OTHER_FORMATS.items():
        if start.startswith(magic):
            raise Refused(
                _("“%(path)s” is %(format)s. Convert it to a raw or qcow2 image first.")
                % {"path": path, "format": name}
            )
    if start.startswith(QCOW2):
        if refers_elsewhere(start):
            raise only_a_part(path)
        return True, measure_qcow2(path)
    if size == 0:
        raise Refused(_("“%(path)s” is empty. Give a raw or qcow2 disk image.") % {"path": path})
    return False, size


def refers_elsewhere(header: bytes) -> bool:
    """Whether it names a backing file or, bit 2 of the incompatible features, a file of its data. Asked before QEMU is,
    which opens the latter when it is only to describe the image. Source: QEMU, docs/interop/qcow2.txt.
    """
    has_features = int.from_bytes(header[4:8], "big") >= 3
    return any(header[8:16]) or has_features and bool(int.from_bytes(header[72:80], "big") & 4)


def only_a_part(path: Path) -> Refused:
    return Refused(
        _("“%(path)s” is only a part of a disk: it refers to another file. Merge them with qemu-img convert first.")
        % {"path": path}
    )


def qemu_img(path: Path, *command: str) -> dict[str, Any]:
    """What it answers, as JSON. The path is absolute, or a name such as nbd:host would be an address to it."""
    options = [*command, "--output=json", "-f", "qcow2", str(path.absolute())]
    answer = subprocess.run(["qemu-img", *options], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise Refused(_("qemu-img cannot read the image: %(reason)s") % {"reason": last_line(answer.stderr)})
    return json.loads(answer.stdout)


def unpacked_bytes(path: Path) -> int:
    """How much room the data of a qcow2 image needs: compressed, a megabyte may hold thousands of them."""
    return qemu_img(path, "measure", "-O", "qcow2")["required"]


def measure_qcow2(path: Path) -> int:
    """Bytes of the disk in it. An image that refers to other files is refused: they may be anything on this machine."""
    if not shutil.which("qemu-img"):
        raise Refused(_("A qcow2 image needs qemu-img to read it. Install qemu-utils, or convert the image to raw."))
    info = qemu_img(path, "info")
    if info.get("backing-filename") or info.get("format-specific", {}).get("data", {}).get("data-file"):
        raise only_a_part(path)
    return info["virtual-size"]


def unpack_qcow2(source: Path, target: Path, progress: Progress) -> None:
    """Write the disk in `source` into `target`, a hole of at least its size, without syncing it."""
    command = ["qemu-img", "convert", "-p", "-n", "--target-is-zero", "-f", "qcow2", "-O", "raw"]
    with subprocess.Popen(
        [*command, str(source.absolute()), str(target)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        try:
            while True:
                if select.select([process.stdout], [], [], BEAT_SECONDS)[0]:
                    printed = os.read(process.stdout.fileno(), 4096)
                    if not printed:
                        break
                    if shares := re.findall(rb"([\d.]+)/100%", printed):
                        progress.add(int(progress.total * float(shares[-1]) / 100) - progress.done)
                else:
                    progress.beat()
            reason = last_line(process.stderr.read().decode(errors="replace"))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise Unavailable(_("qemu-img could not unpack the image: %(reason)s") % {"reason": reason})


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
