"""The activity log: `record` is the only way to write an entry, `delete_old` the only way to delete one."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import models, transaction

from cng_portal.common.origin import get_origin

from .models import Activity
from .registry import ACTIONS

NAME_LENGTH = 254
BATCH_SIZE, BATCHES = 1000, 50


def record(
    *,
    action: str,
    actor: AbstractBaseUser | None,
    target: models.Model | None = None,
    project: models.Model | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Activity:
    """Record an action. Call it in the transaction of the action.

    Without an actor, the portal itself acted. The project is the target's unless given; the customer is the project's,
    else the target's. `before` and `after` are {field: value}. Raises ValueError for an unregistered action.
    """
    if action not in ACTIONS:
        raise ValueError(f"No app has registered the action “{action}”")
    kind = target._meta.label if target else ""
    if project is None:
        project = target if kind == "accounts.Project" else getattr(target, "project", None)
    customer_id = getattr(project or target, "customer_id", None)
    return Activity.objects.create(
        action=action,
        actor=actor,
        actor_name=str(actor)[:NAME_LENGTH] if actor else "",
        target_kind=target._meta.model_name if target else "",
        target_id=str(target.pk) if target else "",
        target_name=str(target)[:NAME_LENGTH] if target else "",
        customer_id=target.pk if target and kind == "accounts.Customer" else customer_id,
        project=project,
        address=get_origin().address,
        before=to_json(before or {}),
        after=to_json(after or {}),
    )


def to_json(value: Any) -> Any:
    """Convert to JSON types; an object becomes its text."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list | tuple | set | models.QuerySet):
        return [to_json(item) for item in value]
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value)


def retention_start(*, now: datetime) -> datetime | None:
    """The instant before which entries are deleted; it moves once a day. None where they are kept forever."""
    if not settings.ACTIVITY_KEPT_DAYS:
        return None
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=settings.ACTIVITY_KEPT_DAYS)


def delete_old(*, now: datetime) -> int:
    """Delete the entries older than ACTIVITY_KEPT_DAYS, oldest first. Returns how many.

    Each transaction deletes a batch and records that it did. A large backlog is left for the next call, so that other
    duties of the scheduler don't wait.
    """
    start, total = retention_start(now=now), 0
    if start:
        for _batch in range(BATCHES):
            deleted = _delete_batch(start)
            total += deleted
            if deleted < BATCH_SIZE:
                break
    return total


@transaction.atomic
def _delete_batch(start: datetime) -> int:
    oldest = Activity.objects.filter(at__lt=start).order_by("at", "id").values_list("at", "pk")[:BATCH_SIZE]
    batch = list(oldest)
    deleted, _by_model = Activity.objects.filter(pk__in=[pk for _at, pk in batch]).delete()
    if deleted:  # Otherwise another process deleted them first.
        period = {"from": batch[0][0], "until": batch[-1][0]}
        record(action="activity.delete_old", actor=None, after={"entries": deleted, **period})
    return deleted
