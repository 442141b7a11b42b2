"""The portal's own state as one file, and the way back: the database, and the manifests beside the snapshots' bytes.

The file is a tar. `head.json` says what it is, then come `database` (an SQLite database, or pg_dump's custom format),
`manifests.jsonl` and, where that was asked for, `secret_key`; `checksums.json` is the last, so that an unfinished file
shows itself. The bytes of volumes and snapshots are not in it: they belong to the storage engine.

Rows that let somebody in, such as sessions, are left out of the database: see `secret_tables`.

The database is of one instant although the portal goes on. The manifests are read after it, so every snapshot that was
Ready then and is still there has its own.
"""

import io
import json
import os
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID

from allauth.account.models import EmailConfirmation
from allauth.usersessions.models import UserSession
from blake3 import blake3
from django.conf import settings
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from django.utils.translation import gettext as _
from psycopg.conninfo import make_conninfo

from cng_portal.accounts.models import Customer, User
from cng_portal.accounts.services import lock_customer
from cng_portal.common.clock import database_now
from cng_portal.inventory.models import Location
from cng_portal.mail.models import OutgoingMail
from cng_portal.monitoring.heartbeats import SILENT_AFTER
from cng_portal.monitoring.models import Process

from ..handlers import fail_operation
from ..models import Operation
from ..storage.contract import Driver, StorageError
from ..storage.files import NotRegularFile, open_regular_file
from ..storage.local.manifest import Manifest
from ..storage.registry import get_driver

FORMAT = 1
HEAD, DATABASE, MANIFESTS, SECRET, CHECKSUMS = (
    "head.json",
    "database",
    "manifests.jsonl",
    "secret_key",
    "checksums.json",
)
CHUNK = 2**20
LONGEST_LINE = 4 * CHUNK  # of manifests.jsonl, whose manifests have at most a MiB and are escaped
# The last statement of a restore, in its transaction: a dump without tables would otherwise remove everything.
COUNT_MIGRATIONS = b"""
DO $$ BEGIN
IF (SELECT count(*) FROM public.django_migrations) <> %d THEN
  RAISE EXCEPTION 'the database in the file is damaged: it does not have the migrations that the file names';
END IF;
END $$;
"""


class Unusable(Exception):
    """Why it was not done, in a sentence; nothing was changed."""


class Written(NamedTuple):
    size_bytes: int
    unread: dict[str, str]  # {location: why its manifests, or some of them, are not in the file}


class Restored(NamedTuple):
    taken_at: datetime
    manifests: int  # that were missing or damaged and are back
    given_up: int  # restores of volumes that had not ended
    unreached: dict[str, str]  # {location: why its manifests, or some of them, were not compared}


# --- backup ------------------------------------------------------------------------------------------------------------


def write(path: Path, *, with_secret: bool = False) -> Written:
    """Make the file, whole or not at all, readable for its owner alone. Raises Unusable.

    A storage that does not answer keeps nobody from having the database: it is named in what is returned.
    """
    secret = settings.DATA_DIR / "secret_key"
    if with_secret and not secret.exists():
        raise Unusable(
            _("There is no %(path)s to put in: SECRET_KEY comes from the environment. Keep it where that is kept.")
            % {"path": secret}
        )
    try:
        if os.path.lexists(path):
            raise FileExistsError
        with tempfile.TemporaryDirectory(prefix=".portal-backup-", dir=path.parent) as folder:
            head = json.dumps(describe(), indent=2).encode()
            copy, manifests, draft = Path(folder, DATABASE), Path(folder, MANIFESTS), Path(folder, "draft")
            copy_database(copy)
            unread = write_manifests(manifests)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                with tarfile.open(fileobj=file, mode="w") as tar:
                    checksums = {HEAD: add(tar, HEAD, io.BytesIO(head), len(head))}
                    for name, part in ((DATABASE, copy), (MANIFESTS, manifests), (SECRET, secret)):
                        if name != SECRET or with_secret:
                            with open(part, "rb") as content:
                                checksums[name] = add(tar, name, content, part.stat().st_size)
                    text = json.dumps(checksums).encode()
                    add(tar, CHECKSUMS, io.BytesIO(text), len(text))
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # never over another one
    except FileExistsError as error:
        raise Unusable(_("%(path)s is there already. Choose another name.") % {"path": path}) from error
    except OSError as error:
        raise Unusable(
            _("%(path)s could not be written: %(reason)s.") % {"path": path, "reason": error.strerror}
        ) from error
    except sqlite3.Error as error:
        raise Unusable(_("The database could not be copied: %(reason)s.") % {"reason": error}) from error
    return Written(path.stat().st_size, unread)


