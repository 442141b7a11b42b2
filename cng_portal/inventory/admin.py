"""Locations, virtual machines and volumes, for the support desk."""

from decimal import Decimal
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.admin import SupportAdmin

from .models import Location, VirtualMachine, Volume

MICRO = 1_000_000


class MicroField(forms.DecimalField):
    """An amount that is typed in the customer's currency and kept in millionths of it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"min_value": 0, "max_digits": 15, "decimal_places": 6} | kwargs)

    def prepare_value(self, value: Any) -> Any:
        # what was typed comes back as text; only what is kept is an integer
        return format((Decimal(value) / MICRO).normalize(), "f") if isinstance(value, int) else value

    def clean(self, value: Any) -> Any:
        amount = super().clean(value)
        return None if amount is None else int(amount * MICRO)

    def has_changed(self, initial: Any, data: Any) -> bool:
        return super().has_changed(self.prepare_value(initial), data)


class LocationForm(forms.ModelForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["driver"] = forms.ChoiceField(
            label=self.fields["driver"].label,
            choices=[(alias, alias) for alias in settings.STORAGE],
            help_text=_("An entry of the setting STORAGE."),
        )


@admin.register(Location)
class LocationAdmin(SupportAdmin):
    form = LocationForm
    list_display = ["code", "city", "country_shown", "region", "driver", "active"]
    list_filter = ["active", "region", "driver"]
    search_fields = ["code", "city", "country"]
    uuid_fields = ()

    def get_readonly_fields(self, request: HttpRequest, obj: Location | None = None) -> list[str]:
        # the engine keeps its data under the code
        return ["code"] if obj else []

    @admin.display(description=_("country"), ordering="country")
    def country_shown(self, location: Location) -> str:
        return f"{location.flag} {location.country_name}"


class VirtualMachineForm(forms.ModelForm):
    hourly_price_micro = MicroField(
        label=_("hourly price"), help_text=_("In the customer's currency, with up to 6 decimals."), initial=0
    )


class VolumeInline(admin.TabularInline):
    model = Volume
    fields = ["position", "name", "size_gb", "state"]
    readonly_fields = fields
    extra = 0
    show_change_link = True
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: VirtualMachine | None = None) -> bool:
        return False


@admin.register(VirtualMachine)
class VirtualMachineAdmin(SupportAdmin):
    form = VirtualMachineForm
    list_display = ["name", "project", "customer", "location", "state", "hourly_price", "created_at"]
    list_filter = ["state", "location"]
    list_select_related = ["project__customer", "location"]
    search_fields = ["name", "project__name", "project__customer__name"]
    uuid_fields = ("pk", "project_id", "project__customer_id")
    customer_fields = ("project__customer",)
    autocomplete_fields = ["project", "location"]
    inlines = [VolumeInline]

    def get_readonly_fields(self, request: HttpRequest, obj: VirtualMachine | None = None) -> list[str]:
        return ["id", "project", "location", "backend_ref"] if obj else ["id"]

    @admin.display(description=_("customer"))
    def customer(self, vm: VirtualMachine) -> str:
        return str(vm.project.customer)

    @admin.display(description=_("hourly price"), ordering="hourly_price_micro")
    def hourly_price(self, vm: VirtualMachine) -> str:
        price = MicroField().prepare_value(vm.hourly_price_micro)
        return f"{vm.project.customer.currency} {price}"


class VolumeForm(forms.ModelForm):
    def clean_vm(self) -> VirtualMachine | None:
        vm = self.cleaned_data["vm"]
        if vm and (vm.project_id, vm.location_id) != (self.instance.project_id, self.instance.location_id):
            raise ValidationError(
                _("The machine is in another project or location than the volume. Choose one of the same.")
            )
        return vm


@admin.register(Volume)
class VolumeAdmin(SupportAdmin):
    """Volumes come from `manage.py import_volume`, from snapshots, or from the platform; here they are looked after."""

    form = VolumeForm
    list_display = ["name", "project", "customer", "location", "size_gb", "vm", "state", "created_at", "deleted_at"]
    list_filter = ["state", "location"]
    list_select_related = ["project__customer", "location", "vm"]
    search_fields = ["name", "project__name", "project__customer__name", "vm__name"]
    uuid_fields = ("pk", "project_id", "project__customer_id", "vm_id")
    customer_fields = ("project__customer",)
    autocomplete_fields = ["vm"]
    # the size, the place and the owner are those of a disk that is there
    readonly_fields = ["id", "project", "location", "size_gb", "state", "backend_ref", "created_at"]

    @admin.display(description=_("customer"))
    def customer(self, volume: Volume) -> str:
        return str(volume.project.customer)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False
