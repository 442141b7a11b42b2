"""A full disk: pages can still be read, writes fail with an explanation, and `/readyz` reports it."""

import errno
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from psycopg import errors

# Enough for a small write: pages of the table, its indexes and the log.
RESERVE_BYTES = 2**20


def is_full() -> bool:
    """Return whether SQLite's disk is full. PostgreSQL's is the server's concern."""
    if connection.vendor != "sqlite":
        return False
    return shutil.disk_usage(Path(connection.settings_dict["NAME"]).parent).free < RESERVE_BYTES


def is_cause_of(error: BaseException | None) -> bool:
    return any(is_disk_full(each) for each in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException) -> bool:
    if isinstance(error, errors.DiskFull) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    # SQLite reports an I/O error when it finds no room for the file that its readers share.
    return code == sqlite3.SQLITE_FULL or (code is not None and code & 0xFF == sqlite3.SQLITE_IOERR and is_full())


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500, called while the exception is handled."""
    error = sys.exc_info()[1]
    if is_cause_of(error):
        return HttpResponse(render_to_string("507.html"), status=507)
    # A database that just failed isn't asked how to reach support: it would keep the page waiting.
    can_ask = not isinstance(error, DatabaseError | InterfaceError)
    return HttpResponse(render_to_string("500.html", {"can_ask_database": can_ask}), status=500)
