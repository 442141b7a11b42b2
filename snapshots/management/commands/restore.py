from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from snapshots.maintenance import archive


class Command(BaseCommand):
    help = (
        "Bring back what manage.py backup wrote, into the database that DATABASE_URL names. Web, worker and scheduler "
        "have to be stopped. On PostgreSQL it needs pg_restore and psql. Run fsck and verify_billing afterwards."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--over-existing", action="store_true", help="Replace what the database has.")
        parser.add_argument("--with-secret", action="store_true", help="Bring the secret key back as well.")

    def handle(self, *, file: Path, over_existing: bool, with_secret: bool, **options: Any) -> None:
        try:
            restored = archive.restore(file, over_existing=over_existing, with_secret=with_secret)
        except archive.Unusable as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"The portal is as it was at {restored.taken_at:%Y-%m-%d %H:%M:%S} UTC.")
        if restored.manifests:
            self.stdout.write(f"{restored.manifests} manifests were missing or damaged and are back.")
        if restored.given_up:
            self.stdout.write(f"{restored.given_up} restores that had not ended were given up; those who asked know.")
        for location, reason in restored.unreached.items():
            self.stderr.write(f"The manifests of {location} were not compared: {reason}")
        self.stdout.write("What happened since then is not known to it: run manage.py fsck and verify_billing now.")
