"""Notifications about snapshots that a sync is about to charge."""

from datetime import datetime

from django.db import transaction
from django.db.models import Count, QuerySet, Sum
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.pricing.prices import PriceList
from cng_portal.accounts.models import Project
from cng_portal.common import money
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import Location
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members

from ..models import SERVICE_KINDS, Kind, Snapshot


def notify_charged(location: Location, snapshots: QuerySet[Snapshot], at: datetime) -> None:
    """Notify each project's members once that their snapshots are charged from `at` on.

    A sync that was killed before it charged them finds the same snapshots again, and notifies nobody twice.
    """
    prices = PriceList.load([location.pk])
    for project in Project.objects.filter(pk__in=snapshots.order_by().values("project")).select_related("customer"):
        own = snapshots.filter(project=project).order_by()
        sums = list(own.values_list("kind").annotate(Count("pk"), Sum("size_gb")))
        if sums:
            first = own.order_by("pk").values_list("pk", flat=True)[0]
            with transaction.atomic():
                _notify(project, location, sums, prices, at, key=f"charged-outside:{first}")


def _notify(
    project: Project, location: Location, sums: list[tuple[str, int, int]], prices: PriceList, at: datetime, *, key: str
) -> None:
    currency = project.customer.currency
    count, size_gb = sum(row[1] for row in sums), sum(row[2] for row in sums)
    hourly = sum(
        prices.hourly_micro(SERVICE_KINDS[Kind(kind)], location.pk, currency, at, size_gb=size)
        for kind, _count, size in sums
    )

    def message() -> tuple[str, str]:
        text = ngettext(
            "%(count)s snapshot of %(size)s GB in %(location)s that was created or deleted in the cloud, outside the "
            "portal, costs %(hourly)s an hour from %(time)s on. Delete it if you no longer need it.",
            "%(count)s snapshots of %(size)s GB in %(location)s that were created or deleted in the cloud, outside the "
            "portal, cost %(hourly)s an hour from %(time)s on. Delete those that you no longer need.",
            count,
        ) % {
            "count": count,
            "size": money.format_count(size_gb),
            "location": location.pk,
            "hourly": money.format_price(hourly, currency),
            "time": minute(at),
        }
        return _("Snapshots in %(project)s are charged from now on") % {"project": project.name}, text

    notify(
        users=project_members(project),
        key=key,
        level=Notification.Level.WARNING,
        message=message,
        url=reverse("snapshots:volume_snapshots"),
    )
