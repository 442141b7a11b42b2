"""Locking a snapshot, lengthening its lock, and lifting it."""

from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods

from cng_portal.accounts.approvals import REQUESTED
from cng_portal.accounts.models import BillingType, Role
from cng_portal.accounts.submissions import submit_once
from cng_portal.common.money import format_amount
from cng_portal.common.templatetags.portal import minute
from snapshots import locks
from snapshots.forms import LiftLockForm, LockForm
from snapshots.models import LockMode, Snapshot, SnapshotLock

from .common import get_changeable, submit


@require_http_methods(["GET", "POST"])
@submit_once
def lock(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Ask until when by GET, then show what it means and costs, and lock the snapshot or lengthen its lock by POST."""
    snapshot = get_changeable(request, snapshot_id)
    if reason := locks.why_not_lockable(snapshot):
        messages.error(request, reason)
        return redirect("snapshots:snapshot", snapshot.pk)
    held = locks.get_lock(snapshot)
    is_owner = request.user.roles.get(snapshot.project_id) == Role.OWNER
    data = request.POST if request.method == "POST" else request.GET if "day" in request.GET else None
    form = LockForm(data, held=held, is_owner=is_owner)
    save = partial(locks.lock_snapshot, snapshot=snapshot, user=request.user)
    if locked := submit(request, form, lambda: save(**form.cleaned_data)):
        names = {"name": snapshot.name, "time": minute(locked.until)}
        messages.success(request, _("“%(name)s” is locked until %(time)s.") % names)
        return redirect("snapshots:snapshot", snapshot.pk)
    form.is_valid()  # Also of a GET.
    answers: dict[str, Any] = getattr(form, "cleaned_data", {})
    until = None
    try:
        until = locks.check_end(snapshot, answers["day"], at=timezone.now()) if "day" in answers else None
    except locks.InvalidLock as error:
        if not form.errors:
            form.add_error("day", str(error))
    price = locks.quote_lock(snapshot, until, at=timezone.now()) if until else None
    context = {
        "snapshot": snapshot,
        "form": form,
        "held": held,
        "until": until if "cooling_off_hours" not in form.errors else None,
        "answers": answers,
        "shown_micro": price.micro if price else 0,
        "consequences": explain(snapshot, held, until, price, answers) if until else [],
    }
    return render(request, "snapshots/locks/lock.html", context)


def explain(
    snapshot: Snapshot,
    held: SnapshotLock | None,
    until: datetime,
    price: locks.LockPrice | None,
    answers: dict[str, Any],
) -> list[str]:
    """Return sentences on what locking it until then means."""
    lines = [
        _(
            "Until then nobody can delete it or put it in the recycle bin: not you, not its schedule, not its expiry date, "
            "and not your provider's administrators."
        )
    ]
    if price:
        amount = format_amount(price.micro, price.quote.currency)
        lines.append(_("It costs %(amount)s until then, at today's and announced prices.") % {"amount": amount})
        if snapshot.project.customer.billing_type == BillingType.PREPAID:
            lines.append(_("Your credits have to cover that now, together with everything else that is locked."))
    else:
        lines.append(_("It costs nothing."))
    if snapshot.expires_at and snapshot.expires_at < until:
        lines.append(_("Its expiry date moves to the end of the lock."))
    if held:
        lines.append(_("A lock can only be lengthened, never shortened."))
    elif answers.get("mode") == LockMode.COMPLIANCE:
        hours = answers.get("cooling_off_hours")
        lines.append(
            ngettext(
                "Within %(hours)s hour an owner can lift the lock. After that nobody can: not you, and not support.",
                "Within %(hours)s hours an owner can lift the lock. After that nobody can: not you, and not support.",
                hours or 1,
            )
            % {"hours": hours}
        )
    else:
        lines.append(
            _(
                "An owner of the project or your provider can lift the lock with a reason. Everybody of the account is told."
            )
        )
    return lines


@require_http_methods(["GET", "POST"])
def lift_lock(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """Lift the lock with a reason. 403 for members, a redirect once it is final or has ended."""
    snapshot = get_changeable(request, snapshot_id)
    held = locks.get_lock(snapshot)
    if held is None:
        messages.info(request, _("“%(name)s” isn't locked.") % {"name": snapshot.name})
        return redirect("snapshots:snapshot", snapshot.pk)
    if held.final_at and held.final_at <= timezone.now():
        messages.error(request, locks.why_locked(snapshot, held))
        return redirect("snapshots:snapshot", snapshot.pk)
    if not locks.can_lift(held, request.user, snapshot, at=timezone.now()):
        raise PermissionDenied(_("Only an owner of the project or your provider can lift a lock."))
    form = LiftLockForm(request.POST or None)
    lift = partial(locks.lift_lock, lock=held, user=request.user)
    if lifted := submit(request, form, lambda: lift(reason=form.cleaned_data["reason"])):
        if lifted.lifted_at is None:
            messages.info(request, REQUESTED)
            return redirect("accounts:approvals")
        messages.success(request, _("“%(name)s” is no longer locked.") % {"name": snapshot.name})
        return redirect("snapshots:snapshot", snapshot.pk)
    consequences = [
        _("It can be deleted again, by you, by its schedule and by its expiry date."),
        _("Everybody of the account is told who lifted the lock and why, by notification and e-mail."),
        _("It stays in the activity log."),
    ]
    if snapshot.project.customer.needs_approval:
        consequences.append(_("Another owner has to approve it within 72 hours. Until then the lock holds."))
    context = {"snapshot": snapshot, "form": form, "held": held, "consequences": consequences}
    return render(request, "snapshots/locks/lift.html", context)
