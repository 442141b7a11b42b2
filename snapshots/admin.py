"""Snapshots, backups and the work on them, for the support desk: to look at. What is done to them goes through services.

Machines and locations are registered once more here, with what their own app knows nothing of: automatic backups.
"""

from collections import defaultdict
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from billing import money, rating
from billing import services as billing
from cng_portal.accounts.admin import ReadOnly, SupportAdmin
from cng_portal.inventory.admin import LocationAdmin, LocationForm, VirtualMachineAdmin, shown
from cng_portal.inventory.models import AutomaticBackupSwitch, Location, VirtualMachine
from cng_portal.monitoring.models import Process
from cng_portal.monitoring.services import SILENT_AFTER

from . import backups, services, watching
from .models import BackupRun, BackupSchedule, DiskImage, Operation, Snapshot


class DiskImageInline(ReadOnly, admin.TabularInline):
    model = DiskImage
    fields = ["volume_name", "size_gb", "allocated_bytes", "checksum", "captured_at", "verified_at", "damage"]
    readonly_fields = fields
    extra = 0
    show_change_link = True


class OperationInline(ReadOnly, admin.TabularInline):
    model = Operation
    fk_name = "snapshot"
    fields = ["kind", "state", "attempt", "requested_by", "created_at", "started_at", "finished_at", "error"]
    readonly_fields = fields
    extra = 0
    show_change_link = True

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).select_related("requested_by")


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnly, SupportAdmin):
    list_display = [
        "name",
        "kind",
        "state_badge",
        "size_gb",
        "volume",
        "vm",
        "project",
        "customer",
        "location",
        "created_at",
    ]
    list_filter = ["kind", "state", "location"]
    list_select_related = ["volume", "vm", "project", "customer", "location"]
    search_fields = ["name", "volume__name", "vm__name"]
    uuid_fields = ("pk", "volume_id", "vm_id", "project_id", "customer_id")
    customer_fields = ("customer",)
    person_fields = ("requested_by",)
    ordering = ["-created_at", "-id"]
    exclude = ["name_key", "draft"]
    inlines = [DiskImageInline, OperationInline]

    @admin.display(description=_("state"), ordering="state")
    def state_badge(self, snapshot: Snapshot) -> SafeString:
        return format_html('<span title="{}">{}</span>', snapshot.error, snapshot.get_state_display())


@admin.register(DiskImage)
class DiskImageAdmin(ReadOnly, SupportAdmin):
    list_display = ["volume_name", "snapshot", "size_gb", "allocated_bytes", "captured_at", "verified_at", "is_damaged"]
    list_filter = [("damage", admin.EmptyFieldListFilter)]
    list_select_related = ["snapshot"]
    search_fields = ["volume_name", "checksum", "snapshot__name"]
    uuid_fields = ("pk", "snapshot_id", "volume_id")
    customer_fields = ("snapshot__customer",)

    @admin.display(description=_("damaged"), boolean=True)
    def is_damaged(self, disk: DiskImage) -> bool:
        return bool(disk.damage)


