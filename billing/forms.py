"""Forms of billing. Amounts and rates are entered as decimals and stored as millionths."""

from collections import Counter
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
from cng_portal.common.filters import ChoiceFilter, FilterForm
from cng_portal.inventory.models import Location

from .models import (
    CANNOT_REACTIVATE,
    LOWER_ONLY,
    MAX_AMOUNT_MICRO,
    MAX_RATE_MICRO,
    ONLY_FIXED_PRORATA,
    ONLY_HOURLY,
    ONLY_PACKAGE_KINDS,
    PAST,
    SAME_START,
    InvoiceLine,
    Package,
    PriceVersion,
    ServiceKind,
)
from .pricing.block_storage import NOTICE, count_uncharged
from .pricing.subscriptions import SubscriptionState

# The database has its own clock: a price with an earlier start could begin before it is saved.
SOONEST = timedelta(minutes=1)
CONFIRM_UNUSUAL = _("Confirm a price that is at least ten times the previous one, or at most a tenth of it.")


def rate_field(label: Any) -> forms.DecimalField:
    return forms.DecimalField(
        label=label,
        min_value=0,
        max_value=money.to_decimal(MAX_RATE_MICRO, 0),
        decimal_places=money.MICRO_DIGITS,
    )


def require_confirmation(form: forms.BaseForm, rate_micro: int, previous_micro: int, currency: str) -> None:
    """Add an error if the rate is ten times the previous one or a tenth of it, and isn't confirmed."""
    low, high = sorted([previous_micro, rate_micro])
    if high != low and high >= 10 * low and not form.cleaned_data.get("confirm"):
        sentence = _("The new price is %(new)s; the previous price is %(previous)s. If that's right, check this box.")
        rates = {"new": rate_micro, "previous": previous_micro}
        form.add_error("confirm", sentence % {name: money.format_rate(rate, currency) for name, rate in rates.items()})


class PriceVersionForm(forms.ModelForm):
    """A planned price. The fields of a price that has begun are disabled."""

    rate = rate_field(_("rate per GB and hour"))
    confirm = forms.BooleanField(label=_("unusual price"), required=False, help_text=CONFIRM_UNUSUAL)

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
        cleaned = super().clean() or self.cleaned_data
        if "rate" in cleaned:
            self.instance.rate_micro = money.to_micro(cleaned["rate"])
        return cleaned


