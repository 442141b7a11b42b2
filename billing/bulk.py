"""The arithmetic of `rating.py` as SQL, over the usage of many customers at once: the same integers, on both databases.

Instants become microseconds since 1970, so that all that follows is arithmetic of 64-bit integers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from . import money, rating
from .models import ServiceKind

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
HOUR = rating.HOUR // MICROSECOND
MANY = 200
EVER = 2**62  # later and, with a minus, earlier than any instant


@dataclass(frozen=True, kw_only=True)
class CustomerWindow:
    """One month of one customer, rated as known at `at`; `invoice_id` is for those that are being closed."""

    customer_id: UUID
    month: date
    since: datetime
    until: datetime
    at: datetime
    invoice_id: UUID | None = None


@dataclass(frozen=True)
class Dialect:
    least: str
    greatest: str
    microseconds: str  # of the instant {0}
    shifted: str  # the instant {0}, {1} hours later
    fence: str  # keeps the planner from writing an inner expression out at each of its uses
    materialized: str


POSTGRESQL = Dialect(
    least="LEAST",
    greatest="GREATEST",
    # A double has 53 bits: until the year 2106 it tells microseconds apart, and the cast takes the nearest one.
    microseconds="(date_part('epoch', {0}) * 1000000)::bigint",
    shifted="{0} + {1} * INTERVAL '1 hour'",
    fence="OFFSET 0",
    materialized="MATERIALIZED",
)
# SQLite keeps instants as text in UTC, with six digits or none after the second.
SQLITE = Dialect(
    least="MIN",
    greatest="MAX",
    microseconds="(strftime('%s', substr({0}, 1, 19)) * 1000000 + CAST(substr({0}, 21) AS INTEGER))",
    shifted="datetime(substr({0}, 1, 19), '+' || {1} || ' hours') || substr({0}, 20)",
    fence="LIMIT -1 OFFSET 0",
    materialized="",
)


def microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // MICROSECOND


def adapt(value: Any) -> Any:
    """As the database keeps it, for a parameter of raw SQL."""
    if isinstance(value, UUID):
        return value if connection.features.has_native_uuid_field else value.hex
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, date):
        return connection.ops.adapt_datefield_value(value)
    return value


COLUMNS = {
    "customer_id": "uuid",
    "month": "date",
    "since_at": "timestamptz",
    "until_at": "timestamptz",
    "known_at": "timestamptz",
    "since": "bigint",
    "until": "bigint",
    "known": "bigint",
}


def _windows(windows: Sequence[CustomerWindow]) -> tuple[str, list[Any]]:
    """A FROM clause of segments `s` and windows `w`, and its parameters.

    Mostly all customers have the same window. Then the planner gets to see constants, which makes it twice as fast.
    """
    postgresql = connection.vendor == "postgresql"
    rows = []
    for window in windows:
        known_at = min(window.at, window.until)
        instants = (window.since, window.until, known_at)
        row = (window.customer_id, window.month, *instants, *map(microseconds, instants))
        rows.append([adapt(value) for value in row])
    if all(row[1:] == rows[0][1:] for row in rows):
        casts = [f"CAST(%s AS {sql_type})" if postgresql else "%s" for sql_type in COLUMNS.values()][1:]
        named = ", ".join(f"{value} AS {name}" for value, name in zip(casts, [*COLUMNS][1:], strict=True))
        customers = [row[0] for row in rows]
        constants = f"(SELECT {named}) AS w CROSS JOIN"
        if postgresql:
            sql = f"{constants} billing_usagesegment s WHERE s.customer_id = ANY(%s::uuid[]) AND"
            return sql, [*rows[0][1:], customers]
        if len(customers) > MANY:
            # the plus sign: no index, one pass over the table is quicker
            sql = f"{constants} billing_usagesegment s WHERE +s.customer_id IN (SELECT value FROM json_each(%s)) AND"
            return sql, [*rows[0][1:], json.dumps(customers)]
        # SQLite joins in the order in which CROSS JOIN is written; with IN it would look at all customers here
        sql = f"{constants} json_each(%s) AS one CROSS JOIN billing_usagesegment s WHERE s.customer_id = one.value AND"
        return sql, [*rows[0][1:], json.dumps(customers)]
    if postgresql:
        arrays = ", ".join(f"%s::{sql_type}[]" for sql_type in COLUMNS.values())
        given = f"SELECT * FROM unnest({arrays}) AS given ({', '.join(COLUMNS)})"
        parameters: list[Any] = [list(column) for column in zip(*rows, strict=True)]
    else:
        names = ", ".join(f"column{number} AS {name}" for number, name in enumerate(COLUMNS, 1))
        values = ", ".join(["(" + ", ".join(["%s"] * len(COLUMNS)) + ")"] * len(rows))
        given, parameters = f"SELECT {names} FROM (VALUES {values})", [value for row in rows for value in row]
    return f"({given}) AS w JOIN billing_usagesegment s ON s.customer_id = w.customer_id WHERE", parameters


RATED = """
    WITH version AS (
        SELECT p.kind, p.location_id, v.id, v.rate_micro, {version_start} AS since
        FROM billing_priceversion v JOIN billing_package p ON p.id = v.package_id
    ),
    price AS {materialized} (
        SELECT * FROM (
            SELECT kind, location_id, id, rate_micro, since,
                COALESCE(LEAD(since) OVER (PARTITION BY kind, location_id ORDER BY since, id), {ever}) AS until
            FROM version
            UNION ALL
            SELECT kind, location_id, NULL, NULL, -{ever}, MIN(since) FROM version GROUP BY kind, location_id
        ) AS every WHERE until > {earliest}
    ),
    seen AS (
        SELECT s.id, s.customer_id, s.project_id, s.location_id, s.resource_id, s.resource_name, s.kind, s.size_gb,
            s.base_rate_micro, s.started_at, s.ended_at, w.known_at, w.month, w.since, w.until,
            {start} AS start, {least}(COALESCE({end}, w.known), w.known) AS finish
        FROM {windows}
            s.started_at < w.until_at AND s.started_at <= w.known_at AND (s.ended_at IS NULL OR s.ended_at >= w.since_at)
                AND NOT s.never_began
        {fence}
    ),
    span AS (
        SELECT seen.*, p.id AS price_id, COALESCE(seen.base_rate_micro, p.rate_micro) AS rate_micro,
            {greatest}(1, (finish - start + {hour} - 1) / {hour}) AS total,
            COALESCE({greatest}(p.since, seen.since), seen.since) AS lower,
            COALESCE({least}(p.until, seen.until), seen.until) AS upper
        FROM seen LEFT JOIN price p ON p.kind = seen.kind AND p.location_id = seen.location_id
            AND p.since < seen.until AND p.until > seen.since
        {fence}
    ),
    part AS (
        SELECT span.*,
            {least}(total, {greatest}(0, (lower - start + {hour} - 1) / {hour})) AS first,
            {least}(total, {greatest}(0, (upper - start + {hour} - 1) / {hour})) AS last
        FROM span
        {fence}
    ),
    measured AS (
        SELECT part.*, last - first AS hours,
            CASE WHEN base_rate_micro IS NULL THEN (last - first) * size_gb * rate_micro
                ELSE (last - first) * rate_micro END AS exact,
            CASE WHEN base_rate_micro IS NULL THEN {unit} ELSE {unit} * {divisor} END AS unit
        FROM part WHERE last > first
        {fence}
    ),
    line AS (
        SELECT measured.*,
            {unit} * (
                exact / unit + CASE WHEN 2 * (exact % unit) > unit
                    OR (2 * (exact % unit) = unit AND (exact / unit) % 2 = 1) THEN 1 ELSE 0 END
            ) AS amount_micro,
            {from_at} AS from_at,
            CASE WHEN last = total AND finish < until THEN {least}(COALESCE(ended_at, known_at), known_at)
                ELSE {to_at} END AS to_at
        FROM measured
    )
