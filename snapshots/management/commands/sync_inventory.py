"""`manage.py sync_inventory`: bring volumes, machines, snapshots and quotas of the clouds into the portal, once and now."""

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management import BaseCommand, CommandError
from django.utils.translation import gettext as _

from cng_portal.inventory.models import Location
from snapshots.cloudsync.sync import NothingToSync, Report, sync_location
from snapshots.storage.contract import StorageError


class Command(BaseCommand):
    help = "Import volumes, machines, snapshots and quotas from the clouds. The scheduler does this regularly."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--location", help="code, such as 1CNG-YGN-AZ01; without it every location")

    def handle(self, *, location: str | None, **options: Any) -> None:
        locations = list(Location.objects.filter(**{"pk": location} if location else {}).order_by("code"))
        if location and not locations:
            codes = ", ".join(Location.objects.values_list("pk", flat=True)) or "-"
            raise CommandError(
                _("There is no location “%(code)s”. Use one of: %(codes)s.") % {"code": location, "codes": codes}
            )
        failed = False
        for each in locations:
            try:
                report = sync_location(each)
            except NothingToSync as nothing:
                self.stdout.write(str(nothing))
            except (StorageError, ImproperlyConfigured) as error:
                failed = True
                self.stderr.write(f"{each.code}: {error}")
            else:
                failed = failed or bool(report.failed)
                self.show(each.code, report)
        if failed:
            raise CommandError(_("Some locations or cloud projects couldn't be synced. The next sync retries them."))

    def show(self, code: str, report: Report) -> None:
        counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in report.changes.items())
        self.stdout.write(f"{code}: {counts or _('nothing has changed')}")
        for cloud_project in report.unmapped:
            self.stdout.write(
                _("%(name)s (%(id)s) belongs to no project yet: %(volumes)s volumes, %(snapshots)s snapshots.")
                % {
                    "name": cloud_project.name,
                    "id": cloud_project.external_id,
                    "volumes": cloud_project.volume_count,
                    "snapshots": cloud_project.snapshot_count,
                }
            )
        for name, reason in report.failed.items():
            self.stderr.write(f"{name}: {reason}")