class PriceVersionFormSet(forms.BaseInlineFormSet):
    """Validate the prices of a package together. The caller must hold the lock of `lock_prices`."""

    def clean(self) -> None:
        super().clean()
        package = self.instance
        if not package.active:
            if any(form.has_changed() and form not in self.deleted_forms for form in self.forms):
                raise forms.ValidationError(_("An inactive package takes no new prices. Activate it first."))
            return
        self.require_notice(package)
        same_service = PriceVersion.objects.filter(
            package__location=package.location_id, package__kind=package.kind, package__currency=package.currency
        )
        now = max(timezone.now(), *Location.objects.values_list(Now(), flat=True)[:1])
        deleted: list[Any] = self.deleted_forms
        if any(form.has_begun_at(now + SOONEST) for form in deleted):
            raise forms.ValidationError(_("A price that has started can't be deleted. Plan a new price instead."))
        in_formset = [form.instance.pk for form in self.forms if form.instance.pk]
        others = same_service.exclude(pk__in=in_formset)
        taken = Counter(others.filter(package=package.pk).values_list("starts_at", flat=True))
        rates = dict(others.order_by("starts_at", "pk").values_list("starts_at", "rate_micro"))
        remaining: list[Any] = [
            form for form in self.forms if form not in deleted and form.cleaned_data.get("starts_at")
        ]
        taken.update(form.cleaned_data["starts_at"] for form in remaining)
        for form in sorted(remaining, key=lambda form: (form.cleaned_data["starts_at"], form.instance.pk or 0)):
            starts_at = form.cleaned_data["starts_at"]
            if form.has_changed():
                if form.has_begun_at(now + SOONEST):
                    form.add_error("starts_at", _("This price has started in the meantime. Plan a new price instead."))
                elif rates and starts_at <= now + SOONEST:  # the first price of a service may start in the past
                    clock = _("The portal's time is %(now)s UTC. Choose a start at least a minute later.")
                    form.add_error("starts_at", f"{PAST} {clock % {'now': f'{now:%Y-%m-%d %H:%M:%S}'}}")
                if taken[starts_at] > 1:
                    form.add_error("starts_at", SAME_START)
                earlier = [start for start in rates if start < starts_at]
                if earlier and "rate" in form.cleaned_data:
                    require_confirmation(form, form.instance.rate_micro, rates[max(earlier)], package.currency)
            if "rate" in form.cleaned_data:
                rates[starts_at] = form.instance.rate_micro

    def require_notice(self, package: Package) -> None:
        """Add an error if the first price of Block Storage charges volumes before their owners have had notice."""
        if package.kind != ServiceKind.BLOCK_STORAGE or not package.location_id:
            return
        planned = [form for form in self.forms if form not in self.deleted_forms and form.cleaned_data.get("starts_at")]
        first: Any = min(planned, key=lambda form: form.cleaned_data["starts_at"], default=None)
        soonest = timezone.now() + NOTICE
        if not first or first.cleaned_data["starts_at"] >= soonest:
            return
        starts_at = first.cleaned_data["starts_at"]
        was_first = all(form.initial["starts_at"] >= starts_at for form in self.initial_forms)
        if was_first and not first.has_changed():
            return
        volumes, _customers = count_uncharged(package.location_id, package.currency)
        if volumes:
            sentence = _(
                "This price charges existing volumes for the first time, so their owners get %(days)s days' notice. "
                "Choose a start after %(soonest)s UTC."
            )
            instants = {"days": NOTICE.days, "soonest": f"{soonest:%Y-%m-%d %H:%M}"}
            first.add_error("starts_at", sentence % instants)


class PriceCorrectionForm(forms.Form):
    """The correct rate of a price that has begun and was too high."""

    rate = rate_field(_("right rate per GB and hour"))
    reason = forms.CharField(label=_("reason"), max_length=255, help_text=_("Recorded with the price."))
    confirm = forms.BooleanField(label=_("unusual price"), required=False, help_text=CONFIRM_UNUSUAL)

    def __init__(self, data: Any, *, version: PriceVersion) -> None:
        super().__init__(data)
        self.version = version

    @property
    def rate_micro(self) -> int:
        return money.to_micro(self.cleaned_data["rate"])

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if "rate" in cleaned:
            package = self.version.package
            earlier = package.versions.filter(starts_at__lt=self.version.starts_at).last()
            if self.rate_micro >= self.version.rate_micro:
                self.add_error("rate", LOWER_ONLY)
            elif earlier or not self.rate_micro:
                previous_micro = earlier.rate_micro if earlier else self.version.rate_micro
                require_confirmation(self, self.rate_micro, previous_micro, package.currency)
        return cleaned


class PackageForm(forms.ModelForm):
    """A package. A new one of Block Storage requires a confirmation if it will charge existing volumes."""

    confirm_volumes = forms.BooleanField(
        label=_("charge existing volumes"),
        required=False,
        help_text=_("Confirm that existing volumes in this location will be charged for the first time."),
    )

    class Meta:
        model = Package
        fields = ["location", "kind", "currency", "name", "active", "billing_cycle", "billing_rule"]
        error_messages = {
            "kind": {"invalid_choice": ONLY_PACKAGE_KINDS},
            "billing_cycle": {"invalid_choice": ONLY_HOURLY},
            "billing_rule": {"invalid_choice": ONLY_FIXED_PRORATA},
        }

    def clean_active(self) -> bool:
        active: bool = self.cleaned_data["active"]
        is_block_storage = self.instance.pk and self.instance.kind == ServiceKind.BLOCK_STORAGE
        if is_block_storage and active and not self.initial["active"]:
            if self.instance.versions.filter(starts_at__lte=Now()).exists():
                raise forms.ValidationError(CANNOT_REACTIVATE)
        # A month may have been closed by a clock that was ahead.
        planned = self.instance.versions.filter(starts_at__gt=Now()) if self.instance.pk and not active else []
        if planned and InvoiceLine.objects.filter(price_version__in=planned).exists():
            raise forms.ValidationError(
                _(
                    "An invoice already uses a planned price of this package. Deactivate the package once that price begins."
                )
            )
        return active

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        is_new = self.instance.pk is None and cleaned.get("kind") == ServiceKind.BLOCK_STORAGE
        if is_new and cleaned.get("location") and cleaned.get("currency") and not cleaned.get("confirm_volumes"):
            volumes, customers = count_uncharged(cleaned["location"].pk, cleaned["currency"])
            if volumes:
                sentence = _(
                    "Volumes that will be charged from the first price on: %(volumes)s. Customers: %(customers)s. Their "
                    "owners are notified when you save. If that is right, check this box and save again."
                )
                self.add_error("confirm_volumes", sentence % {"volumes": volumes, "customers": customers})
        return cleaned


