"""One storm on one database; tests/lab/chaos/__main__.py prepares its folder and environment."""

import collections
import http.client
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.utils import DatabaseError  # noqa: E402
from django.utils import timezone  # noqa: E402

from billing.models import ServiceKind  # noqa: E402
from billing.pricing.packages import create_package  # noqa: E402
from billing.wallet import buy_credits  # noqa: E402
from cng_portal.accounts.models import User  # noqa: E402
from snapshots.models import BackupRun, BackupSchedule, Operation, Snapshot, State  # noqa: E402
from tests.factories import (  # noqa: E402
    CustomerFactory,
    LocationFactory,
    ProjectFactory,
    UserFactory,
    VirtualMachineFactory,
    VolumeFactory,
)

from . import actors, afterwards, disks, portal  # noqa: E402

SECONDS = float(os.environ.get("CHAOS_SECONDS", "120"))
CUSTOMERS, PREPAID = 8, 2
CALM_SECONDS = 400.0  # within which the scheduler maintains the schedules, every 300 s


def set_up() -> tuple[list[User], User]:
    call_command("migrate", verbosity=0)
    call_command("createcachetable", verbosity=0)
    call_command("collectstatic", interactive=False, verbosity=0)
    location = LocationFactory(code="1CNG-CHAOS")
    now = timezone.now()
    for kind in ServiceKind.BS_SNAPSHOT, ServiceKind.VM_SNAPSHOT, ServiceKind.VM_BACKUP:
        create_package(location=location, kind=kind, rate_micro=400_000, starts_at=now - timedelta(days=2))
    administrator = UserFactory(admin=True, email="admin@example.com", password=actors.PASSWORD)
    owners = []
    for number in range(CUSTOMERS):
        customer = CustomerFactory(postpaid=number >= PREPAID, name=f"Customer {number}")
        if number < PREPAID:
            buy_credits(
                customer=customer, amount_micro=30_000_000, reason="Bought", key=f"bought-{number}", by=None, at=now
            )
        project = ProjectFactory(customer=customer, name="Default")
        owner = UserFactory(member_of=project, password=actors.PASSWORD)
        vm = VirtualMachineFactory(
            project=project, location=location, name="machine", stopped=True, hourly_price_micro=45_000_000
        )
        for position, machine in enumerate((vm, vm, None)):
            disks.make(VolumeFactory(project=project, location=location, vm=machine, name=f"disk-{position}"))
        owners.append(owner)
    return owners, administrator


def wait_until_idle(customers: list[actors.Customer]) -> None:
    """Reset the clock, run everything, and let customers retry what failed, until no work is left."""
    end = time.monotonic() + CALM_SECONDS
    while True:
        time.sleep(1)
        with suppress(DatabaseError):
            taking = BackupRun.objects.filter(state=BackupRun.State.TAKING)
            if not Operation.objects.active().exists() and not taking.exists():
                stuck = Snapshot.objects.filter(state=State.DELETING)
                if not stuck.exists() and not afterwards.planned_too_far(timezone.now()):
                    return
                for customer in customers:
                    with suppress(OSError, http.client.HTTPException):
                        customer.retry()
        if time.monotonic() > end:
            left = [
                f"{operation}, {operation.state}, not before {operation.not_before}"
                for operation in Operation.objects.active()[:5]
            ]
            left += [f"{run}, {run.state}" for run in BackupRun.objects.unfinished()[:5]]
            left += [f"{snapshot} is being deleted" for snapshot in Snapshot.objects.filter(state=State.DELETING)[:5]]
            late = afterwards.planned_too_far(timezone.now())[:5]
            left += [f"{schedule} runs next only at {schedule.next_run_at}" for schedule in late]
            raise SystemExit(f"After {CALM_SECONDS:.0f} s of calm there is still something to do: {left}")


def back_up_once_more(customers: list[actors.Customer]) -> None:
    """Let each customer run one schedule of each machine, so that its backups can be counted afterwards."""
    listed = set()
    schedules = BackupSchedule.objects.present().filter(origin=BackupSchedule.Origin.CUSTOMER)
    for schedule in schedules.select_related("vm").order_by("created_at"):
        owner = next(customer for customer in customers if customer.project == str(schedule.vm.project_id))
        if schedule.vm_id not in listed and owner.confirm(f"/backups/schedules/{schedule.pk}/run/"):
            listed.add(schedule.vm_id)
            afterwards.backed_up_in_calm.append(str(schedule.pk))


def storm() -> None:
    owners, administrator = set_up()
    portal.require_turning_clock()
    if not portal.SMALL:
        print("  The storage stays large: only root can mount a small one.", flush=True)
    customers = [actors.Customer(owner, portal.chance.randrange(10**9)) for owner in owners]
    crowd = [*customers, actors.Guests(portal.chance.randrange(10**9))]
    crowd += [actors.Administrator(administrator, portal.chance.randrange(10**9)) for _number in range(2)]
    connection.close()
    portal.all_down.set()
    threading.Thread(target=portal.supervise, name="supervisor", daemon=True).start()
    try:
        portal.start_all()
        for thread in crowd:
            thread.start()
        portal.inject_faults(SECONDS)
        portal.over.set()
        for thread in crowd:
            thread.join()
        portal.set_clock(0)
        wait_until_idle(customers)
        back_up_once_more(customers)
        wait_until_idle(customers)
        portal.stop_all(signal.SIGTERM)
        portal.start_all()
        wait_until_idle(customers)
    finally:
        portal.over.set()
        portal.stop_all(signal.SIGKILL)


def report() -> None:
    def line(title: str, counted: collections.Counter) -> None:
        print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counted.items())), flush=True)

    line("Requests", actors.statuses)
    print(
        f"  The slowest took {actors.slowest[0]:.1f} s. Outages lasted {portal.seconds_out():.0f} s.",
        flush=True,
    )
    line("Done to the portal", portal.done)
    print("  Actions:", flush=True)
    for action in sorted({action for action, _outcome in actors.actions}):
        outcomes = {outcome: count for (other, outcome), count in actors.actions.items() if other == action}
        print(f"    {action}: " + ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())), flush=True)
    there: collections.Counter[str] = collections.Counter()
    for state in Snapshot.objects.values_list("state", flat=True):
        there[f"snapshots {state}"] += 1
    for kind, state in Operation.objects.values_list("kind", "state"):
        there[f"{kind} {state}"] += 1
    for state in BackupRun.objects.values_list("state", flat=True):
        there[f"runs {state}"] += 1
    line("Afterwards", there)


def main() -> int:
    storm()
    problems = [*actors.failures, *afterwards.differences()]
    report()
    checked = ", ".join(f"{count} {what}" for what, count in afterwards.checked.items())
    print(f"  {len(afterwards.CHECKS)} checks, of {checked}", flush=True)
    if actors.actions["take snapshot", "done"] < CUSTOMERS:
        problems.append("Customers took too few snapshots for this run to prove anything.")
    for problem in problems:
        print(f"  {problem}", flush=True)
    print(f"  {len(problems)} differences.", flush=True)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
