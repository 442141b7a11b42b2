"""Forms of billing. Amounts and rates are typed as decimals and kept as millionths."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from django import forms
from django.contrib.admin.widgets import AdminSplitDateTime
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer, Project
from cng_portal.common import money
from cng_portal.inventory.models import Location

from .models import (
    MAX_AMOUNT_MICRO,
    MAX_RATE_MICRO,
    ONLY_FIXED_PRORATA,
    ONLY_HOURLY,
    ONLY_THREE_KINDS,
    PAST,
    SAME_START,
    Package,
    PriceVersion,
    ServiceKind,
)


class PriceVersionForm(forms.ModelForm):
    """A price that has begun is shown and cannot be changed; a further one starts in the future."""

    rate = forms.DecimalField(
        label=_("rate per GB and hour"),
        min_value=0,
        max_value=money.to_decimal(MAX_RATE_MICRO, 0),
        decimal_places=money.MICRO_DIGITS,
        max_digits=11,
    )

    class Meta:
        model = PriceVersion
        fields = ["starts_at"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.initial["rate"] = money.to_decimal(self.instance.rate_micro)
            if self.has_begun_at(timezone.now()):
                for field in self.fields.values():
                    field.disabled = True
        else:
            now = timezone.localtime()
            self.initial.setdefault("starts_at", now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1))

    def has_begun_at(self, now: datetime) -> bool:
        return bool(self.instance.pk) and self.instance.starts_at <= now

    def clean(self) -> dict[str, Any]:
        given = super().clean() or self.cleaned_data
        if "rate" in given:
            self.instance.rate_micro = money.to_micro(given["rate"])
        return given


class PriceVersionFormSet(forms.BaseInlineFormSet):
    """The rules that need the package: it is not known to a form of its own. The database, which guards the prices, has
    a clock of its own that may be hours ahead of ours.
    """

    def clean(self) -> None:
        super().clean()
        package = self.instance
        if not package.active:
            if any(form.has_changed() and form not in self.deleted_forms for form in self.forms):
                raise forms.ValidationError(_("An inactive package takes no new prices. Activate it first."))
            return
        same_service = PriceVersion.objects.filter(
            package__location=package.location_id, package__kind=package.kind, package__currency=package.currency
        )
        sold_before = same_service.exists()
        now = max(timezone.now(), *Location.objects.values_list(Now(), flat=True)[:1])
        starts = set()
        for form in self.forms:
            starts_at = form.cleaned_data.get("starts_at") if form.is_valid() else None
            if form in self.deleted_forms:
                if form.has_begun_at(now):  # type: ignore[attr-defined]  # PriceVersionForm
                    raise forms.ValidationError(_("A price that has begun cannot be deleted: plan the next one."))
            elif starts_at and form.has_changed():
                if form.has_begun_at(now):  # type: ignore[attr-defined]  # PriceVersionForm
                    form.add_error("starts_at", _("This price has begun meanwhile: plan the next one."))
                elif sold_before and starts_at <= now:
                    clock = _("By the portal's clocks it is %(now)s UTC.") % {"now": f"{now:%Y-%m-%d %H:%M:%S}"}
                    form.add_error("starts_at", f"{PAST} {clock}")
                others = same_service.filter(package=package.pk, starts_at=starts_at).exclude(pk=form.instance.pk)
                if starts_at in starts or others.exists():
                    form.add_error("starts_at", SAME_START)
                sold_before = True
            starts.add(starts_at)


class PackageForm(forms.ModelForm):
    class Meta:
        model = Package
        fields = ["location", "kind", "currency", "name", "active", "billing_cycle", "billing_rule"]
        error_messages = {
            "kind": {"invalid_choice": ONLY_THREE_KINDS},
            "billing_cycle": {"invalid_choice": ONLY_HOURLY},
            "billing_rule": {"invalid_choice": ONLY_FIXED_PRORATA},
        }


class WalletForm(forms.Form):
    """An amount in the customer's currency. `key` is made with the form, so that posting it twice is one transaction."""

    amount = forms.DecimalField(label=_("amount"))
    reason = forms.CharField(label=_("reason"), max_length=255, help_text=_("Kept with the transaction."))
    key = forms.CharField(widget=forms.HiddenInput, max_length=64)
    can_be_negative = False

    def __init__(self, data: Any, *, currency: str) -> None:
        super().__init__(data)
        self.initial["key"] = f"admin:{uuid4()}"
        declared, places = self.fields["amount"], money.digits(currency)
        most = money.to_decimal(MAX_AMOUNT_MICRO, 0)
        self.fields["amount"] = forms.DecimalField(
            label=declared.label,
            help_text=declared.help_text,
            min_value=-most if self.can_be_negative else money.to_decimal(money.unit_micro(currency), places),
            max_value=most,
            decimal_places=places,
        )

    @property
    def amount_micro(self) -> int:
        return money.to_micro(self.cleaned_data["amount"])


class GrantForm(WalletForm):
    expires_at = forms.SplitDateTimeField(
        label=_("expires"),
        required=False,
        widget=AdminSplitDateTime,
        help_text=_("Credits that expire are used up first. Empty: they never expire."),
    )
    field_order = ["amount", "expires_at", "reason", "key"]


class CorrectionForm(WalletForm):
    amount = forms.DecimalField(
        label=_("change"), help_text=_("Added to the wallet; with a minus sign, taken from it.")
    )
    can_be_negative = True

    def clean_amount(self) -> Decimal:
        amount = self.cleaned_data["amount"]
        if amount == 0:
            raise forms.ValidationError(_("A correction changes the balance: enter an amount other than 0."))
        return amount


# Far enough from the ends of the calendar for any arithmetic with zones and months.
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2199, 12, 31)


class UsageFilterForm(forms.Form):
    """Which usage the account statement shows."""

    project = forms.ModelChoiceField(
        Project.objects.none(), label=_("Project"), required=False, empty_label=_("All projects")
    )
    kind = forms.ChoiceField(label=_("Kind"), required=False, choices=[("", _("All kinds")), *ServiceKind.choices])
    month = forms.DateField(required=False, widget=forms.HiddenInput)  # its first day: how an amount leads to its rows
    due = forms.BooleanField(required=False, widget=forms.HiddenInput)  # only what no invoice has yet
    first = forms.DateField(label=_("From"), required=False, widget=forms.DateInput(attrs={"type": "date"}))
    last = forms.DateField(label=_("To"), required=False, widget=forms.DateInput(attrs={"type": "date"}))

    def __init__(self, data: Any, *, customer: Customer) -> None:
        super().__init__(data)
        field: Any = self.fields["project"]
        field.queryset = customer.projects.order_by("name")
        # read once, however often it is rendered
        field.choices = [("", field.empty_label), *((one.pk, str(one)) for one in field.queryset)]

    def clean(self) -> dict[str, Any]:
        given = super().clean() or self.cleaned_data
        for name in ("month", "first", "last"):
            if given.get(name) and not FIRST_DAY <= given[name] <= LAST_DAY:
                self.add_error(name, _("Choose a date between 2000 and 2199."))
        first: date | None = given.get("first")
        last: date | None = given.get("last")
        if first and last and last < first:
            self.add_error("last", _("The last day is before the first one. Choose a later day."))
        return given
