"""Subscriptions: a customer's usage segments by state."""

from datetime import datetime
from typing import Any

from django.db import models
from django.db.models import Case, Exists, OuterRef, Q, When
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer

from .. import bulk, rating
from ..models import UsageSegment


class SubscriptionState(models.TextChoices):
    """`SCHEDULED`: deleted, so that charging has ended, but its last paid hour isn't over.

    A segment that another one continues, after a change of size, project or price, is `INACTIVE` once that is recorded.
    """

    ACTIVE = "active", _("Active")
    INACTIVE = "inactive", _("Inactive")
    SCHEDULED = "scheduled", _("Scheduled for deletion")


def get_subscriptions(*, customer: Customer, state: str, kind: str, at: datetime) -> Any:
    """Return the customer's segments in a state, of one kind or all, the newest first. Voided ones are left out."""
    segments = UsageSegment.objects.filter(customer=customer, voided=False).select_related("project", "location")
    if kind:
        segments = segments.filter(kind=kind)
    if state == SubscriptionState.ACTIVE:
        segments = segments.filter(ended_at=None)
    else:
        goes_on = UsageSegment.objects.filter(resource_id=OuterRef("resource_id"), kind=OuterRef("kind"), ended_at=None)
        recent = Q(ended_at__gt=at - rating.HOUR) & ~Exists(goes_on)
        segments = segments.filter(ended_at__isnull=False).alias(
            in_paid_hour=Case(When(recent, then=bulk.in_paid_hour(at)), default=False)
        )
        segments = segments.filter(in_paid_hour=state == SubscriptionState.SCHEDULED)
        if state == SubscriptionState.SCHEDULED:
            segments = segments.filter(ended_at__gt=at - rating.HOUR)  # uses the index on `ended_at`
    return segments.order_by("-started_at", "pk")
