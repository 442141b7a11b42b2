"""The invariants after the storm: each check yields a sentence for every violation."""

import collections
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import Count, Q
from django.utils import timezone

from billing import verification
from billing.models import Invoice, ServiceKind, UsageSegment, WalletTransaction
from cng_portal.accounts.models import Customer, Invitation, Membership, User
from cng_portal.activity.models import Activity
from cng_portal.inventory.models import AutomaticBackupSwitch, VirtualMachine, Volume
from cng_portal.notifications.models import Notification
from snapshots.backups.planning import MAX_STEPS
from snapshots.models import (
    BackupRun,
    BackupSchedule,
    DeletionCause,
    DiskImage,
    Drill,
    DrilledDisk,
    Kind,
    Operation,
    Snapshot,
    SnapshotLock,
    State,
)
from snapshots.usage_check import check_usage

from . import actors, disks, portal

checked: collections.Counter[str] = collections.Counter()


def differences() -> list[str]:
    return [f"{check.__name__}: {sentence}" for check in CHECKS for sentence in check()]


def fsck() -> Iterator[str]:
    try:
        call_command("fsck", read=True)
    except CommandError as error:
        yield str(error)


def verify_billing() -> Iterator[str]:
    """Verify at the end of the last invoice if a clock that was ahead has closed an unfinished month."""
    last = Invoice.objects.order_by("-ends_at").values_list("ends_at", flat=True).first()
    at = timezone.now()
    yield from verification.differences(at=max(at, last) if last else at)
    checked["customers whose bill was recomputed"] += Customer.objects.count()


def no_operation_is_active() -> Iterator[str]:
    for operation in Operation.objects.active():
        yield f"{operation} is {operation.state}, not before {operation.not_before}"
    for snapshot in Snapshot.objects.filter(state__in=[State.PENDING, State.CREATING, State.DELETING]):
        yield f"{snapshot} is {snapshot.state}"
    for volume in Volume.objects.filter(state=Volume.State.CREATING):
        yield f"{volume} is being made"
    for run in BackupRun.objects.filter(state=BackupRun.State.TAKING):
        yield f"{run} is being taken"
    checked["operations"] += Operation.objects.count()


def snapshots_have_the_captured_bytes() -> Iterator[str]:
    """A snapshot, also in the recycle bin, holds what its volume, or the one it was copied from, held at one instant."""
    made_from = dict(
        Operation.objects.filter(kind=Operation.Kind.NEW_VOLUME).values_list("volume", "disk__volume").distinct()
    )

    def ever_had(volume_id: UUID) -> set[bytes]:
        stamps = disks.written[str(volume_id)]
        return stamps | ever_had(made_from[volume_id]) if volume_id in made_from else stamps

    whole = Q(snapshot__state=State.READY) | Q(snapshot__bin_until__isnull=False)
    for disk in DiskImage.objects.filter(whole).select_related("snapshot"):
        stamp = disks.read_stamp(portal.STORAGE / disk.snapshot.location_id / "snapshots" / str(disk.pk) / "disk.img")
        checked["disks of snapshots"] += 1
        if stamp not in ever_had(disk.volume_id):
            yield f"{disk.snapshot} has bytes that its volume never had together: {stamp!r}"


def charges_are_lives() -> Iterator[str]:
    """Each snapshot that became Ready was charged once, from then until its deletion was accepted, and nothing else was.

    What was put back is charged in pieces, which `check_usage` compares with the activity log.
    """
    yield from check_usage(timezone.now())
    put_back = set(Activity.objects.filter(action="snapshot.put_back").values_list("target_id", flat=True))
    segments = collections.defaultdict(list)
    for segment in UsageSegment.objects.exclude(kind=ServiceKind.VM_BACKUP_AUTOMATIC):
        segments[segment.resource_id].append(segment)
        checked["usage segments"] += 1
    for snapshot in Snapshot.objects.select_related("run__schedule"):
        charged = segments.pop(snapshot.pk, [])
        if str(snapshot.pk) in put_back:
            yield from charged_twice(snapshot, charged)
            continue
        # once its run is replaced, a backup no longer shows whether it was automatic
        is_detached = snapshot.kind == Kind.BACKUP and not hasattr(snapshot, "run")
        if len(charged) != (snapshot.ready_at is not None and snapshot.is_charged) and not (
            is_detached and not charged
        ):
            yield f"{snapshot}, {snapshot.state}, was charged {len(charged)} times"
        for segment in charged:
            ended = snapshot.delete_requested_at and max(snapshot.delete_requested_at, segment.started_at)
            if (segment.started_at, segment.ended_at) != (snapshot.ready_at, ended):
                yield f"{snapshot} was charged from {segment.started_at} to {segment.ended_at}"
            if (segment.kind, segment.size_gb) != (snapshot.service_kind, snapshot.size_gb):
                yield f"{snapshot} was charged as {segment.kind} of {segment.size_gb} GB"
    for resource in segments:
        yield f"{resource} was charged and never existed"


