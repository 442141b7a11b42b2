"""`manage.py import_volume`: a disk image from elsewhere becomes a customer's volume."""

import signal
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from tqdm import tqdm

from cng_portal.accounts.models import Project
from cng_portal.accounts.services import lock_customer
from cng_portal.common.names import require_visible
from cng_portal.inventory.models import Location, Volume
from snapshots.models import volume_ref
from snapshots.operations.handlers import is_needed
from snapshots.storage.contract import GIB, StorageError
from snapshots.storage.local import LocalDriver
from snapshots.storage.local.importing import open_image
from snapshots.storage.registry import get_driver
from snapshots.volumes.charges import start_charging_volume
from snapshots.volumes.notices import notify_charged_volumes


class Command(BaseCommand):
    help = (
        "Import a disk image as a new volume: raw, or with qemu-img qcow2, qcow, VMDK, VHD, VHDX, VDI or an OVA with one "
        "disk. Its size is rounded up to whole GB."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--project", required=True, help="uuid or name")
        parser.add_argument(
            "--customer", help="customer number, such as #001039, if several customers have a project of that name"
        )
        parser.add_argument("--location", required=True, help="code, such as 1CNG-YGN-AZ01")
        parser.add_argument("--name", required=True, help="the new volume's name")

    def handle(self, *args: Any, **options: Any) -> None:
        for value in (options["project"], options["customer"] or "", options["location"]):
            try:
                require_visible(value)  # neither a database nor a terminal takes everything that a shell passes on
            except ValidationError as error:
                raise CommandError(" ".join(error.messages)) from error
        project = find_project(options["project"], options["customer"])
        require_not_archived(project)
        driver = find_driver(options["location"])
        try:
            with open_image(options["file"]) as source:
                size = source.size
            volume = Volume(
                project=project,
                location_id=options["location"],
                name=options["name"],
                size_gb=-(-size // GIB),
            )
            volume.full_clean()
            driver.check_volume_size(volume.size_gb)
            driver.remove_orphans(needed=is_needed)  # an import that was killed has a uuid that is no longer known
            with (
                terminated_like_interrupted(),
                tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar,
            ):

                def show(bytes_done: int, bytes_total: int) -> None:
                    bar.update(bytes_done - bar.n)

                volume.backend_ref = driver.import_image(volume_ref(volume), options["file"], show)
                try:
                    save_available(volume)
                except BaseException:
                    driver.delete_volume(volume_ref(volume))
                    raise
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        except StorageError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt as error:
            raise CommandError(_("Interrupted. Nothing was imported.")) from error
        self.stdout.write(
            _("%(name)s is volume %(uuid)s with %(size)s GB in %(location)s.")
            % {"name": volume.name, "uuid": volume.pk, "size": volume.size_gb, "location": volume.location_id}
        )


def save_available(volume: Volume) -> None:
    """Insert the volume, start charging it, and notify the project's members of the charge."""
    with transaction.atomic():
        lock_customer(volume.project.customer_id)
        require_not_archived(volume.project)
        volume.available_at = now = timezone.now()
        volume.save(force_insert=True)
        if start_charging_volume(volume, at=now):
            notify_charged_volumes(Volume.objects.filter(pk=volume.pk), now)


def find_project(id_or_name: str, customer: str | None) -> Project:
    projects = Project.objects.select_related("customer")
    if customer is not None:
        number = customer.removeprefix("#")
        if not (number.isascii() and number.isdigit()):
            raise CommandError(
                _("“%(number)s” is not a customer number. Use one such as #001039.") % {"number": customer}
            )
        projects = projects.filter(customer__number=int(number))
    try:
        projects = projects.filter(pk=UUID(id_or_name))
    except ValueError:
        projects = projects.filter(name__iexact=id_or_name.strip())
    matches = list(projects.order_by("customer__number")[:20])
    if not matches:
        raise CommandError(
            _("There is no project “%(project)s”. Use its uuid, or its name and its customer.")
            % {"project": id_or_name}
        )
    if len(matches) > 1:
        numbers = ", ".join(project.customer.crn for project in matches)
        raise CommandError(
            _("Several customers have a project “%(project)s”: %(numbers)s. Say which with --customer.")
            % {"project": id_or_name, "numbers": numbers}
        )
    return matches[0]


def require_not_archived(project: Project) -> None:
    if Project.objects.filter(pk=project.pk, archived_at__isnull=False).exists():
        raise CommandError(
            _("The project “%(project)s” is archived. Unarchive it, or name another one.") % {"project": project.name}
        )


def find_driver(code: str) -> LocalDriver:
    try:
        driver = get_driver(Location.objects.get(pk=code))
    except Location.DoesNotExist as error:
        codes = ", ".join(Location.objects.values_list("pk", flat=True)) or "-"
        raise CommandError(
            _("There is no location “%(code)s”. Use one of: %(codes)s.") % {"code": code, "codes": codes}
        ) from error
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error
    if not isinstance(driver, LocalDriver):
        raise CommandError(
            _("The location %(code)s doesn't use local storage, so nothing can be imported there.") % {"code": code}
        )
    return driver


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM would end the process at once and leave half an image behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
