"""Back up the portal's own state: the database, and the manifests that storage drivers keep beside snapshots."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.inventory.models import Location

from ..storage.contract import StorageError
from ..storage.registry import get_driver
from .archive import DATABASE, MANIFESTS, SECRET, BackupError, Header, manifest_line, write_archive
from .database import dump_database


@dataclass(frozen=True)
class BackupResult:
    size_bytes: int
    incomplete: dict[str, str]  # {location: why some or all of its manifests are missing}


def create_backup(path: Path, *, with_secret: bool = False) -> BackupResult:
    """Write the archive completely or not at all, readable by its owner only, while the portal runs. Raises BackupError.

    The database is dumped first, so that every snapshot that was Ready then and still exists has its manifest. A storage
    that fails doesn't prevent the backup.
    """
    secret = settings.DATA_DIR / "secret_key"
    if with_secret and not secret.exists():
        raise BackupError(
            _("%(path)s doesn't exist: SECRET_KEY is set in the environment. Back it up where it is kept.")
            % {"path": secret}
        )
    try:
        if os.path.lexists(path):
            raise FileExistsError
        with tempfile.TemporaryDirectory(prefix=".portal-backup-", dir=path.parent) as name:
            folder = Path(name)
            header = describe_database()
            members = {DATABASE: folder / DATABASE, MANIFESTS: folder / MANIFESTS}
            dump_database(members[DATABASE])
            incomplete = write_manifests(members[MANIFESTS])
            if with_secret:
                members[SECRET] = secret
            draft = folder / "draft"
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                write_archive(file, header, members)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # Never overwrites, unlike a rename.
    except FileExistsError as error:
        raise BackupError(_("%(path)s already exists. Choose another name.") % {"path": path}) from error
    except OSError as error:
        raise BackupError(
            _("%(path)s couldn't be written: %(reason)s.") % {"path": path, "reason": error.strerror}
        ) from error
    return BackupResult(path.stat().st_size, incomplete)


def describe_database() -> Header:
    applied = MigrationRecorder(connection).applied_migrations()
    return Header(timezone.now(), connection.vendor, {f"{app}.{name}" for app, name in applied})


def write_manifests(path: Path) -> dict[str, str]:
    """Write the manifests of all locations. Return {location: why some or all are missing}."""
    incomplete = {}
    with open(path, "w", encoding="utf-8") as file:
        for location in Location.objects.all():
            try:
                for uuid, text in get_driver(location).manifests():
                    file.write(manifest_line(location.pk, uuid, text))
            except (StorageError, ImproperlyConfigured) as error:
                incomplete[location.pk] = str(error)
    return incomplete
