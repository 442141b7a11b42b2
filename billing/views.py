"""The billing pages, for users who own a project of the customer. Each list can be downloaded as CSV."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import override
from django.views.decorators.http import require_safe

from cng_portal.accounts.models import BillingType, Customer
from cng_portal.common import money
from cng_portal.common.responses import csv_response, redirect_with_query
from cng_portal.common.templatetags.portal import day as format_day
from cng_portal.common.templatetags.portal import month as format_month
from cng_portal.common.templatetags.portal import near_day

from .access import billed_customer
from .balance import credit_runway, get_standing
from .charges import costs_so_far
from .chart import NARROW, WIDE, build_chart
from .days import costs_by_day, young_days
from .forms import SubscriptionFilterForm, UsageFilterForm
from .links import resource_urls
from .low_balance import low_balance_warning
from .models import Invoice, InvoiceLine, ServiceKind, TransactionKind, WalletTransaction
from .pricing.prices import PriceList
from .pricing.subscriptions import SubscriptionState, get_subscriptions
from .pricing.table import build_price_tables, currencies_of
from .statement import Row, UsageRows, row_of_line, usage_rows
from .summary import Costs, build_summary
from .wallet import get_received_credits

PAGE = 50
MOST_INVOICES = 60
USAGE_COLUMNS = [
    "resource_uuid",
    "kind",
    "name",
    "project",
    "location",
    "from",
    "to",
    "hours",
    "gb",
    "rate",
    "amount",
    "currency",
    "invoice",
    "corrects",
]


def get_customer(request: HttpRequest) -> Customer:
    customer = billed_customer(request.user)
    if customer is None:
        raise Http404
    return customer


def tabs(request: HttpRequest) -> list[dict[str, Any]]:
    labels = {
        "summary": _("Summary"),
        "subscriptions": _("Subscriptions"),
        "credits": _("Infra Credits"),
        "transactions": _("Transactions"),
        "statement": _("Account Statement"),
        "prices": _("Prices"),
    }
    here = request.resolver_match.url_name
    return [
        {"label": label, "url": reverse(f"billing:{name}"), "active": name == here} for name, label in labels.items()
    ]


def page_of(request: HttpRequest, items: Any) -> dict[str, Any]:
    """Return a page of a queryset or of `UsageRows`: its rows, the links to other pages, and of usage the total of all rows.

    In place of a page that doesn't exist, the first one.
    """
    text = request.GET.get("page", "1")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0

    def read(number: int) -> tuple[list[Any], int | None]:
        start = (number - 1) * PAGE
        if isinstance(items, UsageRows):
            return items.page(start, start + PAGE + 1)
        return list(items[start : start + PAGE + 1]), None

    rows, total_micro = read(number) if number else ([], None)
    if is_fallback := not number or (number > 1 and not rows):
        number = 1
        rows, total_micro = read(number)

    def url(page: int) -> str:
        query = request.GET.copy()
        query["page"] = str(page)
        return f"{request.path}?{query.urlencode()}"

    return {
        "rows": rows[:PAGE],
        "total_micro": total_micro,
        "first_url": url(1) if number > 2 else "",
        "previous_url": url(number - 1) if number > 1 else "",
        "next_url": url(number + 1) if len(rows) > PAGE else "",
        "is_part": number > 1 or len(rows) > PAGE,
        "is_fallback": is_fallback,
    }


def iso(instant: Any, customer: Customer) -> str:
    """Format as ISO 8601 with the offset of the customer's time zone."""
    return instant.astimezone(customer.zone).isoformat() if instant else ""


def decimals(micro: int | None, places: int) -> Any:
    """Return a number and not text: `csv_response` would escape text that begins with a minus sign."""
    return "" if micro is None else money.to_decimal(micro, places)


def usage_cells(row: Row, customer: Customer) -> list[object]:
    return [
        row.resource_id,
        row.kind,
        row.name,
        row.project,
        row.location,
        iso(row.from_at, customer),
        iso(row.to_at, customer),
        row.hours,
        row.size_gb,
        decimals(row.rate_micro, money.MICRO_DIGITS),
        decimals(row.amount_micro, money.digits(row.currency)),
        row.currency,
        row.invoice_number,
        row.corrects_number,
    ]


