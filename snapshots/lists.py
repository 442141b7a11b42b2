"""Lists that stay quick however long they are: filters kept in the URL, orders, and pages by key instead of offset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models import (
    BooleanField,
    CharField,
    Exists,
    F,
    Func,
    IntegerField,
    Model,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
)
from django.db.models.functions import Cast, Concat
from django.db.models.lookups import GreaterThan, LessThan
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Project, User
from cng_portal.inventory.models import Location, OwnedQuerySet, VirtualMachine, Volume

from .models import BackupRun, BackupSchedule, DiskImage, Snapshot, State

PAGE_SIZE = 20
# Counting goes on to here; beyond, a list says "more than".
COUNTED = 10_000
COUNTED_SEARCHING = 1_000
# A select with more volumes or machines than this is of no use to anybody; the search finds them by name.
SOURCES_OFFERED = 300

M = TypeVar("M", bound=Model)


# --- pages by key ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """One order of a list: by `field`, and by id within equals, in the same direction, as an index has it."""

    label: str | Promise
    field: str
    descending: bool = False

    def by(self, *, backwards: bool = False) -> list[str]:
        sign = "-" if self.descending != backwards else ""
        return [f"{sign}{self.field}", f"{sign}pk"]


class RowValue(Func):
    """`(a, b)`: compared as a whole, so that the database finds the place in the index in one step."""

    template = "(%(expressions)s)"
    output_field = BooleanField()


@dataclass(frozen=True)
class Page(Generic[M]):
    """`after` and `before` are cursors for the pages next to this one, "" where there is none; `total` is of all pages."""

    rows: list[M]
    after: str = ""
    before: str = ""
    is_first: bool = True
    total: int = 0
    has_more: bool = False  # than the total, which is counted up to a limit

    def urls(self, path: str, params: Mapping[str, str]) -> dict[str, str]:
        """What partials/pagination.html needs, with the filters kept."""
        first = f"{path}?{urlencode(params)}" if params else path
        return {
            "first_url": "" if self.is_first else first,
            "previous_url": f"{path}?{urlencode({**params, 'before': self.before})}" if self.before else "",
            "next_url": f"{path}?{urlencode({**params, 'after': self.after})}" if self.after else "",
        }


def cursor_of(row: Model, order: Order) -> str:
    value = getattr(row, order.field)
    return f"{row.pk}~{value.isoformat() if isinstance(value, datetime) else value}"


def read_cursor(model: type[Model], order: Order, text: str) -> tuple[Any, UUID] | None:
    """(value, id), or None for what is no cursor of this order."""
    if "\x00" in text:  # which PostgreSQL does not take
        return None
    key, _tilde, raw = text.partition("~")
    field = model._meta.get_field(order.field)
    try:
        value = field.clean(raw, None)  # type: ignore[union-attr]  # a column, never a relation
        return (value.astimezone(UTC) if isinstance(value, datetime) else value), UUID(key)
    except (ValidationError, ValueError, OverflowError):
        return None


class IsIn(Func):
    """`a IN (SELECT …)`, in the words in which PostgreSQL finds it by an index beside what is joined to it by OR."""

    arg_joiner = " IN "
    template = "%(expressions)s"
    output_field = BooleanField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, arg_joiner=" = ANY (ARRAY", template="%(expressions)s)", **context)


class CountOf(Subquery):
    template = "(SELECT COUNT(*) FROM (%(subquery)s) counted)"
    output_field = IntegerField()


def page_of(
    found: QuerySet[M],
    order: Order,
    params: QueryDict,
    *,
    rows: QuerySet[M],
    searching: bool = False,
    size: int = PAGE_SIZE,
    counted_by: str = "project_id",
) -> Page[M]:
    """The page that `?after=` or `?before=` asks for; the first one where the cursor is bad or nothing is there any
    more.

    One query: the keys come from an index alone, and only what is on this page is read, joined and annotated, as `rows`
    says. The count comes with them. What has to be looked at row by row, `searching`, is counted in the order of the
    page, so that both walk the same part of the table, and not as far.
    """
    most = COUNTED_SEARCHING if searching else COUNTED
    counted = found.order_by(*order.by()) if searching else found.order_by()
    # `counted_by` is a column of the index, which the id is not
    rows_with_total: QuerySet[Any] = rows.annotate(total=CountOf(counted.values(counted_by)[: most + 1]))
    for direction in ("after", "before"):
        cursor = read_cursor(found.model, order, params.get(direction, ""))
        if (
            cursor
            and (page := _page(found, order, rows_with_total, size, most, cursor, backwards=direction == "before")).rows
        ):
            return page
    return _page(found, order, rows_with_total, size, most, None, backwards=False)


def _page(
    found: QuerySet[M],
    order: Order,
    rows: QuerySet[M],
    size: int,
    most: int,
    cursor: tuple[Any, UUID] | None,
    *,
    backwards: bool,
) -> Page[M]:
    if cursor:
        fields: list[Any] = [found.model._meta.get_field(order.field), found.model._meta.pk]
        here = RowValue(*(Value(value, output_field=field) for value, field in zip(cursor, fields, strict=True)))
        beyond = LessThan if order.descending != backwards else GreaterThan
        found = found.filter(beyond(RowValue(F(order.field), F("pk")), here))
    keys = found.order_by(*order.by(backwards=backwards)).values("pk")[: size + 1]
    shown = list(rows.filter(pk__in=keys).order_by(*order.by(backwards=backwards)))
    total = shown[0].total if shown else 0
    more = len(shown) > size
    shown = shown[:size]
    if backwards:
        shown.reverse()
    has_next, has_previous = (bool(cursor), more) if backwards else (more, bool(cursor))
    return Page(
        rows=shown,
        after=cursor_of(shown[-1], order) if shown and has_next else "",
        before=cursor_of(shown[0], order) if shown and has_previous else "",
        is_first=not has_previous,
        total=min(total, most),
        has_more=total > most,
    )


def any_of(keys: Sequence[QuerySet[Any, Any]]) -> QuerySet[Any, Any]:
    """The ids in any of these, each of which may end at a limit: for `pk__in`, where OR would read the whole table."""
    first, *others = keys
    if others and not connection.features.supports_slicing_ordering_in_compound:  # SQLite
        first, *others = (one.model.objects.filter(pk__in=one).order_by().values("pk") for one in keys)
    return first.union(*others, all=True) if others else first


# --- filters -----------------------------------------------------------------------------------------------------------


SNAPSHOT_ORDERS = {
    "newest": Order(_("Newest first"), "created_at", descending=True),
    "oldest": Order(_("Oldest first"), "created_at"),
    "name": Order(_("By name"), "name_key"),
    "largest": Order(_("Largest first"), "size_gb", descending=True),
}
BY_NAME = Order(_("By name"), "name")
NEWEST_SCHEDULE = Order(_("Newest first"), "created_at", descending=True)
NEWEST_RUN = Order(_("Newest first"), "slot", descending=True)


def of_named(field: str, sources: OwnedQuerySet, text: str) -> Q:
    """That the field is the id of a volume or machine whose name contains the text: a condition for lists of what belongs to
    them, without a join.
    """
    return Q(IsIn(F(field), Subquery(sources.filter(name__icontains=text).order_by().values("pk"))))


# Volumes of which no snapshot can be restored, and none and no backup of their machine either: a condition.
UNPROTECTED = ~Exists(Snapshot.objects.filter(volume=OuterRef("pk"), state=State.READY)) & ~Exists(
    DiskImage.objects.filter(volume=OuterRef("pk"), snapshot__vm__isnull=False, snapshot__state=State.READY)
)


def with_last_run(schedules: QuerySet[BackupSchedule]) -> QuerySet[BackupSchedule]:
    """With `last_state`, `last_slot` and `last_reason` of the newest run that has ended, None where there is none."""
    ended = BackupRun.objects.filter(schedule=OuterRef("pk"), finished_at__isnull=False).order_by("-slot", "-pk")
    return schedules.annotate(
        **{f"last_{field}": Subquery(ended.values(field)[:1]) for field in ("state", "slot", "reason")}
    )


def troubled(schedules: QuerySet[BackupSchedule]) -> QuerySet[BackupSchedule]:
    """Those, of with_last_run, whose last run failed or was missed."""
    return schedules.filter(last_state__in=[BackupRun.State.FAILED, BackupRun.State.MISSED])


def parse_uuid(text: str) -> UUID | None:
    """With hyphens or without."""
    try:
        return UUID(text)
    except ValueError:
        return None


Choices = list[tuple[str, Any]]  # a label may be lazy


def filter_choices(user: User, *, source: str = "", wanted: str = "") -> dict[str, Choices]:
    """{"location": [(code, name)], "project": [(id, name)], source: …} of what the person sees, by name. One query.

    `source` is "volume", "vm" or "" for neither; `wanted` is the id of one that the URL asks for, which is offered even
    where there are too many to offer all.
    """
    name = Concat("name", Value(" · "), "customer__name") if len(user.customer_ids) > 1 else F("name")
    offered = [
        _as_options("location", Location.objects.all(), F("code"), Concat("code", Value(" · "), "city")),
        _as_options("project", Project.objects.visible_to(user), F("id"), name),
    ]
    if source == "volume":
        # those that never came to be are left out; those that are gone stay, because their snapshots are still there
        usable = Volume.objects.visible_to(user).filter(state=Volume.State.AVAILABLE)
        offered.append(_as_options(source, usable, F("id"), F("name")))
    elif source == "vm":
        offered.append(_as_options(source, VirtualMachine.objects.visible_to(user), F("id"), F("name")))
    choices: dict[str, Choices] = {what: [] for what in ("location", "project", source) if what}
    for what, key, label in offered[0].union(*offered[1:], all=True).order_by("what", "label", "key"):
        choices[what].append((key if what == "location" else str(UUID(key)), label))
    if source:
        also = [option for option in choices[source][SOURCES_OFFERED:] if option[0] == wanted]
        choices[source] = choices[source][:SOURCES_OFFERED] + also
    return choices


def _as_options(what: str, found: QuerySet[Any], key: Any, label: Any) -> QuerySet[Any, Any]:
    return (
        found.order_by()
        .annotate(what=Value(what), key=Cast(key, CharField()), label=Cast(label, CharField()))
        .values_list("what", "key", "label")
    )
