"""Prices and credits, for the support desk. Usage, invoices and the ledger are read-only."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from cng_portal.activity import services as activity
from cng_portal.common import money
from cng_portal.common.admin import ReadOnly, SupportAdmin

from . import closing, rating
from .balance import get_balance, get_standing, get_standings
from .errors import Refused
from .forms import (
    CorrectionForm,
    GrantForm,
    PackageForm,
    PriceCorrectionForm,
    PriceVersionForm,
    PriceVersionFormSet,
    WalletForm,
)
from .models import (
    ClosingFailure,
    CustomerAccount,
    Invoice,
    InvoiceLine,
    Package,
    PriceVersion,
    UsageSegment,
    WalletTransaction,
)
from .pricing.packages import correct_price, delete_price, lock_prices, retire_package, save_price
from .wallet import buy_credits, correct_credits, grant_credits, refund_credits


class PriceVersionInline(admin.TabularInline):
    model = PriceVersion
    form = PriceVersionForm
    formset = PriceVersionFormSet
    fields = ["starts_at", "rate", "confirm", "reason", "created_by", "created_at", "correct"]
    readonly_fields = ["reason", "created_by", "created_at", "correct"]
    ordering = ["starts_at", "pk"]
    extra = 0
    min_num = 0

    def get_extra(self, request: HttpRequest, obj: Package | None = None, **kwargs: Any) -> int:
        return 0 if obj else 1

    def get_queryset(self, request: HttpRequest) -> QuerySet[PriceVersion]:
        return super().get_queryset(request).select_related("package", "correction__package", "created_by")

    @admin.display(description=gettext_lazy("correct"))
    def correct(self, version: PriceVersion) -> str:
        """Link to the correction of a price that has begun, unless it has been corrected already."""
        if not version.pk or version.starts_at > timezone.now():
            return "–"
        if hasattr(version, "correction"):
            return _("Corrected to %(rate)s") % {"rate": version.correction}
        return format_html(
            '<a href="{}">{}</a>', reverse("admin:billing_price_correct", args=[version.pk]), _("Correct")
        )


@admin.register(Package)
class PackageAdmin(SupportAdmin):
    form = PackageForm
    list_display = ["name", "kind", "location", "currency", "active", "price_now", "price_next"]
    list_filter = ["kind", "active", "location", ("currency", admin.AllValuesFieldListFilter)]
    list_select_related = ["location"]
    search_fields = ["name", "location__code"]
    uuid_fields = ()
    ordering = ["location", "kind", "-active"]
    inlines = [PriceVersionInline]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Package]:
        return super().get_queryset(request).prefetch_related("versions")

    def get_readonly_fields(self, request: HttpRequest, obj: Package | None = None) -> list[str]:
        return ["location", "kind", "currency"] if obj else []

    def get_fields(self, request: HttpRequest, obj: Package | None = None) -> list[str]:
        fields = list(PackageForm.Meta.fields)
        return fields if obj else [*fields, "confirm_volumes"]

    @admin.display(description=gettext_lazy("price now"))
    def price_now(self, package: Package) -> str:
        price = rating.price_at([version.price for version in package.versions.all()], timezone.now())
        return money.format_rate(price.rate_micro, package.currency) if price else "–"

    @admin.display(description=gettext_lazy("next price"))
    def price_next(self, package: Package) -> str:
        planned = [version.price for version in package.versions.all() if version.starts_at > timezone.now()]
        if not planned:
            return "–"
        return _("%(price)s from %(start)s UTC") % {
            "price": money.format_rate(planned[0].rate_micro, package.currency),
            "start": f"{planned[0].since:%Y-%m-%d %H:%M}",
        }

    def lock(self, request: HttpRequest, object_id: str | None) -> None:
        super().lock(request, object_id)
        lock_prices()

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.correct_view)
        return [path("prices/<int:version_id>/correct/", view, name="billing_price_correct"), *super().get_urls()]

    def correct_view(self, request: HttpRequest, version_id: int) -> HttpResponse:
        """Replace a price that has begun with a lower one. The next invoices credit what it overcharged."""
        version = get_object_or_404(PriceVersion.objects.select_related("package"), pk=version_id)
        package = version.package
        if not self.has_change_permission(request, package):
            return HttpResponse(_("You may not change prices."), status=403)
        back = reverse("admin:billing_package_change", args=[package.pk])
        form = PriceCorrectionForm(request.POST or None, version=version)
        if form.is_valid():
            try:
                correction = correct_price(
                    version=version, rate_micro=form.rate_micro, reason=form.cleaned_data["reason"], by=request.user
                )
            except Refused as error:
                form.add_error(None, str(error))
            else:
                sentence = _(
                    "%(old)s corrected to %(new)s. Customers pay the new price from its start on, and the next invoices "
                    "credit the difference."
                )
                self.message_user(request, sentence % {"old": version, "new": correction}, messages.SUCCESS)
                return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "object": package,
            "version": version,
            "title": _("Correct a price"),
            "form": form,
            "back": back,
        }
        return render(request, "billing/admin/correct_price.html", context)

    def save_model(self, request: HttpRequest, obj: Package, form: Any, change: bool) -> None:
        if change and "active" in form.changed_data and not obj.active:
            deleted = retire_package(package=obj, by=request.user)
            if deleted:
                self.message_user(request, _("Planned prices deleted: %(count)s.") % {"count": len(deleted)})
        super().save_model(request, obj, form, change)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        versions = formset.save(commit=False)
        if not form.instance.active:
            return  # An inactive package has no planned prices and takes no new ones.
        for version in versions:
            save_price(version, by=request.user)
        for version in formset.deleted_objects:
            delete_price(version, by=request.user)


class CustomerRecordAdmin(ReadOnly, SupportAdmin):
    """A read-only record of a customer, found by the customer's number, a uuid or a user's e-mail address."""

    customer_fields = ("customer",)
    search_fields = ["=customer__number", "customer__name"]
    list_select_related = ["customer"]
    # The methods that display fields in millionths; an empty one leaves the field out.
    amounts: dict[str, str] = {}

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        names = [self.amounts.get(str(name), str(name)) for name in super().get_fields(request, obj)]
        return [name for name in names if name]


@admin.register(ClosingFailure)
class ClosingFailureAdmin(CustomerRecordAdmin):
    list_display = ["customer", "reason", "failed_at"]
    uuid_fields = ("customer_id",)


@admin.register(UsageSegment)
class UsageSegmentAdmin(CustomerRecordAdmin):
    list_display = [
        "resource_name",
        "kind",
        "customer",
        "project",
        "location",
        "size_gb",
        "started_at",
        "ended_at",
        "voided",
        "backdated",
    ]
    list_filter = ["kind", "location", "voided", "backdated", ("ended_at", admin.EmptyFieldListFilter)]
    list_select_related = ["customer", "project", "location"]
    search_fields = [*CustomerRecordAdmin.search_fields, "resource_name"]
    uuid_fields = ("pk", "resource_id", "customer_id", "project_id")
    ordering = ["-started_at", "id"]
    amounts = {"base_rate_micro": "base_rate"}

    @admin.display(description=gettext_lazy("VM's hourly price"))
    def base_rate(self, segment: UsageSegment) -> str | None:
        rate_micro = segment.base_rate_micro
        return None if rate_micro is None else money.format_rate(rate_micro, segment.customer.currency)


@admin.register(WalletTransaction)
class WalletTransactionAdmin(CustomerRecordAdmin):
    list_display = ["at", "customer", "kind", "amount", "source", "target", "reason", "by", "expires_at"]
    list_filter = ["kind"]
    list_select_related = ["customer", "by"]
    search_fields = [*CustomerRecordAdmin.search_fields, "reason", "=key"]
    uuid_fields = ("pk", "customer_id", "invoice_id")
    ordering = ["-at", "id"]
    amounts = {"amount_micro": "amount"}

    @admin.display(description=gettext_lazy("amount"), ordering="amount_micro")
    def amount(self, row: WalletTransaction) -> str:
        return money.format_amount(row.wallet_micro, row.customer.currency)


@admin.register(Invoice)
class InvoiceAdmin(CustomerRecordAdmin):
    list_display = ["number", "customer", "month", "billing_type", "total", "line_count", "made_at", "lines_link"]
    list_filter = ["month", "billing_type"]
    uuid_fields = ("pk", "customer_id")
    ordering = ["-month", "customer_number"]
    amounts = {"total_micro": "total"}

    @admin.display(description=gettext_lazy("total"), ordering="total_micro")
    def total(self, invoice: Invoice) -> str:
        return money.format_amount(invoice.total_micro, invoice.currency)

    @admin.display(description=gettext_lazy("lines"))
    def lines_link(self, invoice: Invoice) -> SafeString:
        url = reverse("admin:billing_invoiceline_changelist")
        return format_html('<a href="{}?invoice__id__exact={}">{}</a>', url, invoice.pk, _("Show"))


@admin.register(InvoiceLine)
class InvoiceLineAdmin(CustomerRecordAdmin):
    list_display = ["resource_name", "kind", "invoice", "project_name", "location_code", "from_at", "to_at", "formula"]
    list_filter = ["kind"]
    list_select_related = ["invoice"]
    customer_fields = ("invoice__customer",)
    search_fields = ["=invoice__customer_number", "resource_name"]
    uuid_fields = ("resource_id", "segment_id", "invoice_id")
    ordering = ["-pk"]
    amounts = {"rate_micro": "", "amount_micro": "formula"}

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup == "invoice__id__exact" or super().lookup_allowed(lookup, value, request)

    @admin.display(description=gettext_lazy("amount"), ordering="amount_micro")
    def formula(self, line: InvoiceLine) -> str:
        return line.formula


# {name in the URL: title, form, service}
WALLET_ACTIONS: dict[str, tuple[Any, type[WalletForm], Callable[..., WalletTransaction]]] = {
    "buy": (gettext_lazy("Add bought credits"), WalletForm, buy_credits),
    "grant": (gettext_lazy("Grant credits"), GrantForm, grant_credits),
    "refund": (gettext_lazy("Refund credits"), WalletForm, refund_credits),
    "correct": (gettext_lazy("Correct the balance"), CorrectionForm, correct_credits),
}


@admin.register(CustomerAccount)
class CustomerAccountAdmin(ReadOnly, SupportAdmin):
    list_display = ["crn", "name", "billing_type", "credits", "owed", "balance"]
    list_filter = ["billing_type"]
    search_fields = ["name", "=number"]
    customer_fields = ("pk",)
    fields = ["id", "crn", "name", "billing_type", "currency", "time_zone", "credits", "owed", "balance"]
    readonly_fields = fields
    ordering = ["number"]
    actions = ["close_months"]
    change_form_template = "billing/admin/account.html"

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Add the balances to the rows, with two queries for the page."""
        changelist = super().get_changelist_instance(request)
        rows = list(changelist.result_list)
        ids = [row.pk for row in rows]
        standings = get_standings(customers=CustomerAccount.objects.filter(pk__in=ids), at=timezone.now())
        for row in rows:
            row.standing = standings[row.pk]
        changelist.result_list = rows
        return changelist

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        account = super().get_object(request, object_id, from_field)
        if account is not None:
            account.standing = get_standing(customer=account, at=timezone.now())
        return account

    @admin.display(description=gettext_lazy("credits in the ledger"))
    def credits(self, account: Any) -> str:
        return money.format_amount(account.standing.credits_micro, account.currency)

    @admin.display(description=gettext_lazy("owed since the last invoice"))
    def owed(self, account: Any) -> str:
        return money.format_amount(account.standing.owed_micro, account.currency)

    @admin.display(description=gettext_lazy("balance"))
    def balance(self, account: Any) -> str:
        return money.format_amount(account.standing.balance_micro, account.currency)

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.wallet_view)
        paths = [
            path(f"<uuid:pk>/{name}/", view, {"name": name}, name=f"billing_account_{name}") for name in WALLET_ACTIONS
        ]
        return [*paths, *super().get_urls()]

    def wallet_view(self, request: HttpRequest, pk: str, name: str) -> HttpResponse:
        """Record a wallet transaction, with a reason."""
        if not request.user.has_perm("billing.add_wallettransaction"):
            return HttpResponse(_("You may not change wallets."), status=403)
        account = get_object_or_404(CustomerAccount, pk=pk)
        title, form_class, record = WALLET_ACTIONS[name]
        form = form_class(request.POST or None, currency=account.currency)
        back = reverse("admin:billing_customeraccount_change", args=[account.pk])
        if form.is_valid():
            fields = {name: value for name, value in form.cleaned_data.items() if name != "amount"}
            try:
                recorded = record(customer=account, by=request.user, amount_micro=form.amount_micro, **fields)
            except Refused as error:
                form.add_error(None, str(error))
            else:
                amount = money.format_amount(recorded.wallet_micro, account.currency)
                self.message_user(request, _("Recorded: %(amount)s.") % {"amount": amount}, messages.SUCCESS)
                return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "object": account,
            "title": title,
            "form": form,
            "back": back,
            "balance": money.format_amount(get_balance(customer=account, at=timezone.now()), account.currency),
            "media": self.media + form.media,
        }
        return render(request, "billing/admin/wallet.html", context)

    @admin.action(description=gettext_lazy("Write invoices for completed months"), permissions=["close"])
    def close_months(self, request: HttpRequest, accounts: QuerySet[CustomerAccount]) -> None:
        report = closing.close_months(at=timezone.now(), customer_ids=list(accounts.values_list("pk", flat=True)))
        for reason in report.failures.values():
            self.message_user(request, reason, messages.ERROR)
        sentence = _("%(invoices)s invoices with %(lines)s lines were written.") % {
            "invoices": report.invoices,
            "lines": report.lines,
        }
        activity.record(action="invoice.close", actor=request.user, after={"invoices": report.invoices})
        self.message_user(request, sentence, messages.SUCCESS)

    def has_close_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.add_invoice")
