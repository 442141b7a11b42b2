"""Django admin of locations, cloud projects, virtual machines and volumes."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import Customer, Project
from cng_portal.accounts.services import lock_customers
from cng_portal.common.admin import SupportAdmin, as_ids, posted_ids
from cng_portal.common.money import MICRO, format_price

from .models import CloudProject, Location, VirtualMachine, Volume


class MicroField(forms.DecimalField):
    """An amount entered in the customer's currency and stored in millionths of it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"min_value": 0, "max_digits": 15, "decimal_places": 6} | kwargs)

    def prepare_value(self, value: Any) -> Any:
        # Invalid input is redisplayed as text; only stored values are integers.
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
    list_display = ["code", "city", "display_country", "region", "driver", "active"]
    list_filter = ["active", "region", "driver"]
    search_fields = ["code", "city", "country"]
    uuid_fields = ()

    def get_readonly_fields(self, request: HttpRequest, obj: Location | None = None) -> list[str]:
        # Storage drivers derive paths from the code.
        return ["code"] if obj else []

    def save_model(self, request: HttpRequest, obj: Location, form: Any, change: bool) -> None:
        if {"driver", "driver_options"} & set(form.changed_data):
            obj.storage_seen_at = None
        super().save_model(request, obj, form, change)

    @admin.display(description=_("country"), ordering="country")
    def display_country(self, location: Location) -> str:
        return f"{location.flag} {location.country_name}"


def require_not_archived(project: Project | None) -> Project | None:
    if project and project.archived_at:
        raise ValidationError(
            _("“%(project)s” is archived, so nothing can be created in it. Choose another project.")
            % {"project": project}
        )
    return project


def lock_projects(condition: Q) -> None:
    """Lock the customers of the projects, so that none of these is archived meanwhile, and no sync imports into them."""
    lock_customers(Customer.objects.filter(projects__in=Project.objects.filter(condition)))


class ResourceForm(forms.ModelForm):
    """A machine or volume, which appears in no archived project."""

    def clean_project(self) -> Project | None:
        return require_not_archived(self.cleaned_data["project"])

    def clean_deleted_at(self) -> datetime | None:
        deleted_at: datetime | None = self.cleaned_data["deleted_at"]
        if deleted_at is None and self.instance.deleted_at:
            require_not_archived(self.instance.project)
        return deleted_at


class CloudProjectForm(forms.ModelForm):
    def clean_project(self) -> Project | None:
        """Imported objects have snapshots and charges in their project, so it can no longer change."""
        project = require_not_archived(self.cleaned_data["project"])
        cloud = self.instance
        if cloud.project_id and project != cloud.project:
            fields = {"location": cloud.location_id, "backend_project": cloud.external_id, "project": cloud.project_id}
            if Volume.objects.filter(**fields).exists() or VirtualMachine.objects.filter(**fields).exists():
                raise ValidationError(
                    _(
                        "Volumes or instances have been imported into “%(project)s” already, so it stays with that project."
                    )
                    % {"project": cloud.project}
                )
        return project


@admin.register(CloudProject)
class CloudProjectAdmin(SupportAdmin):
    """Projects discovered by `manage.py sync_inventory`. An administrator assigns each to a project of the portal."""

    form = CloudProjectForm
    list_display = ["display_name", "location", "project", "customer", "volumes", "snapshots", "gb", "state"]
    list_filter = [("project", admin.EmptyFieldListFilter), "location", ("missing_since", admin.EmptyFieldListFilter)]
    list_select_related = ["location", "project__customer"]
    search_fields = ["name", "external_id", "project__name", "project__customer__name"]
    uuid_fields = ("project_id", "project__customer_id")
    customer_fields = ("project__customer",)
    autocomplete_fields = ["project"]

    def get_readonly_fields(self, request: HttpRequest, obj: CloudProject | None = None) -> list[str]:
        return [field.name for field in CloudProject._meta.fields if field.name not in ("id", "project")]

    def lock(self, request: HttpRequest, object_id: str | None) -> None:
        super().lock(request, object_id)
        lock_projects(Q(pk__in=posted_ids(request, "project")))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        # Its ID in the cloud is a UUID, too, which SupportAdmin compares with our own only.
        matches, distinct = super().get_search_results(request, queryset, search_term)
        return matches | queryset.filter(external_id=search_term.strip()), distinct

    @admin.display(description=_("name in the cloud"), ordering="name")
    def display_name(self, cloud_project: CloudProject) -> str:
        return str(cloud_project)

    @admin.display(description=_("customer"))
    def customer(self, cloud_project: CloudProject) -> str:
        return str(cloud_project.project.customer) if cloud_project.project else "-"

    @admin.display(description=_("volumes"), ordering="volume_count")
    def volumes(self, cloud_project: CloudProject) -> str:
        return format_use(cloud_project.volume_count, cloud_project.volume_quota)

    @admin.display(description=_("snapshots"), ordering="snapshot_count")
    def snapshots(self, cloud_project: CloudProject) -> str:
        return format_use(cloud_project.snapshot_count, cloud_project.snapshot_quota)

    @admin.display(description=_("GB"), ordering="used_gb")
    def gb(self, cloud_project: CloudProject) -> str:
        return format_use(cloud_project.used_gb, cloud_project.gb_quota)

    @admin.display(description=_("state"), ordering="synced_at")
    def state(self, cloud_project: CloudProject) -> str:
        if cloud_project.missing_since:
            return gettext("Missing since %(when)s") % {"when": format_instant(cloud_project.missing_since)}
        if cloud_project.error:
            return gettext("Last sync failed: %(reason)s") % {"reason": cloud_project.error}
        if not cloud_project.project_id:
            return gettext("Not assigned to a project")
        if cloud_project.project and cloud_project.project.archived_at:
            return gettext("The project is archived, so nothing is imported")
        if not cloud_project.synced_at:
            return gettext("Will be imported by the next sync")
        return gettext("Synced %(when)s") % {"when": format_instant(cloud_project.synced_at)}


