"""A simulated year of backups: outages, daylight saving changes, month ends, retention, and bills."""

import random
from collections import defaultdict
from datetime import UTC, datetime, time, timedelta
from fractions import Fraction
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from billing import closing, verification
from billing.models import Invoice, InvoiceLine, ServiceKind, UsageSegment
from billing.pricing.packages import create_package
from cng_portal.accounts.models import Membership
from cng_portal.inventory.models import VirtualMachine
from cng_portal.notifications.models import Notification
from snapshots import tasks
from snapshots.backups.automatic import NOTICE, switch_automatic_backups
from snapshots.backups.retention import pin_backup
from snapshots.backups.runs import settle_runs, start_due_runs
from snapshots.backups.schedules import create_schedule
from snapshots.models import BackupRun, BackupSchedule, Operation, Snapshot, State
from tests.billing import oracle
from tests.factories import (
    LocationFactory,
    MembershipFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)
from tests.snapshots.backups.test_occurrences import first_minute_at_or_past, runs_on
from tests.snapshots.disks import content, put_volume

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

START, END = datetime(2035, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RATE, PRICE = 600_000, 118_750_000
ZONES = {"Asia/Yangon": time(0, 30), "Europe/Berlin": time(2, 30), "America/New_York": time(1, 30)}
RULES: list[dict] = [
    {"interval": "daily", "retention_count": 2},
    {"interval": "weekly", "weekday": 6, "retention_count": 3},
    {"interval": "monthly", "month_day": 31, "retention_count": 1},
]
# outages: over a night, over a week with a month end, on the nights when the clocks change
OUTAGES = [
    (datetime(2035, 2, 10, 12, tzinfo=UTC), datetime(2035, 2, 12, 13, tzinfo=UTC)),
    (datetime(2035, 3, 24, 12, tzinfo=UTC), datetime(2035, 3, 25, 18, tzinfo=UTC)),
    (datetime(2035, 6, 27, tzinfo=UTC), datetime(2035, 7, 4, tzinfo=UTC)),
    (datetime(2035, 10, 27, 20, tzinfo=UTC), datetime(2035, 10, 28, 5, tzinfo=UTC)),
]
# the second time within a paid hour
SWITCHES = [
    (START + 5 * HOUR, True),
    (START + 60 * DAY, False),
    (START + 60 * DAY + HOUR / 3, True),
    (START + 100 * DAY, False),
    (START + 300 * DAY, True),
]
TIMES_ON = [(SWITCHES[0][0], SWITCHES[1][0]), (SWITCHES[2][0], SWITCHES[3][0]), (SWITCHES[4][0], END)]


class Year:
    """Three customers in three time zones with a machine per schedule. The first machine also has automatic backups."""

    def __init__(self, root: Path) -> None:
        self.random = random.Random(2035)
        self.location = LocationFactory(default_at=time(4), default_retention_count=2)
        for kind in (ServiceKind.VM_BACKUP, ServiceKind.VM_SNAPSHOT):
            create_package(location=self.location, kind=kind, rate_micro=RATE, starts_at=START - 7 * DAY)
        self.admin = UserFactory(admin=True)
        self.members: list[Membership] = []
        self.schedules: list[BackupSchedule] = []
        self.promised: dict[UUID, list[UUID]] = defaultdict(list)
        self.kept_for_ever: set[UUID] = set()
        for zone, at in ZONES.items():
            member = MembershipFactory(project__customer__postpaid=True, project__customer__time_zone=zone)
            self.members.append(member)
            for rule in RULES:
                if rule["interval"] == "daily" and zone != "Europe/Berlin":
                    continue  # this takes most of the year's time
                vm = self.make_machine(root, member)
                schedule = create_schedule(source=vm, at=at, user=member.user, now=START, **rule)
                self.schedules.append(schedule)
        self.automatic = self.schedules[0].vm

    def make_machine(self, root: Path, member: Membership) -> VirtualMachine:
        vm = VirtualMachineFactory(project=member.project, location=self.location, hourly_price_micro=PRICE)
        volume = VolumeFactory(project=member.project, location=self.location, vm=vm, size_gb=5)
        put_volume(root, volume, content(b"year"))
        return vm

    def live(self) -> None:
        """Run the scheduler, each time at the instant when the next run or retry is due."""
        now, switches = START, list(SWITCHES)
        while now < END:
            while switches and switches[0][0] <= now:
                at, on = switches.pop(0)
                switch_automatic_backups(vm=self.automatic, on=on, user=self.admin, now=at - NOTICE if on else at)
            settle_runs(now)
            start_due_runs(now)
            self.work(now + timedelta(minutes=7))
            settle_runs(now + timedelta(minutes=9))
            self.work(now + timedelta(minutes=11))
            self.check_promises(now + timedelta(minutes=9))
            # a run that waits for another one of its machine is still due
            due = BackupSchedule.objects.order_by("next_run_at").exclude(next_run_at=None).first()
            now = min([max(due.next_run_at, now + HOUR / 4), END, *(at for at, _on in switches)])
            for begins, ends in OUTAGES:
                if begins <= now < ends:
                    now = ends

    def work(self, now: datetime) -> None:
        """Do the workers' work: take and delete backups, then verify them."""
        for _turn in range(2):
            for operation in Operation.objects.active().order_by("created_at"):
                tasks.run_operation(operation.pk, now=now)

    def check_promises(self, now: datetime) -> None:
        """Check that each schedule with a new backup has its newest ones, as many as it keeps, and no older ones.

        Pinned backups don't count, and are checked at the end.
        """
        done = BackupRun.objects.filter(state=BackupRun.State.DONE, finished_at=now).select_related("schedule")
        for run in done.order_by("scheduled_at"):
            promised = self.promised[run.schedule_id]
            promised.append(run.snapshot_id)
            gone = [promised.pop(0) for _copy in promised[run.schedule.retention_count :]]
            states = set(Snapshot.objects.filter(pk__in=promised).values_list("state", flat=True))
            assert states == {State.READY}, "a copy that was promised is gone"
            assert not Snapshot.objects.filter(pk__in=gone).exclude(state=State.DELETED).exists()
            if self.random.random() < 0.02:
                backup = Snapshot.objects.get(pk=promised.pop())
                member = next(member for member in self.members if member.project_id == backup.project_id)
                pin_backup(snapshot=backup, user=member.user)
                self.kept_for_ever.add(backup.pk)


@pytest.fixture
def year(storage_root: Path) -> Year:
    return Year(storage_root)


def slots_of(schedule: BackupSchedule) -> list[datetime]:
    """Return the occurrences by the oracle that walks through every minute of the local time."""
    zone = ZoneInfo(schedule.time_zone)
    days = [(START + number * DAY).date() for number in range(-1, 367)]
    slots = [first_minute_at_or_past(day, schedule.at, zone) for day in days if runs_on(schedule.recurrence, day)]
    times = TIMES_ON if schedule.is_automatic else [(START, END)]
    return [slot for slot in slots if any(begins < slot < ends for begins, ends in times)]


def test_in_a_year_each_occurrence_runs_once_or_is_missed_and_bills_match_the_oracle(
    year: Year,
) -> None:
    year.live()

    missed = 0
    assert BackupSchedule.objects.count() == 1 + len(year.schedules)
    for schedule in BackupSchedule.objects.all():
        runs = list(schedule.runs.order_by("scheduled_at"))
        assert [run.scheduled_at for run in runs] == slots_of(schedule)
        for run in runs:
            # of the occurrences within an outage, the latest was made up for
            outage = next((outage for outage in OUTAGES if outage[0] <= run.scheduled_at < outage[1]), None)
            later = outage and any(run.scheduled_at < other.scheduled_at <= outage[1] for other in runs)
            assert run.state == (BackupRun.State.MISSED if later else BackupRun.State.DONE), run
            missed += run.state == BackupRun.State.MISSED
    assert missed >= 8
    assert set(Snapshot.objects.filter(pk__in=year.kept_for_ever).values_list("state", flat=True)) == {State.READY}
    # one notification per schedule and outage, whatever the number of occurrences
    notified = (
        BackupRun.objects.filter(state=BackupRun.State.MISSED).values_list("schedule_id", "created_at").distinct()
    )
    assert Notification.objects.filter(key__startswith="backup-missed:").count() == notified.count()

    closing.close_months(at=END + 10 * DAY)
    for member in year.members:
        check_invoices(member, year.automatic)
    assert verification.differences(at=END + 10 * DAY) == []
    runs_done = BackupRun.objects.filter(state=BackupRun.State.DONE).count()
    print(f"\n{runs_done} copies, {missed} slots missed, {Invoice.objects.count()} invoices")


def check_invoices(member: Membership, automatic: VirtualMachine) -> None:
    """Compare the invoices with the oracle's bill for what happened to the backups."""
    customer = member.project.customer
    backups = list(Snapshot.objects.filter(customer=customer, kind="backup").select_related("run__schedule"))
    numbers = {backup.pk: number for number, backup in enumerate(backups)}
    stays = [
        oracle.Stay(numbers[backup.pk], backup.ready_at, backup.delete_requested_at, gigabytes=backup.size_gb)
        for backup in backups
        if not backup.run.schedule.is_automatic
    ]
    if automatic.project_id == member.project_id:
        numbers[automatic.pk] = -1
        stays += oracle.switched([(at, Fraction(PRICE, 10**6) if on else None) for at, on in SWITCHES], -1)
    end = END + 10 * DAY
    expected = oracle.bill(
        stays, prices={"": [(START - 7 * DAY, Fraction(RATE, 10**6))]}, zone=ZoneInfo(customer.time_zone), now=end
    )
    last = Invoice.objects.filter(customer=customer).latest("month").month
    expected = {key: value for key, value in expected.items() if key[2] <= last}
    invoiced: dict = {}
    for line in InvoiceLine.objects.filter(invoice__customer=customer).select_related("segment", "price_version"):
        since = line.price_version.starts_at if line.price_version else None
        key = (numbers[line.resource_id], line.segment.started_at, line.month, since)
        invoiced[key] = (line.hours, Fraction(line.amount_micro, 10**6))
    assert invoiced == expected
    assert not UsageSegment.objects.filter(customer=customer).exclude(resource_id__in=numbers).exists()
