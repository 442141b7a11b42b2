"""Fill the account for screenshots: long names, big numbers, years of bills, and work in each state."""

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.contrib.sessions.models import Session
from django.urls import reverse
from django.utils import timezone

from billing.closing import close_months
from billing.models import ServiceKind
from billing.pricing.packages import create_package
from billing.usage import close_segment, open_segment
from billing.wallet import buy_credits, grant_credits
from cng_portal.accounts.models import Customer, Membership, Role, User
from cng_portal.activity import services as activity
from cng_portal.inventory.models import Location, Volume
from cng_portal.notifications.models import Notification
from snapshots.backups.automatic import NOTICE, switch_automatic_backups
from snapshots.files import catalogue, cataloguing
from snapshots.labels import change_labels
from snapshots.models import DiskImage, Snapshot, volume_ref
from snapshots.models.drills import create_drill
from snapshots.recycle_bin import put_in_bin
from snapshots.storage.registry import get_driver
from snapshots.volumes.charges import start_charging_volume
from tests.factories import (
    ApprovalFactory,
    BackupFactory,
    BackupRunFactory,
    BackupScheduleFactory,
    DiskChangeFactory,
    InvitationFactory,
    MembershipFactory,
    NotificationFactory,
    OperationFactory,
    OutgoingMailFactory,
    SnapshotFactory,
    SnapshotLockFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.disks import content, put_volume
from tests.snapshots.drills.records import FAILED, record_drill
from tests.snapshots.files import images

GIB = 1024**3
PASSWORD = "a password of the pictures"
LONG = "production-postgresql-primary-data-volume-of-the-yangon-office-01"
BURMESE = "ရန်ကုန်ရုံးချုပ်-စာရင်းဇယားများ"


def fill(member: Membership, storage_root: Path) -> None:
    """Add long and Burmese names, big numbers, years of bills, and work in each state to the member's account."""
    now = timezone.now()
    customer, user, project = member.project.customer, member.user, member.project
    customer.recycle_bin_days = 7
    for each in (customer, project):
        each.snapshot_gb_quota = each.volume_gb_quota = 500_000
        each.save()
    user.set_password(PASSWORD)
    user.save()
    buy_credits(
        customer=customer,
        amount_micro=1_234_567_890_120_000,
        reason="Bank transfer 2026-11",
        by=None,
        key="big",
        at=now - 2 * NOTICE,  # before automatic backups are switched on
    )
    grant_credits(
        customer=customer,
        amount_micro=50_000_000_000,
        reason="Welcome",
        by=None,
        key="gift",
        expires_at=now + timedelta(days=40),
    )
    yangon = Location.objects.get(code="1CNG-YGN-AZ01")
    shared: dict[str, Any] = {"project": project, "location": yangon, "created_at": now - timedelta(days=160)}
    big = VirtualMachineFactory(
        name="erp-production-application-server-yangon-01",
        vcpus=64,
        memory_mb=524288,
        hourly_price_micro=12_345_678_900,
        **shared,
    )
    huge = VolumeFactory(name=LONG, size_gb=16000, vm=big, **shared)
    office = VolumeFactory(name=BURMESE, size_gb=250, **(shared | {"project": customer.projects.get(name="Software")}))
    spare = VolumeFactory(name="spare-disk-of-the-office", size_gb=40, **shared)
    for volume in (huge, office, spare):
        put_volume(storage_root, volume, content(b"bytes"))
    for number in range(24):
        created_at = now - timedelta(days=5 + 6 * number, hours=number)
        volume = (huge, office)[number % 2]
        SnapshotFactory(
            volume=volume,
            name=f"{volume.name[:50]}-{number + 1}",
            created_at=created_at,
            ready_at=created_at + timedelta(minutes=9),
            requested_by=user,
        )
    waiting = SnapshotFactory(
        volume=spare, name="before-moving-to-the-new-data-centre", pending=True, requested_by=user
    )
    OperationFactory(snapshot=waiting, capture=True, requested_by=user)
    leaving = SnapshotFactory(volume=office, name="old copy of the accounts", deleting=True, requested_by=user)
    OperationFactory(snapshot=leaving, kind="delete", requested_by=user)
    for snapshot in Snapshot.objects.filter(ready_at__isnull=False):
        charge(snapshot)
    put_into_bin(office, user)
    sell_block_storage(yangon)
    for snapshot in Snapshot.objects.filter(volume=office).order_by("created_at")[:3]:
        close_segment(resource_id=snapshot.pk, kind=snapshot.service_kind, at=now - timedelta(days=20))
    close_months(at=now)
    work_in_each_state(member)
    protect(member)
    label(member)
    put_files(Snapshot.objects.get(name="before the update"), storage_root)
    invite_members(member)
    # the browser's own session would differ between screenshots
    for number, agent in enumerate(
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) Version/19.1 Mobile/15E148 Safari/604.1", "curl/8.9")
    ):
        key = f"{'session':x<30}{number}"
        Session.objects.create(session_key=key, session_data="", expire_date=now + timedelta(days=1))
        user.usersession_set.create(session_key=key, ip=f"192.0.2.{number + 7}", user_agent=agent)


