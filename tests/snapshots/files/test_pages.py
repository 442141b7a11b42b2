"""The pages of files: permissions, log entries, and messages when a disk can't be read."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from cng_portal.accounts.models import Membership, Project, Role, User
from cng_portal.activity.models import Activity
from snapshots.files import children, limits, services
from snapshots.files.children import FAILURES
from snapshots.models import DiskImage, Snapshot, State
from tests.factories import ProjectFactory, UserFactory
from tests.log_events import log_events
from tests.snapshots.disks import flip_byte
from tests.snapshots.files import images as make
from tests.snapshots.files.conftest import Images
from tests.snapshots.files.test_readers import address, extract

pytestmark = pytest.mark.django_db

Capture = Callable[[Path], DiskImage]
WHAT = ("files", "folder", "download_file", "download_folder")


@pytest.fixture
def user(project: Project) -> User:
    return UserFactory(member_of=project, member_of__role=Role.MEMBER)


@pytest.fixture
def client(user: User, client_for: Callable[..., Client]) -> Client:
    return client_for(user)


@pytest.fixture
def disk(images: Images, capture: Capture) -> DiskImage:
    return capture(images("ext4"))


def url(name: str, disk: DiskImage) -> str:
    return reverse("snapshots:files", args=[disk.snapshot_id]) if name == "files" else address(name, disk)


def end(response: HttpResponse) -> None:
    """Close an unfinished download, but not the test's database connection, as `close` would."""
    for close in response._resource_closers:
        close()


def children_left() -> list[str]:
    return [
        pid
        for pid in os.listdir("/proc")
        if pid.isdecimal() and "snapshots.files.reader" in read_command(pid) and str(os.getpid()) == parent_of(pid)
    ]


def read_command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def parent_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""


@pytest.mark.parametrize("name", WHAT)
def test_a_viewer_of_files_gets_the_reason_for_the_refusal(
    name: str, disk: DiskImage, project: Project, client_for: Callable[..., Client]
) -> None:
    viewer = client_for(UserFactory(member_of=project, member_of__role=Role.VIEWER))
    response = viewer.get(url(name, disk))
    assert response.status_code == 403
    assert "does not allow reading the files" in response.text
    assert "Files" not in viewer.get(reverse("snapshots:snapshot", args=[disk.snapshot_id])).text.split("<main")[1]


@pytest.mark.parametrize("name", WHAT)
def test_a_stranger_finds_nothing(name: str, disk: DiskImage, client_for: Callable[..., Client]) -> None:
    stranger = client_for(UserFactory(member_of=ProjectFactory()))
    assert stranger.get(url(name, disk)).status_code == 404


def test_a_disk_of_another_snapshot_is_not_found(
    disk: DiskImage, images: Images, capture: Capture, client: Client
) -> None:
    other = capture(images("ext4"))
    mixed = reverse("snapshots:folder", args=[disk.snapshot_id, other.pk, 0])
    assert client.get(mixed).status_code == 404


def test_an_administrator_who_impersonates_a_member_reads_nothing(disk: DiskImage, user: User) -> None:
    from django.test import RequestFactory

    from snapshots.files.views import get_readable

    request = RequestFactory().get("/")
    request.user, request.impersonator = user, UserFactory(admin=True)
    with pytest.raises(PermissionDenied):
        get_readable(request, disk.snapshot_id)


def test_a_member_walks_from_the_snapshot_to_a_file(disk: DiskImage, client: Client) -> None:
    page = client.get(reverse("snapshots:snapshot", args=[disk.snapshot_id])).text
    assert url("files", disk) in page
    assert url("folder", disk) in client.get(url("files", disk)).text
    root = client.get(url("folder", disk)).text
    assert "plain.txt" in root and "lost+found/" in root
    assert "new\\nline" in root and "nonutf8-\\xff\\xfe" in root and "right-\\u202eto-left" in root
    assert "&lt;script&gt;alert(1)" in root and "<script>alert(1)" not in root
    assert "Link to /etc/passwd" in root and "Device, pipe or socket" in root
    assert "-rwsr-xr-x" in root and "0:0" in root
    inner = client.get(url("folder", disk), {"path": "/sub/deep"}).text
    assert "random.bin" in inner and "plain.txt" not in inner


