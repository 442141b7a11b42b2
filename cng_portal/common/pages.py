"""Keyset pagination: each page continues after a row of the previous one, by an index instead of an offset."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from django.http import QueryDict
from django.utils.functional import Promise

PAGE_SIZE = 20
# Counting stops here. Longer lists display "more than".
MAX_COUNTED = 10_000

M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Order:
    """An order of a list: by `field`, then by ID in the same direction, as in the index."""

    label: str | Promise = field(compare=False)
    field: str
    descending: bool = False

    def fields(self, *, backwards: bool = False) -> list[str]:
        sign = "-" if self.descending != backwards else ""
        return [f"{sign}{self.field}", f"{sign}pk"]

    def after(self, value: Any, pk: UUID, *, backwards: bool = False) -> Q:
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


def page_of(
    queryset: QuerySet[M], order: Order, params: QueryDict, *, size: int = PAGE_SIZE, counted: bool = True
) -> Page[M]:
    """Return the page of `?after=` or `?before=`, or the first page if the cursor is invalid or past the end.

    Without `counted`, the total is that of the page.
    """
    rows: list[M] = []
    cursor, backwards = None, False
    for direction in ("after", "before"):
        if not rows and (cursor := order.read_cursor(queryset.model, params.get(direction, ""))):
            backwards = direction == "before"
            following = queryset.filter(order.after(*cursor, backwards=backwards))
            rows = list(following.order_by(*order.fields(backwards=backwards))[: size + 1])
    if not rows:
        cursor, backwards = None, False
        rows = list(queryset.order_by(*order.fields())[: size + 1])
    more, rows = len(rows) > size, rows[:size]
    # A first page that isn't full has all rows.
    total = queryset.order_by()[: MAX_COUNTED + 1].count() if counted and (more or cursor) else len(rows)
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
