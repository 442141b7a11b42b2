"""Quotas, and rate limits on expensive operations.

Quotas limit how much a customer, a project or a project of the cloud may hold. Rate limits count the operations that a
customer's users requested within the last hour; what schedules and the portal request doesn't count.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db.models import Count, F, Q, QuerySet, Sum, Value
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from cng_portal.accounts.models import UNLIMITED, Project, User
from cng_portal.inventory.models import CloudProject, Volume
from cng_portal.support.services import contact_support

from .errors import QuotaExceeded, RateLimited
from .models import Draft, Kind, Operation, Snapshot

logger = structlog.stdlib.get_logger(__name__)

RATE_LIMIT_WINDOW = timedelta(hours=1)
# Inventory syncs every few minutes. Older figures are ignored, and the cloud itself admits or refuses.
CLOUD_FIGURES_VALID_FOR = timedelta(minutes=15)
# New drafts of one user that are still unfinished.
MAX_NEW_DRAFTS = 30
DRAFT_WINDOW = timedelta(minutes=10)


@dataclass(frozen=True)
class QuotaUse:
    """How much of one quota is used. `limit` may be UNLIMITED."""

    label: str
    used: int
    limit: int

    @property
    def is_limited(self) -> bool:
        return self.limit != UNLIMITED

    def require(self, more: int) -> None:
        """Raise QuotaExceeded unless `more` fits."""
        if self.is_limited and self.used + more > self.limit:
            raise QuotaExceeded(
                _(
                    "Quota full: %(used)s of %(limit)s %(resource)s are used and this one needs %(more)s. "
                    "Delete what you no longer need, or ask your provider for a higher quota."
                )
                % {"used": self.used, "limit": self.limit, "resource": self.label, "more": more}
                + contact_support()
            )


def snapshot_quota_use(project: Project) -> list[QuotaUse]:
    """Return the use of the four snapshot quotas: count and GB, of the customer and of the project.

    What is in the recycle bin takes up its GB until it is erased.
    """
    customer = project.customer
    # Every snapshot request comes through here, so skip the query if nothing is limited.
    if all(
        limit == UNLIMITED for owner in (customer, project) for limit in (owner.snapshot_quota, owner.snapshot_gb_quota)
    ):
        return []
    snapshots = Snapshot.objects.filter(customer=customer).order_by()
    counted = snapshots.filter(deleted_at=None, kind__in=Kind.values).counted()
    in_bin = snapshots.in_bin().values_list("project").annotate(count=Value(0), gb=Sum("size_gb"))
    present = counted.values_list("project").annotate(count=Count("pk"), gb=Sum("size_gb"))
    count = gb = project_count = project_gb = 0
    for project_id, more, more_gb in present.union(in_bin, all=True):
        count, gb = count + more, gb + more_gb
        if project_id == project.pk:
            project_count, project_gb = project_count + more, project_gb + more_gb
    return [
        QuotaUse(_("snapshots of your account"), count, customer.snapshot_quota),
        QuotaUse(_("GB of snapshots of your account"), gb, customer.snapshot_gb_quota),
        QuotaUse(_("snapshots of the project"), project_count, project.snapshot_quota),
        QuotaUse(_("GB of snapshots of the project"), project_gb, project.snapshot_gb_quota),
    ]


def volume_quota_use(project: Project) -> list[QuotaUse]:
    """Return the use of the four volume quotas: count and GB, of the customer and of the project."""
    customer = project.customer
    used = _count(Volume.objects.counted().filter(project__customer=customer), project)
    in_bin = _count(Volume.objects.in_bin().filter(project__customer=customer), project)
    growth = growing_gb(customer.pk)
    used["gb"] += in_bin["gb"] + sum(growth.values())
    used["project_gb"] += in_bin["project_gb"] + growth.get(project.pk, 0)
    return [
        QuotaUse(_("volumes of your account"), used["count"], customer.volume_quota),
        QuotaUse(_("GB of volumes of your account"), used["gb"], customer.volume_gb_quota),
        QuotaUse(_("volumes of the project"), used["project_count"], project.volume_quota),
        QuotaUse(_("GB of volumes of the project"), used["project_gb"], project.volume_gb_quota),
    ]


def growing_gb(customer_id: UUID) -> dict[UUID, int]:
    """Return {project: GB by which its volumes are going to grow}."""
    growing = Operation.objects.active().filter(
        kind=Operation.Kind.EXTEND_VOLUME, volume__project__customer=customer_id
    )
    more_gb = Sum(F("new_size_gb") - F("volume__size_gb"))
    return dict(growing.order_by().values_list("volume__project").annotate(more_gb=more_gb))


def _count(rows: QuerySet[Any], project: Project) -> dict[str, int]:
    in_project = Q(project=project)
    return rows.aggregate(
        count=Count("pk"),
        gb=Sum("size_gb", default=0),
        project_count=Count("pk", filter=in_project),
        project_gb=Sum("size_gb", filter=in_project, default=0),
    )


def check_snapshot_quota(project: Project, size_gb: int) -> None:
    """Raise QuotaExceeded unless one more snapshot of this size fits."""
    for use, more in zip(snapshot_quota_use(project), (1, size_gb) * 2, strict=False):
        use.require(more)


def check_returned_snapshot_quota(project: Project) -> None:
    """Raise QuotaExceeded unless one more snapshot fits, whose GB are counted already, in the recycle bin."""
    for use in snapshot_quota_use(project)[::2]:
        use.require(1)


def check_moved_snapshot_quota(project: Project, size_gb: int) -> None:
    """Raise QuotaExceeded unless another snapshot of the same customer fits into the project."""
    for use, more in zip(snapshot_quota_use(project)[2:], (1, size_gb), strict=False):
        use.require(more)


def check_volume_quota(project_id: UUID, sizes_gb: list[int]) -> None:
    """Raise QuotaExceeded unless volumes of these sizes fit. The caller must hold the customer's lock."""
    project = Project.objects.select_related("customer").get(pk=project_id)
    for use, more in zip(volume_quota_use(project), (len(sizes_gb), sum(sizes_gb)) * 2, strict=True):
        use.require(more)