def test_a_page_of_files_needs_few_queries(disk: DiskImage, client: Client) -> None:
    for name in "files", "folder":
        with CaptureQueriesContext(connection) as queries:
            client.get(url(name, disk))
        assert len(queries) <= 25, name


def test_a_search_finds_a_part_of_a_path(disk: DiskImage, client: Client) -> None:
    page = client.get(url("folder", disk), {"q": "DEEP/rand"}).text
    assert "/sub/deep/random.bin" in page and "plain.txt" not in page
    assert "Nothing matches" in client.get(url("folder", disk), {"q": "no such name"}).text
    below = client.get(url("folder", disk), {"path": "/sub", "q": "plain"}).text
    assert "Nothing matches" in below


@pytest.mark.parametrize("path", ["/no/such", "/plain.txt", "/link-up/etc", "/" + "x/" * 300, "/%00", "x" * 70_000])
def test_a_path_that_is_not_a_folder_is_explained(path: str, disk: DiskImage, client: Client) -> None:
    response = client.get(url("folder", disk), {"path": path})
    assert response.status_code == 200
    assert "no such file or folder" in response.text


@pytest.mark.parametrize("part", [1, 10**30])
def test_a_part_that_the_disk_does_not_have_is_not_called_damaged(part: int, disk: DiskImage, client: Client) -> None:
    assert "no such file or folder" in client.get(address("folder", disk, part)).text


@pytest.mark.parametrize("query", ["id=x", "q=%00", "path=%ff"])
def test_invalid_addresses_are_harmless(query: str, disk: DiskImage, client: Client) -> None:
    assert client.get(f"{url('folder', disk)}?{query}").status_code == 200


@pytest.mark.parametrize("start", ["-1", "x", "5000", "99999999999"])
def test_a_page_or_an_order_that_does_not_exist_is_said(start: str, disk: DiskImage, client: Client) -> None:
    page = client.get(url("folder", disk), {"from": start, "sort": "evil"}).text
    assert "That page doesn't exist." in page and "Filters that don't exist were ignored:" in page
    assert "plain.txt" in page
    page = client.get(url("folder", disk), {"sort": "size"}).text
    assert "exist were ignored" not in page and "That page" not in page


def test_a_folder_of_20000_files_is_shown_in_pages(capture: Capture, client: Client, tmp_path: Path) -> None:
    make.need("mkfs.xfs")
    empty = tmp_path / "empty"
    empty.touch()
    entries = [f"file-{number:05} ---644 0 0 {empty}" for number in range(20_000)]
    disk = capture(make.make_xfs_of(tmp_path / "image", entries))
    first = client.get(url("folder", disk)).text
    assert "1 to 100 of 20,000" in first and "file-00099" in first and "file-00100" not in first
    last = client.get(url("folder", disk), {"from": 19_900}).text
    assert "file-19999" in last and "19,901 to 20,000" in last
    assert "file-12345" in client.get(url("folder", disk), {"q": "12345"}).text


def test_entries_of_the_same_name_are_distinguished_by_inode(disk: DiskImage, client: Client) -> None:
    listing = services.list_folder(disk, 0, (), number=None, order="name", start=0)
    plain = next(file for file in listing.files if file.name == "plain.txt")
    with_number = client.get(url("download_file", disk), {"path": "/plain.txt", "id": plain.id})
    assert b"".join(with_number) == b"hello\n"
    assert client.get(url("download_file", disk), {"path": "/plain.txt", "id": plain.id + 1}).status_code == 302


