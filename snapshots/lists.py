"""The orders of lists, and the choices of their filters."""

from collections.abc import Callable
from typing import Any

from django.db.models import F, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Concat
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Project, User
from cng_portal.common.filters import Choices
from cng_portal.common.ids import parse_uuid
from cng_portal.common.pages import Order
from cng_portal.inventory.models import Location, VirtualMachine, Volume

from .labels import visible_tags
from .models import BackupRun, BackupSchedule, Kind

# Longer selects are unusable. The search finds the others by name.
SOURCES_OFFERED = 300
# The URL name of the list of each kind.
LISTS = {Kind.VOLUME: "volume_snapshots", Kind.VM: "vm_snapshots", Kind.BACKUP: "backups"}


SNAPSHOT_ORDERS = {
    "newest": Order(_("Newest first"), "created_at", descending=True),
    "oldest": Order(_("Oldest first"), "created_at"),
    "name": Order(_("By name"), "name_key"),
    "largest": Order(_("Largest first"), "size_gb", descending=True),
}
BY_NAME = Order(_("By name"), "name")
NEWEST_SCHEDULE = Order(_("Newest first"), "created_at", descending=True)
NEWEST_RUN = Order(_("Newest first"), "number", descending=True)


def with_last_run(schedules: QuerySet[BackupSchedule]) -> QuerySet[BackupSchedule]:
    """Annotate `last_state`, `last_scheduled_at` and `last_reason` of the newest finished run."""
    ended = BackupRun.objects.filter(schedule=OuterRef("pk"), finished_at__isnull=False).order_by("-number")
    return schedules.annotate(
        **{f"last_{field}": Subquery(ended.values(field)[:1]) for field in ("state", "scheduled_at", "reason")}
    )


def troubled(schedules: QuerySet[BackupSchedule]) -> QuerySet[BackupSchedule]:
    """Filter for schedules whose newest finished run failed or was missed."""
    return with_last_run(schedules).filter(last_state__in=[BackupRun.State.FAILED, BackupRun.State.MISSED])


def location_choices(user: User, wanted: str) -> Choices:
    return [(code, f"{code} · {city}") for code, city in Location.objects.values_list("code", "city")]


def project_choices(user: User, wanted: str) -> Choices:
    name = Concat("name", Value(" · "), "customer__name") if len(user.customer_ids) > 1 else F("name")
    projects = Project.objects.visible_to(user).annotate(label=name).order_by("label", "pk")
    return [(str(pk), label) for pk, label in projects.values_list("pk", "label")]


def volume_choices(user: User, wanted: str) -> Choices:
    # Volumes that were never created are left out; deleted ones stay, because their snapshots still exist.
    return _source_choices(Volume.objects.visible_to(user).filter(state=Volume.State.AVAILABLE), wanted)


def machine_choices(user: User, wanted: str) -> Choices:
    return _source_choices(VirtualMachine.objects.visible_to(user), wanted)


def _source_choices(sources: QuerySet[Any], wanted: str) -> Choices:
    named = sources.order_by("name", "pk").values_list("pk", "name")
    offered = dict(named[:SOURCES_OFFERED])
    if (pk := parse_uuid(wanted)) and pk not in offered:
        offered |= dict(named.filter(pk=pk))
    return [(str(pk), name) for pk, name in offered.items()]


def tag_choices(user: User, wanted: str) -> Choices:
    named = visible_tags(user).values_list("pk", "name")
    offered = dict(named[:SOURCES_OFFERED])
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 19 and int(wanted) not in offered:
        offered |= dict(named.filter(pk=int(wanted)))
    return [(str(pk), name) for pk, name in offered.items()]


# By field of a filter form. `wanted` is the ID in the URL, which is always included.
FILTER_CHOICES: dict[str, Callable[[User, str], Choices]] = {
    "location": location_choices,
    "project": project_choices,
    "volume": volume_choices,
    "vm": machine_choices,
    "tag": tag_choices,
}