def describe() -> dict[str, Any]:
    applied = MigrationRecorder(connection).applied_migrations()
    return {
        "format": FORMAT,
        "taken_at": timezone.now().isoformat(),
        "database": connection.vendor,
        "migrations": sorted(f"{app}.{name}" for app, name in applied),
    }


def add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> str:
    """The checksum of what was added."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(timezone.now().timestamp()), 0o600
    hashing = Hashing(content)
    tar.addfile(member, hashing)  # type: ignore[arg-type]  # it only reads
    return hashing.hasher.hexdigest()


class Hashing:
    """What is read through it is hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hasher = file, blake3()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.hasher.update(data)
        return data


def secret_tables() -> list[str]:
    """Tables of which a backup keeps no rows, because whoever reads them gets in: sessions and their keys, links that
    confirm an address, one-time codes, and e-mails with such links that wait to be sent.
    """
    models = (Session, UserSession, EmailConfirmation, OutgoingMail)
    cache: Any = settings.CACHES["default"]
    return [*(model._meta.db_table for model in models), cache["LOCATION"]]


def copy_database(path: Path) -> None:
    if connection.vendor == "sqlite":
        # the online backup: of one instant, while others read and write
        with closing(sqlite3.connect(path)) as target, closing(sqlite3.connect(database_file(), timeout=60)) as source:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            for table in secret_tables():
                target.execute(f'DELETE FROM "{table}"')
            target.commit()
            target.execute("VACUUM")  # deleted rows stay in the file's free pages
    else:
        left_out = [f"--exclude-table-data={table}" for table in secret_tables()]
        run("pg_dump", "--format=custom", "--no-owner", "--no-privileges", *left_out, f"--file={path}", stdin=None)


def database_file() -> str:
    return str(connection.settings_dict["NAME"])


def write_manifests(path: Path) -> dict[str, str]:
    """One JSON object a line: location, uuid, and the manifest's own text. Returns {location: why it was not read}."""
    unread = {}
    with open(path, "w", encoding="utf-8") as file:
        for location in Location.objects.all():
            try:
                for uuid, text in get_driver(location).manifests():
                    file.write(json.dumps({"location": location.pk, "uuid": str(uuid), "text": text}) + "\n")
            except (StorageError, ImproperlyConfigured) as error:
                unread[location.pk] = str(error)
    return unread


# --- restore -----------------------------------------------------------------------------------------------------------


def restore(path: Path, *, over_existing: bool = False, with_secret: bool = False) -> Restored:
    """Put the state of the file in the place of the database that the settings name: all of it, or nothing.

    The file is read to its end and compared with its checksums first. A database of an older portal is migrated. What
    wrote to a customer's volume when the file was made is given up: how that ended is not in the file, and doing it again
    would overwrite what the volume holds today. Raises Unusable.
    """
    with opened_archive(path) as file:
        head = check(file, path)
        refuse_other_database(head)
        refuse_newer(head)
        refuse_taken(over_existing)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            if with_secret and SECRET not in tar.getnames():
                raise Unusable(_("There is no secret in %(path)s: it was made without --with-secret.") % {"path": path})
            with member(tar, MANIFESTS) as lines:
                check_manifests(lines, path)
            with member(tar, DATABASE) as database:
                replace_database(database, head)
            connection.close()
            call_command("migrate", interactive=False, verbosity=0)
            call_command("createcachetable", verbosity=0)
            if with_secret:
                with member(tar, SECRET) as content:
                    write_secret(content.read())
            Process.objects.all().delete()  # those of then, of which none runs: they would be told as having died
            drivers = drivers_of_all_locations()
            given_up = give_up_restores()
            with member(tar, MANIFESTS) as lines:
                manifests, unreached = put_manifests(lines, drivers)
    return Restored(head.taken_at, manifests, given_up, unreached)


@contextmanager
def opened_archive(path: Path) -> Iterator[IO[bytes]]:
    try:
        descriptor = open_regular_file(path)
    except NotRegularFile as error:
        raise Unusable(_("%(path)s is not a regular file. Name the file itself.") % {"path": path}) from error
    except OSError as error:
        raise cannot_be_read(path, error) from error
    with open(descriptor, "rb") as file:
        yield file


def cannot_be_read(path: Path, error: OSError) -> Unusable:
    return Unusable(_("%(path)s cannot be read: %(reason)s.") % {"path": path, "reason": error.strerror or error})


def not_written_here(path: Path) -> Unusable:
    return Unusable(
        _("%(path)s has content that the portal did not write, so nothing of it was used. Use another one.")
        % {"path": path}
    )