def check_returned_volume_quota(project: Project) -> None:
    """Raise QuotaExceeded unless one more volume fits, whose GB are counted already, in the recycle bin."""
    for use in volume_quota_use(project)[::2]:
        use.require(1)


def check_growth_quota(project_id: UUID, more_gb: int) -> None:
    """Raise QuotaExceeded unless the project's volumes may grow by `more_gb`. The caller must hold the customer's lock."""
    project = Project.objects.select_related("customer").get(pk=project_id)
    for use in volume_quota_use(project)[1::2]:
        use.require(more_gb)


def synced_cloud_projects(**filters: Any) -> QuerySet[CloudProject]:
    """Return the cloud projects whose figures are recent enough to predict a refusal."""
    since = timezone.now() - CLOUD_FIGURES_VALID_FOR
    return CloudProject.objects.filter(synced_at__gte=since, missing_since=None, error="", **filters)


def cloud_quota_use(cloud_project: CloudProject) -> dict[str, QuotaUse]:
    """Return the use of the cloud's own quotas, by `snapshots`, `volumes` and `gb`.

    The figures of the last sync are corrected by the captures requested and the deletions finished here since.
    """
    since, kinds = cloud_project.synced_at, Operation.Kind
    captured = Q(kind=kinds.CAPTURE, created_at__gte=since) & ~Q(
        state__in=[Operation.State.FAILED, Operation.State.CANCELLED]
    )
    deleted = Q(kind=kinds.DELETE, finished_at__gte=since, state=Operation.State.SUCCEEDED)
    changes = Operation.objects.filter(
        captured | deleted,
        snapshot__disks__volume__location=cloud_project.location_id,
        snapshot__disks__volume__backend_project=cloud_project.external_id,
    ).order_by()
    totals = changes.values_list("kind").annotate(Count("snapshot__disks"), Sum("snapshot__disks__size_gb"))
    by_kind = {kind: (count, gb) for kind, count, gb in totals}
    added, removed = (by_kind.get(kind, (0, 0)) for kind in (kinds.CAPTURE, kinds.DELETE))

    def use(label: str, synced: int | None, change: int, quota: int | None) -> QuotaUse:
        used, limit = max(0, (synced or 0) + change), UNLIMITED if quota is None or quota < 0 else quota
        if limit != UNLIMITED and change > 0:
            used = min(used, max(limit, synced or 0))  # The sync may have counted some of the change already.
        return QuotaUse(label % {"name": cloud_project}, used, limit)

    return {
        "snapshots": use(
            _("snapshots in the cloud project “%(name)s”"),
            cloud_project.snapshot_count,
            added[0] - removed[0],
            cloud_project.snapshot_quota,
        ),
        "volumes": use(
            _("volumes in the cloud project “%(name)s”"), cloud_project.volume_count, 0, cloud_project.volume_quota
        ),
        "gb": use(
            _("GB of volumes and snapshots in the cloud project “%(name)s”"),
            cloud_project.used_gb,
            added[1] - removed[1],
            cloud_project.gb_quota,
        ),
    }


