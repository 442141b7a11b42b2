"""`manage.py backup` and `restore` of the portal's own state, on both databases."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import time_machine
from django.apps import apps
from django.conf import settings
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from billing.wallet import grant_credits
from cng_portal.accounts.models import Customer, Membership
from cng_portal.inventory.models import Volume
from cng_portal.monitoring.heartbeats import Heartbeat
from cng_portal.monitoring.models import Process
from cng_portal.notifications.models import Notification
from snapshots import restores, services
from snapshots.maintenance import archive
from snapshots.maintenance.database import secret_tables
from snapshots.maintenance.restore import refuse_existing
from snapshots.models import Operation, Snapshot, State
from tests import forked
from tests.factories import MembershipFactory, NotificationFactory, OutgoingMailFactory, UserFactory, VolumeFactory
from tests.snapshots.disks import holds, put_volume, run_active_operations, sell_everywhere

# What a file may hold is decided before the database is touched: those tests need no second database.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("lock_order")]
both_databases = pytest.mark.both_databases

Manage = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__name="Keepers")


@pytest.fixture
def volume(member: Membership, storage_root: Path) -> Volume:
    volume = VolumeFactory(project=member.project)
    sell_everywhere()
    put_volume(storage_root, volume, b"precious" * 1000)
    customer = member.project.customer
    grant_credits(
        customer=customer, amount_micro=10**9, reason="Welcome", key="welcome", by=member.user, at=timezone.now()
    )
    return volume


@pytest.fixture
def snapshot(volume: Volume, member: Membership) -> Snapshot:
    snapshot = services.request_snapshot(source=volume, name="monday", user=member.user)
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.READY
    return snapshot


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "portal.backup"


@pytest.fixture
def elsewhere(process_environment: dict[str, str], tmp_path: Path) -> Iterator[Manage]:
    """elsewhere(*words) runs `manage.py words` on an empty database of the same kind, with the same storage."""
    name = f"elsewhere_{uuid4().hex[:12]}"
    if connection.vendor == "sqlite":
        name = str(tmp_path / name)
        url = f"sqlite:///{name}"
    else:
        base, _, query = process_environment["DATABASE_URL"].partition("?")
        url = f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
    data = tmp_path / "elsewhere"
    data.mkdir()
    changes: dict[str, Any] = {"DATA_DIR": data}

    def manage(*words: object) -> subprocess.CompletedProcess:
        return forked.manage(*words, database=name, **changes)

    def manage_in_new_process(*words: object) -> subprocess.CompletedProcess:
        there = {"DATABASE_URL": url, "DATA_DIR": str(data), "LOG_LEVEL": "ERROR"}
        return subprocess.run(
            [sys.executable, "manage.py", *map(str, words)],
            env=process_environment | there,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    manage.query = lambda sql: query_elsewhere(url, sql)  # type: ignore[attr-defined]
    manage.data, manage.changes = data, changes  # type: ignore[attr-defined]
    manage.in_new_process = manage_in_new_process  # type: ignore[attr-defined]
    yield manage
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def query_elsewhere(url: str, sql: str) -> list[tuple]:
    if connection.vendor == "sqlite":
        import sqlite3

        return sqlite3.connect(url.removeprefix("sqlite:///")).execute(sql).fetchall()
    settings = connection.settings_dict
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(
        host=settings["HOST"], port=settings["PORT"] or None, user=settings["USER"], dbname=name
    ) as there:
        return there.execute(sql).fetchall()


def backup(file: Path, **options: Any) -> None:
    call_command("backup", file, stdout=io.StringIO(), **options)


@both_databases
def test_a_restored_portal_is_identical_and_consistent(
    snapshot: Snapshot, member: Membership, file: Path, elsewhere: Any
) -> None:
    backup(file)
    assert file.stat().st_mode & 0o777 == 0o600
    restored = elsewhere.in_new_process("restore", file)
    assert restored.returncode == 0, restored.stderr
    assert "Restored the portal's state of" in restored.stdout
    assert elsewhere.query("SELECT name, state, size_gb FROM snapshots_snapshot") == [("monday", "ready", 1)]
    assert elsewhere.query("SELECT amount_micro FROM billing_wallettransaction") == [(10**9,)]
    for command in "fsck", "verify_billing":
        result = elsewhere(command)
        assert result.returncode == 0, result.stdout + result.stderr


@both_databases
def test_a_backup_of_a_running_portal_is_of_one_instant(file: Path, elsewhere: Any, member: Membership) -> None:
    """Every transaction gives two customers the same name, so that a mixture of instants would show."""
    other = MembershipFactory().project.customer
    mine = member.project.customer
    done = threading.Event()
    changes = 0

    def go_on() -> None:
        nonlocal changes
        from django.db import transaction

        while not done.is_set():
            changes += 1
            with transaction.atomic():
                for pk in mine.pk, other.pk:
                    Customer.objects.filter(pk=pk).update(name=f"name {changes}")
        connection.close()

    thread = threading.Thread(target=go_on)
    thread.start()
    while changes < 3:
        pass
    before = changes
    backup(file)
    done.set()
    thread.join()
    assert changes > before, "nothing went on meanwhile"
    assert elsewhere("restore", file).returncode == 0
    names = elsewhere.query("SELECT DISTINCT name FROM accounts_customer")
    assert len(names) == 1 and names[0][0].startswith("name ")


@both_databases
def test_a_portal_restored_from_a_backup_under_load_works(
    snapshot: Snapshot, volume: Volume, member: Membership, file: Path, elsewhere: Any, settings: Any
) -> None:
    """Operations in progress at that instant continue on the restored portal, and everything is consistent."""
    settings.OPERATION_LEASE_SECONDS = 1  # it has expired by then
    over = threading.Event()
    began, ended = 0, 0

    def click() -> None:
        nonlocal began, ended
        customer = volume.project.customer
        while not over.is_set():
            began += 1
            snapshot = services.request_snapshot(source=volume, name=f"click {began}", user=member.user)
            services.rename_snapshot(snapshot=snapshot, user=member.user, name=f"renamed {began}")
            fields = {"amount_micro": 10**9, "reason": "More", "key": f"more-{began}", "at": timezone.now()}
            grant_credits(customer=customer, by=member.user, **fields)
            if began % 2:  # the others wait for the restored portal's worker
                run_active_operations()
            ended += 1
        connection.close()

    thread = threading.Thread(target=click)
    thread.start()
    before = -1
    while ended == before or not ended:  # until something was requested in between
        file.unlink(missing_ok=True)
        before = ended
        backup(file)
    over.set()
    thread.join()
    restored = elsewhere("restore", file)
    assert restored.returncode == 0, restored.stderr
    for command in ("scheduler", "--once"), ("worker", "--batch"), ("worker", "--batch"), ("verify_billing",):
        result = elsewhere(*command)
        assert result.returncode == 0, result.stdout + result.stderr
    assert elsewhere.query("SELECT DISTINCT state FROM snapshots_snapshot") == [("ready",)]
    # findings can only be about objects created after that instant, which this portal knows
    findings = re.findall(r"^([a-z-]+) \S+ \S+/snapshots/(\S+)$", elsewhere("fsck").stdout, re.MULTILINE)
    restored_ids = {str(UUID(str(pk))) for (pk,) in elsewhere.query("SELECT id FROM snapshots_snapshot")}
    assert {code for code, _uuid in findings} <= {"orphan"}
    assert not restored_ids & {uuid for _code, uuid in findings}


@both_databases
def test_an_unavailable_storage_does_not_stop_a_backup_or_restore(
    snapshot: Snapshot, file: Path, storage_root: Path, elsewhere: Any, capsys: pytest.CaptureFixture
) -> None:
    backup(file)
    folder, away = storage_root / snapshot.location_id, storage_root / "away"
    folder.rename(away)
    folder.write_text("no file system is mounted here")
    newer = file.with_name("newer.backup")
    backup(newer)
    assert f"Some manifests of {snapshot.location_id} are missing from it: The storage of" in capsys.readouterr().err
    restored = elsewhere("restore", file)
    assert restored.returncode == 0, restored.stderr
    assert f"Some manifests of {snapshot.location_id} were not checked: The storage of" in restored.stderr
    folder.unlink()
    away.rename(folder)
    assert elsewhere("restore", newer, "--over-existing").returncode == 0
    assert elsewhere("fsck").returncode == 0


@both_databases
def test_a_storage_that_is_not_set_up_is_reported_first(
    snapshot: Snapshot, member: Membership, volume: Volume, file: Path, elsewhere: Any
) -> None:
    restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    backup(file)
    other = {"driver": "snapshots.storage.local.LocalDriver", "options": {}}
    elsewhere.changes["STORAGE"] = {"other": other}
    refused = elsewhere("restore", file)
    assert refused.returncode != 0 and "before you start the portal" in refused.stderr
    assert "Traceback" not in refused.stderr
    del elsewhere.changes["STORAGE"]
    restored = elsewhere("restore", file, "--over-existing")
    assert "Failed unfinished restores of volumes, and notified users: 1" in restored.stdout, restored.stderr


@both_databases
def test_missing_manifests_are_restored_and_intact_ones_stay(
    snapshot: Snapshot, member: Membership, file: Path, storage_root: Path, elsewhere: Any
) -> None:
    second = services.request_snapshot(source=snapshot.volume, name="tuesday", user=member.user)
    run_active_operations()
    backup(file)
    folder = storage_root / snapshot.location_id / "snapshots"
    lost, sound = folder / str(snapshot.pk) / "manifest.json", folder / str(second.pk) / "manifest.json"
    text = lost.read_text()
    lost.unlink()
    sound.write_text(sound.read_text() + "\n")  # newer than the one in the file
    newer_text = sound.read_text()
    restored = elsewhere("restore", file)
    assert "Restored missing or damaged manifests: 1" in restored.stdout, restored.stderr
    assert (lost.read_text(), sound.read_text()) == (text, newer_text)
    assert elsewhere("fsck", "--read").returncode == 0


@both_databases
def test_a_database_with_data_is_replaced_only_on_request(
    snapshot: Snapshot, member: Membership, file: Path, elsewhere: Any
) -> None:
    backup(file)
    elsewhere("restore", file)
    services.rename_snapshot(snapshot=snapshot, user=member.user, name="renamed")
    newer = file.with_name("newer.backup")
    backup(newer)
    refused = elsewhere("restore", newer)
    assert refused.returncode != 0 and "already has customers or users. Nothing was changed." in refused.stderr
    assert elsewhere.query("SELECT name FROM snapshots_snapshot") == [("monday",)]
    assert elsewhere("restore", newer, "--over-existing").returncode == 0
    assert elsewhere.query("SELECT name FROM snapshots_snapshot") == [("renamed",)]
    assert elsewhere("fsck").returncode == 0


@both_databases
def test_nothing_is_replaced_while_a_worker_runs(snapshot: Snapshot, file: Path) -> None:
    backup(file)
    Process.objects.create(kind=Process.Kind.WORKER, host="here", pid=1)
    with pytest.raises(CommandError, match="is using this database"):
        call_command("restore", file, over_existing=True)


@both_databases
@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite runs on one machine, which has one clock.")
@pytest.mark.parametrize("hours", [2, -2])
def test_a_running_worker_is_noticed_although_a_clock_is_wrong(hours: int) -> None:
    wrong = timezone.now() + timedelta(hours=hours)
    worker = Heartbeat(Process.Kind.WORKER)
    worker._register()
    with time_machine.travel(wrong), pytest.raises(archive.BackupError, match="is using this database"):
        refuse_existing(over_existing=True)
    with time_machine.travel(wrong):
        worker._register()
    with pytest.raises(archive.BackupError, match="is using this database"):
        refuse_existing(over_existing=True)


@both_databases
@pytest.mark.parametrize("cut", [0.2, 0.5, 0.999])
def test_a_file_that_was_not_finished_is_refused(
    snapshot: Snapshot, member: Membership, file: Path, cut: float
) -> None:
    backup(file)
    os.truncate(file, int(file.stat().st_size * cut) if cut < 0.99 else end_of_content(file))
    with pytest.raises(CommandError, match="damaged or incomplete"):
        call_command("restore", file, over_existing=True)
    assert Snapshot.objects.get().name == "monday"


def end_of_content(file: Path) -> int:
    """Return where the checksums begin."""
    with tarfile.open(file) as tar:
        return tar.getmember(archive.CHECKSUMS).offset


@both_databases
@pytest.mark.parametrize("name", [archive.HEAD, archive.DATABASE, archive.MANIFESTS])
def test_a_single_bit_that_is_wrong_is_noticed(snapshot: Snapshot, file: Path, name: str) -> None:
    backup(file)
    with tarfile.open(file) as tar:
        part = tar.getmember(name)
    with open(file, "r+b") as content:
        content.seek(part.offset_data + part.size // 2)
        byte = content.read(1)[0]
        content.seek(-1, os.SEEK_CUR)
        content.write(bytes([byte ^ 1]))
    with pytest.raises(CommandError, match="damaged or incomplete"):
        call_command("restore", file, over_existing=True)


def test_a_file_that_is_not_a_backup_is_refused(file: Path) -> None:
    with pytest.raises(CommandError, match="can't be read: No such file"):
        call_command("restore", file)
    file.write_text("hello")
    with pytest.raises(CommandError, match="damaged or incomplete"):
        call_command("restore", file)


def read_parts(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {part.name: tar.extractfile(part).read() for part in tar}  # type: ignore[union-attr]


def write_parts(file: Path, parts: dict[str, bytes]) -> None:
    """Write the parts, with valid checksums unless the parts include some."""
    with tarfile.open(file, "w") as tar:
        sums = {name: archive.add(tar, name, io.BytesIO(data), len(data)) for name, data in parts.items()}
        if archive.CHECKSUMS not in parts:
            text = json.dumps(sums).encode()
            archive.add(tar, archive.CHECKSUMS, io.BytesIO(text), len(text))


def rewrite(file: Path, **changed: object) -> None:
    """Write the file with another head and valid checksums."""
    parts = read_parts(file)
    head = json.loads(parts[archive.HEAD])
    parts[archive.HEAD] = json.dumps(head | changed).encode()
    del parts[archive.CHECKSUMS]
    write_parts(file, parts)


def assert_refused(file: Path, message: str) -> None:
    """Check that the file is refused and nothing was restored."""
    before = Snapshot.objects.get().name
    with pytest.raises(CommandError, match=message):
        call_command("restore", file, over_existing=True)
    connection.close()
    assert Snapshot.objects.get().name == before


DEEP = b"[" * 100_000
MANIFEST = {"location": "1CNG-YGN-AZ01", "uuid": "3f3f3f3f-0000-4000-8000-000000000000", "text": "{}"}


@pytest.mark.parametrize(
    ("part", "content"),
    [
        (archive.HEAD, b""),
        (archive.HEAD, b"null"),
        (archive.HEAD, b"[]"),
        (archive.HEAD, b"{}"),
        (archive.HEAD, b"\xff"),
        (archive.HEAD, DEEP),
        (archive.HEAD, b" " * 2**21 + b"{}"),
        (archive.CHECKSUMS, b"null"),
        (archive.CHECKSUMS, DEEP),
        (archive.CHECKSUMS, b"{}"),
        (archive.MANIFESTS, b"hello\n"),
        (archive.MANIFESTS, b"5\n"),
        (archive.MANIFESTS, DEEP + b"\n"),
        (archive.MANIFESTS, b'{"location": "A"}\n'),
        (archive.MANIFESTS, json.dumps(MANIFEST | {"uuid": "5"}).encode()),
        (archive.MANIFESTS, json.dumps(MANIFEST | {"uuid": 5}).encode()),
        (archive.MANIFESTS, json.dumps(MANIFEST | {"location": ["A"]}).encode()),
        (archive.MANIFESTS, json.dumps(MANIFEST | {"text": 5}).encode()),
        (archive.MANIFESTS, json.dumps(MANIFEST).encode()),
        pytest.param(archive.DATABASE, b"", marks=both_databases),
        pytest.param(archive.DATABASE, b"hello", marks=both_databases),
    ],
)
def test_a_file_with_a_part_that_the_portal_did_not_write_is_refused(
    snapshot: Snapshot, file: Path, part: str, content: bytes
) -> None:
    backup(file)
    parts = read_parts(file)
    del parts[archive.CHECKSUMS]
    write_parts(file, parts | {part: content})
    assert_refused(file, "damaged|not a backup|pg_restore|wasn't written by the portal")


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "1"},
        {"format": None},
        {"taken_at": 5},
        {"taken_at": "yesterday"},
        {"taken_at": "2026-11-24T10:00:00"},
        {"database": None},
        {"migrations": None},
        {"migrations": 5},
        {"migrations": [{}]},
        {"migrations": []},
    ],
    ids=str,
)
def test_a_file_with_a_head_that_the_portal_did_not_write_is_refused(
    snapshot: Snapshot, file: Path, changed: dict[str, object]
) -> None:
    backup(file)
    rewrite(file, **changed)
    assert_refused(file, "damaged|wasn't written by the portal")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("name", [archive.HEAD, archive.DATABASE, "more"])
def test_an_archive_with_other_members_than_files_is_refused(
    snapshot: Snapshot, file: Path, name: str, kind: bytes
) -> None:
    backup(file)
    parts = read_parts(file)
    with tarfile.open(file, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "nothing"
        tar.addfile(member)
        for part, data in parts.items():
            if part != name:
                archive.add(tar, part, io.BytesIO(data), len(data))
    assert_refused(file, "damaged")


def test_a_compressed_file_is_refused(snapshot: Snapshot, file: Path) -> None:
    """A few kilobytes could expand to many gigabytes."""
    backup(file)
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert_refused(file, "damaged")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device"])
def test_a_backup_that_is_not_a_regular_file_is_refused(snapshot: Snapshot, file: Path, kind: str) -> None:
    backup(file)
    original = file.rename(file.with_name("whole"))
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to(original)
    else:
        file = Path("/dev/zero")
    assert_refused(file, "is not a regular file")


@pytest.mark.parametrize("name", ["nowhere/portal", "file/portal", "x" * 300, "/dev/null/portal"])
def test_a_backup_that_cannot_be_written_says_so(snapshot: Snapshot, file: Path, name: str) -> None:
    file.with_name("file").touch()
    with pytest.raises(CommandError, match="couldn't be written: "):
        backup(file.parent / name)


@both_databases
def test_a_file_of_a_newer_portal_or_of_another_database_is_refused(snapshot: Snapshot, file: Path) -> None:
    backup(file)
    rewrite(file, migrations=["snapshots.0001_initial", "snapshots.9999_from_the_future"])
    with pytest.raises(CommandError, match=r"newer version of the portal \(it has snapshots.9999_from_the_future\)"):
        call_command("restore", file, over_existing=True)
    rewrite(file, migrations=[], format=2)
    with pytest.raises(CommandError, match=r"newer version of the portal \(it has format 2\)"):
        call_command("restore", file, over_existing=True)
    rewrite(file, migrations=[], format=1, database="oracle")
    with pytest.raises(CommandError, match="from a portal on oracle"):
        call_command("restore", file, over_existing=True)


@both_databases
def test_an_unfinished_restore_of_a_volume_fails_and_is_notified(
    snapshot: Snapshot, member: Membership, volume: Volume, file: Path, storage_root: Path, elsewhere: Any
) -> None:
    """Running it again would overwrite newer data of the volume."""
    restore = restores.request_restore(snapshot=snapshot, user=member.user, confirmation=volume.name)
    backup(file)
    Operation.objects.filter(pk=restore.pk).update(state="failed", finished_at=timezone.now())
    image = put_volume(storage_root, volume, b"written since" * 100)
    given_up = elsewhere("restore", file)
    assert "Failed unfinished restores of volumes, and notified users: 1" in given_up.stdout, given_up.stderr
    states = "SELECT state FROM snapshots_operation WHERE kind = 'restore'"
    assert elsewhere.query(states) == [("failed",)]
    assert elsewhere.query("SELECT title FROM notifications_notification") == [("“monday” could not be restored",)]
    assert elsewhere("fsck").returncode == 0
    assert holds(image, b"written since" * 100)
    assert not Notification.objects.exists(), "the portal here knows nothing of it"


@both_databases
def test_the_secret_is_in_it_only_on_demand(
    snapshot: Snapshot, file: Path, elsewhere: Any, settings: Any, tmp_path: Path
) -> None:
    settings.DATA_DIR = tmp_path
    with pytest.raises(CommandError, match="SECRET_KEY is set in the environment"):
        backup(file, with_secret=True)
    (tmp_path / "secret_key").write_text("a long secret that signs the sessions of everybody")
    backup(file)
    assert b"a long secret" not in file.read_bytes()
    assert "made without --with-secret" in elsewhere("restore", file, "--with-secret").stderr
    file.unlink()
    backup(file, with_secret=True)
    assert elsewhere("restore", file, "--with-secret").returncode == 0
    key = elsewhere.data / "secret_key"
    assert key.read_text().startswith("a long secret") and key.stat().st_mode & 0o777 == 0o600


@both_databases
def test_a_backup_grants_no_access(
    snapshot: Snapshot, file: Path, elsewhere: Any, client_for: Callable[..., Client]
) -> None:
    client = client_for(UserFactory(admin=True))
    key = client.cookies[settings.SESSION_COOKIE_NAME].value
    ended = client_for(UserFactory(admin=True))
    ended_key = ended.cookies[settings.SESSION_COOKIE_NAME].value
    ended.logout()
    mail = OutgoingMailFactory(body="https://portal.example.com/accounts/password/reset/key/7-secret/")
    NotificationFactory(mail=mail)
    cache.set("one-time-code", "814 203")
    assert client.get("/admin/").status_code == 200

    backup(file)
    if connection.vendor == "sqlite":
        content = file.read_bytes()
        assert not [word for word in (key, ended_key, "7-secret", "one-time-code") if word.encode() in content]
    assert elsewhere("restore", file).returncode == 0
    for table in secret_tables():
        assert elsewhere.query(f"SELECT count(*) FROM {table}") == [(0,)], table
    visit = (
        f"from django.test import Client; client = Client(HTTP_HOST='localhost');"
        f"client.cookies['{settings.SESSION_COOKIE_NAME}'] = '{key}';"
        f"print(client.get('/admin/').headers['Location'])"
    )
    assert "/admin/login/?next=/admin/" in elsewhere("shell", "--command", visit).stdout


def test_every_table_that_may_hold_a_secret_was_reviewed() -> None:
    """A new column with such a name must be added to this list, and to SECURITY.md's table of secrets."""
    secret_words = re.compile(r"key|token|code|secret|password|session|body|data")
    columns = {
        f"{model._meta.db_table}.{field.column}"
        for model in apps.get_models()
        if model._meta.db_table not in secret_tables()
        for field in model._meta.concrete_fields
        if secret_words.search(field.column)
    }
    assert columns == {
        "accounts_user.password",  # hashed
        "accounts_submission.key",  # of a submitted form; it grants nothing
        "mfa_authenticator.data",  # encrypted with SECRET_KEY
        "auth_permission.codename",
        "inventory_location.code",
        "billing_invoiceline.location_code",
        "notifications_notification.key",
        "billing_wallettransaction.key",
        "snapshots_snapshot.name_key",
        "inventory_volume.name_key",
        "inventory_virtualmachine.name_key",
        "inventory_tag.name_key",
        "inventory_volume.metadata",  # properties of the customer's choice
        "snapshots_snapshot.metadata",
    }


@both_databases
def test_no_file_is_overwritten_and_a_failure_leaves_none(snapshot: Snapshot, file: Path) -> None:
    file.write_text("last week's")
    with pytest.raises(CommandError, match="already exists"):
        backup(file)
    assert file.read_text() == "last week's"
    with pytest.raises(CommandError, match="couldn't be written: No such file"):
        backup(file.parent / "missing" / "portal.backup")
    assert [path.name for path in file.parent.iterdir() if "backup" in path.name] == [file.name]