def charged_twice(snapshot: Snapshot, segments: list[UsageSegment]) -> Iterator[str]:
    ordered = sorted((segment for segment in segments if not segment.voided), key=lambda segment: segment.started_at)
    for segment, following in zip(ordered, ordered[1:], strict=False):
        if segment.ended_at is None or segment.ended_at > following.started_at:
            yield f"{snapshot} was charged twice from {following.started_at}"


def switches_are_charged() -> Iterator[str]:
    """Automatic backups are charged while the switch is on, and never twice for the same time."""
    segments = collections.defaultdict(list)
    for segment in UsageSegment.objects.filter(kind=ServiceKind.VM_BACKUP_AUTOMATIC).order_by("started_at", "pk"):
        segments[segment.resource_id].append(segment)
        checked["usage segments of automatic backups"] += 1
    for vm in VirtualMachine.objects.all():
        is_on = vm.automatic_backups_since is not None
        own = segments.pop(vm.pk, [])
        if sum(segment.ended_at is None for segment in own) != is_on:
            yield f"{vm}: automatic backups are {'on' if is_on else 'off'}, charged: {own}"
        began = [segment for segment in own if not segment.voided]
        for segment, following in zip(began, began[1:], strict=False):
            if segment.ended_at is None or segment.ended_at > following.started_at:
                yield f"{vm}: automatic backups are charged twice from {following.started_at}"
        schedules = BackupSchedule.objects.present().filter(vm=vm, origin=BackupSchedule.Origin.AUTOMATIC).count()
        if schedules != is_on:
            yield f"{vm}: automatic backups are {'on' if is_on else 'off'} with {schedules} schedules"
        switch = AutomaticBackupSwitch.objects.filter(vm=vm)
        if switch.filter(on=True).count() - switch.filter(on=False).count() != is_on:
            yield f"{vm}: automatic backups are {'on' if is_on else 'off'}, which contradicts the history of the switch"
    for resource in segments:
        yield f"automatic backups of {resource} were charged and it never existed"


def ledger_sums_to_zero() -> Iterator[str]:
    accounts: collections.Counter[str] = collections.Counter()
    for move in WalletTransaction.objects.all():
        checked["transactions"] += 1
        for account, amount in move.entries:
            accounts[account] += amount
    if sum(accounts.values()):
        yield f"{dict(accounts)}"


def retention_is_respected() -> Iterator[str]:
    """One unfinished run per machine, one run per occurrence, and no more backups than a schedule keeps. The last is checked
    for schedules that ran after the disturbances had ended.
    """
    doubled = (
        BackupRun.objects.values("schedule", "scheduled_at").annotate(count=Count("pk")).filter(count__gt=1).order_by()
    )
    yield from (f"the occurrence {row} has several runs" for row in doubled)
    unfinished = BackupRun.objects.unfinished().values("vm").annotate(count=Count("pk")).filter(count__gt=1).order_by()
    yield from (f"several runs are under way: {row}" for row in unfinished)
    now = timezone.now()
    for run in BackupRun.objects.filter(state=BackupRun.State.WAITING):
        if run.next_try_at and run.next_try_at > now + timedelta(hours=1, minutes=1):
            yield f"{run} is tried again only at {run.next_try_at}"
    yield from (f"{schedule} runs next only at {schedule.next_run_at}" for schedule in planned_too_far(now))
    for schedule in BackupSchedule.objects.present().filter(next_run_at__isnull=False):
        checked["schedules"] += 1
        if schedule.next_run_at and schedule.next_run_at < now - timedelta(minutes=5):
            busy = BackupRun.objects.unfinished().filter(vm=schedule.vm).exists()
            if not busy:
                yield f"{schedule} is overdue since {schedule.next_run_at}"
    for run in BackupRun.objects.select_related("snapshot"):
        checked["runs"] += 1
        if run.state == BackupRun.State.DONE and run.snapshot and run.snapshot.state == State.READY:
            if any(not disk.verified_at for disk in run.snapshot.disks.all()):
                yield f"{run} is done, but its backup wasn't verified"
    for pk in backed_up_in_calm:
        schedule = BackupSchedule.objects.get(pk=pk)
        last = schedule.runs.exclude(state=BackupRun.State.MISSED).order_by("-number").first()
        if last is None or last.state != BackupRun.State.DONE:
            continue
        checked["schedules whose backups were counted"] += 1
        copies = Snapshot.objects.filter(run__schedule=schedule, is_pinned=False, state=State.READY)
        copies = copies.exclude(locks__in=SnapshotLock.objects.active()).count()
        if copies > schedule.retention_count:
            yield f"{schedule} keeps {copies} backups instead of {schedule.retention_count}"
        if last.snapshot is None or last.snapshot.state != State.READY:
            yield f"{schedule} has deleted the backup that it has just taken: run {last.number}, {last.snapshot_id}"


