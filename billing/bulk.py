"""The arithmetic of `rating.py` as SQL, over the usage of many customers at once: the same integers, on both databases.

The two differ in how they tell the hours between two instants. PostgreSQL subtracts them; SQLite keeps instants as text,
in UTC and with six digits or none after the second, so that they sort as they should, and its seconds are split off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from uuid import UUID

from django.db import connection

from . import money, rating
from .models import ServiceKind

FIRST, LAST = "0001-01-01 00:00:00", "9999-12-31 00:00:00"


@dataclass(frozen=True, kw_only=True)
class CustomerWindow:
    """One month of one customer, rated as known at `at`; `invoice_id` is for those that are being closed."""

    customer_id: UUID
    month: date
    since: datetime
    until: datetime
    at: datetime
    invoice_id: UUID | None = None


def _dialect() -> dict[str, str]:
    if connection.vendor == "postgresql":
        hours = "CEIL(EXTRACT(EPOCH FROM {end} - {start}) / 3600)::int"
        return {
            "least": "LEAST",
            "greatest": "GREATEST",
            "total": "GREATEST(1, " + hours.format(start="started_at", end="end_at") + ")",
            "until_lower": hours.format(start="started_at", end="lower"),
            "until_upper": hours.format(start="started_at", end="upper"),
            "first_hour": "started_at + first * INTERVAL '1 hour'",
            "last_hour": "started_at + last * INTERVAL '1 hour'",
            "materialized": "MATERIALIZED",
            "first": f"'{FIRST}+00'::timestamptz",
            "last": f"'{LAST}+00'::timestamptz",
            "row": "(%s::uuid, %s::uuid, %s::date, %s::timestamptz, %s::timestamptz, %s::timestamptz)",
            "wide": "::bigint",
        }

    def hours(start: str, end: str) -> str:
        microseconds = f"{_sqlite_microseconds(end)} - {_sqlite_microseconds(start)}"
        return f"(({microseconds} + 3599999999) / 3600000000)"

    def shifted(count: str) -> str:
        return f"datetime(substr(started_at, 1, 19), '+' || {count} || ' hours') || substr(started_at, 20)"

    return {
        "least": "MIN",
        "greatest": "MAX",
        "total": "MAX(1, " + hours("started_at", "end_at") + ")",
        "until_lower": hours("started_at", "lower"),
        "until_upper": hours("started_at", "upper"),
        "first_hour": shifted("first"),
        "last_hour": shifted("last"),
        "materialized": "",
        "first": f"'{FIRST}'",
        "last": f"'{LAST}'",
        "row": "(%s, %s, %s, %s, %s, %s)",
        "wide": "",
    }


def _sqlite_microseconds(instant: str) -> str:
    return f"(strftime('%%s', substr({instant}, 1, 19)) * 1000000 + CAST(substr({instant}, 21) AS INTEGER))"


def adapt(value: object) -> object:
    """As the database keeps it, for a parameter of raw SQL."""
    if isinstance(value, UUID):
        return value if connection.features.has_native_uuid_field else value.hex
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, date):
        return connection.ops.adapt_datefield_value(value)
    return value


def rated(windows: Sequence[CustomerWindow]) -> tuple[str, list[object]]:
    """A WITH clause and its parameters. `line` has the hours, rate and amount of each segment, month and price.

    `rate_micro` and `amount_micro` are NULL for hours before the first price. As in `rating.rate`: `total` are the hours
    of the segment, `first` and `last` how many of them start before the two ends of the interval.
    """
    words = _dialect()
    sql = """
        WITH win (customer_id, invoice_id, month, since, until, at) AS (VALUES {rows}),
        price AS {materialized} (
            SELECT p.kind, p.location_id, v.id, v.rate_micro, v.starts_at AS since,
                COALESCE(
                    LEAD(v.starts_at) OVER (PARTITION BY p.kind, p.location_id ORDER BY v.starts_at, v.id), {last}
                ) AS until
            FROM billing_priceversion v JOIN billing_package p ON p.id = v.package_id
            UNION ALL
            SELECT p.kind, p.location_id, NULL, NULL, {first}, MIN(v.starts_at)
            FROM billing_priceversion v JOIN billing_package p ON p.id = v.package_id
            GROUP BY p.kind, p.location_id
        ),
        seen AS (
            SELECT s.id, s.customer_id, s.project_id, s.location_id, s.resource_id, s.resource_name, s.kind, s.size_gb,
                s.base_rate_micro, s.started_at, w.invoice_id, w.month, w.since, w.until,
                {least}(COALESCE(s.ended_at, w.at), w.at) AS end_at
            FROM win w JOIN billing_usagesegment s ON s.customer_id = w.customer_id
                AND s.started_at < w.until AND s.started_at <= w.at
                AND (s.ended_at IS NULL OR s.ended_at >= w.since)
        ),
        span AS (
            SELECT seen.*, p.id AS price_id, COALESCE(seen.base_rate_micro, p.rate_micro) AS rate_micro,
                {total} AS total,
                CASE WHEN p.since > seen.since THEN p.since ELSE seen.since END AS lower,
                CASE WHEN p.until < seen.until THEN p.until ELSE seen.until END AS upper
            FROM seen LEFT JOIN price p ON p.kind = seen.kind AND p.location_id = seen.location_id
                AND p.since < seen.until AND p.until > seen.since
        ),
        part AS (
            SELECT span.*,
                CASE WHEN lower <= started_at THEN 0 ELSE {least}(total, {until_lower}) END AS first,
                CASE WHEN upper <= started_at THEN 0 WHEN upper >= end_at THEN total
                    ELSE {least}(total, {until_upper}) END AS last
            FROM span
        ),
        measured AS (
            SELECT part.*, last - first AS hours,
                CASE WHEN base_rate_micro IS NULL THEN (last - first){wide} * size_gb * rate_micro
                    ELSE (last - first) * base_rate_micro END AS exact,
                CASE WHEN base_rate_micro IS NULL THEN {unit} ELSE {unit} * {divisor} END AS unit
            FROM part WHERE last > first
        ),
        line AS (
            SELECT measured.*, {unit} * (
                exact / unit
                + CASE WHEN 2 * (exact % unit) > unit
                    OR (2 * (exact % unit) = unit AND (exact / unit) % 2 = 1) THEN 1 ELSE 0 END
            ) AS amount_micro,
            {first_hour} AS from_at,
            CASE WHEN last = total AND end_at < until THEN end_at ELSE {last_hour} END AS to_at
            FROM measured
        )
    """
    rows = ", ".join([words["row"]] * len(windows))
    sql = sql.replace("%", "%%").format(  # modulo, not a parameter
        **words, rows=rows, unit=money.HUNDREDTH_MICRO, divisor=rating.AUTOMATIC_DIVISOR
    )
    parameters = [
        adapt(value)
        for window in windows
        for value in (
            window.customer_id,
            window.invoice_id,
            window.month,
            window.since,
            window.until,
            min(window.at, window.until),
        )
    ]
    return sql, parameters


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
    """Write the lines of the windows' invoices; returns how many. Raises IntegrityError where a price is missing."""
    sql, parameters = rated(windows)
    with connection.cursor() as cursor:
        insert = """
            INSERT INTO billing_invoiceline (
                invoice_id, segment_id, price_version_id, month, resource_id, kind, resource_name, project_id,
                project_name, location_code, from_at, to_at, hours, size_gb, rate_micro, amount_micro
            )
        """
        select = """
            SELECT line.invoice_id, line.id, line.price_id, line.month, line.resource_id, line.kind, line.resource_name,
                line.project_id, project.name, line.location_id, line.from_at, line.to_at, line.hours, line.size_gb,
                line.rate_micro, line.amount_micro
            FROM line JOIN accounts_project project ON project.id = line.project_id
        """
        cursor.execute(f"{insert} {sql} {select}", parameters)
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
