"""The contents of projects, and archiving empty ones."""

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
from .models import BackupSchedule, Kind, Snapshot


@dataclass(frozen=True, kw_only=True)
class Contents:
    """How many resources a project has, without deleted and failed ones."""

    machines: int
    volumes: int
    snapshots: int
    backups: int
    schedules: int

    @property
    def is_empty(self) -> bool:
        return not any([self.machines, self.volumes, self.snapshots, self.backups, self.schedules])


def count_contents(project: Project) -> Contents:
    """Five queries."""
    snapshots = Snapshot.objects.counted().filter(project=project, deleted_at=None)
    backups = snapshots.filter(kind=Kind.BACKUP).count()
    return Contents(
        machines=VirtualMachine.objects.present().filter(project=project).count(),
        volumes=Volume.objects.counted().filter(project=project).count(),
        snapshots=snapshots.count() - backups,
        backups=backups,
        # Of machines and volumes of other projects, too.
        schedules=BackupSchedule.objects.present().filter(project=project).count(),
    )


def archive_project(*, project: Project, by: User, at: datetime) -> Project:
    """Archive an empty project, in which nothing can be created afterwards. Archiving it again changes nothing.

    Raises InvalidState if it isn't empty or is the customer's last one, and PermissionDenied unless `by` owns it.
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
    return project


def unarchive_project(*, project: Project, by: User) -> None:
    """Undo `archive_project`. Raises PermissionDenied unless `by` owns the project."""
    with transaction.atomic():
        lock_customer(project.customer_id)
        require_owner(User.objects.get(pk=by.pk), project)
        if Project.objects.filter(pk=project.pk, archived_at__isnull=False).update(archived_at=None):
            activity.record(action="project.unarchive", actor=by, target=project)
