"""Before something is deleted or restored, the page says what remains, what was paid and what depends on it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from html import unescape
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from billing.models import UsageSegment
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import Volume
from snapshots.backups.schedules import delete_schedule
from snapshots.deletion_preview import DeletionPreview, describe, describe_restore, preview_deletion
from snapshots.errors import LastRestorePoint
from snapshots.forms import ConfirmationForm
from snapshots.models import Snapshot, State
from snapshots.services import request_deletion, request_deletions
from snapshots.volumes.services import request_volume_deletion
from tests.factories import (
    BackupRunFactory,
    BackupScheduleFactory,
    DiskImageFactory,
    MembershipFactory,
    OperationFactory,
    SnapshotFactory,
    SnapshotLockFactory,
    VolumeFactory,
)
from tests.snapshots.disks import sell_everywhere
from tests.snapshots.test_races import TAKERS, all_at_once

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)


@pytest.fixture
def client(client_for: Callable[..., Client], member: Membership) -> Client:
    return client_for(member.user)


@pytest.fixture
def volume(member: Membership) -> Volume:
    return VolumeFactory(project=member.project, name="db-01-data", size_gb=50)


def taken(volume: Volume, days_ago: int, **options: object) -> Snapshot:
    """A snapshot of 1 GB of bytes."""
    at = timezone.now() - days_ago * DAY
    return SnapshotFactory(volume=volume, created_at=at, ready_at=at, disk__allocated_bytes=1024**3, **options)


def preview(snapshots: list[Snapshot], member: Membership, *, at: datetime | None = None) -> DeletionPreview:
    related = ("location", "project__customer", "run__schedule")
    rows = Snapshot.objects.select_related(*related).filter(pk__in=[snapshot.pk for snapshot in snapshots])
    return preview_deletion(list(rows), user=member.user, at=at or timezone.now())


def test_what_remains_of_each_disk_and_how_much_history_is_lost(member: Membership, volume: Volume) -> None:
    oldest, middle, newest = taken(volume, 30), taken(volume, 20), taken(volume, 5, disk__verified_at=timezone.now())
    taken(volume, 1, damaged=True)  # It can't be restored, so it doesn't count.
    [disk] = preview([middle], member).disks
    assert (disk.remaining, disk.newest, disk.history_lost, disk.is_verified) == (
        2,
        newest.ready_at,
        timedelta(),
        True,
    )
    [disk] = preview([oldest, newest], member).disks
    assert (disk.remaining, disk.newest, disk.is_verified) == (1, middle.ready_at, False)
    assert round(disk.history_lost / DAY) == 25
    [disk] = preview([oldest, middle, newest], member).disks
    assert disk.loses_last and round(disk.history_lost / DAY) == 25


def test_money_bytes_locks_schedules_and_volumes_made_from_it(member: Membership, volume: Volume) -> None:
    sell_everywhere()
    schedule = BackupScheduleFactory(vm=None, volume=volume)
    copy, kept = taken(volume, 1), taken(volume, 2, name="kept")
    BackupRunFactory(schedule=schedule, volume=volume, vm=None, snapshot=copy)
    copy.start_charging(copy.ready_at)
    made = VolumeFactory(project=member.project, name="db-01-copy")
    foreign = VolumeFactory(project__customer=member.project.customer, name="of-others")
    for target in (made, foreign):
        OperationFactory(snapshot=copy, volume=target, new_volume=True, succeeded=True)
    SnapshotLockFactory(snapshot=kept)
    found = preview([copy, kept], member)
    assert UsageSegment.objects.get(resource_id=copy.pk).started_at == copy.ready_at
    lines = " ".join(describe(found))
    assert found.paid_micro["MMK"] >= 24 * 20_000_000
    assert "“kept” is locked until" in lines
    assert "loses its last copy" in lines
    assert "“db-01-copy”" in lines and "of-others" not in lines
    assert "At most 1 GB of storage becomes free" in lines or "1 GB of storage becomes free" in lines
    assert found.disks[0].remaining == 1, "what is locked stays"


def test_it_takes_the_same_number_of_queries_for_one_and_for_many(member: Membership) -> None:
    sell_everywhere()
    counts = []
    assert member.user.roles  # Read once for a request.
    for number in (1, 12):
        snapshots = [taken(VolumeFactory(project=member.project), 3) for _number in range(number)]
        for snapshot in snapshots:
            snapshot.start_charging(snapshot.ready_at)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            describe(preview(snapshots, member))
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 12


def test_the_last_restore_point_of_a_disk_asks_twice(client: Client, volume: Volume) -> None:
    snapshot = taken(volume, 3, name="the only one")
    url = reverse("snapshots:delete", args=[snapshot.pk])
    page = unescape(client.get(url).content.decode())
    assert "“db-01-data”: no restore point remains" in page
    page = unescape(client.post(url, {"confirmation": "the only one"}).content.decode())
    assert "Check this box to delete the last restore point" in page and 'value="the only one"' in page
    assert Snapshot.objects.get().state == State.READY
    assert client.post(url, {"confirmation": "the only one", "is_last": "on"}).status_code == 302
    assert Snapshot.objects.get().state != State.READY


def test_the_service_deletes_no_last_restore_point_unconfirmed(member: Membership, volume: Volume) -> None:
    older, newer = taken(volume, 3), taken(volume, 1)
    broken = taken(volume, 2, damaged=True)
    request_deletion(snapshot=broken, user=member.user)  # It was no restore point.
    request_deletion(snapshot=older, user=member.user)
    with pytest.raises(LastRestorePoint, match="is the last restore point of “db-01-data”"):
        request_deletion(snapshot=newer, user=member.user)
    newer.refresh_from_db()
    assert newer.state == State.READY
    assert request_deletion(snapshot=newer, user=member.user, even_if_last=True).state != State.READY
    assert request_deletion(snapshot=newer, user=member.user).state != State.READY, "twice is not refused"


def test_a_machines_snapshot_is_the_last_one_of_each_of_its_disks(member: Membership, volume: Volume) -> None:
    of_machine = taken(volume, 2)
    other = VolumeFactory(project=member.project, location=volume.location, name="mail")
    DiskImageFactory(id=uuid4(), snapshot=of_machine, volume=other, position=1)
    taken(volume, 1)
    with pytest.raises(LastRestorePoint, match="of “mail”"):
        request_deletion(snapshot=of_machine, user=member.user)


def test_a_bulk_deletion_leaves_the_last_one_unless_it_is_confirmed(
    client: Client, member: Membership, volume: Volume
) -> None:
    both = [taken(volume, 3, name="older"), taken(volume, 1, name="newer")]
    answers = {"id": [snapshot.pk for snapshot in both], "confirmation": "delete 2 snapshots"}
    page = unescape(client.post(reverse("snapshots:delete_many"), answers).text)
    assert "Check this box to delete the last restore point" in page
    assert Snapshot.objects.filter(state=State.READY).count() == 2
    results = request_deletions(snapshots=both, user=member.user)
    assert results[both[0].pk] == "" and "last restore point" in results[both[1].pk]
    assert Snapshot.objects.filter(state=State.READY).count() == 1


@pytest.mark.parametrize("others_go", [True, False])
def test_what_became_the_last_one_meanwhile_asks_as_well(
    client: Client, member: Membership, volume: Volume, others_go: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page was made while there was another restore point."""
    snapshot, other = taken(volume, 3, name="older"), taken(volume, 1)

    def accept(form: ConfirmationForm) -> bool:
        if others_go:
            request_deletion(snapshot=other, user=member.user)
        return is_valid(form)

    is_valid = ConfirmationForm.is_valid
    monkeypatch.setattr(ConfirmationForm, "is_valid", accept)
    response = client.post(reverse("snapshots:delete", args=[snapshot.pk]), {"confirmation": "older"})
    assert response.status_code == (200 if others_go else 302)
    assert not others_go or "Confirm that you want to delete it" in unescape(response.text)
    snapshot.refresh_from_db()
    assert (snapshot.state == State.READY) is others_go


