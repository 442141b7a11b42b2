"""The arithmetic of `rating.py` in SQL, for many customers at once: the same integers, on both databases.

Instants become microseconds since 1970, so that everything else is 64-bit integer arithmetic.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self
from uuid import UUID

from django.db import connection
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL
from django.utils import timezone

from cng_portal.accounts.models import Customer
from cng_portal.common import money

from . import rating
from .models import ServiceKind, TransactionKind, WalletAccount

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
HOUR = rating.HOUR // MICROSECOND
FULL_SCAN_CUSTOMERS = 200  # from more customers on, SQLite reads the whole table
EVER = 2**62  # later than any instant; negated, earlier than any


@dataclass(frozen=True, kw_only=True)
class CustomerWindow:
    """One month of one customer, with usage as known at `at`."""

    customer_id: UUID
    currency: str
    month: date
    since: datetime
    until: datetime
    at: datetime

    @classmethod
    def build(cls, customer: Customer, window: rating.Window, at: datetime) -> Self:
        month, since, until = window.month, window.since, window.until
        return cls(customer_id=customer.pk, currency=customer.currency, month=month, since=since, until=until, at=at)


@dataclass(frozen=True, kw_only=True)
class ClosingWindow(CustomerWindow):
    """A month that is being closed, with the number of its invoice and the wallet transaction that pays it."""

    invoice_id: UUID
    sequence: int
    transaction_id: UUID
    key: str
    reason: str


@dataclass(frozen=True)
class Dialect:
    least: str
    greatest: str
    microseconds: str  # of the instant {0}
    shifted: str  # started_at, which is `start` in microseconds, {0} hours later
    fence: str  # keeps the planner from inlining a subquery, which would repeat its expressions
    materialized: str


POSTGRESQL = Dialect(
    least="LEAST",
    greatest="GREATEST",
    # A double has 53 bits, enough for microseconds until the year 2106. The cast rounds to the nearest.
    microseconds="(date_part('epoch', {0}) * 1000000)::bigint",
    shifted="started_at + {0} * INTERVAL '1 hour'",
    fence="OFFSET 0",
    materialized="MATERIALIZED",
)
# SQLite stores instants as text in UTC, with six digits or none after the second.
SQLITE = Dialect(
    least="MIN",
    greatest="MAX",
    # 1970 began on Julian day 2440587.5. Twice as fast as strftime('%s'), and unixepoch needs SQLite 3.38.
    microseconds="((CAST(julianday(substr({0}, 1, 19)) * 86400 + 0.5 AS INTEGER) - 210866760000) * 1000000"
    " + CAST(substr({0}, 21) AS INTEGER))",
    shifted="datetime(start / 1000000 + {0} * 3600, 'unixepoch') || substr(started_at, 20)",
    fence="LIMIT -1 OFFSET 0",
    materialized="",
)


def microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // MICROSECOND


def adapt(value: Any) -> Any:
    """Convert a value for a parameter of raw SQL."""
    if isinstance(value, UUID):
        return value if connection.features.has_native_uuid_field else value.hex
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, date):
        return connection.ops.adapt_datefield_value(value)
    return value


COLUMNS = {
    "customer_id": "uuid",
    "currency": "text",
    "minor": "bigint",
    "month": "date",
    "since_at": "timestamptz",
    "until_at": "timestamptz",
    "known_at": "timestamptz",
    "since": "bigint",
    "until": "bigint",
    "known": "bigint",
}


def _windows(windows: Sequence[CustomerWindow]) -> tuple[str, list[Any]]:
    """Return a FROM clause of segments `s` and windows `w`, and its parameters.

    Usually, all customers have the same window. Passing it as constants makes the query twice as fast.
    """
    postgresql = connection.vendor == "postgresql"

    def constant(window: CustomerWindow) -> list[Any]:
        instants = (window.since, window.until, min(window.at, window.until))
        minor = money.unit_micro(window.currency)
        return [
            adapt(value) for value in (window.currency, minor, window.month, *instants, *map(microseconds, instants))
        ]

    if len({tuple(constant(window)) for window in windows}) == 1:
        casts = [f"CAST(%s AS {sql_type})" if postgresql else "%s" for sql_type in COLUMNS.values()][1:]
        named = ", ".join(f"{value} AS {name}" for value, name in zip(casts, [*COLUMNS][1:], strict=True))
        row, customers = constant(windows[0]), [adapt(window.customer_id) for window in windows]
        constants = f"(SELECT {named}) AS w CROSS JOIN"
        if postgresql:
            sql = f"{constants} billing_usagesegment s WHERE s.customer_id = ANY(%s::uuid[]) AND"
            return sql, [*row, customers]
        if len(customers) > FULL_SCAN_CUSTOMERS:
            # The plus sign rules the index out: one pass over the table is faster.
            sql = f"{constants} billing_usagesegment s WHERE +s.customer_id IN (SELECT value FROM json_each(%s)) AND"
            return sql, [*row, json.dumps(customers)]
        # SQLite joins in the written order of CROSS JOIN; with IN it would go through all customers.
        sql = f"{constants} json_each(%s) AS chosen CROSS JOIN billing_usagesegment s WHERE s.customer_id = chosen.value AND"
        return sql, [*row, json.dumps(customers)]
    rows, parameters = _table(COLUMNS, [[adapt(window.customer_id), *constant(window)] for window in windows])
    return f"({rows}) AS w JOIN billing_usagesegment s ON s.customer_id = w.customer_id WHERE", parameters


def _table(columns: dict[str, str], rows: Sequence[Sequence[Any]]) -> tuple[str, list[Any]]:
    """Return adapted rows as a SELECT, and its parameters. `columns` are {name: type on PostgreSQL}."""
    if connection.vendor == "postgresql":
        arrays = ", ".join(f"%s::{sql_type}[]" for sql_type in columns.values())
        return f"SELECT * FROM unnest({arrays}) AS entry ({', '.join(columns)})", [*map(list, zip(*rows, strict=True))]
    names = ", ".join(f"column{number} AS {name}" for number, name in enumerate(columns, 1))
    values = ", ".join(["(" + ", ".join(["%s"] * len(columns)) + ")"] * len(rows))
    return f"SELECT {names} FROM (VALUES {values})", [value for row in rows for value in row]


RATED = """
    WITH version AS (
        SELECT p.kind, p.location_id, p.currency, v.id, v.rate_micro, {version_start} AS since
        FROM billing_priceversion v JOIN billing_package p ON p.id = v.package_id
    ),
    price AS {materialized} (
        SELECT * FROM (
            SELECT kind, location_id, currency, id, rate_micro, since,
                COALESCE(LEAD(since) OVER (PARTITION BY kind, location_id, currency ORDER BY since, id), {ever}) AS until
            FROM version
            UNION ALL
            SELECT kind, location_id, currency, NULL, NULL, -{ever}, MIN(since) FROM version
            GROUP BY kind, location_id, currency
        ) AS every WHERE until > {earliest}
    ),
    seen AS (
        SELECT {carried}, s.kind, s.location_id, s.size_gb, s.base_rate_micro, w.currency, w.minor,
            w.since, w.until,
            {start} AS start, {least}(COALESCE({end}, w.known), w.known) AS finish
        FROM {windows}
            s.started_at < w.until_at AND s.started_at <= w.known_at AND (s.ended_at IS NULL OR s.ended_at >= w.since_at)
                AND NOT s.voided
        {fence}
    ),
    span AS (
        SELECT seen.*, p.id AS price_id, COALESCE(seen.base_rate_micro, p.rate_micro) AS rate_micro,
            {greatest}(1, (finish - start + {hour} - 1) / {hour}) AS total,
            COALESCE({greatest}(p.since, seen.since), seen.since) AS lower,
            COALESCE({least}(p.until, seen.until), seen.until) AS upper
        FROM seen LEFT JOIN price p ON p.kind = seen.kind AND p.location_id = seen.location_id
            AND p.currency = seen.currency AND p.since < seen.until AND p.until > seen.since
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
            CASE WHEN base_rate_micro IS NULL THEN minor ELSE minor * {divisor} END AS unit
        FROM part WHERE last > first
        {fence}
    ),
    line AS (
        SELECT measured.*,
            minor * (
                exact / unit + CASE WHEN 2 * (exact % unit) > unit
                    OR (2 * (exact % unit) = unit AND (exact / unit) % 2 = 1) THEN 1 ELSE 0 END
            ) AS amount_micro
        FROM measured
    )