@require_safe
def summary(request: HttpRequest, as_csv: bool = False) -> HttpResponse | StreamingHttpResponse:
    customer = get_customer(request)
    at = timezone.now()
    report = build_summary(customer=customer, at=at)
    currency = customer.currency
    is_prepaid = customer.billing_type == BillingType.PREPAID
    if as_csv:
        rows = (
            [f"{month:%Y-%m}", kind, decimals(micro, money.digits(currency)), currency]
            for (month, kind), micro in sorted(report.costs.items())
        )
        return csv_response("costs", ["month", "kind", "amount", "currency"], rows)

    def amount(micro: int) -> str:
        return money.format_amount(micro, currency)

    def rows_url(**filters: Any) -> str:
        return f"{reverse('billing:statement')}?{urlencode(filters)}"

    kinds = [kind for kind in ServiceKind if any(report.costs.get((month, kind.value)) for month in report.months)]

    def cost_table(
        periods: list[date], costs: Costs, name: Callable[[date], str], *filters: str
    ) -> list[dict[str, Any]]:
        """Return rows of the periods with costs, the newest first. `filters` are the statement's, each set to the period."""
        rows = []
        for period in reversed(periods):
            cells = {kind: costs.get((period, kind.value), 0) for kind in kinds}
            chosen = dict.fromkeys(filters, period)
            if any(cells.values()):
                rows.append(
                    {
                        "name": name(period),
                        "cells": [
                            {
                                "label": kind.label,
                                "amount": amount(micro),
                                "url": micro and rows_url(**chosen, kind=kind),
                            }
                            for kind, micro in cells.items()
                        ],
                        "total": amount(sum(cells.values())),
                        "url": rows_url(**chosen),
                    }
                )
        return rows

    days = young_days(customer=customer, at=at)
    by_day = costs_by_day(customer=customer, days=days, at=at) if days else {}
    return render(
        request,
        "billing/summary.html",
        {
            "tabs": tabs(request),
            "customer": customer,
            "is_prepaid": is_prepaid,
            "warning": low_balance_warning(customer=customer) if is_prepaid else None,
            # The top bar shows the same instant as the page.
            "wallet_amount": amount(report.balance_micro if is_prepaid else report.owed_micro),
            "bought": amount(report.bought_micro),
            "free": amount(report.free_micro),
            "credits": amount(report.bought_micro + report.free_micro),
            "consumed": amount(report.consumed_micro),
            "balance": amount(report.balance_micro),
            "this_month": amount(report.this_month_micro),
            "this_month_url": rows_url(month=report.this_month),
            "projected": amount(report.projected_micro),
            "services": [
                {
                    "service": service,
                    "hourly": money.format_price(service.hourly_micro, currency),
                    "month": amount(service.month_micro),
                    "url": rows_url(kind=service.kind, month=report.this_month),
                    "active_url": f"{reverse('billing:subscriptions')}?{urlencode({'kind': service.kind})}",
                }
                for service in report.services
            ],
            "charts": {
                name: build_chart(
                    periods=days or report.months,
                    costs=by_day or report.costs,
                    currency=currency,
                    label=near_day if days else lambda month: format_month(month, "MMM"),
                    size=size,
                    labels=size.day_labels if days else size.month_labels,
                )
                for name, size in (("wide", WIDE), ("narrow", NARROW))
            },
            "kinds": kinds,
            "table": cost_table(report.months, report.costs, format_month, "month"),
            "days": cost_table(days, by_day, format_day, "first", "last"),
        },
    )


@require_safe
def subscriptions(request: HttpRequest, as_csv: bool = False) -> HttpResponse | StreamingHttpResponse:
    customer, at = get_customer(request), timezone.now()
    form = SubscriptionFilterForm(request.GET)
    state, kind = form.chosen.get("state", SubscriptionState.ACTIVE), form.chosen.get("kind", "")
    if as_csv and form.errors:
        return redirect_with_query(request, "billing:subscriptions")
    segments = get_subscriptions(customer=customer, state=state, kind=kind, at=at)
    if as_csv:
        rows = (
            [
                segment.resource_id,
                segment.kind,
                segment.resource_name,
                segment.project.name,
                segment.location_id,
                segment.size_gb,
                iso(segment.started_at, customer),
                iso(segment.ended_at, customer),
                iso(segment.paid_until, customer),
            ]
            for segment in segments.iterator()
        )
        columns = ["resource_uuid", "kind", "name", "project", "location", "gb", "from", "to", "paid_until"]
        return csv_response("subscriptions", columns, rows)
    page = page_of(request, segments)
    price_list = PriceList.load({segment.location_id for segment in page["rows"]})
    urls = resource_urls(request.user, {segment.resource_id for segment in page["rows"]})
    costs = costs_so_far([segment.resource_id for segment in page["rows"]], at)
    for segment in page["rows"]:
        quote = price_list.quote_segment(segment, currency=customer.currency, at=at)
        segment.hourly = money.format_price(quote.hourly_micro, customer.currency) if quote else ""
        segment.formula = quote.formula if quote and quote.is_share_of_vm else ""
        segment.cost = costs[segment.resource_id].label if segment.resource_id in costs else ""
        segment.url = urls.get(segment.resource_id, "")
        segment.usage_url = f"{reverse('billing:statement')}?{urlencode({'resource': segment.resource_id})}"
    return render(
        request,
        "billing/subscriptions.html",
        {
            "tabs": tabs(request),
            "states": [
                {
                    "label": choice.label,
                    "url": f"?{urlencode({'state': choice, 'kind': kind})}",
                    "active": choice == state,
                }
                for choice in SubscriptionState
            ],
            "state": state,
            "kind": ServiceKind(kind).label if kind else "",
            "all_url": f"?{urlencode({'state': state})}",
            "form": form,
            "page": page,
            "csv_url": f"{reverse('billing:subscriptions_csv')}?{urlencode({'state': state, 'kind': kind})}",
        },
    )


