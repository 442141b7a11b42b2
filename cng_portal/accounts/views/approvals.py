"""The approvals page: requests that another owner has to approve, and the setting that requires approvals."""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from cng_portal.accounts import approvals
from cng_portal.accounts.models import Approval, User

DECIDED_SHOWN = 20


@dataclass(frozen=True)
class ApprovalRow:
    approval: Approval
    text: str
    can_decide: bool


def build_rows(requests: Iterable[Approval], user: User) -> list[ApprovalRow]:
    return [ApprovalRow(row, approvals.describe(row), approvals.can_decide(row, user)) for row in requests]


@require_http_methods(["GET", "POST"])
def approval_list(request: HttpRequest) -> HttpResponse:
    """List open and decided requests. POST turns approvals on or off: `needed` is "yes" or "no"."""
    user, now = request.user, timezone.now()
    if request.method == "POST":
        needed = request.POST.get("needed") == "yes"
        if not user.owns_customer:
            raise PermissionDenied(_("Only owners can change this."))
        try:
            customer = approvals.set_needed(customer=user.customer, needed=needed, by=user, at=now)
        except approvals.ActionRefused as refusal:
            messages.error(request, str(refusal))
        else:
            if customer.needs_approval != needed:
                text = str(approvals.REQUESTED)
            elif needed:
                text = _("From now on, another owner has to approve these actions.")
            else:
                text = _("Owners can do everything alone again.")
            messages.success(request, text)
        return redirect("accounts:approvals")
    visible = Approval.objects.visible_to(user).select_related("requested_by", "decided_by")
    context = {
        "open": build_rows(visible.open(now), user),
        "closed": build_rows(visible.exclude(pk__in=visible.open(now))[:DECIDED_SHOWN], user),
        "customer": user.customer if user.owns_customer else None,
    }
    return render(request, "accounts/approvals.html", context)


@require_POST
def decide(request: HttpRequest, approval_id: UUID) -> HttpResponse:
    approval = get_object_or_404(Approval.objects.visible_to(request.user), pk=approval_id)
    confirmations = {
        Approval.Outcome.APPROVED: _("You approved the request, and it was carried out."),
        Approval.Outcome.REJECTED: _("You rejected the request. Nothing was changed."),
        Approval.Outcome.WITHDRAWN: _("You withdrew the request. Nothing was changed."),
    }
    outcome = request.POST.get("outcome", "")
    if outcome not in confirmations:
        return HttpResponseBadRequest(_("Approve, reject or withdraw the request."))
    try:
        approvals.decide(approval=approval, outcome=outcome, by=request.user, at=timezone.now())
    except approvals.ActionRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, confirmations[Approval.Outcome(outcome)])
    return redirect("accounts:approvals")
