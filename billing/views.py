"""The billing pages of a customer's owners."""

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from cng_portal.accounts.models import Customer

from . import services
from .access import billed_customer
from .models import Invoice, UsageSegment, WalletTransaction


def get_customer(request: HttpRequest) -> Customer:
    customer = billed_customer(request.user)
    if customer is None:
        raise Http404
    return customer


def summary(request: HttpRequest) -> HttpResponse:
    customer = get_customer(request)
    at = timezone.now()
    return render(
        request,
        "billing/summary.html",
        {"customer": customer, "balance_micro": services.balance(customer=customer, at=at)},
    )


def subscriptions(request: HttpRequest) -> HttpResponse:
    customer = get_customer(request)
    return render(request, "billing/subscriptions.html", {"segments": UsageSegment.objects.filter(customer=customer)})


def credits(request: HttpRequest) -> HttpResponse:
    customer = get_customer(request)
    return render(request, "billing/credits.html", {"transactions": customer.wallet_transactions.all()})


def transactions(request: HttpRequest) -> HttpResponse:
    customer = get_customer(request)
    found = WalletTransaction.objects.filter(customer=customer)
    return render(request, "billing/transactions.html", {"transactions": found})


def statement(request: HttpRequest) -> HttpResponse:
    get_customer(request)
    return render(request, "billing/statement.html", {"invoices": Invoice.objects.visible_to(request.user)})
