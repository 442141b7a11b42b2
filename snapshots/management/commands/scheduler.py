import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from billing import scheduling as billing
from cng_portal.accounts import approvals
from cng_portal.accounts.signin import attempts, factors, sessions
from cng_portal.activity import services as activity
from cng_portal.common.clock import database_now
from cng_portal.common.log_context import bind_fields
from cng_portal.common.loops import for_each
from cng_portal.hardening import refuse_unsafe_start
from cng_portal.inventory.models import Location
from cng_portal.mail import services as mail
from cng_portal.monitoring.heartbeats import Heartbeat
from cng_portal.monitoring.leases import acquire_lease, release_lease
from cng_portal.monitoring.models import Process
from cng_portal.notifications import services as notifications
from snapshots import expiry, labels, recycle_bin, scrub
from snapshots.api.v1 import idempotency
from snapshots.backups.runs import settle_runs, start_due_runs
from snapshots.backups.upkeep import maintain_schedules
from snapshots.cloudsync import sync
from snapshots.drills import plans
from snapshots.drills import services as drills
from snapshots.files import cataloguing
from snapshots.monitoring.storage import check_storage, measure_storage
from snapshots.operations import lifecycle
from snapshots.operations.handlers import is_needed
from snapshots.storage.contract import StorageError
from snapshots.storage.registry import get_driver
from snapshots.volumes.charges import charge_volumes
from snapshots.wizard import wizard

logger = structlog.stdlib.get_logger("snapshots.scheduler")
LEASE = "scheduler"


class Command(BaseCommand):
    help = (
        "Run scheduled duties: enqueue forgotten operations, close months, tidy up. If several schedulers run, on any "
        "number of machines, one acts; another takes over when it stops or dies."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--interval", type=float, default=5, help="Seconds between rounds (default: %(default)s).")
        parser.add_argument(
            "--once", action="store_true", help="Run every duty once and exit, even if another scheduler is active."
        )

    def handle(self, *, interval: float, once: bool, **options: Any) -> None:
        refuse_unsafe_start()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        due = dict.fromkeys(DUTIES, 0.0)
        with Heartbeat(Process.Kind.SCHEDULER) as me:
            while not stop.is_set():
                close_old_connections()
                for duty, every_seconds in DUTIES.items():
                    # Checked before each duty: a scheduler that was busy for longer than its lease may have been replaced.
                    if once or (time.monotonic() >= due[duty] and acquire_scheduler_lease(me.id)):
                        due[duty] = time.monotonic() + every_seconds
                        run_duty(duty, reraise=once)
                if once:
                    return
                stop.wait(interval)
            release_lease(LEASE, holder=me.id)


def acquire_scheduler_lease(process_id: str) -> bool:
    """Acquire or renew the lease. Returns whether this scheduler has it.

    This only saves work: several schedulers can safely run every duty.
    """
    try:
        return acquire_lease(LEASE, holder=process_id, seconds=settings.SCHEDULER_LEASE_SECONDS)
    except DatabaseError:
        logger.exception("scheduler.lease_failed")
        return False


def run_duty(duty: Callable[[], None], *, reraise: bool) -> None:
    """Run the duty. A failure is logged, so that other duties still run, and the duty runs again when it is next due."""
    try:
        with bind_fields(duty=duty.__name__):
            duty()
    except Exception:
        if reraise:
            raise
        logger.exception("scheduler.duty_failed", duty=duty.__name__)


def reconcile_operations() -> None:
    if released := lifecycle.reconcile():
        logger.warning("operations.released", count=released)


def settle_volume_charges() -> None:
    charge_volumes(at=timezone.now())


def settle_bills() -> None:
    billing.run_due(at=timezone.now())


def run_backups() -> None:
    """Settle first, so that retention frees storage before the next backups start."""
    settle_runs(timezone.now())
    start_due_runs(timezone.now())


def start_scrubs() -> None:
    scrub.start_scrubs(timezone.now())


def start_catalogues() -> None:
    cataloguing.start_catalogues(timezone.now())


def start_drills() -> None:
    plans.start_due(database_now())


def remove_leftovers_of_drills() -> None:
    drills.remove_leftovers(database_now())


def expire_snapshots() -> None:
    """Announce first: nothing expires without notice."""
    now = database_now()
    expiry.announce_expiring(now=now)
    expiry.delete_expired(now=now)


def expire_approvals() -> None:
    approvals.expire_due(now=database_now())


def empty_recycle_bin() -> None:
    now = database_now()
    recycle_bin.erase_due(now=now)
    recycle_bin.free_space()


def maintain_backup_schedules() -> None:
    maintain_schedules(timezone.now())


def send_mails() -> None:
    mail.send_due(now=timezone.now())


def tidy_up() -> None:
    """Delete expired rows and files, and encrypt the secrets of second factors with the current key."""
    now = database_now()

    def prune_task_results() -> None:
        call_command("prune_db_task_results", min_age_days=1, verbosity=0)

    def clear_sessions() -> None:
        call_command("clearsessions")
        sessions.delete_ended(now=now)

    def delete_attempts() -> None:
        attempts.delete_expired(now=now)

    def encrypt_factors() -> None:
        factors.encrypt_all()

    def delete_drafts() -> None:
        wizard.delete_old_drafts(now=now)

    def delete_notifications() -> None:
        notifications.delete_old(now=now)

    def delete_idempotency_keys() -> None:
        idempotency.delete_old(now=now)

    def delete_mails() -> None:
        mail.delete_old(now=now)

    def delete_activity() -> None:
        activity.delete_old(now=now)

    def delete_unused_tags() -> None:
        labels.delete_unused_tags()

    def remove_orphans() -> None:
        for_each(Location.objects.all(), remove_orphans_in)

    for_each(
        [
            prune_task_results,
            clear_sessions,
            delete_attempts,
            encrypt_factors,
            delete_drafts,
            delete_notifications,
            delete_idempotency_keys,
            delete_mails,
            delete_activity,
            delete_unused_tags,
            remove_orphans,
        ],
        lambda chore: chore(),
    )


def remove_orphans_in(location: Location) -> None:
    try:
        get_driver(location).remove_orphans(needed=is_needed)
    except StorageError as error:  # Retried in the next round.
        logger.warning("storage.tidy_failed", location=location.code, error=str(error))


# The minimum seconds between two runs, beside the loop's own interval.
DUTIES = {
    reconcile_operations: 0,
    run_backups: 0,
    send_mails: 0,
    start_scrubs: 0,
    start_catalogues: 0,
    start_drills: 60,
    remove_leftovers_of_drills: 60,
    maintain_backup_schedules: 300,
    settle_volume_charges: 300,  # before the months that they belong to are closed
    settle_bills: 300,
    sync.sync_everywhere: 300,
    tidy_up: 3600,
    check_storage: 60,
    expire_snapshots: 60,
    expire_approvals: 60,
    empty_recycle_bin: 60,
    measure_storage: 900,
}
