"""Queries that are put together once: to turn a query of many tables into SQL takes Django longer than the database takes to
answer it.

    @prepared
    def _snapshots(user: User, kind: str, *, since: datetime) -> QuerySet[Snapshot]:
        return Snapshot.objects.visible_to(user).filter(kind=kind, created_at__gt=since).select_related("volume")

    _snapshots(user, Kind.VM, since=then)  # a list; _snapshots.found(…) has it as `raw` tuples too

The function runs once for each shape of its arguments, with stand-ins, and what is found where they were in the SQL is
replaced by what is given from then on. A person (whose id, customer and roles are all that may be read), an id, a time, a
`Given` text and a list of ids are values; everything else (a kind, an order, None) is part of the shape and has to be
hashable.

So the function may depend on nothing but its arguments. An id or a time in the SQL that came from elsewhere, from a clock
or from another query, is refused, and so is a value that does not come through as it was given.

PostgreSQL keeps the plan too, which takes longer to find than to follow. With `@prepared(skewed=True)` it makes a new one
each time: for what is found by a value of which one has a few rows and another very many.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import copy
from datetime import UTC, datetime
from functools import cached_property, partial, wraps
from itertools import count
from typing import Any, Generic, ParamSpec, TypeVar, overload
from uuid import UUID

from django.core.exceptions import EmptyResultSet
from django.db import NotSupportedError, connections
from django.db.models import DateTimeField, Field, QuerySet, UUIDField

from .models import User

P = ParamSpec("P")
Row = TypeVar("Row")

MOST_SHAPES = 400  # in a process, about 100 KB each: then the oldest go


class Given(str):
    """A text that is a value, and no part of the shape."""


class Stand(datetime):
    """A time that stands for another one: with which nobody must reckon."""

    def _refuse(self, *_args: Any) -> Any:
        raise TypeError("A prepared query cannot reckon with a time. Give it the result as an argument.")

    __add__ = __radd__ = __sub__ = __rsub__ = _refuse


MARK = re.compile("\ue000\\d+\ue000")  # of private use: no text that a person types is found by it
VALUES = (UUID, datetime, Stand, Given)
FIELDS: dict[type, Field[Any, Any]] = {UUID: UUIDField(), datetime: DateTimeField(), Stand: DateTimeField()}


@overload
def prepared(build: Callable[P, QuerySet[Any, Row]]) -> Callable[P, list[Row]]: ...
@overload
def prepared(*, skewed: bool) -> Callable[[Callable[P, QuerySet[Any, Row]]], Callable[P, list[Row]]]: ...
def prepared(build: Any = None, *, skewed: bool = False) -> Any:
    if build is None:
        return partial(prepared, skewed=skewed)

    def ask(*args: Any, **kwargs: Any) -> Found[Any]:
        values: list[Any] = []
        key = (
            build,
            tuple([_shape(one, values) for one in args]),
            tuple([(name, _shape(one, values)) for name, one in kwargs.items()]),
        )
        shape = SHAPES.get(key)
        if shape is None:
            shape = SHAPES[key] = Shape(build, args, kwargs, skewed)
            if len(SHAPES) > MOST_SHAPES:
                SHAPES.popitem(last=False)
        return shape.found(values)

    @wraps(build)
    def rows(*args: Any, **kwargs: Any) -> list[Any]:
        return ask(*args, **kwargs).rows

    rows.found = ask  # type: ignore[attr-defined]
    return rows


def _shape(argument: Any, values: list[Any]) -> Any:
    """What of the argument is in the words of the SQL; its values are appended."""
    kind = type(argument)
    if kind in VALUES:
        values.append(argument)
        return kind
    if kind is list:
        if None in argument:
            raise TypeError("A prepared query takes no list with None in it.")
        values += [Given(one) if isinstance(one, str) else one for one in argument]
        return list, len(argument)
    if isinstance(argument, User):
        values += (argument.pk, argument.customer_id)
        customers: dict[UUID, int] = {}
        roles = []
        for project_id, customer_id, role in argument.seen:
            values.append(project_id)
            roles.append((customers.setdefault(customer_id, len(customers)), role))
        values += customers
        return User, argument.customer_id is None, tuple(roles)
    return argument


class Shape:
    """The SQL of one query, and which of its parameters are which of the values."""

    def __init__(self, build: Callable[..., QuerySet[Any, Any]], args: Any, kwargs: Any, skewed: bool) -> None:
        stands = count(1)
        stand_ins: list[Any] = []
        args = [_stand_in(one, stands) for one in args]
        kwargs = {name: _stand_in(one, stands) for name, one in kwargs.items()}
        for one in (*args, *kwargs.values()):
            _shape(one, stand_ins)
        self.queryset = build(*args, **kwargs)
        self.compiler = self.queryset.query.get_compiler(self.queryset.db)
        connection = self.compiler.connection
        try:
            self.sql, params = self.compiler.as_sql()
        except EmptyResultSet:
            self.sql, params = "", ()
        if self.sql:
            converters = self.compiler.get_converters(
                [one[0] for one in self.compiler.select[: self.compiler.col_count]]
            )
            self.compiler.get_converters = lambda _columns: converters
        places = {adapted(value, connection): place for place, value in enumerate(stand_ins) if value is not None}
        self.params = [_placed(one, places) for one in params]
        for place, value in self.params:
            if place is None and looks_given(value):
                raise TypeError(f"{build.__qualname__}: {value!r} is in the SQL and no argument.")
        self.keeps_plan = connection.vendor == "postgresql" and not skewed
        if self.keeps_plan:
            self._write_out(connection)
        used = {place for place, _value in self.params}
        given = [*args, *kwargs.values()]
        if any(one == [] or (isinstance(one, User) and not one.seen) for one in given):
            return  # Django leaves out what finds nothing, and what is joined to it
        for one in given:
            for value in one if isinstance(one, list) else [one]:
                if isinstance(value, (UUID, Stand, Given)) and places[adapted(value, connection)] not in used:
                    raise TypeError(f"{build.__qualname__}: an argument is not in the SQL as it was given.")

    def _write_out(self, connection: Any) -> None:
        """Put what is the same each time into the SQL: so PostgreSQL, which keeps the plan of what it is asked again, knows
        which partial indexes it can use.
        """
        texts = [
            "%s" if place is not None else connection.ops.compose_sql("%s", [one]).replace("%", "%%")
            for place, one in self.params
        ]
        self.sql %= tuple(texts)
        self.params = [(place, one) for place, one in self.params if place is not None]

    def found(self, values: list[Any]) -> "Found[Any]":
        if not self.sql:
            return Found(self, [])
        connection = connections[self.compiler.using]
        params = tuple(
            [
                one
                if place is None
                else one % connection.ops.prep_for_like_query(values[place])
                if one
                else adapted(values[place], connection)
                for place, one in self.params
            ]
        )
        return Found(self, self.ask(connection, params))

    def rows(self, raw: list[tuple[Any, ...]]) -> list[Any]:
        compiler = copy(self.compiler)
        compiler.connection = connections[compiler.using]
        compiler.execute_sql = lambda *_args, **_kwargs: [raw]
        origin = self.queryset
        query: Any = Compiled(origin.query, compiler)
        asked = type(origin)(origin.model, query=query, using=compiler.using)
        for name in ("_iterable_class", "_fields", "_prefetch_related_lookups"):
            setattr(asked, name, getattr(origin, name))
        return list(asked)

    def ask(self, connection: Any, params: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            # Django's log of queries shows their values only where it puts them into the SQL itself
            if self.keeps_plan and not connection.queries_logged:
                keep_plan(cursor, connection)
            try:
                cursor.execute(self.sql, params)
            except NotSupportedError:  # a migration has changed a column since the plan was made
                if connection.in_atomic_block:
                    raise
                cursor.execute("DEALLOCATE ALL")
                cursor.execute(self.sql, params)
            return cursor.fetchall()  # type: ignore[no-any-return]


def keep_plan(cursor: Any, connection: Any) -> None:
    """Let PostgreSQL prepare what is asked with this cursor, and recognise it the next time."""
    from django.db.backends.postgresql.base import ServerBindingCursor

    cursor.cursor.close()
    cursor.cursor = ServerBindingCursor(connection.connection)  # type: ignore[call-arg]
    cursor.cursor.execute = partial(cursor.cursor.execute, prepare=True)


SHAPES: OrderedDict[Any, Shape] = OrderedDict()


class Found(Generic[Row]):
    """What the database said: `raw`, the tuples that tell whether it says the same as before, and `rows`, made of them."""

    def __init__(self, shape: Shape, raw: list[tuple[Any, ...]]) -> None:
        self.shape, self.raw = shape, raw

    @cached_property
    def rows(self) -> list[Row]:
        return self.shape.rows(self.raw) if self.raw else []


class Compiled:
    """A query that has its SQL already."""

    def __init__(self, query: Any, compiler: Any) -> None:
        self.query, self.compiler = query, compiler

    def get_compiler(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.compiler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.query, name)


def adapted(value: Any, connection: Any) -> Any:
    """As the database takes it."""
    field = FIELDS.get(type(value))
    return value if field is None else field.get_db_prep_value(value, connection)


def _placed(param: Any, places: dict[Any, int]) -> tuple[int | None, Any]:
    """(which of the values it is, the pattern around it), or (None, what it always is)"""
    if not isinstance(param, (str, UUID, datetime)):
        return None, param
    if param in places:
        return places[param], ""
    if isinstance(param, str) and (mark := MARK.search(param)):
        before, after = param[: mark.start()], param[mark.end() :]
        return places[mark[0]], before.replace("%", "%%") + "%s" + after.replace("%", "%%")
    return None, param


def looks_given(param: Any) -> bool:
    return isinstance(param, (UUID, datetime)) or (
        isinstance(param, str) and bool(re.match(r"[0-9a-f]{32}$|\d{4}-\d\d-\d\d \d\d:\d\d", param))
    )


def _stand_in(argument: Any, numbers: Iterator[int]) -> Any:
    """Something of the same shape that is found again in the SQL."""
    kind = type(argument)
    if kind is UUID:
        return UUID(int=(0x57A4D << 100) + next(numbers))
    if kind is datetime:
        return Stand(1901, 1, 1, 0, 0, 0, next(numbers), tzinfo=UTC)
    if kind is Given:
        return Given(f"\ue000{next(numbers)}\ue000")
    if kind is list:
        return [_stand_in(Given(one) if isinstance(one, str) else one, numbers) for one in argument]
    if isinstance(argument, User):
        person = User(pk=_stand_in(argument.pk, numbers))
        person.customer_id = argument.customer_id and _stand_in(argument.customer_id, numbers)
        customers = {customer: _stand_in(customer, numbers) for _project, customer, _role in argument.seen}
        person.seen = [
            (_stand_in(project, numbers), customers[customer], role) for project, customer, role in argument.seen
        ]
        return person
    return argument
