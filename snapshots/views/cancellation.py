"""Cancelling an operation, after a confirmation."""

from functools import partial
from uuid import UUID

from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from snapshots import checks
from snapshots.models import Operation, Snapshot, State
from snapshots.operations import cancellation

from .common import attempt, page_of, set_section


@require_http_methods(["GET", "POST"])
def cancel(request: HttpRequest, operation_id: UUID) -> HttpResponse:
    """Confirm, then cancel. Instead of the form, the page of a finished operation says why it can't be cancelled."""
    related = ("snapshot__location", "snapshot__run", "safety_snapshot", "volume__vm", "volume__project", "vm")
    operation = get_object_or_404(Operation.objects.visible_to(request.user).select_related(*related), pk=operation_id)
    snapshot = operation.snapshot
    checks.require_change(request.user, operation.subject.project_id)
    set_section(request, operation.subject, "snapshots")
    if attempt(request, partial(cancellation.cancel, operation=operation, user=request.user)):
        messages.success(request, describe_outcome(operation))
        return redirect(page_of(operation))
    reason = "" if operation.can_be_cancelled else cancellation.why_not(operation)
    context = {
        "operation": operation,
        "snapshot": snapshot,
        "subject": operation.subject,
        "back": page_of(operation) if snapshot is None else reverse("snapshots:snapshot", args=[snapshot.pk]),
        "reason": reason,
    }
    return render(request, "snapshots/cancel.html", context)


@require_http_methods(["GET", "POST"])
def cancel_snapshot(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Cancel the operation that takes the snapshot, or redirect to its page if there is none."""
    snapshot = get_object_or_404(Snapshot.objects.visible_to(request.user), pk=snapshot_id)
    checks.require_change(request.user, snapshot.project_id)
    is_capture = Q(snapshot=snapshot, kind=Operation.Kind.CAPTURE) | Q(safety_snapshot=snapshot)
    operation = Operation.objects.active().filter(is_capture).first()
    if operation is None or snapshot.state not in (State.PENDING, State.CREATING):
        messages.info(request, _("“%(name)s” is no longer being taken.") % {"name": snapshot.name})
        return redirect("snapshots:snapshot", snapshot_id)
    return cancel(request, operation.pk)


def describe_outcome(operation: Operation) -> str:
    if operation.kind == Operation.Kind.RESTORE and operation.attempt and operation.vm_id:
        sentence = _("The restore of “%(name)s” is cancelled. Check its page before you start the instance.")
    else:
        sentence = {
            Operation.Kind.CAPTURE: _("“%(name)s” is cancelled. Nothing is charged for it."),
            Operation.Kind.RESTORE: _("The restore of “%(name)s” is cancelled. Nothing was overwritten."),
            Operation.Kind.NEW_VOLUME: _("The new volume from “%(name)s” is cancelled."),
            Operation.Kind.VERIFY: _("Verifying “%(name)s” is cancelled."),
            Operation.Kind.DRILL: _("The restore drill of “%(name)s” is cancelled."),
            Operation.Kind.CREATE_VOLUME: _("The volume “%(name)s” is cancelled. Nothing is charged for it."),
            Operation.Kind.EXTEND_VOLUME: _("The volume “%(name)s” keeps its size."),
        }[Operation.Kind(operation.kind)]
    return sentence % {"name": operation.subject.name}