@require_safe
def prices(request: HttpRequest) -> HttpResponse:
    """Show the prices to everybody, because members see them when they take snapshots. Only owners get the tabs."""
    context = {
        "tables": build_price_tables(currencies_of(request.user), timezone.now()),
        "tabs": tabs(request) if billed_customer(request.user) else [],
    }
    return render(request, "billing/prices.html", context)


TRANSACTION_COLUMNS = ["time", "kind", "amount", "currency", "reason", "expires", "invoice", "transaction_uuid"]


def transaction_cells(move: WalletTransaction, customer: Customer) -> list[object]:
    return [
        iso(move.at, customer),
        move.kind,
        decimals(move.wallet_micro, money.digits(customer.currency)),
        customer.currency,
        move.reason,
        iso(move.expires_at, customer),
        move.invoice.number if move.invoice else "",
        move.pk,
    ]


def with_amounts(moves: list[WalletTransaction], customer: Customer) -> list[WalletTransaction]:
    for move in moves:
        move.amount = money.format_amount(move.wallet_micro, customer.currency)  # type: ignore[attr-defined]
    return moves


@require_safe
def credits(request: HttpRequest, as_csv: bool = False) -> HttpResponse | StreamingHttpResponse:
    customer, at = get_customer(request), timezone.now()
    moves = get_received_credits(customer=customer).select_related("invoice")
    if as_csv:
        rows = (transaction_cells(move, customer) for move in moves.iterator())
        return csv_response("infra-credits", TRANSACTION_COLUMNS, rows)
    runway = credit_runway(customer=customer, at=at)
    page = page_of(request, moves)
    with_amounts(page["rows"], customer)
    return render(
        request,
        "billing/credits.html",
        {
            "tabs": tabs(request),
            "customer": customer,
            "is_prepaid": customer.billing_type == BillingType.PREPAID,
            "warning": low_balance_warning(customer=customer),
            "balance": money.format_amount(runway.balance_micro, customer.currency),
            "lasts_until": at + runway.current if runway.current is not None and runway.current.days < 36_500 else None,
            "page": page,
            "granted": TransactionKind.GRANTED,
            "now": at,
        },
    )


@require_safe
def transactions(request: HttpRequest, as_csv: bool = False) -> HttpResponse | StreamingHttpResponse:
    customer = get_customer(request)
    moves = WalletTransaction.objects.filter(customer=customer).select_related("invoice")
    if as_csv:
        rows = (transaction_cells(move, customer) for move in moves.iterator())
        return csv_response("transactions", TRANSACTION_COLUMNS, rows)
    page = page_of(request, moves)
    with_amounts(page["rows"], customer)
    standing = get_standing(customer=customer, at=timezone.now())
    return render(
        request,
        "billing/transactions.html",
        {
            "tabs": tabs(request),
            "page": page,
            "ledger": money.format_amount(standing.credits_micro, customer.currency),
            "owed": money.format_amount(standing.owed_micro, customer.currency),
            "owed_url": f"{reverse('billing:statement')}?{urlencode({'due': 'on'})}",
            "balance": money.format_amount(standing.balance_micro, customer.currency),
        },
    )