def put_into_bin(volume: Volume, user: User) -> None:
    """Two snapshots deleted by their user: the name of one is taken again. And a volume."""
    Customer.objects.filter(pk=volume.project.customer_id).update(recycle_bin_days=7)
    volume.project.customer.recycle_bin_days = 7
    taken_at = timezone.now() - timedelta(days=9)
    fields = {"volume": volume, "created_at": taken_at, "ready_at": taken_at + timedelta(minutes=9)}
    for name in ("before-the-audit", "accounts of the quarter"):
        snapshot = SnapshotFactory(name=name, requested_by=user, **fields)
        charge(snapshot)
        put_in_bin(snapshot, at=timezone.now() - timedelta(days=1, hours=2), user=user)
    charge(SnapshotFactory(name="before-the-audit", requested_by=user, **fields))
    SnapshotLockFactory(snapshot=SnapshotFactory(name="the books of 2025", requested_by=user, **fields), locked_by=user)
    VolumeFactory(name="scratch", project=volume.project, location=volume.location, size_gb=120, binned=True)


def sell_block_storage(location: Location) -> None:
    started_at = timezone.now() - timedelta(days=200)
    create_package(location=location, kind=ServiceKind.BLOCK_STORAGE, rate_micro=250_000, starts_at=started_at)
    for volume in Volume.objects.present().filter(location=location):
        start_charging_volume(volume, at=volume.created_at)


def label(member: Membership) -> None:
    ready = Snapshot.objects.get(name="before the update")
    add, note = ["production", "before update", "db"], "Taken before ERP 5.2.\nKeep it until the audit in March."
    change_labels(model=Snapshot, ids=[ready.pk], user=member.user, add=add, note=note)
    for name, tags in (("db-01-data", ["production", "db"]), (LONG, ["a-tag-that-is-as-long-as-a-tag-may-be-40"])):
        change_labels(
            model=Volume, ids=[Volume.objects.get(name=name).pk], user=member.user, add=tags, note="The ERP's data."
        )


def charge(snapshot: Snapshot) -> None:
    assert snapshot.ready_at
    open_segment(
        resource_id=snapshot.pk,
        kind=snapshot.service_kind,
        name=snapshot.name,
        project=snapshot.project,
        location=snapshot.location,
        size_gb=snapshot.size_gb,
        at=snapshot.ready_at,
    )


