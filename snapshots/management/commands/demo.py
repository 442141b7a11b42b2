"""`manage.py demo`: two customers with machines, disks that hold real file systems, and prices, for a first look."""

import csv
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from billing import closing
from billing.models import ServiceKind
from billing.pricing.packages import create_package
from billing.wallet import buy_credits
from cng_portal.accounts.models import BillingType, Customer, Membership, Project, Role, User
from cng_portal.accounts.projects import create_project
from cng_portal.accounts.services import create_customer
from cng_portal.common.money import to_micro
from cng_portal.inventory.models import Location, Region, VirtualMachine, Volume
from snapshots.backups.automatic import NOTICE, switch_automatic_backups
from snapshots.backups.schedules import create_schedule
from snapshots.models import volume_ref
from snapshots.storage.contract import GIB
from snapshots.storage.local import LocalDriver
from snapshots.storage.registry import get_driver
from snapshots.volumes.charges import start_charging_volume

PASSWORD = "portal-demo"
SIGN_INS = ["customer@example.com", "other@example.com", "admin@example.com"]

YANGON, MANDALAY, SINGAPORE = "1CNG-YGN-AZ01", "1CNG-MDY-AZ01", "1CNG-SIN-AZ01"
LOCATIONS = [
    (YANGON, "Yangon", "MM", Region.ASIA),
    (MANDALAY, "Mandalay", "MM", Region.ASIA),
    (SINGAPORE, "Singapore", "SG", Region.SOUTHEAST_ASIA),
]
# Per GB and hour. Kinds that aren't listed aren't sold there.
RATES = {
    YANGON: {
        ServiceKind.BLOCK_STORAGE: "0.1",
        ServiceKind.BS_SNAPSHOT: "0.4",
        ServiceKind.VM_SNAPSHOT: "0.5",
        ServiceKind.VM_BACKUP: "0.6",
    },
    MANDALAY: {ServiceKind.BS_SNAPSHOT: "0.35", ServiceKind.VM_SNAPSHOT: "0.45"},
    SINGAPORE: {
        ServiceKind.BLOCK_STORAGE: "0.12",
        ServiceKind.BS_SNAPSHOT: "0.55",
        ServiceKind.VM_SNAPSHOT: "0.7",
        ServiceKind.VM_BACKUP: "0.8",
    },
}


class Machine(NamedTuple):
    name: str
    project: str
    location: str
    running: bool
    hourly_price: str
    vcpus: int
    memory_gb: int
    volumes: list[tuple[str, int, str]]  # name, GB, content; the first is the root volume


class Disk(NamedTuple):
    """A free volume."""

    name: str
    project: str
    location: str
    size_gb: int
    content: str


AZH: list[Machine | Disk] = [
    Machine("web-01", "Default", YANGON, True, "45.50", 2, 4, [("web-01-root", 20, "web")]),
    Machine(
        "db-01", "Default", YANGON, True, "118.75", 4, 16, [("db-01-root", 10, "system"), ("db-01-data", 50, "orders")]
    ),
    Machine("mail-01", "Default", YANGON, False, "32.00", 1, 2, [("mail-01-root", 10, "system")]),
    Machine("build-01", "Software", MANDALAY, False, "86.40", 4, 8, [("build-01-root", 8, "source")]),
    Machine("test-01", "Test", YANGON, False, "12.25", 1, 1, [("test-01-root", 2, "system")]),
    Disk("office-files", "Default", YANGON, 30, "office"),
    Disk("archive-2025", "Default", MANDALAY, 5, "office"),
    Disk("release-cache", "Software", SINGAPORE, 3, "source"),
    Disk("scratch", "Test", YANGON, 1, "notes"),
]
LOTUS: list[Machine | Disk] = [
    Machine(
        "app-01", "Default", SINGAPORE, True, "64.00", 2, 8, [("app-01-root", 16, "web"), ("app-01-data", 25, "orders")]
    ),
    Disk("tracking-export", "Default", YANGON, 4, "orders"),
]


class Command(BaseCommand):
    help = "Fill an empty database with demo customers, machines and disks. Does nothing once there is a user."

    def handle(self, **options: object) -> None:
        if settings.PRODUCTION:
            raise CommandError(
                "The demo's passwords are public, so it can't be set up on a portal that others can reach."
            )
        if User.objects.exists():
            return
        if "local" not in settings.STORAGE:
            self.stdout.write("The demo is left out: it needs an engine “local” in STORAGE.")
            return
        self.stdout.write("Filling the empty database with the demo…")
        self.stdout.flush()
        fill()
        if not find_mkfs():
            self.stdout.write("mkfs.ext4 is not installed: the demo's disks hold plain files instead of file systems.")