@admin.register(Operation)
class OperationAdmin(ReadOnly, SupportAdmin):
    list_display = [
        "kind",
        "state",
        "snapshot",
        "volume",
        "attempt",
        "requested_by",
        "created_at",
        "finished_at",
        "error",
    ]
    list_filter = ["kind", "state"]
    list_select_related = ["snapshot", "volume", "requested_by"]
    search_fields = ["snapshot__name", "volume__name", "error"]
    uuid_fields = ("pk", "snapshot_id", "volume_id", "safety_snapshot_id")
    customer_fields = ("snapshot__customer",)
    person_fields = ("requested_by",)
    change_list_template = "snapshots/admin/operations.html"

    def get_urls(self) -> list[Any]:
        overview = path("overview/", self.admin_site.admin_view(self.overview), name="snapshots_operation_overview")
        return [overview, *super().get_urls()]

    def overview(self, request: HttpRequest) -> HttpResponse:
        """How the work goes, and what to do about what does not. Nine queries besides session and person."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return HttpResponseNotAllowed(["GET"])
        seen = watching.look(now=timezone.now())
        context = {
            **self.admin_site.each_context(request),
            "title": _("Operations at a glance"),
            "opts": self.opts,
            "seen": seen,
            "warnings": watching.warnings(seen),
            "table": watching.table(seen),
            "failures": watching.failures(now=seen.at),
            "failure_days": watching.FAILURES_OF.days,
            "locations": Location.objects.select_related("storage_check"),
            "processes": Process.objects.order_by("kind", "host", "started_at"),
            "silent_before": seen.at - SILENT_AFTER,
        }
        return TemplateResponse(request, "snapshots/admin/overview.html", context)


class BackupRunInline(ReadOnly, admin.TabularInline):
    model = BackupRun
    fields = ["slot", "state", "tries", "next_try_at", "snapshot", "reason", "finished_at"]
    readonly_fields = fields
    extra = 0
    max_num = 0
    show_change_link = True

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("snapshot", "vm")


@admin.register(BackupSchedule)
class BackupScheduleAdmin(ReadOnly, SupportAdmin):
    list_display = ["vm", "customer", "origin", "interval", "at", "keep", "next_run_at", "paused_at", "deleted_at"]
    list_filter = ["origin", "interval", ("paused_at", admin.EmptyFieldListFilter)]
    list_select_related = ["vm__project__customer"]
    search_fields = ["vm__name"]
    uuid_fields = ("pk", "vm_id", "vm__project_id", "vm__project__customer_id")
    customer_fields = ("vm__project__customer",)
    person_fields = ("created_by",)
    exclude = ["draft"]
    inlines = [BackupRunInline]

    @admin.display(description=_("customer"))
    def customer(self, schedule: BackupSchedule) -> str:
        return str(schedule.vm.project.customer)


@admin.register(BackupRun)
class BackupRunAdmin(ReadOnly, SupportAdmin):
    list_display = ["vm", "slot", "state", "tries", "next_try_at", "snapshot", "reason", "finished_at"]
    list_filter = ["state", "schedule__origin"]
    list_select_related = ["vm", "snapshot"]
    search_fields = ["vm__name", "reason"]
    uuid_fields = ("pk", "vm_id", "schedule_id", "snapshot_id")
    customer_fields = ("vm__project__customer",)
    person_fields = ("requested_by",)


# --- the switch of automatic backups ---------------------------------------------------------------------------------


class SwitchInline(ReadOnly, admin.TabularInline):
    model = AutomaticBackupSwitch
    fields = ["switched_at", "on", "switched_by"]
    readonly_fields = fields
    extra = 0
    verbose_name_plural = _("automatic backups, who switched them and when")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("switched_by", "vm")


class AutomaticBackupsFilter(admin.SimpleListFilter):
    title = _("automatic backups")
    parameter_name = "automatic"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("on", _("On")), ("off", _("Off"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("on", "off"):
            return queryset
        return queryset.filter(automatic_backups_since__isnull=self.value() == "off")


class MachineAdmin(VirtualMachineAdmin):
    """A machine, with the switch of its automatic backups: as a column, as an action for many, and on its page."""

    # next to the name, so that the switch is in sight however wide the rest is
    list_display = ["name", "automatic_backups", *VirtualMachineAdmin.list_display[1:]]
    list_filter = [AutomaticBackupsFilter, *VirtualMachineAdmin.list_filter]
    inlines = [*VirtualMachineAdmin.inlines, SwitchInline]
    actions = ["switch_many_on", "switch_many_off"]
    change_form_template = "snapshots/admin/machine.html"

    def get_readonly_fields(self, request: HttpRequest, obj: VirtualMachine | None = None) -> list[str]:
        given = super().get_readonly_fields(request, obj)
        return [*given, "automatic_backups_here"] if obj else given

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """One query more tells what the switches of the page cost."""
        changelist = super().get_changelist_instance(request)
        rows = list(changelist.result_list)
        costs = backups.automatic_costs(rows, at=timezone.now())
        for vm in rows:
            vm.automatic_hourly_micro = costs[vm.pk]
            vm.switch_button = self.has_change_permission(request) and switch_button(vm, back=request.get_full_path())
        changelist.result_list = rows
        return changelist

    @admin.display(description=_("automatic backups"), ordering="automatic_backups_since")
    def automatic_backups(self, vm: Any) -> SafeString:
        return format_html(
            "{} {} <small>{}</small>",
            _("On") if vm.automatic_backups_since else _("Off"),
            vm.switch_button or "",
            price_label(vm, vm.automatic_hourly_micro),
        )

    @admin.display(description=_("automatic backups"))
    def automatic_backups_here(self, vm: VirtualMachine) -> SafeString:
        """On the machine's page: how it is, what it costs or will cost, and the button."""
        since = vm.automatic_backups_since
        lines = [gettext("On since %(time)s.") % {"time": shown(since)} if since else gettext("Off.")]
        left = 0 if since else backups.automatic_copies(vm).count()
        try:
            quote = backups.automatic_backup_quote(vm=vm)
        except services.NotSold as refusal:
            lines.append(str(refusal))
        else:
            lines += [cost_sentence(quote), default_sentence(vm.location)]
        button = switch_button(vm, form="automatic-backups")
        if left:
            text = ngettext("Delete the copy that they left…", "Delete the %(count)s copies that they left…", left)
            url = reverse("admin:snapshots_delete_automatic_copies", args=[vm.pk])
            button = format_html('{} <a href="{}">{}</a>', button, url, text % {"count": left})
        return format_html("{}<br>{}<br>{}", lines[0], " ".join(lines[1:]), button)

    def save_model(self, request: HttpRequest, obj: VirtualMachine, form: Any, change: bool) -> None:
        """What automatic backups depend on goes through their services."""
        if not change:
            return super().save_model(request, obj, form, change)
        price = obj.hourly_price_micro
        changed = [name for name in form.changed_data if name != "hourly_price_micro"]
        if changed:  # no others, or a switch that was flipped meanwhile would be flipped back
            obj.save(update_fields=changed)
        if "hourly_price_micro" in form.changed_data:
            backups.change_machine_price(vm=obj, hourly_price_micro=price, user=request.user)
        if "name" in changed:
            billing.rename_resource(resource_id=obj.pk, name=obj.name)
        if "deleted_at" in changed and obj.deleted_at:
            backups.end_of_machine(obj, timezone.now(), request.user)

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view
        return [
            path("<uuid:pk>/automatic-backups/", view(self.switch_one), name="snapshots_switch"),
            path("<uuid:pk>/automatic-copies/", view(self.delete_copies), name="snapshots_delete_automatic_copies"),
            *super().get_urls(),
        ]

    def get_machine(self, request: HttpRequest, pk: UUID) -> VirtualMachine:
        if not self.has_change_permission(request):
            raise PermissionDenied(gettext("You may look at machines, but not change them."))
        return get_object_or_404(VirtualMachine.objects.select_related("project__customer", "location"), pk=pk)

    def switch_one(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        vm = self.get_machine(request, pk)
        back = request.GET.get("back", "")
        if not url_has_allowed_host_and_scheme(back, allowed_hosts={request.get_host()}):
            back = reverse("admin:inventory_virtualmachine_change", args=[pk])
        self.switch(request, [vm], on=request.POST.get("on") == "1")
        return HttpResponseRedirect(back)

    def switch(self, request: HttpRequest, machines: list[VirtualMachine], *, on: bool) -> None:
        """Each by itself: one that is refused does not keep the others from it."""
        switched = []
        for vm in machines:
            try:
                backups.switch_automatic_backups(vm=vm, on=on, user=request.user)
                switched.append(vm)
            except services.Refusal as refusal:
                self.message_user(request, f"{vm}: {refusal}", messages.ERROR)
        if not switched:
            return
        if len(switched) > 1:
            sentence = (
                gettext("Automatic backups of %(count)s machines are on.")
                if on
                else gettext("Automatic backups of %(count)s machines are off. Their copies stay.")
            )
        elif on:
            sentence = gettext("Automatic backups of %(vm)s are on: %(cost)s")
        else:
            sentence = gettext("Automatic backups of %(vm)s are off. Their copies stay.")
        cost = cost_or_reason(switched[0]) if on else ""
        given = {"count": len(switched), "vm": switched[0], "cost": cost}
        self.message_user(request, sentence % given, messages.SUCCESS)

    @admin.action(description=_("Switch automatic backups on…"), permissions=["change"])
    def switch_many_on(self, request: HttpRequest, machines: QuerySet[VirtualMachine]) -> HttpResponse | None:
        return self.switch_many(request, machines, on=True)

    @admin.action(description=_("Switch automatic backups off…"), permissions=["change"])
    def switch_many_off(self, request: HttpRequest, machines: QuerySet[VirtualMachine]) -> HttpResponse | None:
        return self.switch_many(request, machines, on=False)

    def switch_many(self, request: HttpRequest, machines: QuerySet[VirtualMachine], *, on: bool) -> HttpResponse | None:
        """First what it costs, or saves, in all; once that is confirmed, do it."""
        chosen = list(machines.select_related("project__customer", "location"))
        if request.POST.get("confirmed"):
            self.switch(request, chosen, on=on)
            return None
        sold = backups.automatic_costs(chosen, at=timezone.now())
        totals: dict[str, int] = defaultdict(int)
        rows = []
        for vm in chosen:
            hourly = rating.hourly_micro(rate_micro=vm.hourly_price_micro, size_gb=None)
            if bool(vm.automatic_backups_since) == on:
                what = _("Nothing changes: they are on.") if on else _("Nothing changes: they are off.")
            elif on and vm.deleted_at:
                what = _("Refused: the machine has been deleted.")
            elif on and sold[vm.pk] is None:
                what = _("Refused: VM Backup is not sold in this location.")
            else:
                what = price_label(vm, hourly)
                totals[currency_of(vm)] += hourly
            rows.append({"vm": vm, "base": money.format_rate(vm.hourly_price_micro, currency_of(vm)), "what": what})
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": _("Switch automatic backups on") if on else _("Switch automatic backups off"),
            "on": on,
            "rows": rows,
            "totals": [
                {
                    "hourly": money.format_price_or_amount(micro, currency),
                    "monthly": money.format_amount(micro * rating.HOURS_PER_MONTH, currency),
                }
                for currency, micro in totals.items()
            ],
            "hours": rating.HOURS_PER_MONTH,
            "action": "switch_many_on" if on else "switch_many_off",
            "checkbox": ACTION_CHECKBOX_NAME,
            "back": request.get_full_path(),
        }
        return render(request, "snapshots/admin/switch_many.html", context)

    def delete_copies(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        vm = self.get_machine(request, pk)
        back = reverse("admin:inventory_virtualmachine_change", args=[pk])
        if request.method == "POST":
            try:
                count = backups.delete_automatic_copies(vm=vm, user=request.user)
            except services.Refusal as refusal:
                self.message_user(request, str(refusal), messages.ERROR)
            else:
                text = ngettext("%(count)s copy is being deleted.", "%(count)s copies are being deleted.", count)
                self.message_user(request, text % {"count": count}, messages.SUCCESS)
            return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": _("Delete the copies of automatic backups"),
            "vm": vm,
            "copies": backups.automatic_copies(vm).order_by("-created_at"),
            "back": back,
        }
        return render(request, "snapshots/admin/delete_copies.html", context)


