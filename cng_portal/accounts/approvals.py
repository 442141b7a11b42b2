"""Approval by a second owner, so that one stolen password can't do irreversible harm.

Where a customer `needs_approval`, deleting past the recycle bin, lifting a lock and changing who is an owner wait for
another owner. The service that would act calls `request_approval_if_needed`. When the request is approved, its handler
calls the service again as the user who requested it. Each app registers its handlers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.dispatch import Signal
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.activity import services as activity
from cng_portal.common.loops import for_each
from cng_portal.common.templatetags.portal import minute

from .models import Approval, Customer, Project, Role, User
from .services import lock_customer

VALID_FOR = timedelta(hours=72)
BATCH_SIZE = 200
TURN_OFF = "turn_off"

REQUESTED = gettext_lazy("Another owner has to approve it within 72 hours. They have been notified.")

# Sends `users`, `key`, `message`, which returns title and text, and `url`.
approval_event = Signal()


class ActionRefused(Exception):
    """The action isn't possible; the text says why and what to do."""


@dataclass(frozen=True)
class Handler:
    """`sentence` describes the action, with %(target)s and %(role)s. `perform` does it, or raises ActionRefused."""

    sentence: str | Promise
    perform: Callable[[Approval], object]


HANDLERS: dict[str, Handler] = {}


def register(action: str, sentence: str | Promise, perform: Callable[[Approval], object]) -> None:
    HANDLERS[action] = Handler(sentence, perform)


def describe(approval: Approval) -> str:
    """Return the requested action in words, such as `Lift the lock of “nightly-1”`."""
    role = Role(approval.role).label if approval.role else ""
    return str(HANDLERS[approval.action].sentence) % {"target": approval.target_name, "role": role}


def owners_of(customer_id: UUID) -> models.QuerySet[User]:
    """Return the customer's own active users who own one of its projects."""
    owned = {"memberships__project__customer": customer_id, "memberships__role": Role.OWNER}
    return User.objects.filter(is_active=True, customer=customer_id, **owned).distinct()


def request_approval_if_needed(
    *,
    action: str,
    target: models.Model,
    customer_id: UUID,
    by: User,
    at: datetime,
    approval: Approval | None = None,
    project: Project | None = None,
    **arguments: str,
) -> bool:
    """Return whether the action has to wait for another owner. If so, request their approval, once.

    Call it after all other checks, holding the customer's lock, and do nothing if it returns True. `approval` is the
    approved request that the caller carries out. `arguments` are fields of the request: `role`, `reason`. Raises
    ActionRefused if another role is already requested for the same target.
    """
    customer = Customer.objects.get(pk=customer_id)
    key: dict[str, Any] = {"action": action, "target_id": str(target.pk), "customer": customer}
    if approval is not None:
        if any(getattr(approval, name) != value for name, value in key.items()):
            raise ValueError(f"{approval} approves something else")
        return False
    if not customer.needs_approval:
        return False
    Approval.objects.filter(**key, outcome="", expires_at__lte=at).update(
        outcome=Approval.Outcome.EXPIRED, decided_at=at
    )
    request, is_new = Approval.objects.get_or_create(
        **key,
        outcome="",
        defaults={
            "project": project,
            "target_name": str(target)[:254],
            "requested_by": by,
            "requested_at": at,
            "expires_at": at + VALID_FOR,
            **arguments,
        },
    )
    if is_new:
        record("request", request, by)
        notify_owners(request)
    elif request.role != arguments.get("role", ""):
        raise ActionRefused(_("Something else is waiting for approval here. Withdraw it or have it decided first."))
    return True


def set_needed(
    *, customer: Customer, needed: bool, by: User, at: datetime, approval: Approval | None = None
) -> Customer:
    """Turn approvals on or off. Turning them off waits for an approval, too: the customer is returned unchanged.

    Raises PermissionDenied for anybody but an owner, and ActionRefused while there is only one.
    """
    with transaction.atomic():
        lock_customer(customer.pk)
        customer = Customer.objects.get(pk=customer.pk)
        owners = owners_of(customer.pk)
        if not owners.filter(pk=by.pk).exists():
            raise PermissionDenied(_("Only owners can change this."))
        if customer.needs_approval == needed:
            return customer
        if needed and owners.count() < 2:
            raise ActionRefused(_("Your account has one owner only. Make another user an owner first."))
        if not needed and request_approval_if_needed(
            action=TURN_OFF, target=customer, customer_id=customer.pk, by=by, at=at, approval=approval
        ):
            return customer
        customer.needs_approval = needed
        customer.save(update_fields=["needs_approval"])
        activity.record(
            action="approval.change",
            actor=by,
            target=customer,
            before={"needs_approval": not needed},
            after={"needs_approval": needed},
        )
    return customer


