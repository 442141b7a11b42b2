"""The pages of schedules: their list, the page of one with its runs, and its actions; and pinning backups and snapshots.

Backups themselves are snapshots of kind BACKUP: their list, page and other actions are in snapshots/views.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
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

from cng_portal.accounts.models import BillingType, User
from cng_portal.common.pages import page_of
from cng_portal.common.responses import is_fragment
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import checks, lists
from snapshots.deletion_preview import describe, preview_deletion
from snapshots.errors import NotSold
from snapshots.models import BackupRun, BackupSchedule, Kind, Snapshot, State, source_fields
from snapshots.recycle_bin import bin_days
from snapshots.views.common import (
    attempt,
    automatic_price_sentence,
    get_changeable,
    price_of_backups,
    render_list,
    render_live,
    start_wizard,
    submit,
    version_of,
)
from snapshots.views.rows import Action
from snapshots.views.snapshot_list import backup_tabs
from snapshots.wizard import wizard

from .forms import EditScheduleForm, ScheduleFilterForm, ScheduleLockForm, zone_name
from .occurrences import next_occurrence
from .preview_chart import build_preview_chart, format_day_and_time
from .retention import pin_backup, unpin_backup
from .schedules import (
    SCHEDULE_FIELDS,
    delete_schedule,
    edit_schedule,
    pause_schedule,
    resume_schedule,
    run_now,
    set_lock_days,
)


@require_GET
def schedules(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = ScheduleFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    visible = BackupSchedule.objects.visible_to(user).present().with_related()
    page = page_of(form.narrow(visible), lists.NEWEST_SCHEDULE, request.GET)
    context = {
        "form": form,
        "rows": build_schedule_rows(page.rows, user),
        "can_take": bool(user.changeable_project_ids),
        "is_first": not page.rows and not BackupSchedule.objects.visible_to(user).exists(),
        "tabs": backup_tabs("schedules"),
    }
    return render_list(request, "snapshots/schedules.html", "schedule-list", page, form.chosen, context)


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule with its newest finished run, if any. `zone` is such as "Asia/Yangon (UTC+06:30)"."""

    schedule: BackupSchedule
    zone: str
    has_menu: bool
    last_state: str | None = None
    last_scheduled_at: datetime | None = None
    last_reason: str | None = None

    @property
    def last_label(self) -> str:
        return str(BackupRun.State(self.last_state).label) if self.last_state else ""


def build_schedule_rows(schedules: list[BackupSchedule], user: User) -> list[ScheduleRow]:
    last_runs = lists.with_last_run(BackupSchedule.objects.filter(pk__in=[schedule.pk for schedule in schedules]))
    by_schedule = {
        pk: (state, scheduled_at, reason)
        for pk, state, scheduled_at, reason in last_runs.values_list(
            "pk", "last_state", "last_scheduled_at", "last_reason"
        )
    }
    return [
        ScheduleRow(
            schedule,
            zone_name(schedule.zone),
            is_changeable(schedule, user),
            *by_schedule.get(schedule.pk, ()),
        )
        for schedule in schedules
    ]


def is_changeable(schedule: BackupSchedule, user: User) -> bool:
    """Only administrators change automatic backups. Others need rights in both projects."""
    if schedule.is_automatic or schedule.deleted_at:
        return False
    return user.can_change(schedule.home.pk) and user.can_change(schedule.source.project_id)


def schedule_actions(schedule: BackupSchedule, user: User) -> list[Action]:
    """List what the user can do with the schedule now, the most likely first; nothing for a viewer."""
    if not is_changeable(schedule, user):
        return []
    toggle = (_("Resume"), "resume_schedule", "play") if schedule.paused_at else (_("Pause"), "pause_schedule", "pause")
    run, edit = (_("Run now"), "run_schedule", "bolt"), (_("Edit"), "edit_schedule", "pencil-square")
    actions = [
        *((toggle, edit, run) if schedule.paused_at else (run, edit, toggle)),
        (lock_label(schedule), "lock_schedule", "lock-closed"),
        (_("Delete"), "delete_schedule", "trash"),
    ]
    return [
        Action(name, label, reverse(f"snapshots:{name}", args=[schedule.pk]), icon, danger=name == "delete_schedule")
        for label, name, icon in actions
    ]


def lock_label(schedule: BackupSchedule) -> str:
    return by_kind(schedule, _("Lock every backup"), _("Lock every snapshot"))


