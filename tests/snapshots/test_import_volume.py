"""`manage.py import_volume` imports disk images byte for byte, or not at all."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3
from django.core.management import CommandError, call_command
from django.db import IntegrityError

from cng_portal.accounts.models import Project
from cng_portal.inventory.models import Location, Volume
from snapshots.storage.contract import GIB
from tests.factories import LocationFactory, ProjectFactory
from tests.snapshots.disks import largest_file, touch_every_chunk

pytestmark = pytest.mark.django_db
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (Debian: qemu-utils)")
MIB = 1024**2
DATA = blake3(b"disk").digest(3 * MIB + 100)


@pytest.fixture
def location() -> Location:
    return LocationFactory()


@pytest.fixture
def project() -> Project:
    return ProjectFactory(name="Software")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of slightly more than 50 MiB, with data at its start and end."""
    path = tmp_path / "disk.raw"
    with open(path, "wb") as file:
        file.write(DATA)
        file.seek(50 * MIB)
        file.write(b"the end")
    return path


def tar_of(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def import_volume(file: Path, project: Project, location: Location, /, **options: Any) -> None:
    call_command(
        "import_volume", file, **{"project": str(project.pk), "location": location.pk, "name": "web"} | options
    )


def files_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def assert_volume_holds_the_image(root: Path, image: Path) -> None:
    volume = Volume.objects.get()
    assert (volume.name, volume.size_gb) == ("web", 1)
    path = root / volume.location_id / "volumes" / f"{volume.pk}.img"
    assert path.stat().st_size == GIB
    assert path.stat().st_blocks * 512 < 10 * MIB, "holes were filled"
    content = image.read_bytes()
    with open(path, "rb") as file:
        assert file.read(len(content)) == content
        assert not file.read(MIB).strip(b"\0")


def test_a_raw_image_becomes_a_volume_of_whole_gigabytes(
    image: Path, project: Project, location: Location, storage_root: Path
) -> None:
    import_volume(image, project, location, name=" web ")
    assert_volume_holds_the_image(storage_root, image)
    assert Volume.objects.get().project == project


@needs_qemu
@pytest.mark.parametrize("compressed", [False, True])
def test_a_qcow2_image_is_unpacked(
    image: Path, project: Project, location: Location, storage_root: Path, compressed: bool
) -> None:
    packed = image.with_suffix(".qcow2")
    os.truncate(image, 51 * MIB)
    flags = ["-c"] if compressed else []
    subprocess.run(["qemu-img", "convert", *flags, "-f", "raw", "-O", "qcow2", image, packed], check=True)
    import_volume(packed, project, location)
    assert_volume_holds_the_image(storage_root, image)


FORMATS = [
    "-O qcow2",
    "-O qcow2 -c",
    "-O qcow2 -o compat=0.10",
    "-O qcow2 -o extended_l2=on,cluster_size=128k",
    "-O qcow2 -o preallocation=metadata",
    "-O qcow",
    "-O vpc",
    "-O vpc -o subformat=fixed",
    "-O vhdx",
    "-O vhdx -o subformat=fixed",
    "-O vmdk",
    "-O vmdk -o subformat=streamOptimized",
    "-O vdi",
    "-O vdi -o static=on",
]


@pytest.fixture
def compressible(image: Path) -> Path:
    """An image with compressible text at its start and in its middle, and noise at its end."""
    with open(image, "r+b") as file:
        file.write(b"some words again and again " * 20_000)
        file.seek(20 * MIB)
        file.write(b"and other words " * 40_000)
        file.seek(51 * MIB - 1000)
        file.write(DATA[:1000])
    return image


def pack(image: Path, options: str) -> Path:
    packed = image.with_name("packed")
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options.split(), image, packed], check=True)
    return packed


