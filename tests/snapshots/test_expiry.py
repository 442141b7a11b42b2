"""Expiry dates: set, changed, removed, notified a day before, and applied after the day if nothing uses the snapshot."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.charges import cost_so_far
from billing.models import UsageSegment
from cng_portal.accounts.models import Membership, Role
from cng_portal.activity.models import Activity
from cng_portal.common.preferences import localized_for
from cng_portal.common.templatetags.portal import minute
from snapshots import usage_check
from snapshots.assignment import move_snapshot
from snapshots.errors import InvalidState
from snapshots.expiry import InvalidExpiry, announce_expiring, delete_expired, expiry_of, set_expiry
from snapshots.models import BackupSchedule, DeletionCause, Draft, Operation, Snapshot, State
from snapshots.wizard import wizard
from tests.factories import (
    BackupFactory,
    BackupRunFactory,
    BackupScheduleFactory,
    MembershipFactory,
    OperationFactory,
    ProjectFactory,
    SnapshotFactory,
    UserFactory,
    VMSnapshotFactory,
    VolumeFactory,
)
from tests.smtp import sent_mails
from tests.snapshots.disks import content, put_volume, run_active_operations, sell_everywhere
from tests.snapshots.test_races import all_at_once

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True)  # in Asia/Yangon, UTC+06:30


@pytest.fixture
def client(client_for: Callable[..., Client], member: Membership) -> Client:
    return client_for(member.user)


@pytest.fixture
def snapshot(member: Membership) -> Snapshot:
    snapshot = SnapshotFactory(volume__project=member.project, volume__size_gb=50, name="before the update")
    sell_everywhere()
    snapshot.start_charging(snapshot.ready_at)
    return snapshot


def expire(snapshot: Snapshot, days: int = 2) -> datetime:
    """Let the snapshot expire in `days` days, and return the instant."""
    today = timezone.now().astimezone(snapshot.project.customer.zone).date()
    set_expiry(snapshot=snapshot, user=snapshot.project.memberships.get(role=Role.OWNER).user, day=today + days * DAY)
    snapshot.refresh_from_db()
    assert snapshot.expires_at
    return snapshot.expires_at


def test_the_last_day_ends_at_midnight_of_the_customer(snapshot: Snapshot, member: Membership) -> None:
    day = (timezone.now() + 30 * DAY).date()
    saved = set_expiry(snapshot=snapshot, user=member.user, day=day)
    assert saved.expires_at == datetime(day.year, day.month, day.day, 17, 30, tzinfo=UTC)
    assert saved.delete_after == day
    entry = Activity.objects.get(action="snapshot.expiry")
    assert (entry.before, entry.after) == ({"delete_after": None}, {"delete_after": day.isoformat()})
    assert set_expiry(snapshot=snapshot, user=member.user, day=None).expires_at is None
    zone = snapshot.project.customer.zone
    assert expiry_of(date(2026, 12, 31), zone) == datetime(2026, 12, 31, 17, 30, tzinfo=UTC)


def test_an_expiry_date_is_refused_for_snapshots_that_cannot_expire(snapshot: Snapshot, member: Membership) -> None:
    user, today = member.user, timezone.now().date()
    for day in (today - 3 * DAY, today + 4000 * DAY):
        with pytest.raises(InvalidExpiry):
            set_expiry(snapshot=snapshot, user=user, day=day)
    scheduled = SnapshotFactory(volume=snapshot.volume)
    BackupRunFactory(schedule=BackupScheduleFactory(vm=None, volume=snapshot.volume), snapshot=scheduled)
    for other in (
        scheduled,
        BackupFactory(vm__project=member.project),
        SnapshotFactory(volume=snapshot.volume, deleting=True),
    ):
        with pytest.raises(InvalidState):
            set_expiry(snapshot=other, user=user, day=today + 3 * DAY)
    viewer = UserFactory(member_of=member.project, member_of__role=Role.VIEWER)
    with pytest.raises(PermissionDenied):
        set_expiry(snapshot=snapshot, user=viewer, day=today + 3 * DAY)
    with pytest.raises(IntegrityError), transaction.atomic():
        Snapshot.objects.filter(pk=snapshot.pk).update(expires_at=timezone.now(), is_pinned=True)


def test_members_are_notified_once_a_day_before_and_again_for_a_new_date(
    snapshot: Snapshot, member: Membership
) -> None:
    at = expire(snapshot)
    assert announce_expiring(now=at - DAY - timedelta(seconds=1)) == 0
    assert announce_expiring(now=at - DAY) == 1
    assert announce_expiring(now=at - HOUR) == 0
    [notice] = member.user.notifications.all()
    assert notice.title == "“before the update” will be deleted"
    assert "UTC+00:00" in notice.text and [mail.to for mail in sent_mails()] == [[member.user.email]]
    later = expire(snapshot, days=9)
    assert delete_expired(now=at) == 0
    assert announce_expiring(now=later - HOUR) == 1
    assert member.user.notifications.count() == 2


def test_many_of_one_project_and_instant_are_one_notification(snapshot: Snapshot, member: Membership) -> None:
    snapshots = [snapshot, *(SnapshotFactory(volume=snapshot.volume) for _number in range(6))]
    at = [expire(each) for each in snapshots][-1]
    assert announce_expiring(now=at - HOUR) == 7
    [notice] = member.user.notifications.all()
    assert notice.title == "7 snapshots will be deleted" and "and 2 more" in notice.text


def test_an_expiring_snapshot_is_deleted_after_its_last_day_and_costs_the_estimate(
    snapshot: Snapshot, member: Membership
) -> None:
    at = expire(snapshot)
    announce_expiring(now=at - DAY)
    assert delete_expired(now=at - timedelta(seconds=1)) == 0
    assert delete_expired(now=at + 5 * HOUR) == 1  # The scheduler was late, which costs nothing.
    assert delete_expired(now=at + 5 * HOUR) == 0
    snapshot.refresh_from_db()
    assert (snapshot.state, snapshot.deletion_cause) == (State.DELETING, DeletionCause.EXPIRED)
    assert snapshot.delete_requested_at == UsageSegment.objects.get().ended_at == at
    hours = -(-(at - snapshot.ready_at) // HOUR)
    cost = cost_so_far(resource_id=snapshot.pk, at=at + DAY)
    assert cost and cost.amount_micro == hours * 20_000_000
    run_active_operations()
    snapshot.refresh_from_db()
    assert snapshot.state == State.DELETED
    assert not [sentence for sentence in usage_check.check_usage(at + DAY) if snapshot.name in sentence]


def test_after_an_outage_it_is_deleted_a_day_after_the_notice_and_costs_nothing_more(
    snapshot: Snapshot, member: Membership
) -> None:
    at = expire(snapshot)
    late = at + DAY + HOUR
    assert delete_expired(now=late) == 0
    assert (announce_expiring(now=late), delete_expired(now=late)) == (1, 0)
    with localized_for(member.user):
        deleted_at = minute(late + DAY)
    assert deleted_at in member.user.notifications.get().text
    assert delete_expired(now=late + DAY - timedelta(seconds=1)) == 0
    assert delete_expired(now=late + DAY) == 1
    assert UsageSegment.objects.get().ended_at == at


def test_the_members_of_a_project_that_it_moves_to_are_notified_too_a_day_before(
    snapshot: Snapshot, member: Membership
) -> None:
    at = expire(snapshot)
    announce_expiring(now=at - DAY)
    other = ProjectFactory(customer=member.project.customer)
    MembershipFactory(project=other, user=member.user)
    colleague = UserFactory(member_of=other)
    move_snapshot(snapshot=snapshot, user=member.user, project=other)
    moved_at = at - HOUR
    assert announce_expiring(now=moved_at) == 1
    assert "will be deleted" in colleague.notifications.get().title
    assert member.user.notifications.count() == 1  # knows it already
    assert (delete_expired(now=at), delete_expired(now=moved_at + DAY)) == (0, 1)


def test_a_snapshot_in_use_expires_afterwards(snapshot: Snapshot) -> None:
    at = expire(snapshot)
    announce_expiring(now=at - DAY)
    use = OperationFactory(snapshot=snapshot, restore=True)
    assert delete_expired(now=at) == 0
    Operation.objects.filter(pk=use.pk).update(state=Operation.State.SUCCEEDED, finished_at=timezone.now())
    assert delete_expired(now=at + HOUR) == 1


def test_unfinished_ones_wait_and_machines_snapshots_expire_too(snapshot: Snapshot, member: Membership) -> None:
    creating = SnapshotFactory(volume=snapshot.volume, creating=True)
    of_machine = VMSnapshotFactory(vm__project=member.project)
    at = max(expire(creating), expire(of_machine))
    announce_expiring(now=at - DAY)
    assert delete_expired(now=at) == 1
    of_machine.refresh_from_db()
    creating.refresh_from_db()
    assert (of_machine.state, creating.state) == (State.DELETING, State.CREATING)


def test_a_clock_that_jumps_back_or_twenty_schedulers_delete_it_once(snapshot: Snapshot) -> None:
    at = expire(snapshot)
    announce_expiring(now=at - DAY)
    all_at_once(lambda _number: delete_expired(now=at))
    announce_expiring(now=at - 5 * DAY)
    delete_expired(now=at - 5 * DAY)
    assert Operation.objects.filter(kind=Operation.Kind.DELETE).count() == 1


def test_the_date_is_set_changed_and_removed_on_its_page(client: Client, snapshot: Snapshot) -> None:
    url, page = reverse("snapshots:expiry", args=[snapshot.pk]), reverse("snapshots:snapshot", args=[snapshot.pk])
    assert url in client.get(page).text and "Delete after" not in client.get(page).text
    assert "K 20.00 an hour ends with that day" in client.get(url).text
    day = (timezone.now() + 40 * DAY).date()
    assert client.post(url, {"delete_after": day.isoformat()})["Location"] == page
    for where in (page, reverse("snapshots:volume_snapshots")):
        assert "elete" in client.get(where).text and f"{day.day} {day:%b %Y}" in client.get(where).text
    answer = client.post(url, {"delete_after": "2020-01-01"})
    assert answer.status_code == 200 and "Enter a date from today on" in answer.text and "2020-01-01" in answer.text
    assert f'value="{day.isoformat()}"' in client.get(url).text
    client.post(url, {"remove": "yes", "delete_after": day.isoformat()})
    assert Snapshot.objects.get().expires_at is None


def test_strangers_and_viewers_set_no_date(client_for: Callable[..., Client], snapshot: Snapshot) -> None:
    url = reverse("snapshots:expiry", args=[snapshot.pk])
    assert client_for(UserFactory(member_of=ProjectFactory())).get(url).status_code == 404
    viewer = UserFactory(member_of=snapshot.project, member_of__role=Role.VIEWER)
    assert client_for(viewer).post(url, {"delete_after": "2090-01-01"}).status_code == 403


def test_the_wizard_has_an_expiry_date_that_ends_the_estimate(
    client: Client, member: Membership, storage_root: Path
) -> None:
    volume = VolumeFactory(project=member.project, size_gb=50)
    put_volume(storage_root, volume, content(b"x"))
    sell_everywhere()
    step_url = client.post(reverse("snapshots:take_snapshot", args=[volume.pk]))["Location"]
    assert "Delete after" in client.get(step_url).text
    answer = client.post(step_url, {"name": "short", "delete_after": "2001-01-01"})
    assert "Enter a date from today on" in answer.text and 'value="short"' in answer.text
    day = timezone.now().astimezone(volume.project.customer.zone).date() + 9 * DAY
    step_url = client.post(step_url, {"name": "short", "delete_after": day.isoformat()})["Location"]
    draft = Draft.objects.get()
    assert (draft.delete_after, step_url) == (day, wizard.url(draft, "review"))
    page = client.get(step_url + f"?until={(day + 30 * DAY).isoformat()}").text
    assert "Until it is deleted, at the end of" in page
    amounts = [
        row["value"] for row in client.get(step_url + f"?until={(day + 30 * DAY).isoformat()}").context["estimates"]
    ]
    assert amounts[2] == amounts[3]  # until then, plus a month
    client.post(step_url, {"billing_cycle": "hourly", "shown_hourly_micro": 20_000_000})
    assert Snapshot.objects.get().delete_after == day
    assert not BackupSchedule.objects.exists()
