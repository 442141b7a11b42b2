"""The administrator's switch of automatic backups: its effects, its costs, and its pages in Django admin."""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta

import pytest
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import verification
from billing.charges import cost_so_far
from billing.models import Package, ServiceKind, UsageSegment
from cng_portal.accounts.models import Customer, Membership, User
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import AutomaticBackupSwitch, Location, VirtualMachine
from snapshots.backups.automatic import (
    NOTICE,
    change_default_schedule,
    change_machine_price,
    delete_automatic_backups,
    switch_automatic_backups,
)
from snapshots.backups.runs import due_schedules
from snapshots.backups.upkeep import maintain_schedules
from snapshots.errors import InsufficientCredit, InvalidState, NotSold, SourceUnavailable
from snapshots.models import BackupSchedule, Operation, Snapshot, State
from tests.factories import (
    BackupFactory,
    BackupRunFactory,
    MembershipFactory,
    UserFactory,
    VirtualMachineFactory,
)
from tests.smtp import sent_mails
from tests.snapshots.disks import sell_everywhere

pytestmark = pytest.mark.django_db

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
AUTOMATIC = ServiceKind.VM_BACKUP_AUTOMATIC


@pytest.fixture
def now() -> datetime:
    return timezone.now().replace(microsecond=0)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory(project__customer__postpaid=True, project__customer__number=1039)


@pytest.fixture
def vm(member: Membership) -> VirtualMachine:
    vm = VirtualMachineFactory(project=member.project, name="db-01", hourly_price_micro=118_750_000)
    sell_everywhere(kind=ServiceKind.VM_BACKUP, rate_micro=600_000)
    return vm


@pytest.fixture
def admin() -> User:
    return UserFactory(admin=True, email="admin@example.com")


def switch(vm: VirtualMachine, on: bool, user: User | None, now: datetime) -> VirtualMachine:
    """Switch off now, or on so early that they start now."""
    return switch_automatic_backups(vm=vm, on=on, user=user, now=now - NOTICE if on else now)


def cost(vm: VirtualMachine, at: datetime) -> int:
    charged = cost_so_far(resource_id=vm.pk, at=at)
    return charged.amount_micro if charged else 0


@pytest.mark.both_databases
def test_switched_on_it_runs_by_the_locations_schedule_and_costs_20_percent_of_the_machine(
    vm: VirtualMachine, admin: User, now: datetime
) -> None:
    Location.objects.update(
        default_interval="weekly", default_weekday=6, default_at=time(4, 30), default_retention_count=3
    )
    vm = switch(vm, True, admin, now)
    assert vm.automatic_backups_since == now
    schedule = BackupSchedule.objects.get()
    assert (schedule.origin, schedule.interval, schedule.weekday, schedule.at, schedule.retention_count) == (
        "automatic",
        "weekly",
        6,
        time(4, 30),
        3,
    )
    local = timezone.localtime(schedule.next_run_at, vm.project.customer.zone)
    assert (local.weekday(), local.time()) == (6, time(4, 30))
    segment = UsageSegment.objects.get()
    assert (segment.kind, segment.resource_id, segment.started_at, segment.ended_at) == (AUTOMATIC, vm.pk, now, None)
    history = AutomaticBackupSwitch.objects.get()
    assert (history.vm, history.on, history.switched_by) == (vm, True, admin)
    assert (history.switched_at, history.starts_at) == (now - NOTICE, now)
    assert cost(vm, now + 3 * HOUR) == 3 * 23_750_000


