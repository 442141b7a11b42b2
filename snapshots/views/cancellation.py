"""The page that asks before an operation is cancelled."""

from uuid import UUID

from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from snapshots import cancellation, checks
from snapshots.errors import ActionRefused
from snapshots.models import Kind, Operation, Snapshot, State


@require_http_methods(["GET", "POST"])
def cancel(request: HttpRequest, operation_id: UUID) -> HttpResponse:
    """Ask, then cancel. The page of what has ended says so, and offers nothing."""
    related = ("snapshot__location", "snapshot__run", "safety_snapshot", "volume__vm", "vm")
    operation = get_object_or_404(Operation.objects.visible_to(request.user).select_related(*related), pk=operation_id)
    checks.require_change(request.user, operation.snapshot.project_id)
    is_backup = operation.snapshot.kind == Kind.BACKUP
    request.section = "backups" if is_backup else "snapshots"  # the menu marks it
    makes_volume = operation.kind == Operation.Kind.NEW_VOLUME and operation.volume_id
    page, pk = ("volume", operation.volume_id) if makes_volume else ("snapshot", operation.snapshot_id)
    reason = "" if operation.can_be_cancelled else cancellation.why_not(operation)
    if request.method == "POST":
        try:
            cancellation.cancel(operation=operation, user=request.user)
        except ActionRefused as refusal:
            reason = str(refusal)
        else:
            messages.success(request, describe_outcome(operation))
            return redirect(f"snapshots:{page}", pk)
    context = {"operation": operation, "snapshot": operation.snapshot, "reason": reason}
    return render(request, "snapshots/cancel.html", context)


@require_http_methods(["GET", "POST"])
def cancel_snapshot(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """The same for the operation that takes this snapshot. One that is no longer being taken leads to its page."""
    snapshot = get_object_or_404(Snapshot.objects.visible_to(request.user), pk=snapshot_id)
    checks.require_change(request.user, snapshot.project_id)
    taking = Q(snapshot=snapshot, kind=Operation.Kind.CAPTURE) | Q(safety_snapshot=snapshot)
    operation = Operation.objects.active().filter(taking).first()
    if operation is None or snapshot.state not in (State.PENDING, State.CREATING):
        messages.info(request, _("“%(name)s” is not being taken any more.") % {"name": snapshot.name})
        return redirect("snapshots:snapshot", snapshot_id)
    return cancel(request, operation.pk)


def describe_outcome(operation: Operation) -> str:
    sentences = {
        Operation.Kind.CAPTURE: _("“%(name)s” is cancelled. Nothing is charged for it."),
        Operation.Kind.RESTORE: _("The restore of “%(name)s” is cancelled. Nothing was overwritten."),
        Operation.Kind.NEW_VOLUME: _("The new volume from “%(name)s” is cancelled."),
        Operation.Kind.VERIFY: _("Verifying “%(name)s” is cancelled."),
    }
    if operation.kind == Operation.Kind.RESTORE and operation.attempt and operation.vm_id:
        return _("The restore of “%(name)s” is cancelled. Look at its page before you start the machine.") % {
            "name": operation.snapshot.name
        }
    return sentences[Operation.Kind(operation.kind)] % {"name": operation.snapshot.name}
