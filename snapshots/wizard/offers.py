"""What the wizard's steps offer to a user: locations, projects, and volumes or machines."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Case, Count, OuterRef, Prefetch, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from billing.models import ServiceKind
from billing.pricing.prices import PriceList
from cng_portal.accounts.models import Project, User
from cng_portal.common.money import format_rate
from cng_portal.common.names import name_contains
from cng_portal.inventory.models import Location, VirtualMachine, Volume

from ..checks import Source
from ..errors import ActionRefused
from ..models import SERVICE_KINDS, DiskImage, Draft, Kind, Snapshot, usable
from ..volumes import services as volume_services

# On the step of the source. The search finds the others.
SOURCES_SHOWN = 60
# Hits of the search above the first step.
SOURCES_FOUND = 8

NOT_SOLD = {
    Kind.VOLUME: gettext_lazy("Volume snapshots are not sold in %(code)s."),
    Kind.VM: gettext_lazy("VM snapshots are not sold in %(code)s."),
    Kind.BACKUP: gettext_lazy("VM backups are not sold in %(code)s."),
}


@dataclass(frozen=True)
class LocationOffer:
    """`reason` is why the location can't be chosen, or empty. `price` says what a volume costs there."""

    location: Location
    reason: str
    price: str = ""


@dataclass(frozen=True)
class ProjectOffer:
    """`source_count` counts its own volumes or machines in the location. `reason` is why it can't be chosen, or empty."""

    project: Project
    source_count: int
    reason: str


@dataclass(frozen=True)
class SourceOffer:
    """`disks` are the volumes that a snapshot of the source captures."""

    source: Source
    disks: list[Volume]
    last_snapshot_at: datetime | None

    @property
    def size_gb(self) -> int:
        return sum(disk.size_gb for disk in self.disks)


def offered_locations(user: User, kind: str) -> list[LocationOffer]:
    """Return the active locations. Those without a price or without anything that the user can capture have a reason."""
    sources = model_of(kind).objects.changeable_by(user).present().filter(location=OuterRef("pk"))
    counts = sources.order_by().values("location").annotate(count=Count("pk")).values("count")
    currencies = {project.currency for project in user.project_roles if user.can_change(project.id)}
    prices, now = PriceList.load(), timezone.now()
    offers = []
    for location in Location.objects.active().annotate(source_count=Coalesce(Subquery(counts), 0)):
        service = SERVICE_KINDS[Kind(kind)]
        if all(prices.sold_rate(service, location.pk, currency, now) is None for currency in currencies):
            reason = NOT_SOLD[Kind(kind)] % {"code": location.code}
        elif location.source_count:
            reason = ""
        elif kind == Kind.VOLUME:
            reason = _("You have no volume in %(code)s.") % {"code": location.code}
        else:
            reason = _("You have no instance in %(code)s.") % {"code": location.code}
        offers.append(LocationOffer(location, reason))
    return offers


def offered_projects(user: User, draft: Draft) -> list[ProjectOffer]:
    """Return the projects that the user may change. A source may belong to any project of the same customer."""
    sources = "volumes" if draft.kind == Kind.VOLUME else "vms"
    here = Q(**{f"{sources}__location": draft.location_id, f"{sources}__deleted_at": None})
    projects = Project.objects.changeable_by(user).select_related("customer")
    counted = list(projects.annotate(source_count=Count(sources, filter=here)).order_by("name"))
    by_customer = Counter[UUID]()
    for project in counted:
        by_customer[project.customer_id] += project.source_count
    offers = []
    for project in counted:
        reason = ""
        if not by_customer[project.customer_id]:
            reason = (
                _("%(customer)s has no volume in %(code)s.")
                if draft.kind == Kind.VOLUME
                else _("%(customer)s has no instance in %(code)s.")
            )
        names = {"name": project.name, "customer": project.customer.name, "code": draft.location_id}
        offers.append(ProjectOffer(project, project.source_count, reason % names if reason else ""))
    return offers


def offered_sources(user: User, draft: Draft, *, q: str = "", pk: UUID | None = None) -> QuerySet[Any]:
    """Return the volumes or machines that the user may capture for the draft's project in its location.

    They are filtered by the search or the ID; the project's own come first, then those of the customer's other projects.
    """
    assert draft.project is not None  # Earlier steps are checked.
    sources = model_of(draft.kind).objects.changeable_by(user).present().filter(location=draft.location_id)
    sources = sources.filter(project__customer=draft.project.customer_id)
    if q:
        in_machine = name_contains(q, "vm__") if draft.kind == Kind.VOLUME else Q()
        sources = sources.filter(name_contains(q) | in_machine)
    if pk:
        sources = sources.filter(pk=pk)
    sources = sources.select_related("project__customer", "location")
    if draft.kind == Kind.VOLUME:
        sources = sources.select_related("vm")
    elsewhere = Case(When(project=draft.project_id, then=Value(0)), default=Value(1))
    return sources.order_by(elsewhere, "project__name", "name", "id")