class WalletForm(forms.Form):
    """An amount in the customer's currency. `key` is made with the form, so that posting it twice is one transaction."""

    amount = forms.DecimalField(label=_("amount"))
    reason = forms.CharField(label=_("reason"), max_length=255, help_text=_("Recorded with the transaction."))
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
        help_text=_("Credits that expire are used first. Leave empty if they never expire."),
    )
    field_order = ["amount", "expires_at", "reason", "key"]


class CorrectionForm(WalletForm):
    amount = forms.DecimalField(
        label=_("change"), help_text=_("A positive amount is added to the wallet, a negative one is taken from it.")
    )
    can_be_negative = True

    def clean_amount(self) -> Decimal:
        amount = self.cleaned_data["amount"]
        if amount == 0:
            raise forms.ValidationError(_("A correction changes the balance: enter an amount other than 0."))
        return amount


# Far enough from the ends of the calendar for arithmetic with zones and months.
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2199, 12, 31)


class SubscriptionFilterForm(FilterForm):
    q = None  # type: ignore[assignment]  # the Django way to leave out a field
    state = ChoiceFilter(_("State"), "", SubscriptionState.choices)
    kind = ChoiceFilter(_("Kind"), "", ServiceKind.choices)


class UsageFilterForm(forms.Form):
    """Filters of the account statement."""

    project = forms.ModelChoiceField(
        Project.objects.none(), label=_("Project"), required=False, empty_label=_("All projects")
    )
    kind = forms.ChoiceField(label=_("Kind"), required=False, choices=[("", _("All kinds")), *ServiceKind.choices])
    # For links from amounts: the first day of a month, only usage not invoiced yet, and one resource.
    month = forms.DateField(label=_("Month"), required=False, widget=forms.HiddenInput)
    due = forms.BooleanField(required=False, widget=forms.HiddenInput)
    resource = forms.UUIDField(label=_("Resource"), required=False, widget=forms.HiddenInput)
    first = forms.DateField(label=_("From"), required=False, widget=forms.DateInput(attrs={"type": "date"}))
    last = forms.DateField(label=_("To"), required=False, widget=forms.DateInput(attrs={"type": "date"}))

    def __init__(self, data: Any, *, customer: Customer) -> None:
        super().__init__(data)
        field: Any = self.fields["project"]
        field.queryset = customer.projects.order_by("name")
        # Read once, although the field is rendered twice.
        field.choices = [("", field.empty_label), *((project.pk, str(project)) for project in field.queryset)]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        for name in ("month", "first", "last"):
            if cleaned.get(name) and not FIRST_DAY <= cleaned[name] <= LAST_DAY:
                self.add_error(name, _("Choose a date between 2000 and 2199."))
        first: date | None = cleaned.get("first")
        last: date | None = cleaned.get("last")
        if first and last and last < first:
            self.add_error("last", _("The last day is before the first one. Choose a later day."))
        return cleaned

    @property
    def left_out(self) -> list[str]:
        """Return the labels of invalid filters without a visible field, which would show the error."""
        return [str(field.label) for field in self.hidden_fields() if field.errors]
