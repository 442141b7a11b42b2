"""Disk images from elsewhere: what they are, and qcow2 unpacked by QEMU's own tool."""

import json
import os
import re
import select
import shutil
import subprocess
from pathlib import Path

from django.utils.translation import gettext as _

from .base import Refused, Unavailable
from .copying import BEAT_SECONDS, Progress

QCOW2 = b"QFI\xfb"
# A file that starts like this holds a disk, but not as it is, so that taking its bytes would give a useless volume.
OTHER_FORMATS = {
    b"KDMV": "VMDK",
    b"# Disk DescriptorFile": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"<<< ": "VDI",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}


def inspect_image(path: Path) -> tuple[bool, int]:
    """(whether it is qcow2, bytes of the disk in it). Raises Refused with the reason when it cannot be imported."""
    try:
        with open(path, "rb") as file:
            if not path.is_file():
                raise Refused(_("“%(path)s” is not a file. Give a raw or qcow2 disk image.") % {"path": path})
            start, size = file.read(32), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Refused(_("“%(path)s” cannot be read: %(reason)s.") % {"path": path, "reason": error.strerror}) from error
    for magic, name in OTHER_FORMATS.items():
        if start.startswith(magic):
            raise Refused(
                _("“%(path)s” is %(format)s. Convert it to a raw or qcow2 image first.")
                % {"path": path, "format": name}
            )
    if start.startswith(QCOW2):
        return True, measure_qcow2(path)
    if size == 0:
        raise Refused(_("“%(path)s” is empty. Give a raw or qcow2 disk image.") % {"path": path})
    return False, size


def measure_qcow2(path: Path) -> int:
    """Bytes of the disk in it. An image that refers to other files is refused: they may be anything on this machine."""
    if not shutil.which("qemu-img"):
        raise Refused(_("A qcow2 image needs qemu-img to read it. Install qemu-utils, or convert the image to raw."))
    command = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise Refused(_("qemu-img cannot read the image: %(reason)s") % {"reason": last_line(answer.stderr)})
    info = json.loads(answer.stdout)
    if info.get("backing-filename") or info.get("format-specific", {}).get("data", {}).get("data-file"):
        raise Refused(
            _("“%(path)s” is only a part of a disk: it refers to another file. Merge them with qemu-img convert first.")
            % {"path": path}
        )
    return info["virtual-size"]


def unpack_qcow2(source: Path, target: Path, progress: Progress) -> None:
    """Write the disk in `source` into `target`, a hole of at least its size, without syncing it."""
    command = ["qemu-img", "convert", "-p", "-n", "--target-is-zero", "-f", "qcow2", "-O", "raw"]
    with subprocess.Popen(
        [*command, str(source), str(target)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
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