def check_cloud_quota(location_id: str, backend_project: str, **more: int) -> None:
    """Raise QuotaExceeded if the cloud would refuse so many more `snapshots`, `volumes` or `gb`.

    Unknown quotas are left to the cloud.
    """
    if backend_project:
        for cloud_project in synced_cloud_projects(location=location_id, external_id=backend_project):
            uses = cloud_quota_use(cloud_project)
            for name, count in more.items():
                uses[name].require(count)


def check_rate_limit(customer_id: UUID, kind: Operation.Kind, more: int = 1) -> None:
    """Raise RateLimited unless `more` operations fit. The caller must hold the customer's lock."""
    if retry_at := next_allowed(customer_id, kind, now=timezone.now(), more=more):
        logger.warning("operation.rate_limited", kind=str(kind))
        raise RateLimited(explain_rate_limit(kind, retry_at), retry_at)


def next_allowed(customer_id: UUID, kind: str, *, now: datetime, more: int = 1) -> datetime | None:
    """Return when `more` operations will fit, None if they do now.

    If they never fit, return when no operation is counted any more.
    """
    limit = settings.ACTIONS_PER_HOUR.get(kind, 0)
    if not limit:
        return None
    newest_first = recent_requests(customer_id, kind, now).order_by("-created_at", "-id")
    remaining = max(0, limit - more)  # how many may stay in the window
    blocking = newest_first.values_list("created_at", flat=True)[remaining : remaining + 1]
    return next((created_at + RATE_LIMIT_WINDOW for created_at in blocking), None)


def recent_requests(customer_id: UUID, kind: str, now: datetime) -> QuerySet[Operation]:
    """Return the customer's operations that count towards the rate limit."""
    recent = Operation.objects.filter(created_at__gt=now - RATE_LIMIT_WINDOW, kind=kind, requested_by__isnull=False)
    return recent.of_customer(customer_id)


def rate_limit_warning(customer_id: UUID, kind: str, *, now: datetime) -> str:
    """Return a warning if the limit is reached or at most a tenth of it is left, else an empty string."""
    limit = settings.ACTIONS_PER_HOUR.get(kind, 0)
    if not limit:
        return ""
    left = limit - recent_requests(customer_id, kind, now).count()
    if left > limit // 10:
        return ""
    if left <= 0 and (retry_at := next_allowed(customer_id, kind, now=now)):
        return explain_rate_limit(kind, retry_at)
    return ngettext(
        "Your account can request “%(action)s” %(left)s more time this hour.",
        "Your account can request “%(action)s” %(left)s more times this hour.",
        left,
    ) % {"action": Operation.Kind(kind).label, "left": left}


def explain_rate_limit(kind: str, retry_at: datetime) -> str:
    # Rounded up to the minute, because the request must succeed at the time that is shown.
    local = timezone.localtime(retry_at + timedelta(seconds=59))
    text = _(
        "Your account has reached its limit of %(limit)s “%(action)s” requests an hour. Nothing was done. Try again at "
        "%(time)s, or ask your provider for a higher limit."
    ) % {"action": Operation.Kind(kind).label, "limit": settings.ACTIONS_PER_HOUR[kind], "time": f"{local:%H:%M}"}
    return text + contact_support()


def check_draft_rate_limit(user: User) -> None:
    """Raise RateLimited if the user has just started MAX_NEW_DRAFTS drafts without finishing them."""
    if unfinished_drafts(user).filter(created_at__gt=timezone.now() - DRAFT_WINDOW).count() >= MAX_NEW_DRAFTS:
        raise RateLimited(
            _("You have started %(count)s requests without finishing them. Finish one of them, or wait a few minutes.")
            % {"count": MAX_NEW_DRAFTS}
        )


def unfinished_drafts(user: User) -> QuerySet[Draft]:
    """Return the user's unfinished drafts, newest first."""
    return Draft.objects.filter(created_by=user, snapshot=None, schedule=None, created_volume=None).order_by(
        "-created_at", "-id"
    )
