"""Projects: the list, and the pages of one: contents, members, limits, spend, renaming and archiving."""

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.contrib import messages
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from billing.access import billed_customer
from billing.summary import spend_by_project
from cng_portal.accounts import roles
from cng_portal.accounts.forms import ProjectForm
from cng_portal.accounts.models import Membership, Project, Role, User
from cng_portal.accounts.projects import create_project, rename_project, require_customer_owner, share_files
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.money import format_amount
from cng_portal.inventory.models import VirtualMachine
from snapshots.projects import Contents, archive_project, count_contents, unarchive_project

from .common import attempt, submit
from .limits import quota_uses, with_usage


@dataclass(frozen=True, kw_only=True)
class ProjectRow:
    """A project in the list. `spend` is this month's, empty for users who can't see the bills."""

    project: Project
    role: str
    spend: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """The number of a project's resources of one kind, and the URL of their list."""

    label: str
    count: int
    icon: str
    url: str


def spend_of(user: User) -> dict[UUID, str]:
    """Return {project ID: this month's spend}, empty for users who can't see the bills."""
    customer = billed_customer(user)
    if customer is None:
        return {}
    spend = spend_by_project(customer=customer, at=timezone.now())
    projects = [project.id for project in user.project_roles if project.customer_id == customer.pk]
    return {pk: format_amount(spend.get(pk, 0), customer.currency) for pk in projects}


def listed_projects(user: User) -> QuerySet[Project]:
    """Annotate the user's projects with `with_usage`, `machine_count` and `member_count`."""
    machines = VirtualMachine.objects.present().filter(project=OuterRef("pk")).order_by().values("project")
    members = Membership.objects.filter(project=OuterRef("pk"), user__is_active=True).order_by().values("project")
    return (
        with_usage(Project.objects.visible_to(user), "project")
        .annotate(
            machine_count=Coalesce(Subquery(machines.annotate(n=Count("pk")).values("n")), 0),
            member_count=Coalesce(Subquery(members.annotate(n=Count("pk")).values("n")), 0),
        )
        .select_related("customer")
        .order_by("name", "pk")
    )


@require_safe
def projects(request: HttpRequest) -> HttpResponse:
    user = request.user
    spend = spend_of(user)
    rows = [
        ProjectRow(project=project, role=Role(user.roles[project.pk]).label, spend=spend.get(project.pk, ""))
        for project in listed_projects(user)
    ]
    context = {
        "rows": [row for row in rows if row.project.archived_at is None],
        "archived": [row for row in rows if row.project.archived_at],
        "has_spend": bool(spend),
        "many_customers": len(user.customer_ids) > 1,
        "can_create_project": user.owns_customer,
    }
    return render(request, "projects/projects.html", context)


def get_project(user: User, project_id: UUID) -> Project:
    return get_object_or_404(Project.objects.visible_to(user).select_related("customer"), pk=project_id)


def get_own_project(user: User, project_id: UUID) -> Project:
    """404 for strangers, 403 for members who aren't owners."""
    project = get_project(user, project_id)
    roles.require_owner(user, project)
    return project


def list_contents(project: Project, contents: Contents) -> list[Content]:
    def content(label: str, count: int, icon: str, name: str) -> Content:
        return Content(label=label, count=count, icon=icon, url=f"{reverse(name)}?project={project.pk}")

    return [
        content(_("Instances"), contents.machines, "server", "snapshots:machines"),
        content(_("Volumes"), contents.volumes, "circle-stack", "snapshots:volumes"),
        content(_("Snapshots"), contents.snapshots, "camera", "snapshots:volume_snapshots"),
        content(_("Backups"), contents.backups, "archive-box", "snapshots:backups"),
        content(_("Schedules"), contents.schedules, "calendar-days", "snapshots:schedules"),
    ]


@require_safe
def project(request: HttpRequest, project_id: UUID) -> HttpResponse:
    user = request.user
    visible = with_usage(Project.objects.visible_to(user), "project").select_related("customer")
    project = get_object_or_404(visible, pk=project_id)
    contents = count_contents(project)
    role = Role(user.roles[project.pk])
    context = {
        "project": project,
        "is_owner": role == Role.OWNER,
        "role": role.label,
        "contents": list_contents(project, contents),
        "uses": quota_uses(project),
        "spend": spend_of(user).get(project.pk, ""),
        "statement_url": f"{reverse('billing:statement')}?project={project.pk}",
        "memberships": project.memberships.select_related("user").order_by("user__name", "user__email"),
        "invitations": roles.open_invitations().filter(project=project).select_related("mail").order_by("email"),
    }
    return render(request, "projects/project.html", context)


@require_http_methods(["GET", "POST"])
@submit_once
def new(request: HttpRequest) -> HttpResponse:
    user = request.user
    require_customer_owner(user)
    form = ProjectForm(request.POST or None)
    if project := submit(request, form, lambda: create_project(**form.cleaned_data, by=user), field="name"):
        messages.success(request, _("The project “%(name)s” is ready.") % {"name": project.name})
        return redirect("project", project.pk)
    return render(request, "projects/form.html", {"form": form})


@require_http_methods(["GET", "POST"])
def rename(request: HttpRequest, project_id: UUID) -> HttpResponse:
    project = get_own_project(request.user, project_id)
    form = ProjectForm(request.POST or None, initial={"name": project.name})

    def save() -> bool:
        rename_project(project=project, **form.cleaned_data, by=request.user)
        return True

    if submit(request, form, save, field="name"):
        messages.success(request, _("The project was renamed."))
        return redirect("project", project.pk)
    return render(request, "projects/form.html", {"form": form, "project": project})


@require_POST
def share(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Let viewers read files, or no longer: `is_shared` is "yes" or "no"."""
    project = get_own_project(request.user, project_id)
    choice = request.POST.get("is_shared")
    if choice not in ("yes", "no"):
        messages.error(request, _("Choose whether viewers can read files."))
        return redirect("project", project.pk)
    share_files(project=project, is_shared=choice == "yes", by=request.user, at=timezone.now())
    if choice == "yes":
        messages.success(request, _("Viewers of this project can now read the files in its snapshots."))
    else:
        messages.success(request, _("Viewers of this project can no longer read files."))
    return redirect("project", project.pk)


@require_http_methods(["GET", "POST"])
def archive(request: HttpRequest, project_id: UUID) -> HttpResponse:
    project = get_own_project(request.user, project_id)
    if attempt(request, partial(archive_project, project=project, by=request.user, at=timezone.now())):
        messages.success(request, _("“%(name)s” is archived.") % {"name": project.name})
        return redirect("projects")
    contents = count_contents(project)
    context = {
        "project": project,
        "is_empty": contents.is_empty,
        "contents": [content for content in list_contents(project, contents) if content.count],
    }
    return render(request, "projects/archive.html", context)


@require_POST
def unarchive(request: HttpRequest, project_id: UUID) -> HttpResponse:
    project = get_own_project(request.user, project_id)
    unarchive_project(project=project, by=request.user)
    messages.success(request, _("“%(name)s” can be used again.") % {"name": project.name})
    return redirect("project", project.pk)