"""


def rated(windows: Sequence[CustomerWindow], carried: str) -> tuple[str, list[Any]]:
    """Return a WITH clause and its parameters. `line` has the hours, rate and amount of each segment, month and price.

    `carried` are further columns of the segment `s` and the window `w`. Pass only the necessary ones: PostgreSQL sums wide
    rows on disk. `rate_micro` and `amount_micro` are NULL for hours before the first price. As in `rating.rate`, `total` is
    the number of hours of the segment, `first` and `last` how many of them start before the two ends of the interval.
    """
    dialect = POSTGRESQL if connection.vendor == "postgresql" else SQLITE
    from_clause, parameters = _windows(windows)
    sql = RATED.format(
        windows="{windows}",
        carried=carried,
        version_start=dialect.microseconds.format("v.starts_at"),
        start=dialect.microseconds.format("s.started_at"),
        end=dialect.microseconds.format("s.ended_at"),
        least=dialect.least,
        greatest=dialect.greatest,
        fence=dialect.fence,
        materialized=dialect.materialized,
        hour=HOUR,
        ever=EVER,
        earliest=min(microseconds(window.since) for window in windows),
        divisor=rating.AUTOMATIC_DIVISOR,
    )
    return sql.replace("%", "%%").replace("{windows}", from_clause), parameters  # only the FROM clause has parameters


def in_paid_hour(at: datetime) -> RawSQL:
    """Return an expression: whether the last paid hour of a segment that has ended isn't over at the instant."""
    dialect = POSTGRESQL if connection.vendor == "postgresql" else SQLITE
    start, end = (dialect.microseconds.format(f"billing_usagesegment.{name}") for name in ("started_at", "ended_at"))
    paid = f"{start} + {HOUR} * {dialect.greatest}(1, ({end} - {start} + {HOUR} - 1) / {HOUR})"
    return RawSQL(f"{paid} > %s", [microseconds(at)], output_field=BooleanField())