@require_safe
def statement(request: HttpRequest, as_csv: bool = False) -> HttpResponse | StreamingHttpResponse:
    customer, at = get_customer(request), timezone.now()
    form = UsageFilterForm(request.GET, customer=customer)
    valid = form.is_valid()
    filters = form.cleaned_data
    resource_id = filters.get("resource")
    usage = usage_rows(
        customer=customer,
        at=at,
        project_id=filters["project"].pk if filters.get("project") else None,
        kind=filters.get("kind", ""),
        resource_id=resource_id,
        month=filters.get("month"),
        first=filters.get("first"),
        last=filters.get("last"),
        due_only=filters.get("due", False),
    )
    if as_csv:
        if not valid:
            return redirect_with_query(request, "billing:statement")
        return csv_response("usage", USAGE_COLUMNS, (usage_cells(row, customer) for row in usage))
    narrows = any(filters.values())
    shows_invoices = not narrows and "page" not in request.GET
    invoices = list(Invoice.objects.visible_to(request.user)[:MOST_INVOICES]) if shows_invoices else []
    for invoice in invoices:
        invoice.amount = money.format_amount(invoice.total_micro, invoice.currency)  # type: ignore[attr-defined]
        invoice.month_name = format_month(invoice.month)  # type: ignore[attr-defined]
    page = page_of(request, usage)
    page["rows"] = with_urls(page["rows"], request.user)
    return render(
        request,
        "billing/statement.html",
        {
            "tabs": tabs(request),
            "form": form,
            "customer": customer,
            "first": filters.get("first"),
            "last": filters.get("last") or timezone.localdate(at),
            "narrows": narrows,
            "due_only": filters.get("due", False),
            "month": format_month(filters["month"]) if filters.get("month") else "",
            "invoices": invoices,
            "page": page,
            "total": money.format_amount(page["total_micro"], customer.currency),
            "csv_url": f"{reverse('billing:usage_csv')}?{request.GET.urlencode()}",
        },
    )


def with_urls(rows: list[Row], user: Any) -> list[Row]:
    """Return the rows with links to the pages of their resources."""
    urls = resource_urls(user, {row.resource_id for row in rows})
    return [replace(row, url=urls.get(row.resource_id, "")) for row in rows]


def get_invoice(request: HttpRequest, pk: UUID) -> Invoice:
    return get_object_or_404(Invoice.objects.visible_to(request.user), pk=pk)


def rows_of_invoice(invoice: Invoice) -> Iterator[Row]:
    lines = invoice.lines.select_related("corrects__invoice").iterator(chunk_size=2000)
    return (row_of_line(line, invoice) for line in lines)


def page_of_lines(request: HttpRequest, invoice: Invoice) -> dict[str, Any]:
    """Return a page of an invoice's lines that starts at the line `?from=`: its rows, and the links to other pages.

    In place of a line that the invoice doesn't have, the first page.
    """
    lines = invoice.lines.select_related("corrects__invoice")
    previous_url = first_url = ""
    start = request.GET.get("from", "")
    is_number = start.isascii() and start.isdigit() and len(start) < 19
    first = invoice.lines.filter(pk=start).first() if is_number else None
    if first:
        before = list(invoice.lines.filter(beyond(first, "lt")).reverse()[: PAGE + 1])
        lines = lines.filter(Q(pk=first.pk) | beyond(first, "gt"))
        first_url = request.path if len(before) > PAGE else ""
        if before:
            previous_url = f"{request.path}?from={before[:PAGE][-1].pk}"
    rows = list(lines[: PAGE + 1])
    return {
        "rows": with_urls([row_of_line(line, invoice) for line in rows[:PAGE]], request.user),
        "first_url": first_url,
        "previous_url": previous_url,
        "next_url": f"{request.path}?from={rows[PAGE].pk}" if len(rows) > PAGE else "",
        "is_part": bool(previous_url) or len(rows) > PAGE,
        "is_fallback": bool(start) and first is None,
    }


def beyond(line: InvoiceLine, lookup: str) -> Q:
    """Return a filter of the lines after ("gt") or before ("lt") this line, in the order of an invoice."""
    condition, same = Q(), Q()
    for name in InvoiceLine._meta.ordering:
        condition |= same & Q(**{f"{name}__{lookup}": getattr(line, name)})
        same &= Q(**{name: getattr(line, name)})
    return condition


@require_safe
def invoice(request: HttpRequest, pk: UUID) -> HttpResponse:
    invoice = get_invoice(request, pk)
    return render(
        request,
        "billing/invoice.html",
        {
            "invoice": invoice,
            "page": page_of_lines(request, invoice),
            "line_count": money.format_count(invoice.line_count),
            "month": format_month(invoice.month),
            "total": money.format_amount(invoice.total_micro, invoice.currency),
        },
    )


@require_safe
def invoice_csv(request: HttpRequest, pk: UUID) -> StreamingHttpResponse:
    invoice = get_invoice(request, pk)
    rows = (usage_cells(row, invoice.customer) for row in rows_of_invoice(invoice))
    return csv_response(invoice.number, USAGE_COLUMNS, rows)


@require_safe
def invoice_pdf(request: HttpRequest, pk: UUID) -> HttpResponse:
    from .pdf import invoice_as_pdf  # slow to import, and seldom needed

    invoice = get_invoice(request, pk)
    with override(settings.LANGUAGE_CODE):  # An invoice is the same document for every user.
        pdf = invoice_as_pdf(invoice, rows_of_invoice(invoice))
    return HttpResponse(
        pdf,
        content_type="application/pdf",
        headers={"Content-Disposition": f'attachment; filename="{invoice.number}.pdf"'},
    )
