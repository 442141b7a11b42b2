"""Lists of any length: orders, keyset pagination, and the choices of filters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models import F, Model, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Concat
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Project, User
from cng_portal.inventory.models import Location, VirtualMachine, Volume

from .labels import visible_tags
from .models import BackupRun, BackupSchedule, Kind

PAGE_SIZE = 20
# Counting stops here. Longer lists display "more than".
MAX_COUNTED = 10_000
# Longer selects are unusable. The search finds the others by name.
SOURCES_OFFERED = 300
# The URL name of the list of each kind.
LISTS = {Kind.VOLUME: "volume_snapshots", Kind.VM: "vm_snapshots", Kind.BACKUP: "backups"}

M = TypeVar("M", bound=Model)


# --- keyset pages ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """An order of a list: by `field`, then by ID in the same direction, as in the index."""

    label: str | Promise = field(compare=False)
    field: str
    descending: bool = False

    def by(self, *, backwards: bool = False) -> list[str]:
        sign = "-" if self.descending != backwards else ""
        return [f"{sign}{self.field}", f"{sign}pk"]

    def beyond(self, value: Any, pk: UUID, *, backwards: bool = False) -> Q:
        """Match the rows after the one with this value and ID."""
        comparison = "lt" if self.descending != backwards else "gt"
        # The first condition is redundant, but tells the database where in the index to start.
        return Q(**{f"{self.field}__{comparison}e": value}) & (
            Q(**{f"{self.field}__{comparison}": value}) | Q(**{f"pk__{comparison}": pk})
        )

    def cursor_of(self, row: Model) -> str:
        value = getattr(row, self.field)
        return f"{row.pk}~{value.isoformat() if isinstance(value, datetime) else value}"

    def read_cursor(self, model: type[Model], text: str) -> tuple[Any, UUID] | None:
        """Return (value, ID), or None if the text isn't a cursor of this order."""
        if "\x00" in text:  # PostgreSQL refuses it.
            return None
        key, _tilde, value = text.partition("~")
        column: Any = model._meta.get_field(self.field)
        try:
            cleaned = column.clean(value, None)
            return (cleaned.astimezone(UTC) if isinstance(cleaned, datetime) else cleaned), UUID(key)
        except (ValidationError, ValueError, OverflowError):
            return None


@dataclass(frozen=True, kw_only=True)
class Page(Generic[M]):
    """A page of a list. `after` and `before` are the cursors of the adjacent pages, or empty."""

    rows: list[M]
    after: str
    before: str
    total: int  # of all pages, at most MAX_COUNTED
    has_more: bool  # whether there are more than `total`
    is_fallback: bool = False  # the first page, in place of one that does not exist

    @property
    def is_first(self) -> bool:
        return not self.before

    def urls(self, path: str, params: Mapping[str, str]) -> dict[str, str]:
        """Return the inputs of partials/pagination.html, with the filters in `params`."""

        def url(**cursor: str) -> str:
            query = urlencode({**params, **cursor})
            return f"{path}?{query}" if query else path

        return {
            "first_url": url() if self.before else "",
            "previous_url": url(before=self.before) if self.before else "",
            "next_url": url(after=self.after) if self.after else "",
        }


def page_of(queryset: QuerySet[M], order: Order, params: QueryDict, *, size: int = PAGE_SIZE) -> Page[M]:
    """Return the page of `?after=` or `?before=`, or the first page if the cursor is invalid or past the end."""
    rows: list[M] = []
    cursor, backwards = None, False
    for direction in ("after", "before"):
        if not rows and (cursor := order.read_cursor(queryset.model, params.get(direction, ""))):
            backwards = direction == "before"
            beyond = queryset.filter(order.beyond(*cursor, backwards=backwards))
            rows = list(beyond.order_by(*order.by(backwards=backwards))[: size + 1])
    if not rows:
        cursor, backwards = None, False
        rows = list(queryset.order_by(*order.by())[: size + 1])
    more, rows = len(rows) > size, rows[:size]
    # A first page that isn't full has all rows.
    total = queryset.order_by()[: MAX_COUNTED + 1].count() if more or cursor else len(rows)
    has_next, has_previous = (cursor is not None, more) if backwards else (more, cursor is not None)
    if backwards:
        rows.reverse()
    return Page(
        rows=rows,
        after=order.cursor_of(rows[-1]) if has_next else "",
        before=order.cursor_of(rows[0]) if has_previous else "",
        total=min(total, MAX_COUNTED),
        has_more=total > MAX_COUNTED,
        is_fallback=cursor is None and bool(params.get("after") or params.get("before")),
    )


# --- filters -----------------------------------------------------------------------------------------------------------


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


def parse_uuid(text: str) -> UUID | None:
    """Return the UUID, or None if the text isn't one."""
    try:
        return UUID(text)
    except ValueError:
        return None


Choices = list[tuple[str, Any]]  # a label may be lazy


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
