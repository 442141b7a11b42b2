from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from snapshots.maintenance.archive import BackupError
from snapshots.maintenance.restore import restore_backup


class Command(BaseCommand):
    help = (
        "Restore a file of manage.py backup to the database of DATABASE_URL. Stop web, worker and scheduler first, and run "
        "fsck and verify_billing afterwards. PostgreSQL needs pg_restore and psql."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--over-existing", action="store_true", help="Replace everything in the database.")
        parser.add_argument("--with-secret", action="store_true", help="Restore the secret key, too.")

    def handle(self, *, file: Path, over_existing: bool, with_secret: bool, **options: Any) -> None:
        try:
            result = restore_backup(file, over_existing=over_existing, with_secret=with_secret)
        except BackupError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Restored the portal's state of {result.taken_at:%Y-%m-%d %H:%M:%S} UTC.")
        if result.manifests:
            self.stdout.write(f"Restored missing or damaged manifests: {result.manifests}")
        if result.failed_restores:
            self.stdout.write(f"Failed unfinished restores of volumes, and notified users: {result.failed_restores}")
        for location, reason in result.unchecked.items():
            self.stderr.write(f"Some manifests of {location} were not checked: {reason}")
        self.stdout.write("Changes made since then are unknown to it. Run manage.py fsck and verify_billing now.")