def format_instant(instant: datetime) -> str:
    return timezone.localtime(instant).strftime("%Y-%m-%d %H:%M %Z")


def format_use(count: int | None, quota: int | None) -> str:
    if count is None:
        return "-"
    return (
        str(count)
        if quota is None or quota < 0
        else gettext("%(count)s of %(quota)s") % {"count": count, "quota": quota}
    )


class VirtualMachineForm(ResourceForm):
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

    def lock(self, request: HttpRequest, object_id: str | None) -> None:
        super().lock(request, object_id)
        lock_projects(Q(pk__in=posted_ids(request, "project")) | Q(vms__in=as_ids(object_id)))

    def get_readonly_fields(self, request: HttpRequest, obj: VirtualMachine | None = None) -> list[str]:
        own = ["id", "backend_project", "seen_at"]
        return [*own, "project", "location", "backend_ref"] if obj else own

    @admin.display(description=_("customer"))
    def customer(self, vm: VirtualMachine) -> str:
        return str(vm.project.customer)

    @admin.display(description=_("hourly price"), ordering="hourly_price_micro")
    def hourly_price(self, vm: VirtualMachine) -> str:
        return format_price(vm.hourly_price_micro, vm.project.customer.currency)


class VolumeForm(ResourceForm):
    def clean_vm(self) -> VirtualMachine | None:
        vm = self.cleaned_data["vm"]
        if vm and (vm.project_id, vm.location_id) != (self.instance.project_id, self.instance.location_id):
            raise ValidationError(
                _("The instance and the volume aren't in the same project and location. Choose another instance.")
            )
        return vm

    def clean_deleted_at(self) -> datetime | None:
        deleted_at = super().clean_deleted_at()
        if deleted_at and deleted_at > timezone.now():
            raise ValidationError(_("A volume can't have been deleted in the future."))
        return deleted_at


@admin.register(Volume)
class VolumeAdmin(SupportAdmin):
    """Volumes are created on the portal's pages, by `manage.py import_volume` and by sync, never here."""

    form = VolumeForm
    exclude = ["tags"]  # the customers' own; a list of all of them would not fit the page
    list_display = ["name", "project", "customer", "location", "size_gb", "vm", "state", "created_at", "deleted_at"]
    list_filter = ["state", "location"]
    list_select_related = ["project__customer", "location", "vm"]
    search_fields = ["name", "project__name", "project__customer__name", "vm__name"]
    uuid_fields = ("pk", "project_id", "project__customer_id", "vm_id")
    customer_fields = ("project__customer",)
    autocomplete_fields = ["vm"]
    # These describe an existing disk, which admin can't resize or move.
    readonly_fields = ["id", "project", "location", "size_gb", "state", "backend_ref", "backend_project"]
    readonly_fields += ["seen_at", "created_at", "available_at", "delete_requested_at"]

    @admin.display(description=_("customer"))
    def customer(self, volume: Volume) -> str:
        return str(volume.project.customer)

    def lock(self, request: HttpRequest, object_id: str | None) -> None:
        super().lock(request, object_id)
        lock_projects(Q(volumes__in=as_ids(object_id)))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False