@require_GET
def schedule_menu(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    """Return the menu of a row, which the row fetches when it is opened."""
    schedule = get_schedule(request.user, schedule_id)
    if not is_fragment(request):
        return redirect("snapshots:schedule", schedule_id)
    return render(request, "partials/menu_items.html", {"actions": schedule_actions(schedule, request.user)})


def get_schedule(user: User, schedule_id: UUID) -> BackupSchedule:
    visible = BackupSchedule.objects.visible_to(user).with_related().select_related("created_by")
    return get_object_or_404(visible, pk=schedule_id)


def by_kind(schedule: BackupSchedule, backup: str, snapshot: str, **values: object) -> str:
    """Return the sentence about backups, or the one about snapshots, with the source's name and the values."""
    return (backup if schedule.kind == Kind.BACKUP else snapshot) % {"name": schedule.source.name, **values}


@require_GET
def schedule(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    """Show a schedule and its runs, also after it was deleted."""
    user = request.user
    schedule = get_schedule(user, schedule_id)
    zone = schedule.zone
    runs = BackupRun.objects.filter(schedule=schedule).select_related("snapshot", "requested_by")
    page = page_of(runs, lists.NEWEST_RUN, request.GET)
    existing = counted_backups(schedule)
    version = version_of(
        schedule.paused_at,
        schedule.deleted_at,
        schedule.next_run_at,
        [(run.pk, run.shown_state, run.tries) for run in page.rows],
    )
    chart = None
    if schedule.next_run_at:
        chart = build_preview_chart(schedule_fields_of(schedule), zone, now=timezone.now(), existing=existing)
    context = {
        "schedule": schedule,
        "title": by_kind(schedule, _("Backup of %(name)s"), _("Snapshots of %(name)s")),
        "source": schedule.source,
        "can_see_source": schedule.source.project_id in user.roles,
        "is_backup": schedule.kind == Kind.BACKUP,
        "zone": zone_name(zone),
        "page": page,
        "runs": page.rows,
        "visible_projects": user.roles,
        "total": page.total,
        "has_more": page.has_more,
        "pages": page.urls(request.path, {}),
        "is_live": any(run.is_unfinished for run in page.rows),
        "actions": schedule_actions(schedule, user),
        "can_change": user.can_change(schedule.home.pk) and user.can_change(schedule.source.project_id),
        "backup_count": len(existing),
        "chart": chart,
        "price": price_sentence(schedule),
    }
    return render_live(request, "snapshots/schedule.html", context, part="schedule", poll="runs", version=version)


def counted_backups(schedule: BackupSchedule) -> list[datetime]:
    """Return the instants of the backups that count towards retention, oldest backup first."""
    counted = Snapshot.objects.filter(
        run__schedule=schedule, run__state=BackupRun.State.DONE, state=State.READY, damaged_at=None, is_pinned=False
    )
    return list(counted.order_by("run__number").values_list("run__scheduled_at", flat=True))


def schedule_fields_of(schedule: BackupSchedule) -> dict[str, Any]:
    return {name: getattr(schedule, name) for name in SCHEDULE_FIELDS}


def price_sentence(schedule: BackupSchedule) -> str:
    """Return what the schedule's backups or snapshots cost."""
    if schedule.vm and schedule.is_automatic:
        return automatic_price_sentence(schedule.vm)
    try:
        quote = checks.quote_for(schedule.source, kind=schedule.kind)
    except NotSold as error:
        return str(error)
    return price_of_backups(quote, schedule.retention_count)


@require_POST
def back_up(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    return start_wizard(request, VirtualMachine, vm_id, "schedule", kind=Kind.BACKUP)


@require_POST
def schedule_snapshots(request: HttpRequest, volume_id: UUID) -> HttpResponse:
    return start_wizard(request, Volume, volume_id, "schedule", is_scheduled=True)


def get_changeable_schedule(user: User, schedule_id: UUID) -> BackupSchedule:
    """Return the schedule for an action. 404 for strangers and deleted schedules, 403 with an explanation for viewers."""
    schedule = get_schedule(user, schedule_id)
    if schedule.deleted_at:
        raise Http404
    for project in {schedule.home, schedule.source.project}:
        checks.require_change(user, project.pk)
    return schedule


@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    schedule = get_changeable_schedule(request.user, schedule_id)
    zone = schedule.zone
    answers = {name: value for name, value in schedule_fields_of(schedule).items() if value is not None}
    form = EditScheduleForm(
        request.POST or None,
        zone=zone,
        kind=schedule.kind,
        days=bin_days(schedule.customer),
        size_gb=checks.size_of(schedule.source),
        initial=wizard.DEFAULT_SCHEDULE | answers | {"uses_recycle_bin": schedule.uses_recycle_bin},
    )

    def save() -> BackupSchedule:
        uses_bin = form.cleaned_data["uses_recycle_bin"]
        fields = form.schedule_fields or {}
        return edit_schedule(schedule=schedule, user=request.user, uses_recycle_bin=uses_bin, **fields)

    if "preview" not in request.POST and (edited := submit(request, form, save)):
        messages.success(
            request,
            by_kind(
                schedule,
                _("“%(name)s” is now backed up like this: %(when)s."),
                _("Snapshots of “%(name)s” are now taken like this: %(when)s."),
                when=edited.when,
            ),
        )
        return redirect("snapshots:schedule", schedule.pk)
    fields = form.schedule_fields
    context = {
        "schedule": schedule,
        "is_backup": schedule.kind == Kind.BACKUP,
        "form": form,
        "zone": zone_name(zone),
        "chart": fields and build_preview_chart(fields, zone, now=timezone.now(), existing=counted_backups(schedule)),
        "action": request.path,
    }
    return render(request, "snapshots/edit_schedule.html", context)


def confirm_action(
    request: HttpRequest,
    schedule: BackupSchedule,
    perform: Callable[[], object],
    *,
    heading: str,
    title: str,
    consequences: list[str],
    button: str,
    done: str,
    danger: bool = False,
) -> HttpResponse:
    """Show a confirmation page on GET. On POST, perform the action and redirect, or show why it was refused."""
    if attempt(request, perform):
        messages.success(request, done)
        return redirect("snapshots:schedule", schedule.pk)
    context = {
        "schedule": schedule,
        "heading": heading,
        "title": title,
        "consequences": consequences,
        "button": button,
        "danger": "" if danger else "no",
        "action": request.path,
    }
    return render(request, "snapshots/schedule_action.html", context)


@require_http_methods(["GET", "POST"])
def lock_schedule(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    """Lock each future backup or snapshot of the schedule for some days, or none."""
    schedule = get_changeable_schedule(request.user, schedule_id)
    form = ScheduleLockForm(request.POST or None, initial={"lock_days": schedule.lock_days})
    save = partial(set_lock_days, schedule=schedule, user=request.user)
    if saved := submit(request, form, lambda: save(**form.cleaned_data)):
        if days := saved.lock_days:
            text = ngettext(
                "What it takes from now on is locked for %(days)s day.",
                "What it takes from now on is locked for %(days)s days.",
                days,
            ) % {"days": days}
        else:
            text = _("What it takes from now on isn't locked. What is locked stays so until its lock ends.")
        messages.success(request, text)
        return redirect("snapshots:schedule", schedule.pk)
    consequences = [
        _("What is locked isn't deleted when newer ones replace it, so there may be more of them at a time."),
        price_sentence(schedule),
        by_kind(
            schedule,
            _("It applies to backups that are verified from now on. Lock earlier ones on their own pages."),
            _("It applies to snapshots that are verified from now on. Lock earlier ones on their own pages."),
        ),
        _(
            "An owner of the project or your provider can lift each lock with a reason. Everybody of the account is told."
        ),
    ]
    if schedule.customer.billing_type == BillingType.PREPAID:
        consequences.append(
            _("Each is locked only as long as your credits cover it; if that is less, you are notified.")
        )
    context = {"schedule": schedule, "title": lock_label(schedule), "form": form, "consequences": consequences}
    return render(request, "snapshots/locks/schedule.html", context)


@require_http_methods(["GET", "POST"])
def pause(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, schedule = request.user, get_changeable_schedule(request.user, schedule_id)
    return confirm_action(
        request,
        schedule,
        lambda: pause_schedule(schedule=schedule, user=user),
        heading=_("Pause schedule"),
        title=by_kind(schedule, _("Pause the backup of “%(name)s”?"), _("Pause the snapshots of “%(name)s”?")),
        consequences=[
            by_kind(
                schedule,
                _("No more backups are taken until you resume it."),
                _("No more snapshots are taken until you resume it."),
            ),
            by_kind(
                schedule,
                _("Existing backups stay, and are charged as before."),
                _("Existing snapshots stay, and are charged as before."),
            ),
        ],
        button=_("Pause"),
        done=by_kind(schedule, _("The backup of “%(name)s” is paused."), _("The schedule of “%(name)s” is paused.")),
    )


@require_http_methods(["GET", "POST"])
def resume(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, schedule = request.user, get_changeable_schedule(request.user, schedule_id)
    zone = schedule.zone
    day, clock = format_day_and_time(next_occurrence(schedule.recurrence, zone, timezone.now()), zone)
    return confirm_action(
        request,
        schedule,
        lambda: resume_schedule(schedule=schedule, user=user),
        heading=_("Resume schedule"),
        title=by_kind(schedule, _("Resume the backup of “%(name)s”?"), _("Resume the snapshots of “%(name)s”?")),
        consequences=[
            by_kind(
                schedule,
                _("The next backup is taken on %(day)s at %(time)s."),
                _("The next snapshot is taken on %(day)s at %(time)s."),
                day=day,
                time=clock,
            ),
            _("Runs missed while it was paused won't be made up."),
        ],
        button=_("Resume"),
        done=by_kind(
            schedule, _("The backup of “%(name)s” is active again."), _("The schedule of “%(name)s” is active again.")
        ),
    )


@require_http_methods(["GET", "POST"])
def run(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, schedule = request.user, get_changeable_schedule(request.user, schedule_id)
    count = schedule.retention_count
    of_backups = ngettext(
        "It counts like any other: the schedule keeps %(count)s backup, and deletes the previous one once this one is "
        "verified.",
        "It counts like any other: the schedule keeps %(count)s backups, and deletes the oldest once this one is verified.",
        count,
    )
    of_snapshots = ngettext(
        "It counts like any other: the schedule keeps %(count)s snapshot, and deletes the previous one once this one is "
        "verified.",
        "It counts like any other: the schedule keeps %(count)s snapshots, and deletes the oldest once this one is "
        "verified.",
        count,
    )
    return confirm_action(
        request,
        schedule,
        lambda: run_now(schedule=schedule, user=user),
        heading=_("Run now"),
        title=by_kind(schedule, _("Back up “%(name)s” now?"), _("Take a snapshot of “%(name)s” now?")),
        consequences=[price_sentence(schedule), by_kind(schedule, of_backups, of_snapshots, count=count)],
        button=_("Run now"),
        done=by_kind(
            schedule, _("A backup of “%(name)s” is being taken."), _("A snapshot of “%(name)s” is being taken.")
        ),
    )


@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, schedule_id: UUID) -> HttpResponse:
    user, schedule = request.user, get_changeable_schedule(request.user, schedule_id)
    count = Snapshot.objects.filter(run__schedule=schedule, deleted_at=None).count()
    backups_stay = ngettext(
        "Its %(count)s backup stays and is charged until you delete it.",
        "Its %(count)s backups stay and are charged until you delete them.",
        count,
    )
    snapshots_stay = ngettext(
        "Its %(count)s snapshot stays and is charged until you delete it.",
        "Its %(count)s snapshots stay and are charged until you delete them.",
        count,
    )
    if count:
        deleted = by_kind(
            schedule,
            _("The schedule of “%(name)s” was deleted. Its backups stay."),
            _("The schedule of “%(name)s” was deleted. Its snapshots stay."),
        )
    else:
        deleted = _("The schedule of “%(name)s” was deleted.") % {"name": schedule.source.name}
    return confirm_action(
        request,
        schedule,
        lambda: delete_schedule(schedule=schedule, user=user),
        heading=_("Delete schedule"),
        title=_("Delete the schedule of “%(name)s”?") % {"name": schedule.source.name},
        consequences=[
            by_kind(
                schedule,
                _("No more backups are taken or deleted automatically."),
                _("No more snapshots are taken or deleted automatically."),
            ),
            by_kind(schedule, backups_stay, snapshots_stay, count=count)
            if count
            else by_kind(schedule, _("It has no backups."), _("It has no snapshots.")),
            *what_protects(schedule, user),
        ],
        button=_("Delete schedule"),
        done=deleted,
        danger=True,
    )


def what_protects(schedule: BackupSchedule, user: User) -> list[str]:
    """Return what can still be restored of its source, and whether another schedule goes on."""
    volumes = checks.volumes_of(schedule.source)
    lines = describe(preview_deletion([], volumes=volumes, user=user, at=timezone.now()))
    others = BackupSchedule.objects.present().filter(**source_fields(schedule.source)).exclude(pk=schedule.pk)
    if not others.exists():
        lines.append(_("No other schedule protects “%(name)s”.") % {"name": schedule.source.name})
    return lines


@require_http_methods(["GET", "POST"])
def pin(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Pin a scheduled backup or snapshot, or unpin it, as the submitted `pinned` says."""
    snapshot = get_changeable(request, snapshot_id)
    if snapshot.kind != Kind.BACKUP and not snapshot.is_scheduled:
        raise Http404
    # The form says which one, so that submitting it twice doesn't undo the first.
    is_pinning = request.POST.get("pinned") == "yes"
    change = pin_backup if is_pinning else unpin_backup
    if attempt(request, lambda: change(snapshot=snapshot, user=request.user)):
        text = _("“%(name)s” is pinned.") if is_pinning else _("“%(name)s” is no longer pinned.")
        messages.success(request, text % {"name": snapshot.name})
        return redirect("snapshots:snapshot", snapshot.pk)
    return render(request, "snapshots/pin.html", {"snapshot": snapshot})
