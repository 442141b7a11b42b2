"""The use of the quotas of the user's account and projects."""

from typing import Any

from django.db.models import Count, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from cng_portal.accounts.models import Customer, Project
from cng_portal.inventory.models import Volume
from snapshots.limits import QuotaUse
from snapshots.models import Snapshot


@require_safe
def limits(request: HttpRequest) -> HttpResponse:
    """Two queries besides session and user, however many projects there are."""
    user = request.user
    projects = with_usage(Project.objects.visible_to(user), "project").select_related("customer")
    customers = with_usage(Customer.objects.filter(pk__in=user.customer_ids), "customer")
    owners = [*customers, *projects]
    for owner in owners:
        owner.is_account = isinstance(owner, Customer)
        owner.uses = quota_uses(owner)
    return render(request, "snapshots/limits.html", {"owners": owners})


def with_usage(owners: QuerySet, field: str) -> QuerySet:
    """Annotate `snapshot_count`, `snapshot_gb`, `volume_count` and `volume_gb`, as counted by the checks in limits.py.

    `field` is the foreign key of snapshots to the owners: `customer` or `project`.
    """
    counted = Snapshot.objects.filter(**{field: OuterRef("pk")}, deleted_at=None).counted().order_by().values(field)
    in_bin = Snapshot.objects.in_bin().filter(**{field: OuterRef("pk")}).order_by().values(field)
    owner = "project__customer" if field == "customer" else field
    volumes = Volume.objects.present().filter(**{owner: OuterRef("pk")}).order_by().values(owner)
    volumes_in_bin = Volume.objects.in_bin().filter(**{owner: OuterRef("pk")}).order_by().values(owner)
    return owners.annotate(
        volume_count=Coalesce(Subquery(volumes.annotate(n=Count("pk")).values("n")), 0),
        volume_gb=Coalesce(Subquery(volumes.annotate(n=Sum("size_gb")).values("n")), 0)
        + Coalesce(Subquery(volumes_in_bin.annotate(n=Sum("size_gb")).values("n")), 0),
        snapshot_count=Coalesce(Subquery(counted.annotate(n=Count("pk")).values("n")), 0),
        snapshot_gb=Coalesce(Subquery(counted.annotate(n=Sum("size_gb")).values("n")), 0)
        + Coalesce(Subquery(in_bin.annotate(n=Sum("size_gb")).values("n")), 0),
    )


def quota_uses(owner: Any) -> list[QuotaUse]:
    """Return the use of the quotas of a customer or project from `with_usage`."""
    return [
        QuotaUse(_("Snapshots"), owner.snapshot_count, owner.snapshot_quota),
        QuotaUse(_("GB of snapshots"), owner.snapshot_gb, owner.snapshot_gb_quota),
        QuotaUse(_("Volumes"), owner.volume_count, owner.volume_quota),
        QuotaUse(_("GB of volumes"), owner.volume_gb, owner.volume_gb_quota),
    ]
