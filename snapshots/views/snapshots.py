"""The list of snapshots, the page of one, and what can be done with it: each act has a page with a form of its own."""

from collections.abc import Iterable
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods

from billing.charges import cost_so_far
from billing.prices import PriceList
from cng_portal.accounts.models import Project, User
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.decorators import polled
from cng_portal.common.money import format_amount, format_price
from cng_portal.common.names import is_same_name
from cng_portal.common.templatetags.portal import poll_seconds
from snapshots import checks, limits, lists, new_volumes, restores, services
from snapshots.errors import ActionRefused, DamagedSnapshot, NameTaken, WrongConfirmation, WrongOverride
from snapshots.forms import (
    ConfirmationForm,
    NewMachineForm,
    NewVolumeForm,
    OverrideForm,
    RenameForm,
    RestoreForm,
    SnapshotFilterForm,
)
from snapshots.models import BackupSchedule, DiskImage, Kind, Operation, Snapshot, State
from snapshots.storage.registry import get_driver

from .common import (
    Action,
    automatic_price_sentence,
    build_operation_rows,
    is_fragment,
    price_of,
    render_list,
    render_live,
    shown_operations,
    version_of,
    with_time_left,
)

# The names of the pages that list each kind, and of those that begin a new one.
LISTS = {Kind.VOLUME: "volume_snapshots", Kind.VM: "vm_snapshots", Kind.BACKUP: "backups"}
NEW = {Kind.VOLUME: "new", Kind.VM: "new_vm", Kind.BACKUP: "new_backup"}
VIEWS = ("table", "cards")
LISTED = (
    *(
        "kind",
        "customer",
        "project",
        "location",
        "volume",
        "vm",
        "name",
        "name_key",
        "size_gb",
        "state",
        "error",
        "is_pinned",
    ),
    *("made_outside", "missing_since", "damaged_at", "created_at", "ready_at"),
    *("project__name", "project__customer__currency"),
    *("location__country", "location__driver", "location__driver_options"),
    *("location__charges_outside", "location__charges_missing"),
    *("volume__name", "volume__deleted_at", "vm__name", "vm__deleted_at", "vm__backend_ref"),
)
VIEW_COOKIE = f"{settings.COOKIE_PREFIX}snapshots_view"
YEAR_SECONDS = 365 * 24 * 3600


# --- list --------------------------------------------------------------------------------------------------------------


@require_GET
def volume_snapshots(request: HttpRequest) -> HttpResponse:
    return snapshot_list(request, Kind.VOLUME)


@require_GET
def vm_snapshots(request: HttpRequest) -> HttpResponse:
    return snapshot_list(request, Kind.VM)


@require_GET
def backups(request: HttpRequest) -> HttpResponse:
    """List backups. Their schedules are on the other tab."""
    return snapshot_list(request, Kind.BACKUP)


