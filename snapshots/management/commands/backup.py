from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from snapshots.maintenance.archive import BackupError
from snapshots.maintenance.backup import create_backup


class Command(BaseCommand):
    help = (
        "Back up the portal's own state, the database and the snapshots' manifests, to one file while the portal runs. "
        "The data of volumes and snapshots is not included. PostgreSQL needs pg_dump."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--with-secret",
            action="store_true",
            help=(
                "Include the generated secret key. Anyone with the file can then sign in as anyone. Without the key, "
                "after a restore on another machine everyone has to sign in again and set up a new authenticator app."
            ),
        )

    def handle(self, *, file: Path, with_secret: bool, **options: Any) -> None:
        try:
            result = create_backup(file, with_secret=with_secret)
        except BackupError as error:
            raise CommandError(str(error)) from error
        size = result.size_bytes / 2**20
        self.stdout.write(f"Backed up to {file} ({size:.1f} MiB). Keep it on another machine.")
        for location, reason in result.incomplete.items():
            self.stderr.write(f"Some manifests of {location} are missing from it: {reason}")
