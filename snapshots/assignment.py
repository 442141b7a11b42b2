"""Which project a snapshot belongs to, who can read its data there, and moving it to another one."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.usage import change_usage
from cng_portal.accounts.models import Membership, Project, User
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.common.templatetags.portal import minute

from . import checks, limits
from .errors import InvalidState
from .locks import get_lock
from .models import COUNTED_STATES, Snapshot, State

# Of a list of names. The others are counted.
NAMES_SHOWN = 5


@dataclass(frozen=True)
class ReaderNotice:
    """For partials/notice.html."""

    text: str
    tone: str


def find_new_readers(project: Project, source_project_ids: Iterable[UUID]) -> list[str]:
    """Return the names of the project's members who have no role in one of the volumes' projects. Two queries."""
    others = set(source_project_ids) - {project.pk}
    members = Membership.objects.filter(user__is_active=True)
    with_role = dict.fromkeys(others, frozenset[UUID]())
    for project_id, user_id in members.filter(project__in=others).values_list("project_id", "user_id"):
        with_role[project_id] |= {user_id}
    readers = members.filter(project=project).select_related("user").order_by("user__name", "user__email")
    return [str(reader.user) for reader in readers if any(reader.user_id not in users for users in with_role.values())]


def explain_new_readers(project: Project, sources: Iterable[Project]) -> ReaderNotice | None:
    """Say who will be able to read data of other projects' volumes in `project`. None if all are of `project`."""
    others = {source.pk: source.name for source in sources if source.pk != project.pk}
    if not others:
        return None
    names = {"project": project.name, "source": ", ".join(sorted(others.values()))}
    readers = find_new_readers(project, others)
    if not readers:
        text = _(
            "Every member of “%(project)s” has a role in “%(source)s” too, so nobody else will be able to read the data."
        )
        return ReaderNotice(text % names, "info")
    shown, more = ", ".join(readers[:NAMES_SHOWN]), len(readers) - NAMES_SHOWN
    if more > 0:
        text = ngettext("%(names)s and %(count)s more", "%(names)s and %(count)s more", more)
        shown = text % {"names": shown, "count": more}
    text = ngettext(
        "This member of “%(project)s” has no role in “%(source)s”, but will be able to read the data: %(readers)s.",
        "These members of “%(project)s” have no role in “%(source)s”, but will be able to read the data: %(readers)s.",
        len(readers),
    )
    return ReaderNotice(text % (names | {"readers": shown}), "warning")


def move_snapshot(*, snapshot: Snapshot, user: User, project: Project, at: datetime | None = None) -> Snapshot:
    """Move the snapshot to another project of the same customer. No-op if it is there already.

    Only users with a role in the new project see it. It is charged there from the next unpaid hour on. What a
    schedule took is pinned, because a schedule deletes nothing outside its project. Raises InvalidState, QuotaExceeded.
    """
    with transaction.atomic():
        lock_customer(snapshot.customer_id)
        snapshot = checks.reload_snapshot(snapshot)
        before, project = snapshot.project, checks.reload_project(project, snapshot.customer_id)
        user = User.objects.get(pk=user.pk)
        checks.require_change(user, before.pk)
        checks.require_change(user, project.pk)
        if before.pk == project.pk:
            return snapshot
        check_movable(snapshot)
        if snapshot.state in COUNTED_STATES:
            limits.check_moved_snapshot_quota(project, snapshot.size_gb)
        snapshot.project = project
        snapshot.is_pinned = snapshot.is_pinned or snapshot.is_scheduled
        snapshot.expiry_announced_at = None  # The new project's members are notified too.
        snapshot.save(update_fields=["project", "is_pinned", "expiry_announced_at"])
        change_usage(resource_id=snapshot.pk, kind=snapshot.service_kind, at=at or timezone.now(), project=project)
        # One entry for the members of each project, who may not know the other one.
        activity.record(
            action="snapshot.move", actor=user, target=snapshot, project=before, before={"project": before.name}
        )
        activity.record(action="snapshot.move", actor=user, target=snapshot, after={"project": project.name})
    return snapshot


def check_movable(snapshot: Snapshot) -> None:
    """Raise InvalidState for automatic backups, what is being deleted, and what a schedule is still working on."""
    if reason := why_bound_to_project(snapshot):
        raise InvalidState(reason)
    if snapshot.state in (State.DELETING, State.DELETED):
        raise InvalidState(_("The snapshot is being deleted, so it can't be moved."))
    if snapshot.is_scheduled and (snapshot.state != State.READY or snapshot.run.is_unfinished):
        raise InvalidState(_("Its schedule hasn't finished with it yet. Move it once it is ready and verified."))
    if lock := get_lock(snapshot):  # Else a member could move it to a project of their own, and lift the lock there.
        raise InvalidState(
            _("“%(name)s” is locked, so it can't be moved before %(time)s.")
            % {"name": snapshot.name, "time": minute(lock.until)}
        )


def why_bound_to_project(snapshot: Snapshot) -> str:
    """Return why it can't be moved in any state, or an empty string."""
    if snapshot.is_charged:
        return ""
    return _("Automatic backups are paid for with their instance, so they stay in their project.")


def is_outside_schedule(snapshot: Snapshot) -> bool:
    """Return whether a schedule took it and it was moved out of the schedule's project."""
    return snapshot.is_scheduled and snapshot.run.schedule.home.pk != snapshot.project_id
