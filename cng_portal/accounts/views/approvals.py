"""Requests that another owner has to approve, and whether an account asks for that."""

from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from cng_portal.accounts import approvals
from cng_portal.accounts.models import Approval

DECIDED_SHOWN = 20


@require_http_methods(["GET", "POST"])
def approval_list(request: HttpRequest) -> HttpResponse:
    """List open and decided requests. By POST, owners decide with `needed` whether the account asks for approvals."""
    user, now = request.user, timezone.now()
    if request.method == "POST":
        needed = request.POST.get("needed") == "yes"
        if not user.owns_customer:
            raise PermissionDenied(_("Only owners can decide that."))
        try:
            customer = approvals.set_needed(customer=user.customer, needed=needed, by=user, at=now)
        except approvals.ActionRefused as refusal:
            messages.error(request, str(refusal))
        else:
            if customer.needs_approval != needed:
                text = approvals.say_asked()
            elif needed:
                text = _("From now on, another owner has to approve these actions.")
            else:
                text = _("Owners can do everything alone again.")
            messages.success(request, text)
        return redirect("accounts:approvals")
    visible = Approval.objects.visible_to(user).select_related("requested_by", "decided_by")
    context = {
        "open": [
            (approval, approvals.describe(approval), approvals.can_decide(approval, user))
            for approval in visible.open(now)
        ],
        "closed": [
            (approval, approvals.describe(approval))
            for approval in visible.exclude(pk__in=visible.open(now))[:DECIDED_SHOWN]
        ],
        "customer": user.customer if user.owns_customer else None,
    }
    return render(request, "accounts/approvals.html", context)


@require_POST
def decide(request: HttpRequest, approval_id: UUID) -> HttpResponse:
    approval = get_object_or_404(Approval.objects.visible_to(request.user), pk=approval_id)
    done = {
        Approval.Outcome.APPROVED: _("You approved it, and it has been done."),
        Approval.Outcome.REFUSED: _("You refused it. Nothing was done."),
        Approval.Outcome.WITHDRAWN: _("You withdrew it. Nothing was done."),
    }
    outcome = request.POST.get("outcome", "")
    if outcome not in done:
        return HttpResponseBadRequest(_("Approve it, refuse it, or withdraw it."))
    try:
        approvals.decide(approval=approval, outcome=outcome, by=request.user, at=timezone.now())
    except approvals.ActionRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, done[Approval.Outcome(outcome)])
    return redirect("accounts:approvals")