CARRIED_FOR_PERIOD = "s.id, s.started_at, s.ended_at, w.known_at, w.month"


def _period() -> tuple[str, str]:
    """Return SQL for the start of a line's first hour, and for the end of its last one or of the usage within it."""
    dialect = POSTGRESQL if connection.vendor == "postgresql" else SQLITE
    last = f"{dialect.least}(COALESCE(ended_at, known_at), known_at)"
    to_at = f"CASE WHEN last = total AND finish < until THEN {last} ELSE {dialect.shifted.format('last')} END"
    return dialect.shifted.format("first"), to_at


def as_uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))


# Two partial sums, because SQLite fails when a sum overflows 64 bits.
TOTAL = f"SUM(amount_micro / {money.MICRO}), SUM(amount_micro %% {money.MICRO})"


def _total(high: Any, low: Any) -> int:
    return int(high or 0) * money.MICRO + int(low or 0)


def owed_by_customer(windows: Sequence[CustomerWindow]) -> dict[UUID, int]:
    """Return {customer: sum of amounts in millionths}, without customers that have no usage. One query."""
    if not windows:
        return {}
    sql, parameters = rated(windows, "s.customer_id")
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} SELECT customer_id, {TOTAL} FROM line GROUP BY customer_id", parameters)
        return {as_uuid(customer_id): _total(high, low) for customer_id, high, low in cursor.fetchall()}


def owed_by_kind(windows: Sequence[CustomerWindow]) -> dict[tuple[date, datetime, str], int]:
    """Return {(month, known at, kind): sum of amounts in millionths}. One query.

    The same month may be passed with several `at`; one after the month's end counts as its end.
    """
    if not windows:
        return {}
    sql, parameters = rated(windows, "w.month, w.known_at")
    with connection.cursor() as cursor:
        cursor.execute(
            f"{sql} SELECT month, known_at, kind, {TOTAL} FROM line GROUP BY month, known_at, kind",
            parameters,
        )
        return {
            (_as_date(month), _as_instant(known_at), ServiceKind(kind).value): _total(high, low)
            for month, known_at, kind, high, low in cursor.fetchall()
        }


def owed_by_project(windows: Sequence[CustomerWindow]) -> dict[tuple[date, UUID], int]:
    """Return {(month, project): sum of amounts in millionths}. One query."""
    if not windows:
        return {}
    sql, parameters = rated(windows, "w.month, s.project_id")
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} SELECT month, project_id, {TOTAL} FROM line GROUP BY month, project_id", parameters)
        return {
            (_as_date(month), as_uuid(project_id)): _total(high, low)
            for month, project_id, high, low in cursor.fetchall()
        }