def snapshot_list(request: HttpRequest, kind: Kind) -> HttpResponse:
    user = request.user
    form = SnapshotFilterForm(request.GET, kind=kind, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    listed = listed_with_runs() if kind == Kind.BACKUP else listed_snapshots()
    mine = listed.visible_to(user).filter(deleted_at=None, kind=kind)
    page = lists.page_of(form.narrow(mine), form.order, request.GET)
    view = chosen_view(request)
    params = form.chosen
    context = {
        "kind": kind,
        "form": form,
        "rows": build_rows(page.rows, user),
        "view": view,
        "views": [{"name": name, "url": f"{request.path}?{urlencode({**params, 'view': name})}"} for name in VIEWS],
        "can_take": bool(user.changeable_project_ids),
        "selectable": bool(user.changeable_project_ids),
        "new_url": reverse(f"snapshots:{NEW[kind]}"),
        "tabs": backup_tabs("backups") if kind == Kind.BACKUP else snapshot_tabs(kind),
    }
    if kind == Kind.BACKUP:
        schedules = BackupSchedule.objects.visible_to(user).present()
        context["schedule_count"] = schedules.count()
        context["troubled"] = lists.troubled(lists.with_last_run(schedules)).count()
    response = render_list(request, "snapshots/list.html", "snapshot-list", page, params, context)
    if request.GET.get("view") in VIEWS:
        response.set_cookie(
            VIEW_COOKIE, view, max_age=YEAR_SECONDS, samesite="Lax", secure=request.is_secure(), httponly=True
        )
    return response


def snapshot_tabs(kind: Kind) -> list[dict[str, object]]:
    tabs = [
        (_("VM Snapshot"), "vm_snapshots", Kind.VM, "server"),
        (_("Volume Snapshot"), "volume_snapshots", Kind.VOLUME, "circle-stack"),
    ]
    return [
        {"label": label, "url": reverse(f"snapshots:{name}"), "active": kind == of, "icon": icon}
        for label, name, of, icon in tabs
    ]


def backup_tabs(active: str) -> list[dict[str, object]]:
    tabs = [(_("Backups"), "backups", "archive-box"), (_("Schedules"), "schedules", "calendar-days")]
    return [
        {"label": label, "url": reverse(f"snapshots:{name}"), "active": name == active, "icon": icon}
        for label, name, icon in tabs
    ]


def chosen_view(request: HttpRequest) -> str:
    for candidate in (request.GET.get("view"), request.COOKIES.get(VIEW_COOKIE)):
        if candidate in VIEWS:
            return candidate
    return VIEWS[0]


LISTED_RELATED = ("project__customer", "location", "volume", "vm")


def listed_snapshots() -> QuerySet[Snapshot]:
    """With what a row shows of each and of its relations, and no more; `build_rows` adds the rest."""
    return Snapshot.objects.select_related(*LISTED_RELATED).only(*LISTED)


def listed_with_runs() -> QuerySet[Snapshot]:
    """Where backups are among them. More tables than these PostgreSQL does not put in the best order
    (join_collapse_limit).
    """
    return Snapshot.objects.select_related(*LISTED_RELATED, "run__schedule").only(
        *LISTED, "run__snapshot", "run__schedule__origin"
    )


def build_rows(snapshots: list[Snapshot], user: User) -> list[Snapshot]:
    """Add what a row shows: `hourly` ("K 20", "" where it costs nothing), `notes`, `has_menu`, `can_delete` and `work`, the
    operation that takes or deletes the snapshot now, or None, from which `poll_seconds` follows. Backups need their runs.
    """
    if not snapshots:
        return []
    work = work_on([one.pk for one in snapshots if one.is_transient])
    prices = PriceList.load({one.location_id for one in snapshots})
    for snapshot in snapshots:
        snapshot.work = work.get(snapshot.pk)
        snapshot.poll_seconds = poll_seconds([snapshot.work])
        price = price_of(snapshot, prices)
        snapshot.hourly = format_price(price.hourly_micro, price.currency) if price else ""
        snapshot.notes = notes_on(snapshot)
        snapshot.has_menu = is_changeable(snapshot, user)
        snapshot.can_delete = snapshot.has_menu and snapshot.state in DELETABLE_STATES
    return snapshots


def notes_on(snapshot: Snapshot) -> list[str]:
    notes = []
    if snapshot.is_missing:
        notes.append(_("Deleted outside the portal"))
    elif snapshot.made_outside:
        notes.append(_("Created outside the portal"))
    if snapshot.is_pinned:
        notes.append(_("Pinned"))
    if not snapshot.is_charged:
        notes.append(_("Automatic backup"))
    return notes


def work_on(snapshot_ids: list[UUID]) -> dict[UUID, Operation]:
    """By snapshot the operation that takes or deletes it now; constraints see to it that there is at most one."""
    if not snapshot_ids:
        return {}
    own = Q(snapshot__in=snapshot_ids, kind__in=[Operation.Kind.CAPTURE, Operation.Kind.DELETE])
    running = Operation.objects.filter(own | Q(safety_snapshot__in=snapshot_ids), finished_at=None)
    return {one.safety_snapshot_id or one.snapshot_id: one for one in with_time_left(running)}


DELETABLE_STATES = (State.READY, State.FAILED)


def is_changeable(snapshot: Snapshot, user: User) -> bool:
    return user.can_change(snapshot.project_id) and snapshot.state not in (State.DELETING, State.DELETED)


def actions_for(snapshot: Snapshot, user: User) -> list[Action]:
    """List what the user can do with the snapshot now; nothing for a viewer."""
    if not is_changeable(snapshot, user):
        return []
    ready = snapshot.state == State.READY and snapshot.missing_since is None
    is_backup = snapshot.kind == Kind.BACKUP
    can_restore = ready and snapshot.source.deleted_at is None and not restores.irreversible_reasons([snapshot])
    offered = [
        (ready and snapshot.kind != Kind.VOLUME, "new_machine", _("New machine"), "server"),
        (ready, "new_volume", _("New volume"), "circle-stack"),
        (can_restore, "restore", _("Restore"), "arrow-uturn-left"),
        (is_backup and not snapshot.is_pinned, "pin", _("Pin"), "lock-closed"),
        (is_backup and snapshot.is_pinned, "pin", _("Unpin"), "lock-open"),
        (snapshot.state in (State.PENDING, State.CREATING), "cancel_snapshot", _("Cancel"), "x-mark"),
        (True, "rename", _("Rename"), "pencil-square"),
        (ready, "verify", _("Verify"), "shield-check"),
        (snapshot.state in DELETABLE_STATES, "delete", _("Delete"), "trash"),
    ]
    return [
        Action(name, label, reverse(f"snapshots:{name}", args=[snapshot.pk]), icon, danger=name == "delete")
        for is_possible, name, label, icon in offered
        if is_possible
    ]


@polled
@require_GET
def row(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """One row or card of the list, which asks for itself until it has settled."""
    snapshot = get_object_or_404(listed_with_runs().visible_to(request.user), pk=snapshot_id)
    if not is_fragment(request):
        return redirect("snapshots:snapshot", snapshot_id)
    build_rows([snapshot], request.user)
    selectable = bool(request.user.changeable_project_ids)
    context = {"snapshot": snapshot, "view": chosen_view(request), "selectable": selectable}
    return render(request, "snapshots/row.html", context)


@require_GET
def menu(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """The menu of a row or card, which asks for it when it is opened."""
    snapshot = get_snapshot(request.user, snapshot_id)
    if not is_fragment(request):
        return redirect("snapshots:snapshot", snapshot_id)
    return render(request, "partials/menu_items.html", {"actions": actions_for(snapshot, request.user)})


# --- page --------------------------------------------------------------------------------------------------------------


RELATED = ("project__customer", "location", "volume__vm", "vm", "requested_by", "run__schedule")


def get_snapshot(user: User, snapshot_id: UUID) -> Snapshot:
    return get_object_or_404(Snapshot.objects.visible_to(user).select_related(*RELATED), pk=snapshot_id)


def belongs_to_backups(request: HttpRequest, snapshot: Snapshot) -> None:
    """Tell the menu which section the page of a backup belongs to, because its URL doesn't."""
    if snapshot.kind == Kind.BACKUP:
        request.section = "backups"


def get_changeable(request: HttpRequest, snapshot_id: UUID) -> Snapshot:
    """For an act: 404 for a stranger and for what is deleted, 403 with an explanation for a viewer."""
    user = request.user
    snapshot = get_snapshot(user, snapshot_id)
    belongs_to_backups(request, snapshot)
    if snapshot.state == State.DELETED:
        raise Http404
    checks.require_change(user, snapshot.project_id)
    return snapshot


@require_GET
def snapshot(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    user = request.user
    found = get_snapshot(user, snapshot_id)
    belongs_to_backups(request, found)
    disks = list(found.disks.all())
    about = Operation.objects.filter(Q(snapshot=found) | Q(safety_snapshot=found))
    operations = build_operation_rows(shown_operations(about), user)
    fixed = restores.irreversible_reasons([found])
    price = price_of(found, PriceList.load([found.location_id]))
    cost = cost_so_far(resource_id=found.pk, at=timezone.now())
    version = version_of(
        found.state,
        found.damaged_at,
        [(one.pk, one.state) for one in operations],
        [(one.checksum, one.verified_at) for one in disks],
    )
    context = {
        "snapshot": found,
        "disks": disks,
        "damage": damage_of(disks),
        "operations": operations,
        "is_live": found.is_transient or any(operation.is_active for operation in operations),
        "actions": actions_for(found, user),
        "fixed": fixed.get(found.pk, "") if found.state == State.READY and not found.missing_since else "",
        "can_change": user.can_change(found.project_id),
        "retry": next((one for one in operations if one.can_retry and one.kind != Operation.Kind.VERIFY), None),
        "price": price,
        "hourly": format_price(price.hourly_micro, price.currency) if price else "",
        "monthly": format_amount(price.monthly_micro, price.currency) if price else "",
        "automatic_price": "" if found.is_charged else automatic_price_sentence(found.source),
        "cost": cost,
        "reads_bytes": get_driver(found.location).reads_bytes,
        "no_cost": format_amount(0, found.project.customer.currency),
    }
    return render_live(request, "snapshots/snapshot.html", context, part="snapshot", poll="work", version=version)


# --- acts --------------------------------------------------------------------------------------------------------------


@require_http_methods(["GET", "POST"])
def rename(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    found = get_changeable(request, snapshot_id)
    form = RenameForm(request.POST or None, initial={"name": found.name})
    suggestion = ""
    if request.method == "POST" and form.is_valid():
        name = request.POST.get("use") or form.cleaned_data["name"]
        try:
            renamed = services.rename_snapshot(snapshot=found, user=request.user, name=name)
        except NameTaken as refusal:
            form.add_error("name", str(refusal))
            suggestion = refusal.suggestion
        except ActionRefused as refusal:
            form.add_error(None, str(refusal))
        else:
            messages.success(request, _("It is called “%(name)s” now.") % {"name": renamed.name})
            return redirect("snapshots:snapshot", found.pk)
    return render(request, "snapshots/rename.html", {"snapshot": found, "form": form, "suggestion": suggestion})


@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    found = get_changeable(request, snapshot_id)
    if request.method == "GET" and (reason := services.why_not_deletable(found)):
        is_unfinished = found.state in (State.PENDING, State.CREATING)
        return render(
            request, "snapshots/delete.html", {"snapshot": found, "reason": reason, "unfinished": is_unfinished}
        )
    is_backup = found.kind == Kind.BACKUP
    label = (
        _("Type the backup's name, %(name)s, to confirm")
        if is_backup
        else _("Type the snapshot's name, %(name)s, to confirm")
    )
    form = ConfirmationForm(
        request.POST or None,
        label=label % {"name": found.name},
        required=_("Type the name “%(name)s” to confirm that it shall be deleted.") % {"name": found.name},
    )
    if request.method == "POST" and form.is_valid():
        if not is_same_name(form.cleaned_data["confirmation"], found.name):
            form.add_error(
                "confirmation",
                _("That is not its name. Type “%(name)s” to confirm that it will be deleted.") % {"name": found.name},
            )
        else:
            try:
                services.request_deletion(snapshot=found, user=request.user)
            except ActionRefused as refusal:
                form.add_error(None, str(refusal))
            else:
                text = (
                    _("“%(name)s” is being deleted. It has stopped costing anything.")
                    if found.is_charged
                    else _("“%(name)s” is being deleted.")
                )
                messages.success(request, text % {"name": found.name})
                return redirect("snapshots:snapshot", found.pk)
    price = price_of(found, PriceList.load([found.location_id]))
    consequences = [_("Its data are erased. This cannot be undone, and support cannot bring them back either.")]
    if found.volume and found.volume.deleted_at:
        consequences.append(
            _("Its volume “%(name)s” is gone, so this may be the last copy of its data.") % {"name": found.volume.name}
        )
    elif found.volume:
        consequences.append(
            _("The volume “%(name)s” and volumes made from it stay as they are.") % {"name": found.volume.name}
        )
    if not found.is_charged:
        consequences.append(_("You save nothing by it: automatic backups are not charged per GB."))
    if price:
        consequences.append(
            _("You stop paying %(hourly)s an hour, about %(monthly)s a month.")
            % {
                "hourly": format_price(price.hourly_micro, price.currency),
                "monthly": format_amount(price.monthly_micro, price.currency),
            }
        )
    context = {"snapshot": found, "form": form, "consequences": consequences}
    return render(request, "snapshots/delete.html", context)


@require_http_methods(["GET", "POST"])
@submit_once
def restore(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """The form, or the reason in its place while the snapshot cannot be restored."""
    user = request.user
    found = get_changeable(request, snapshot_id)
    source = found.source
    disks = list(found.disks.select_related("volume__vm"))
    for project_id in {source.project_id, *(disk.volume.project_id for disk in disks)}:
        checks.require_change(user, project_id)
    is_machine = found.kind != Kind.VOLUME
    label = (
        _("Type the machine's name, %(name)s, to confirm")
        if is_machine
        else _("Type the volume's name, %(name)s, to confirm")
    )
    form = RestoreForm(
        request.POST or None,
        label=label % {"name": source.name},
        required=_("Type the name “%(name)s” to confirm that it will be overwritten.") % {"name": source.name},
        snapshot=found,
        read_first=checks.is_read_first(found, disks),
        skip=_("Restore without checking"),
    )
    if request.method == "POST" and form.is_valid():
        try:
            restores.request_restore(snapshot=found, user=user, **form.cleaned_data)
        except WrongConfirmation as refusal:
            form.add_error("confirmation", str(refusal))
        except (WrongOverride, DamagedSnapshot) as refusal:
            add_override_error(form, refusal)
        except ActionRefused as refusal:
            form.add_error(None, str(refusal))
        else:
            messages.success(
                request,
                _("“%(source)s” is being restored from “%(snapshot)s”. Do not use it until this has ended.")
                % {"source": source.name, "snapshot": found.name},
            )
            return redirect("snapshots:snapshot", found.pk)
    reason, quote = "", None
    try:
        restores.check_restorable(found)
        quote = checks.check_deliverable(source, safety=True)
    except ActionRefused as refusal:
        reason = str(refusal)
    context = {
        "snapshot": found,
        "source": source,
        "is_machine": is_machine,
        "form": form,
        "reason": reason,
        "disks": disks,
        "grown": [disk for disk in disks if disk.volume.size_gb > disk.size_gb],
        "captured_at": next((disk.captured_at for disk in disks if disk.captured_at), found.created_at),
        "damage": damage_of(disks),
        "can_undo": not get_driver(found.location).reverts_only_latest,
        "safety_name": _("before-restore-of-%(name)s") % {"name": source.name[:40]},
        "safety_price": format_price(quote.hourly_micro, quote.currency) if quote else "",
        "undoes": found.protects.filter(finished_at__isnull=False).select_related("snapshot").first(),
    }
    return render(request, "snapshots/restore.html", context)


def damage_of(disks: Iterable[DiskImage]) -> list[str]:
    """What was found, once where several disks have the same to say."""
    return list(dict.fromkeys(disk.damage for disk in disks if disk.damage))


def add_override_error(form: OverrideForm, refusal: ActionRefused) -> None:
    """Beside the field, which the form lacks if the damage was found since the page was opened."""
    form.add_error("override" if "override" in form.fields else None, str(refusal))


@require_http_methods(["GET", "POST"])
@submit_once
def new_volume(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    user = request.user
    found = get_changeable(request, snapshot_id)
    disks = list(found.disks.all())
    if not disks:
        raise Http404
    # of a machine the root disk is suggested, until another one is chosen
    wanted = request.POST.get("disk") or request.GET.get("disk")
    disk = next((disk for disk in disks if str(disk.pk) == wanted), disks[0])
    form = NewVolumeForm(
        request.POST or None,
        disks=disks,
        disk=disk,
        projects=Project.objects.changeable_by(user).filter(customer=found.customer_id),
        snapshot=found,
        read_first=checks.is_read_first(found, disks),
        skip=_("Create without checking"),
        initial={
            "disk": disk.pk,
            "name": _("%(name)s-copy") % {"name": disk.volume_name[:100]},
            "size_gb": disk.size_gb,
            "project": found.project_id,
        },
    )
    if request.method == "POST" and form.is_valid():
        answers = {name: value for name, value in form.cleaned_data.items() if name != "disk"}
        try:
            operation = new_volumes.request_new_volume(snapshot=found, user=user, disk=disk, **answers)
        except (WrongOverride, DamagedSnapshot) as refusal:
            add_override_error(form, refusal)
        except ActionRefused as refusal:
            form.add_error(None, str(refusal))
        else:
            messages.success(
                request,
                _("The volume “%(volume)s” is being made from “%(snapshot)s”.")
                % {"volume": answers["name"], "snapshot": found.name},
            )
            return redirect("snapshots:volume", operation.volume_id)
    context = {
        "snapshot": found,
        "form": form,
        "reason": why_not_ready(found),
        "quotas": [use for use in limits.volume_quota_use(found.project) if use.is_limited],
        "damage": damage_of(disks),
    }
    return render(request, "snapshots/new_volume.html", context)


def why_not_ready(snapshot: Snapshot) -> str:
    try:
        checks.require_ready(snapshot)
    except ActionRefused as refusal:
        return str(refusal)
    return ""


@require_http_methods(["GET", "POST"])
@submit_once
def new_machine(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Of a snapshot of a machine: a stopped one like it, with a new volume for each disk."""
    user = request.user
    found = get_changeable(request, snapshot_id)
    if found.kind == Kind.VOLUME:
        raise Http404
    disks = list(found.disks.all())
    form = NewMachineForm(
        request.POST or None,
        projects=Project.objects.changeable_by(user).filter(customer=found.customer_id),
        snapshot=found,
        read_first=checks.is_read_first(found, disks),
        skip=_("Create without checking"),
        initial={"name": _("%(name)s-copy") % {"name": found.source.name[:100]}, "project": found.project_id},
    )
    if request.method == "POST" and form.is_valid():
        try:
            new_volumes.request_new_machine(snapshot=found, user=user, **form.cleaned_data)
        except (WrongOverride, DamagedSnapshot) as refusal:
            add_override_error(form, refusal)
        except ActionRefused as refusal:
            form.add_error(None, str(refusal))
        else:
            messages.success(
                request,
                _("The machine “%(machine)s” is being made from “%(snapshot)s”. It stays stopped until you start it.")
                % {"machine": form.cleaned_data["name"], "snapshot": found.name},
            )
            return redirect("snapshots:snapshot", found.pk)
    context = {
        "snapshot": found,
        "form": form,
        "reason": why_not_ready(found),
        "quotas": [use for use in limits.volume_quota_use(found.project) if use.is_limited],
        "disks": disks,
        "damage": damage_of(disks),
    }
    return render(request, "snapshots/new_machine.html", context)


@require_http_methods(["GET", "POST"])
@submit_once
def verify(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    found = get_changeable(request, snapshot_id)
    reads_bytes = get_driver(found.location).reads_bytes
    problems = []
    if request.method == "POST":
        try:
            services.request_verification(snapshot=found, user=request.user)
        except ActionRefused as refusal:
            problems = [{"id": "", "message": str(refusal)}]
        else:
            text = (
                _("“%(name)s” is being read again and compared.")
                if reads_bytes
                else _("The storage is being asked for “%(name)s”.")
            )
            messages.success(request, text % {"name": found.name})
            return redirect("snapshots:snapshot", found.pk)
    price = price_of(found, PriceList.load([found.location_id]), once_sound=True)
    context = {
        "snapshot": found,
        "problems": problems,
        "reads_bytes": reads_bytes,
        "hourly": format_price(price.hourly_micro, price.currency) if price else "",
    }
    return render(request, "snapshots/verify.html", context)


@require_http_methods(["GET", "POST"])
def retry(request: HttpRequest, operation_id: UUID) -> HttpResponse:
    """Ask again for what failed; the answer is said on the page of the snapshot, or of the volume that is made."""
    operation = get_object_or_404(
        Operation.objects.visible_to(request.user).select_related("snapshot__volume__location"), pk=operation_id
    )
    makes_volume = operation.kind == Operation.Kind.NEW_VOLUME and operation.volume_id
    page, pk = ("volume", operation.volume_id) if makes_volume else ("snapshot", operation.snapshot_id)
    back = redirect(f"snapshots:{page}", pk)
    if request.method == "GET":  # after a sign-in in between
        return back
    checks.require_change(request.user, operation.snapshot.project_id)
    try:
        services.retry(operation=operation, user=request.user)
    except ActionRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, _("It is being tried again."))
    return back