def newest_backups_exist() -> Iterator[str]:
    """Only a user, or somebody in the cloud, deleted the newest backup of a schedule. Retention deleted others at the
    instant at which a run with a higher number was done.
    """
    for schedule in BackupSchedule.objects.all():
        done = list(schedule.runs.filter(state=BackupRun.State.DONE).select_related("snapshot").order_by("number"))
        checked["newest backups"] += bool(done)
        for run in done:
            backup = run.snapshot
            if backup is None or backup.state == State.READY:
                continue
            newer = [later.finished_at for later in done if later.number > run.number]
            cause = backup.deletion_cause
            if not newer and cause not in (DeletionCause.USER, DeletionCause.OUTSIDE):
                yield f"{schedule} has lost its newest backup: run {run.number}, {backup.pk}, {cause}"
            elif cause == DeletionCause.RETENTION and backup.delete_requested_at not in newer:
                yield f"{schedule} has deleted run {run.number}, {backup.pk}, without a newer one that was done then"


def no_lock_was_broken() -> Iterator[str]:
    """What is locked is Ready with all its disks, and only a user has lifted a lock."""
    for lock in SnapshotLock.objects.select_related("snapshot"):
        checked["locks"] += 1
        if lock.lifted_at:
            if not Activity.objects.filter(action="snapshot.lift_lock", target_id=str(lock.snapshot_id)).exists():
                yield f"the lock of {lock.snapshot} was lifted by nobody"
        elif lock.until > timezone.now():
            disks_left = lock.snapshot.disks.count()
            if lock.snapshot.state != State.READY or not disks_left:
                yield f"{lock.snapshot} is locked until {lock.until}, and {lock.snapshot.state} with {disks_left} disks"


def nothing_was_erased_early() -> Iterator[str]:
    """What users deleted is in the recycle bin until a user erases it. Nobody's time there is over."""
    erased = Snapshot.objects.filter(
        state=State.DELETED, bin_until=None, deletion_cause=DeletionCause.USER, ready_at__isnull=False
    )
    for snapshot in erased:
        if str(snapshot.pk) not in actors.asked_erased:
            yield f"{snapshot} was erased although nobody asked for it"
    # A new volume that failed has no data, and no deletion was requested.
    for volume in Volume.objects.filter(delete_requested_at__isnull=False, bin_until=None):
        if str(volume.pk) not in actors.asked_erased:
            yield f"{volume} was erased although nobody asked for it"
    checked["snapshots in the recycle bin"] += Snapshot.objects.in_bin().count()
    for volume in Volume.objects.in_bin():
        checked["volumes in the recycle bin"] += 1
        if not disks.image(volume).exists():
            yield f"{volume} is in the recycle bin without its data"


def drills_are_over() -> Iterator[str]:
    """Every drill has ended, none found damage that isn't there, and no temporary volume is left."""
    for drill in Drill.objects.select_related("snapshot"):
        checked["drills"] += 1
        if drill.finished_at is None or drill.result == Drill.Result.FAILED:
            yield f"the drill of {drill.snapshot} has the result {drill.result or 'none'}"
    for drilled in DrilledDisk.objects.filter(removed_at=None):
        yield f"the temporary volume {drilled.pk} of a drill was not removed"


