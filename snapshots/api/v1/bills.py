"""Usage, invoices and activity of the credential's project. Usage and invoices are for owners."""

from collections.abc import Iterable
from datetime import date
from typing import Any

from django.http import HttpRequest
from ninja import Query, Router

from billing.models import Invoice, InvoiceLine
from billing.statement import Row, usage_rows
from billing.sums import ExactSum
from cng_portal.activity.models import Activity
from cng_portal.common.pages import Order

from . import schemas
from .calls import Paging, amount, call_of, page_of

router = Router()
BY_MONTH = Order("", "month", descending=True)
BY_TIME = Order("", "at", descending=True)


@router.get("/usage", response=schemas.UsagePage, url_name="usage", tags=["Bills"])
def list_usage(request: HttpRequest, filters: Query[schemas.UsageFilters]) -> Any:
    """List the project's usage as on the account statement: first what isn't invoiced yet, then what is."""
    call = call_of(request)
    customer = call.get_billed_customer()
    month = date.fromisoformat(f"{filters.month}-01") if filters.month else None
    rows = usage_rows(customer=customer, at=call.at, project_id=call.project.pk, month=month)
    stop = filters.offset + filters.limit
    page, total_micro = rows.page(filters.offset, stop + 1)
    return {
        "items": [describe_usage(row) for row in page[: filters.limit]],
        "next": stop if len(page) > filters.limit else None,
        "total": amount(total_micro),
    }


def describe_usage(row: Row) -> dict[str, Any]:
    return {
        "resource_id": row.resource_id,
        "kind": row.kind,
        "name": row.name,
        "location": row.location,
        "from_at": row.from_at,
        "to_at": row.to_at,
        "hours": row.hours,
        "size_gb": row.size_gb,
        "rate": None if row.rate_micro is None else amount(row.rate_micro),
        "amount": amount(row.amount_micro),
        "currency": row.currency,
        "invoice": row.invoice_number,
    }


@router.get("/invoices", response=schemas.page_schema(schemas.Invoice), url_name="invoices", tags=["Bills"])
def list_invoices(request: HttpRequest, filters: Query[Paging]) -> Any:
    """List invoices with this project's share, the newest first."""
    call = call_of(request)
    customer = call.get_billed_customer()

    def describe(page: Iterable[Invoice]) -> list[dict[str, Any]]:
        lines = InvoiceLine.objects.filter(invoice__in=[invoice.pk for invoice in page], segment__project=call.project)
        totals = dict(lines.order_by().values_list("invoice").annotate(total=ExactSum("amount_micro")))
        return [
            {
                "id": str(invoice.pk),
                "number": invoice.number,
                "month": invoice.month,
                "from_at": invoice.starts_at,
                "to_at": invoice.ends_at,
                "issued_at": invoice.made_at,
                "project_total": amount(totals.get(invoice.pk, 0)),
                "currency": invoice.currency,
            }
            for invoice in page
        ]

    return page_of(Invoice.objects.filter(customer=customer), BY_MONTH, filters, describe, schemas.Invoice)


@router.get("/activity", response=schemas.page_schema(schemas.ActivityEntry), url_name="activity", tags=["Activity"])
def list_activity(request: HttpRequest, filters: Query[schemas.ActivityFilters]) -> Any:
    """List who did what in the project, the newest first."""
    call = call_of(request)
    rows = Activity.objects.visible_to(call.user).filter(project=call.project)
    if filters.action:
        rows = rows.filter(action=filters.action)

    def describe(page: Iterable[Activity]) -> list[dict[str, Any]]:
        return [
            {
                "id": str(entry.pk),
                "at": entry.at,
                "actor": entry.actor_label,
                "action": entry.action,
                "target_kind": entry.target_kind,
                "target_id": entry.target_id,
                "target": entry.target_name,
                "changes": {name: [before, after] for name, before, after in entry.changes_for(call.user)},
            }
            for entry in page
        ]

    return page_of(rows, BY_TIME, filters, describe, schemas.ActivityEntry)
