"""Drills by plan: of a volume, a machine or a schedule, every week or month."""

import random
from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from cng_portal.accounts.models import User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import VirtualMachine, Volume

from .. import checks
from ..backups.occurrences import Recurrence, next_occurrence
from ..errors import ActionRefused
from ..models import BackupSchedule, Drill, DrillPlan, Snapshot, usable
from .services import check_drillable, check_room, start_drill

logger = structlog.stdlib.get_logger(__name__)

Target = Volume | VirtualMachine | BackupSchedule
STARTED_AT_ONCE = 100


def field_of(target: Target) -> str:
    """Return the field of DrillPlan that refers to it."""
    return {Volume: "volume", VirtualMachine: "vm", BackupSchedule: "schedule"}[type(target)]


def project_of(target: Target) -> UUID:
    return target.home.pk if isinstance(target, BackupSchedule) else target.project_id


def snapshots_of(target: Target) -> QuerySet[Snapshot]:
    """Return the usable snapshots of the target, the newest first: for a volume also those of its machine."""
    path = {"volume": "disks__volume", "vm": "vm", "schedule": "run__schedule"}[field_of(target)]
    return Snapshot.objects.filter(usable(), **{path: target}).order_by("-ready_at", "-pk")


def drills_of(target: Target) -> QuerySet[Drill]:
    path = {"volume": "disks__disk__volume", "vm": "snapshot__vm", "schedule": "snapshot__run__schedule"}
    return Drill.objects.filter(**{path[field_of(target)]: target}).order_by("-created_at", "-pk")


def set_plan(*, target: Target, user: User, interval: str, random_days: int | None) -> DrillPlan | None:
    """Plan drills of the target, or stop them if `interval` is empty. Returns the plan."""
    with transaction.atomic():
        customer = target.source.project.customer if isinstance(target, BackupSchedule) else target.project.customer
        lock_customer(customer.pk)
        checks.require_change(User.objects.get(pk=user.pk), project_of(target))
        plan = DrillPlan.objects.filter(**{field_of(target): target}).first()
        before = {"interval": plan.interval} if plan else {}
        if not interval:
            if plan:
                plan.delete()
            plan = None
        else:
            plan = plan or DrillPlan(**{field_of(target): target})
            if plan.interval != interval:
                plan.next_at = following(timezone.now(), interval, plan.pk.int)
            plan.interval, plan.random_days = interval, random_days
            plan.save()
        subject = target.source if isinstance(target, BackupSchedule) else target
        activity.record(action="drill.plan", actor=user, target=subject, before=before, after={"interval": interval})
    return plan


def following(after: datetime, interval: str, seed: int) -> datetime:
    """Return when a plan is due next: on a day and at a minute of its own, so that not all are due at once."""
    spread = random.Random(seed)
    at = (datetime.min + timedelta(minutes=spread.randrange(24 * 60))).time()
    recurrence = Recurrence(interval=interval, at=at, weekday=spread.randrange(7), month_day=spread.randrange(1, 29))
    return next_occurrence(recurrence, ZoneInfo("UTC"), after)


def start_due(now: datetime) -> int:
    """Start the drills that are due. Returns how many. What was missed isn't made up."""
    due = DrillPlan.objects.filter(next_at__lte=now, schedule__deleted_at=None).order_by("next_at")
    started = 0
    for plan in list(due.select_related("volume", "vm", "schedule")[:STARTED_AT_ONCE]):
        try:
            started += start_planned(plan, now)
        except ActionRefused as error:
            logger.info("drill.not_started", plan=str(plan.pk), reason=str(error))
        except Exception:
            logger.exception("drill.start_failed", plan=str(plan.pk))
    return started


def start_planned(plan: DrillPlan, now: datetime) -> bool:
    """Start the drill of one plan, unless another scheduler has, or there is nothing to drill. Raises ActionRefused."""
    later = following(now, plan.interval, plan.pk.int)
    if not DrillPlan.objects.filter(pk=plan.pk, next_at=plan.next_at).update(next_at=later):
        return False
    snapshot = choose(plan, now)
    if snapshot is None:
        return False
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        if Drill.objects.filter(snapshot=snapshot, finished_at=None).exists():
            return False
        check_drillable(snapshot)
        check_room(snapshot)
        start_drill(snapshot, user=None, at=now)
    return True


def choose(plan: DrillPlan, now: datetime) -> Snapshot | None:
    # A moved snapshot belongs to another project, whose members would be notified of drills that they didn't plan.
    snapshots = snapshots_of(plan.target).filter(project=project_of(plan.target))
    if plan.random_days is None:
        return snapshots.first()
    recent = list(snapshots.filter(ready_at__gt=now - timedelta(days=plan.random_days)).values_list("pk", flat=True))
    return Snapshot.objects.get(pk=random.choice(recent)) if recent else None