@needs_qemu
@pytest.mark.parametrize("options", FORMATS)
def test_an_image_of_another_format_is_unpacked_if_it_is_whole(
    compressible: Path, project: Project, location: Location, storage_root: Path, options: str
) -> None:
    packed = pack(compressible, options)
    complete = packed.read_bytes()
    for length in (
        100,
        len(complete) // 2,
        len(complete) - 70_000,
        len(complete) - 3_000,
        len(complete) - 300,
        len(complete) - 1,
    ):
        packed.write_bytes(complete[:length])
        if "subformat=fixed" in options and "vpc" in options:
            continue  # without its last sector it looks like a raw disk
        with pytest.raises(CommandError, match="truncated|damaged|cannot be read as"):
            import_volume(packed, project, location)
        assert files_in(storage_root) == [], f"{length} of {len(complete)} bytes were taken"
    packed.write_bytes(complete)
    import_volume(packed, project, location)
    assert_volume_holds_the_image(storage_root, compressible)


@needs_qemu
@pytest.mark.parametrize("subformat", ["streamOptimized", "monolithicSparse"])
def test_the_disk_of_an_ova_is_unpacked(
    compressible: Path, project: Project, location: Location, storage_root: Path, subformat: str
) -> None:
    disk = pack(compressible, f"-O vmdk -o subformat={subformat}").read_bytes()
    ova = compressible.with_name("vm.ova")
    complete = tar_of({"vm.ovf": b"<Envelope/>", "vm-disk1.vmdk": disk, "vm.mf": b"SHA256"})
    for length in (len(complete) // 2, 4096 + len(disk) // 2):
        ova.write_bytes(complete[:length])
        with pytest.raises(CommandError, match="truncated|damaged"):
            import_volume(ova, project, location)
    damaged = tar_of({"vm.ovf": b"<Envelope/>", "vm-disk1.vmdk": disk[:-70_000], "vm.mf": b"SHA256" * 20_000})
    ova.write_bytes(damaged)
    with pytest.raises(CommandError, match="truncated|damaged"):
        import_volume(ova, project, location)
    assert files_in(storage_root) == []
    ova.write_bytes(complete)
    import_volume(ova, project, location)
    assert_volume_holds_the_image(storage_root, compressible)


@needs_qemu
@pytest.mark.parametrize(
    "options",
    ["-O vmdk -o subformat=monolithicFlat", "-O vmdk -o subformat=twoGbMaxExtentSparse"],
)
def test_a_vmdk_that_names_other_files_is_refused(
    image: Path, project: Project, location: Location, storage_root: Path, options: str
) -> None:
    packed = pack(image, options)
    parts = [path for path in packed.parent.iterdir() if path.name.startswith("packed-s")]
    for file in [packed, *parts]:
        with pytest.raises(CommandError, match="only names other files|only part of a disk"):
            import_volume(file, project, location)
    assert files_in(storage_root) == []


@needs_qemu
@pytest.mark.parametrize(("format", "backing"), [("qcow", "raw"), ("vmdk", "vmdk")])
def test_an_image_with_a_backing_file_is_refused(
    image: Path, project: Project, location: Location, storage_root: Path, format: str, backing: str
) -> None:
    below = image if backing == "raw" else pack(image, "-O vmdk")
    layer = image.with_name("layer")
    subprocess.run(["qemu-img", "create", "-q", "-f", format, "-F", backing, "-b", below, layer], check=True)
    with pytest.raises(CommandError, match="only part of a disk"):
        import_volume(layer, project, location)
    assert files_in(storage_root) == []


@needs_qemu
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0", "has a disk of 0 bytes"),
        ("900T", "cannot hold a volume as large as this"),
        ("1P", "A volume has at most 1000000 GB"),
    ],
)
def test_a_disk_without_bytes_or_with_too_many_is_refused_in_words(
    tmp_path: Path, project: Project, location: Location, storage_root: Path, size: str, message: str
) -> None:
    packed = tmp_path / "packed"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", packed, size], check=True)
    with largest_file(size_gb=1000), pytest.raises(CommandError, match=message):
        import_volume(packed, project, location)
    assert files_in(storage_root) == []


@needs_qemu
def test_an_encrypted_image_is_refused_in_words(image: Path, project: Project, location: Location) -> None:
    packed = image.with_suffix(".qcow2")
    secret = ["--object", "secret,id=s,data=secret", "-o", "encrypt.format=luks,encrypt.key-secret=s"]
    # QEMU benchmarks the processor for the key, which fails under faketime
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    create = ["qemu-img", "create", "-q", "-f", "qcow2", *secret, packed, "50M"]
    # ... and not always on a busy machine.
    assert any(subprocess.run(create, env=environment, check=False).returncode == 0 for _attempt in range(10))
    with pytest.raises(CommandError, match="is encrypted by QEMU. Decrypt it"):
        import_volume(packed, project, location)