def work_in_each_state(member: Membership) -> None:
    now = timezone.now()
    data = Volume.objects.get(name="db-01-data")
    ready = Snapshot.objects.get(name="before the update")
    restored = SnapshotFactory(volume=data, name="restored-from", requested_by=member.user)
    OperationFactory(snapshot=restored, restore=True, succeeded=True, requested_by=member.user)
    DiskChangeFactory(
        disk=restored.disks.get(), previous=ready.disks.get(), files_before=18_204, changed=41, removed=16_090,
        added=16_102, sampled=100, unreadable=97, usual_share=0.023, is_unusual=True,
    )  # fmt: skip
    Snapshot.objects.filter(pk=restored.pk).update(unusual_at=now)
    Snapshot.objects.filter(pk=ready.pk).update(held_at=now)
    broken = SnapshotFactory(volume=data, name="damaged since", requested_by=member.user, damaged=True)
    broken.disks.update(
        damage="Block 4,711 of the disk image does not match its checksum.",
        verified_at=now - timedelta(hours=2),
        checksum="5f0c1d9ae44f7c1b" * 4,
    )
    OperationFactory(snapshot=broken, kind="verify", failed=True, requested_by=member.user)
    OperationFactory(
        snapshot=ready,
        kind="new_volume",
        running=True,
        bytes_done=7 * GIB,
        bytes_total=50 * GIB,
        disk=ready.disks.first(),
        volume=VolumeFactory(project=data.project, location=data.location, name="made-from-it", state="creating"),
        requested_by=member.user,
    )
    record_drill(ready, requested_by=member.user)
    record_drill(restored, checks=FAILED)
    drilling = OperationFactory(
        snapshot=ready, kind="drill", running=True, bytes_done=7 * GIB, bytes_total=50 * GIB, requested_by=member.user
    )
    create_drill(ready, drilling, user=member.user, at=now)
    shared = {"project": data.project, "location": data.location}
    fresh = VolumeFactory(name="uploads", size_gb=100, available_at=now, **shared)
    start_charging_volume(fresh, at=now)
    leaving = VolumeFactory(name="old-uploads", state="deleting", delete_requested_at=now, **shared)
    for kind, volume, fields in (
        ("create_volume", fresh, {"succeeded": True}),
        ("delete_volume", leaving, {"failed": True}),
        ("extend_volume", Volume.objects.get(name="web-01-root"), {"new_size_gb": 40, "running": True}),
    ):
        OperationFactory(kind=kind, snapshot=None, volume=volume, requested_by=member.user, **fields)


def put_files(snapshot: Snapshot, storage_root: Path) -> None:
    """Capture a disk with partitions and files. Without mke2fs, the pages say that the snapshot is missing."""
    if not shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin"):
        return
    disk = snapshot.disks.get()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tree").mkdir()
        image = images.make_gpt(folder / "disk", images.make_ext4(folder / "part", images.make_tree(folder / "tree")))
        path = put_volume(storage_root, disk.volume, b"")
        with open(path, "r+b") as file:
            images.copy_sparse(image, file.fileno(), 0)
    get_driver(snapshot.location).create_snapshots([(disk.ref, volume_ref(disk.volume))])
    list_files(disk)


def list_files(disk: DiskImage) -> None:
    """List its files, and let another snapshot of the volume hold others."""
    driver = get_driver(disk.snapshot.location)
    listed = cataloguing.list_files(disk.snapshot, lambda done, total: None)
    cataloguing.record_listed(disk.snapshot, listed, timezone.now())
    file = driver.open_catalogue(disk.ref)
    other = DiskImage.objects.filter(volume=disk.volume, snapshot__state="ready").exclude(pk=disk.pk).first()
    if file is None or other is None:
        return
    with catalogue.opened(file) as opened:
        lines = [line for block in opened.lines() for line in block]
        summary = opened.summary
    gone = lines[2:5]
    new = [line.replace(b"/plain.txt", b"/old-name.txt").replace(b"f 3145745 ", b"f 45 ") for line in lines]
    records = sorted({*new, b"0/letters/gone.txt\0f 99 1700000000000000 900 644"} - set(gone))
    driver.create_snapshots([(other.ref, volume_ref(other.volume))])
    driver.store_catalogue(other.ref, catalogue.compress([catalogue.SEPARATOR.join(records)], summary))


