"""The list of instances, and the page of one: its disks, what protects them, and what was done to them."""

from uuid import UUID

from django.db.models import Count, Max, OuterRef, Prefetch, QuerySet, Subquery, prefetch_related_objects
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from cng_portal.accounts.models import User
from cng_portal.common.money import format_price
from cng_portal.common.responses import is_fragment
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import checks, lists, wizard
from snapshots.backups.views import build_schedule_rows
from snapshots.forms import MachineFilterForm
from snapshots.models import BackupSchedule, Kind, Operation, Snapshot, usable

from .common import (
    automatic_price_sentence,
    build_operation_rows,
    newest_operations,
    render_list,
    render_live,
    version_of,
)
from .snapshots import build_rows, listed_with_runs
from .timelines import timeline_of

NEWEST_SHOWN = 20
OPERATIONS_SHOWN = 20


def listed_machines() -> QuerySet[VirtualMachine]:
    """Each with `protected_at`, when the newest VM snapshot or backup was ready that can be restored, and
    `schedule_count`.
    """
    ready = Snapshot.objects.filter(usable(), vm=OuterRef("pk")).order_by().values("vm")
    schedules = BackupSchedule.objects.present().filter(vm=OuterRef("pk")).order_by().values("vm")
    return VirtualMachine.objects.select_related("project__customer", "location").annotate(
        protected_at=Subquery(ready.annotate(last=Max("ready_at")).values("last")),
        schedule_count=Coalesce(Subquery(schedules.annotate(count=Count("pk")).values("count")), 0),
    )


@require_GET
def machines(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = MachineFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    page = lists.page_of(form.narrow(listed_machines().visible_to(user).present()), lists.BY_NAME, request.GET)
    context = {
        "form": form,
        "rows": explain_machines(page.rows, user),
    }
    return render_list(request, "snapshots/machines.html", "machine-list", page, form.chosen, context)


def explain_machines(found: list[VirtualMachine], user: User) -> list[VirtualMachine]:
    """Each, of listed_machines, with `hourly`, `disks` in their order, `disk_gb` and `can_change`. One query."""
    prefetch_related_objects(found, Prefetch("volumes", disks_in_order(), to_attr="disks"))
    for vm in found:
        vm.hourly = format_price(vm.hourly_price_micro, vm.project.customer.currency)
        vm.memory_bytes = vm.memory_mb * 1024**2
        vm.disk_gb = sum(disk.size_gb for disk in vm.disks)
        vm.can_change = user.can_change(vm.project_id)
        for disk in vm.disks:
            disk.is_visible = disk.project_id in user.roles
    return found


def disks_in_order() -> QuerySet[Volume]:
    return Volume.objects.present().order_by("position", "name", "id")


@require_GET
def machine(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Also of a machine that is gone: its snapshots and backups are still there."""
    user = request.user
    found = get_object_or_404(listed_machines().visible_to(user), pk=vm_id)  # type: ignore[attr-defined]
    explain_machines([found], user)
    operations = build_operation_rows(
        newest_operations(
            Operation.objects.visible_to(user).filter(vm=found),
            Operation.objects.visible_to(user).filter(snapshot__vm=found),
            most=OPERATIONS_SHOWN,
        ),
        user,
    )
    rows = build_rows(newest_snapshots(found, user), user)
    kept = {kind: [one for one in rows if one.kind == kind] for kind in (Kind.VM, Kind.BACKUP)}
    schedules = lists.with_last_run(found.backup_schedules.present().select_related("vm__project__customer"))
    context = {
        "vm": found,
        "schedules": build_schedule_rows(list(schedules.order_by("-created_at", "-pk")), user),
        "automatic_price": automatic_price_sentence(found),
        "snapshots": kept[Kind.VM],
        "backups": kept[Kind.BACKUP],
        "kept_shown": NEWEST_SHOWN,
        "line": timeline_of(snapshots_of(found, user), born=found.created_at),
        "operations": operations,
        "is_live": any(operation.is_active for operation in operations),
        "can_take": found.can_change and found.deleted_at is None,
    }
    version = version_of(
        found.state,
        found.deleted_at,
        found.automatic_backups_since,
        [(one.pk, one.state) for one in operations],
        [(one.pk, one.state) for rows in kept.values() for one in rows],
    )
    return render_live(request, "snapshots/machine.html", context, part="machine", poll="work", version=version)


def snapshots_of(vm: VirtualMachine, user: User) -> QuerySet[Snapshot]:
    """Its VM snapshots and backups that this person sees."""
    return Snapshot.objects.filter(vm=vm, deleted_at=None, project__in=list(user.roles))


def newest_snapshots(vm: VirtualMachine, user: User) -> list[Snapshot]:
    """NEWEST_SHOWN of its VM snapshots and as many of its backups."""
    mine = listed_with_runs().filter(vm=vm, deleted_at=None, project__in=list(user.roles))
    newest = mine.order_by("-created_at", "-pk")
    return [one for kind in (Kind.VM, Kind.BACKUP) for one in newest.filter(kind=kind)[:NEWEST_SHOWN]]


@require_POST
def take_snapshot_of_machine(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """The shortcut from a machine: the wizard with three answers given."""
    vm = get_object_or_404(VirtualMachine.objects.visible_to(request.user).select_related("project"), pk=vm_id)
    checks.require_change(request.user, vm.project_id)
    return redirect(wizard.url(wizard.start(request.user, source=vm), "name"))
