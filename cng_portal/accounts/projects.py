"""Creating and renaming projects.

Each function checks, writes and records the action in one transaction that holds the customer's lock. It raises
ValidationError, with a sentence for the user, where the name can't be used.
"""

from datetime import datetime

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from cng_portal.activity import services as activity
from cng_portal.common.names import clean_name, fold_name

from .models import Customer, Membership, Project, Role, User
from .roles import require_owner
from .services import lock_customer

# Per customer, archived ones too: projects cost nothing, so they need a limit.
MAX_PROJECTS = 200


def check_project_name(customer: Customer, name: str, *, project: Project | None = None) -> str:
    """Return the cleaned name. `project` is the one that is renamed. The caller holds the customer's lock."""
    name = clean_name(name)
    others = customer.projects.exclude(pk=project.pk) if project else customer.projects.all()
    if any(fold_name(other) == fold_name(name) for other in others.values_list("name", flat=True)):
        raise ValidationError(_("Your account already has a project with this name. Choose another one."))
    return name


def require_customer_owner(user: User) -> None:
    """Raises PermissionDenied unless the user owns a project of their own customer."""
    if not user.owns_customer:
        raise PermissionDenied(_("Only owners can create projects. Ask an owner of one of your projects."))


@transaction.atomic
def create_project(*, name: str, by: User) -> Project:
    """Create a project of the customer of `by`, who owns it. Raises PermissionDenied unless `by` owns another one."""
    customer = Customer.objects.get(pk=by.customer_id)
    lock_customer(customer.pk)
    require_customer_owner(User.objects.get(pk=by.pk))
    if customer.projects.count() >= MAX_PROJECTS:
        sentence = _("Your account has %(limit)s projects, which is the limit. Rename one that you no longer use.")
        raise ValidationError(sentence % {"limit": MAX_PROJECTS})
    project = Project.objects.create(customer=customer, name=check_project_name(customer, name))
    Membership.objects.create(project=project, user=by, role=Role.OWNER)
    activity.record(action="project.create", actor=by, target=project)
    return project


@transaction.atomic
def rename_project(*, project: Project, name: str, by: User) -> None:
    """Raises PermissionDenied unless `by` owns the project."""
    lock_customer(project.customer_id)
    require_owner(User.objects.get(pk=by.pk), project)
    project = Project.objects.select_related("customer").get(pk=project.pk)
    old, project.name = project.name, check_project_name(project.customer, name, project=project)
    project.save(update_fields=["name"])
    activity.record(
        action="project.rename", actor=by, target=project, before={"name": old}, after={"name": project.name}
    )


@transaction.atomic
def share_files(*, project: Project, is_shared: bool, by: User, at: datetime) -> None:
    """Let viewers read the files in the project's snapshots, or no longer. Raises PermissionDenied unless `by` owns it.

    A second call with the same choice changes nothing.
    """
    lock_customer(project.customer_id)
    require_owner(User.objects.get(pk=by.pk), project)
    others = Project.objects.filter(pk=project.pk, files_shared_at__isnull=is_shared)
    if others.update(files_shared_at=at if is_shared else None):
        activity.record(action="project.share_files", actor=by, target=project, after={"viewers_read_files": is_shared})