def test_a_download_is_recorded(disk: DiskImage, client: Client, user: User) -> None:
    b"".join(client.get(url("download_file", disk), {"path": "/sub/deep/random.bin"}))
    entry = Activity.objects.get(action="snapshot.download_file")
    assert (entry.actor, entry.target_id, entry.project) == (user, str(disk.snapshot_id), disk.snapshot.project)
    assert entry.after["path"] == "/sub/deep/random.bin"
    assert "/sub/deep/random.bin" in client.get(reverse("activity:log")).text
    end(client.get(url("download_folder", disk), {"path": "/sub"}))
    assert Activity.objects.get(action="snapshot.download_folder").after["path"] == "/sub"


@pytest.mark.parametrize("path", ["/no-such", "/sub", "/link-passwd", "/pipe", "/"])
def test_only_files_and_folders_are_downloaded(path: str, disk: DiskImage, client: Client) -> None:
    response = client.get(url("download_file", disk), {"path": path}, follow=True)
    assert "no such file or folder" in response.text
    assert not Activity.objects.filter(action="snapshot.download_file").exists()


def test_the_name_of_a_download_cannot_break_its_header(disk: DiskImage, client: Client) -> None:
    newline = client.get(url("download_file", disk), {"path": "/new%0Aline"})
    end(newline)
    assert newline["Content-Disposition"] == 'attachment; filename="new_line"'
    burmese = client.get(url("download_file", disk), {"path": "/မြန်မာ.txt"})
    end(burmese)
    assert burmese["Content-Disposition"].startswith("attachment; filename*=utf-8''%E1")


def test_a_download_has_its_size_even_with_gzip(disk: DiskImage, client: Client) -> None:
    response = client.get(url("download_file", disk), {"path": "/plain.txt"}, headers={"Accept-Encoding": "gzip"})
    assert response["Content-Length"] == "6" and "Content-Encoding" not in response
    assert b"".join(response) == b"hello\n"


@pytest.mark.parametrize("ending", ["deletion", "missing", "role", "account"])
def test_a_download_ends_when_access_is_lost(
    ending: str, disk: DiskImage, client: Client, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "CHECK_SECONDS", 0)
    response = client.get(url("download_file", disk), {"path": "/random.bin"})
    chunks = iter(response)
    next(chunks)
    match ending:
        case "deletion":
            Snapshot.objects.filter(pk=disk.snapshot_id).update(
                state=State.DELETING, delete_requested_at=disk.snapshot.ready_at, deletion_cause="user"
            )
        case "missing":
            Snapshot.objects.filter(pk=disk.snapshot_id).update(missing_since=disk.snapshot.ready_at)
        case "role":
            Membership.objects.filter(user=user).update(role=Role.VIEWER)
        case "account":
            User.objects.filter(pk=user.pk).update(is_active=False)
    with pytest.raises(services.DownloadEnded):
        list(chunks)
    end(response)
    assert children_left() == []


def test_a_download_whose_reader_dies_ends_with_an_error(disk: DiskImage, client: Client) -> None:
    """It sends fewer bytes than Content-Length, and doesn't end normally."""
    response = client.get(url("download_file", disk), {"path": "/random.bin"})
    chunks = iter(response)
    size = len(next(chunks))
    for pid in children_left():
        os.kill(int(pid), 9)
    with pytest.raises(children.ReaderFailed):
        for chunk in chunks:
            size += len(chunk)
    assert size < int(response["Content-Length"])
    end(response)