"""


def rated(windows: Sequence[CustomerWindow]) -> tuple[str, list[Any]]:
    """A WITH clause and its parameters. `line` has the hours, rate and amount of each segment, month and price.

    `rate_micro` and `amount_micro` are NULL for hours before the first price. As in `rating.rate`: `total` are the hours
    of the segment, `first` and `last` how many of them start before the two ends of the interval.
    """
    words = POSTGRESQL if connection.vendor == "postgresql" else SQLITE
    given, parameters = _windows(windows)
    sql = RATED.format(
        windows="{windows}",
        version_start=words.microseconds.format("v.starts_at"),
        start=words.microseconds.format("s.started_at"),
        end=words.microseconds.format("s.ended_at"),
        from_at=words.shifted.format("started_at", "first"),
        to_at=words.shifted.format("started_at", "last"),
        least=words.least,
        greatest=words.greatest,
        fence=words.fence,
        materialized=words.materialized,
        hour=HOUR,
        ever=EVER,
        earliest=min(microseconds(window.since) for window in windows),
        unit=money.HUNDREDTH_MICRO,
        divisor=rating.AUTOMATIC_DIVISOR,
    )
    return sql.replace("%", "%%").replace("{windows}", given), parameters  # the signs so far are not parameters


def as_uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))


def owed_by_customer(windows: Sequence[CustomerWindow]) -> dict[UUID, int]:
    """{customer: Σ amounts in millionths}; customers without usage are left out. One query."""
    if not windows:
        return {}
    sql, parameters = rated(windows)
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} SELECT customer_id, SUM(amount_micro) FROM line GROUP BY customer_id", parameters)
        return {as_uuid(customer_id): int(amount or 0) for customer_id, amount in cursor.fetchall()}


def owed_by_kind(windows: Sequence[CustomerWindow]) -> dict[tuple[date, str], int]:
    """{(month, kind): Σ amounts in millionths}. One query."""
    if not windows:
        return {}
    sql, parameters = rated(windows)
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} SELECT month, kind, SUM(amount_micro) FROM line GROUP BY month, kind", parameters)
        return {
            (_as_date(month), ServiceKind(kind).value): int(amount or 0) for month, kind, amount in cursor.fetchall()
        }


def insert_lines(windows: Sequence[CustomerWindow]) -> int:
    """Write the lines of the windows' invoices; returns how many. Raises IntegrityError where a price is missing.

    A customer has one window here.
    """
    sql, parameters = rated(windows)
    pairs = [(adapt(window.customer_id), adapt(window.invoice_id)) for window in windows]
    if connection.vendor == "postgresql":
        invoices = "unnest(%s::uuid[], %s::uuid[]) AS invoice (customer_id, id)"
        parameters += [list(column) for column in zip(*pairs, strict=True)]
    else:
        invoices = (
            "(SELECT key AS customer_id, value AS id FROM json_each(%s) LIMIT -1) AS invoice"  # LIMIT: gets an index
        )
        parameters.append(json.dumps(dict(pairs)))
    with connection.cursor() as cursor:
        # CROSS JOIN tells SQLite to go through the lines once, and to look the other two up
        cursor.execute(
            f"""
            INSERT INTO billing_invoiceline (
                invoice_id, segment_id, price_version_id, month, resource_id, kind, resource_name,
                project_name, location_code, from_at, to_at, hours, size_gb, rate_micro, amount_micro
            )
            {sql}
            SELECT invoice.id, line.id, line.price_id, line.month, line.resource_id, line.kind, line.resource_name,
                project.name, line.location_id, line.from_at, line.to_at, line.hours, line.size_gb,
                line.rate_micro, line.amount_micro
            FROM line CROSS JOIN {invoices} CROSS JOIN accounts_project project
            WHERE invoice.customer_id = line.customer_id AND project.id = line.project_id
            """,
            parameters,
        )
        return cursor.rowcount


def lines(windows: Sequence[CustomerWindow]) -> dict[tuple[UUID, date, datetime], tuple[datetime, int, int | None]]:
    """{(segment, month, from): (to, hours, amount in millionths)}. One query."""
    if not windows:
        return {}
    sql, parameters = rated(windows)
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} SELECT id, month, from_at, to_at, hours, amount_micro FROM line", parameters)
        return {
            (as_uuid(pk), _as_date(month), _as_instant(from_at)): (_as_instant(to_at), int(hours), amount)
            for pk, month, from_at, to_at, hours, amount in cursor.fetchall()
        }


def _as_date(value: date | str) -> date:
    return value if isinstance(value, date) else date.fromisoformat(value)


def _as_instant(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value).replace(tzinfo=UTC)
