"""The list of instances, and the page of one: its disks, what protects them, and what was done to them."""

from uuid import UUID

from django.db.models import Count, Max, Prefetch, Q, QuerySet, prefetch_related_objects
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from billing.money import format_price
from cng_portal.accounts.models import User
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import lists, services, wizard
from snapshots.forms import MachineFilterForm, find_machines
from snapshots.models import BackupSchedule, Kind, Operation, Snapshot, State

from .backups import explain_schedules
from .common import (
    automatic_sentence,
    explain_operations,
    render_list,
    render_live,
    shown_operations,
    version_of,
)
from .snapshots import explain_rows, listed_snapshots
from .timelines import timeline_of

KEPT_SHOWN = 20
OPERATIONS_SHOWN = 20


def listed_machines() -> QuerySet[VirtualMachine]:
    return VirtualMachine.objects.select_related("project__customer", "location")


@require_GET
def machines(request: HttpRequest) -> HttpResponse:
    """Five queries besides session, person, roles and wallet: choices, rows with their total, disks, snapshots, and
    schedules.
    """
    user = request.user
    form = MachineFilterForm(request.GET, user=user, choices=lists.filter_choices(user))
    page = lists.page_of(find_machines, lists.BY_NAME, request.GET, rows=listed_machines, user=user, **form.narrowing)
    context = {
        "form": form,
        "rows": explain_machines(page.rows, user),
    }
    return render_list(request, "snapshots/machines.html", "machine-list", page, form.chosen, context)


def explain_machines(found: list[VirtualMachine], user: User) -> list[VirtualMachine]:
    """Each with `hourly`, `disks` in their order, `disk_gb`, `protected_at` (its newest VM snapshot or backup that can be
    restored), `schedule_count` and `can_change`. Three queries.
    """
    prefetch_related_objects(found, Prefetch("volumes", disks_in_order(), to_attr="disks"))
    # of machines that the person sees
    newest = dict(
        Snapshot.objects.filter(vm_id__in=[vm.pk for vm in found], state=State.READY)
        .order_by()
        .values_list("vm_id")
        .annotate(Max("ready_at"))
        if found
        else ()
    )
    schedules = BackupSchedule.objects.present().filter(vm_id__in=[vm.pk for vm in found]).order_by()
    counts = dict(schedules.values_list("vm_id").annotate(Count("pk")) if found else ())
    for vm in found:
        vm.schedule_count = counts.get(vm.pk, 0)
        vm.hourly = format_price(vm.hourly_price_micro, vm.project.customer.currency)
        vm.memory_bytes = vm.memory_mb * 1024**2
        vm.disk_gb = sum(disk.size_gb for disk in vm.disks)
        vm.protected_at = newest.get(vm.pk)
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
    found = get_object_or_404(
        VirtualMachine.objects.visible_to(user).select_related("project__customer", "location"), pk=vm_id
    )
    explain_machines([found], user)
    kept = {kind: newest_of(found, kind, user) for kind in (Kind.VM, Kind.BACKUP)}
    about = Operation.objects.visible_to(user).filter(Q(vm=found) | Q(snapshot__vm=found))
    operations = explain_operations(shown_operations(about)[:OPERATIONS_SHOWN], user)
    schedules = lists.with_last_run(found.backup_schedules.present().select_related("vm__project__customer"))
    context = {
        "vm": found,
        "schedules": explain_schedules(list(schedules.order_by("-created_at", "-pk")), user),
        "automatic_sentence": automatic_sentence(found),
        "snapshots": kept[Kind.VM],
        "backups": kept[Kind.BACKUP],
        "kept_shown": KEPT_SHOWN,
        "line": timeline_of(kept_of(found, user), born=found.created_at),
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


def kept_of(vm: VirtualMachine, user: User) -> QuerySet[Snapshot]:
    return Snapshot.objects.filter(vm=vm, deleted_at=None, project__in=list(user.roles))


def newest_of(vm: VirtualMachine, kind: Kind, user: User) -> list[Snapshot]:
    newest = kept_of(vm, user).filter(kind=kind).order_by("-created_at", "-pk").values("pk")[:KEPT_SHOWN]
    return explain_rows(list(listed_snapshots().filter(pk__in=newest).order_by("-created_at", "-pk")), user)


@require_POST
def take_snapshot_of_machine(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """The shortcut from a machine: the wizard with three answers given."""
    vm = get_object_or_404(VirtualMachine.objects.visible_to(request.user).select_related("project"), pk=vm_id)
    services.require_change(request.user, vm.project_id)
    return redirect(wizard.url(wizard.start(request.user, source=vm), "name"))
