"""The list of instances, and the page of one: its disks, what protects them, and its operations."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Count, Max
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from cng_portal.accounts.models import User
from cng_portal.common.money import format_price
from cng_portal.common.pages import page_of
from cng_portal.common.responses import is_fragment
from cng_portal.common.templatetags.portal import poll_seconds
from cng_portal.inventory.models import VirtualMachine, Volume
from snapshots import lists
from snapshots.backups.views import build_schedule_rows
from snapshots.drills.plans import drills_of
from snapshots.drills.proof import last_proven_at
from snapshots.forms import MachineFilterForm
from snapshots.models import BackupSchedule, Kind, Operation, Snapshot, SnapshotQuerySet, usable

from .common import automatic_price_sentence, render_list, render_live, start_wizard, version_of
from .rows import build_operation_rows, build_rows, find_hidden, listed_with_runs, newest_operations
from .timelines import timeline_of

NEWEST_SHOWN = 20
OPERATIONS_SHOWN = 20


@dataclass(frozen=True)
class MachineRow:
    """A machine with its disks in order, and when its newest usable VM snapshot or backup became Ready."""

    vm: VirtualMachine
    disks: list[Volume]
    protected_at: datetime | None
    schedule_count: int
    can_change: bool

    @property
    def hourly(self) -> str:
        return format_price(self.vm.hourly_price_micro, self.vm.project.customer.currency)

    @property
    def memory_bytes(self) -> int:
        return self.vm.memory_mb * 1024**2

    @property
    def disk_gb(self) -> int:
        return sum(disk.size_gb for disk in self.disks)


@require_GET
def machines(request: HttpRequest) -> HttpResponse:
    user = request.user
    form = MachineFilterForm(request.GET, user=user)
    if form.opens_panel and is_fragment(request):
        return render(request, "partials/filter_panel.html", {"form": form})
    visible = VirtualMachine.objects.visible_to(user).present().select_related("project__customer", "location")
    page = page_of(form.narrow(visible), lists.BY_NAME, request.GET)
    context = {"form": form, "rows": build_machine_rows(page.rows, user)}
    return render_list(request, "snapshots/machines.html", "machine-list", page, form.chosen, context)


def build_machine_rows(machines: list[VirtualMachine], user: User) -> list[MachineRow]:
    if not machines:
        return []
    ids = [vm.pk for vm in machines]
    disks: dict[UUID | None, list[Volume]] = {vm_id: [] for vm_id in ids}
    for disk in Volume.objects.present().filter(vm__in=ids).order_by("position", "name", "id"):
        disks[disk.vm_id].append(disk)
    ready = Snapshot.objects.filter(usable(), vm__in=ids).order_by()
    protected_at = dict(ready.values_list("vm").annotate(Max("ready_at")))
    schedules = BackupSchedule.objects.visible_to(user).present().filter(vm__in=ids).order_by()
    schedule_counts = dict(schedules.values_list("vm").annotate(Count("pk")))
    return [
        MachineRow(
            vm,
            disks=disks[vm.pk],
            protected_at=protected_at.get(vm.pk),
            schedule_count=schedule_counts.get(vm.pk, 0),
            can_change=user.can_change(vm.project_id),
        )
        for vm in machines
    ]


@require_GET
def machine(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    """Show a machine, also a deleted one, whose snapshots and backups still exist."""
    user = request.user
    visible = VirtualMachine.objects.visible_to(user).select_related("project__customer", "location")
    vm = get_object_or_404(visible, pk=vm_id)
    [row] = build_machine_rows([vm], user)
    operations = newest_operations(
        Operation.objects.visible_to(user).filter(vm=vm),
        Operation.objects.visible_to(user).filter(snapshot__vm=vm),
        limit=OPERATIONS_SHOWN,
    )
    snapshots = {kind: newest_snapshots(vm, kind, user) for kind in (Kind.VM, Kind.BACKUP)}
    schedules = BackupSchedule.objects.visible_to(user).present().with_related().filter(vm=vm)
    context = {
        "row": row,
        "vm": vm,
        "disks": [(disk, disk.project_id in user.roles) for disk in row.disks],
        "schedules": build_schedule_rows(list(schedules.order_by("-created_at", "-pk")), user),
        "automatic_backups_start": bool(vm.automatic_backups_since and vm.automatic_backups_since > timezone.now()),
        "automatic_price": automatic_price_sentence(vm),
        "snapshots": build_rows(snapshots[Kind.VM], user),
        "hidden": find_hidden(Snapshot.objects.filter(vm=vm, kind=Kind.VM), user),
        "backups": build_rows(snapshots[Kind.BACKUP], user),
        "newest_shown": NEWEST_SHOWN,
        "proven_at": last_proven_at(drills_of(vm).filter(snapshot__project__in=list(user.roles))),
        "line": timeline_of(snapshots_of(vm, user), born=vm.created_at),
        "operations": build_operation_rows(operations, user),
        "is_live": any(operation.is_active for operation in operations),
        "poll_seconds": poll_seconds(operations),
        "can_take": row.can_change and vm.deleted_at is None,
    }
    version = version_of(
        vm.state,
        vm.deleted_at,
        vm.automatic_backups_since,
        [(operation.pk, operation.state) for operation in operations],
        [(snapshot.pk, snapshot.state) for kind in snapshots.values() for snapshot in kind],
    )
    return render_live(request, "snapshots/machine.html", context, part="machine", poll="work", version=version)


def snapshots_of(vm: VirtualMachine, user: User) -> SnapshotQuerySet:
    return Snapshot.objects.filter(vm=vm, deleted_at=None, project__in=list(user.roles))


def newest_snapshots(vm: VirtualMachine, kind: Kind, user: User) -> list[Snapshot]:
    visible = listed_with_runs().filter(vm=vm, kind=kind, deleted_at=None, project__in=list(user.roles))
    return list(visible.order_by("-created_at", "-pk")[:NEWEST_SHOWN])


@require_POST
def take_snapshot_of_machine(request: HttpRequest, vm_id: UUID) -> HttpResponse:
    return start_wizard(request, VirtualMachine, vm_id, "name")