class Head(NamedTuple):
    """`head.json`. A file of a newer format may lack everything but that."""

    format: int
    taken_at: datetime
    database: str
    migrations: set[str]

    @classmethod
    def parse(cls, data: bytes) -> "Head":
        """Raises ValueError for anything that `describe` did not write."""
        content = parse_object(data)
        number = content.get("format")
        if not isinstance(number, int) or number < 1:
            raise ValueError("no format")
        if number > FORMAT:
            return cls(number, timezone.now(), "", set())
        taken_at = datetime.fromisoformat(text_in(content, "taken_at"))
        migrations = content.get("migrations")
        if taken_at.tzinfo is None or not isinstance(migrations, list):
            raise ValueError("no migrations or no time zone")
        if not all(isinstance(migration, str) for migration in migrations):
            raise ValueError("a migration has no name")
        return cls(number, taken_at, text_in(content, "database"), set(migrations))


def parse_object(data: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(content, dict):
        raise ValueError("no object")
    return content


def text_in(content: dict[str, Any], key: str) -> str:
    """Raises ValueError."""
    text = content.get(key)
    if not isinstance(text, str):
        raise ValueError(f"no {key}")
    return text


def check(file: IO[bytes], path: Path) -> Head:
    """The head of a file that is whole, which is read to its end and rewound. Raises Unusable."""
    damaged = Unusable(
        _("%(path)s is damaged or was not finished: what is in it is not what its checksums say. Use another one.")
        % {"path": path}
    )
    found: dict[str, str] = {}
    head = b""
    expected: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for one in tar:
                content = tar.extractfile(one) if one.isreg() and not one.issparse() else None
                if content is None or one.name in found:
                    raise damaged
                if one.name == CHECKSUMS:
                    expected = parse_object(content.read(CHUNK))
                    continue
                hashing = Hashing(content)
                if one.name == HEAD:
                    head = hashing.read(CHUNK)
                while hashing.read(CHUNK):
                    pass
                found[one.name] = hashing.hasher.hexdigest()
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise damaged from error
    if not found or found != expected or not {HEAD, DATABASE, MANIFESTS} <= found.keys():
        raise damaged
    file.seek(0)
    try:
        return Head.parse(head)
    except ValueError as error:
        raise not_written_here(path) from error


def check_manifests(lines: IO[bytes], path: Path) -> None:
    """Raises Unusable unless `put_manifests` can use every line."""
    try:
        for _location, _uuid, text in read_manifests(lines):
            Manifest.parse(text)
    except ValueError as error:
        raise not_written_here(path) from error


def read_manifests(lines: IO[bytes]) -> Iterator[tuple[str, UUID, str]]:
    """What write_manifests wrote: location, uuid and text of each. Raises ValueError."""
    while line := lines.readline(LONGEST_LINE):
        content = parse_object(line)
        yield text_in(content, "location"), UUID(text_in(content, "uuid")), text_in(content, "text")


def refuse_other_database(head: Head) -> None:
    if head.format == FORMAT and head.database != connection.vendor:
        raise Unusable(
            _("The file is of a portal on %(there)s, and DATABASE_URL names %(here)s. Name a database of its kind.")
            % {"there": head.database, "here": connection.vendor}
        )


def refuse_newer(head: Head) -> None:
    known = {f"{app}.{name}" for app, name in MigrationLoader(None, ignore_no_migrations=True).disk_migrations}
    newer = sorted(head.migrations - known)
    if head.format > FORMAT or newer:
        raise Unusable(
            _(
                "The file was made by a newer version of the portal (it has %(what)s). Install that version, then restore."
            )
            % {"what": newer[0] if newer else _("format %(number)s") % {"number": head.format}}
        )


def refuse_taken(over_existing: bool) -> None:
    tables = connection.introspection.table_names()
    alive = Process.objects.filter(heartbeat_at__gte=database_now() - SILENT_AFTER)
    if Process._meta.db_table in tables and alive.exists():
        raise Unusable(
            _("A worker or scheduler still works on this database. Stop web, worker and scheduler, and wait a minute.")
        )
    filled = any(one._meta.db_table in tables and one.objects.exists() for one in (Customer, User))
    if filled and not over_existing:
        raise Unusable(
            _(
                "The database has customers or people already. Nothing was changed. Name an empty one in DATABASE_URL, or "
                "say with --over-existing that everything in it shall be replaced."
            )
        )


@contextmanager
def member(tar: tarfile.TarFile, name: str) -> Iterator[IO[bytes]]:
    content = tar.extractfile(name)
    assert content is not None  # it was read before
    with content:
        yield content


def replace_database(content: IO[bytes], head: Head) -> None:
    """In one transaction of the database, and only by one that is whole and has the migrations of the head."""
    connection.close()
    try:
        if connection.vendor == "sqlite":
            replace_sqlite(content, head)
        else:
            replace_postgresql(content, head)
    except OSError as error:
        raise Unusable(_("The database could not be replaced: %(error)s.") % {"error": error.strerror}) from error


def replace_sqlite(content: IO[bytes], head: Head) -> None:
    path = Path(database_file())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".portal-restore-", dir=path.parent) as copy:
        while chunk := content.read(CHUNK):
            copy.write(chunk)
        copy.flush()
        with closing(sqlite3.connect(copy.name)) as source, closing(sqlite3.connect(path, timeout=20)) as target:
            try:
                is_whole = source.execute("PRAGMA quick_check").fetchone() == ("ok",)
                applied = {f"{app}.{name}" for app, name in source.execute("SELECT app, name FROM django_migrations")}
            except sqlite3.Error:
                is_whole, applied = False, set()
            if not is_whole or applied != head.migrations:
                raise Unusable(_("The database in the file is damaged. Nothing was changed. Use another one."))
            try:
                source.backup(target)
            except sqlite3.Error as error:
                raise Unusable(_("The database could not be replaced: %(error)s.") % {"error": error}) from error