@needs_qemu
def test_a_qcow2_image_that_refers_to_another_file_is_refused(
    image: Path, project: Project, location: Location, storage_root: Path
) -> None:
    layer = image.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, layer], check=True)
    with pytest.raises(CommandError, match="refers to another file"):
        import_volume(layer, project, location)
    assert files_in(storage_root) == []


@pytest.mark.parametrize(
    "header",
    [
        b"QFI\xfb" + (2).to_bytes(4, "big") + (512).to_bytes(8, "big") + bytes(600),  # a backing file's name is at 512
        b"QFI\xfb"
        + (3).to_bytes(4, "big")
        + bytes(64)
        + (4).to_bytes(8, "big")
        + bytes(600),  # its data is in another file
    ],
)
def test_a_reference_is_found_before_qemu_opens_the_image(
    tmp_path: Path, project: Project, location: Location, header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # which has no qemu-img
    (tmp_path / "image").write_bytes(header)
    with pytest.raises(CommandError, match="refers to another file"):
        import_volume(tmp_path / "image", project, location)


@needs_qemu
@pytest.mark.parametrize("name", ["nbd:localhost:9", "json:{}"])
def test_qemu_does_not_take_the_file_name_for_a_url(
    image: Path, project: Project, location: Location, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = image.with_name(name)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, packed], check=True)
    monkeypatch.chdir(packed.parent)
    import_volume(Path(name), project, location)
    assert Volume.objects.get().size_gb == 1


@needs_qemu
def test_the_unpacked_size_has_to_fit(
    tmp_path: Path, project: Project, location: Location, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose, packed = tmp_path / "loose", tmp_path / "packed"
    loose.write_bytes(b"a" * 64 * MIB)
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", loose, packed], check=True)
    assert packed.stat().st_size < MIB
    real = os.statvfs
    room = SimpleNamespace(f_bavail=16, f_blocks=16, f_frsize=MIB)
    monkeypatch.setattr(os, "statvfs", lambda path: room if str(storage_root) in str(path) else real(path))
    with pytest.raises(CommandError, match="is too full"):
        import_volume(packed, project, location)
    assert files_in(storage_root) == []


def test_a_project_is_found_by_its_name_and_customer(image: Path, project: Project, location: Location) -> None:
    other = ProjectFactory(name="software")
    with pytest.raises(CommandError, match=rf"{project.customer.crn}, {other.customer.crn}. Say which with --customer"):
        import_volume(image, project, location, project="Software")
    import_volume(image, project, location, project="Software", customer=other.customer.crn)
    assert Volume.objects.get().project == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"project": "Nothing"}, "There is no project “Nothing”"),
        ({"customer": "me"}, "“me” is not a customer number"),
        ({"customer": "#999999"}, "There is no project"),
        ({"location": "MOON-1"}, "There is no location “MOON-1”. Use one of: 1CNG-YGN-AZ"),
        ({"name": "  "}, "Enter a name."),
        ({"name": "two\nlines"}, "character that can't be displayed"),
        ({"name": "\x1b[31mred"}, "character that can't be displayed"),
        ({"name": "bad\udcff"}, "character that can't be displayed"),
        ({"project": "bad\udcff"}, "character that can't be displayed"),
        ({"customer": "bad\udcff"}, "character that can't be displayed"),
        ({"location": "bad\udcff"}, "character that can't be displayed"),
        ({"name": "x" * 121}, "the limit is 120"),
        ({"name": "two\nlines"}, "can't be displayed"),
        ({"name": "\x1b[31mred"}, "can't be displayed"),
        ({"name": "bad\udcff"}, "can't be displayed"),
    ],
)
def test_an_invalid_option_is_explained_in_one_sentence(
    image: Path, project: Project, location: Location, storage_root: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        import_volume(image, project, location, **options)
    assert not Volume.objects.exists()
    assert files_in(storage_root) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"# Disk DescriptorFile\nversion=1\n", "is a VMDK descriptor, which only names other files"),
        (b"KDMV" + bytes(600), "is only part of a disk"),
        (b"COWD" + bytes(600), "is VMDK of VMware ESX"),
        (b"QED\0" + bytes(600), "is QED"),
        (bytes(5120) + b"koly" + bytes(508), "is DMG"),
        (lambda: gzip.compress(DATA), "is gzip"),
        (lambda: bz2.compress(DATA), "is bzip2"),
        (lambda: lzma.compress(DATA), "is xz"),
        (lambda: lzma.compress(DATA, lzma.FORMAT_ALONE), "is lzma"),
        (lambda: lzma.compress(bytes(9), lzma.FORMAT_ALONE, preset=9), "is lzma"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is zstd"),
        (b"\x04\x22\x4d\x18" + bytes(600), "is lz4"),
        (b"\x02\x21\x4c\x18" + bytes(600), "is lz4"),
        (b"PK\x03\x04" + bytes(600), "is zip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "is 7z"),
        (lambda: tar_of({"disk.raw": DATA}), "is a tar archive"),
        (lambda: tar_of({"disk.raw": DATA}, tarfile.USTAR_FORMAT), "is a tar archive"),
        (lambda: tar_of({"vm.ovf": b"", "a.vmdk": DATA, "b.vmdk": DATA}), "is an OVA with 2 disks"),
        (lambda: tar_of({"vm.ovf": b"", "a.vmdk": DATA}), "is truncated or damaged"),
        pytest.param(b"QFI\xfb" + bytes(600), "is truncated or damaged", marks=needs_qemu),
        pytest.param(b"QFI\xfb\0\0\0\3" + bytes(24) + b"\0\0\0\1" + bytes(600), "encrypted by QEMU", marks=needs_qemu),
    ],
)
def test_a_file_that_is_not_a_disk_image_is_refused(
    tmp_path: Path,
    project: Project,
    location: Location,
    storage_root: Path,
    content: bytes | Callable[[], bytes] | None,
    message: str,
) -> None:
    path = tmp_path / "image"
    if content is not None:
        path.write_bytes(content() if callable(content) else content)
    with pytest.raises(CommandError, match=message):
        import_volume(path, project, location)
    assert not Volume.objects.exists()
    assert files_in(storage_root) == []


