"""A hash chain over the books, which reveals changes made past the portal.

Prices, wallet transactions and invoices get a `Seal` in the transaction that writes them. Each customer and each package
has a chain of its own, numbered without gaps; `digest` covers the row and the seal before it. `verification` compares.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from django.db import connection, models
from django.db.models import Exists, OuterRef

from . import bulk
from .models import Invoice, Package, PriceVersion, Seal, WalletTransaction

# Listed explicitly: a column added later must not change the digests of existing rows.
FIELDS: dict[type[models.Model], tuple[str, ...]] = {
    PriceVersion: (
        "id",
        "package_id",
        "starts_at",
        "rate_micro",
        "corrects_id",
        "reason",
        "created_by_id",
        "created_at",
    ),
    WalletTransaction: (
        "id",
        "customer_id",
        "kind",
        "source",
        "target",
        "amount_micro",
        "key",
        "reason",
        "by_id",
        "grant_id",
        "expires_at",
        "at",
        "created_at",
    ),
    Invoice: (
        "id",
        "customer_id",
        "sequence",
        "month",
        "starts_at",
        "ends_at",
        "customer_number",
        "customer_name",
        "billing_type",
        "currency",
        "time_zone",
        "total_micro",
        "line_count",
        "made_at",
    ),
}
LINE_INSTANTS = ("from_at", "to_at")
LINE_FIELDS = (
    "id",
    "segment_id",
    "corrects_id",
    "price_version_id",
    "month",
    "resource_id",
    "kind",
    "resource_name",
    "project_name",
    "location_code",
    "hours",
    "size_gb",
    "rate_micro",
    "amount_micro",
)
SUBJECTS: dict[type[models.Model], str] = {PriceVersion: "price", WalletTransaction: "transaction", Invoice: "invoice"}
DELETED = "deleted"


def chain_of(row: Any) -> str:
    return f"package {row.package_id}" if isinstance(row, PriceVersion) else f"customer {row.customer_id}"


def subject_of(row: models.Model) -> str:
    return f"{SUBJECTS[type(row)]} {row.pk}"


def seal(row: PriceVersion | WalletTransaction) -> None:
    """Append the row's seal to its chain.

    Must run in the transaction that writes the row. For a wallet transaction the caller must hold the customer's lock.
    """
    if isinstance(row, PriceVersion):
        _lock(row)
    _append([(chain_of(row), subject_of(row), content_of(row))])


def seal_deletion(version: PriceVersion) -> None:
    """Append the seal of a planned price's deletion. Must run before the deletion, in its transaction."""
    _lock(version)
    _append([(chain_of(version), subject_of(version), DELETED)])


def seal_invoices(invoice_ids: Sequence[UUID]) -> None:
    """Append the seals of complete invoices, at most one per customer. The caller must hold the customers' locks."""
    of_lines = digests_of_lines(invoice_ids)
    _append(
        (chain_of(invoice), subject_of(invoice), content_of(invoice, of_lines.get(invoice.pk, "")))
        for invoice in Invoice.objects.filter(pk__in=invoice_ids).order_by("pk").iterator(chunk_size=2000)
    )


def _lock(version: PriceVersion) -> None:
    Package.objects.select_for_update().get(pk=version.package_id)


def _append(entries: Iterable[tuple[str, str, str]]) -> None:
    """Append (chain, subject, content) to the chains. No chain may occur twice."""
    entries = list(entries)
    later = Seal.objects.filter(chain=OuterRef("chain"), sequence__gt=OuterRef("sequence"))
    heads = Seal.objects.filter(~Exists(later), chain__in=[chain for chain, _subject, _content in entries])
    last = {head.chain: head for head in heads}
    Seal.objects.bulk_create(
        Seal(
            chain=chain,
            sequence=last[chain].sequence + 1 if chain in last else 1,
            subject=subject,
            content=content,
            digest=link(last[chain].digest if chain in last else "", subject, content),
        )
        for chain, subject, content in entries
    )


def link(previous: str, subject: str, content: str) -> str:
    return _hash(f"{previous}\n{subject}\n{content}")


def content_of(row: models.Model, *more: str) -> str:
    values = [_canonical(getattr(row, name)) for name in FIELDS[type(row)]]
    if isinstance(row, PriceVersion):  # A price belongs to the kind, location and currency of its package.
        values += [row.package.kind, row.package.location_id, row.package.currency]
    return _hash(json.dumps([*values, *more], ensure_ascii=False))


def _canonical(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digests_of_lines(invoice_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return {invoice: digest of its lines}, computed by the database: a month may have a million lines. One query."""
    if not invoice_ids:
        return {}
    ids = [bulk.adapt(pk) for pk in invoice_ids]
    words = bulk.POSTGRESQL if connection.vendor == "postgresql" else bulk.SQLITE
    columns = [*LINE_FIELDS, *(words.microseconds.format(name) for name in LINE_INSTANTS)]
    if connection.vendor == "postgresql":
        text = " || ',' || ".join(f"quote_nullable({column})" for column in columns)
        sql = (
            f"SELECT invoice_id, encode(sha256(convert_to(string_agg({text}, ';' ORDER BY id), 'UTF8')), 'hex')"
            " FROM billing_invoiceline WHERE invoice_id = ANY(%s::uuid[]) GROUP BY invoice_id"
        )
        parameters: list[Any] = [ids]
    else:
        text = " || ',' || ".join(f"quote({column})" for column in columns)
        sql = (
            f"SELECT invoice_id, SHA256(group_concat(line, ';')) FROM (SELECT invoice_id, {text} AS line"
            " FROM billing_invoiceline WHERE invoice_id IN (SELECT value FROM json_each(%s)) ORDER BY invoice_id, id)"
            " GROUP BY invoice_id"
        )
        parameters = [json.dumps(ids)]
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return {bulk.as_uuid(pk): digest for pk, digest in cursor.fetchall()}


def check_chain(chain: str, contents: dict[str, str]) -> Iterator[str]:
    """Yield a sentence for each difference between the chain and `contents`, {subject: content} of the existing rows."""
    previous, expected = "", 1
    latest: dict[str, str] = {}
    for sealed in Seal.objects.filter(chain=chain).order_by("sequence"):
        if sealed.sequence != expected:
            yield f"{chain}: the seals from {expected} to {sealed.sequence - 1} are missing"
        elif sealed.digest != link(previous, sealed.subject, sealed.content):
            yield f"{chain}: seal {sealed.sequence} was changed"
        previous, expected = sealed.digest, sealed.sequence + 1
        latest[sealed.subject] = sealed.content
    for subject, content in latest.items():
        if subject not in contents:
            if content != DELETED:
                yield f"{subject} was deleted"
        elif contents[subject] != content:
            yield f"{subject} was changed after it was written"
    for subject in contents.keys() - latest.keys():
        yield f"{subject} was not written by the portal"
