"""What is in a project, and archiving it."""

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Project, User
from cng_portal.accounts.roles import require_owner
from cng_portal.accounts.services import lock_customer
from cng_portal.activity import services as activity
from cng_portal.inventory.models import VirtualMachine, Volume

from .errors import InvalidState
from .models import Kind, Snapshot


@dataclass(frozen=True, kw_only=True)
class Contents:
    """How many of each there are; what is deleted or failed does not count."""

    machines: int
    volumes: int
    snapshots: int
    backups: int

    @property
    def is_empty(self) -> bool:
        return not any([self.machines, self.volumes, self.snapshots, self.backups])


def count_contents(project: Project) -> Contents:
    """Three queries."""
    snapshots = Snapshot.objects.counted().filter(project=project, deleted_at=None)
    backups = snapshots.filter(kind=Kind.BACKUP).count()
    return Contents(
        machines=VirtualMachine.objects.present().filter(project=project).count(),
        volumes=Volume.objects.present().filter(project=project).count(),
        snapshots=snapshots.count() - backups,
        backups=backups,
    )


def archive_project(*, project: Project, by: User, at: datetime) -> None:
    """Hide an empty project from every choice; its bills and its activity stay. Archiving it again changes nothing.

    Raises InvalidState where something is in it or no other project would be left, PermissionDenied unless `by` owns it.
    """
    with transaction.atomic():
        lock_customer(project.customer_id)
        require_owner(User.objects.get(pk=by.pk), project)
        if not count_contents(project).is_empty:
            raise InvalidState(_("“%(name)s” isn't empty, so it can't be archived.") % {"name": project.name})
        others = Project.objects.filter(customer=project.customer_id, archived_at=None).exclude(pk=project.pk)
        if not others.exists():
            raise InvalidState(_("This is your last project, so it can't be archived."))
        if Project.objects.filter(pk=project.pk, archived_at=None).update(archived_at=at):
            activity.record(action="project.archive", actor=by, target=project)


def unarchive_project(*, project: Project, by: User) -> None:
    """Raises PermissionDenied unless `by` owns it."""
    with transaction.atomic():
        lock_customer(project.customer_id)
        require_owner(User.objects.get(pk=by.pk), project)
        if Project.objects.filter(pk=project.pk, archived_at__isnull=False).update(archived_at=None):
            activity.record(action="project.unarchive", actor=by, target=project)
