from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from snapshots.maintenance import archive


class Command(BaseCommand):
    help = (
        "Write the portal's own state, the database and the snapshots' manifests, into one file, while the portal runs. "
        "On PostgreSQL it needs pg_dump. The bytes of volumes and snapshots are not in it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--with-secret",
            action="store_true",
            help="Put the generated secret key in as well: who has the file can then sign in as anybody. Without it "
            "everybody has to sign in again after a restore elsewhere, and to set up a new authenticator app.",
        )

    def handle(self, *, file: Path, with_secret: bool, **options: Any) -> None:
        try:
            written = archive.write(file, with_secret=with_secret)
        except archive.Unusable as error:
            raise CommandError(str(error)) from error
        size = written.size_bytes / 2**20
        self.stdout.write(f"{file} has the state of the portal, {size:.1f} MiB. Keep it on another machine.")
        for location, reason in written.unread.items():
            self.stderr.write(f"The manifests of {location} are not all in it: {reason}")