def first_sources(user: User, draft: Draft, **filters: Any) -> list[SourceOffer]:
    """Return the first SOURCES_SHOWN of `offered_sources`."""
    of_source = {"volume" if draft.kind == Kind.VOLUME else "vm": OuterRef("pk")}
    last = Snapshot.objects.filter(**of_source, deleted_at=None, ready_at__isnull=False).order_by("-ready_at")
    sources = offered_sources(user, draft, **filters).annotate(last_snapshot_at=Subquery(last.values("ready_at")[:1]))
    if draft.kind != Kind.VOLUME:
        disks = Volume.objects.present().order_by("position", "name", "id")
        sources = sources.prefetch_related(Prefetch("volumes", disks))
    return [
        SourceOffer(
            source,
            disks=[source] if isinstance(source, Volume) else list(source.volumes.all()),
            last_snapshot_at=source.last_snapshot_at,
        )
        for source in sources[:SOURCES_SHOWN]
    ]


def find_sources(user: User, kind: str, text: str) -> list[Any]:
    """Search all locations and projects for volumes or machines by name. Returns at most SOURCES_FOUND."""
    hits: QuerySet[Any]
    if kind == Kind.VOLUME:
        volumes = Volume.objects.changeable_by(user).present().filter(state=Volume.State.AVAILABLE)
        hits = volumes.filter(name_contains(text) | name_contains(text, "vm__")).select_related("vm")
    else:
        hits = VirtualMachine.objects.changeable_by(user).present().filter(name_contains(text))
    return list(hits.select_related("project").order_by("name", "id")[:SOURCES_FOUND])


def offered_volume_locations(user: User) -> list[LocationOffer]:
    """Return the active locations. Those whose storage can't create a volume have a reason."""
    currencies = {project.currency for project in user.project_roles if user.can_change(project.id)}
    prices, now = PriceList.load(), timezone.now()
    offers = []
    for location in Location.objects.active():
        rates = [
            _("%(rate)s per GB and hour") % {"rate": format_rate(rate_micro, currency)}
            for currency in sorted(currencies)
            if (rate_micro := prices.sold_rate(ServiceKind.BLOCK_STORAGE, location.pk, currency, now)) is not None
        ]
        price = ", ".join(rates) or _("costs nothing here")
        offers.append(LocationOffer(location, why_no_volumes(location), price))
    return offers


def why_no_volumes(location: Location) -> str:
    """Return why the location's storage can't create a volume now, or an empty string."""
    try:
        volume_services.check_size(location, 1)
        volume_services.check_space(location)
    except ActionRefused as error:
        return str(error)
    except ImproperlyConfigured:
        return _("The storage of %(code)s is not set up.") % {"code": location.pk}
    return ""


def offered_volume_projects(user: User, draft: Draft) -> list[ProjectOffer]:
    """Return the projects that the user may change, with the count of their volumes in the draft's location."""
    here = Count("volumes", filter=Q(volumes__location=draft.location_id, volumes__deleted_at=None))
    projects = Project.objects.changeable_by(user).select_related("customer").annotate(source_count=here)
    return [ProjectOffer(project, project.source_count, "") for project in projects.order_by("name")]


def offered_snapshots(user: User, draft: Draft, *, q: str = "") -> QuerySet[Snapshot]:
    """Return the usable snapshots and backups, newest first, that a new volume of the draft can be made from."""
    assert draft.project is not None  # Earlier steps are checked.
    snapshots = Snapshot.objects.visible_to(user).filter(
        usable(),
        customer=draft.project.customer_id,
        location=draft.location_id,
        project__in=user.changeable_project_ids,
        kind__in=Kind.values,
        deleted_at=None,
    )
    if q:
        snapshots = snapshots.filter(name_contains(q) | name_contains(q, "volume__") | name_contains(q, "vm__"))
    return snapshots.order_by("-created_at", "-pk")


def offered_disks(user: User, draft: Draft) -> QuerySet[DiskImage]:
    return DiskImage.objects.filter(snapshot__in=offered_snapshots(user, draft).order_by())


def model_of(kind: str) -> type[Volume] | type[VirtualMachine]:
    return Volume if kind == Kind.VOLUME else VirtualMachine