@pytest.mark.both_databases
def test_switched_off_it_ends_at_that_instant_and_the_backups_stay(
    vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    schedule = BackupSchedule.objects.get()
    backup = BackupRunFactory(schedule=schedule).snapshot
    vm = switch(vm, False, admin, now + 90 * MINUTE)
    assert vm.automatic_backups_since is None
    schedule.refresh_from_db()
    backup.refresh_from_db()
    assert (schedule.deleted_at, schedule.next_run_at) == (now + 90 * MINUTE, None)
    assert backup.state == State.READY
    assert cost(vm, now + 10 * HOUR) == 2 * 23_750_000
    assert [(switch.on, switch.switched_at) for switch in AutomaticBackupSwitch.objects.all()] == [
        (False, now + 90 * MINUTE),
        (True, now - NOTICE),
    ]


def test_switching_to_the_same_state_changes_nothing(vm: VirtualMachine, admin: User, now: datetime) -> None:
    switch(vm, False, admin, now)
    assert not AutomaticBackupSwitch.objects.exists()
    switch(vm, True, admin, now)
    assert switch(vm, True, admin, now + HOUR).automatic_backups_since == now
    assert (AutomaticBackupSwitch.objects.count(), UsageSegment.objects.count()) == (1, 1)


def test_switching_on_again_revives_the_earlier_schedule_with_its_backups(
    vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    before = BackupSchedule.objects.get()
    switch(vm, False, admin, now + HOUR)
    Location.objects.update(default_at=time(5), default_retention_count=4)
    switch(vm, True, admin, now + 2 * HOUR)
    after = BackupSchedule.objects.get()
    assert (after.pk, after.deleted_at, after.at, after.retention_count) == (before.pk, None, time(5), 4)


@pytest.mark.both_databases
def test_an_hour_that_is_paid_is_not_paid_twice(vm: VirtualMachine, admin: User, now: datetime) -> None:
    switch(vm, True, admin, now)
    switch(vm, False, admin, now + 10 * MINUTE)
    switch(vm, True, admin, now + 20 * MINUTE)
    assert cost(vm, now + 59 * MINUTE) == 23_750_000
    switch(vm, False, admin, now + 50 * MINUTE)
    assert cost(vm, now + 5 * HOUR) == 23_750_000
    switch(vm, True, admin, now + 55 * MINUTE)
    assert cost(vm, now + 61 * MINUTE) == 2 * 23_750_000


@pytest.mark.both_databases
def test_a_new_price_of_the_machine_applies_from_the_next_unpaid_hour(
    vm: VirtualMachine, admin: User, now: datetime
) -> None:
    change_machine_price(vm=vm, hourly_price_micro=100_000_000, user=admin, now=now)
    assert not UsageSegment.objects.exists()
    switch(vm, True, admin, now)
    change_machine_price(vm=vm, hourly_price_micro=50_000_000, user=admin, now=now + 90 * MINUTE)
    vm.refresh_from_db()
    assert vm.hourly_price_micro == 50_000_000
    assert cost(vm, now + 119 * MINUTE) == 2 * 20_000_000
    assert cost(vm, now + 4 * HOUR) == 2 * 20_000_000 + 2 * 10_000_000


def test_where_vm_backup_is_not_sold_it_is_refused(vm: VirtualMachine, admin: User, now: datetime) -> None:
    Package.objects.update(active=False)
    with pytest.raises(NotSold, match=f"not sold in {vm.location_id}"):
        switch(vm, True, admin, now)
    assert not BackupSchedule.objects.exists() and not AutomaticBackupSwitch.objects.exists()


def test_a_deleted_machine_is_refused(vm: VirtualMachine, admin: User, now: datetime) -> None:
    VirtualMachine.objects.update(deleted_at=now)
    with pytest.raises(SourceUnavailable, match="has been deleted"):
        switch(vm, True, admin, now)


def test_prepaid_credits_have_to_cover_the_first_hour(vm: VirtualMachine, admin: User, now: datetime) -> None:
    Customer.objects.update(billing_type="prepaid")
    with pytest.raises(InsufficientCredit):
        switch(vm, True, admin, now)


def test_only_administrators_switch(vm: VirtualMachine, member: Membership, now: datetime) -> None:
    for user in (member.user, UserFactory(is_staff=True)):
        with pytest.raises(PermissionDenied):
            switch(vm, True, user, now)
        with pytest.raises(PermissionDenied):
            change_machine_price(vm=vm, hourly_price_micro=1, user=user, now=now)


def test_a_machine_that_is_deleted_is_switched_off_at_that_instant(
    vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    VirtualMachine.objects.update(deleted_at=now + HOUR)
    assert maintain_schedules(now + 5 * HOUR) == 1
    vm.refresh_from_db()
    assert vm.automatic_backups_since is None
    assert cost(vm, now + 9 * HOUR) == 23_750_000
    history = AutomaticBackupSwitch.objects.first()
    assert (history.on, history.switched_by, history.switched_at) == (False, None, now + HOUR)


def test_active_automatic_backups_follow_the_locations_default_schedule(vm: VirtualMachine, admin: User) -> None:
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    elsewhere = VirtualMachineFactory(
        location=vm.location, project__customer__time_zone="Europe/Berlin", project__customer__postpaid=True
    )
    for machine in (vm, elsewhere):
        switch(machine, True, admin, noon)
    count = change_default_schedule(
        location=vm.location, interval="monthly", month_day=31, at=time(3), retention_count=6, user=admin, now=noon
    )
    assert count == 2
    vm_schedule, other_schedule = (BackupSchedule.objects.get(vm=machine) for machine in (vm, elsewhere))
    assert (vm_schedule.interval, vm_schedule.month_day, vm_schedule.retention_count) == ("monthly", 31, 6)
    assert vm_schedule.next_run_at == datetime(2026, 11, 29, 20, 30, tzinfo=UTC)
    assert other_schedule.next_run_at == datetime(2026, 11, 30, 2, tzinfo=UTC)


@pytest.mark.both_databases
def test_backups_switched_while_the_clock_was_ahead_are_charged_again_after_that_hour(
    vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now + 5 * HOUR)
    switch(vm, False, admin, now + 5 * HOUR + MINUTE)
    switch(vm, True, admin, now)
    assert cost(vm, now + 5.5 * HOUR) == 23_750_000
    assert cost(vm, now + 7.5 * HOUR) == 3 * 23_750_000
    switch(vm, False, admin, now + HOUR)
    switch(vm, True, admin, now + 2 * HOUR)
    assert cost(vm, now + 7.5 * HOUR) == 3 * 23_750_000
    assert UsageSegment.objects.filter(ended_at=None).count() == 1


def test_an_administrator_deletes_automatic_backups_except_pinned_ones(
    vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    schedule = BackupSchedule.objects.get()
    backups = [BackupRunFactory(schedule=schedule).snapshot for _number in range(2)]
    pinned = BackupRunFactory(schedule=schedule, snapshot=BackupFactory(vm=vm, is_pinned=True)).snapshot
    with pytest.raises(InvalidState, match="Switch them off first"):
        delete_automatic_backups(vm=vm, user=admin)
    switch(vm, False, admin, now + HOUR)
    assert delete_automatic_backups(vm=vm, user=admin) == 2
    assert {backup.pk for backup in Snapshot.objects.filter(state=State.DELETING)} == {backup.pk for backup in backups}
    assert Operation.objects.filter(kind=Operation.Kind.DELETE).count() == 2
    pinned.refresh_from_db()
    assert pinned.state == State.READY


def notices_of(user: User) -> list[tuple[str, str]]:
    return list(user.notifications.order_by("created_at", "id").values_list("title", "text"))


@pytest.mark.both_databases
def test_members_are_notified_of_the_charge_with_the_switch(
    vm: VirtualMachine, member: Membership, admin: User, now: datetime
) -> None:
    colleague = UserFactory(member_of=vm.project, member_of__role="member")
    viewer = UserFactory(member_of=vm.project, member_of__role="viewer")
    switch(vm, True, admin, now)
    for user in (member.user, colleague):
        [(title, text)] = notices_of(user)
        assert title == "Automatic backups of db-01 will start"
        assert "K 23.75 an hour, about K 17,385.00 for a month" in text
        with timezone.override(user.zone):
            assert f"From {minute(now)}, they cost 20 %" in text
            assert f"first backup will be taken at {minute(BackupSchedule.objects.get().next_run_at)}." in text
        assert user.notifications.get().created_at <= timezone.now()
    assert not notices_of(viewer) and not notices_of(admin)
    assert {mail.to[0] for mail in sent_mails()} == {member.user.email, colleague.email}
    switch(vm, True, admin, now)
    assert len(notices_of(member.user)) == 1
    switch(vm, False, admin, now + HOUR)
    assert notices_of(member.user)[-1][0] == "Automatic backups of db-01 are off"
    switch(vm, True, admin, now + 2 * HOUR)
    assert len(notices_of(member.user)) == 3


@pytest.mark.both_databases
@pytest.mark.parametrize("day", ["2027-01-30", "2028-02-27", "2026-10-24", "2026-03-27"])
def test_neither_a_backup_nor_a_charge_begins_before_the_members_had_three_days_notice(
    vm: VirtualMachine, member: Membership, admin: User, day: str
) -> None:
    Customer.objects.update(time_zone="Europe/Berlin")
    told = datetime.fromisoformat(f"{day}T17:20:30Z")
    switch_automatic_backups(vm=vm, on=True, user=admin, now=told)
    assert len(notices_of(member.user)) == 1
    vm = VirtualMachine.objects.select_related("project__customer").get()
    maintain_schedules(told + MINUTE)
    change_default_schedule(
        location=vm.location, interval="daily", at=time(18, 30), retention_count=2, user=admin, now=told + MINUTE
    )
    change_machine_price(vm=vm, hourly_price_micro=50_000_000, user=admin, now=told + HOUR)
    schedule = BackupSchedule.objects.get()
    assert told + NOTICE < schedule.next_run_at < told + NOTICE + 26 * HOUR
    assert UsageSegment.objects.get(ended_at=None).started_at == told + NOTICE
    assert not due_schedules(told + NOTICE).exists()
    assert cost(vm, told + NOTICE - MINUTE) == 0
    assert cost(vm, told + NOTICE + MINUTE) == 10_000_000
    assert verification.differences(at=told + NOTICE + HOUR) == []


@pytest.mark.both_databases
def test_switched_off_before_they_start_they_cost_nothing(
    vm: VirtualMachine, member: Membership, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    switch(vm, False, admin, now - MINUTE)
    assert cost(vm, now + 30 * HOUR) == 0
    assert "before they started, so they cost nothing" in notices_of(member.user)[-1][1]
    switch(vm, True, admin, now + 5 * HOUR)
    assert cost(vm, now + 5 * HOUR + MINUTE) == 23_750_000
    assert verification.differences(at=now + 6 * HOUR) == []


@pytest.mark.both_databases
def test_without_the_notification_nothing_is_charged(
    vm: VirtualMachine, admin: User, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_arguments: object) -> None:
        raise DatabaseError

    monkeypatch.setattr("cng_portal.notifications.services.mail.enqueue", fail)
    with pytest.raises(DatabaseError):
        switch(vm, True, admin, now)
    vm.refresh_from_db()
    assert vm.automatic_backups_since is None and not UsageSegment.objects.exists()


@pytest.mark.both_databases
def test_a_new_price_of_the_machine_is_notified_with_its_start(
    vm: VirtualMachine, member: Membership, admin: User, now: datetime
) -> None:
    change_machine_price(vm=vm, hourly_price_micro=100_000_000, user=admin, now=now)
    assert not notices_of(member.user)  # nothing is charged
    switch(vm, True, admin, now)
    member.user.notifications.all().delete()
    for price_micro in (200_000_000, 200_000_000):
        change_machine_price(vm=vm, hourly_price_micro=price_micro, user=admin, now=now + 10 * MINUTE)
    [(title, text)] = notices_of(member.user)
    assert title == "Automatic backups of db-01 have a new price"
    assert "K 40.00 an hour instead of K 20.00" in text
    change_machine_price(vm=vm, hourly_price_micro=50_000_000, user=admin, now=now + 20 * MINUTE)
    assert "K 10.00 an hour instead of K 40.00" in notices_of(member.user)[-1][1]


def test_members_of_a_deleted_machine_are_not_notified_of_the_switch(
    vm: VirtualMachine, member: Membership, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    VirtualMachine.objects.update(deleted_at=now + HOUR)
    maintain_schedules(now + 2 * HOUR)
    assert len(notices_of(member.user)) == 1


LIST = "admin:inventory_virtualmachine_changelist"
SWITCH_ON = {"on": "1", "confirmed": "yes"}


@pytest.fixture
def support(client_for: Callable[..., Client], admin: User) -> Client:
    return client_for(admin)


def page_of(vm: VirtualMachine) -> str:
    return reverse("admin:inventory_virtualmachine_change", args=[vm.pk])


def test_the_list_switches_once_the_price_is_confirmed(support: Client, vm: VirtualMachine) -> None:
    list_url = f"{reverse(LIST)}?q=db"
    page = support.get(list_url).text
    assert "K 23.75 / Hour" in page and "Switch on" in page
    url = reverse("admin:snapshots_switch", args=[vm.pk])
    assert url in page
    page = support.post(f"{url}?back={list_url}", {"on": "1"}).text
    assert "K 23.75 / Hour" in page and "K 17,385.00" in page and "notified in the bell and by e-mail" in page
    assert not AutomaticBackupSwitch.objects.exists()
    confirmed = {"on": "1", "confirmed": "yes", f"shown_{vm.pk}": "23750000"}
    response = support.post(f"{url}?back={list_url}", confirmed, follow=True)
    assert response.redirect_chain[-1][0] == list_url
    assert "Automatic backups of db-01: On from " in response.text
    assert "20 % of K 118.7500 = K 23.75 an hour, K 17,385.00" in response.text
    assert "Switch off" in response.text
    vm.refresh_from_db()
    assert vm.automatic_backups_since == AutomaticBackupSwitch.objects.get().switched_at + NOTICE
    assert "db-01" in support.get(f"{reverse(LIST)}?automatic=on").text
    assert "db-01" not in support.get(f"{reverse(LIST)}?automatic=off").text
    assert "In total, this saves K 23.75 an hour" in support.post(url, {"on": "0"}).text
    support.post(url, {"on": "0", "confirmed": "yes"})
    vm.refresh_from_db()
    assert vm.automatic_backups_since is None


def test_a_price_that_changed_since_it_was_confirmed_is_not_charged(support: Client, vm: VirtualMachine) -> None:
    confirmed = {"on": "1", "confirmed": "yes", f"shown_{vm.pk}": "10000000"}
    response = support.post(reverse("admin:snapshots_switch", args=[vm.pk]), confirmed, follow=True)
    assert "The price has changed to K 23.75 an hour" in response.text
    assert not AutomaticBackupSwitch.objects.exists()


def test_active_automatic_backups_stay_on_when_no_longer_sold_and_say_so(support: Client, vm: VirtualMachine) -> None:
    url = reverse("admin:snapshots_switch", args=[vm.pk])
    support.post(url, SWITCH_ON)
    Package.objects.update(active=False)
    response = support.post(url, SWITCH_ON, follow=True)
    assert "Automatic VM Backup is not sold in" in response.text
    assert AutomaticBackupSwitch.objects.count() == 1


def test_a_link_or_a_stranger_switches_nothing(
    support: Client, client_for: Callable[..., Client], vm: VirtualMachine, member: Membership
) -> None:
    url = reverse("admin:snapshots_switch", args=[vm.pk])
    assert support.get(url).status_code == 405
    assert client_for(member.user).post(url, SWITCH_ON).status_code == 302
    assert client_for(UserFactory(is_staff=True)).post(url, SWITCH_ON).status_code == 403
    assert client_for(UserFactory(admin=True), enforce_csrf_checks=True).post(url, SWITCH_ON).status_code == 403
    assert support.post(f"{url}?back=https://elsewhere.example/", SWITCH_ON)["Location"] == page_of(vm)
    assert AutomaticBackupSwitch.objects.count() == 1


def test_the_list_shows_why_a_switch_is_refused(support: Client, vm: VirtualMachine) -> None:
    Package.objects.update(active=False)
    page = support.get(reverse(LIST)).text
    assert f"not sold in {vm.location_id}" in page
    response = support.post(reverse("admin:snapshots_switch", args=[vm.pk]), SWITCH_ON, follow=True)
    assert "is not sold in" in response.text
    assert not AutomaticBackupSwitch.objects.exists()


def test_many_machines_are_switched_after_their_total_cost_is_confirmed(support: Client, vm: VirtualMachine) -> None:
    second = VirtualMachineFactory(project=vm.project, location=vm.location, hourly_price_micro=45_500_000)
    unsold = VirtualMachineFactory(project=vm.project, hourly_price_micro=1_000_000)
    answers = {"action": "switch_many_on", "_selected_action": [vm.pk, second.pk, unsold.pk]}
    page = support.post(reverse(LIST), answers).text
    assert "In total, this costs K 32.85 an hour, K 24,046.20 for 732 hours" in page
    assert "Refused: VM Backup is not sold in this location." in page
    assert not AutomaticBackupSwitch.objects.exists()
    response = support.post(reverse(LIST), answers | {"confirmed": "yes"}, follow=True)
    assert "Automatic backups of 2 instances start in 3 days." in response.text
    assert f"{unsold}: Automatic VM Backup is not sold" in str(list(response.context["messages"])[0])
    assert AutomaticBackupSwitch.objects.count() == 2

    answers["action"] = "switch_many_off"
    page = support.post(reverse(LIST), answers).text
    assert "In total, this saves K 32.85 an hour" in page and "No change: already off." in page
    support.post(reverse(LIST), answers | {"confirmed": "yes"})
    assert not VirtualMachine.objects.exclude(automatic_backups_since=None).exists()


def test_the_machines_page_shows_the_cost_and_who_switched(support: Client, vm: VirtualMachine, admin: User) -> None:
    page = support.get(page_of(vm)).text
    assert "20 % of K 118.7500 = K 23.75 an hour, K 17,385.00 for 732 hours" in page
    assert "Daily at 02:00 in the customer&#x27;s time zone; 2 backups are kept." in page
    support.post(reverse("admin:snapshots_switch", args=[vm.pk]), SWITCH_ON)
    page = support.get(page_of(vm)).text
    assert "On from" in page and str(admin) in page


def save(support: Client, vm: VirtualMachine, **changed: object) -> object:
    created = timezone.localtime(vm.created_at)
    answers = {
        "name": vm.name,
        "state": vm.state,
        "vcpus": vm.vcpus,
        "memory_mb": vm.memory_mb,
        "hourly_price_micro": "118.75",
        "created_at_0": created.date(),
        "created_at_1": created.strftime("%H:%M:%S"),
        "volumes-TOTAL_FORMS": 0,
        "volumes-INITIAL_FORMS": 0,
        "switches-TOTAL_FORMS": 0,
        "switches-INITIAL_FORMS": 0,
    }
    response = support.post(page_of(vm), answers | changed)
    assert response.status_code == 302, response.context["adminform"].form.errors
    vm.refresh_from_db()
    return response


def test_a_price_entered_in_the_form_is_billed(support: Client, vm: VirtualMachine, admin: User, now: datetime) -> None:
    switch(vm, True, admin, now - 30 * MINUTE)
    save(support, vm, hourly_price_micro="50", name="db-02")
    assert (vm.hourly_price_micro, vm.name) == (50_000_000, "db-02")
    assert vm.automatic_backups_since == now - 30 * MINUTE
    assert cost(vm, now + 90 * MINUTE) == 23_750_000 + 10_000_000
    assert UsageSegment.objects.get(ended_at=None).resource_name == "db-02"


def test_marking_a_machine_as_deleted_switches_its_backups_off(
    support: Client, vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now - HOUR)
    gone = timezone.localtime(now - 5 * MINUTE)
    save(support, vm, deleted_at_0=gone.date(), deleted_at_1=gone.strftime("%H:%M:%S"))
    assert (vm.deleted_at, vm.automatic_backups_since) == (now - 5 * MINUTE, None)
    assert AutomaticBackupSwitch.objects.first().switched_by == admin
    assert UsageSegment.objects.get().ended_at == now - 5 * MINUTE


def test_the_remaining_backups_are_deleted_after_a_confirmation(
    support: Client, vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    backup = BackupRunFactory(schedule=BackupSchedule.objects.get()).snapshot
    switch(vm, False, admin, now)
    assert "Delete the remaining backup…" in support.get(page_of(vm)).text
    url = reverse("admin:snapshots_delete_automatic_backups", args=[vm.pk])
    assert backup.name in support.get(url).text
    assert "1 backup is being deleted." in support.post(url, follow=True).text
    backup.refresh_from_db()
    assert backup.state == State.DELETING


def test_the_default_schedule_is_edited_with_the_location(
    support: Client, vm: VirtualMachine, admin: User, now: datetime
) -> None:
    switch(vm, True, admin, now)
    url = reverse("admin:inventory_location_change", args=[vm.location_id])
    location = vm.location
    answers = {"city": location.city, "country": "MM", "region": "asia", "driver": "local", "driver_options": "{}"}
    answers |= {"active": "on", "default_interval": "weekly", "default_at": "05:00", "default_retention_count": "3"}
    response = support.post(url, answers)
    assert "Choose the day of the week." in str(response.context["adminform"].form.errors["default_weekday"])
    response = support.post(url, answers | {"default_weekday": "0", "default_month_day": "7"}, follow=True)
    assert "1 instance follows." in response.text
    schedule = BackupSchedule.objects.get()
    assert (schedule.interval, schedule.weekday, schedule.month_day, schedule.at, schedule.retention_count) == (
        "weekly",
        0,
        None,
        time(5),
        3,
    )
