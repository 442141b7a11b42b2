"""Subscriptions: a customer's usage segments by state."""

from datetime import datetime
from typing import Any

from django.db import models
from django.db.models import Case, When
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer

from . import bulk, rating
from .models import UsageSegment


class SubscriptionState(models.TextChoices):
    """`SCHEDULED`: the deletion is accepted, which ended the charging, and the hour that was paid whole still runs."""

    ACTIVE = "active", _("Active")
    INACTIVE = "inactive", _("Inactive")
    SCHEDULED = "scheduled", _("Scheduled for deletion")


def get_subscriptions(*, customer: Customer, state: str, kind: str, at: datetime) -> Any:
    """The customer's usage in a state, of one kind or all; the newest first. What never began was no service."""
    found = UsageSegment.objects.filter(customer=customer, voided=False).select_related("project", "location")
    if kind:
        found = found.filter(kind=kind)
    if state == SubscriptionState.ACTIVE:
        found = found.filter(ended_at=None)
    else:
        found = found.filter(ended_at__isnull=False).alias(
            runs=Case(When(ended_at__gt=at - rating.HOUR, then=bulk.paid_hour_runs(at)), default=False)
        )
        found = found.filter(runs=state == SubscriptionState.SCHEDULED)
        if state == SubscriptionState.SCHEDULED:
            found = found.filter(ended_at__gt=at - rating.HOUR)  # so that an index leads to them
    return found.order_by("-started_at", "pk")
