"""Lists that stay quick however long they are: filters kept in the URL, orders, and pages by key instead of offset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
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
from cng_portal.accounts.prepared import Found, Given, prepared
from cng_portal.inventory.models import Location, OwnedQuerySet, VirtualMachine, Volume

from .models import BackupRun, BackupSchedule, DiskImage, Snapshot, usable

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

    label: str | Promise = field(compare=False)
    field: str
    descending: bool = False

    def by(self, *, backwards: bool = False) -> list[str]:
        sign = "-" if self.descending != backwards else ""
        return [f"{sign}{self.field}", f"{sign}pk"]


class RowValue(Func):
    """`(a, b)`: compared as a whole, so that the database finds the place in the index in one step."""

    template = "(%(expressions)s)"
    output_field = BooleanField()


class Page(Generic[M]):
    """`after` and `before` are cursors for the pages next to this one, "" where there is none; `total` is of all pages.

    The rows are made of what was found when somebody asks for them.
    """

    def __init__(
        self,
        found: Found[Any],
        order: Order,
        *,
        size: int,
        most: int,
        cursor: tuple[Any, UUID] | None,
        backwards: bool,
    ) -> None:
        self.raw, self._found, self._order, self._backwards = found.raw, found, order, backwards
        self._size, self._most = size, most
        more = len(found.raw) > size
        self._has_next, self._has_previous = (bool(cursor), more) if backwards else (more, bool(cursor))
        self.is_first = not self._has_previous

    @property
    def ids(self) -> list[UUID]:
        """Of the rows, and of the next one where there is one."""
        return [UUID(str(row[0])) for row in self.raw]

    @cached_property
    def rows(self) -> list[M]:
        shown = self._found.rows[: self._size]
        return shown[::-1] if self._backwards else shown

    @property
    def after(self) -> str:
        return cursor_of(self.rows[-1], self._order) if self._has_next and self.rows else ""

    @property
    def before(self) -> str:
        return cursor_of(self.rows[0], self._order) if self._has_previous and self.rows else ""

    @property
    def _counted(self) -> int:
        return self.rows[0].total if self.rows else 0  # type: ignore[attr-defined,no-any-return]  # annotated

    @property
    def total(self) -> int:
        return min(self._counted, self._most)

    @property
    def has_more(self) -> bool:
        """Than the total, which is counted up to a limit."""
        return self._counted > self._most

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


class Ids(Subquery):
    empty_result_set_value = NotImplemented  # in nothing, there is nothing to be found


class IsIn(Func):
    """`a IN (SELECT …)`, in the words in which PostgreSQL finds it by an index beside what is joined to it by OR, and does
    not have to look for the best order of what is inside and around it.
    """

    arg_joiner = " IN "
    template = "%(expressions)s"
    output_field = BooleanField()

    def __init__(self, field: str, ids: QuerySet[Any, Any]) -> None:
        super().__init__(F(field), Ids(ids))

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, arg_joiner=" = ANY (ARRAY", template="%(expressions)s)", **context)


class CountOf(Subquery):
    template = "(SELECT COUNT(*) FROM (%(subquery)s) counted)"
    output_field = IntegerField()


def page_of(
    find: Callable[..., QuerySet[M]],
    order: Order,
    params: QueryDict,
    *,
    rows: Callable[[], QuerySet[M]],
    size: int = PAGE_SIZE,
    counted_by: str = "project_id",
    **given: Any,
) -> Page[M]:
    """The page that `?after=` or `?before=` asks for of what `find(**given)` finds; the first one where the cursor is bad
    or nothing is there any more. `find` and `rows` are as of @prepared.

    One query: the keys come from an index alone, and only what is on this page is read, joined and annotated, as `rows`
    says. The count comes with them. What has to be looked at row by row, as a text `q` asks, is counted in the order of
    the page, so that both walk the same part of the table, and not as far.
    """
    most = COUNTED_SEARCHING if given.get("q") else COUNTED

    def page(cursor: tuple[Any, UUID] | None, *, backwards: bool) -> Page[M]:
        value, pk = cursor or (None, None)
        value = Given(value) if isinstance(value, str) else value
        found = _rows.found(find, rows, order, backwards, size + 1, most + 1, counted_by, value, pk, **given)
        return Page(found, order, size=size, most=most, cursor=cursor, backwards=backwards)

    for direction in ("after", "before"):
        text = params.get(direction)
        cursor = read_cursor(rows().model, order, text) if text else None
        if cursor and (there := page(cursor, backwards=direction == "before")).raw:
            return there
    return page(None, backwards=False)


@prepared(skewed=True)
def _rows(
    find: Callable[..., QuerySet[Any]],
    rows: Callable[[], QuerySet[Any]],
    order: Order,
    backwards: bool,
    size: int,
    most: int,
    counted_by: str,
    value: Any,
    pk: UUID | None,
    /,
    **given: Any,
) -> QuerySet[Any]:
    """The rows beyond the one that has this value and id, each with the `total`."""
    found = find(**given)
    counted = found.order_by(*order.by()) if given.get("q") else found.order_by()
    # `counted_by` is a column of the index, which the id is not
    total = CountOf(counted.values(counted_by)[:most])
    if pk:
        fields: list[Any] = [found.model._meta.get_field(order.field), found.model._meta.pk]
        here = RowValue(*(Value(one, output_field=field) for one, field in zip((value, pk), fields, strict=True)))
        beyond = LessThan if order.descending != backwards else GreaterThan
        found = found.filter(beyond(RowValue(F(order.field), F("pk")), here))
    keys = found.order_by(*order.by(backwards=backwards)).values("pk")[:size]
    return rows().annotate(total=total).filter(IsIn("pk", keys)).order_by(*order.by(backwards=backwards))


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
    return Q(IsIn(field, sources.filter(name__icontains=text).order_by().values("pk")))


# Volumes of which no snapshot can be restored, and none and no backup of their machine either: a condition.
UNPROTECTED = ~Exists(Snapshot.objects.filter(usable(), volume=OuterRef("pk"))) & ~Exists(
    DiskImage.objects.filter(usable("snapshot__"), volume=OuterRef("pk"), snapshot__vm__isnull=False)
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
    choices: dict[str, Choices] = {what: [] for what in ("location", "project", source) if what}
    for what, key, label in _offered(user, source):
        choices[what].append((key if what == "location" else str(UUID(key)), label))
    if source:
        also = [option for option in choices[source][SOURCES_OFFERED:] if option[0] == wanted]
        choices[source] = choices[source][:SOURCES_OFFERED] + also
    return choices


@prepared
def _offered(user: User, source: str) -> QuerySet[Any, Any]:
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
    return offered[0].union(*offered[1:], all=True).order_by("what", "label", "key")


def _as_options(what: str, found: QuerySet[Any], key: Any, label: Any) -> QuerySet[Any, Any]:
    return (
        found.order_by()
        .annotate(what=Value(what), key=Cast(key, CharField()), label=Cast(label, CharField()))
        .values_list("what", "key", "label")
    )
