"""Sums of amounts that no number of rows can overflow."""

from typing import Any

from django.db.models import Field, Sum

PART = 1_000_000


class _TotalField(Field):
    def get_internal_type(self) -> str:
        return "TextField"  # an integer field would be converted before `from_db_value`

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> int:
        if isinstance(value, str):
            high, low = value.split()
            return int(high) * PART + int(low)
        return int(value or 0)


class ExactSum(Sum):
    """The sum of integers as a Python integer of any size; 0 for no rows.

    SQLite sums 64-bit integers and fails when they overflow, so there the millions and the rest are summed apart.
    PostgreSQL sums them as numeric.
    """

    empty_result_set_value = 0  # of `none()`, which needs no query

    def __init__(self, expression: Any, **extra: Any) -> None:
        super().__init__(expression, output_field=_TotalField(), **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, tuple[Any, ...]]:
        sql, params = compiler.compile(self.get_source_expressions()[0])
        return f"(SUM(({sql}) / {PART}) || ' ' || SUM(({sql}) %% {PART}))", (*params, *params)