def planned_too_far(now: datetime) -> list[BackupSchedule]:
    """Return the schedules whose next run was planned by a clock that was ahead, and wasn't corrected."""
    planned = BackupSchedule.objects.present().filter(next_run_at__isnull=False).select_related("vm")
    return [
        schedule
        for schedule in planned
        if schedule.next_run_at and schedule.next_run_at > starts_at(schedule, now) + MAX_STEPS[schedule.interval]
    ]


def starts_at(schedule: BackupSchedule, now: datetime) -> datetime:
    """Return when the schedule may first run, or `now`: automatic backups start days after they are announced."""
    announced = schedule.vm.automatic_backups_since if schedule.is_automatic and schedule.vm else None
    return max(now, announced or now)


backed_up_in_calm: list[str] = []  # schedules that took one more backup after the disturbances had ended


def actions_are_logged() -> Iterator[str]:
    """Every action has exactly one entry, and no entry is about something that didn't happen."""
    entries: collections.Counter[tuple[str, str]] = collections.Counter()
    for action, target in Activity.objects.values_list("action", "target_id"):
        entries[action, target] += 1
        checked["entries of the activity log"] += 1
    happened: collections.Counter[tuple[str, str]] = collections.Counter()
    for kind, snapshot_id, volume_id in Operation.objects.foreground().values_list("kind", "snapshot", "volume"):
        area = "snapshot" if snapshot_id else "volume"
        happened[f"{area}.{kind}", str(snapshot_id or volume_id)] += 1
    # Those with an error ended because their snapshot was deleted.
    cancelled = Operation.objects.filter(state=Operation.State.CANCELLED, error="").values_list(
        "pk", "kind", "snapshot", "volume", "volume__vm"
    )
    # the volumes of a new machine are cancelled together
    for _cancelled, subject_id in {
        (vm if vm and kind == Operation.Kind.NEW_VOLUME else pk, snapshot or volume)
        for pk, kind, snapshot, volume, vm in cancelled
    }:
        happened["snapshot.cancel", str(subject_id)] += 1
    for schedule in BackupSchedule.objects.filter(origin=BackupSchedule.Origin.CUSTOMER):
        happened["backup.schedule", str(schedule.vm_id)] += 1
        if schedule.deleted_at:
            happened["backup.delete", str(schedule.vm_id)] += 1
    for vm_id in AutomaticBackupSwitch.objects.values_list("vm", flat=True):
        happened["backup.automatic", str(vm_id)] += 1
    for pk in Invitation.objects.values_list("pk", flat=True):
        happened["invitation.send", str(pk)] += 1
    for user_id in Invitation.objects.exclude(accepted_at=None).values_list("accepted_by", flat=True):
        happened["user.join", str(user_id)] += 1
    logged_actions = {action for action, _target in happened}
    for action, target in sorted(happened.keys() | {key for key in entries if key[0] in logged_actions}):
        if action.endswith(".clean_up"):  # taking a failed snapshot again cancels its clean-up
            continue
        if entries[action, target] != happened[action, target]:
            counts = f"{happened[action, target]} times and was logged {entries[action, target]} times"
            yield f"{action} of {target} happened {counts}"


def requesters_were_notified() -> Iterator[str]:
    """Whoever requested what failed was notified. If the scheduler was killed while sending, the e-mail may have been
    sent twice with the same Message-ID."""
    failed = Operation.objects.filter(state=Operation.State.FAILED, requested_by__isnull=False)
    failed = failed.exclude(kind=Operation.Kind.CLEAN_UP)
    failed = failed.exclude(snapshot__kind=Kind.BACKUP, kind=Operation.Kind.CAPTURE)
    for operation in failed:
        checked["notified failures"] += 1
        if not Notification.objects.filter(user=operation.requested_by, key=f"operation-{operation.pk}").exists():
            yield f"{operation.requested_by} was not notified that {operation} failed"
    failed_runs = BackupRun.objects.filter(Q(state=BackupRun.State.WAITING) | Q(state=BackupRun.State.FAILED, tries=4))
    for run in failed_runs:
        if not Notification.objects.filter(key__startswith=f"backup-run:{run.pk}:").exists():
            yield f"nobody was notified that {run} failed"
    ids_by_link = collections.defaultdict(set)
    for message in portal.mails():
        checked["e-mails"] += 1
        if link := re.search(r"/invitations/\S+", message.get_content()):
            ids_by_link[link[0]].add(message["Message-ID"])
    for link, ids in ids_by_link.items():
        if len(ids) > 1:
            yield f"the invitation {link} was sent as {len(ids)} e-mails: {ids}"


