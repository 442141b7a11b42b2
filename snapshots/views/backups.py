"""Schedules of backups: the list, the page of one with what became of its runs, and what can be done with it.

The copies are snapshots of kind BACKUP, so their list, page and acts are those of views/snapshots.py; only to keep one for
ever is here, because nothing else is ever deleted by itself.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from cng_portal.accounts.models import User
from cng_portal.common.responses import is_fragment
from cng_portal.inventory.models import VirtualMachine
from snapshots import backups, lists, services, slots, wizard
from snapshots.forms import RHYTHM, ScheduleFilterForm, ScheduleForm, zone_name
from snapshots.models import BackupRun, BackupSchedule, Kind, Snapshot, State

from .common import (
    Action,
    automatic_sentence,
    price_of_kept,
    render_list,
    render_live,
    version_of,
)
from .picture import in_words, picture_of
from .snapshots import backup_tabs, get_changeable

# --- list --------------------------------------------------------------------------------------------------------------


@require_GET
def schedules(request: HttpRequest) -> HttpResponse:
    user = request.user
    choices = lists.filter_choices(user, source="vm", wanted=request.GET.get("vm", ""))
    form = ScheduleFilterForm(request.GET, user=user, choices=choices)
    mine = BackupSchedule.objects.visible_to(user).present().select_related("vm__project__customer", "vm__location")
    page = lists.page_of(form.narrow(lists.with_last_run(mine)), lists.NEWEST_SCHEDULE, request.GET)
    context = {
        "form": form,
        "rows": explain_schedules(page.rows, user),
        "can_take": bool(user.changeable_project_ids),
        "tabs": backup_tabs("schedules"),
    }
    return render_list(request, "snapshots/schedules.html", "schedule-list", page, form.chosen, context)


def explain_schedules(found: list[BackupSchedule], user: User) -> list[BackupSchedule]:
    """Add to schedules of lists.with_last_run: `zone` ("Asia/Yangon (UTC+06:30)"), `last_label` and `has_menu`."""
    for schedule in found:
        schedule.zone = zone_name(schedule.vm.project.customer.zone)
        schedule.last_label = BackupRun.State(schedule.last_state).label if schedule.last_state else ""
        schedule.has_menu = is_changeable(schedule, user)
    return found


def is_changeable(schedule: BackupSchedule, user: User) -> bool:
    """Only administrators change automatic backups."""
    return not (schedule.is_automatic or schedule.deleted_at) and user.can_change(schedule.vm.project_id)


def actions_for(schedule: BackupSchedule, user: User) -> list[Action]:
    """List what the user can do with the schedule now; nothing for a viewer."""
    if not is_changeable(schedule, user):
        return []
    toggle = (_("Resume"), "resume_schedule", "play") if schedule.paused_at else (_("Pause"), "pause_schedule", "pause")
    offered = [
        (_("Run now"), "run_schedule", "bolt"),
        (_("Edit"), "edit_schedule", "pencil-square"),
        toggle,
        (_("Delete"), "delete_schedule", "trash"),
    ]
    return [
        Action(name, label, reverse(f"snapshots:{name}", args=[schedule.pk]), icon, danger=name == "delete_schedule")
        for label, name, icon in offered
    ]


@require_GET
def schedule_menu(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    """The menu of a row, which asks for it when it is opened."""
    found = get_schedule(request.user, schedule_id)
    if not is_fragment(request):
        return redirect("snapshots:schedule", schedule_id)
    return render(request, "partials/menu_items.html", {"actions": actions_for(found, request.user)})


# --- page --------------------------------------------------------------------------------------------------------------


def get_schedule(user: User, schedule_id: UUID) -> BackupSchedule:
    visible = BackupSchedule.objects.visible_to(user)
    return get_object_or_404(
        visible.select_related("vm__project__customer", "vm__location", "created_by"), pk=schedule_id
    )


@require_GET
def schedule(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    """Also of one that is deleted: its runs are still there."""
    user = request.user
    found = get_schedule(user, schedule_id)
    vm, zone = found.vm, found.vm.project.customer.zone
    runs = BackupRun.objects.filter(schedule=found).select_related("snapshot", "requested_by")
    page = lists.page_of(runs, lists.NEWEST_RUN, request.GET)
    counted = copies_of(found)
    version = version_of(
        found.paused_at, found.deleted_at, found.next_run_at, [(run.pk, run.state, run.tries) for run in page.rows]
    )
    context = {
        "schedule": found,
        "vm": vm,
        "zone": zone_name(zone),
        "runs": page.rows,
        "total": page.total,
        "has_more": page.has_more,
        "pages": page.urls(request.path, {}),
        "is_live": any(run.is_unfinished for run in page.rows),
        "actions": actions_for(found, user),
        "can_change": user.can_change(vm.project_id),
        "copies": len(counted),
        "picture": picture_of(rhythm_of(found), zone, now=timezone.now(), existing=counted)
        if found.next_run_at
        else None,
        "price": price_of_copies(found),
    }
    return render_live(request, "snapshots/schedule.html", context, part="schedule", poll="runs", version=version)


def copies_of(schedule: BackupSchedule) -> list[Any]:
    """The slots of the copies that it counts, oldest first."""
    counted = Snapshot.objects.filter(
        run__schedule=schedule, run__state=BackupRun.State.DONE, state=State.READY, damaged_at=None, kept=False
    )
    return list(counted.order_by("run__number").values_list("run__slot", flat=True))


def rhythm_of(schedule: BackupSchedule) -> dict[str, Any]:
    return {name: getattr(schedule, name) for name in RHYTHM}


def price_of_copies(schedule: BackupSchedule) -> str:
    """What its copies cost, as a sentence."""
    if schedule.is_automatic:
        return automatic_sentence(schedule.vm)
    try:
        quote = services.quote_for(schedule.vm, kind=Kind.BACKUP)
    except services.NotSold as refusal:
        return str(refusal)
    return price_of_kept(quote, schedule.keep)


# --- acts --------------------------------------------------------------------------------------------------------------


@require_POST
def back_up(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """The shortcut from a machine: the wizard with three answers given."""
    vm = get_object_or_404(VirtualMachine.objects.visible_to(request.user).select_related("project"), pk=vm_id)
    services.require_change(request.user, vm.project_id)
    return redirect(wizard.url(wizard.start(request.user, kind=Kind.BACKUP, source=vm), "schedule"))


def get_changeable_schedule(user: User, schedule_id: UUID) -> BackupSchedule:
    """For an act: 404 for a stranger and for what is deleted, 403 with an explanation for a viewer."""
    found = get_schedule(user, schedule_id)
    if found.deleted_at:
        raise Http404
    services.require_change(user, found.vm.project_id)
    return found


@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    found = get_changeable_schedule(request.user, schedule_id)
    zone = found.vm.project.customer.zone
    form = ScheduleForm(request.POST or None, zone=zone, initial=wizard.FIRST_RHYTHM | given(rhythm_of(found)))
    if request.method == "POST" and form.is_valid() and "preview" not in request.POST:
        try:
            changed = backups.edit_schedule(schedule=found, user=request.user, **(form.rhythm or {}))
        except services.Refusal as refusal:
            form.add_error(None, str(refusal))
        else:
            messages.success(
                request,
                _("The backup of “%(vm)s” runs like this now: %(when)s.") % {"vm": found.vm.name, "when": changed.when},
            )
            return redirect("snapshots:schedule", found.pk)
    rhythm = form.rhythm
    context = {
        "schedule": found,
        "form": form,
        "zone": zone_name(zone),
        "picture": rhythm and picture_of(rhythm, zone, now=timezone.now(), existing=copies_of(found)),
        "action": request.path,
    }
    return render(request, "snapshots/edit_schedule.html", context)


def given(rhythm: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rhythm.items() if value is not None}


def act(
    request: HttpRequest,
    found: BackupSchedule,
    do: Callable[[], object],
    *,
    heading: str,
    title: str,
    consequences: list[str],
    button: str,
    done: str,
    danger: bool = False,
) -> HttpResponse:
    """A page that asks, and does it when it is answered."""
    problems = []
    if request.method == "POST":
        try:
            do()
        except services.Refusal as refusal:
            problems = [{"id": "", "message": str(refusal)}]
        else:
            messages.success(request, done)
            return redirect("snapshots:schedule", found.pk)
    context = {
        "schedule": found,
        "heading": heading,
        "title": title,
        "consequences": consequences,
        "button": button,
        "danger": "" if danger else "no",
        "problems": problems,
        "action": request.path,
    }
    return render(request, "snapshots/schedule_act.html", context)


@require_http_methods(["GET", "POST"])
def pause(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, found = request.user, get_changeable_schedule(request.user, schedule_id)
    return act(
        request,
        found,
        lambda: backups.pause_schedule(schedule=found, user=user),
        heading=_("Pause backup"),
        title=_("Pause the backup of “%(name)s”?") % {"name": found.vm.name},
        consequences=[
            _("No more copies are taken until you resume it."),
            _("The copies that are there stay, and are charged as before."),
        ],
        button=_("Pause"),
        done=_("The backup of “%(name)s” is paused.") % {"name": found.vm.name},
    )


@require_http_methods(["GET", "POST"])
def resume(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, found = request.user, get_changeable_schedule(request.user, schedule_id)
    zone = found.vm.project.customer.zone
    day, clock = in_words(slots.next_slot(found.rule, zone, timezone.now()), zone)
    return act(
        request,
        found,
        lambda: backups.resume_schedule(schedule=found, user=user),
        heading=_("Resume backup"),
        title=_("Resume the backup of “%(name)s”?") % {"name": found.vm.name},
        consequences=[
            _("The next copy is taken on %(day)s at %(time)s.") % {"day": day, "time": clock},
            _("What was left out while it was paused is not caught up."),
        ],
        button=_("Resume"),
        done=_("The backup of “%(name)s” runs again.") % {"name": found.vm.name},
    )


@require_http_methods(["GET", "POST"])
def run(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, found = request.user, get_changeable_schedule(request.user, schedule_id)
    return act(
        request,
        found,
        lambda: backups.run_now(schedule=found, user=user),
        heading=_("Run backup now"),
        title=_("Take a copy of “%(name)s” now?") % {"name": found.vm.name},
        consequences=[
            price_of_copies(found),
            ngettext(
                "It counts like any other: %(count)s copy is kept, and an older one makes room once this one is verified.",
                "It counts like any other: %(count)s copies are kept, and the oldest makes room once this one is verified.",
                found.keep,
            )
            % {"count": found.keep},
        ],
        button=_("Run now"),
        done=_("A copy of “%(name)s” is being taken.") % {"name": found.vm.name},
    )


@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, found = request.user, get_changeable_schedule(request.user, schedule_id)
    count = Snapshot.objects.filter(run__schedule=found, deleted_at=None).count()
    stay = ngettext(
        "Its %(count)s copy stays and is charged until you delete it.",
        "Its %(count)s copies stay and are charged until you delete them.",
        count,
    ) % {"count": count}
    return act(
        request,
        found,
        lambda: backups.delete_schedule(schedule=found, user=user),
        heading=_("Delete schedule"),
        title=_("Delete the schedule of “%(name)s”?") % {"name": found.vm.name},
        consequences=[
            _("No more copies are taken, and none is deleted by itself any more."),
            stay if count else _("It has no copies."),
        ],
        button=_("Delete schedule"),
        done=_("The schedule of “%(name)s” is deleted. Its copies stay.") % {"name": found.vm.name}
        if count
        else _("The schedule of “%(name)s” is deleted.") % {"name": found.vm.name},
        danger=True,
    )


@require_http_methods(["GET", "POST"])
def keep(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Keep a copy for ever, or let its schedule replace it again."""
    found = get_changeable(request, snapshot_id)
    if found.kind != Kind.BACKUP:
        raise Http404
    problems = []
    # what was asked, and not what it is by now: the second click changes nothing
    wanted = request.POST.get("kept") == "yes"
    if request.method == "POST":
        try:
            backups.keep_copy(snapshot=found, kept=wanted, user=request.user)
        except services.Refusal as refusal:
            problems = [{"id": "", "message": str(refusal)}]
        else:
            text = (
                _("“%(name)s” is kept for ever.") if wanted else _("“%(name)s” makes room like any other copy again.")
            )
            messages.success(request, text % {"name": found.name})
            return redirect("snapshots:snapshot", found.pk)
    return render(request, "snapshots/keep.html", {"snapshot": found, "problems": problems})