def test_a_third_reader_of_a_customer_waits_and_is_refused(
    disk: DiskImage, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAIT_SECONDS", 0)
    monkeypatch.setattr(limits, "_threads", BoundedSemaphore(10))
    running = [client.get(url("download_file", disk), {"path": "/big"}) for _number in range(2)]
    assert "being read already" in client.get(url("folder", disk)).text
    assert len(children_left()) == 2
    end(running[0])
    assert "plain.txt" in client.get(url("folder", disk)).text
    end(running[1])
    assert children_left() == []


def test_a_client_that_stops_reading_loses_its_download(
    disk: DiskImage, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would occupy a thread and a reader forever, and after a minute its account could start two more."""
    monkeypatch.setattr(limits, "SEND_SECONDS", 0.1)
    server_end, client_end = socket.socketpair()
    response = client.get(url("download_file", disk), {"path": "/big"}, **{"gunicorn.socket": server_end})
    with server_end, client_end, pytest.raises(TimeoutError):
        for piece in response:
            server_end.sendall(piece)  # as gunicorn does
    end(response)
    assert children_left() == []
    assert response["X-Accel-Buffering"] == "no"


def test_a_slow_client_keeps_its_slot() -> None:
    longest = limits.RENEW_AFTER + children.STREAM_SECONDS + limits.SEND_SECONDS
    assert longest < limits.LEASE_SECONDS


def test_downloads_leave_threads_to_pages(disk: DiskImage, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAIT_SECONDS", 0)
    monkeypatch.setattr(limits, "_threads", BoundedSemaphore(1))
    running = client.get(url("download_file", disk), {"path": "/big"})
    assert "many disks right now" in client.get(url("folder", disk)).text
    end(running)
    assert "plain.txt" in client.get(url("folder", disk)).text


def test_a_damaged_snapshot_is_readable_under_a_warning(disk: DiskImage, client: Client) -> None:
    DiskImage.objects.update(damage="Block 12 is not what was captured.")
    Snapshot.objects.update(damaged_at=disk.snapshot.ready_at)
    for name in "files", "folder":
        assert "This snapshot is damaged" in client.get(url(name, disk)).text
    assert b"".join(client.get(url("download_file", disk), {"path": "/plain.txt"})) == b"hello\n"


def test_a_snapshot_that_is_not_in_the_storage_is_explained(
    disk: DiskImage, client: Client, storage_root: Path
) -> None:
    [image] = storage_root.rglob("disk.img")
    image.unlink()
    for name in WHAT:
        assert "missing" in client.get(url(name, disk), follow=True).text


def test_an_image_that_is_a_symlink_is_not_opened(disk: DiskImage, client: Client, storage_root: Path) -> None:
    [image] = storage_root.rglob("disk.img")
    image.unlink()
    image.symlink_to("/etc/passwd")
    assert "not a regular file" in client.get(url("folder", disk)).text


def test_a_snapshot_that_is_not_ready_has_no_files_yet(disk: DiskImage, client: Client) -> None:
    Snapshot.objects.update(state=State.CREATING)
    assert "is not ready" in client.get(url("folder", disk)).text


BREAKING = {
    "crashes": "import ctypes; ctypes.string_at(0)",
    "ends": "raise SystemExit(0)",
    "loops": "while True: pass",
    "eats memory": "x = [bytearray(2**20) for _ in range(2**20)]",
    "babbles": "import os; [os.write(1, b'x' * 2**20) for _ in range(100)]",
    "nests": "import os; os.write(1, b'[' * 10**5 + b'\\n')",
    "never stops answering": "import os; [os.write(1, b'{}\\n' * 2**18) for _ in range(2**20)]",
}


@pytest.mark.parametrize("how", BREAKING)
def test_a_crashed_reader_fails_one_request(
    how: str, disk: DiskImage, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    command = f"def command(*a):\n  {BREAKING[how]}\n  yield {{}}\nmain.COMMANDS['folder'] = command\n"
    start = "import sys; sys.path += sys.argv[1:]\nfrom snapshots.files.reader import main\n"
    start += f"{command}sys.exit(main.main())"
    with monkeypatch.context() as patch:
        patch.setattr(children, "START", start)
        patch.setattr(children, "CPU_SECONDS", 1)
        began = time.monotonic()
        response = client.get(url("folder", disk))
        assert time.monotonic() - began < 15
    assert response.status_code == 200
    assert "could not be read" in response.text
    assert "files.reader_failed" in log_events(caplog)
    assert sum(sample.value for family in FAILURES.collect() for sample in family.samples) >= 1
    assert children_left() == []
    assert "plain.txt" in client.get(url("folder", disk)).text


FORGED = {
    "a size that is text": {"size": "<b>"},
    "a size beyond all": {"size": 10**400},
    "a size below nothing": {"size": -1},
    "a mode beyond all": {"mode": 2**70},
    "a number that is a list": {"id": []},
    "a time that is text": {"changed_at": "now"},
    "a total that is text": {"total": "x"},
    "no name": {"name": None},
}


@pytest.mark.parametrize("what", FORGED)
def test_an_answer_that_no_reader_gives_is_refused(
    what: str, disk: DiskImage, client: Client, monkeypatch: Any
) -> None:
    """A compromised reader answers anything."""
    forge(monkeypatch, FORGED[what])
    assert "could not be read" in client.get(url("folder", disk)).text


@pytest.mark.parametrize("seconds", ["253402300799", "-62135596800", "1e300", "NaN", "-Infinity"])
def test_a_time_that_no_zone_has_is_unknown(seconds: str, disk: DiskImage, client: Client, monkeypatch: Any) -> None:
    forge(monkeypatch, {"changed_at": float(seconds)})
    assert "forged" in client.get(url("folder", disk)).text


def forge(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> None:
    """Let the reader of folders answer with one file named `forged`."""
    summary = {"total": 1, "unreadable": 0, "is_complete": True, "has_owners": True}
    entry = {"name": "Zm9yZ2Vk", "id": 7, "kind": "f", "size": 1, "changed_at": 0, "mode": 0, "owner": 0, "group": 0}
    forged = [{each: answer.get(each, value) for each, value in part.items()} for part in (summary, entry)]
    forged[1]["target"] = ""
    start = "import sys, json; sys.path += sys.argv[1:]\nfrom snapshots.files.reader import main\n"
    start += f"main.COMMANDS['folder'] = lambda *a: iter(json.loads({json.dumps(forged)!r}))\n"
    monkeypatch.setattr(children, "START", f"{start}sys.exit(main.main())")


def test_a_download_that_meets_damage_ends_with_an_error_of_its_own(
    disk: DiskImage, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader didn't fail, so nobody is alerted."""
    command = "def command(*a):\n  yield {'size': 9}\n  yield b'12345'\n  raise main.Damaged\n"
    command += "main.COMMANDS['file'] = command\n"
    start = "import sys; sys.path += sys.argv[1:]\nfrom snapshots.files.reader import main\n"
    monkeypatch.setattr(children, "START", f"{start}{command}sys.exit(main.main())")
    response = client.get(url("download_file", disk), {"path": "/plain.txt"})
    with pytest.raises(children.ReaderFailed, match="damaged"):
        list(response)
    assert "files.reader_failed" not in log_events(caplog)


def test_a_damaged_file_system_lists_what_it_can(
    images: Images, capture: Capture, client: Client, tmp_path: Path
) -> None:
    """An entry whose inode is gone stays in the list, marked."""
    make.need("debugfs")
    image = make.copy(images("ext4"), tmp_path / "image")
    make.run("debugfs", "-w", "-R", "clri /random.bin", image)
    disk = capture(image)
    page = client.get(url("folder", disk)).text
    assert "random.bin" in page and "Damaged" in page and "plain.txt" in page
    archive = extract(client.get(url("download_folder", disk)))
    assert "random.bin: unreadable" in archive.extractfile("LEFT-OUT.txt").read().decode()  # type: ignore[union-attr]


def test_flipped_bytes_never_break_a_page(
    images: Images, capture: Capture, client: Client, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some make the reader loop until its limit; `python -m tests.lab.fuzz_files` flips many more."""
    monkeypatch.setattr(children, "CPU_SECONDS", 1)
    monkeypatch.setattr(children, "CPU_SECONDS_PER_GB", 1)
    disk = capture(images("ext4"))
    [image] = storage_root.rglob("disk.img")
    for at in (1024 + 24, 1024 + 40, 1024 + 88, 2048 + 8):
        flip_byte(image, at)
        for name in "folder", "download_folder":
            assert client.get(url(name, disk), follow=True).status_code == 200
        flip_byte(image, at)