def promises_were_kept() -> Iterator[str]:
    """What a response confirmed is true, whatever was killed right after it."""
    for what, target in dict.fromkeys(actors.promises):
        checked["promises"] += 1
        if not PROMISES[what](target):
            yield f"{what}: {target}"


PROMISES: dict[str, Callable[[str], bool]] = {
    "taken": lambda pk: Snapshot.objects.filter(pk=pk).exists(),
    "cancelled": lambda pk: Operation.objects.filter(pk=pk, state=Operation.State.CANCELLED).exists(),
    "deleted": lambda pk: (
        pk in actors.asked_back or Snapshot.objects.filter(pk=pk, state__in=[State.DELETING, State.DELETED]).exists()
    ),
    "erased": lambda pk: (
        Snapshot.objects.filter(pk=pk, state=State.DELETED, bin_until=None).exists()
        or Volume.objects.filter(pk=pk, delete_requested_at__isnull=False, bin_until=None).exists()
    ),
    "volume deleted": lambda pk: (
        pk in actors.asked_back or Volume.objects.filter(pk=pk, delete_requested_at__isnull=False).exists()
    ),
    "locked": lambda pk: SnapshotLock.objects.filter(snapshot=pk).exists(),
    "scheduled": lambda pk: BackupSchedule.objects.filter(pk=pk).exists(),
    "schedule deleted": lambda pk: BackupSchedule.objects.filter(pk=pk, deleted_at__isnull=False).exists(),
    "joined": lambda email: Membership.objects.filter(user__email__iexact=email).exists(),
    "granted": lambda pk: WalletTransaction.objects.filter(customer=pk).exists(),
    "signed in": lambda email: Activity.objects.filter(actor__email__iexact=email, action="user.sign_in").exists(),
}


def sign_ins_are_counted() -> Iterator[str]:
    signed_in = collections.Counter(who for what, who in actors.promises if what == "signed in")
    for email, count in signed_in.items():
        user = User.objects.get(email__iexact=email)
        written = Activity.objects.filter(actor=user, action="user.sign_in").count()
        checked["sign-ins"] += count
        if written < count:
            yield f"{email} signed in {count} times, {written} are written down"


def storage_is_tidy() -> Iterator[str]:
    """There is nothing but volumes, snapshots with the lists of their files, and the lock file."""
    expected = re.compile(
        r"[^/]+/(\.lock|volumes|snapshots|volumes/[0-9a-f-]{36}\.img|snapshots/[0-9a-f-]{36}(/(disk\.img|manifest\.json|catalogue))?)"
    )
    for path in portal.STORAGE.glob("*/**/*"):
        checked["files and folders of the storage"] += 1
        name = path.relative_to(portal.STORAGE).as_posix()
        if not expected.fullmatch(name):
            yield name


def database_is_whole() -> Iterator[str]:
    if connection.vendor == "sqlite":
        with closing(sqlite3.connect(connection.settings_dict["NAME"])) as file:
            for pragma in "integrity_check", "foreign_key_check":
                rows = [row for row in file.execute(f"PRAGMA {pragma}").fetchall() if row != ("ok",)]
                yield from (f"{pragma}: {row}" for row in rows)
    elif (program := Path(portal.POSTGRESQL, "pg_amcheck")).exists():
        where = connection.settings_dict
        options = ["--install-missing", "--heapallindexed", "--host", where["HOST"], "--username", where["USER"]]
        command = [program, *options, where["NAME"]]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            yield result.stdout + result.stderr
    checked["database"] += 1


CHECKS = [
    fsck,
    verify_billing,
    no_operation_is_active,
    snapshots_have_the_captured_bytes,
    charges_are_lives,
    switches_are_charged,
    ledger_sums_to_zero,
    retention_is_respected,
    newest_backups_exist,
    no_lock_was_broken,
    nothing_was_erased_early,
    drills_are_over,
    actions_are_logged,
    requesters_were_notified,
    promises_were_kept,
    sign_ins_are_counted,
    storage_is_tidy,
    database_is_whole,
]
