"""The activity log: `record` is the one way to write it, whoever acts and in whatever layer, and `forget_old` the one by
which an entry goes.
"""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from .models import Activity, Customer, Project, User

# What is done, by the word that is kept. A layer above adds its acts here, where they get their name.
ACTS: dict[str, str | Promise] = {
    # snapshots and volumes
    "snapshot.capture": _("Snapshot asked for"),
    "snapshot.rename": _("Snapshot renamed"),
    "snapshot.restore": _("Restore asked for"),
    "snapshot.delete": _("Snapshot deleted"),
    "snapshot.verify": _("Verification asked for"),
    "snapshot.new_volume": _("New volume asked for"),
    "snapshot.damaged": _("Snapshot found damaged"),
    "snapshot.sound": _("Damaged snapshot found sound again"),
    "snapshot.cancel": _("Cancelled"),
    "snapshot.clean_up": _("Left-overs of a failed or cancelled operation removed"),
    # what became of it, said by the portal when the storage has done it or could not
    "ready.capture": _("Snapshot ready"),
    "failed.capture": _("Snapshot failed"),
    "ready.restore": _("Restored"),
    "failed.restore": _("Restore failed"),
    "ready.delete": _("Removed from the storage"),
    "failed.delete": _("Deletion failed"),
    "ready.verify": _("Verified"),
    "failed.verify": _("Verification failed"),
    "ready.new_volume": _("New volume ready"),
    "failed.new_volume": _("New volume failed"),
    "ready.clean_up": _("Left-overs are gone"),
    "failed.clean_up": _("Left-overs could not be removed"),
    # backups
    "backup.schedule": _("Backup schedule made"),
    "backup.change": _("Backup schedule changed"),
    "backup.pause": _("Backup schedule paused"),
    "backup.resume": _("Backup schedule resumed"),
    "backup.delete": _("Backup schedule deleted"),
    "backup.pin": _("Backup pinned or unpinned"),
    "backup.automatic": _("Automatic backups switched"),
    "backup.missed": _("Backup missed"),
    "backup.failed": _("Backup failed"),
    # money
    "wallet.move": _("Credits changed"),
    "price.set": _("Price set"),
    "price.delete": _("Planned price deleted"),
    "invoice.close": _("Months closed by an administrator"),
    # people
    "person.sign_in": _("Signed in"),
    "person.sign_in_failed": _("Sign-in failed"),
    "person.sign_out": _("Signed out"),
    "person.confirmed": _("Confirmed who it is"),
    "person.reset_asked": _("Link for a new password asked for"),
    "person.password": _("Password changed"),
    "person.email_asked": _("New e-mail asked for"),
    "person.email": _("E-mail changed"),
    "person.factor_added": _("Second factor added"),
    "person.factor_removed": _("Second factor removed"),
    "person.recovery_codes": _("Recovery codes made"),
    "person.session_ended": _("Session ended"),
    "person.change": _("Profile changed"),
    "person.join": _("Joined a project"),
    "role.change": _("Role changed"),
    "role.remove": _("Person removed from a project"),
    "role.leave": _("Left a project"),
    "invitation.send": _("Person invited"),
    "invitation.revoke": _("Invitation revoked"),
    # administrators
    "admin.add": _("Added by an administrator"),
    "admin.change": _("Changed by an administrator"),
    "admin.delete": _("Deleted by an administrator"),
    "impersonation.start": _("An administrator looks as this person"),
    "impersonation.end": _("An administrator stopped looking as this person"),
    # the portal itself
    "activity.forget": _("Old entries of the activity log removed"),
}
SIGN_INS = ("person.sign_in", "person.sign_in_failed")
SYSTEM = _("The portal")

NAME_LENGTH = 254
FORGOTTEN_AT_ONCE, BATCHES = 1000, 50


@dataclass
class Origin:
    """Of the request that is being answered. `before` and `after` are what an administrator's form changes."""

    address: str | None = None
    device: str = ""
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


def origin() -> Origin:
    """Without a request, as in a worker or a command, there is neither address nor device."""
    return _origin.get() or Origin()