@transaction.atomic
def fill() -> None:
    """Create the whole demo in an empty database, or nothing."""
    admin = User.objects.create_superuser("admin@example.com", PASSWORD, name="Administrator")
    for code, city, country, region in LOCATIONS:
        location = Location.objects.create(code=code, city=city, country=country, region=region)
        for kind, rate in RATES[code].items():
            create_package(
                location=location,
                kind=kind,
                rate_micro=to_micro(Decimal(rate)),
                starts_at=timezone.now() - timedelta(days=400),
                by=admin,
            )

    owner = User.objects.create_user("customer@example.com", PASSWORD, name="Aung Zaw Htet")
    azh = create_customer(name="A.Z.H Trading", owner=owner, number=1039)
    for name in ("Software", "Test"):
        create_project(name=name, by=owner)
    colleague = User.objects.create_user("thiri@example.com", name="Thiri Win", customer=azh)  # cannot sign in
    Membership.objects.create(project=azh.projects.get(name="Default"), user=colleague, role=Role.VIEWER)
    Membership.objects.create(project=azh.projects.get(name="Software"), user=colleague, role=Role.MEMBER)
    buy_credits(
        customer=azh,
        amount_micro=to_micro(Decimal(100_000)),
        reason="First purchase",
        by=admin,
        key="demo-first-purchase",
        at=timezone.now() - timedelta(days=120),
    )

    other = User.objects.create_user("other@example.com", PASSWORD, name="Mei Lin Tan")
    lotus = create_customer(
        name="Golden Lotus Logistics",
        owner=other,
        number=1040,
        billing_type=BillingType.POSTPAID,
        time_zone="Asia/Singapore",
    )
    with ExitStack() as undo:  # the database rolls back a demo that fails half-way, the storage doesn't
        for customer, resources in ((azh, AZH), (lotus, LOTUS)):
            create_resources(undo, customer, resources)
        protect(owner, admin)
        closing.close_months(at=timezone.now())  # The volumes are older than this month.
        undo.pop_all()


def protect(owner: User, admin: User) -> None:
    """Back up one machine every night, with a first backup now, and start automatic backups of another one."""
    vms = {vm.name: vm for vm in VirtualMachine.objects.select_related("project__customer", "location")}
    create_schedule(source=vms["mail-01"], interval="daily", at=time(1, 30), take_one_now=True, user=owner)
    switch_automatic_backups(vm=vms["web-01"], on=True, user=admin, now=timezone.now() - NOTICE)


def create_resources(undo: ExitStack, customer: Customer, resources: list[Machine | Disk]) -> None:
    projects = {project.name: project for project in Project.objects.filter(customer=customer)}
    made_at = timezone.now() - timedelta(days=120)
    for resource in resources:
        made_at += timedelta(days=9, hours=5, minutes=17)
        shared_fields: dict[str, Any] = {
            "project": projects[resource.project],
            "location": Location.objects.get(pk=resource.location),
            "created_at": made_at,
        }
        if isinstance(resource, Disk):
            make_volume(undo, resource.name, resource.size_gb, resource.content, **shared_fields)
            continue
        vm = VirtualMachine.objects.create(
            name=resource.name,
            state=VirtualMachine.State.RUNNING if resource.running else VirtualMachine.State.STOPPED,
            vcpus=resource.vcpus,
            memory_mb=resource.memory_gb * 1024,
            hourly_price_micro=to_micro(Decimal(resource.hourly_price)),
            **shared_fields,
        )
        for position, (name, size_gb, content) in enumerate(resource.volumes):
            make_volume(undo, name, size_gb, content, vm=vm, position=position, **shared_fields)


def make_volume(
    undo: ExitStack, name: str, size_gb: int, content: str, *, project: Project, location: Location, **fields: Any
) -> Volume:
    volume = Volume(name=name, size_gb=size_gb, project=project, location=location, **fields)
    volume.available_at = volume.created_at
    with tempfile.TemporaryDirectory(prefix="demo-", dir=settings.DATA_DIR) as folder:
        files, image = Path(folder, "files"), Path(folder, "image")
        files.mkdir()
        write_files(files, content, name)
        make_image(image, files, size_gb, volume.pk, label=name)
        driver = local_driver(location)
        volume.backend_ref = driver.import_image(volume_ref(volume), image)
        undo.callback(driver.delete_volume, volume_ref(volume))
    volume.save(force_insert=True)
    start_charging_volume(volume, at=volume.available_at)
    return volume


