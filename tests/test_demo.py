import shutil
import subprocess
from decimal import Decimal
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.utils import timezone

from billing import verification
from billing.balance import get_balance
from billing.charges import costs_so_far
from billing.models import ServiceKind, UsageSegment
from billing.pricing.prices import PriceList
from cng_portal.accounts.models import BillingType, Customer, Project, User
from cng_portal.common.money import to_micro
from cng_portal.inventory.models import Location, VirtualMachine, Volume
from snapshots.management.commands.demo import PASSWORD, SIGN_INS, YANGON, Disk, find_mkfs
from snapshots.models import BackupSchedule
from snapshots.storage.contract import GIB, StorageError

E2FSCK = shutil.which("e2fsck", path="/usr/sbin:/sbin:/usr/bin:/bin")
pytestmark = [pytest.mark.django_db, pytest.mark.slow]


def demo() -> str:
    output = StringIO()
    call_command("demo", stdout=output)
    return output.getvalue()


def image_of(volume: Volume, storage_root: Path) -> Path:
    return storage_root / volume.location_id / "volumes" / f"{volume.pk}.img"


def test_the_demo_has_what_the_readme_promises(storage_root: Path) -> None:
    demo()

    assert all(User.objects.get(email=email).check_password(PASSWORD) for email in SIGN_INS)
    assert User.objects.get(email="admin@example.com").is_superuser
    places = Location.objects.values_list("code", "city", "country", "region")
    assert list(places) == [
        ("1CNG-MDY-AZ01", "Mandalay", "MM", "asia"),
        ("1CNG-SIN-AZ01", "Singapore", "SG", "southeast-asia"),
        ("1CNG-YGN-AZ01", "Yangon", "MM", "asia"),
    ]
    prepaid = User.objects.get(email="customer@example.com").customer
    assert prepaid.crn == "#001039"
    assert prepaid.billing_type == BillingType.PREPAID
    now = timezone.now()
    volumes = UsageSegment.objects.filter(customer=prepaid, kind=ServiceKind.BLOCK_STORAGE)
    costs = costs_so_far(volumes.values_list("resource_id", flat=True), now)
    assert len(costs) == 8  # those in Mandalay cost nothing
    of_volumes = sum(cost.amount_micro for cost in costs.values())
    # 20 % of web-01's K 45.50, for the first hour of its automatic backups
    assert get_balance(customer=prepaid, at=now) == to_micro(Decimal("99_990.90")) - of_volumes
    assert set(prepaid.projects.values_list("name", flat=True)) == {"Default", "Software", "Test"}
    assert User.objects.get(email="other@example.com").customer.billing_type == BillingType.POSTPAID
    prices, now = PriceList.load(), timezone.now()
    locations = {location for kind, location, _currency in prices.versions if kind == ServiceKind.BS_SNAPSHOT}
    sold = {location: prices.sold_rate(ServiceKind.BS_SNAPSHOT, location, "MMK", now) for location in locations}
    assert sold["1CNG-YGN-AZ01"] == to_micro(Decimal("0.4"))
    assert set(sold) == {"1CNG-MDY-AZ01", "1CNG-SIN-AZ01", "1CNG-YGN-AZ01"} and None not in sold.values()
    assert verification.all_differences(at=timezone.now()) == []


def test_the_demo_has_a_schedule_with_a_first_backup_and_automatic_backups(
    storage_root: Path,
) -> None:
    demo()

    own, automatic = BackupSchedule.objects.order_by("vm__name")
    assert (own.vm.name, own.origin, own.runs.get().state) == ("mail-01", "customer", "taking")
    assert (automatic.vm.name, automatic.origin) == ("web-01", "automatic")
    assert automatic.vm.automatic_backups_since


def test_only_the_promised_people_can_sign_in(storage_root: Path) -> None:
    demo()

    able = {user.email for user in User.objects.all() if user.has_usable_password()}
    assert able == set(SIGN_INS)


def test_each_customer_sees_only_their_own(storage_root: Path) -> None:
    demo()

    customer, other = (User.objects.get(email=email) for email in SIGN_INS[:2])
    for model in (Project, VirtualMachine, Volume):
        visible = [set(model.objects.visible_to(user).values_list("pk", flat=True)) for user in (customer, other)]
        assert all(visible)
        assert not visible[0] & visible[1]


def test_volumes_are_sparse_files_of_their_size(storage_root: Path) -> None:
    demo()

    volumes = Volume.objects.all()
    assert 10 <= len(volumes) <= 15
    assert {volume.vm is None for volume in volumes} == {True, False}
    assert min(volume.size_gb for volume in volumes) == 1
    assert max(volume.size_gb for volume in volumes) == 50
    images = [image_of(volume, storage_root).stat() for volume in volumes]
    assert [image.st_size for image in images] == [volume.size_gb * GIB for volume in volumes]
    assert sum(image.st_blocks * 512 for image in images) < 200 * 1024**2


@pytest.mark.skipif(not (E2FSCK and find_mkfs()), reason="e2fsprogs is not installed")
def test_volumes_hold_sound_file_systems_with_files_in_them(storage_root: Path) -> None:
    demo()

    for volume in Volume.objects.all():
        image = image_of(volume, storage_root)
        subprocess.run([E2FSCK, "-f", "-n", image], check=True, capture_output=True)
        debugfs = Path(E2FSCK).with_name("debugfs")
        text = subprocess.run([debugfs, "-R", "cat /README.txt", image], check=True, capture_output=True, text=True)
        assert f"This is the disk {volume.name}." in text.stdout


def test_without_mkfs_the_disks_hold_plain_files(storage_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapshots.management.commands.demo.find_mkfs", lambda: None)

    assert "mkfs.ext4 is not installed" in demo()

    volume = Volume.objects.get(name="scratch")
    image = image_of(volume, storage_root)
    assert image.stat().st_size == GIB
    assert b"This is the disk scratch." in image.open("rb").read(64 * 1024)


def test_the_demo_leaves_a_database_with_people_alone(storage_root: Path) -> None:
    User.objects.create_user("someone@example.com")

    assert demo() == ""
    assert User.objects.count() == 1
    assert not Customer.objects.exists()


def test_a_demo_that_fails_half_way_leaves_neither_rows_nor_images(
    storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapshots.management.commands.demo.LOTUS", [Disk("too-small", "Default", YANGON, 0, "orders")])

    with pytest.raises((subprocess.CalledProcessError, StorageError)):
        demo()

    assert not User.objects.exists()
    assert not list(storage_root.rglob("*.img"))