def switch_button(vm: VirtualMachine, *, back: str = "", form: str = "") -> SafeString:
    """Posts to the switch by one click: the form around it, or `form`, brings the token."""
    if vm.deleted_at and not vm.automatic_backups_since:
        return SafeString()
    url = reverse("admin:snapshots_switch", args=[vm.pk])
    return format_html(
        '<button class="button" formaction="{}" formnovalidate name="on" value="{}"{} aria-label="{}">{}</button>',
        f"{url}?{urlencode({'back': back})}" if back else url,
        "0" if vm.automatic_backups_since else "1",
        format_html(' form="{}"', form) if form else "",
        (
            _("Switch off automatic backups of %(vm)s")
            if vm.automatic_backups_since
            else _("Switch on automatic backups of %(vm)s")
        )
        % {"vm": vm.name},
        _("Switch off") if vm.automatic_backups_since else _("Switch on"),
    )


def currency_of(vm: VirtualMachine) -> str:
    return vm.project.customer.currency


def price_label(vm: VirtualMachine, hourly_micro: int | None) -> str:
    if hourly_micro is None:
        return gettext("not sold in %(location)s") % {"location": vm.location_id}
    return gettext("%(price)s / Hour") % {"price": money.format_price(hourly_micro, currency_of(vm))}