def turn_off(approval: Approval) -> None:
    assert approval.decided_at is not None  # held by a constraint
    set_needed(
        customer=approval.customer, needed=False, by=approval.requested_by, at=approval.decided_at, approval=approval
    )


register(TURN_OFF, gettext_lazy("Turn off the approval by a second owner"), turn_off)


def can_decide(approval: Approval, user: User) -> bool:
    """Return whether the user may approve or reject the request: as another owner of the customer."""
    is_owner = user.owns_customer and user.customer_id == approval.customer_id
    return is_owner and user.pk != approval.requested_by_id


def decide(*, approval: Approval, outcome: str, by: User, at: datetime) -> Approval:
    """Approve the request and carry it out, reject it, or withdraw one's own.

    Raises PermissionDenied, and ActionRefused if it is no longer open, or if it can't be carried out, so that it stays open.
    """
    with transaction.atomic():
        lock_customer(approval.customer_id)
        by = User.objects.get(pk=by.pk)
        withdraws = outcome == Approval.Outcome.WITHDRAWN
        if not (approval.requested_by_id == by.pk if withdraws else can_decide(approval, by)):
            raise PermissionDenied(_("Another owner of the account has to decide this."))
        if not Approval.objects.open(at).filter(pk=approval.pk).update(outcome=outcome, decided_by=by, decided_at=at):
            raise ActionRefused(_("This request is no longer open. Nothing was done."))
        approval = Approval.objects.select_related("customer", "project", "requested_by").get(pk=approval.pk)
        record(str(outcome), approval, by)
        if outcome == Approval.Outcome.APPROVED:
            try:
                HANDLERS[approval.action].perform(approval)
            except PermissionDenied as error:
                raise ActionRefused(
                    _("%(user)s may no longer do this, so it can't be approved. Reject it.")
                    % {"user": approval.requested_by}
                ) from error
        if not withdraws:
            notify_requester(approval)
    return approval


def expire_due(*, now: datetime) -> None:
    """Expire the requests that nobody decided in time, and notify their requesters."""
    due = Approval.objects.filter(outcome="", expires_at__lte=now).select_related("requested_by")
    for_each(due[:BATCH_SIZE], partial(expire, now=now))


def expire(approval: Approval, *, now: datetime) -> None:
    def message() -> tuple[str, str]:
        return _("Nobody decided your request"), _("%(what)s. Nothing was done.") % {"what": describe(approval)}

    with transaction.atomic():
        undecided = Approval.objects.filter(pk=approval.pk, outcome="")
        if undecided.update(outcome=Approval.Outcome.EXPIRED, decided_at=now):
            send(approval, [approval.requested_by], "expired", message)


def record(action: str, approval: Approval, by: User) -> None:
    after = {"request": describe(approval)} | ({"reason": approval.reason} if approval.reason else {})
    target = approval.project or approval.customer
    activity.record(action=f"approval.{action}", actor=by, target=target, after=after)


def notify_owners(approval: Approval) -> None:
    def message() -> tuple[str, str]:
        values = {"user": approval.requested_by, "what": describe(approval), "time": minute(approval.expires_at)}
        text = _("%(what)s. Approve or reject it by %(time)s; after that it expires.") % values
        if approval.reason:
            text += "\n" + _("Reason: %(reason)s") % {"reason": approval.reason}
        text += "\n" + _("If you didn't expect this, reject it, and ask %(user)s about it.") % values
        return _("%(user)s needs your approval") % values, text

    send(approval, owners_of(approval.customer_id).exclude(pk=approval.requested_by_id), "requested", message)


def notify_requester(approval: Approval) -> None:
    def message() -> tuple[str, str]:
        values = {"user": approval.decided_by, "what": describe(approval)}
        is_approved = approval.outcome == Approval.Outcome.APPROVED
        title = _("%(user)s approved your request") if is_approved else _("%(user)s rejected your request")
        text = _("%(what)s. This was done in your name.") if is_approved else _("%(what)s. Nothing was done.")
        return title % values, text % values

    send(approval, [approval.requested_by], "decided", message)


def send(approval: Approval, users: Iterable[User], event: str, message: Callable[[], tuple[str, str]]) -> None:
    key = f"approval-{event}:{approval.pk}"
    approval_event.send(sender=Approval, users=users, key=key, message=message, url=reverse("accounts:approvals"))
