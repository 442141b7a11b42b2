"""Keep the migrated database of SQLite in .venv, because running every migration takes ten times as long as copying it.

`migrate` runs on the copy too, so a new migration is applied to it. Another database is kept if a migration is edited.
"""

import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).parents[1]
PARTS = ("*/migrations/*.py", "cng_portal/*/migrations/*.py", "cng_portal/common/*.py", "requirements.txt")


def kept_file() -> Path:
    """Return where the database that these migrations make is kept, or will be."""
    sources = [path for part in PARTS for path in ROOT.glob(part)]
    made_by = sha256(b"".join(path.read_bytes() for path in sorted(sources)))
    return Path(sys.prefix, "migrated", f"{made_by.hexdigest()[:16]}.sqlite3")


def copy_if_there() -> None:
    """Put the database where the tests' database will be opened, if it is kept already."""
    if connection.vendor == "sqlite" and kept_file().exists():
        shutil.copyfile(kept_file(), settings.DATABASES["default"]["TEST"]["NAME"])


def keep() -> None:
    """Keep the tests' database, which has no rows yet but those that migrations make."""
    file = kept_file()
    if connection.vendor != "sqlite" or file.exists():
        return
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM INTO %s", [str(unfinished)])
    unfinished.replace(file)