def local_driver(location: Location) -> LocalDriver:
    driver = get_driver(location)
    if not isinstance(driver, LocalDriver):
        raise ImproperlyConfigured("The demo needs the driver of local files as the engine “local” of STORAGE.")
    return driver


def find_mkfs() -> str | None:
    return shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def make_image(image: Path, files: Path, size_gb: int, uuid: UUID, *, label: str) -> None:
    """A sparse ext4 file system with the files in it; without mkfs.ext4, a tar archive after 4 KiB of zeros.

    An image that begins like an archive would be refused by the import.
    """
    mkfs = find_mkfs()
    if mkfs:
        # lazy: ranges that mkfs would zero stay holes; otherwise the journals alone would take a gigabyte
        lazy = f"lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,hash_seed={uuid}"
        options = ["-q", "-F", "-m", "0", "-E", lazy, "-U", str(uuid), "-L", label[:16], "-d", str(files)]
        subprocess.run([mkfs, *options, str(image), f"{size_gb}G"], check=True, stdout=subprocess.DEVNULL)
        return
    with image.open("wb") as file:
        file.write(bytes(4096))
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(files, arcname=".")
    os.truncate(image, size_gb * GIB)


def write_files(folder: Path, content: str, name: str) -> None:
    """Write the files of a disk of this kind: a few MB that are the same on every run."""
    rng = random.Random(name)
    write(folder / "README.txt", f"This is the disk {name}.\nIt belongs to the demo of the 1CNG customer portal.\n")
    if content in ("web", "system", "source"):
        write(folder / "etc/hostname", name.removesuffix("-root") + "\n")
        write(folder / "etc/fstab", f"LABEL={name} / ext4 defaults,noatime 0 1\n")
        write(folder / "var/log/syslog", "".join(log_lines(rng, 4_000)))
    if content == "web":
        for page in ("index", "products", "contact"):
            text = f"<!doctype html>\n<title>{page.title()}</title>\n<p>Mingalaba from {name}.</p>\n"
            write(folder / f"var/www/html/{page}.html", text)
        write(folder / "var/www/html/style.css", "body { font-family: sans-serif; margin: 3rem; }\n")
        write_bytes(folder / "var/www/html/images/shop.raw", rng, 3)
    if content == "orders":
        path = folder / "data/orders.csv"
        path.parent.mkdir()
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["order", "day", "township", "item", "quantity", "price_mmk"])
            for number in range(1, 30_001):
                table.writerow(
                    [
                        f"SO-{number:06d}",
                        f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
                        rng.choice(["Bahan", "Hlaing", "Kamayut", "Latha", "Sanchaung", "Tamwe"]),
                        rng.choice(["rice 25 kg", "tea leaf salad", "longyi", "cooking oil 5 l", "lacquer bowl"]),
                        rng.randint(1, 40),
                        rng.randrange(1_500, 95_000, 50),
                    ]
                )
        write_bytes(folder / "data/orders.index", rng, 5)
    if content == "office":
        for month in range(1, 13):
            write(
                folder / f"minutes/2025-{month:02d}.md", f"# Minutes, month {month} of 2025\n\n- Budget agreed.\n" * 40
            )
        for number in range(1, 5):
            write_bytes(folder / f"scans/contract-{number:02d}.raw", rng, 1)
    if content == "source":
        for module in ("cart", "checkout", "stock", "reports"):
            write(folder / f"srv/shop/{module}.py", f'"""{module.title()} of the shop."""\n\n' + "TOTAL = 0\n" * 200)
        write_bytes(folder / "srv/build/shop-2.4.bin", rng, 4)


def log_lines(rng: random.Random, count: int) -> Iterator[str]:
    for second in range(count):
        program = rng.choice(["cron", "sshd", "systemd", "kernel", "nginx"])
        clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        yield f"Oct 12 {clock} {program}[{rng.randint(300, 9000)}]: job {second} done\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_bytes(path: Path, rng: random.Random, megabytes: int) -> None:
    """Write random bytes, which can be neither compressed nor stored as a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.randbytes(megabytes * 1024**2))