@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_of_deletions_at_once_one_is_refused_as_the_last(member: Membership, volume: Volume) -> None:
    snapshots = [taken(volume, 30 - number) for number in range(TAKERS)]
    outcomes = all_at_once(lambda number: request_deletion(snapshot=snapshots[number], user=member.user))
    assert outcomes == {"done": TAKERS - 1, "LastRestorePoint": 1}


def test_deleting_a_volume_or_a_schedule_deletes_no_restore_point(member: Membership, volume: Volume) -> None:
    snapshot, schedule = taken(volume, 1), BackupScheduleFactory(of_volume=True, volume=volume, project=member.project)
    BackupRunFactory(schedule=schedule, snapshot=snapshot)
    delete_schedule(schedule=schedule, user=member.user)
    request_volume_deletion(volume=volume, user=member.user, confirmation=volume.name)
    assert Snapshot.objects.get(pk=snapshot.pk).state == State.READY


def test_a_storage_that_fails_fails_no_page(client: Client, volume: Volume, storage_root: Path) -> None:
    storage_root.mkdir(exist_ok=True)
    (storage_root / volume.location_id).write_text("not a folder")
    page = client.get(reverse("snapshots:delete", args=[taken(volume, 3).pk]))
    assert page.status_code == 200 and "At most" in page.text


def test_one_of_several_asks_once(client: Client, volume: Volume) -> None:
    snapshot = taken(volume, 3)
    taken(volume, 2)
    url = reverse("snapshots:delete", args=[snapshot.pk])
    assert "1 restore point remains" in unescape(client.get(url).content.decode())
    assert client.post(url, {"confirmation": snapshot.name}).status_code == 302


def test_many_leaves_out_what_is_locked(client: Client, volume: Volume) -> None:
    free, kept = taken(volume, 3), taken(volume, 2, name="kept")
    SnapshotLockFactory(snapshot=kept)
    url = reverse("snapshots:delete_many")
    page = unescape(client.get(url, {"id": [free.pk, kept.pk]}).content.decode())
    assert "“kept” is locked until" in page and "Type “delete 1 snapshot” to confirm" in page
    client.post(url, {"id": [free.pk], "confirmation": "delete 1 snapshot"})
    assert Snapshot.objects.filter(state=State.READY).get() == kept
    page = unescape(client.get(url, {"id": [kept.pk]}, follow=True).content.decode())
    assert "nobody can delete it before" in page


def test_a_schedule_and_a_volume_say_what_can_still_be_restored(client: Client, volume: Volume) -> None:
    taken(volume, 3)
    schedule = BackupScheduleFactory(vm=None, volume=volume)
    page = unescape(client.get(reverse("snapshots:delete_schedule", args=[schedule.pk])).content.decode())
    assert "1 restore point remains" in page and "No other schedule protects “db-01-data”" in page
    page = unescape(client.get(reverse("snapshots:delete_volume", args=[volume.pk])).content.decode())
    assert "1 restore point remains" in page and "It was never verified" in page


def test_a_restore_says_which_newer_points_stay(volume: Volume) -> None:
    old, newer = taken(volume, 9), taken(volume, 2)

    def said(snapshot: Snapshot) -> str:
        return describe_restore(snapshot, snapshot.disks.all(), captured_at=snapshot.ready_at)

    assert said(old).startswith("1 newer restore point stays")
    assert said(newer) == "There is no newer restore point."