def protect(member: Membership) -> None:
    """Create schedules that run, wait, fail and are paused, and an automatic one."""
    database = Volume.objects.get(name="db-01-data").vm
    database.hourly_price_micro = 118_750_000
    database.save()
    daily = BackupScheduleFactory(vm=database, retention_count=2, created_by=member.user)
    BackupRunFactory(schedule=daily, failed=True, scheduled_at=timezone.now() - timedelta(days=3))
    for number in reversed(range(2)):
        copy = BackupFactory(
            vm=database, name=f"db-01 {number + 20} Nov 2026, 02:00", size_gb=60, is_pinned=number == 0
        )
        OperationFactory(snapshot=copy, capture=True, succeeded=True)
        charge(copy)
        BackupRunFactory(schedule=daily, snapshot=copy, scheduled_at=timezone.now() - timedelta(days=number + 1))
    BackupRunFactory(schedule=daily, waiting=True)
    paused = BackupScheduleFactory(vm=database, monthly=True, paused=True)
    BackupRunFactory(schedule=paused, missed=True)
    charge(Snapshot.objects.get(name="restored-from"))
    of_volume = BackupScheduleFactory(
        vm=None, volume=Volume.objects.get(name="db-01-data"), weekly=True, retention_count=7, created_by=member.user
    )
    for number in range(2):
        copy = SnapshotFactory(volume=of_volume.volume, name=f"db-01-data-snapshot-2026-11-{22 - 7 * number}")
        charge(copy)
        BackupRunFactory(
            schedule=of_volume,
            snapshot=copy,
            scheduled_at=timezone.now() - timedelta(days=7 * number + 1),
            number=2 - number,
        )
    web = database.project.vms.get(name="web-01")
    web.hourly_price_micro = 45_500_000
    web.save()
    switch_automatic_backups(vm=web, on=True, user=UserFactory(admin=True), now=timezone.now() - NOTICE)


def invite_members(member: Membership) -> None:
    now = timezone.now()
    project = member.project
    for name, role, email in (
        ("Thiri Win", Role.VIEWER, "thiri@example.com"),
        ("မောင်မောင်ကျော်စွာ", Role.MEMBER, "maung.maung.kyaw.swar.of.accounts@subsidiary.example.com"),
        ("Khin Thandar Soe Myint Oo Naing", Role.OWNER, "khin@example.com"),
    ):
        other = UserFactory(name=name, email=email, customer=project.customer)
        MembershipFactory(project=project, user=other, role=role)
        activity.record(
            action="role.change", actor=member.user, target=other, project=project, before={"role": "viewer"},
            after={"role": role},
        )  # fmt: skip
    asked = {
        "project": project,
        "requested_by": other,
        "action": "lift_lock",
        "target_id": uuid4(),
        "target_name": LONG,
    }
    ApprovalFactory(**asked, reason="The contract ended, and the data has to be deleted by the end of the month.")
    ApprovalFactory(**asked | {"requested_by": member.user, "action": "erase_volume", "target_id": uuid4()})
    ApprovalFactory(project=project, requested_by=other, outcome="reject", decided_by=member.user, decided_at=now)
    InvitationFactory(project=project, email="a-guest-with-a-long-address@another-company.example.com")
    refused = {"failed_at": now, "error": "550 5.1.1 The email account that you tried to reach does not exist"}
    for email, mail in {
        "no-such-user@example.com": refused,
        "full-mailbox@example.com": {"error": "452", "next_attempt_at": now + timedelta(minutes=8)},
        "just-now@example.com": {},
    }.items():
        InvitationFactory(project=project, email=email, mail=OutgoingMailFactory(recipient=email, **mail))
    activity.record(action="snapshot.rename", actor=member.user, target=Snapshot.objects.first(), before={"name": "nightly"},
                    after={"name": LONG})  # fmt: skip
    for action in ("user.sign_in", "user.sign_in_failed"):
        activity.record(action=action, actor=member.user, target=member.user, after={"device": "Firefox on Linux"})
    failed = Snapshot.objects.filter(state="failed").first()
    NotificationFactory(user=member.user, url=reverse("snapshots:snapshot", args=[failed.pk]))
    NotificationFactory(
        user=member.user,
        level=Notification.Level.WARNING,
        title="Your infra credits are low",
        text="They last until 24 Nov 2026 at what you use now. Then nothing new can be taken; what there is stays.",
        url=reverse("billing:credits"),
        mail=OutgoingMailFactory(recipient=member.user.email, **refused),
    )
    NotificationFactory(
        user=member.user,
        level=Notification.Level.SUCCESS,
        title=f"The volume “{LONG}” was made",
        text="From the snapshot “before the update”.",
        read_at=now,
    )
