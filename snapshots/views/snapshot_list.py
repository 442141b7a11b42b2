"""The lists of volume snapshots, VM snapshots and backups."""

from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from cng_portal.common.decorators import polled
from cng_portal.common.pages import page_of
from snapshots import lists
from snapshots.forms import SnapshotFilterForm
from snapshots.lists import LISTS
from snapshots.locks import get_lock
from snapshots.models import BackupSchedule, Kind, Snapshot

from .common import explain_empty, get_snapshot, is_fragment, render_list, with_query
from .rows import actions_for, build_rows, listed_snapshots, listed_with_runs

# The URL name of the wizard of each kind.
WIZARDS = {Kind.VOLUME: "new", Kind.VM: "new_vm", Kind.BACKUP: "new_backup"}
VIEWS = ("table", "cards")
VIEW_COOKIE = f"{settings.COOKIE_PREFIX}snapshots_view"
YEAR_SECONDS = 365 * 24 * 3600


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
    visible = listed.visible_to(user).filter(deleted_at=None, kind=kind)
    page = page_of(form.narrow(visible), form.order, request.GET)
    view, params = selected_view(request), form.chosen
    if request.GET.get("view", view) not in VIEWS:
        form.unknown = (_("View"),)
    context = {
        "kind": kind,
        "form": form,
        "rows": build_rows(page.rows, user),
        "view": view,
        "views": [{"name": name, "url": f"{request.path}?{urlencode({**params, 'view': name})}"} for name in VIEWS],
        "can_take": bool(user.changeable_project_ids),
        "selectable": bool(user.changeable_project_ids),
        "new_url": reverse(f"snapshots:{WIZARDS[kind]}"),
        "csv_url": with_query(reverse(f"snapshots:{LISTS[kind]}_csv"), params),
        "tabs": backup_tabs("backups") if kind == Kind.BACKUP else snapshot_tabs(LISTS[kind]),
    }
    if not page.rows and not form.narrows:
        context |= explain_empty(Snapshot.objects.visible_to(user).filter(kind=kind))
    if kind == Kind.BACKUP:
        schedules = BackupSchedule.objects.visible_to(user).present()
        context["schedule_count"] = schedules.count()
        context["troubled"] = lists.troubled(schedules).count()
    response = render_list(request, "snapshots/list.html", "snapshot-list", page, params, context)
    if request.GET.get("view") in VIEWS:
        response.set_cookie(
            VIEW_COOKIE, view, max_age=YEAR_SECONDS, samesite="Lax", secure=request.is_secure(), httponly=True
        )
    return response


def snapshot_tabs(active: str) -> list[dict[str, object]]:
    return build_tabs(
        active,
        [
            (_("VM Snapshot"), "vm_snapshots", "server"),
            (_("Volume Snapshot"), "volume_snapshots", "circle-stack"),
        ],
    )


def backup_tabs(active: str) -> list[dict[str, object]]:
    return build_tabs(
        active, [(_("Backups"), "backups", "archive-box"), (_("Schedules"), "schedules", "calendar-days")]
    )


def build_tabs(active: str, tabs: list[tuple[str, str, str]]) -> list[dict[str, object]]:
    return [
        {"label": label, "url": reverse(f"snapshots:{name}"), "active": name == active, "icon": icon}
        for label, name, icon in tabs
    ]


def selected_view(request: HttpRequest) -> str:
    for view in (request.GET.get("view"), request.COOKIES.get(VIEW_COOKIE)):
        if view in VIEWS:
            return view
    return VIEWS[0]


@polled
@require_GET
def row(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Return one row or card, which polls while the snapshot is being taken or deleted."""
    snapshot = get_object_or_404(listed_with_runs().visible_to(request.user), pk=snapshot_id)
    if not is_fragment(request):
        return redirect("snapshots:snapshot", snapshot_id)
    [row] = build_rows([snapshot], request.user)
    selectable = bool(request.user.changeable_project_ids)
    context = {"row": row, "snapshot": snapshot, "view": selected_view(request), "selectable": selectable}
    return render(request, "snapshots/row.html", context)


@require_GET
def menu(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Return the menu of a row or card, which loads it when it is opened."""
    snapshot = get_snapshot(request.user, snapshot_id)
    if not is_fragment(request):
        return redirect("snapshots:snapshot", snapshot_id)
    return render(
        request, "partials/menu_items.html", {"actions": actions_for(snapshot, request.user, get_lock(snapshot))}
    )