def replace_postgresql(content: IO[bytes], head: Head) -> None:
    connection.close_pool()
    with tempfile.TemporaryFile() as script:
        script.write(b"DROP SCHEMA IF EXISTS public CASCADE;\nCREATE SCHEMA public;\n")
        script.flush()
        run("pg_restore", "--no-owner", "--no-privileges", "--file=-", stdin=content, stdout=script, connect=False)
        script.seek(0, os.SEEK_END)
        script.write(COUNT_MIGRATIONS % len(head.migrations))
        script.seek(0)
        run("psql", "--quiet", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1", stdin=script)


def run(
    program: str,
    *options: str,
    stdin: IO[bytes] | None,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    connect: bool = True,
) -> None:
    """One of PostgreSQL's own programs. Raises Unusable with what it says."""
    database = connection.settings_dict
    given = {"host": database["HOST"], "port": database["PORT"], "user": database["USER"], "dbname": database["NAME"]}
    given |= {name: value for name, value in database["OPTIONS"].items() if name.startswith("ssl")}
    where = ["--dbname", make_conninfo(**{name: value for name, value in given.items() if value})] if connect else []
    secret = {"PGPASSWORD": database["PASSWORD"]} if database["PASSWORD"] else {}
    try:
        with subprocess.Popen(
            [program, *options, *where],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=os.environ | secret,
        ) as process:
            if stdin and process.stdin:
                try:
                    while chunk := stdin.read(CHUNK):
                        process.stdin.write(chunk)
                except BrokenPipeError:
                    pass  # it says why below
            errors = process.communicate()[1].decode(errors="replace").strip()
    except FileNotFoundError as error:
        raise Unusable(
            _("%(program)s is needed and not there. On Debian: apt-get install postgresql-client")
            % {"program": program}
        ) from error
    if process.returncode:
        raise Unusable(f"{program}: {errors}")


def write_secret(secret: bytes) -> None:
    path = settings.DATA_DIR / "secret_key"
    draft = settings.DATA_DIR / f"secret_key.{os.getpid()}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    draft.replace(path)


def drivers_of_all_locations() -> dict[str, Driver]:
    try:
        return {location.pk: get_driver(location) for location in Location.objects.all()}
    except ImproperlyConfigured as error:
        raise Unusable(
            _(
                "The database is back, but the restores that had not ended are not given up yet: %(reason)s Set STORAGE as "
                "it was, and restore once more with --over-existing, before anything is started."
            )
            % {"reason": error}
        ) from error


def put_manifests(lines: IO[bytes], drivers: dict[str, Driver]) -> tuple[int, dict[str, str]]:
    """Those that are missing or damaged beside bytes that are there: how many, and {location: why it was not asked}."""
    count = 0
    unreached: dict[str, str] = {}
    for location, uuid, text in read_manifests(lines):
        if location in drivers and location not in unreached:
            try:
                count += drivers[location].put_manifest(uuid, text)
            except StorageError as error:
                unreached[location] = str(error)
    return count, unreached


def give_up_restores() -> int:
    reason = _(
        "The portal itself was brought back from a backup while this was under way, so it was given up. Look at the volume, "
        "then start the restore again if it is still wanted."
    )
    restores = list(Operation.objects.active().filter(kind=Operation.Kind.RESTORE).select_related("snapshot__project"))
    now = timezone.now()
    for operation in restores:
        with transaction.atomic():
            lock_customer(operation.snapshot.customer_id)
            Operation.objects.filter(pk=operation.pk).update(
                state=Operation.State.FAILED, finished_at=now, error=reason
            )
            fail_operation(operation, reason, now)
    return len(restores)