def test_a_path_that_is_not_a_file_is_refused(
    image: Path, tmp_path: Path, project: Project, location: Location
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(image)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(CommandError, match="is not a file"):
            import_volume(path, project, location)


def test_a_failed_insert_removes_the_imported_file(
    image: Path, project: Project, location: Location, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Volume, **options: Any) -> None:
        raise IntegrityError

    monkeypatch.setattr(Volume, "save", fail)
    with pytest.raises(IntegrityError):
        import_volume(image, project, location)
    assert files_in(storage_root) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_import_leaves_nothing(
    image: Path,
    project: Project,
    location: Location,
    storage_root: Path,
    process_environment: dict[str, str],
    number: signal.Signals,
) -> None:
    huge = image.with_name("huge.raw")
    with open(huge, "wb") as file:
        file.write(DATA)
        file.truncate(4096 * GIB)
    touch_every_chunk(huge, up_to=16 * GIB)
    command = [sys.executable, "manage.py", "import_volume", str(huge), "--project", str(project.pk)]
    process = subprocess.Popen(
        [*command, "--location", location.pk, "--name", "web"],
        env=process_environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # the volume's hidden file appears when the copy begins
    while process.poll() is None and not files_in(storage_root):
        os.sched_yield()
    process.send_signal(number)
    errors = process.communicate(timeout=30)[1]
    if number == signal.SIGKILL:  # the next import removes what it left
        import_volume(image, project, location)
        assert files_in(storage_root) == [f"{Volume.objects.get().pk}.img"]
    else:
        assert "Interrupted. Nothing was imported." in errors
        assert files_in(storage_root) == []
        assert not Volume.objects.exists()


def test_nothing_is_imported_into_an_archived_project(
    image: Path, project: Project, location: Location, storage_root: Path
) -> None:
    Project.objects.update(archived_at=project.created_at)
    with pytest.raises(CommandError, match="The project “Software” is archived. Unarchive it, or name another one."):
        import_volume(image, project, location)
    assert files_in(storage_root) == []
