"""Recompute the bill from usage alone, and compare it with the books and with the displayed balance.

`usage` counts hour by hour and shares no arithmetic with `rating`; `invoices` and `ledger` compare. The hash chain of
`seals` covers values that can't be recomputed, such as bought credits. Apps that own the resources register checks of
usage against them.
"""

from collections.abc import Callable, Iterator
from datetime import datetime

from billing import seals
from billing.models import Invoice, InvoiceLine, PriceVersion, Seal, UsageSegment, WalletTransaction
from cng_portal.accounts.models import Customer

from .invoices import check_invoices, check_lines, check_months
from .ledger import check_balance, check_expiries, check_transactions
from .usage import Months, Prices, load_prices, recompute

Check = Callable[[datetime], Iterator[str]]
usage_checks: list[Check] = []


def register(check: Check) -> Check:
    """Add a check of usage against the resources; it yields a sentence for each difference."""
    usage_checks.append(check)
    return check


def all_differences(*, at: datetime, progress: Callable[[int], object] = lambda customers: None) -> list[str]:
    """Return a sentence for each difference: in the books, and between usage and the resources."""
    result = differences(at=at, progress=progress)
    for check in usage_checks:
        result += check(at)
    return result


def differences(*, at: datetime, progress: Callable[[int], object] = lambda customers: None) -> list[str]:
    """Return a sentence for each difference in the books. Reads one customer at a time."""
    result = list(_check_prices())
    prices = load_prices()
    for customer in Customer.objects.order_by("number").iterator(chunk_size=500):
        try:
            result += (f"{customer.crn}: {sentence}" for sentence in _check_customer(customer, prices, at))
        except Exception as error:
            # Nothing may be computable from rows that were tampered with.
            result.append(f"{customer.crn}: cannot be verified: {type(error).__name__}: {error}")
        progress(1)
    return result


def _check_prices() -> Iterator[str]:
    contents: dict[str, dict[str, str]] = {}
    for version in PriceVersion.objects.select_related("package"):
        of_package = contents.setdefault(seals.chain_of(version), {})
        of_package[seals.subject_of(version)] = seals.content_of(version)
    chains = set(Seal.objects.order_by().values_list("chain", flat=True).distinct())
    customers = {f"customer {pk}" for pk in Customer.objects.values_list("pk", flat=True)}
    for chain in sorted((chains | contents.keys()) - customers):
        yield from seals.check_chain(chain, contents.get(chain, {}))


def _check_customer(customer: Customer, prices: Prices, at: datetime) -> Iterator[str]:
    invoices = list(Invoice.objects.filter(customer=customer).order_by("month"))
    lines = list(InvoiceLine.objects.filter(invoice__customer=customer).order_by("pk"))
    segments = {segment.pk: segment for segment in UsageSegment.objects.filter(customer=customer)}
    transactions = list(WalletTransaction.objects.filter(customer=customer).order_by("at", "created_at", "id"))
    yield from _check_seals(customer, invoices, transactions)
    yield from check_invoices(customer, invoices, lines, transactions)
    yield from check_months(customer, invoices, segments.values(), at)
    yield from check_transactions(transactions)

    months = Months(customer, invoices)
    events = [when for move in transactions for when in (move.at, move.expires_at) if when and when < at]
    charges = recompute(segments.values(), prices, months, [*events, at])
    yield from check_lines(customer, invoices, lines, segments, charges)
    yield from check_expiries(customer, invoices, transactions, segments.values(), charges, prices, at)
    yield from check_balance(customer, invoices, lines, transactions, charges, at)


def _check_seals(customer: Customer, invoices: list[Invoice], transactions: list[WalletTransaction]) -> Iterator[str]:
    of_lines = seals.digests_of_lines([invoice.pk for invoice in invoices])
    contents = {
        seals.subject_of(invoice): seals.content_of(invoice, of_lines.get(invoice.pk, "")) for invoice in invoices
    }
    contents |= {
        # The payment of an invoice has no seal: `check_invoices` compares it with the invoice.
        seals.subject_of(move): seals.content_of(move)
        for move in transactions
        if move.invoice_id is None
    }
    yield from seals.check_chain(f"customer {customer.pk}", contents)