def cost_sentence(quote: billing.Quote) -> str:
    """The machine's price, the 20 %, and what it comes to."""
    return gettext("%(formula)s, %(monthly)s for %(hours)s hours (30.5 days).") % {
        "formula": quote.formula,
        "monthly": money.format_amount(quote.monthly_micro, quote.currency),
        "hours": rating.HOURS_PER_MONTH,
    }


def cost_or_reason(vm: VirtualMachine) -> str:
    """What its automatic backups cost; that they are not sold any more, where they are on since before."""
    try:
        return cost_sentence(backups.automatic_backup_quote(vm=vm))
    except services.NotSold as refusal:
        return str(refusal)


def default_sentence(location: Location) -> str:
    keep = location.default_keep
    text = ngettext(
        "%(interval)s at %(time)s in the customer's time zone, %(keep)s copy kept.",
        "%(interval)s at %(time)s in the customer's time zone, %(keep)s copies kept.",
        keep,
    )
    return text % {
        "interval": location.get_default_interval_display(),
        "time": location.default_at.strftime("%H:%M"),
        "keep": keep,
    }


class BackupLocationForm(LocationForm):
    """With the default schedule of automatic backups, checked by the rules that every schedule has to follow."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        names = [f"default_{name}" for name in backups.RHYTHM]
        if all(name in cleaned for name in names):
            try:
                fields = backups.rhythm(**{name: cleaned[f"default_{name}"] for name in backups.RHYTHM})
            except backups.BadSchedule as refusal:
                self.add_error(f"default_{refusal.field}", str(refusal))
            else:
                cleaned |= {f"default_{name}": value for name, value in fields.items()}
        return cleaned


class BackupLocationAdmin(LocationAdmin):
    form = BackupLocationForm
    fieldsets = [
        (None, {"fields": ["code", "city", "country", "region", "active", "driver", "driver_options"]}),
        (
            _("Automatic backups"),
            {
                "fields": [f"default_{name}" for name in backups.RHYTHM],
                "description": _(
                    "When the machines are backed up whose automatic backups are switched on. A change holds for all of "
                    "them, also for those that are on already."
                ),
            },
        ),
        (
            _("Snapshots made or deleted in the cloud"),
            {
                "fields": ["charges_outside", "charges_missing"],
                "description": _("What is changed here counts from the next look at the cloud on, never backwards."),
            },
        ),
    ]

    def save_model(self, request: HttpRequest, obj: Location, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if change and any(name.startswith("default_") for name in form.changed_data):
            fields = {name: getattr(obj, f"default_{name}") for name in backups.RHYTHM}
            if count := backups.change_default_schedule(location=obj, **fields, user=request.user):
                text = ngettext("%(count)s machine follows.", "%(count)s machines follow.", count)
                self.message_user(request, text % {"count": count}, messages.SUCCESS)


for model, model_admin in ((VirtualMachine, MachineAdmin), (Location, BackupLocationAdmin)):
    admin.site.unregister(model)
    admin.site.register(model, model_admin)
