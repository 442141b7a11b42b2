"""Restore the portal's own state from a backup, and settle later changes that it can't know."""

import os
import tarfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer, User
from cng_portal.accounts.services import lock_customer
from cng_portal.common.clock import database_now
from cng_portal.inventory.models import Location
from cng_portal.monitoring.heartbeats import SILENT_AFTER
from cng_portal.monitoring.models import Process

from ..models import Operation
from ..operations.handlers import fail_operation
from ..storage.contract import Driver, StorageError
from ..storage.local.manifest import Manifest
from ..storage.registry import get_driver
from .archive import (
    DATABASE,
    MANIFESTS,
    SECRET,
    BackupError,
    Header,
    newer_version,
    not_a_backup,
    open_archive,
    open_member,
    read_manifests,
)
from .database import replace_database


@dataclass(frozen=True)
class RestoreResult:
    taken_at: datetime
    manifests: int  # missing or damaged, now restored
    failed_restores: int  # unfinished restores of volumes that were failed
    unchecked: dict[str, str]  # {location: why some or all of its manifests weren't compared}


def restore_backup(path: Path, *, over_existing: bool = False, with_secret: bool = False) -> RestoreResult:
    """Replace the database of DATABASE_URL with the backup's: completely, or not at all. Raises BackupError.

    1. Verify the archive before anything is changed.
    2. Replace the database, and migrate it if the backup is of an older version.
    3. Fail restores of volumes that were unfinished at the time of the backup: they may have succeeded since, and running
       them again would overwrite newer data.
    4. Restore manifests that are missing or damaged beside a snapshot's data.
    """
    with open_archive(path) as (header, tar):
        refuse_incompatible(header)
        refuse_existing(over_existing)
        check_members(tar, path, with_secret)
        with open_member(tar, DATABASE) as dump:
            replace_database(dump, header.migrations)
        connection.close()
        call_command("migrate", interactive=False, verbosity=0)
        call_command("createcachetable", verbosity=0)
        if with_secret:
            with open_member(tar, SECRET) as content:
                write_secret(content.read())
        Process.objects.all().delete()  # None of them runs; they would be reported as dead.
        drivers = load_drivers()
        failed_restores = fail_unfinished_restores()
        with open_member(tar, MANIFESTS) as lines:
            manifests, unchecked = put_manifests(lines, drivers)
    return RestoreResult(header.taken_at, manifests, failed_restores, unchecked)


def refuse_incompatible(header: Header) -> None:
    if header.database != connection.vendor:
        raise BackupError(
            _("The backup is from a portal on %(theirs)s, but DATABASE_URL names %(ours)s. Name one of the same kind.")
            % {"theirs": header.database, "ours": connection.vendor}
        )
    ours = {f"{app}.{name}" for app, name in MigrationLoader(None, ignore_no_migrations=True).disk_migrations}
    if newer := header.migrations - ours:
        raise newer_version(min(newer))


def refuse_existing(over_existing: bool) -> None:
    tables = connection.introspection.table_names()
    running = Process.objects.filter(heartbeat_at__gte=database_now() - SILENT_AFTER)
    if Process._meta.db_table in tables and running.exists():
        raise BackupError(
            _("A worker or scheduler is using this database. Stop web, worker and scheduler, then wait a minute.")
        )
    has_rows = any(model._meta.db_table in tables and model.objects.exists() for model in (Customer, User))
    if has_rows and not over_existing:
        raise BackupError(
            _(
                "The database already has customers or users. Nothing was changed. Name an empty database in DATABASE_URL, "
                "or replace everything in this one with --over-existing."
            )
        )


def check_members(tar: tarfile.TarFile, path: Path, with_secret: bool) -> None:
    if with_secret and SECRET not in tar.getnames():
        raise BackupError(_("%(path)s has no secret key: it was made without --with-secret.") % {"path": path})
    try:
        with open_member(tar, MANIFESTS) as lines:
            for _location, _uuid, text in read_manifests(lines):
                Manifest.parse(text)
    except ValueError as error:
        raise not_a_backup(path) from error


def write_secret(secret: bytes) -> None:
    path = settings.DATA_DIR / "secret_key"
    draft = settings.DATA_DIR / f"secret_key.{os.getpid()}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    draft.replace(path)


def load_drivers() -> dict[str, Driver]:
    try:
        return {location.pk: get_driver(location) for location in Location.objects.all()}
    except ImproperlyConfigured as error:
        raise BackupError(
            _(
                "The database is restored, but unfinished restores of volumes are still pending: %(reason)s Correct STORAGE "
                "and restore again with --over-existing before you start the portal."
            )
            % {"reason": error}
        ) from error


def fail_unfinished_restores() -> int:
    """Fail them as a worker would, so that their requesters are notified. Return how many."""
    reason = _(
        "The portal was restored from a backup while this was running, so it was stopped. Check the volume, then start the "
        "restore again if you still want it."
    )
    now = timezone.now()
    unfinished = Operation.objects.active().filter(kind=Operation.Kind.RESTORE)
    operations = list(unfinished.select_related("snapshot__project"))
    for operation in operations:
        with transaction.atomic():
            lock_customer(operation.customer_id)
            Operation.objects.filter(pk=operation.pk).update(
                state=Operation.State.FAILED, finished_at=now, error=reason
            )
            fail_operation(operation, reason, now)
    return len(operations)


def put_manifests(lines: IO[bytes], drivers: dict[str, Driver]) -> tuple[int, dict[str, str]]:
    """Restore missing or damaged manifests. Return how many, and {location: why it failed}."""
    count = 0
    unchecked: dict[str, str] = {}
    for location, uuid, text in read_manifests(lines):
        if location in drivers and location not in unchecked:
            try:
                count += drivers[location].put_manifest(uuid, text)
            except StorageError as error:
                unchecked[location] = str(error)
    return count, unchecked
