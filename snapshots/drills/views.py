"""Requesting and planning restore drills, and the page of one, which is the evidence of what it found."""

from functools import partial
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, override
from django.views.decorators.http import require_GET, require_http_methods, require_safe

from cng_portal.accounts.models import User
from cng_portal.accounts.requests import Request
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.pages import Order, page_of
from cng_portal.common.responses import csv_response
from cng_portal.common.templatetags.portal import poll_seconds
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import checks
from snapshots.backups.views import by_kind, get_schedule
from snapshots.errors import ActionRefused
from snapshots.models import BackupSchedule, Drill, DrillCheck, DrillPlan
from snapshots.storage.registry import get_driver
from snapshots.views.common import attempt, get_changeable, render_list, render_live, set_section, submit, version_of

from . import exports
from .forms import DrillPlanForm
from .plans import Target, drills_of, field_of, project_of, set_plan, snapshots_of
from .services import check_drillable, request_drill

NEWEST = Order(gettext_lazy("Newest first"), "created_at", descending=True)
SHOWN = 10

RELATED = (
    *("snapshot__volume", "snapshot__vm", "snapshot__location", "snapshot__project__customer"),
    *("operation", "requested_by"),
)


@require_http_methods(["GET", "POST"])
@submit_once
def start(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Ask by GET, start the drill by POST, and go to its page."""
    snapshot = get_changeable(request, snapshot_id)
    if drill := attempt(request, partial(request_drill, snapshot=snapshot, user=request.user)):
        messages.success(request, _("The restore drill of “%(name)s” has been requested.") % {"name": snapshot.name})
        return redirect("snapshots:drill", drill.pk)
    reason = ""
    try:
        check_drillable(snapshot)
    except ActionRefused as error:
        reason = str(error)
    reads_bytes = get_driver(snapshot.location).reads_bytes
    return render(
        request, "snapshots/drills/request.html", {"snapshot": snapshot, "reason": reason, "reads_bytes": reads_bytes}
    )


@require_GET
def drill(request: HttpRequest, drill_id: UUID) -> HttpResponse:
    drill = get_drill(request.user, drill_id)
    snapshot = drill.snapshot
    set_section(request, snapshot, "snapshots")
    operation = drill.operation
    disks = list(drill.disks.select_related("disk").prefetch_related("checks"))
    context = {
        "drill": drill,
        "snapshot": snapshot,
        "disks": disks,
        "was_anything_skipped": any(
            check.outcome == DrillCheck.Outcome.SKIPPED for disk in disks for check in disk.checks.all()
        ),
        "operation": operation,
        "is_live": drill.is_active,
        "poll_seconds": poll_seconds([operation]),
        "can_cancel": drill.is_active
        and operation is not None
        and operation.can_be_cancelled
        and request.user.can_change(snapshot.project_id),
        "can_see_source": snapshot.source.project_id in request.user.roles,
    }
    version = version_of(drill.result, operation and operation.state)
    return render_live(request, "snapshots/drills/drill.html", context, part="drill", poll="progress", version=version)


def get_drill(user: User, drill_id: UUID) -> Drill:
    return get_object_or_404(Drill.objects.visible_to(user).select_related(*RELATED), pk=drill_id)


@require_GET
def drill_pdf(request: HttpRequest, drill_id: UUID) -> HttpResponse:
    """Download the evidence of a drill that has ended."""
    drill = get_drill(request.user, drill_id)
    if drill.is_active:
        raise Http404
    with override(settings.LANGUAGE_CODE):  # The same document for every user.
        pdf = exports.drill_as_pdf(drill, request.user)
    return HttpResponse(
        pdf,
        content_type="application/pdf",
        headers={"Content-Disposition": f'attachment; filename="restore-drill-{drill.pk}.pdf"'},
    )


@require_GET
def drill_csv(request: HttpRequest, drill_id: UUID) -> StreamingHttpResponse:
    drill = get_drill(request.user, drill_id)
    rows = exports.rows(Drill.objects.filter(pk=drill.pk), request.user)
    return csv_response(f"restore-drill-{drill.pk}", exports.COLUMNS, rows)


@require_safe
def drills_csv(request: HttpRequest) -> StreamingHttpResponse:
    visible = Drill.objects.visible_to(request.user).order_by("-created_at", "-pk")
    return csv_response("restore-drills", exports.COLUMNS, exports.rows(visible, request.user))


@require_GET
def drills(request: HttpRequest) -> HttpResponse:
    """List every drill that the user sees, the newest first."""
    visible = Drill.objects.visible_to(request.user).select_related("snapshot", "requested_by", "operation")
    page = page_of(visible, NEWEST, request.GET)
    return render_list(request, "snapshots/drills/list.html", "drill-list", page, {}, {"rows": page.rows})


def volume_drills(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    visible = Volume.objects.visible_to(request.user).select_related("project__customer")
    return drills_of_target(request, get_object_or_404(visible, pk=volume_id))


def machine_drills(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    visible = VirtualMachine.objects.visible_to(request.user).select_related("project__customer")
    return drills_of_target(request, get_object_or_404(visible, pk=vm_id))


def schedule_drills(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    return drills_of_target(request, get_schedule(request.user, schedule_id))


@require_http_methods(["GET", "POST"])
@submit_once
def drills_of_target(request: Request, target: Target) -> HttpResponse:
    """Show the drills of a volume, machine or schedule, plan them, or start one of its newest snapshot (`now`)."""
    user, project_id = request.user, project_of(target)
    if request.method == "POST":
        checks.require_change(user, project_id)
    # One that was moved may be in a project in which the user only reads.
    snapshots = snapshots_of(target).filter(project__in=user.changeable_project_ids)
    newest = snapshots.select_related("location", "project__customer").first()
    plan = DrillPlan.objects.filter(**{field_of(target): target}).first()
    answers = request.POST if request.method == "POST" and "now" not in request.POST else None
    form = DrillPlanForm(
        answers,
        initial={
            "interval": plan.interval if plan else "",
            "pick": DrillPlanForm.RANDOM if plan and plan.random_days else DrillPlanForm.NEWEST,
            "random_days": plan.random_days if plan else None,
        },
    )
    if "now" in request.POST and newest:
        if drill := attempt(request, partial(request_drill, snapshot=newest, user=user)):
            messages.success(request, _("The restore drill of “%(name)s” has been requested.") % {"name": newest.name})
            return redirect("snapshots:drill", drill.pk)

    def save() -> bool:
        set_plan(
            target=target,
            user=user,
            interval=form.cleaned_data["interval"],
            random_days=form.cleaned_data["random_days"],
        )
        return True

    if answers and submit(request, form, save):
        messages.success(request, _("The plan of restore drills is saved."))
        return redirect(request.path)
    visible = drills_of(target).filter(snapshot__project__in=list(user.roles))
    name, url = name_and_url(target)
    context = {
        "name": name,
        "back": url,
        "form": form,
        "plan": plan,
        "newest": newest,
        "can_change": user.can_change(project_id),
        "rows": list(visible.select_related("snapshot", "requested_by", "operation")[:SHOWN]),
    }
    return render(request, "snapshots/drills/target.html", context)


def name_and_url(target: Target) -> tuple[str, str]:
    if isinstance(target, BackupSchedule):
        title = by_kind(target, _("Backup of %(name)s"), _("Snapshots of %(name)s"))
        return title, reverse("snapshots:schedule", args=[target.pk])
    page = "snapshots:volume" if isinstance(target, Volume) else "snapshots:machine"
    return target.name, reverse(page, args=[target.pk])
