"""Dump and replace the portal's database with SQLite's backup API or PostgreSQL's own programs."""

import os
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from allauth.account.models import EmailConfirmation
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils.translation import gettext as _
from psycopg.conninfo import make_conninfo

from cng_portal.accounts.models import ApplicationCredential, IdempotencyKey
from cng_portal.mail.models import OutgoingMail

from .archive import CHUNK, BackupError

# Runs last in the restore's transaction: a truncated dump would otherwise leave an empty database.
CHECK_MIGRATIONS = """
DO $$ BEGIN
IF (SELECT count(*) FROM public.django_migrations) <> {count} THEN
  RAISE EXCEPTION 'the database in the backup is damaged: it lacks migrations that the header names';
END IF;
END $$;
"""


def secret_tables() -> list[str]:
    """Return the tables whose rows a backup leaves out, because they grant access: sessions, links that confirm an
    address, one-time codes (in the cache), unsent e-mails with such links, and application credentials.
    """
    models = (Session, UserSession, EmailConfirmation, OutgoingMail, IdempotencyKey, ApplicationCredential)
    cache: Any = settings.CACHES["default"]
    return [*(model._meta.db_table for model in models), cache["LOCATION"]]


def dump_database(path: Path) -> None:
    """Write a consistent copy while others read and write. Raises BackupError."""
    if connection.vendor != "sqlite":
        excluded = [f"--exclude-table-data={table}" for table in secret_tables()]
        run_postgres("pg_dump", "--format=custom", "--no-owner", "--no-privileges", *excluded, f"--file={path}")
        return
    try:
        with closing(sqlite3.connect(path)) as target, closing(sqlite3.connect(sqlite_path(), timeout=60)) as source:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # Without a -wal file beside it.
            for table in secret_tables():
                target.execute(f'DELETE FROM "{table}"')
            target.commit()
            target.execute("VACUUM")  # Deleted rows stay in the file's free pages.
    except sqlite3.Error as error:
        raise BackupError(_("The database couldn't be copied: %(reason)s.") % {"reason": error}) from error


def replace_database(dump: IO[bytes], migrations: set[str]) -> None:
    """Replace everything in one transaction, if the dump is intact and has these migrations. Raises BackupError."""
    connection.close()
    is_sqlite = connection.vendor == "sqlite"
    try:
        if is_sqlite:
            sqlite_path().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".portal-restore-", dir=sqlite_path().parent if is_sqlite else None
        ) as folder:
            path = Path(folder, "dump")
            with open(path, "wb") as copy:
                while chunk := dump.read(CHUNK):
                    copy.write(chunk)
            if is_sqlite:
                replace_sqlite(path, migrations)
            else:
                replace_postgres(path, migrations)
    except OSError as error:
        raise not_replaced(error.strerror or error) from error


def sqlite_path() -> Path:
    return Path(connection.settings_dict["NAME"])


def replace_sqlite(dump: Path, migrations: set[str]) -> None:
    with closing(sqlite3.connect(dump)) as source, closing(sqlite3.connect(sqlite_path(), timeout=20)) as target:
        try:
            is_intact = source.execute("PRAGMA quick_check").fetchone() == ("ok",)
            applied = {f"{app}.{name}" for app, name in source.execute("SELECT app, name FROM django_migrations")}
        except sqlite3.Error:
            is_intact, applied = False, set()
        if not is_intact or applied != migrations:
            raise BackupError(_("The database in the backup is damaged. Nothing was changed. Use another backup."))
        try:
            source.backup(target)
        except sqlite3.Error as error:
            raise not_replaced(error) from error


def replace_postgres(dump: Path, migrations: set[str]) -> None:
    connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL only
    script = dump.with_name("script.sql")
    run_postgres("pg_restore", "--no-owner", "--no-privileges", f"--file={script}", str(dump), connect=False)
    drop = "DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public;"
    check = CHECK_MIGRATIONS.format(count=len(migrations))
    options = ["--quiet", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    run_postgres("psql", *options, f"--command={drop}", f"--file={script}", f"--command={check}")


def not_replaced(reason: object) -> BackupError:
    return BackupError(_("The database couldn't be replaced: %(reason)s.") % {"reason": reason})


def run_postgres(program: str, *options: str, connect: bool = True) -> None:
    """Run one of PostgreSQL's programs, on our database if `connect`. Raises BackupError with its error output."""
    database = connection.settings_dict
    parameters = {"host": database["HOST"], "port": database["PORT"], "user": database["USER"]}
    parameters |= {"dbname": database["NAME"]}
    parameters |= {name: value for name, value in database["OPTIONS"].items() if name.startswith("ssl")}
    target = make_conninfo(**{name: value for name, value in parameters.items() if value})
    # The password is in the environment: other users of the machine can see arguments.
    environment = os.environ | ({"PGPASSWORD": database["PASSWORD"]} if database["PASSWORD"] else {})
    try:
        subprocess.run(
            [program, *options, *([f"--dbname={target}"] if connect else [])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=True,
        )
    except FileNotFoundError as error:
        raise BackupError(
            _("%(program)s is not installed. On Debian: apt-get install postgresql-client") % {"program": program}
        ) from error
    except subprocess.CalledProcessError as error:
        raise BackupError(f"{program}: {error.stderr.strip()}") from error
