"""Notifications about volumes that the portal charges without a user's request."""

from datetime import datetime

from django.db import transaction
from django.db.models import Count, QuerySet, Sum
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from billing.models import ServiceKind
from billing.pricing.prices import PriceList
from cng_portal.accounts.models import Project
from cng_portal.common import money
from cng_portal.common.templatetags.portal import minute
from cng_portal.inventory.models import Volume
from cng_portal.notifications.models import Notification
from cng_portal.notifications.services import notify, project_members


def notify_charged_volumes(volumes: QuerySet[Volume], at: datetime) -> None:
    """Notify the members of each project once that these volumes, of one location, are charged from `at` on."""
    with transaction.atomic():
        _notify(volumes, at)


def _notify(volumes: QuerySet[Volume], at: datetime) -> None:
    projects = Project.objects.filter(pk__in=volumes.order_by().values("project")).select_related("customer")
    for project in projects:
        own = volumes.filter(project=project).order_by()
        first = own.order_by("pk").values_list("pk", "location_id").first()
        if first is None:
            continue
        location_code, currency = first[1], project.customer.currency
        count, size_gb = own.aggregate(count=Count("pk"), size_gb=Sum("size_gb")).values()
        prices = PriceList.load([location_code])
        hourly_micro = prices.hourly_micro(ServiceKind.BLOCK_STORAGE, location_code, currency, at, size_gb=size_gb)
        values = {
            "count": money.format_count(count),
            "size": money.format_count(size_gb),
            "location": location_code,
            "hourly": money.format_price(hourly_micro, currency),
            "project": project.name,
        }

        def message(count: int = count, values: dict[str, str] = values) -> tuple[str, str]:
            text = ngettext(
                "%(count)s volume of %(size)s GB in %(location)s was imported and costs %(hourly)s an hour from %(time)s "
                "on. Delete it if you no longer need it.",
                "%(count)s volumes of %(size)s GB in %(location)s were imported and cost %(hourly)s an hour from %(time)s "
                "on. Delete those that you no longer need.",
                count,
            )
            return _("Volumes in %(project)s are charged from now on") % values, text % (values | {"time": minute(at)})

        notify(
            users=project_members(project),
            key=f"charged-volumes:{first[0]}",
            level=Notification.Level.WARNING,
            message=message,
            url=reverse("snapshots:volumes"),
        )


def notify_resumed(volume: Volume, since: datetime) -> None:
    """Notify the project's members that the volume's deletion was undone, and that its charge continues from `since`."""

    def message() -> tuple[str, str]:
        values = {"name": volume.name, "size": money.format_count(volume.size_gb), "time": minute(since)}
        text = _(
            "The deletion of “%(name)s”, %(size)s GB, was undone. It is charged from %(time)s on, as if it had never been "
            "deleted. Delete it if you no longer need it."
        )
        return _("“%(name)s” is charged again") % values, text % values

    notify(
        users=project_members(volume.project),
        key=f"charged-again:{volume.pk}:{since.isoformat()}",
        level=Notification.Level.WARNING,
        message=message,
        url=reverse("snapshots:volume", args=[volume.pk]),
    )