@contextmanager
def coming_from(where: Origin) -> Iterator[None]:
    token = _origin.set(where)
    try:
        yield
    finally:
        _origin.reset(token)


def note(before: dict[str, Any], after: dict[str, Any]) -> None:
    """What a form of Django admin changes, for the entry that follows when Django logs the change."""
    where = _origin.get()
    if where is not None:
        where.before, where.after = before, after


def record(
    *,
    act: str,
    actor: User | None,
    thing: models.Model | None = None,
    customer: Customer | uuid.UUID | None = None,
    project: Project | uuid.UUID | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Activity:
    """Write down what is done, in the transaction that does it. Without an actor it was the portal itself.

    Customer and project follow from the thing where they are not given. `before` and `after` hold what changed, by the
    name of the field; they become JSON, so an object is kept as its text. One insert, and no more queries as long as
    the thing came with its project.
    """
    if act not in ACTS:
        raise ValueError(f"“{act}” is no entry of ACTS")
    project_id = project.pk if isinstance(project, Project) else project
    customer_id = customer.pk if isinstance(customer, Customer) else customer
    if thing is not None:
        project_id = project_id or (thing.pk if isinstance(thing, Project) else getattr(thing, "project_id", None))
        if customer_id is None:
            customer_id = thing.pk if isinstance(thing, Customer) else getattr(thing, "customer_id", None)
    if customer_id is None and project_id:
        known = project if isinstance(project, Project) else getattr(thing, "project", None)
        customer_id = (known or Project.objects.get(pk=project_id)).customer_id
    return Activity.objects.create(
        act=act,
        actor=actor,
        actor_name=str(actor)[:NAME_LENGTH] if actor else "",
        thing_kind=thing._meta.model_name if thing is not None else "",
        thing_id=str(thing.pk) if thing is not None else "",
        thing_name=str(thing)[:NAME_LENGTH] if thing is not None else "",
        customer_id=customer_id,
        project_id=project_id,
        address=origin().address,
        before=as_json(before or {}),
        after=as_json(after or {}),
    )


def kept_since(*, now: datetime) -> datetime | None:
    """The instant before which no entry is kept; it moves once a day. None where they are kept for good."""
    if not settings.ACTIVITY_KEPT_DAYS:
        return None
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=settings.ACTIVITY_KEPT_DAYS)


def forget_old(*, now: datetime) -> int:
    """Remove the entries that are older than ACTIVITY_KEPT_DAYS. Returns how many.

    The oldest first, a thousand in a transaction, together with an entry that says so; of very many some stay for the
    next time, so that nothing else waits for long.
    """
    since, count = kept_since(now=now), 0
    if since:
        for _batch in range(BATCHES):
            gone = forget_batch(since)
            count += gone
            if gone < FORGOTTEN_AT_ONCE:
                break
    return count


@transaction.atomic
def forget_batch(since: datetime) -> int:
    oldest = Activity.objects.filter(at__lt=since).order_by("at", "id").values_list("at", "pk")[:FORGOTTEN_AT_ONCE]
    found = list(oldest)
    gone, _models = Activity.objects.filter(pk__in=[pk for _at, pk in found]).delete()
    if gone:  # not by another process meanwhile
        record(act="activity.forget", actor=None, after={"entries": gone, "from": found[0][0], "until": found[-1][0]})
    return gone


def as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list | tuple | set | models.QuerySet):
        return [as_json(inner) for inner in value]
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value)


def label(act: str) -> str | Promise:
    return ACTS.get(act, act)


def explain(rows: Iterable[Activity]) -> list[Activity]:
    """The rows, each with `label`, `who`, and `changes`: [(field, before, after)]."""
    explained = list(rows)
    for row in explained:
        row.label = label(row.act)
        row.who = row.actor_name or SYSTEM
        names = dict.fromkeys([*row.before, *row.after])
        row.changes = [
            (name.replace("_", " "), said(row.before.get(name)), said(row.after.get(name))) for name in names
        ]
    return explained


def said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(said(inner) for inner in value)
    return "" if value is None else str(value)