def insert_lines(windows: Sequence[ClosingWindow]) -> int:
    """Write the lines of the windows' invoices, one window per customer, and return how many.

    Raises IntegrityError if a price is missing.
    """
    sql, parameters = rated(
        windows, f"s.customer_id, s.project_id, s.resource_id, s.resource_name, {CARRIED_FOR_PERIOD}"
    )
    from_at, to_at = _period()
    pairs = [(adapt(window.customer_id), adapt(window.invoice_id)) for window in windows]
    if connection.vendor == "postgresql":
        invoices = "unnest(%s::uuid[], %s::uuid[]) AS invoice (customer_id, id)"
        parameters += [list(column) for column in zip(*pairs, strict=True)]
    else:
        # With LIMIT, SQLite builds an index.
        invoices = "(SELECT key AS customer_id, value AS id FROM json_each(%s) LIMIT -1) AS invoice"
        parameters.append(json.dumps(dict(pairs)))
    with connection.cursor() as cursor:
        # CROSS JOIN makes SQLite go through the lines once and look the other two up.
        cursor.execute(
            f"""
            INSERT INTO billing_invoiceline (
                invoice_id, segment_id, price_version_id, month, resource_id, kind, resource_name,
                project_name, location_code, from_at, to_at, hours, size_gb, rate_micro, amount_micro
            )
            {sql}
            SELECT invoice.id, line.id, line.price_id, line.month, line.resource_id, line.kind, line.resource_name,
                project.name, line.location_id, {from_at}, {to_at}, line.hours, line.size_gb, line.rate_micro,
                line.amount_micro
            FROM line CROSS JOIN {invoices} CROSS JOIN accounts_project project
            WHERE invoice.customer_id = line.customer_id AND project.id = line.project_id
            """,
            parameters,
        )
        return cursor.rowcount


def insert_invoices(windows: Sequence[ClosingWindow], *, at: datetime) -> None:
    """Write the invoices of lines that have been inserted, and take their totals from the wallets."""
    columns = {"id": "uuid", "customer_id": "uuid", "sequence": "int", "month": "date"}
    columns |= {"since_at": "timestamptz", "until_at": "timestamptz"}
    invoices, parameters = _table(
        columns,
        [
            [adapt(value) for value in (w.invoice_id, w.customer_id, w.sequence, w.month, w.since, w.until)]
            for w in windows
        ],
    )
    moves, move_parameters = _table(
        {"id": "uuid", "invoice_id": "uuid", "key": "text", "reason": "text"},
        [[adapt(w.transaction_id), adapt(w.invoice_id), w.key, w.reason] for w in windows],
    )
    wallet, consumption = f"'{WalletAccount.WALLET.value}'", f"'{WalletAccount.CONSUMPTION.value}'"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH new_invoice AS ({invoices}),
            total AS (
                SELECT invoice_id, SUM(amount_micro) AS amount_micro, COUNT(*) AS lines FROM billing_invoiceline
                WHERE invoice_id IN (SELECT id FROM new_invoice) GROUP BY invoice_id
            )
            INSERT INTO billing_invoice (
                id, customer_id, sequence, month, starts_at, ends_at, customer_number, customer_name, billing_type,
                currency, time_zone, total_micro, line_count, made_at
            )
            SELECT new_invoice.id, customer.id, new_invoice.sequence, new_invoice.month, new_invoice.since_at,
                new_invoice.until_at, customer.number, customer.name, customer.billing_type, customer.currency,
                customer.time_zone, COALESCE(total.amount_micro, 0), COALESCE(total.lines, 0), %s
            FROM new_invoice JOIN accounts_customer customer ON customer.id = new_invoice.customer_id
                LEFT JOIN total ON total.invoice_id = new_invoice.id
            """,
            [*parameters, adapt(at)],
        )
        cursor.execute(
            f"""
            INSERT INTO billing_wallettransaction (
                id, customer_id, kind, source, target, amount_micro, key, reason, invoice_id, at, created_at
            )
            SELECT new_move.id, invoice.customer_id,
                CASE WHEN total_micro > 0 THEN '{TransactionKind.SPENT.value}'
                    ELSE '{TransactionKind.REFUNDED.value}' END,
                CASE WHEN total_micro > 0 THEN {wallet} ELSE {consumption} END,
                CASE WHEN total_micro > 0 THEN {consumption} ELSE {wallet} END,
                ABS(total_micro), new_move.key, new_move.reason, invoice.id, invoice.ends_at, %s
            FROM ({moves}) AS new_move JOIN billing_invoice invoice ON invoice.id = new_move.invoice_id
            WHERE total_micro <> 0
            """,
            [adapt(timezone.now()), *move_parameters],
        )


def lines(windows: Sequence[CustomerWindow]) -> dict[tuple[UUID, date, datetime], tuple[datetime, int, int | None]]:
    """Return {(segment, month, from): (to, hours, amount in millionths)}. One query."""
    if not windows:
        return {}
    sql, parameters = rated(windows, CARRIED_FOR_PERIOD)
    from_at, to_at = _period()
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} SELECT id, month, {from_at}, {to_at}, hours, amount_micro FROM line", parameters)
        return {
            (as_uuid(pk), _as_date(month), _as_instant(from_at)): (_as_instant(to_at), int(hours), amount)
            for pk, month, from_at, to_at, hours, amount in cursor.fetchall()
        }


def _as_date(value: date | str) -> date:
    return value if isinstance(value, date) else date.fromisoformat(value)


def _as_instant(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value).replace(tzinfo=UTC)
